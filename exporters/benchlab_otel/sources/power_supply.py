"""Batteries and chargers: what flows out of and into the battery, its charge, and USB-PD contracts.

A laptop on battery draws all its power from it, so `hw.power.battery` is the whole machine's while it
discharges, and absent while it is plugged in. Drivers refresh these values each second or so.

Format: Documentation/ABI/testing/sysfs-class-power of the Linux kernel (micro-units). Drivers do not
agree on the sign of the current while discharging, so the direction is read from `status`. What a
USB-PD port (ucsi) says of the power that it takes is what was negotiated, not what flows: exported as a
limit. A port that gives power, and one without a PD contract, has none.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from benchlab_otel import contract
from benchlab_otel.config import PowerSupply
from benchlab_otel.sources.reading import Device, Field, SourceError
from benchlab_otel.sources.sysfs import (
    AMPERES,
    VOLTS,
    WATTS,
    Listing,
    Sensor,
    SensorReader,
    is_sysfs,
    scaled,
    text,
)

HW_ID = "power_supply"
METRICS = (
    contract.HW_POWER,
    contract.HW_POWER_LIMIT,
    contract.HW_VOLTAGE,
    contract.HW_CURRENT,
    contract.HW_TEMPERATURE,
    contract.BATTERY_CHARGE,
)
_READ = ("Battery", "UPS", "USB")


def addresses(settings: PowerSupply) -> list[str]:
    """The power_supply tree where it has a battery or a USB port; else none."""
    tree = settings.sysfs / "class/power_supply"
    return [str(tree)] if _supplies(tree) else []


def open_reader(settings: PowerSupply, address: str) -> SensorReader:
    """Opens all batteries and ports; SourceError where there are none."""
    tree = Path(address)
    listing = Listing(tree)
    supplies = _supplies(tree)
    if not supplies:
        raise SourceError("absent", f"{tree}: no battery and no USB port")
    names = ", ".join(supply.name for supply in supplies)
    device = Device(HW_ID, "power_supply", f"power supplies: {names}", simulated=not is_sysfs(tree))
    sensors = [sensor for supply in supplies for sensor in _sensors(supply, supplies)]
    return SensorReader(device, sensors, listing=listing)


def _supplies(tree: Path) -> list[Path]:
    return [folder for folder in sorted(tree.glob("*")) if text(folder / "type") in _READ]


def _sensors(supply: Path, supplies: list[Path]) -> Iterator[Sensor]:
    if text(supply / "type") == "USB":
        yield from _port(supply)
        return
    if _feeds_the_machine(supply):
        several = len([s for s in supplies if _feeds_the_machine(s)]) > 1
        yield from _flow(supply, supply.name if several else "battery")
    charge = Field("", contract.BATTERY_CHARGE, {"hw.id": supply.name, "hw.sensor_location": supply.name})
    yield from _if_there(Sensor(charge, (supply / "capacity",), scaled(0.01, (0.0, 1.0)), slow=True))
    yield from _plain(supply, "battery")


def _feeds_the_machine(supply: Path) -> bool:
    """Whether it is a battery or UPS, and not that of a device such as a mouse, which feeds the mouse."""
    return text(supply / "type") in ("Battery", "UPS") and text(supply / "scope") != "Device"


def _flow(supply: Path, domain: str) -> Iterator[Sensor]:
    """Power out of the battery, which is a domain, and into it."""
    files: tuple[Path, ...] = (supply / "current_now", supply / "voltage_now")
    if (supply / "power_now").exists():
        files = (supply / "power_now",)
    for status, where, key in (
        ("Discharging", "discharge", contract.POWER_PREFIX + domain),
        ("Charging", "charge", ""),
    ):
        field = Field(key, contract.HW_POWER, _hw(supply, "battery", where))
        yield from _if_there(Sensor(field, (supply / "status", *files), partial(flowing, status.encode())))


def flowing(wanted: bytes, status: bytes, first: bytes, voltage: bytes | None = None) -> float:
    """W, of µW or of µA and µV, while the battery does what is wanted; else absent (ValueError)."""
    if status.strip() != wanted:
        raise ValueError(status)
    watts = abs(float(first)) * 1e-6 * (1.0 if voltage is None else float(voltage) * 1e-6)
    if not 0.0 <= watts <= WATTS[1]:
        raise ValueError(first)
    return watts


def _plain(supply: Path, hw_type: str) -> Iterator[Sensor]:
    for name, metric, factor, possible in (
        ("voltage_now", contract.HW_VOLTAGE, 1e-6, VOLTS),
        ("current_now", contract.HW_CURRENT, 1e-6, AMPERES),
        ("temp", contract.HW_TEMPERATURE, 0.1, (-60.0, 300.0)),
    ):
        field = Field("", metric, _hw(supply, hw_type, supply.name))
        yield from _if_there(Sensor(field, (supply / name,), scaled(factor, possible), slow=True))


def _port(supply: Path) -> Iterator[Sensor]:
    """The contract of a USB-PD port."""
    labels = _hw(supply, "power_supply", supply.name)
    field = Field("", contract.HW_POWER_LIMIT, labels | {"hw.limit_type": "negotiated"})
    files = supply / "online", supply / "usb_type", supply / "voltage_now", supply / "current_now"
    yield from _if_there(Sensor(field, files, _negotiated, slow=True))


def _negotiated(online: bytes, usb_type: bytes, voltage: bytes, current: bytes) -> float:
    """W, of µV and µA; absent (ValueError) where the port takes no power, or not by a contract.

    `online` is 1, or 2 for a programmable supply; `usb_type` has the one in use in brackets: C [PD] PD_PPS.
    """
    watts = float(voltage) * float(current) * 1e-12
    if not (int(online) and b"[PD" in usb_type and 0.0 < watts < WATTS[1]):
        raise ValueError(usb_type)
    return watts


def _if_there(sensor: Sensor) -> Iterator[Sensor]:
    if all(file.exists() for file in sensor.files):
        yield sensor


def _hw(supply: Path, hw_type: str, where: str) -> dict[str, str]:
    return {"hw.id": supply.name, "hw.type": hw_type, "hw.sensor_location": where}
