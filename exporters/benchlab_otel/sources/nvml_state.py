"""What a GPU tells besides energy and power: read once a second, in a thread of its own.

Some of these calls take long (PCIe throughput is counted for 20 ms each way), which would leave holes
in the samples. Units of NVML: per cent, MHz, mW, °C, bytes, and KB/s of PCIe.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from threading import Event, Thread
from typing import Any

import psutil
import pynvml

from benchlab_otel import contract
from benchlab_otel.contract import Metric
from benchlab_otel.sources.nvml_calls import either, field_values, optional
from benchlab_otel.sources.reading import Field

PERIOD_S = 1.0
STALE_S = 5.0  # older values are not shown: a call that hangs must not freeze them
LEAVE_S = 2.0  # longer than the slowest calls together, when all is well
Value = tuple[Metric, dict[str, str], float]

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

    handle: Any
    hw_id: str
    name: str


class State:
    """The values of one card, read each second until `close`.

    Reading them raises the NVMLError of a GPU that is gone.
    """

    def __init__(self, card: Gpu) -> None:
        self._card = card
        self._read()
        self._error: pynvml.NVMLError | None = None
        self._stop = Event()
        self._thread = Thread(target=self._run, name=f"benchlab-otel-{card.name}-state", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raises what ended the reading."""
        if self._error is not None:
            raise self._error

    def latest(self) -> tuple[list[Field], list[float]]:
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
        told = values(self._card)
        self._latest = [Field("", metric, labels) for metric, labels, _ in told], [v for *_, v in told]
        self._read_at = time.monotonic()


def values(card: Gpu) -> list[Value]:
    """All values of a card and its MIG instances, those that it has; NVMLError when it is gone."""
    told = [
        *_utilization(card),
        *_temperatures(card),
        *_clocks(card),
        *_throttle(card),
        *_pcie(card),
        *_fans(card),
        *_power_limits(card),
        *_errors(card),
        *_memory(card),
        *_info(card),
    ]
    instances = mig_instances(card)
    for instance in instances:
        told += [*_memory(instance), *_info(instance)]
    for user in instances or [card]:  # a card in MIG mode lists the processes of its instances again
        told += _processes(user)
    return told


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


def _utilization(gpu: Gpu) -> Iterator[Value]:
    rates = optional(pynvml.nvmlDeviceGetUtilizationRates, gpu.handle)
    percent = {"general": rates.gpu, "memory": rates.memory} if rates else {}
    for task, function in _ENGINES.items():
        if told := optional(function, gpu.handle):
            percent[task] = told[0]
    for task, value in percent.items():
        yield contract.GPU_UTILIZATION, {"hw.id": gpu.hw_id, "hw.gpu.task": task}, value * 0.01


def _memory(gpu: Gpu) -> Iterator[Value]:
    """In use: without what the driver keeps for itself, where it tells that apart."""
    memory = optional(pynvml.nvmlDeviceGetMemoryInfo, gpu.handle, pynvml.nvmlMemory_v2)
    memory = memory or optional(pynvml.nvmlDeviceGetMemoryInfo, gpu.handle)
    if memory:
        yield contract.GPU_MEMORY_USAGE, {"hw.id": gpu.hw_id}, memory.used
        yield contract.GPU_MEMORY_LIMIT, {"hw.id": gpu.hw_id}, memory.total


def _temperatures(gpu: Gpu) -> Iterator[Value]:
    core = either(
        pynvml.nvmlDeviceGetTemperatureV,
        pynvml.nvmlDeviceGetTemperature,
        gpu.handle,
        pynvml.NVML_TEMPERATURE_GPU,
    )
    if core is not None:
        yield contract.HW_TEMPERATURE, _sensor(gpu, "gpu"), core
    if told := optional(field_values, gpu.handle, [pynvml.NVML_FI_DEV_MEMORY_TEMP]):
        yield contract.HW_TEMPERATURE, _sensor(gpu, "memory"), told[0]
    for (sensor, limit), threshold in _TEMPERATURE_LIMITS.items():
        degrees = optional(pynvml.nvmlDeviceGetTemperatureThreshold, gpu.handle, threshold)
        if degrees is not None:
            yield contract.HW_TEMPERATURE_LIMIT, _sensor(gpu, sensor) | {"hw.limit_type": limit}, degrees


def _sensor(gpu: Gpu, name: str) -> dict[str, str]:
    return {"hw.id": gpu.hw_id, "hw.type": "temperature", "hw.sensor_location": name}


def _clocks(gpu: Gpu) -> Iterator[Value]:
    for metric, function in (
        (contract.GPU_CLOCK, pynvml.nvmlDeviceGetClockInfo),
        (contract.GPU_CLOCK_LIMIT, pynvml.nvmlDeviceGetMaxClockInfo),
    ):
        for part, clock in _CLOCKS.items():
            megahertz = optional(function, gpu.handle, clock)
            if megahertz is not None:
                yield metric, {"hw.id": gpu.hw_id, "hw.gpu.part": part}, megahertz * 1e6


