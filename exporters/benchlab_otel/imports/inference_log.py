"""The operation log of a split CPU/iGPU inference program (slm-split): CSV, a row an operation.

A frame is one pass through the model: from an operation of layer -1 (the embedding) to the next. Each
operation is a stage `device/operation`, from its time less its duration to its time (Unix seconds, at
its end). A pass with a failed operation has failed. The texts of errors are not taken over.
The summary beside it (JSON) calls a share of packets "utilization"; notes say what share of the time
the operations take, and on which device.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from benchlab_otel.imports import table
from benchlab_otel.imports.capture import UNIX, Block, Capture, ns, ns_of_seconds
from benchlab_otel.imports.gather import Gathering, Interval
from benchlab_otel.imports.table import Rows
from benchlab_otel.model import COMPLETED, FAILED, Bool

HINT = "a log of operations, whose header has timestamp,device,…,duration_ms,…,layer_idx,operation,success"
_NEEDED = ("timestamp", "device", "duration_ms", "layer_idx", "operation", "success")
_LONGEST_MS = 3.6e6
_LATEST_S = 5e9


def detect(head: bytes) -> bool:
    """Whether a file with these first bytes is one."""
    return is_header(head[:4096].decode("utf-8", "replace").lstrip("\ufeff").split("\n")[0])


def is_header(line: str) -> bool:
    """Whether a line is the header of the table."""
    return {"timestamp", "duration_ms", "layer_idx"} <= {cell.strip() for cell in line.split(",")}


@dataclass(slots=True)
class _Pass:
    """The operations since the last embedding."""

    stages: list[Interval] = field(default_factory=list)
    failed: bool = False


@dataclass(slots=True)
class _Totals:
    """What the notes are made of; ns."""

    first: int = 1 << 62
    last: int = 0
    by_device: Counter[str] = field(default_factory=Counter)
    failed: int = 0
    before: int = 0


def read(capture: Capture) -> Iterator[Block]:
    """The passes of a log. Raises FormatError, OSError."""
    found = table.open_table(capture, is_header, HINT)
    if missing := [name for name in _NEEDED if name not in found.columns]:
        raise capture.error(found.header_line, f"expected the columns {', '.join(_NEEDED)}; no {missing[0]}")
    capture.zero, capture.name = UNIX, capture.path.stem
    gathering, totals = Gathering(), _Totals()
    current: _Pass | None = None
    count = 0
    for rows in table.read_rows(capture, found):
        for starts, failed, stage in _operations(capture, rows, totals):
            if starts:
                count += _finish(gathering, current, count)
                current = _Pass()
            if current is None:
                totals.before += 1
                continue
            current.stages.append(stage)
            current.failed |= failed
        yield from gathering.full()
    _finish(gathering, current, count)
    yield from gathering.rest()
    _tell(capture, totals)


def _operations(capture: Capture, rows: Rows, totals: _Totals) -> Iterator[tuple[bool, bool, Interval]]:
    """(whether a pass starts, whether it failed, the stage) of each operation that can be read."""
    time, duration, layer = (
        table.numbers(capture, rows, n) for n in ("timestamp", "duration_ms", "layer_idx")
    )
    good: Bool = table.usable(
        capture, rows, {"timestamp": (time, _LATEST_S), "duration_ms": (duration, _LONGEST_MS)}
    )
    good &= ~np.isnan(layer)
    rows = table.taken(rows, good)
    end = ns_of_seconds(time[good])
    begin = end - ns(duration[good])
    cells = zip(*(rows.cells[n] for n in ("device", "operation", "success")), strict=True)
    values = zip(rows.line, begin.tolist(), end.tolist(), (layer[good] == -1).tolist(), cells, strict=True)
    for line, first, last, starts, (device, operation, success) in values:
        if success not in ("True", "False") or not operation or first <= 0:
            capture.faults.add(
                line, f"expected an operation and success True or False, found {success[:20]!r}"
            )
            continue
        totals.first, totals.last = min(totals.first, first), max(totals.last, last)
        totals.by_device[device] += last - first
        totals.failed += success == "False"
        yield starts, success == "False", (f"{device}/{operation}", first, last)


def _finish(gathering: Gathering, ended: _Pass | None, number: int) -> int:
    """Adds a pass that is over; how many it adds."""
    if ended is None or not ended.stages:
        return 0
    begin, end = min(s[1] for s in ended.stages), max(s[2] for s in ended.stages)
    gathering.add(number, begin, end, ended.stages, FAILED if ended.failed else COMPLETED)
    return 1


def _tell(capture: Capture, totals: _Totals) -> None:
    if totals.last <= totals.first:
        return
    whole = totals.last - totals.first
    shares = ", ".join(f"{device} {used / whole:.1%}" for device, used in totals.by_device.most_common())
    together = sum(totals.by_device.values()) / whole
    capture.notes.append(f"the operations add up to {together:.1%} of the time: {shares}")
    if totals.failed:
        capture.notes.append(f"{totals.failed} operations failed; their passes have failed")
    if totals.before:
        capture.notes.append(f"{totals.before} operations ahead of the first embedding belong to no pass")
