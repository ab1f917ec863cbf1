"""What a BENCHLAB's sensor struct says: which values it has, and whether they can be.

`groups` is the table of what is measured, `_limits` that of what can be. A `Decoder` turns both into vectors
with an entry for each number, once for a layout, as what costs is the number of NumPy's calls.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchlab_otel import contract, wire
from benchlab_otel.contract import Metric
from benchlab_otel.model import Float, Int
from benchlab_otel.sources.reading import Field

LEAST_VOLTS = -0.5  # an open input may read a little below zero
MAX_AMPERES = 500.0  # several times what the largest connector (12V-2x6) bears for a moment
MAX_WATTS = 5000.0
DEGREES = (-60.0, 300.0)
LEAST_SUPPLY = 1.0  # V on Vdd: below, a processor that answers would not run


def max_volts(rail: str) -> float:
    """Twice what a rail, or a wire of a connector, has: power supplies switch off well before."""
    return 2.0 * wire.NOMINAL_VOLTS[rail.partition("_W")[0]]


# -- what is measured -------------------------------------------------------------------------

_BUS = "Tamb, Hum"  # both as one number: 0 is what a failed I2C bus reads
_NO_NUMBER = 1 << 62  # more than any field can have


@dataclass(frozen=True, slots=True)
class Raw:
    """Numbers of the struct: number / `divisor` * `factor` is a value.

    `field` is one of the struct, "Fans.Tach" that of each of its fans, or a domain: the sum of its rails'
    powers, in which wires have no part. A value is absent where its number is `absent`, and where that of
    the field `off_by` is 0.
    """

    field: str
    divisor: float = 1.0  # beside the factor, as x / 1e3 and x * 1e-3 differ in the last bit
    factor: float = 1.0
    absent: int = _NO_NUMBER
    off_by: str = ""


@dataclass(frozen=True, slots=True)
class Group:
    """Values of one kind: one for each number of `raw`; with `states` (mask, bits) one for each of these.

    `keys` are attributes of the sample span ("" = none), `labels` those of the metric, without hw.id.
    The value of a state is 1 where the number & mask is its bits, else 0.
    """

    keys: Sequence[str]
    metric: Metric | None
    labels: Sequence[dict[str, str]]
    raw: Raw
    states: Sequence[tuple[int, int]] = ()

    def fields(self, hw_id: str) -> list[Field]:
        """The fields of the values of a device."""
        labels = [{"hw.id": hw_id, **labels} for labels in self.labels]
        return [Field(key, self.metric, own) for key, own in zip(self.keys, labels, strict=True)]


def groups(layout: wire.Layout) -> list[Group]:
    """What a device of a layout measures: what is a number in the sample, then states."""
    rails, fans = layout.rails, [str(n + 1) for n in range(layout.sensors["Fans"].shape[0])]
    inputs = [f"VIN{n}" for n in range(layout.sensors["Vin"].shape[0])]
    volts, amperes = Raw("PowerReadings.Voltage", 1e3), Raw("PowerReadings.Current", 1e3)
    vin = Raw("Vin", factor=1e-3, absent=wire.ABSENT)
    chip = Raw("Tchip", factor=layout.chip_degrees, absent=wire.ABSENT)
    probes = Raw("Ts", factor=0.1, absent=wire.ABSENT)  # hot connectors beyond 100 °C must show
    ambient = Raw("Tamb", factor=0.1, absent=wire.ABSENT, off_by=_BUS)
    humidity = Raw("Hum", factor=0.001, off_by=_BUS)
    speed = Raw("Fans.Tach", off_by="Fans.Enable")
    duty = Raw("Fans.Duty", factor=0.01, off_by="Fans.Enable")
    external = Raw("FanExtDuty", factor=0.01, absent=wire.NO_EXTERNAL_DUTY)
    return [
        _group("hw.power.", ["system"], contract.HOST_POWER, "", Raw("system", 1e3)),
        _group("hw.power.", ["cpu"], contract.HW_POWER, "cpu", Raw("cpu", 1e3)),
        _group("hw.power.", ["gpu"], contract.HW_POWER, "gpu", Raw("gpu", 1e3)),
        _group("hw.power.", ["mb"], contract.HW_POWER, "motherboard", Raw("mb", 1e3)),
        _group("hw.power.rail.", rails, contract.HW_POWER, "power_rail", Raw("PowerReadings.Power", 1e3)),
        _group("hw.voltage.rail.", rails, contract.HW_VOLTAGE, "power_rail", volts),
        _group("hw.current.rail.", rails, contract.HW_CURRENT, "power_rail", amperes),
        _group("hw.voltage.", inputs, contract.HW_VOLTAGE, "voltage", vin),
        _group("hw.voltage.", ["VDD"], contract.HW_VOLTAGE, "voltage", Raw("Vdd", 1e3)),
        _group("hw.voltage.", ["VREF"], contract.HW_VOLTAGE, "voltage", Raw("Vref", 1e3)),
        _group("hw.temperature.", ["chip"], contract.HW_TEMPERATURE, "temperature", chip),
        _group("hw.temperature.", layout.temperatures, contract.HW_TEMPERATURE, "temperature", probes),
        _group("hw.temperature.", ["ambient"], contract.HOST_AMBIENT, "", ambient),
        _group("hw.humidity.", ["ambient"], contract.HW_HUMIDITY, "humidity", humidity),
        _group("hw.fan.speed.", fans, contract.HW_FAN_SPEED, "fan", speed),
        _group("hw.fan.speed_ratio.", fans, contract.HW_FAN_SPEED_RATIO, "fan", duty),
        _group("hw.fan.speed_ratio.", ["external"], contract.HW_FAN_SPEED_RATIO, "fan", external),
        _group("hw.fan.enabled.", fans, contract.HW_FAN_ENABLED, "", Raw("Fans.Enable")),
        *(Group([f"hw.status.{location}"], None, [{}], Raw(field)) for location, field, _ in _SWITCHES),
        *(Group([f"hw.fault.{state}"], None, [{}], Raw(field)) for state, field in _faults(layout)),
        *(_positions(layout, *switch) for switch in _SWITCHES),
        *(_each_fault(layout, *mask) for mask in _faults(layout)),
    ]


def metrics(layout: wire.Layout) -> tuple[Metric, ...]:
    """Those of the groups, each once."""
    return tuple(dict.fromkeys(group.metric for group in groups(layout) if group.metric))


def _group(prefix: str, names: Sequence[str], metric: Metric, hw_type: str, raw: Raw) -> Group:
    """Values that differ by where they were measured."""
    wanted = [{"hw.type": hw_type, "hw.sensor_location": name} for name in names]
    labels = [{key: own[key] for key in metric.labels if key in own} for own in wanted]
    return Group([prefix + name for name in names], metric, labels, raw)


# Switches and faults: one number in the sample, a series for each state.
_SWITCHES = (  # location, field of the struct, enum of its positions
    ("fan_switch", "FanSwitchStatus", "FAN_SWITCH_STATUS"),
    ("rgb_switch", "RGBSwitchStatus", "RGB_SWITCH_STATUS"),
    ("rgb_external", "RgbExtStatus", "RGB_EXT_STATUS"),
)
_ALL_BITS = -1


def _positions(layout: wire.Layout, location: str, field: str, enum: str) -> Group:
    """A series for each position of a switch."""
    positions = layout.enums[enum]
    labels = [{"hw.type": "switch", "hw.sensor_location": location, "hw.state": state} for state in positions]
    states = [(_ALL_BITS, number) for number in positions.values()]
    return Group([""] * len(labels), contract.HW_STATUS, labels, Raw(field), states)


def _faults(layout: wire.Layout) -> list[tuple[str, str]]:
    """(state, field of the struct) of the masks, where a device sends them; exact: they have 34 bits."""
    return [("live", "FaultStatus"), ("latched", "FaultLog")] if layout.faults else []


def _each_fault(layout: wire.Layout, state: str, field: str) -> Group:
    """A series for each fault of a mask."""
    labels = [{"hw.fault": fault, "hw.state": state} for fault in layout.faults]
    states = [(1 << n, 1 << n) for n in range(len(labels))]
    return Group([""] * len(labels), contract.HW_FAULT, labels, Raw(field), states)


# -- what can be ------------------------------------------------------------------------------


def _limits(layout: wire.Layout) -> Iterator[tuple[str, float, float | list[float], str]]:
    """(field, least value, most, the problem beyond them); of an answer with several the first is told.

    It is the only defence of a protocol without checksum.
    """
    volts = [max_volts(rail) for rail in layout.rails]
    problem = f"a rail below {LEAST_VOLTS} V or above twice its voltage"
    yield "PowerReadings.Voltage", LEAST_VOLTS, volts, problem
    yield "PowerReadings.Current", -MAX_AMPERES, MAX_AMPERES, f"more than {MAX_AMPERES} A"
    yield "system", -MAX_WATTS, MAX_WATTS, f"more than {MAX_WATTS} W"
    yield "PowerReadings.Power", -MAX_WATTS, MAX_WATTS, f"more than {MAX_WATTS} W"
    for field in ("Ts", "Tchip", "Tamb"):
        yield field, *DEGREES, f"a temperature outside {DEGREES[0]} to {DEGREES[1]} °C"
    yield "Vdd", LEAST_SUPPLY, np.inf, f"its own supply below {LEAST_SUPPLY} V"
    yield "Hum", 0, 1, "a humidity above 100 %"
    for location, field, enum in _SWITCHES:
        yield field, 0, len(layout.enums[enum]) - 1, f"a {location} in a position that isn't one"
    yield "FanExtDuty", 0, 1, "a duty above 100 %"
    yield "Fans.Enable", 0, 1, "a fan that is neither on nor off"
    yield "Fans.Duty", 0, 1, "a fan's duty above 100 %"
    for _, field in _faults(layout):
        yield field, 0, (1 << len(layout.faults)) - 1, f"a fault that isn't one in {field}"


# -- decoding ---------------------------------------------------------------------------------

_UNTOLD = (Raw(_BUS), Raw("Fans.Duty", factor=0.01))  # the duty of fans that are off has limits, too
_ALWAYS, _NEVER = (0, 0, 0), (0, 0, 1)
_INT64 = np.dtype("<i8")


class Decoder:
    """Makes rows of values of a layout's answers: those of its groups, then `lasting`, which no answer says.

    It works on matrices (answers, columns), a column for each number: those of the groups without states, in
    their order, then the untold ones. A condition is (column, mask, bits): whether number & mask is bits.
    """

    def __init__(self, layout: wire.Layout, lasting: Sequence[bool] = ()) -> None:
        table = groups(layout)
        told = [column for g in table if not g.states for column in _columns(layout.sensors, g.raw)]
        columns = told + [column for raw in _UNTOLD for column in _columns(layout.sensors, raw)]
        at: dict[str, list[int]] = {}
        for n, column in enumerate(columns):
            at.setdefault(column.raw.field, []).append(n)
        self._told = len(told)
        self._bytes = np.array([column.places for column in columns]).ravel()
        self._shift = np.array([column.shift for column in columns])
        self._divisor = np.array([column.raw.divisor for column in columns])
        self._factor = np.array([column.raw.factor for column in columns])
        self._rails = np.array(at["PowerReadings.Power"])
        self._sums = slice(at["system"][0], at["mb"][0] + 1)  # in the order of wire.DOMAINS
        domains = wire.DOMAINS.values()
        self._parts = np.array([[rail in domain for domain in domains] for rail in layout.rails], np.int64)
        self._absent = np.array([column.raw.absent for column in columns])
        conditions = [_off(n, column.raw, at) for n, column in enumerate(columns)]
        conditions += [(at[g.raw.field][0], *state) for g in table for state in g.states]
        conditions += [_ALWAYS if holds else _NEVER for holds in lasting]
        self._of, self._mask, self._bits = np.array([*zip(*conditions, strict=True)], np.int64)
        self._least, self._most, self._problems = _bounds(layout, at, len(columns))

    def decode(self, answers: Sequence[bytes]) -> tuple[Float, str]:
        """Rows up to the first answer that can't be true, and why it can't ("" = all can); NaN is absent."""
        numbers = self._numbers(answers)
        values = numbers / self._divisor
        values *= self._factor
        holds = numbers.take(self._of, axis=1) & self._mask == self._bits
        off, states = holds[:, : values.shape[1]], holds[:, values.shape[1] :]
        values[off | (numbers == self._absent)] = np.nan
        n, problem = self._possible(values)
        return np.concatenate((values[:, : self._told], states), axis=1)[:n], problem

    def _numbers(self, answers: Sequence[bytes]) -> Int:
        """The integers of answers, and the domains' sums."""
        raw = np.frombuffer(b"\0".join((*answers, b"")), np.uint8).reshape(len(answers), -1)
        numbers = raw.take(self._bytes, axis=1).view(_INT64)
        numbers >>= self._shift
        numbers[:, self._sums] = numbers.take(self._rails, axis=1).dot(self._parts)
        return numbers

    def _possible(self, values: Float) -> tuple[int, str]:
        """How many answers come before the first that can't be true, and the problem of that one."""
        wrong = (values < self._least) | (values > self._most)
        answer, column = divmod(int(wrong.argmax()), wrong.shape[1])
        if not wrong[answer, column]:
            return len(values), ""
        return answer, min(self._problems[n] for n in np.flatnonzero(wrong[answer]).tolist())[1]


