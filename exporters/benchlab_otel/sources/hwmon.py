"""Temperatures, fans, voltages, currents and power of the sensor chips that the kernel knows (hwmon).

Processors (k10temp, coretemp), drives (nvme, drivetemp), memory, mainboards (nct6775, it87, …), power
supplies and platform power meters, with the limits they are set to. GPUs are left to the sources drm
and nvml, batteries to power_supply.

Format: Documentation/hwmon/sysfs-interface.rst of the Linux kernel. A chip's hw.id is its driver's
name and its place on the bus, as hwmon's own numbers change from boot to boot. A sensor is called by its
label; where several of a chip have the same one (dell_smm: three times SODIMM), the file's name is added.
A fan header that nothing is plugged into reads 0 rpm, like a fan that stands still.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from benchlab_otel import contract
from benchlab_otel.config import Hwmon
from benchlab_otel.contract import Metric
from benchlab_otel.sources.reading import Device, Field, SourceError
from benchlab_otel.sources.sysfs import (
    AMPERES,
    ANY,
    DEGREES,
    RPM,
    VOLTS,
    WATTS,
    Listing,
    Sensor,
    SensorReader,
    is_sysfs,
    place,
    scaled,
    text,
)
from benchlab_otel.timebase import anchor

HW_ID = "hwmon"
LIMITS_EVERY_S = 60.0  # limits hardly change, and asking a drive for them is a command to it
METRICS = (
    contract.HW_TEMPERATURE,
    contract.HW_TEMPERATURE_LIMIT,
    contract.HW_FAN_SPEED,
    contract.HW_FAN_SPEED_RATIO,
    contract.HW_VOLTAGE,
    contract.HW_CURRENT,
    contract.HW_POWER,
    contract.HW_POWER_LIMIT,
    contract.HW_ENERGY,
    contract.HW_HUMIDITY,
)

_OTHERS = re.compile(r"amdgpu|i915.*|xe")  # read by the source drm
_TYPES = {
    "k10temp": "cpu", "zenpower": "cpu", "coretemp": "cpu", "amd_energy": "cpu",
    "nvme": "physical_disk", "drivetemp": "physical_disk", "spd5118": "memory", "jc42": "memory",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Quantity:
    """What files of one kind hold, as hwmon writes them."""

    key: str  # of the sample's attribute: hw.KEY.CHIP.NAME
    metric: Metric
    hw_type: str
    factor: float
    possible: tuple[float, float]


_VOLTAGE = _Quantity("voltage", contract.HW_VOLTAGE, "voltage", 1e-3, VOLTS)
_CURRENT = _Quantity("current", contract.HW_CURRENT, "power_rail", 1e-3, AMPERES)
_TEMPERATURE = _Quantity("temperature", contract.HW_TEMPERATURE, "temperature", 1e-3, DEGREES)
_FAN = _Quantity("fan.speed", contract.HW_FAN_SPEED, "fan", 1.0, RPM)
_PWM = _Quantity("", contract.HW_FAN_SPEED_RATIO, "fan", 1 / 255, (0.0, 1.0))
_POWER = _Quantity("power", contract.HW_POWER, "power_supply", 1e-6, WATTS)
_ENERGY = _Quantity("energy", contract.HW_ENERGY, "power_supply", 1e-6, ANY)
_HUMIDITY = _Quantity("humidity", contract.HW_HUMIDITY, "humidity", 1e-5, (0.0, 1.0))
_FILES = {
    "in{}_input": _VOLTAGE,
    "curr{}_input": _CURRENT,
    "temp{}_input": _TEMPERATURE,
    "fan{}_input": _FAN,
    "pwm{}": _PWM,
    "power{}_average": _POWER,
    "power{}_input": _POWER,
    "energy{}_input": _ENERGY,
    "humidity{}_input": _HUMIDITY,
}
_PATTERNS = {re.compile(name.format(r"\d+")): quantity for name, quantity in _FILES.items()}
_LIMITS = {  # suffix of the file: hw.limit_type
    "temp": {"crit": "high.critical", "max": "high.degraded", "lcrit": "low.critical", "min": "low.degraded"},
    "power": {"cap": "cap", "max": "max", "crit": "high.critical"},
}
_LIMIT_METRICS = {"temp": contract.HW_TEMPERATURE_LIMIT, "power": contract.HW_POWER_LIMIT}


def addresses(settings: Hwmon) -> list[str]:
    """The hwmon tree: all its chips are read together."""
    return [str(settings.sysfs / "class/hwmon")]


def open_reader(settings: Hwmon, address: str) -> HwmonReader:
    """Opens the sensors of all chips; SourceError where there are none."""
    return HwmonReader(Path(address))


@dataclass(frozen=True, slots=True)
class _Chip:
    folder: Path
    driver: str
    hw_id: str
    group: str  # in keys of samples: the driver, or the id where several chips have that driver
    names: dict[str, str]  # of the sensors, by stem (temp1)


class HwmonReader(SensorReader):
    """All chips of a tree."""

    def __init__(self, tree: Path) -> None:
        listing = Listing(tree)
        chips = _chips(tree)
        sensors = [sensor for chip in chips for sensor in _sensors(chip)]
        if not sensors:
            fix = "sudo sensors-detect\nfinds the drivers of a mainboard's chips; virtual machines have none"
            risk = "it asks before it probes a bus that may not bear it; its default answers are safe"
            raise SourceError("absent", f"{tree}: no sensors", fix, risk)
        device = Device(
            HW_ID,
            "sensors",
            f"hwmon: {', '.join(sorted({chip.driver for chip in chips}))}",
            simulated=not is_sysfs(tree),
            counting_since_ns=anchor().now_ns(),
        )
        super().__init__(device, sensors, LIMITS_EVERY_S, listing)


def _chips(tree: Path) -> list[_Chip]:
    found = []
    numbered = [path for path in tree.glob("hwmon*") if path.name.removeprefix("hwmon").isdecimal()]
    for folder in sorted(numbered, key=lambda path: int(path.name.removeprefix("hwmon"))):
        driver = text(folder / "name") or "unknown"
        supply = folder / "device" / "subsystem"
        if not _OTHERS.fullmatch(driver) and supply.resolve().name != "power_supply":
            where = place(folder / "device") if (folder / "device").exists() else "virtual"
            found.append((folder, driver, f"{driver}-{where}"))
    several = Counter(driver for _, driver, _ in found)
    return [
        _Chip(folder, driver, hw_id, hw_id if several[driver] > 1 else driver, _names(folder))
        for folder, driver, hw_id in found
    ]


def _names(folder: Path) -> dict[str, str]:
    """What a chip's sensors are called: the label, with the stem where others of its kind have that too."""
    files = [path.name for path in folder.iterdir()]
    stems = {file.partition("_")[0] for file in files if any(p.fullmatch(file) for p in _PATTERNS)}
    labels = {stem: text(folder / f"{stem}_label") or stem for stem in stems}
    uses = Counter((_kind(stem), _word(label)) for stem, label in labels.items())
    return {
        stem: f"{label} {stem}" if uses[_kind(stem), _word(label)] > 1 else label
        for stem, label in labels.items()
    }


