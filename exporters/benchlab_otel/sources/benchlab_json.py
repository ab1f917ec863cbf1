"""A BENCHLAB's values as other programs pass them on in JSON: pytools' keys, and LinuxSupportKit's.

They become the same fields as over USB, with the same plausibility. What those programs can't tell
is absent: pytools drops temperatures above 100 °C, LinuxSupportKit sends neither names nor switches.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from threading import Condition
from typing import Any, Protocol

import msgspec
import numpy as np

from benchlab_otel import contract, wire
from benchlab_otel.contract import Metric
from benchlab_otel.sources.benchlab_values import (
    DEGREES,
    LEAST_VOLTS,
    MAX_AMPERES,
    MAX_WATTS,
    groups,
    max_volts,
    metrics,
)
from benchlab_otel.sources.reading import Batch, Device, Field, Reply, SourceError, columns
from benchlab_otel.timebase import anchor

METRICS = tuple(m for m in metrics(wire.layout(0x11, 4)) if m is not contract.HW_STATUS)
Values = dict[str, float]  # by attribute of the sample
STALE_S = 5.0  # a server that repeats itself for so long has lost its device
MAX_RPM, _VOLTS_OF_INPUTS = 65535.0, 65.535  # what the device has room for
_VOLTS_OF_BOARD = 1.0  # a device that runs has more on Vdd: zeros are those of one that is gone

_BOUNDS: dict[Metric, tuple[float, float]] = {
    contract.HW_VOLTAGE: (-_VOLTS_OF_INPUTS, _VOLTS_OF_INPUTS),  # rails have bounds of their own
    contract.HW_CURRENT: (-MAX_AMPERES, MAX_AMPERES),
    contract.HW_POWER: (-MAX_WATTS, MAX_WATTS),
    contract.HOST_POWER: (-MAX_WATTS, MAX_WATTS),
    contract.HW_TEMPERATURE: DEGREES,
    contract.HOST_AMBIENT: DEGREES,
    contract.HW_HUMIDITY: (0.0, 1.0),
    contract.HW_FAN_SPEED: (0.0, MAX_RPM),
    contract.HW_FAN_SPEED_RATIO: (0.0, 1.0),
    contract.HW_FAN_ENABLED: (0.0, 1.0),
}


def uid_of(name: Any) -> str:
    """A UID in capitals; SourceError for one that is the welcome, which pytools may take for it."""
    uid = str(name).upper()
    if uid.startswith(wire.GREETING.hex().upper()):
        raise SourceError("garbled", "pytools took the device's welcome for its UID", "start pytools again")
    return uid


def device_of(transport: str, uid: str, layout: wire.Layout, simulated: bool) -> Device:
    """A device behind another program; told apart from the same one read over USB."""
    return Device(
        hw_id=f"benchlab-{uid}-{transport}",
        hw_type="power_meter",
        description=f"{layout.product} firmware {layout.firmware}, by {transport}",
        simulated=simulated or uid.startswith(wire.SIMULATED_UID.hex().upper()),
        attributes={contract.TRANSPORT: transport},
    )


def fields_of(layout: wire.Layout, hw_id: str) -> list[Field]:
    """The fields that both the device and JSON may have."""
    fields = [field for group in groups(layout) for field in group.fields(hw_id)]
    return [field for field in fields if field.key and field.metric]


def row(fields: list[Field], values: Values) -> list[float]:
    """The values of the fields, NaN where absent; SourceError where one can't be, or all are zero."""
    found = [values.get(field.key, math.nan) for field in fields]
    if not any(value for value in found if not math.isnan(value)):
        raise SourceError("implausible", "all values are zero or none: the device is not connected")
    if not values.get("hw.voltage.VDD", math.inf) > _VOLTS_OF_BOARD:
        raise SourceError("implausible", "its own supply is at 0 V: the device is not connected")
    for field, value in zip(fields, found, strict=True):
        low, high = _bounds(field)
        if value < low or value > high:
            raise SourceError("implausible", f"{field.key} is {value:g}, outside {low:g} to {high:g}")
    return found


def _bounds(field: Field) -> tuple[float, float]:
    assert field.metric
    _, is_rail, rail = field.key.partition("hw.voltage.rail.")
    return (LEAST_VOLTS, max_volts(rail)) if is_rail else _BOUNDS[field.metric]


