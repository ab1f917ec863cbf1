"""Files of /sys that are read again and again: what hwmon, GPUs and power supplies have in common.

A file that can't be read or whose text makes no sense is an absent value: drivers answer so for a
sensor that is not wired. When no file at all can be read any more, the device is lost.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchlab_otel.model import Float, Int
from benchlab_otel.sources.reading import Batch, Device, Field, Reply, SourceError, columns
from benchlab_otel.timebase import anchor

_LONGEST_TEXT = 479  # more than any has (pp_dpm_sclk some 200), and what Python allocates fast
_ABSENT = float("nan")

# Sensors that are not wired say anything: 4.3 MW, -273 or 65262 °C have all been seen.
VOLTS, AMPERES, WATTS, DEGREES, RPM = (-60.0, 500.0), (-2e3, 2e3), (0.0, 1e5), (-60.0, 300.0), (0.0, 1e5)
ANY = (0.0, 1e19)
GATHERED_S = 1.0  # a step of a counter may have gathered for that much longer than between two reads
LOOK_EVERY_S = 1.0  # for devices that come and go, and at slow sensors


@dataclass(frozen=True, slots=True)
class Sensor:
    """One value: its files, and what their texts come to (`value` of as many bytes; ValueError: absent).

    A slow one is read less often, and has no place in samples.
    """

    field: Field
    files: tuple[Path, ...]
    value: Callable[..., float]
    slow: bool = False


def scaled(factor: float, limits: tuple[float, float] = ANY) -> Callable[..., float]:
    """The number in a text times `factor`; absent outside `limits`, or where a second text says fault."""

    def value(text: bytes, fault: bytes = b"0") -> float:
        number = float(text) * factor
        if not limits[0] <= number <= limits[1] or int(fault):
            raise ValueError(text)
        return number

    return value


def text(path: Path | str) -> str:
    """What a file says, "" where it can't be read."""
    try:
        return contents(path).decode(errors="replace").strip()
    except OSError:
        return ""


def contents(path: Path | str) -> bytes:
    """All bytes of a file, with half the calls into the kernel that `open` makes."""
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        found = b""
        while part := os.read(file, 1 << 16):
            found += part
        return found
    finally:
        os.close(file)


def place(folder: Path) -> str:
    """Where a device sits on its bus, which stays the same when kernels number differently.

    The nearest parent that is on a bus, such as `0000:01:00.0` or `coretemp.0`; else the folder's name.
    HID, I2C and SCSI number what they find as it comes, so there it is the place on the bus below, and on
    I2C and SCSI the address: `0000:00:1f.4-0051`, `0000:00:17.0-ata-3` (the port, as in udev's by-path),
    `0000:01:00.0-0:3:0` (channel, target, unit), `0000:00:14.0-port-1-0051` on the second adapter of several.
    """
    real = folder.resolve()
    addresses: list[str] = []
    for parent in (real, *real.parents):
        if (bus := _bus(parent)) and not _is_numbered(bus, parent.name):
            return "-".join((parent.name, *reversed(addresses)))
        addresses += _address(parent)
    return real.name


def _bus(folder: Path) -> str:
    """The bus that a device is on, "" where it is on none."""
    subsystem = folder / "subsystem"
    link = subsystem.readlink() if subsystem.is_symlink() else Path()
    return link.name if link.parent.name == "bus" else ""


_I2C = re.compile(r"\d+-([\da-f]{4})")  # adapter, address; a device that firmware declares has another name
_SCSI = re.compile(r"\d+:(\d+:\d+:\d+)")  # host, and what the host can tell apart
_CONTROLLER = re.compile(r"(i2c-|host)(\d+)")


def _is_numbered(bus: str, name: str) -> bool:
    """Whether a device is named by a number that the kernel gave it in the order of coming."""
    if bus == "i2c":
        return bool(_I2C.fullmatch(name) or _CONTROLLER.fullmatch(name))
    return bus in ("hid", "scsi")


