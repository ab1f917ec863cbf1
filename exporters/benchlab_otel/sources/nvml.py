"""NVIDIA GPUs by NVML, a part of NVIDIA's driver: energy and power at the sample rate, the rest each second.

A GPU's domain (`gpu`, or `gpu-0`, `gpu-1`… by NVML's index where there are several) is its energy
counter: it misses nothing between two readings. GPUs without one (before Volta, some laptops) have
their power there. `hw.power.<domain>.instant` and `….average` are the powers that the driver tells
apart; an old driver tells only one, which is a mean over a second from Ampere on (GA100 excepted) and
the present power before. All stand still between refreshes, every 20 to 100 ms; how long is measured
(`meter.refresh`), and the aligner knows repeated readings. The length of a sample is the time that the
call for the domain's value took. The counter counts since the driver was loaded, and NVML doesn't tell
when that was.

With MIG on, NVML has power and energy of the whole card only; memory and processes are told for each
instance, under the instance's own id. A GPU that falls off the bus ends its own readings only.

Reference: https://docs.nvidia.com/deploy/nvml-api (nvmlDeviceGetPowerUsage, field value enums).
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pynvml

from benchlab_otel import contract, wire
from benchlab_otel.config import Nvml
from benchlab_otel.contract import Metric
from benchlab_otel.model import Float, Int, Scalar
from benchlab_otel.sources.nvml_calls import (
    INSTALL,
    energy_meter,
    failure,
    field_meter,
    field_values,
    optional,
)
from benchlab_otel.sources.nvml_library import Library
from benchlab_otel.sources.nvml_state import Gpu, State, hw_id, mig_instances
from benchlab_otel.sources.reading import Batch, Device, Field, Reply, SourceError, columns
from benchlab_otel.timebase import anchor

METRICS = (
    *(contract.HW_ENERGY, contract.HW_POWER, contract.METER_REFRESH, contract.HW_POWER_LIMIT),
    *(contract.HW_TEMPERATURE, contract.HW_TEMPERATURE_LIMIT, contract.HW_FAN_SPEED_RATIO),
    *(contract.HW_FAN_SPEED, contract.HW_ERRORS, contract.HW_INFO, contract.GPU_UTILIZATION),
    *(contract.GPU_MEMORY_USAGE, contract.GPU_MEMORY_LIMIT, contract.GPU_PROCESS_MEMORY),
    *(contract.GPU_CLOCK, contract.GPU_CLOCK_LIMIT, contract.GPU_THROTTLE, contract.GPU_PCIE),
    *(contract.GPU_PCIE_GENERATION, contract.GPU_PCIE_WIDTH),
)
WHERE_NOTHING_IS = INSTALL
_LIBRARY = Library()
MAX_WATTS = 5000.0  # more than any card
STILL_S = 1.0  # a step of the counter may have gathered for that much longer than between two reads
AVERAGED_NS = 1_000_000_000  # what nvmlDeviceGetPowerUsage averages over from Ampere on
_POWERS = {
    "instant": pynvml.NVML_FI_DEV_POWER_INSTANT,
    "average": pynvml.NVML_FI_DEV_POWER_AVERAGE,
}


def addresses(settings: Nvml) -> list[str]:
    """NVML's index of each GPU, as nvidia-smi shows it; "", the first to come, where there are none, and
    nothing at all where there is no driver of NVIDIA.
    """
    return _LIBRARY.gpus()


def open_reader(settings: Nvml, address: str) -> NvmlReader:
    """Opens a GPU; SourceError, with the fix, without a driver or when the GPU is gone, or another came."""
    what = f"GPU {address}" if address else "GPU"
    _LIBRARY.check()
    try:
        _LIBRARY.enter()
    except pynvml.NVMLError as error:
        raise failure(error, what) from None
    try:
        return NvmlReader(_handle(address), what)
    except pynvml.NVMLError as error:
        _LIBRARY.leave()
        raise failure(error, what) from None
    except SourceError:
        _LIBRARY.leave()
        raise


def _handle(address: str) -> Any:
    if not pynvml.nvmlDeviceGetCount():
        raise SourceError("absent", "the NVIDIA driver has no GPU", "`lspci -d 10de:` should list it")
    return pynvml.nvmlDeviceGetHandleByIndex(int(address or 0))


@dataclass(frozen=True, slots=True)
class Meter:
    """A call that tells energy or power of a GPU: the names of its values (mJ or mW)."""

    names: tuple[str, ...]
    call: Callable[[], tuple[float, ...]]


def meters(handle: Any) -> list[Meter]:
    """What there is to read at the sample rate, the best first: energy, present power, mean power."""
    found = []
    if optional(pynvml.nvmlDeviceGetTotalEnergyConsumption, handle) is not None:
        found.append(Meter(("energy",), energy_meter(handle)))
    told = tuple(name for name, field in _POWERS.items() if optional(field_values, handle, [field]))
    if told:
        found.append(Meter(told, field_meter(handle, [_POWERS[name] for name in told])))
    elif optional(pynvml.nvmlDeviceGetPowerUsage, handle) is not None:
        averaged = (optional(pynvml.nvmlDeviceGetCudaComputeCapability, handle) or (0, 0)) > (8, 0)
        name = "average" if averaged else "instant"
        found.append(Meter((name,), lambda: (pynvml.nvmlDeviceGetPowerUsage(handle),)))
    return found


class NvmlReader:
    """One GPU. Not for two threads at a time; NVML is initialized, and `close` ends that."""

    def __init__(self, handle: Any, what: str) -> None:
        uuid = pynvml.nvmlDeviceGetUUID(handle)
        name = optional(pynvml.nvmlDeviceGetName, handle) or "a GPU without name"
        domain = "gpu" if pynvml.nvmlDeviceGetCount() == 1 else f"gpu-{pynvml.nvmlDeviceGetIndex(handle)}"
        card = Gpu(handle, hw_id(uuid), domain)
        found = meters(handle)
        self._what = f"{what} ({uuid})"
        self._offset_ns = anchor().offset_ns
        self._first, self._rest = ([m.call for m in found] + [tuple, tuple])[:2]
        self._names = [name for meter in found for name in meter.names]
        self._fields = _fields(card, self._names)
        self._state_fields, self._all_fields = list[Field](), self._fields
        self._counts = self._names[:1] == ["energy"]
        self._last_ns, self._last_j = 0, math.nan
        self._refresh = Refresh()
        self.device = Device(
            card.hw_id,
            "gpu",
            f"{name}, driver {optional(pynvml.nvmlSystemGetDriverVersion)}, {_by(self._names, card)}",
            simulated=name.startswith(wire.SIMULATED_NAME),
            attributes=_window(self._names),
        )
        self._state = State(card)

    def read(self) -> Reply:
        """Energy and power; SourceError when the GPU is gone or doesn't tell what it did, or another came."""
        _LIBRARY.check()
        try:
            self._state.check()
            start = time.monotonic_ns()
            raw = self._first()
            end = time.monotonic_ns()
            return start + self._offset_ns, end + self._offset_ns, raw + self._rest()
        except pynvml.NVMLError as error:
            raise failure(error, self._what) from None

    def decode(self, replies: Sequence[Reply]) -> Iterator[Batch]:
        """Energy and power of each reply, with the newest state; SourceError where a value can't be."""
        start, end, raw = columns(replies)
        told = np.array(raw, np.float64).reshape(len(replies), -1) * 1e-3
        n, error = self._judge(start, told)
        if n:
            state_fields, state = self._state.latest()
            values = np.empty((n, len(self._fields) + len(state)))
            values[:, : len(self._names)] = told[:n]
            values[:, len(self._names)] = self._refresh.update(start[:n], told[:n, :1])
            values[:, len(self._fields) :] = state
            yield Batch(start[:n], end[:n], self._fields_with(state_fields), values)
        if error:
            raise error

    def _fields_with(self, state: list[Field]) -> list[Field]:
        """All fields, in the same list as long as the state's are the same."""
        if state is not self._state_fields:
            self._state_fields, self._all_fields = state, [*self._fields, *state]
        return self._all_fields

    def close(self) -> None:
        """Lets go of the GPU, unless a call that hangs still has it."""
        if self._state.close():
            _LIBRARY.leave()

    def _judge(self, start: Int, values: Float) -> tuple[int, SourceError | None]:
        """How many readings can be, and what is wrong with the one after them."""
        for n, (moment, row) in enumerate(zip(start.tolist(), values.tolist(), strict=True)):
            if error := self._wrong(moment, row):
                return n, error
        return len(values), None

    def _wrong(self, moment: int, values: list[float]) -> SourceError | None:
        """What is wrong with a reading; plain numbers, as the few readings of a flush are slow in arrays."""
        if max(values[self._counts :], default=0.0) > MAX_WATTS:
            return SourceError("implausible", f"{self._what}: a power above {MAX_WATTS} W")
        if self._counts:
            step, most = values[0] - self._last_j, ((moment - self._last_ns) * 1e-9 + STILL_S) * MAX_WATTS
            if step < 0:
                return SourceError("reset", f"{self._what}: the energy counter began again")
            if step > most:
                return SourceError("implausible", f"{self._what}: energy rose by more than {MAX_WATTS} W")
            self._last_ns, self._last_j = moment, values[0]
        return None


