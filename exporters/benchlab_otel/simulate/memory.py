"""What an emulated BENCHLAB remembers and how it takes commands: name, fans, RGB, calibration, faults.

As the device: a command of the wrong length or with a wrong parameter is ignored and has no answer,
and STATUS tells, where the firmware has it, what became of the command before. Settings are in RAM;
STORE_CONFIG and STORE_CALIBRATION keep them, and a reset brings back what was kept.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from benchlab_otel import wire

_FANS = 9


@dataclass(frozen=True)
class Config:
    """The settings that STORE_CONFIG keeps, as the bytes of the wire."""

    name: bytes
    fans: dict[tuple[int, int], bytes]  # (profile, fan)
    rgb: dict[int, bytes]
    faults: bytes


class Refused(Exception):
    """A command that the firmware ignores; `status` is what STATUS tells then."""

    def __init__(self, status: int) -> None:
        super().__init__(wire.STATUS_NAMES[status])
        self.status = status


class Memory:
    """The state behind the commands that don't measure."""

    def __init__(self, layout: wire.Layout, name: str) -> None:
        self.layout = layout
        self.default = _default(layout, name)
        self.config = self.stored = self.default
        table = _calibration(layout)
        self.slots = dict.fromkeys(layout.slots.values(), table)
        self.calibration = table  # the one in force
        self.actions: list[bytes] = []
        self.status = wire.OK
        self._sizes = {name: dtype.itemsize for name, dtype in layout.structs.items()}
        self._commands: dict[int, Callable[[bytes], bytes]] = {
            wire.ACTION: self._action,
            wire.READ_NAME: lambda _: self.config.name,
            wire.WRITE_NAME: self._write_name,
            wire.READ_FAN: lambda a: self.config.fans[self._fan(a)],
            wire.WRITE_FAN: self._write_fan,
            wire.READ_RGB: lambda a: self.config.rgb[self._rgb(a)],
            wire.WRITE_RGB: self._write_rgb,
            wire.READ_CALIBRATION: lambda a: _bare(a) or self.calibration,
            wire.WRITE_CALIBRATION: self._write_calibration,
            wire.LOAD_CALIBRATION: self._load_calibration,
            wire.STORE_CALIBRATION: self._store_calibration,
            wire.READ_FAULT: lambda _: self.config.faults,
            wire.WRITE_FAULT: self._write_faults,
            wire.LOAD_CONFIG: lambda _: self._load_config(),
            wire.STORE_CONFIG: lambda _: self._store_config(),
            wire.READ_DEFAULT_CONFIG: lambda _: self._default_config(),
        }

    def size(self, request: bytes) -> int:
        """The length of the command that bytes begin with, 0 where it has an answer and so stands alone.

        A pty has no packets: a command without an answer and what follows it may come as one.
        """
        fan, rgb = self._sizes["FanConfigStruct"], self._sizes["RGBConfigStruct"]
        sizes = {wire.ACTION: 5, wire.WRITE_FAN: 3 + fan, wire.WRITE_RGB: 2 + rgb}
        sizes |= {wire.LOAD_CALIBRATION: 2, wire.STORE_CALIBRATION: 2}
        sizes |= {wire.LOAD_CONFIG: 1, wire.STORE_CONFIG: 1}
        sizes[wire.WRITE_FAULT] = 1 + self._sizes.get("FaultConfigStruct", 0)
        sizes[wire.WRITE_NAME] = request.find(b"\0", 1) + 1 or len(request)
        sizes[wire.WRITE_CALIBRATION] = self._calibration_size(request)
        return sizes.get(request[0], 0)

    def _calibration_size(self, request: bytes) -> int:
        if self.layout.whole_calibration:
            return 1 + self.layout.calibration_size
        offset = request[1] if len(request) > 1 else 0
        return min(len(request), wire.PACKET, 2 + max(0, self.layout.calibration_size - offset))

    def command(self, request: bytes) -> bytes:
        """The answer to a command, b"" where there is none."""
        opcode = request[0]
        if opcode not in self.layout.commands:
            self.status = wire.UNKNOWN_OPCODE
            return b""
        if opcode == wire.STATUS:
            return bytes([self.status])
        try:
            answer = self._commands[opcode](request[1:]) if opcode in self._commands else b""
            self.status = wire.OK
        except Refused as error:
            self.status = error.status
            return b""
        return answer

    def reset(self) -> None:
        """Back to what is kept."""
        self.config = self.stored
        self.calibration = self.slots[self.layout.slots["user"]]

    def _action(self, arguments: bytes) -> bytes:
        _length(arguments, 4)
        self.actions.append(arguments)
        return b""

    def _write_name(self, name: bytes) -> bytes:
        if len(name) > wire.NAME_SIZE:
            raise Refused(wire.BAD_LENGTH)
        self.config = replace(self.config, name=name.split(b"\0", 1)[0].ljust(wire.NAME_SIZE, b"\0"))
        return b""

    def _fan(self, arguments: bytes) -> tuple[int, int]:
        _length(arguments, 2)
        profile, fan = arguments
        if profile >= self.layout.fan_profiles or fan >= _FANS:
            raise Refused(wire.BAD_PARAMETER)
        return profile, fan

    def _write_fan(self, arguments: bytes) -> bytes:
        _length(arguments, 2 + self._sizes["FanConfigStruct"])
        self.config = replace(self.config, fans=self.config.fans | {self._fan(arguments[:2]): arguments[2:]})
        return b""

    def _rgb(self, arguments: bytes) -> int:
        _length(arguments, 1)
        if arguments[0] >= self.layout.rgb_profiles:
            raise Refused(wire.BAD_PARAMETER)
        return arguments[0]

    def _write_rgb(self, arguments: bytes) -> bytes:
        _length(arguments, 1 + self._sizes["RGBConfigStruct"])
        self.config = replace(self.config, rgb=self.config.rgb | {self._rgb(arguments[:1]): arguments[1:]})
        return b""

    def _write_calibration(self, arguments: bytes) -> bytes:
        if self.layout.whole_calibration:
            _length(arguments, self.layout.calibration_size)
            self.calibration = arguments
            return b""
        offset, data = arguments[0] if arguments else 0, arguments[1:]
        if not data or offset + len(data) > self.layout.calibration_size:
            raise Refused(wire.BAD_LENGTH)
        before = self.calibration
        self.calibration = before[:offset] + data + before[offset + len(data) :]
        return b""

    def _slot(self, arguments: bytes) -> int:
        _length(arguments, 1)
        if arguments[0] not in self.slots:
            raise Refused(wire.BAD_PARAMETER)
        return arguments[0]

    def _load_calibration(self, arguments: bytes) -> bytes:
        self.calibration = self.slots[self._slot(arguments)]
        return b""

    def _store_calibration(self, arguments: bytes) -> bytes:
        kept = wire.checksum(self.calibration).to_bytes(2, "little") + self.calibration[2:]
        self.slots[self._slot(arguments)] = self.calibration = kept
        return b""

    def _write_faults(self, arguments: bytes) -> bytes:
        _length(arguments, self._sizes.get("FaultConfigStruct", 0))
        self.config = replace(self.config, faults=arguments)
        return b""

    def _load_config(self) -> bytes:
        self.config = self.stored
        return b""

    def _store_config(self) -> bytes:
        self.stored = self.config
        return b""

    def _default_config(self) -> bytes:
        """A DeviceConfigStruct; nothing where the firmware's contract has none."""
        if "DeviceConfigStruct" not in self.layout.structs:
            return b""
        struct = np.zeros((), self.layout.structs["DeviceConfigStruct"])
        row = bytearray(struct.tobytes())
        fields = struct.dtype.fields
        assert fields is not None
        parts = {
            "FriendlyName": self.default.name,
            "FanProfile": b"".join(self.default.fans.values()),
            "RGBConfig": b"".join(self.default.rgb.values()),
            "FaultConfig": self.default.faults,
        }
        for name in fields:
            if name in parts:
                offset = fields[name][1]
                row[offset : offset + len(parts[name])] = parts[name]
        return bytes(row)


