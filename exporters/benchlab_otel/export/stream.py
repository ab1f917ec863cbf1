"""A session as a stream: frames with their energies and readings, in memory that does not grow with it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from benchlab_otel.align.aligner import Aligned, Aligner, align, close
from benchlab_otel.align.readings import slice_of
from benchlab_otel.align.segments import (
    KEEP_NS,
    Segment,
    add_to_segment,
    finish_segment,
    forget_readings,
)
from benchlab_otel.archive.records import Fault
from benchlab_otel.archive.session import Session
from benchlab_otel.export.recorded import recorded_session
from benchlab_otel.export.recording import FOREVER_NS, session_spans
from benchlab_otel.model import Readings

SETTLED_NS = KEEP_NS // 2  # readings so much older than the newest span are given out


def stream(
    session: Session,
    faults: list[Fault],
    progress: Callable[[int], None] | None = None,
    pipeline: str | None = None,
) -> Iterator[Aligned | Readings]:
    """Blocks of frames, each with interpolated and conditioned energies, and the readings of each domain.

    Every frame comes once; so does every reading, but for those that come more than SETTLED_NS after
    later ones. Blocks of frames come a segment at a time, so readings are ahead of them; of a session
    that is `recorded` they have the energies of then. Use each block before the next: the aligner goes
    on with it. Where a `pipeline` is named only its frames come. What could not be read is noted in
    `faults`. Raises OSError where a file can't be opened and, at the end, ValueError where there is no
    such pipeline.
    """
    seen: dict[str, None] = {}
    for part in (_recorded if session.recorded else _aligned)(session, faults, progress):
        if isinstance(part, Readings):
            yield part
            continue
        seen[part.frames.pipeline] = None
        if pipeline in (None, part.frames.pipeline):
            yield part
    if pipeline is not None and pipeline not in seen:
        raise ValueError(f"no pipeline {pipeline!r} in it; there is {', '.join(sorted(seen)) or 'none'}")


def _aligned(
    session: Session, faults: list[Fault], progress: Callable[[int], None] | None
) -> Iterator[Aligned | Readings]:
    state, segment = Aligner(keep_ns=FOREVER_NS), Segment()  # a block of spans may be longer than a segment
    told: dict[tuple[str, str], int] = {}
    for spans in session_spans(session, faults, progress):
        blocks = align(state, spans)
        yield from _settled(state, told, state.assembly.watermark - SETTLED_NS)
        yield from add_to_segment(segment, state, blocks)
        forget_readings(state, segment)
    yield from add_to_segment(segment, state, close(state))
    yield from finish_segment(segment, state)
    yield from _settled(state, told, np.iinfo(np.int64).max)


def _recorded(
    session: Session, faults: list[Fault], progress: Callable[[int], None] | None
) -> Iterator[Aligned | Readings]:
    state = Aligner()
    told: dict[tuple[str, str], int] = {}
    for block in recorded_session(state, session, faults, progress):
        yield from _settled(state, told, state.assembly.watermark - SETTLED_NS)
        forget_readings(state, Segment())
        yield block
    yield from _settled(state, told, np.iinfo(np.int64).max)


def _settled(state: Aligner, told: dict[tuple[str, str], int], until: int) -> Iterator[Readings]:
    """The readings up to `until` that are later than those `told` before."""
    for key, readings in state.readings.items():
        first = int(np.searchsorted(readings.time, told.get(key, 0), "right"))
        last = int(np.searchsorted(readings.time, until))
        if last > first:
            told[key] = int(readings.time[last - 1])
            yield slice_of(readings, first, last)
