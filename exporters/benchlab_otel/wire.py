"""The BENCHLAB device's wire protocol: opcodes and struct layouts, from the vendor's own contracts.

The contracts are the JSON files that benchlab-pycore ships, one for each product and firmware; a
new firmware needs a new release of that package and nothing here. They give layouts and sizes but
neither rail names nor scales: those are in this file, from the vendor's `structures.py` and
`utils.py`. Only the files are read: importing the package would add log handlers to stdout.
"""

from __future__ import annotations

import binascii
import json
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

VENDOR_ID = 0xEE
PRODUCTS = {"original": 0x10, "benchlab2": 0x11}
BAUD_RATE = 115200
USB_ID = (0x0483, 0x5740)  # stock ST: shared with other boards, so only the handshake tells

WELCOME, READ_SENSORS, ACTION, READ_NAME, WRITE_NAME = 0x00, 0x01, 0x02, 0x03, 0x04
READ_FAN, WRITE_FAN, READ_RGB, WRITE_RGB = 0x05, 0x06, 0x07, 0x08
READ_CALIBRATION, WRITE_CALIBRATION, LOAD_CALIBRATION, STORE_CALIBRATION = 0x09, 0x0A, 0x0B, 0x0C
READ_UID, READ_VENDOR_DATA, READ_FAULT, WRITE_FAULT = 0x0D, 0x0E, 0x0F, 0x10
LOAD_CONFIG, STORE_CONFIG, READ_DEFAULT_CONFIG, STATUS = 0x11, 0x12, 0x13, 0x14
RESET, BOOTLOADER = 0xF0, 0xF1
STATUS_NAMES = ("OK", "BAD_LENGTH", "BAD_PARAMETER", "UNKNOWN_OPCODE", "BUSY")
OK, BAD_LENGTH, BAD_PARAMETER, UNKNOWN_OPCODE, BUSY = range(5)
GREETING = b"BENCHLAB"
LONG_WELCOME_SIZE, NAME_SIZE, UID_SIZE, VENDOR_SIZE = 32, 32, 12, 3
NAME_LIMIT = 30  # bytes: longer ones overrun the field in the firmware (advisory write-name-overrun)
PACKET = 64  # bytes: old firmware takes a command from one USB packet only
ABSENT = 0x7FFF  # an input with no sensor on it
NO_EXTERNAL_DUTY = 255
SIMULATED_NAME = "SIMULATED"  # what emulators are called at first
SIMULATED_UID = SIMULATED_NAME.encode()  # a device whose UID starts so is an emulator, whatever its name

RAILS = ("EPS1", "EPS2", "ATX3V", "ATX5V", "ATX5VSB", "ATX12V", "PCIE1", "PCIE2", "PCIE3", "HPWR1", "HPWR2")
WIRES = tuple(f"{connector}_W{n}" for connector in ("HPWR1", "HPWR2") for n in range(1, 7))
DOMAINS: dict[str, tuple[str, ...]] = {  # wires are parts of their connector and never summed with it
    "system": RAILS,
    "cpu": ("EPS1", "EPS2"),
    "gpu": ("PCIE1", "PCIE2", "PCIE3", "HPWR1", "HPWR2"),
    "mb": ("ATX3V", "ATX5V", "ATX5VSB", "ATX12V"),
}
NOMINAL_VOLTS = dict.fromkeys(RAILS, 12.0) | {"ATX3V": 3.3, "ATX5V": 5.0, "ATX5VSB": 5.0}
_TEMPERATURES = ("TS1", "TS2", "TS3", "TS4", "HPWR1_IN", "HPWR1_OUT", "HPWR2_IN", "HPWR2_OUT")
_CHIP_TENTHS_FROM = {0x10: 3, 0x11: 4}  # firmware before these reports Tchip in whole degrees
_NUMBERS = {
    "int16_t": "<i2", "uint16_t": "<u2", "int32_t": "<i4", "uint32_t": "<u4", "uint8_t": "u1",
    "int8_t": "i1", "uint64_t": "<u8", "char": "S1",
}  # fmt: skip


@dataclass(frozen=True)
class Layout:
    """What one product with one firmware sends: sizes in bytes, and the names of array entries."""

    product_id: int
    firmware: int
    product: str
    draft: bool  # of a firmware that was not released
    sensors: np.dtype[np.void]
    welcome_size: int
    calibration_size: int
    rails: tuple[str, ...]
    temperatures: tuple[str, ...]
    chip_degrees: float  # °C per unit of Tchip
    faults: tuple[str, ...]  # by bit; none where the device sends no faults
    enums: dict[str, dict[str, int]]  # the firmware's, with names in lower case
    structs: dict[str, np.dtype[np.void]]
    commands: frozenset[int]
    slots: dict[str, int]  # of stored calibration: "factory", "user"; the numbers differ by firmware
    fan_profiles: int
    rgb_profiles: int
    whole_calibration: bool  # written in one piece, not by offset