class Refresh:
    """How long a meter shows the same value: the mean time between its last changes."""

    LEAST, MOST = 8, 64  # changes
    SLOWER = 1.25  # polls a change; a meter that is not slower than the polls can't be timed by them

    def __init__(self) -> None:
        self._last = math.nan
        self._polls = 0
        self._changes: deque[tuple[int, int]] = deque(maxlen=self.MOST + 1)  # number of the poll, its time

    def update(self, time_ns: Int, values: Float) -> float:
        """Takes in (n, 1) values, or (n, 0) of a GPU without a meter; seconds, NaN where not known."""
        for moment, value in zip(time_ns.tolist(), values.ravel().tolist(), strict=False):
            self._polls += 1
            if value != self._last and self._polls > 1:  # when the first value came up is not known
                self._changes.append((self._polls, moment))
            self._last = value
        changes = len(self._changes) - 1
        if changes < self.LEAST:
            return math.nan
        (first_poll, first), (last_poll, last) = self._changes[0], self._changes[-1]
        if last_poll - first_poll < self.SLOWER * changes:
            return math.nan
        return (last - first) * 1e-9 / changes


def _fields(card: Gpu, names: Sequence[str]) -> list[Field]:
    """The first value is the domain's own, which has no name of its own in it."""
    fields = []
    for i, name in enumerate(names):
        metric: Metric = contract.HW_ENERGY if name == "energy" else contract.HW_POWER
        prefix = contract.ENERGY_PREFIX if name == "energy" else contract.POWER_PREFIX
        location = f"{card.name}.{name}" if i else card.name
        labels = {"hw.id": card.hw_id, "hw.type": "gpu", "hw.sensor_location": location}
        fields.append(Field(prefix + location, metric, labels))
    domain = {"hw.id": card.hw_id, "domain": card.name}
    return [*fields, Field("", contract.METER_REFRESH, domain)]


def _window(names: Sequence[str]) -> dict[str, Scalar]:
    """The averaging width of the domain's value, where it is known."""
    return {contract.METER_WINDOW: AVERAGED_NS} if names[:1] == ["average"] else {}


def _by(names: Sequence[str], card: Gpu) -> str:
    """What the domain is read by, in words."""
    words = {
        "energy": "by its energy counter",
        "instant": "by its present power (no energy counter)",
        "average": "by its mean power over a second (no energy counter)",
    }
    by = words[names[0]] if names else "without energy and power"
    return f"{by}, MIG on: energy and power of the whole card" if mig_instances(card) else by