def _throttle(gpu: Gpu) -> Iterator[Value]:
    """For each reason that this GPU knows whether it holds now."""
    active = either(
        pynvml.nvmlDeviceGetCurrentClocksEventReasons,
        pynvml.nvmlDeviceGetCurrentClocksThrottleReasons,
        gpu.handle,
    )
    known = either(
        pynvml.nvmlDeviceGetSupportedClocksEventReasons,
        pynvml.nvmlDeviceGetSupportedClocksThrottleReasons,
        gpu.handle,
    )
    if active is None or known is None:
        return
    for reason, bit in _THROTTLE.items():
        if known & bit:
            yield contract.GPU_THROTTLE, {"hw.id": gpu.hw_id, "reason": reason}, float(active & bit != 0)


def _pcie(gpu: Gpu) -> Iterator[Value]:
    for metric, function in (
        (contract.GPU_PCIE_GENERATION, pynvml.nvmlDeviceGetCurrPcieLinkGeneration),
        (contract.GPU_PCIE_WIDTH, pynvml.nvmlDeviceGetCurrPcieLinkWidth),
    ):
        told = optional(function, gpu.handle)
        if told is not None:
            yield metric, {"hw.id": gpu.hw_id}, told
    for direction, counter in _PCIE.items():
        kilobytes = optional(pynvml.nvmlDeviceGetPcieThroughput, gpu.handle, counter)
        if kilobytes is not None:
            labels = {"hw.id": gpu.hw_id, "network.io.direction": direction}
            yield contract.GPU_PCIE, labels, kilobytes * 1e3


def _fans(gpu: Gpu) -> Iterator[Value]:
    """Speeds as shares of the highest for all fans; NVML's bindings tell revolutions of the first only."""
    for fan in range(optional(pynvml.nvmlDeviceGetNumFans, gpu.handle) or 0):
        labels = {"hw.id": gpu.hw_id, "hw.type": "fan", "hw.sensor_location": f"fan-{fan}"}
        percent = optional(pynvml.nvmlDeviceGetFanSpeed_v2, gpu.handle, fan)
        if percent is not None:
            yield contract.HW_FAN_SPEED_RATIO, labels, percent * 0.01
        rpm = optional(pynvml.nvmlDeviceGetFanSpeedRPM, gpu.handle) if fan == 0 else None
        if rpm is not None:
            yield contract.HW_FAN_SPEED, labels, rpm


def _power_limits(gpu: Gpu) -> Iterator[Value]:
    constraints = optional(pynvml.nvmlDeviceGetPowerManagementLimitConstraints, gpu.handle)
    for kind, milliwatts in (
        ("enforced", optional(pynvml.nvmlDeviceGetEnforcedPowerLimit, gpu.handle)),
        ("default", optional(pynvml.nvmlDeviceGetPowerManagementDefaultLimit, gpu.handle)),
        ("max", constraints and constraints[1]),
    ):
        if milliwatts is not None:
            labels = {"hw.id": gpu.hw_id, "hw.type": "gpu", "hw.sensor_location": gpu.name}
            yield contract.HW_POWER_LIMIT, labels | {"hw.limit_type": kind}, milliwatts * 1e-3


def _errors(gpu: Gpu) -> Iterator[Value]:
    """ECC errors since the driver was loaded."""
    for kind, code in _ECC.items():
        count = optional(pynvml.nvmlDeviceGetTotalEccErrors, gpu.handle, code, pynvml.NVML_VOLATILE_ECC)
        if count is not None:
            yield contract.HW_ERRORS, {"hw.id": gpu.hw_id, "hw.type": "gpu", "error.type": kind}, count


def _processes(gpu: Gpu) -> Iterator[Value]:
    """Memory by process, as far as this user and container may see them."""
    memory: dict[int, int] = {}
    for function in (
        pynvml.nvmlDeviceGetComputeRunningProcesses,
        pynvml.nvmlDeviceGetGraphicsRunningProcesses,
    ):
        for process in optional(function, gpu.handle) or []:
            if process.usedGpuMemory is not None:  # both lists tell all that the process uses
                memory[process.pid] = max(memory.get(process.pid, 0), process.usedGpuMemory)
    for pid, used in memory.items():
        labels = {"hw.id": gpu.hw_id, "process.pid": str(pid)}
        with suppress(psutil.Error):
            labels["process.executable.name"] = psutil.Process(pid).name()
        yield contract.GPU_PROCESS_MEMORY, labels, used


def _info(gpu: Gpu) -> Iterator[Value]:
    told = {
        "hw.model": optional(pynvml.nvmlDeviceGetName, gpu.handle),
        "hw.serial_number": optional(pynvml.nvmlDeviceGetSerial, gpu.handle),
        "hw.firmware_version": optional(pynvml.nvmlDeviceGetVbiosVersion, gpu.handle),
        "hw.driver_version": optional(pynvml.nvmlSystemGetDriverVersion),
    }
    labels = {"hw.id": gpu.hw_id, "hw.type": "gpu", "hw.name": gpu.name, "hw.vendor": "NVIDIA"}
    yield contract.HW_INFO, labels | {key: text for key, text in told.items() if text}, 1.0
