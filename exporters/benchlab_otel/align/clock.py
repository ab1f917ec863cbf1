"""Puts every span on the session's time base.

Our own spans name the offset of their time base in the resource, so two of ours differ by a
constant that is known exactly. Foreign spans carry wall time; the hub measures how far the wall
clock stands from the time base and records it as `clock` spans, and foreign times are shifted by
the last value before them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchlab_otel.align.columns import integers
from benchlab_otel.contract import CLOCK, CLOCK_WALL_OFFSET
from benchlab_otel.model import Bool, Int, Spans
from benchlab_otel.timebase import CLOCK_ATTRIBUTE

_LIMIT = 1 << 62  # an offset of so much is none


@dataclass(slots=True)
class Clock:
    """`reference_ns` is the time base (Unix minus monotonic) that everything is put on, None until
    the first span of ours; `wall_offset_ns` the wall clock's distance from it, last known."""

    reference_ns: int | None = None
    wall_offset_ns: int = 0


def to_time_base(clock: Clock, spans: Spans) -> Bool:
    """Shifts the spans' times in place, and takes in what the block says of the clocks.

    Returns which spans (n,) carry the host's own time base: their times can be relied on.
    """
    ours = np.zeros(len(spans), np.bool_)
    for i, resource in enumerate(spans.resources):
        offset = _offset(resource)
        if offset is None:
            continue
        if clock.reference_ns is None:
            clock.reference_ns = offset
        rows = spans.resource == i
        ours |= rows
        _shift(spans, rows, np.int64(clock.reference_ns - offset))
    _shift(spans, ~ours, -_wall_offsets(clock, spans, ours))
    return ours


def _offset(resource: Mapping[str, Any]) -> int | None:
    offset = resource.get(CLOCK_ATTRIBUTE)
    if not isinstance(offset, int) or isinstance(offset, bool) or abs(offset) >= _LIMIT:
        return None
    return offset


def _shift(spans: Spans, rows: Bool, by: np.int64 | Int) -> None:
    moved = np.where(rows & (spans.start != 0), by, 0)  # a time that was not given stays so
    if moved.any():
        spans.start += moved
        spans.end += moved


def _wall_offsets(clock: Clock, spans: Spans, ours: Bool) -> Int:
    """The wall offset (n,) that was last recorded before each span."""
    offsets = np.full(len(spans), clock.wall_offset_ns, np.int64)
    if CLOCK not in spans.names:
        return offsets
    told = integers(spans, CLOCK_WALL_OFFSET, absent=_LIMIT, limit=_LIMIT - 1)
    rows = np.flatnonzero(ours & (spans.name == spans.names.index(CLOCK)) & (told != _LIMIT))
    for row in rows.tolist():
        clock.wall_offset_ns = int(told[row])
        offsets[row:] = clock.wall_offset_ns
    return offsets
