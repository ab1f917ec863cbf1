"""What a GPU tells besides energy and power: read once a second, in a thread of its own.

Some of these calls take long (PCIe throughput is counted for 20 ms each way), which would leave holes
in the samples. What hardly changes (names, maxima, limits other than the enforced one) is asked for when
the GPU is opened and each minute, and so is whether it has by now what it or the driver did not have.
Units of NVML: per cent, MHz, mW, °C, bytes, and KB/s of PCIe.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from threading import Event, Thread
from typing import Any, TypeVar

import psutil
import pynvml

from benchlab_otel import contract
from benchlab_otel.contract import Metric
from benchlab_otel.sources.nvml_calls import Survey, ask, field_values, optional
from benchlab_otel.sources.reading import Field

PERIOD_S = 1.0
SURVEY_S = 60.0
STALE_S = 5.0  # older values are not shown: a call that hangs must not freeze them
LEAVE_S = 2.0  # longer than the slowest calls together, when all is well
Told = tuple[list[Field], list[float]]
_Process = tuple[str, int]  # the hw_id of the GPU, and the pid

_ENGINES = {
    "encoder": pynvml.nvmlDeviceGetEncoderUtilization,
    "decoder": pynvml.nvmlDeviceGetDecoderUtilization,
    "jpeg": pynvml.nvmlDeviceGetJpgUtilization,
    "ofa": pynvml.nvmlDeviceGetOfaUtilization,
}
_CLOCKS = {
    "graphics": pynvml.NVML_CLOCK_GRAPHICS,
    "sm": pynvml.NVML_CLOCK_SM,
    "memory": pynvml.NVML_CLOCK_MEM,
    "video": pynvml.NVML_CLOCK_VIDEO,
}
_TEMPERATURE_LIMITS = {  # sensor and limit type (of the semantic conventions where they have one)
    ("gpu", "high.critical"): pynvml.NVML_TEMPERATURE_THRESHOLD_SHUTDOWN,
    ("gpu", "throttled"): pynvml.NVML_TEMPERATURE_THRESHOLD_SLOWDOWN,
    ("gpu", "max"): pynvml.NVML_TEMPERATURE_THRESHOLD_GPU_MAX,
    ("memory", "max"): pynvml.NVML_TEMPERATURE_THRESHOLD_MEM_MAX,
}
_THROTTLE = {  # an idle GPU's low clock is no throttling
    "applications_clocks_setting": pynvml.nvmlClocksEventReasonApplicationsClocksSetting,
    "sw_power_cap": pynvml.nvmlClocksEventReasonSwPowerCap,
    "hw_slowdown": pynvml.nvmlClocksEventReasonHwSlowdown,
    "sync_boost": pynvml.nvmlClocksEventReasonSyncBoost,
    "sw_thermal_slowdown": pynvml.nvmlClocksEventReasonSwThermalSlowdown,
    "hw_thermal_slowdown": pynvml.nvmlClocksEventReasonHwThermalSlowdown,
    "hw_power_brake_slowdown": pynvml.nvmlClocksEventReasonHwPowerBrakeSlowdown,
    "display_clock_setting": pynvml.nvmlClocksEventReasonDisplayClockSetting,
}
_PCIE = {"transmit": pynvml.NVML_PCIE_UTIL_TX_BYTES, "receive": pynvml.NVML_PCIE_UTIL_RX_BYTES}
_ECC = {
    "corrected": pynvml.NVML_MEMORY_ERROR_TYPE_CORRECTED,
    "uncorrected": pynvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED,
}


@dataclass(frozen=True, slots=True)
class Gpu:
    """A card, or a MIG instance of one; `name` is the card's domain (`gpu`, `gpu-0`)."""

    handle: Any = field(compare=False)  # another object each time that NVML is asked for it
    hw_id: str
    name: str


@dataclass(frozen=True, slots=True)
class Sensor:
    """What a call tells each second: `numbers` makes of it one for each field."""

    fields: list[Field]
    call: Callable[[], Any]
    numbers: Callable[[Any], Sequence[float]]


@dataclass(frozen=True, slots=True)
class Constant:
    """What is told the same until the next survey."""

    field: Field
    number: float


@dataclass(frozen=True, slots=True)
class ProcessList:
    """A call that lists processes on a GPU."""

    gpu: Gpu
    call: Callable[[], Any]


_Asked = TypeVar("_Asked", Sensor, ProcessList)