def _length(arguments: bytes, size: int) -> None:
    if len(arguments) != size:
        raise Refused(wire.BAD_LENGTH)


def _bare(arguments: bytes) -> bytes:
    _length(arguments, 0)
    return b""


def _default(layout: wire.Layout, name: str) -> Config:
    """Fans by their own curve of 20 % at 30 °C to 100 % at 70 °C, lights in a slow rainbow."""
    fan = np.zeros((), layout.structs["FanConfigStruct"])
    fan["Temp"], fan["Duty"], fan["RampStep"] = (300, 700), (20, 100), 1
    fan["FixedDuty"], fan["MinDuty"], fan["MaxDuty"] = 50, 20, 100
    rgb = np.zeros((), layout.structs["RGBConfigStruct"])
    rgb["Speed"] = 10
    faults = layout.structs.get("FaultConfigStruct")
    return Config(
        name=name.encode().ljust(wire.NAME_SIZE, b"\0"),
        fans={(p, f): fan.tobytes() for p in range(layout.fan_profiles) for f in range(_FANS)},
        rgb={p: rgb.tobytes() for p in range(layout.rgb_profiles)},
        faults=bytes(faults.itemsize) if faults else b"",
    )


def _calibration(layout: wire.Layout) -> bytes:
    """A table with its checksum: a volt's gain a little off, as a factory would find it."""
    table = np.zeros((), layout.structs["CalibrationStruct"])
    table["Vdd"]["Offset"], table["Vdd"]["GainOffset"] = 3, -12
    raw = table.tobytes()
    return wire.checksum(raw).to_bytes(2, "little") + raw[2:]