@dataclass(frozen=True, slots=True)
class _Column:
    """A number of an answer: the places of its eight bytes, and by how many bits they are too high."""

    raw: Raw
    places: list[int]
    shift: int


def _columns(struct: np.dtype[np.void], raw: Raw) -> Iterator[_Column]:
    """The columns of a field. The zero byte behind each answer fills up what has fewer bytes."""
    for own, signed in _numbers(struct, raw.field):
        rest = [struct.itemsize] * (8 - len(own))
        # signed numbers fill the upper bytes: shifting them down keeps the sign
        yield _Column(raw, rest + own, 8 * len(rest)) if signed else _Column(raw, own + rest, 0)


def _numbers(struct: np.dtype[np.void], field: str) -> list[tuple[list[int], bool]]:
    """(places of its bytes, whether it is signed) of each number of a field; a sum has no bytes."""
    if field in wire.DOMAINS:
        return [([], False)]
    items = [item for name in field.split(", ") for item in _items(struct, name)]
    numbers = [([*range(first, first + kind.itemsize)], kind.kind == "i") for first, kind in items]
    return [([place for places, _ in numbers for place in places], False)] if field == _BUS else numbers


def _items(struct: np.dtype[Any], field: str, start: int = 0) -> Iterator[tuple[int, np.dtype[Any]]]:
    """(first byte, type) of each number of a field of a struct that starts there."""
    name, _, inner = field.partition(".")
    assert struct.fields
    array, offset, *_ = struct.fields[name]
    for first in range(start + offset, start + offset + array.itemsize, array.base.itemsize):
        yield from _items(array.base, inner, first) if inner else [(first, array.base)]


def _off(n: int, raw: Raw, at: dict[str, list[int]]) -> tuple[int, int, int]:
    """The condition that the value of column n is absent by another; `at` are the columns of each field."""
    return (at[raw.off_by][at[raw.field].index(n)], _ALL_BITS, 0) if raw.off_by else _NEVER


def _bounds(
    layout: wire.Layout, at: dict[str, list[int]], width: int
) -> tuple[Float, Float, dict[int, tuple[int, str]]]:
    """Least and most value of each column; by column that has them, their place in `_limits` and problem."""
    least, most = np.full((2, width), [[-np.inf], [np.inf]])
    problems: dict[int, tuple[int, str]] = {}
    for place, (field, low, high, problem) in enumerate(_limits(layout)):
        least[at[field]], most[at[field]] = low, high
        problems |= dict.fromkeys(at[field], (place, problem))
    return least, most, problems