def available() -> dict[tuple[int, int], str]:
    """(product id, firmware) -> contract file name, of every contract that the vendor ships."""
    return {(c["product_id"], c["fw_version"]): c["file"] for c in _index()}


def newest_firmware(product_id: int) -> int:
    """The newest released firmware of a product."""
    released = (c for c in _index() if c["product_id"] == product_id and c["status"] == "released")
    return max(int(c["fw_version"]) for c in released)


@cache
def layout(product_id: int, firmware: int) -> Layout:
    """The layout of a product and firmware; LookupError names those that are known."""
    file = available().get((product_id, firmware))
    if file is None:
        known = ", ".join(f"{p:#04x} fw {f}" for p, f in sorted(available()))
        raise LookupError(f"no contract for product {product_id:#04x} firmware {firmware}; known: {known}")
    contract = _read(file)
    sizes = {c["name"]: c.get("response_size") for c in contract["commands"]}
    sensors = _dtype(contract, "SensorStruct")
    constants = contract["constants"]
    enums = {name: _enum(name, members) for name, members in contract["enums"].items()}
    return Layout(
        product_id=product_id,
        firmware=firmware,
        product=next(c["name"] for c in _index() if c["product_id"] == product_id),
        draft=contract["status"] == "draft",
        sensors=sensors,
        welcome_size=sizes["WELCOME"],
        calibration_size=sizes["READ_CALIBRATION"],
        rails=(RAILS + WIRES)[: sensors["PowerReadings"].shape[0]],
        temperatures=_TEMPERATURES[: sensors["Ts"].shape[0]],
        chip_degrees=0.1 if firmware >= _CHIP_TENTHS_FROM[product_id] else 1.0,
        faults=tuple(enums["FAULT"]) if "FaultStatus" in (sensors.names or ()) else (),
        enums=enums,
        structs={name: _dtype(contract, name) for name in contract["structs"]},
        commands=frozenset(c["opcode"] for c in contract["commands"] if _is_there(c, product_id)),
        slots={"factory": constants["CAL_FACTORY"], "user": constants["CAL_USER"]},
        fan_profiles=constants["FAN_PROFILE_NUM"],
        rgb_profiles=constants["RGB_PROFILE_NUM"],
        whole_calibration=_validation(contract, WRITE_CALIBRATION).startswith("len==1+sizeof"),
    )


def checksum(struct: bytes) -> int:
    """The CRC-16 that a stored struct begins with: over what follows its two bytes.

    CRC-16/CCITT-FALSE, as `Helper.CRC16_Calc` of the vendor's C# core (BENCHLAB_Core) does it for
    the configuration. That the calibration's is the same is likely, and not checked on hardware.
    """
    return binascii.crc_hqx(struct[2:], 0xFFFF)


def _enum(name: str, members: dict[str, int]) -> dict[str, int]:
    """Members without the enum's name in theirs, in order of value; counts (`_NUM`) are none."""
    plain = {member.removeprefix(f"{name}_").lower(): value for member, value in members.items()}
    return {member: plain[member] for member in sorted(plain, key=plain.__getitem__) if member != "num"}


def _is_there(command: dict[str, Any], product_id: int) -> bool:
    """Contracts of ORIGINAL list the commands of BENCHLAB 2 too, and say so."""
    return product_id == PRODUCTS["benchlab2"] or not command["validation"].startswith("BENCHLAB 2 only")


def _validation(contract: dict[str, Any], opcode: int) -> str:
    return next(str(c["validation"]) for c in contract["commands"] if c["opcode"] == opcode)


def _dtype(contract: dict[str, Any], name: str) -> np.dtype[np.void]:
    """The NumPy dtype of a contract's struct; counts are size / width (`array` is a C expression)."""
    struct = contract["structs"][name]
    formats: list[Any] = []
    for field in struct["fields"]:
        item = _item(contract, field["type"])
        count = field["size"] // item.itemsize
        formats.append(item if field["array"] is None else (item, (count,)))
    return np.dtype(
        {
            "names": [f["name"] for f in struct["fields"]],
            "formats": formats,
            "offsets": [f["offset"] for f in struct["fields"]],
            "itemsize": struct["size"],
        }
    )


def _item(contract: dict[str, Any], kind: str) -> np.dtype[Any]:
    if kind in contract["structs"]:
        return _dtype(contract, kind)
    if kind in contract["enums"]:
        return np.dtype(f"<u{contract['enum_width_bytes'][kind]}")
    return np.dtype(_NUMBERS[kind])


@cache
def _folder() -> Path:
    spec = find_spec("benchlab_pycore")
    assert spec is not None
    assert spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0]) / "contracts"


@cache
def _index() -> list[dict[str, Any]]:
    contracts: list[dict[str, Any]] = _read("index.json")["contracts"]
    return contracts


def _read(file: str) -> dict[str, Any]:
    parsed: dict[str, Any] = json.loads((_folder() / file).read_text())
    return parsed