def _kind(stem: str) -> str:
    return stem.rstrip("0123456789")


def _sensors(chip: _Chip) -> Iterator[Sensor]:
    """The sensors of a chip, and the limits of each."""
    powers = _power_names(chip.folder)
    for path in sorted(chip.folder.iterdir()):
        for pattern, quantity in _PATTERNS.items():
            if pattern.fullmatch(path.name):
                stem = path.name.partition("_")[0]
                if quantity is _POWER and path.name != powers[stem]:
                    continue  # both an average and an instant: one of them
                yield _sensor(chip, path, stem, quantity, main=_is_main(chip, stem, powers))
                yield from _limits(chip, stem)


def _power_names(folder: Path) -> dict[str, str]:
    """The file to read of each power sensor: the average, as it misses nothing, where there is one."""
    names = sorted(p.name for p in folder.glob("power*") if p.name.endswith(("_input", "_average")))
    return {name.partition("_")[0]: name for name in reversed(names)}


def _is_main(chip: _Chip, stem: str, powers: dict[str, str]) -> bool:
    """Whether a power sensor is the chip's whole, which is a domain; others are rails of it."""
    return len(powers) == 1 or "total" in text(chip.folder / f"{stem}_label")


def _sensor(chip: _Chip, path: Path, stem: str, quantity: _Quantity, main: bool) -> Sensor:
    name = chip.names[stem]
    key = ""
    if quantity is _ENERGY or (quantity is _POWER and main):
        key = f"hw.{quantity.key}.{_word(chip.group)}-{_word(name)}"
    elif quantity is _POWER:
        key = f"hw.power.rail.{_word(chip.group)}-{_word(name)}"
    elif quantity.key:
        key = f"hw.{quantity.key}.{_word(chip.group)}.{_word(name)}"
    fault = path.with_name(f"{stem}_fault")
    files = (path, fault) if fault.exists() else (path,)
    return Sensor(
        Field(key, quantity.metric, _labels(chip, quantity.metric, quantity.hw_type, name)),
        files,
        scaled(quantity.factor, quantity.possible),
    )


def _limits(chip: _Chip, stem: str) -> Iterator[Sensor]:
    kind = _kind(stem)
    for suffix, limit_type in _LIMITS.get(kind, {}).items():
        path = chip.folder / f"{stem}_{suffix}"
        if path.exists():
            metric = _LIMIT_METRICS[kind]
            quantity = _TEMPERATURE if kind == "temp" else _POWER
            labels = _labels(chip, metric, quantity.hw_type, chip.names[stem])
            field = Field("", metric, labels | {"hw.limit_type": limit_type})
            yield Sensor(field, (path,), scaled(quantity.factor, quantity.possible), slow=True)


def _labels(chip: _Chip, metric: Metric, hw_type: str, name: str) -> dict[str, str]:
    labels = {"hw.id": chip.hw_id, "hw.type": _TYPES.get(chip.driver, hw_type), "hw.sensor_location": name}
    return {label: labels[label] for label in metric.labels if label in labels}


def _word(name: str) -> str:
    """A name as a part of an attribute's key: domains have no dots."""
    return re.sub(r"[.\s]+", "-", name.strip())