def from_pytools(data: Any) -> Values:
    """The values of a `translate_sensor_struct` dict; SourceError for anything else."""
    if not isinstance(data, dict) or data.get("connected") is False:
        raise SourceError("lost", "pytools says that the device is not connected")
    if "SYS_Power" not in data:
        raise SourceError("absent", "pytools has no reading yet")
    numbers = {key: _number(key, value) for key, value in data.items() if key in _PYTOOLS}
    values = {_PYTOOLS[key][0]: value * _PYTOOLS[key][1] for key, value in numbers.items()}
    return _as_over_usb(values)


def _number(key: str, value: Any) -> float:
    if value is None:
        return math.nan
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise SourceError("garbled", f"{key}: expected a number, not {value!r}")
    try:
        return float(value)
    except OverflowError:  # an integer may have hundreds of digits
        return math.inf


def _as_over_usb(values: Values) -> Values:
    """Without the fans that are off, and the ambient zeros of a failed bus."""
    off = [name[-1] for name, value in values.items() if name.startswith("hw.fan.enabled.") and not value]
    gone = {f"hw.fan.{what}.{n}" for n in off for what in ("speed", "speed_ratio")}
    ambient = ("hw.temperature.ambient", "hw.humidity.ambient")
    if not any(values.get(name) for name in ambient):
        gone.update(ambient)
    return {name: value for name, value in values.items() if name not in gone}


def _pytools() -> Iterator[tuple[str, tuple[str, float]]]:
    """Each of pytools' keys: (attribute of ours, factor)."""
    yield "Vdd", ("hw.voltage.VDD", 1.0)
    yield "Vref", ("hw.voltage.VREF", 1.0)
    yield "Chip_Temp", ("hw.temperature.chip", 1.0)
    yield "Ambient_Temp", ("hw.temperature.ambient", 1.0)
    yield "Humidity", ("hw.humidity.ambient", 0.01)
    yield "FanExtDuty", ("hw.fan.speed_ratio.external", 0.01)
    for key, domain in (("SYS", "system"), ("CPU", "cpu"), ("GPU", "gpu"), ("MB", "mb")):
        yield f"{key}_Power", (f"hw.power.{domain}", 1.0)
    for rail in (*wire.RAILS, *wire.WIRES):
        for quantity in ("Voltage", "Current", "Power"):
            yield f"{rail}_{quantity}", (f"hw.{quantity.lower()}.rail.{rail}", 1.0)
    for n in range(13):
        yield f"VIN_{n}", (f"hw.voltage.VIN{n}", 1.0)
    for name in wire.layout(0x11, wire.newest_firmware(0x11)).temperatures:
        yield f"TS_{name.removeprefix('TS')}", (f"hw.temperature.{name}", 1.0)
    for n in range(1, 10):
        yield f"Fan{n}_Duty", (f"hw.fan.speed_ratio.{n}", 0.01)
        yield f"Fan{n}_RPM", (f"hw.fan.speed.{n}", 1.0)
        yield f"Fan{n}_Status", (f"hw.fan.enabled.{n}", 1.0)


_PYTOOLS: Mapping[str, tuple[str, float]] = dict(_pytools())


def from_kit(data: Any) -> Values:
    """The values of a LinuxSupportKit reading (`/sensors`, or a line of `/stream`).

    SourceError where the line is an error, or not such a reading.
    """
    if isinstance(data, dict) and "error" in data:
        raise SourceError("lost", f"the server says: {data['error']}")
    try:
        values = _polled(data) if "temperatures" in data else _streamed(data)
        values["hw.humidity.ambient"] = _number("humidity", data["humidity"]) / 100
        for n, fan in enumerate(data["fans"], 1):
            values[f"hw.fan.enabled.{n}"] = float(bool(fan["enabled"]))
            values[f"hw.fan.speed.{n}"] = _number("rpm", fan["rpm"])
            values[f"hw.fan.speed_ratio.{n}"] = _number("duty", fan["duty"]) / 100
    except (KeyError, TypeError, AttributeError) as error:
        raise SourceError("garbled", f"not a reading as LinuxSupportKit sends it: {error!r}") from None
    return _as_over_usb(_with_domains(values))


def _polled(data: Mapping[str, Any]) -> Values:
    temperatures = data["temperatures"]
    values = {f"hw.voltage.VIN{v['channel']}": _volts(v["millivolts"]) for v in data["voltages"]}
    inputs = enumerate(temperatures["sensors"], 1)
    values |= {f"hw.temperature.TS{n}": _degrees("sensors", degrees) for n, degrees in inputs}
    values["hw.temperature.chip"] = _degrees("chip", temperatures["chip"])
    values["hw.temperature.ambient"] = _degrees("ambient", temperatures["ambient"])
    return values | _rails(data["power"], "voltage", "current", "power")


