"""The BENCHLAB device's wire protocol: opcodes and struct layouts, from the vendor's own contracts.

The contracts are the JSON files that benchlab-pycore ships, one for each product and firmware; a
new firmware needs a new release of that package and nothing here. They give layouts and sizes but
neither rail names nor scales: those are in this file, from the vendor's `structures.py` and
`utils.py`. Only the files are read: importing the package would add log handlers to stdout.
"""

from __future__ import annotations

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

WELCOME, READ_SENSORS, READ_NAME, READ_CALIBRATION, READ_UID, READ_VENDOR_DATA = 0, 1, 3, 9, 0x0D, 0x0E
GREETING = b"BENCHLAB"
LONG_WELCOME_SIZE, NAME_SIZE, UID_SIZE, VENDOR_SIZE = 32, 32, 12, 3
ABSENT = 0x7FFF  # an input with no sensor on it
NO_EXTERNAL_DUTY = 255
SIMULATED_NAME = "SIMULATED"  # a device whose name starts so is an emulator

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
    "int8_t": "i1", "uint64_t": "<u8",
}  # fmt: skip


@dataclass(frozen=True)
class Layout:
    """What one product with one firmware sends: sizes in bytes, and the names of array entries."""

    product_id: int
    firmware: int
    product: str
    sensors: np.dtype[np.void]
    welcome_size: int
    calibration_size: int
    rails: tuple[str, ...]
    temperatures: tuple[str, ...]
    chip_degrees: float  # °C per unit of Tchip


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
    return Layout(
        product_id=product_id,
        firmware=firmware,
        product=next(c["name"] for c in _index() if c["product_id"] == product_id),
        sensors=sensors,
        welcome_size=sizes["WELCOME"],
        calibration_size=sizes["READ_CALIBRATION"],
        rails=(RAILS + WIRES)[: sensors["PowerReadings"].shape[0]],
        temperatures=_TEMPERATURES[: sensors["Ts"].shape[0]],
        chip_degrees=0.1 if firmware >= _CHIP_TENTHS_FROM[product_id] else 1.0,
    )


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
