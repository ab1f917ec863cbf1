"""What a BENCHLAB's sensor struct says: which values it has, and whether they can be."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchlab_otel import contract, wire
from benchlab_otel.contract import Metric
from benchlab_otel.model import Bool, Float
from benchlab_otel.sources.reading import Field

LEAST_VOLTS = -0.5  # an open input may read a little below zero
MAX_AMPERES = 500.0  # several times what the largest connector (12V-2x6) bears for a moment
MAX_WATTS = 5000.0
DEGREES = (-60.0, 300.0)
Sensors = NDArray[np.void]


def max_volts(rail: str) -> float:
    """Twice what a rail, or a wire of a connector, has: power supplies switch off well before."""
    return 2.0 * wire.NOMINAL_VOLTS[rail.partition("_W")[0]]


@cache
def _most_volts(rails: tuple[str, ...]) -> Float:
    return np.array([max_volts(rail) for rail in rails])


def implausible(sensors: Sensors, layout: wire.Layout) -> tuple[int, str]:
    """The first of n answers that can't be true and why, (n, "") where all can.

    It is the only defence of a protocol without checksum.
    """
    power = sensors["PowerReadings"]
    volts, watts = power["Voltage"] / 1e3, power["Power"] / 1e3
    total = watts[:, : len(wire.RAILS)].sum(axis=1)
    temperatures = _temperatures(sensors)
    outside = (temperatures < DEGREES[0]) | (temperatures > DEGREES[1])
    checks: list[tuple[Bool, str]] = [
        (
            (volts < LEAST_VOLTS) | (volts > _most_volts(layout.rails)),
            f"a rail below {LEAST_VOLTS} V or above twice its voltage",
        ),
        (abs(power["Current"] / 1e3) > MAX_AMPERES, f"more than {MAX_AMPERES} A"),
        (abs(total) > MAX_WATTS, f"more than {MAX_WATTS} W"),
        (abs(watts) > MAX_WATTS, f"more than {MAX_WATTS} W"),
        (outside, f"a temperature outside {DEGREES[0]} to {DEGREES[1]} °C"),
        (sensors["Hum"] > 1000, "a humidity above 100 %"),
        *(
            (sensors[name] >= len(layout.enums[enum]), f"a {location} in a position that isn't one")
            for location, name, enum in _SWITCHES
        ),
        (
            (sensors["FanExtDuty"] > 100) & (sensors["FanExtDuty"] != wire.NO_EXTERNAL_DUTY),
            "a duty above 100 %",
        ),
        (sensors["Fans"]["Enable"] > 1, "a fan that is neither on nor off"),
        (sensors["Fans"]["Duty"] > 100, "a fan's duty above 100 %"),
        *(
            (sensors[name] >= 1 << len(layout.faults), f"a fault that isn't one in {name}")
            for name in _FAULTS.values()
            if layout.faults
        ),
    ]
    found = [(int(np.argwhere(wrong)[0, 0]), problem) for wrong, problem in checks if wrong.any()]
    return min(found, default=(len(sensors), ""), key=lambda f: f[0])


@dataclass(frozen=True, slots=True)
class Group:
    """Values of one kind: `values` gives those of n answers (n, len(keys)), NaN where absent.

    `keys` are attributes of the sample span ("" = none), `labels` those of the metric, without hw.id.
    """

    keys: Sequence[str]
    metric: Metric | None
    labels: Sequence[dict[str, str]]
    values: Callable[[Sensors], Float]

    def fields(self, hw_id: str) -> list[Field]:
        """The fields of the values of a device."""
        labels = [{"hw.id": hw_id, **labels} for labels in self.labels]
        return [Field(key, self.metric, own) for key, own in zip(self.keys, labels, strict=True)]


def groups(layout: wire.Layout) -> list[Group]:
    """What a device of a layout measures. Domains are sums of rails, in which wires have no part."""
    rails, fans = layout.rails, [str(n + 1) for n in range(layout.sensors["Fans"].shape[0])]
    inputs = [f"VIN{n}" for n in range(layout.sensors["Vin"].shape[0])]
    parts = {"cpu": "cpu", "gpu": "gpu", "mb": "motherboard"}

    def totals(*domains: str) -> Callable[[Sensors], Float]:
        has = np.array([[rail in wire.DOMAINS[domain] for domain in domains] for rail in rails], np.int64)
        return lambda s: s["PowerReadings"]["Power"] @ has / 1e3

    def power(name: str) -> Callable[[Sensors], Float]:
        return lambda s: s["PowerReadings"][name] / 1e3

    def degrees(name: str, scale: float) -> Callable[[Sensors], Float]:
        return lambda s: _present(s[name][:, None], scale)

    return [
        _group("hw.power.", ["system"], contract.HOST_POWER, "", totals("system")),
        Group(
            [f"hw.power.{domain}" for domain in parts],
            contract.HW_POWER,
            [{"hw.type": part, "hw.sensor_location": domain} for domain, part in parts.items()],
            totals(*parts),
        ),
        _group("hw.power.rail.", rails, contract.HW_POWER, "power_rail", power("Power")),
        _group("hw.voltage.rail.", rails, contract.HW_VOLTAGE, "power_rail", power("Voltage")),
        _group("hw.current.rail.", rails, contract.HW_CURRENT, "power_rail", power("Current")),
        _group("hw.voltage.", inputs, contract.HW_VOLTAGE, "voltage", lambda s: _present(s["Vin"], 1e-3)),
        _group("hw.voltage.", ["VDD"], contract.HW_VOLTAGE, "voltage", lambda s: s["Vdd"][:, None] / 1e3),
        _group("hw.voltage.", ["VREF"], contract.HW_VOLTAGE, "voltage", lambda s: s["Vref"][:, None] / 1e3),
        _group(
            "hw.temperature.",
            ["chip"],
            contract.HW_TEMPERATURE,
            "temperature",
            degrees("Tchip", layout.chip_degrees),
        ),
        _group("hw.temperature.", layout.temperatures, contract.HW_TEMPERATURE, "temperature", _temperatures),
        _group("hw.temperature.", ["ambient"], contract.HOST_AMBIENT, "", lambda s: _ambient(s, "Tamb", 0.1)),
        _group(
            "hw.humidity.", ["ambient"], contract.HW_HUMIDITY, "humidity", lambda s: _ambient(s, "Hum", 0.001)
        ),
        _group("hw.fan.speed.", fans, contract.HW_FAN_SPEED, "fan", lambda s: _fans(s, "Tach", 1.0)),
        _group(
            "hw.fan.speed_ratio.", fans, contract.HW_FAN_SPEED_RATIO, "fan", lambda s: _fans(s, "Duty", 0.01)
        ),
        _group("hw.fan.speed_ratio.", ["external"], contract.HW_FAN_SPEED_RATIO, "fan", _external_duty),
        _group("hw.fan.enabled.", fans, contract.HW_FAN_ENABLED, "", lambda s: s["Fans"]["Enable"] * 1.0),
        *(group for switch in _SWITCHES for group in _switch(layout, *switch)),
        *(group for state in _FAULTS if layout.faults for group in _faults(layout, state)),
    ]


def metrics(layout: wire.Layout) -> tuple[Metric, ...]:
    """Those of the groups, each once."""
    return tuple(dict.fromkeys(group.metric for group in groups(layout) if group.metric))


def _group(
    prefix: str, names: Sequence[str], metric: Metric, hw_type: str, values: Callable[[Sensors], Float]
) -> Group:
    """Values that differ by where they were measured."""
    wanted = [{"hw.type": hw_type, "hw.sensor_location": name} for name in names]
    labels = [{key: own[key] for key in metric.labels if key in own} for own in wanted]
    return Group([prefix + name for name in names], metric, labels, values)


def _present(raw: NDArray[np.integer[Any]], scale: float) -> Float:
    return np.where(raw == wire.ABSENT, np.nan, raw * scale)


def _temperatures(sensors: Sensors) -> Float:
    """°C of the sensor inputs, from the raw values: hot connectors beyond 100 °C must show."""
    return _present(sensors["Ts"], 0.1)


def _ambient(sensors: Sensors, name: str, scale: float) -> Float:
    """°C or relative humidity, absent when both are 0: that is what a failed I2C bus reads."""
    there = (sensors["Tamb"] != 0) | (sensors["Hum"] != 0)
    return np.where(there, sensors[name] * scale, np.nan)[:, None]


def _fans(sensors: Sensors, name: str, scale: float) -> Float:
    """Values of the fans that are on, NaN of the others."""
    return np.where(sensors["Fans"]["Enable"] == 1, sensors["Fans"][name] * scale, np.nan)


def _external_duty(sensors: Sensors) -> Float:
    raw = sensors["FanExtDuty"][:, None]
    return np.where(raw == wire.NO_EXTERNAL_DUTY, np.nan, raw * 0.01)


# -- switches and faults: a series for each state, one number in the sample -------------------

_SWITCHES = (  # location, field of the struct, enum of its positions
    ("fan_switch", "FanSwitchStatus", "FAN_SWITCH_STATUS"),
    ("rgb_switch", "RGBSwitchStatus", "RGB_SWITCH_STATUS"),
    ("rgb_external", "RgbExtStatus", "RGB_EXT_STATUS"),
)
_FAULTS = {"live": "FaultStatus", "latched": "FaultLog"}


def _switch(layout: wire.Layout, location: str, name: str, enum: str) -> list[Group]:
    positions = layout.enums[enum]
    numbers = np.array(list(positions.values()))
    labels = [{"hw.type": "switch", "hw.sensor_location": location, "hw.state": state} for state in positions]
    return [
        Group([f"hw.status.{location}"], None, [{}], lambda s: s[name][:, None].astype(np.float64)),
        Group(
            [""] * len(labels),
            contract.HW_STATUS,
            labels,
            lambda s: (s[name][:, None] == numbers).astype(np.float64),
        ),
    ]


def _faults(layout: wire.Layout, state: str) -> list[Group]:
    """The bit mask in the sample (exact: it has 34 bits), a series for each fault."""
    name, bits = _FAULTS[state], np.arange(len(layout.faults), dtype=np.uint64)
    labels = [{"hw.fault": fault, "hw.state": state} for fault in layout.faults]
    return [
        Group([f"hw.fault.{state}"], None, [{}], lambda s: s[name][:, None].astype(np.float64)),
        Group(
            [""] * len(labels),
            contract.HW_FAULT,
            labels,
            lambda s: (s[name][:, None] >> bits & np.uint64(1)).astype(np.float64),
        ),
    ]