def _streamed(data: Mapping[str, Any]) -> Values:
    values = {f"hw.voltage.VIN{n}": _volts(v) for n, v in enumerate(data["voltages"])}
    values["hw.temperature.chip"] = _degrees("chipTemp", data["chipTemp"])
    values["hw.temperature.ambient"] = _degrees("ambientTemp", data["ambientTemp"])
    return values | _rails(data["power"], "v", "a", "w")


def _degrees(key: str, value: Any) -> float:
    """Absent where no probe is plugged in: the server scales the mark for that, too (by 100; 10 is right)."""
    degrees = _number(key, value)
    return math.nan if degrees in (wire.ABSENT / 10, wire.ABSENT / 100) else degrees


def _volts(millivolts: Any) -> float:
    return math.nan if millivolts == wire.ABSENT else _number("millivolts", millivolts) / 1e3


def _rails(power: list[Mapping[str, Any]], volts: str, amperes: str, watts: str) -> Values:
    values: Values = {}
    for rail, reading in zip(wire.RAILS, power, strict=False):
        values[f"hw.voltage.rail.{rail}"] = _number(volts, reading[volts])
        values[f"hw.current.rail.{rail}"] = _number(amperes, reading[amperes])
        values[f"hw.power.rail.{rail}"] = _number(watts, reading[watts])
    return values


def _with_domains(values: Values) -> Values:
    """With the sums of rails; a domain with a rail missing is absent."""
    for domain, rails in wire.DOMAINS.items():
        values[f"hw.power.{domain}"] = sum(values.get(f"hw.power.rail.{rail}", math.nan) for rail in rails)
    return values


def parse(place: str, text: bytes | str) -> Any:
    """JSON; SourceError for anything else."""
    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise SourceError("garbled", f"{place}: not JSON: {error}") from None


class Feed(Protocol):
    """Where readings come from."""

    def next(self) -> Reply:
        """The newest reading with the times that it was made between, waited for if need be."""

    def close(self) -> None:
        """Lets go; never raises."""


class Pushed:
    """Readings that come unasked: `put` by the thread that receives them, at once, `next` for another.

    Only the newest waits. What comes faster than it is asked for would pile up otherwise, and be told
    ever later as if it were new.
    """

    def __init__(self, place: str, timeout_s: float) -> None:
        self._place, self._timeout = place, timeout_s
        self._changed = Condition()
        self._newest: Reply | None = None
        self._error: SourceError | None = None
        self._before = anchor().now_ns()  # when the reading before came

    def put(self, text: bytes | str) -> None:
        """A reading that has come now; it was made after the one before came."""
        now = anchor().now_ns()
        with self._changed:
            self._newest, self._before = (self._before, now, text), now
            self._changed.notify()

    def fail(self, error: SourceError) -> None:
        """What ended them."""
        with self._changed:
            self._error = error
            self._changed.notify()

    def next(self) -> Reply:
        """The newest that was not given yet; SourceError where none comes, or none can any more."""
        with self._changed:
            self._changed.wait_for(lambda: self._newest or self._error, self._timeout)
            newest, self._newest = self._newest, None
        if newest:
            return newest
        late = SourceError("late", f"{self._place}: nothing published for {self._timeout:g} s")
        raise self._error or late


class JsonReader:
    """One device behind a feed. A reading that came before is none: servers repeat their last one."""

    def __init__(
        self, device: Device, layout: wire.Layout, values: Callable[[Any], Values], feed: Feed
    ) -> None:
        self.device = device
        self._feed = feed
        self._fields = fields_of(layout, device.hw_id)
        self._values = values
        self._before: bytes | str = b""
        self._news = time.monotonic()

    def close(self) -> None:
        """Ends the connection."""
        self._feed.close()

    def read(self) -> Reply:
        """The newest reading that the server has."""
        return self._feed.next()

    def decode(self, replies: Sequence[Reply]) -> Iterator[Batch]:
        """The readings that are new."""
        rows: list[tuple[Reply, list[float]]] = []
        problem: SourceError | None = None
        for reply in replies:
            _, _, text = reply
            if text == self._before:
                continue
            try:
                rows.append((reply, row(self._fields, self._values(parse(self.device.hw_id, text)))))
            except SourceError as error:
                problem = error
                break
            self._before, self._news = text, time.monotonic()
        if rows:
            start, end, _ = columns([r for r, _ in rows])
            yield Batch(start, end, self._fields, np.array([values for _, values in rows]))
        if problem:
            raise problem
        if time.monotonic() - self._news > STALE_S:
            raise SourceError("late", f"{self.device.hw_id}: the same reading for {STALE_S:g} s")
