"""Puts every span on the session's time base.

Our own spans name the offset of their time base in the resource, so two of ours differ by a
constant that is known exactly. Foreign spans carry wall time; the hub measures how far the wall
clock stands from the time base and records it as `clock` spans, and foreign times are shifted by
the last value before them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from benchlab_otel.contract import CLOCK, CLOCK_WALL_OFFSET
from benchlab_otel.model import Spans
from benchlab_otel.timebase import CLOCK_ATTRIBUTE


@dataclass(slots=True)
class Clock:
    """`reference_ns` is the time base (Unix minus monotonic) that everything is put on, None until
    the first span of ours; `wall_offset_ns` the wall clock's distance from it, last known."""

    reference_ns: int | None = None
    wall_offset_ns: int = 0


def to_time_base(clock: Clock, spans: Spans) -> None:
    """Shifts the spans' times in place, and takes in what the block says of the clocks."""
    for i, resource in enumerate(spans.resources):
        offset = resource.get(CLOCK_ATTRIBUTE)
        if isinstance(offset, int) and clock.reference_ns is None:
            clock.reference_ns = offset
        rows = spans.resource == i
        if isinstance(offset, int):
            _learn_wall_offset(clock, spans, rows)
            shift = (clock.reference_ns or offset) - offset
        else:
            shift = -clock.wall_offset_ns
        if shift:
            spans.start[rows] += shift
            spans.end[rows] += shift


def _learn_wall_offset(clock: Clock, spans: Spans, rows: np.ndarray[tuple[int], np.dtype[np.bool_]]) -> None:
    column = spans.attributes.get(CLOCK_WALL_OFFSET)
    if column is None or CLOCK not in spans.names:
        return
    ours = rows[column.rows] & (spans.name[column.rows] == spans.names.index(CLOCK))
    if ours.any():
        clock.wall_offset_ns = int(column.values[ours][-1])
