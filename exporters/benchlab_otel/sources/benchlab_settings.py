"""A BENCHLAB's settings: name, fans, RGB and calibration, each write checked by reading it back.

The firmware has no error reply: a command that it does not take is dropped. From ORIGINAL firmware 4
and BENCHLAB 2 firmware 5 STATUS tells why. Writes change RAM only; `store` keeps them.
"""

from __future__ import annotations

import reprlib
import time
from collections.abc import Callable, Mapping
from typing import TypeVar

import numpy as np

from benchlab_otel import wire
from benchlab_otel.sources.benchlab_port import Port
from benchlab_otel.sources.reading import SourceError

T = TypeVar("T")
_PERCENT = ("Duty", "FixedDuty", "MinDuty", "MaxDuty")  # in a byte, which could hold 255
Values = dict[str, int | list[int]]
_SETTLE_S = 1.0  # what was written is read back by then, a port that restarts is gone
_NO_RESTORE = "set them with `benchlab-otel device fan` and `device rgb`, or take all power from the device"
_GAP_S = 0.02  # after a command that has no answer; the smallest that is safe is not known


class Settings:
    """The settings of the device on a port; SourceError "refused" where it does not take a write."""

    def __init__(self, port: Port, layout: wire.Layout) -> None:
        self.port, self.layout = port, layout

    def name(self) -> str:
        """What it is called."""
        raw = self.port.answer(bytes([wire.READ_NAME]), wire.NAME_SIZE)
        return raw.split(b"\0", 1)[0].decode("utf-8", "replace")

    def set_name(self, name: str) -> None:
        """Calls it otherwise; ValueError for a name that the firmware has no room for."""
        if not name.isprintable():
            raise ValueError(f"a name has printable characters only, not {name!a}")
        encoded = name.encode()
        if len(encoded) > wire.NAME_LIMIT:
            raise ValueError(f"a name has at most {wire.NAME_LIMIT} bytes (UTF-8), not {len(encoded)}")
        self._write(bytes([wire.WRITE_NAME]) + encoded + b"\0", self.name, name)

    def fan(self, profile: int, fan: int) -> bytes:
        """A FanConfigStruct; profiles and fans count from 0."""
        return self._struct(wire.READ_FAN, bytes([profile, fan]), "FanConfigStruct")

    def set_fan(self, profile: int, fan: int, raw: bytes) -> None:
        """Writes a FanConfigStruct."""
        request = bytes([wire.WRITE_FAN, profile, fan]) + raw
        self._write(request, lambda: self.fan(profile, fan), raw)

    def rgb(self, profile: int) -> bytes:
        """An RGBConfigStruct."""
        return self._struct(wire.READ_RGB, bytes([profile]), "RGBConfigStruct")

    def set_rgb(self, profile: int, raw: bytes) -> None:
        """Writes an RGBConfigStruct."""
        self._write(bytes([wire.WRITE_RGB, profile]) + raw, lambda: self.rgb(profile), raw)

    def calibration(self) -> bytes:
        """The CalibrationStruct in force."""
        return self._struct(wire.READ_CALIBRATION, b"", "CalibrationStruct")

    def load_calibration(self, slot: str) -> bytes:
        """Puts a stored table ("factory", "user") in force, and reads it."""
        self._command(bytes([wire.LOAD_CALIBRATION, self.layout.slots[slot]]))
        return self.calibration()

    def check_takes_calibration(self) -> None:
        """SourceError "refused" where the firmware can't be written a whole table (BENCHLAB 2 before 7)."""
        if not self.layout.whole_calibration and self.layout.calibration_size > 256:
            raise SourceError("refused", f"{self.port.path}: this firmware takes only a part of a table back")

    def set_calibration(self, table: bytes) -> None:
        """Puts a table in force, without storing it; ValueError for one of another size."""
        self.check_takes_calibration()
        if len(table) != self.layout.calibration_size:
            raise ValueError(f"a table has {self.layout.calibration_size} bytes, not {len(table)}")
        if self.layout.whole_calibration:
            self._write(bytes([wire.WRITE_CALIBRATION]) + table, self.calibration, table)
            return
        step = wire.PACKET - 2
        for offset in range(0, len(table), step):
            self._command(bytes([wire.WRITE_CALIBRATION, offset]) + table[offset : offset + step])
        self._read_back(self.calibration, table)

    def store_calibration(self) -> None:
        """Keeps the table in force as the user's; the factory's is never written."""
        active = self.calibration()
        self._command(bytes([wire.STORE_CALIBRATION, self.layout.slots["user"]]))
        self._read_back(lambda: self.load_calibration("user")[2:], active[2:])  # its checksum may be new

    def store(self) -> None:
        """Keeps name, fans and RGB for the next start; nothing to read back."""
        self._command(bytes([wire.STORE_CONFIG]))

    def restore(self) -> None:
        """Back to the name, fans and RGB that are kept."""
        self._check_known(wire.LOAD_CONFIG, _NO_RESTORE)
        self._command(bytes([wire.LOAD_CONFIG]))

    def restart(self, opcode: int) -> None:
        """RESET or BOOTLOADER: done when the port goes away."""
        self._check_known(opcode)
        self.port.tell(bytes([opcode]))
        deadline = time.monotonic() + _SETTLE_S
        try:
            while time.monotonic() < deadline:
                self.port.receive(1, _GAP_S)
        except SourceError:  # lost
            return
        raise self._refused("the device is still there")

    def _struct(self, opcode: int, arguments: bytes, name: str) -> bytes:
        return self.port.answer(bytes([opcode]) + arguments, self.layout.structs[name].itemsize)

    def _write(self, request: bytes, read: Callable[[], T], expected: T) -> None:
        self._command(request)
        self._read_back(read, expected)

    def _read_back(self, read: Callable[[], T], expected: T) -> None:
        deadline = time.monotonic() + _SETTLE_S
        while (found := read()) != expected:
            if time.monotonic() > deadline:
                raise self._refused(f"reads back {reprlib.repr(found)}, not {reprlib.repr(expected)}")
            time.sleep(_GAP_S)

    def _command(self, request: bytes) -> None:
        """Sends a command; tries again while the device is busy."""
        self._check_known(request[0])
        deadline = time.monotonic() + _SETTLE_S
        while True:
            self.port.tell(request)
            time.sleep(_GAP_S)
            if wire.STATUS not in self.layout.commands:
                return
            (status,) = self.port.answer(bytes([wire.STATUS]), 1)
            if status == wire.OK:
                return
            if status != wire.BUSY or time.monotonic() > deadline:
                names = dict(enumerate(wire.STATUS_NAMES))
                raise self._refused(f"command {request[0]:#04x}: {names.get(status, status)}")

    def _check_known(self, opcode: int, fix: str = "") -> None:
        if opcode not in self.layout.commands:
            firmware = f"{self.layout.product} firmware {self.layout.firmware}"
            raise self._refused(f"{firmware} has no command {opcode:#04x}", fix)

    def _refused(self, why: str, fix: str = "") -> SourceError:
        return SourceError("refused", f"{self.port.path}: not taken: {why}", fix)


def unpack(layout: wire.Layout, name: str, raw: bytes) -> Values:
    """The fields of a struct of numbers."""
    row = np.frombuffer(raw, layout.structs[name])[0]
    return {field: row[field].tolist() for field in layout.structs[name].names or ()}


def pack(layout: wire.Layout, name: str, raw: bytes, changes: Mapping[str, int | list[int]]) -> bytes:
    """A struct with some fields changed; ValueError for a value that its field can't hold or mean."""
    buffer = bytearray(raw)  # a copy of the array would leave out the bytes between its fields
    row = np.frombuffer(buffer, layout.structs[name])
    for field, value in changes.items():
        kind = row.dtype[field].base
        limits = np.iinfo(kind)
        most = 100 if field in _PERCENT else limits.max
        if np.any((np.array(value) < limits.min) | (np.array(value) > most)):
            raise ValueError(f"{field}: expected {limits.min} to {most}, not {value}")
        row[field] = value
    return bytes(buffer)