def _address(folder: Path) -> list[str]:
    """What of a device's name stays the same: none, or one part of its place."""
    if found := _I2C.fullmatch(folder.name) or _SCSI.fullmatch(folder.name):
        return [found[1]] if found[1] != "0:0:0" else []  # the only one, on most hosts
    if port := text(folder / "ata_port" / folder.name / "port_no"):
        return [f"ata-{port}"]
    if found := _CONTROLLER.fullmatch(folder.name):
        lower, higher = _siblings(folder, found[1], int(found[2]))
        return [f"port-{lower}"] if lower or higher else []  # one driver numbers its own in the same order
    return []


def _siblings(folder: Path, kind: str, number: int) -> tuple[int, int]:
    """How many controllers of a kind there are beside one, with lower and with higher numbers."""
    found = (path.name.removeprefix(kind) for path in folder.parent.glob(f"{kind}*"))
    others = [int(other) for other in found if other.isdecimal()]
    return sum(other < number for other in others), sum(other > number for other in others)


class Listing:
    """The links in a folder of /sys/class, one a device, as they were when this was made."""

    def __init__(self, folder: Path) -> None:
        self.folder, self._links = folder, _links(folder)

    def has_changed(self) -> bool:
        """Whether a device came or went, also if one came back under its old name."""
        return _links(self.folder) != self._links


def _links(folder: Path) -> set[tuple[str, int]]:
    """Names and inodes: a device that comes back gets a new one. Empty where there is no folder."""
    try:
        with os.scandir(folder) as entries:
            return {(entry.name, entry.inode()) for entry in entries}
    except OSError:
        return set()


def is_sysfs(tree: Path) -> bool:
    """Whether a path is of the kernel's sysfs, wherever it is mounted: anything else is a fixture."""
    return is_mount_of(tree, "sysfs")


