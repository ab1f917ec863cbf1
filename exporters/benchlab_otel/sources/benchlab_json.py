"""A BENCHLAB's values as other programs pass them on in JSON: pytools' keys, and LinuxSupportKit's.

They become the same fields as over USB, with the same plausibility. What those programs can't tell
is absent: pytools drops temperatures above 100 °C, LinuxSupportKit sends neither names nor switches.
"""

from __future__ import annotations

import math
import socket
import ssl
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
NOT_KNOWN = 0  # as the start of a reply: nothing is known of when it was made
READ_NS = 100_000_000  # pytools publishes a reading 50 ms after it asked the device: at most twice that
_LEAST_APART_NS = 100_000_000  # readings of the fastest server: LinuxSupportKit streams 10 a second
_LATEST_SHARE = 1 / 32  # in the usual time between two readings
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


def fix_of(error: Exception, start: str, address: str) -> str:
    """What to do about a connection that failed: `start` what should answer, or set its `address`."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return "make this system trust the certificate, or set the variable SSL_CERT_FILE to its PEM file"
    if isinstance(error, socket.gaierror | UnicodeError | ssl.SSLError):
        return address
    return start


class Feed(Protocol):
    """Where readings come from. `paced`: as often as the server has them, however often one asks."""

    paced: bool

    def next(self) -> Reply:
        """The newest reading with the times that it was made between, waited for if need be.

        Where it begins NOT_KNOWN, it is only there to tell the next one from.
        """

    def close(self) -> None:
        """Lets go; never raises."""


class Pushed:
    """Readings that come unasked: `put` by the thread that receives them, at once, `next` for another.

    To be made before they are asked for. A reading was made after the one before came; the first one after
    this was made, or while the device was being read then (READ_NS). One that follows sooner than in half
    the usual time shows that the one before was held up on its way, as what has waited comes in a burst: it
    may have been made before that one came, and begins where that one does.

    Only the newest waits. What comes faster than it is asked for would pile up otherwise, and be told
    ever later as if it were new.
    """

    def __init__(self, place: str, timeout_s: float) -> None:
        self._place, self._timeout = place, timeout_s
        self._changed = Condition()
        self._newest: Reply | None = None
        self._error: SourceError | None = None
        self._begin = self._came = anchor().now_ns() - READ_NS  # `_came`: when the one before did
        self._usual = float(_LEAST_APART_NS)  # time between two: a mean in which the latest count most

    def put(self, text: bytes | str) -> None:
        """A reading that has come now."""
        now = anchor().now_ns()
        with self._changed:
            passed = now - self._came
            if passed >= self._usual / 2:
                self._begin = self._came
            self._usual += (passed - self._usual) * _LATEST_SHARE
            self._newest, self._came = (self._begin, now, text), now
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
    """One device behind a feed. A reading that came before is none: servers repeat their last one.

    One that repeats it for longer than `timeout_s` has lost its device.
    """

    def __init__(
        self,
        device: Device,
        layout: wire.Layout,
        values: Callable[[Any], Values],
        feed: Feed,
        timeout_s: float,
    ) -> None:
        self.device, self.paced = device, feed.paced
        self._feed = feed
        self._fields = fields_of(layout, device.hw_id)
        self._values = values
        self._timeout_s = timeout_s
        self._before: bytes | str = b""
        self._news_ns = 0  # when that came

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
            begin, end, text = reply
            if text == self._before:
                continue
            try:
                values = row(self._fields, self._values(parse(self.device.hw_id, text)))
            except SourceError as error:
                problem = error
                break
            self._before, self._news_ns = text, end
            if begin != NOT_KNOWN:
                rows.append((reply, values))
        if rows:
            start, end_ns, _ = columns([r for r, _ in rows])
            yield Batch(start, end_ns, self._fields, np.array([values for _, values in rows]))
        if problem:
            raise problem
        if replies[-1][1] - self._news_ns > self._timeout_s * 1e9:
            raise SourceError("late", f"{self.device.hw_id}: the same reading for {self._timeout_s:g} s")