class State:
    """The values of one card, read each second until `close`.

    Reading them raises the NVMLError of a GPU that is gone.
    """

    def __init__(self, card: Gpu) -> None:
        self._values = Values(card)
        self._read()
        self._error: pynvml.NVMLError | None = None
        self._stop = Event()
        self._thread = Thread(target=self._run, name=f"benchlab-otel-{card.name}-state", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raises what ended the reading."""
        if self._error is not None:
            raise self._error

    def latest(self) -> Told:
        """The values of the last second, for the metrics only; none where they are stale."""
        return self._latest if time.monotonic() - self._read_at < STALE_S else ([], [])

    def close(self) -> bool:
        """Ends the reading; False where it hangs in a call, as it may with a GPU that fell off the bus."""
        self._stop.set()
        self._thread.join(LEAVE_S)
        return not self._thread.is_alive()

    def _run(self) -> None:
        try:
            while not self._stop.wait(PERIOD_S):
                self._read()
        except pynvml.NVMLError as error:
            self._error = error

    def _read(self) -> None:
        self._latest = self._values.read(time.monotonic())
        self._read_at = time.monotonic()


class Values:
    """All values of a card and its MIG instances, those that it has."""

    def __init__(self, card: Gpu) -> None:
        self._card = card
        self._survey_due = -math.inf
        self._may_have_mig = True
        self._instances: list[Gpu] = []
        self._constants: list[Constant] = []
        self._sensors: list[Sensor] = []
        self._process_lists: list[ProcessList] = []
        self._processes: dict[_Process, Field] = {}  # that were told last
        self._fields: list[Field] = []

    def read(self, now_s: float) -> Told:
        """The values at a time of CLOCK_MONOTONIC, in the same list of fields as long as they are the same.

        NVMLError when the GPU is gone.
        """
        instances = mig_instances(self._card) if self._may_have_mig else []
        if now_s >= self._survey_due or instances != self._instances:
            self._instances = instances
            survey = Survey()
            self._take_stock(survey)
            self._survey_due = now_s if survey.again else now_s + SURVEY_S
        fields, numbers = [c.field for c in self._constants], [c.number for c in self._constants]
        for sensor, told in _told(self._sensors):
            fields += sensor.fields
            numbers += sensor.numbers(told)
        for process, used in self._read_processes().items():
            fields.append(self._processes[process])
            numbers.append(used)
        if fields != self._fields:
            self._fields = fields
        return self._fields, numbers

    def _take_stock(self, survey: Survey) -> None:
        """Finds out what there is to tell."""
        card, instances = self._card, self._instances
        found = [
            *_utilization(card),
            *_temperatures(card, survey),
            *_clocks(card, survey),
            *_throttle(card, survey),
            *_pcie(card),
            *_fans(card, survey),
            *_power_limits(card, survey),
            *_errors(card),
        ]
        for gpu in (card, *instances):
            found += [*_memory(gpu, survey), *_info(gpu, survey)]
        self._constants = [one for one in found if isinstance(one, Constant)]
        self._sensors = [one for one in found if isinstance(one, Sensor)]
        users = instances or [card]  # a card in MIG mode lists the processes of its instances again
        self._process_lists = [one for gpu in users for one in _process_lists(gpu)]
        mode, may_pass = ask(pynvml.nvmlDeviceGetMigMode, card.handle)
        self._may_have_mig = mode is not None or may_pass

    def _read_processes(self) -> dict[_Process, int]:
        """Bytes of memory by process, as far as this user and container may see them."""
        memory: dict[_Process, int] = {}
        for one, processes in _told(self._process_lists):
            for process in processes:
                if process.usedGpuMemory is not None:  # both lists tell all that the process uses
                    key = one.gpu.hw_id, process.pid
                    memory[key] = max(memory.get(key, 0), process.usedGpuMemory)
        self._processes = {key: self._processes.get(key) or _process_field(*key) for key in memory}
        return memory


def _told(asked: list[_Asked]) -> Iterator[tuple[_Asked, Any]]:
    """What each call tells, if anything; a call that GPU or driver don't have is taken off the list."""
    for one in asked.copy():
        told, may_pass = ask(one.call)
        if told is not None:
            yield one, told
        elif not may_pass:
            asked.remove(one)


def mig_instances(card: Gpu) -> list[Gpu]:
    """The MIG instances of a card, none unless MIG is on."""
    mode = optional(pynvml.nvmlDeviceGetMigMode, card.handle)
    if not mode or mode[0] != pynvml.NVML_DEVICE_MIG_ENABLE:
        return []
    places = range(optional(pynvml.nvmlDeviceGetMaxMigDeviceCount, card.handle) or 0)
    handles = [optional(pynvml.nvmlDeviceGetMigDeviceHandleByIndex, card.handle, place) for place in places]
    return [
        Gpu(handle, hw_id(pynvml.nvmlDeviceGetUUID(handle)), f"{card.name} MIG {place}")
        for place, handle in enumerate(handles)
        if handle is not None
    ]


def hw_id(uuid: str) -> str:
    """`GPU-…` or `MIG-…`, as NVML has it, with the lower case prefix that our ids have."""
    kind, _, rest = uuid.partition("-")
    return f"{kind.lower()}-{rest}"


def _utilization(gpu: Gpu) -> Iterator[Sensor]:
    def task(name: str) -> Field:
        return _field(contract.GPU_UTILIZATION, gpu, {"hw.gpu.task": name})

    yield Sensor(
        [task("general"), task("memory")],
        partial(pynvml.nvmlDeviceGetUtilizationRates, gpu.handle),
        lambda rates: (rates.gpu * 0.01, rates.memory * 0.01),
    )
    for name, function in _ENGINES.items():
        yield Sensor([task(name)], partial(function, gpu.handle), lambda told: (told[0] * 0.01,))


def _memory(gpu: Gpu, survey: Survey) -> Iterator[Sensor | Constant]:
    """In use: without what the driver keeps for itself, where it tells that apart."""
    call = survey.either(
        partial(pynvml.nvmlDeviceGetMemoryInfo, gpu.handle, pynvml.nvmlMemory_v2),
        partial(pynvml.nvmlDeviceGetMemoryInfo, gpu.handle),
    )
    yield Sensor([_field(contract.GPU_MEMORY_USAGE, gpu, {})], call, lambda memory: (memory.used,))
    if memory := survey.told(call):
        yield Constant(_field(contract.GPU_MEMORY_LIMIT, gpu, {}), memory.total)


def _temperatures(gpu: Gpu, survey: Survey) -> Iterator[Sensor | Constant]:
    core = survey.either(
        partial(pynvml.nvmlDeviceGetTemperatureV, gpu.handle, pynvml.NVML_TEMPERATURE_GPU),
        partial(pynvml.nvmlDeviceGetTemperature, gpu.handle, pynvml.NVML_TEMPERATURE_GPU),
    )
    memory = partial(field_values, gpu.handle, [pynvml.NVML_FI_DEV_MEMORY_TEMP])
    yield Sensor([_field(contract.HW_TEMPERATURE, gpu, _sensor("gpu"))], core, _scaled(1.0))
    yield Sensor([_field(contract.HW_TEMPERATURE, gpu, _sensor("memory"))], memory, lambda told: told)
    for (sensor, limit), threshold in _TEMPERATURE_LIMITS.items():
        degrees = survey.told(pynvml.nvmlDeviceGetTemperatureThreshold, gpu.handle, threshold)
        if degrees is not None:
            labels = _sensor(sensor) | {"hw.limit_type": limit}
            yield Constant(_field(contract.HW_TEMPERATURE_LIMIT, gpu, labels), degrees)


def _sensor(name: str) -> dict[str, str]:
    return {"hw.type": "temperature", "hw.sensor_location": name}


def _clocks(gpu: Gpu, survey: Survey) -> Iterator[Sensor | Constant]:
    for part, clock in _CLOCKS.items():
        labels = {"hw.gpu.part": part}
        present = partial(pynvml.nvmlDeviceGetClockInfo, gpu.handle, clock)
        yield Sensor([_field(contract.GPU_CLOCK, gpu, labels)], present, _scaled(1e6))
        most = survey.told(pynvml.nvmlDeviceGetMaxClockInfo, gpu.handle, clock)
        if most is not None:
            yield Constant(_field(contract.GPU_CLOCK_LIMIT, gpu, labels), most * 1e6)


def _throttle(gpu: Gpu, survey: Survey) -> Iterator[Sensor]:
    """For each reason that this GPU knows whether it holds now."""
    active = survey.either(
        partial(pynvml.nvmlDeviceGetCurrentClocksEventReasons, gpu.handle),
        partial(pynvml.nvmlDeviceGetCurrentClocksThrottleReasons, gpu.handle),
    )
    supported = survey.either(
        partial(pynvml.nvmlDeviceGetSupportedClocksEventReasons, gpu.handle),
        partial(pynvml.nvmlDeviceGetSupportedClocksThrottleReasons, gpu.handle),
    )
    mask = survey.told(supported) or 0
    known = {reason: bit for reason, bit in _THROTTLE.items() if mask & bit}
    yield Sensor(
        [_field(contract.GPU_THROTTLE, gpu, {"reason": reason}) for reason in known],
        active,
        lambda told: [float(told & bit != 0) for bit in known.values()],
    )


def _pcie(gpu: Gpu) -> Iterator[Sensor]:
    for metric, function in (
        (contract.GPU_PCIE_GENERATION, pynvml.nvmlDeviceGetCurrPcieLinkGeneration),
        (contract.GPU_PCIE_WIDTH, pynvml.nvmlDeviceGetCurrPcieLinkWidth),
    ):
        yield Sensor([_field(metric, gpu, {})], partial(function, gpu.handle), _scaled(1.0))
    for direction, counter in _PCIE.items():
        passed = _field(contract.GPU_PCIE, gpu, {"network.io.direction": direction})
        kilobytes = partial(pynvml.nvmlDeviceGetPcieThroughput, gpu.handle, counter)
        yield Sensor([passed], kilobytes, _scaled(1e3))


def _fans(gpu: Gpu, survey: Survey) -> Iterator[Sensor]:
    """Speeds as shares of the highest for all fans; NVML's bindings tell revolutions of the first only."""
    for fan in range(survey.told(pynvml.nvmlDeviceGetNumFans, gpu.handle) or 0):
        labels = {"hw.type": "fan", "hw.sensor_location": f"fan-{fan}"}
        share = partial(pynvml.nvmlDeviceGetFanSpeed_v2, gpu.handle, fan)
        yield Sensor([_field(contract.HW_FAN_SPEED_RATIO, gpu, labels)], share, _scaled(0.01))
        if fan == 0:
            rpm = partial(pynvml.nvmlDeviceGetFanSpeedRPM, gpu.handle)
            yield Sensor([_field(contract.HW_FAN_SPEED, gpu, labels)], rpm, _scaled(1.0))


def _power_limits(gpu: Gpu, survey: Survey) -> Iterator[Sensor | Constant]:
    def limit(kind: str) -> Field:
        labels = {"hw.type": "gpu", "hw.sensor_location": gpu.name, "hw.limit_type": kind}
        return _field(contract.HW_POWER_LIMIT, gpu, labels)

    # what an administrator sets shows at once
    enforced = partial(pynvml.nvmlDeviceGetEnforcedPowerLimit, gpu.handle)
    yield Sensor([limit("enforced")], enforced, _scaled(1e-3))
    default = survey.told(pynvml.nvmlDeviceGetPowerManagementDefaultLimit, gpu.handle)
    if default is not None:
        yield Constant(limit("default"), default * 1e-3)
    if constraints := survey.told(pynvml.nvmlDeviceGetPowerManagementLimitConstraints, gpu.handle):
        yield Constant(limit("max"), constraints[1] * 1e-3)


def _errors(gpu: Gpu) -> Iterator[Sensor]:
    """ECC errors since the driver was loaded."""
    for kind, code in _ECC.items():
        count = partial(pynvml.nvmlDeviceGetTotalEccErrors, gpu.handle, code, pynvml.NVML_VOLATILE_ECC)
        labels = {"hw.type": "gpu", "error.type": kind}
        yield Sensor([_field(contract.HW_ERRORS, gpu, labels)], count, _scaled(1.0))


def _info(gpu: Gpu, survey: Survey) -> Iterator[Constant]:
    told = {
        "hw.model": survey.told(pynvml.nvmlDeviceGetName, gpu.handle),
        "hw.serial_number": survey.told(pynvml.nvmlDeviceGetSerial, gpu.handle),
        "hw.firmware_version": survey.told(pynvml.nvmlDeviceGetVbiosVersion, gpu.handle),
        "hw.driver_version": survey.told(pynvml.nvmlSystemGetDriverVersion),
    }
    labels = {"hw.type": "gpu", "hw.name": gpu.name, "hw.vendor": "NVIDIA"}
    known = {key: text for key, text in told.items() if text}
    yield Constant(_field(contract.HW_INFO, gpu, labels | known), 1.0)


def _process_lists(gpu: Gpu) -> Iterator[ProcessList]:
    yield ProcessList(gpu, partial(pynvml.nvmlDeviceGetComputeRunningProcesses, gpu.handle))
    yield ProcessList(gpu, partial(pynvml.nvmlDeviceGetGraphicsRunningProcesses, gpu.handle))


def _process_field(gpu_id: str, pid: int) -> Field:
    labels = {"hw.id": gpu_id, "process.pid": str(pid)}
    with suppress(psutil.Error):
        labels["process.executable.name"] = psutil.Process(pid).name()
    return Field("", contract.GPU_PROCESS_MEMORY, labels)


def _field(metric: Metric, gpu: Gpu, labels: dict[str, str]) -> Field:
    return Field("", metric, {"hw.id": gpu.hw_id} | labels)


def _scaled(factor: float) -> Callable[[float], tuple[float]]:
    """The one number that a call tells, in another unit."""
    return lambda told: (told * factor,)