def is_mount_of(tree: Path, kind: str) -> bool:
    """Whether a path is on a file system of that kind."""
    device = tree.stat().st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    mounts = [line.split() for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    return any(m[2] == number and m[m.index("-") + 1] == kind for m in mounts)


class SensorReader:
    """Reads the files of sensors; those that can't be opened are left out.

    Counters begin at 0 when they are opened. SourceError "unreadable" where no file can be opened.
    `listing` is of what the sensors were found in, made before they were looked for.
    """

    def __init__(
        self,
        device: Device,
        sensors: Sequence[Sensor],
        slow_s: float = LOOK_EVERY_S,
        listing: Listing | None = None,
    ) -> None:
        self.device = device
        self._offset_ns = anchor().offset_ns
        self._listing, self._look_due = listing, 0
        self._slow_ns, self._slow_due = int(slow_s * 1e9), 0
        self._files: dict[Path, int] = {}
        there = [s for s in sensors if None not in map(self.keep_open, s.files)]
        if not self._files:
            raise SourceError("unreadable", f"{device.description}: no sensor can be read")
        self._fast = [s for s in there if not s.slow]
        self._slow = [s for s in there if s.slow]
        self._fast_texts = _Texts(self._fast, self._files)
        self._slow_texts = _Texts(self._slow, self._files)
        self._slow_values = np.empty(0)
        self._fields = [s.field for s in (*self._fast, *self._slow)]
        kinds = [s.field.metric and s.field.metric.kind for s in self._fast]
        self._counters = [i for i, kind in enumerate(kinds) if kind == "counter"]
        self._first = self._last = np.full(len(self._counters), np.nan)
        self._last_ns = np.zeros(len(self._counters), np.int64)

    def read(self) -> Reply:
        """All values, the slow ones only when it is time.

        SourceError "lost" when nothing can be read any more, and where a device came or went: then all are
        to be looked for again.
        """
        start = time.monotonic_ns()
        if start >= self._look_due:
            self._look()
            start = time.monotonic_ns()
        texts = self._fast_texts.read()
        end = time.monotonic_ns()
        if not any(texts) and self._fast:
            raise self._lost()
        return start + self._offset_ns, end + self._offset_ns, texts

    def _look(self) -> None:
        """What is done seldom: see which devices are there, and read the slow sensors."""
        if self._listing and self._listing.has_changed():
            raise SourceError("lost", f"{self._listing.folder}: devices came or went")
        is_slow_due = time.monotonic_ns() >= self._slow_due
        if is_slow_due:
            said = self._slow_texts.read()
            if not any(said) and not self._fast:
                raise self._lost()
            self._slow_values = self._slow_texts.values([said])[0]
        now = time.monotonic_ns()
        self._look_due = now + int(LOOK_EVERY_S * 1e9)
        if is_slow_due:
            self._slow_due = now + self._slow_ns

    def _lost(self) -> SourceError:
        return SourceError("lost", f"{self.device.description}: no sensor can be read any more")

    def decode(self, replies: Sequence[Reply]) -> Iterator[Batch]:
        """The values; SourceError where a counter of energy fell, or rose by what can't be."""
        start, end, texts = columns(replies)
        values = np.empty((len(replies), len(self._fields)))
        values[:, : len(self._fast)] = self._fast_texts.values(texts)
        values[:, len(self._fast) :] = self._slow_values  # they are for metrics: the last ones
        n, error = self._count_from_0(start, values) if self._counters else (len(values), None)
        if n:
            yield Batch(start[:n], end[:n], self._fields, values[:n])
        if error:
            raise error

    def close(self) -> None:
        """Closes the files."""
        for file in self._files.values():
            with suppress(OSError):
                os.close(file)
        self._files = {}

    def keep_open(self, path: Path) -> int | None:
        """Opens a file until `close`: its number, None where it can't be opened."""
        if path not in self._files:
            try:
                self._files[path] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            except OSError:
                return None
        return self._files[path]

    def _count_from_0(self, start: Int, values: Float) -> tuple[int, SourceError | None]:
        """Takes the first values off the counters, in place; how many rows are good, and why not the next."""
        for row in range(len(values)):
            now = values[row, self._counters]
            most = ((start[row] - self._last_ns) * 1e-9 + GATHERED_S) * WATTS[1]
            if (now < self._last).any():
                return row, SourceError("reset", f"{self.device.description}: a counter began again")
            if (now - self._last > most).any():
                what = f"{self.device.description}: energy rose by more than {WATTS[1]:g} W"
                return row, SourceError("implausible", what)
            self._last_ns = np.where(np.isnan(now), self._last_ns, start[row])
            self._last = np.where(np.isnan(now), self._last, now)
            self._first = np.where(np.isnan(self._first), now, self._first)
            values[row, self._counters] = now - self._first
        return len(values), None


class _Texts:
    """The files of some sensors: read each once, then make each sensor's value of its texts."""

    def __init__(self, sensors: Sequence[Sensor], files: dict[Path, int]) -> None:
        paths = list(dict.fromkeys(path for sensor in sensors for path in sensor.files))
        self._files = [files[path] for path in paths]
        self._sensors = [(s.value, [paths.index(path) for path in s.files]) for s in sensors]

    def read(self) -> list[bytes | None]:
        """The texts as they are now, None where a file can't be read."""
        texts: list[bytes | None] = []
        for file in self._files:
            try:
                texts.append(os.pread(file, _LONGEST_TEXT, 0))
            except OSError:
                texts.append(None)
        return texts

    def values(self, readings: Sequence[Sequence[bytes | None]]) -> Float:
        """One row for the texts of each reading, one column a sensor; NaN is absent."""
        columns = list(zip(*readings, strict=True))  # the texts of each file
        rows = [
            _values(value, len(readings), [columns[i] for i in indexes]) for value, indexes in self._sensors
        ]
        return np.array(rows, np.float64).reshape(len(rows), len(readings)).T


_Column = tuple[bytes | None, ...]  # what one file said at each reading


def _values(value: Callable[..., float], n: int, columns: list[_Column]) -> list[float]:
    """A sensor's values at n readings, each computed once: drivers refresh seldom."""
    if all(column.count(column[0]) == n for column in columns):
        return [_value(value, tuple(column[0] for column in columns))] * n
    readings = list(zip(*columns, strict=True))
    known = {texts: _value(value, texts) for texts in set(readings)}
    return [known[texts] for texts in readings]


def _value(value: Callable[..., float], texts: tuple[bytes | None, ...]) -> float:
    try:
        return _ABSENT if None in texts else value(*texts)
    except ValueError:
        return _ABSENT
