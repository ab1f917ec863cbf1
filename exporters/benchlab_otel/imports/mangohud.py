"""MangoHud's CSV logs: frame times, and the readings that it shows beside them.

A row is a frame that ends at `elapsed` (ns since logging began) and took `frametime` (ms; in builds
until 2021 µs, told apart by `fps` beside it). With `log_interval` only some frames are logged; a note
says so. Logging began at the time in the file's name, local time; else the file has none.

Readings of the meter `mangohud`: domains `cpu` (cpu_power) and `gpu` (gpu_power), temperatures, loads
and clocks. MangoHud reads sensors less often than it logs: a reading is the row where a value changes,
taken some time since the row before. It writes 0 for what it can't read; a power or temperature of 0
is none.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import datetime

import numpy as np

from benchlab_otel.contract import POWER_PREFIX
from benchlab_otel.imports import table
from benchlab_otel.imports.capture import Block, Capture, Samples, Zero, ns
from benchlab_otel.imports.table import Rows
from benchlab_otel.model import COMPLETED, OUTCOMES, Float, Int

HINT = "a log of MangoHud, whose header begins with fps,frametime"
_NEEDED = ("fps", "frametime", "elapsed")
_LONGEST_MS = 3.6e6
_LONGEST_NS = 1e17
_HIGHEST = 1e9  # of any reading, whatever its unit
_STARTED = re.compile(r"(.*?)_?(\d{4}-\d\d-\d\d)_(\d\d)-(\d\d)-(\d\d)$")
_READINGS = {
    "cpu_power": f"{POWER_PREFIX}cpu",
    "gpu_power": f"{POWER_PREFIX}gpu",
    "cpu_temp": "hw.temperature.sensor.cpu",
    "gpu_temp": "hw.temperature.sensor.gpu",
    "cpu_load": "hw.utilization.sensor.cpu",
    "gpu_load": "hw.utilization.sensor.gpu",
    "cpu_mhz": "hw.frequency.sensor.cpu",
    "gpu_core_clock": "hw.frequency.sensor.gpu",
    "gpu_mem_clock": "hw.frequency.sensor.gpu_memory",
}
_NEVER_ZERO = frozenset(("cpu_power", "gpu_power", "cpu_temp", "gpu_temp"))


def detect(head: bytes) -> bool:
    """Whether a file with these first bytes is one."""
    lines = head[:4096].decode("utf-8", "replace").splitlines()
    return any(is_header(line) or line.startswith("os,cpu,gpu,ram,kernel") for line in lines)


def is_header(line: str) -> bool:
    """Whether a line is the header of the frames' table."""
    return {"fps", "frametime"} <= {cell.strip().lower() for cell in line.split(",")}


def read(capture: Capture) -> Iterator[Block | Samples]:
    """The frames and readings of a log. Raises FormatError, OSError."""
    found = table.open_table(capture, is_header, HINT, lambda cell: cell.strip().lower())
    if missing := [name for name in _NEEDED if name not in found.columns]:
        raise capture.error(found.header_line, f"expected the columns {', '.join(_NEEDED)}; no {missing[0]}")
    _told_by_name(capture)
    count, scale, sampled = 0, 0.0, 0
    before: Int | None = None
    last_values: Float | None = None
    for rows in table.read_rows(capture, found):
        fps, frametime, elapsed = (table.numbers(capture, rows, name) for name in _NEEDED)
        scale = scale or _to_ms(fps, frametime)
        limits = {"elapsed": (elapsed, _LONGEST_NS), "frametime": (frametime * scale, _LONGEST_MS)}
        good = table.usable(capture, rows, limits)
        if not good.any():
            continue
        end, length = elapsed[good].astype(np.int64), ns(frametime[good] * scale)
        sampled += int((np.diff(end) > 2 * length[1:]).sum())
        outcome = np.full(len(end), OUTCOMES.index(COMPLETED))
        yield Block(np.arange(count, count + len(end)), end - length, end, outcome, [])
        count += len(end)
        samples, last_values = _readings(capture, table.taken(rows, good), end, before, last_values)
        before = end[-1:]
        if samples is not None:
            yield samples
    if scale != 1.0 and count:
        capture.notes.append("frametime is in µs, as fps beside it says")
    if count and sampled > count // 2:
        capture.notes.append(
            "log_interval was set: only some frames are logged, so times between frames are not"
        )


def _told_by_name(capture: Capture) -> None:
    """MangoHud names a log after the program and the local time at which logging began."""
    found = _STARTED.fullmatch(capture.path.stem)
    capture.name = (found[1] if found else "") or capture.path.stem
    if not found:
        return
    try:
        moment = datetime.fromisoformat(f"{found[2]}T{found[3]}:{found[4]}:{found[5]}").astimezone()
        start_ns = int(moment.timestamp()) * 1_000_000_000
    except (ValueError, OverflowError, OSError):
        return
    capture.zero = Zero(start_ns, "the file's name, to the second")


def _to_ms(fps: Float, frametime: Float) -> float:
    """What frametime is to be multiplied with to be ms: 1, or 0.001 where it is in µs."""
    known = (fps > 0) & (frametime > 0)
    if not known.any():
        return 1.0
    ratio = float(np.median(frametime[known] * fps[known] / 1000.0))  # 1 where it is ms, 1000 where µs
    return 0.001 if ratio > 30 else 1.0


def _readings(
    capture: Capture, rows: Rows, end: Int, before: Int | None, last: Float | None
) -> tuple[Samples | None, Float | None]:
    """The rows in which a reading changed, taken since the row before; and the values of the last row."""
    columns = [name for name in _READINGS if name in rows]
    if not columns:
        return None, None
    values = np.stack([table.believable(capture, rows, name, _HIGHEST) for name in columns], axis=1)
    for i, name in enumerate(columns):
        if name in _NEVER_ZERO:
            values[values[:, i] == 0, i] = np.nan
    shown = np.nan_to_num(values, nan=-1.0)
    first = np.full((1, len(columns)), np.inf) if last is None else last
    changed = (np.diff(shown, axis=0, prepend=first) != 0).any(axis=1) & ~np.isnan(values).all(axis=1)
    if not changed.any():
        return None, shown[-1:]
    since = np.concatenate([end[:1] if before is None else before, end[:-1]])
    keys = tuple(_READINGS[name] for name in columns)
    begin = np.minimum(since, end)[changed]
    return Samples("mangohud", "other", begin, end[changed], keys, values[changed]), shown[-1:]
