"""A session read back: its runs, aligned by the same code as live."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np

from benchlab_otel.align.aligner import Aligned, Aligner, align, close, join_frames
from benchlab_otel.archive.reader import read_spans
from benchlab_otel.archive.records import Fault
from benchlab_otel.archive.session import Session
from benchlab_otel.model import FrameEnergy, Frames, Readings, Run

FOREVER_NS = 1 << 62


def load_runs(
    session: Session, faults: list[Fault], progress: Callable[[int], None] | None = None
) -> list[Run]:
    """One run for each pipeline of each service, in order of appearance; [] for an empty session.

    What could not be read is noted in `faults`. Raises OSError where a file can't be opened.
    """
    state = Aligner(keep_ns=FOREVER_NS)
    parts: dict[tuple[str, str], list[Aligned]] = {}
    for block in align_session(state, session, faults, progress):
        without = replace(block, readings=[])  # else each block would keep its own copy of all of them
        parts.setdefault((block.frames.service, block.frames.pipeline), []).append(without)
    readings = list(state.readings.values())
    return [_run(parts.pop(key), readings) for key in list(parts)]


def align_session(
    state: Aligner, session: Session, faults: list[Fault], progress: Callable[[int], None] | None = None
) -> Iterator[Aligned]:
    """The session's frames with their energy, block by block; memory does not grow with its length."""
    for spans in read_spans(session.traces, faults, progress=progress):
        yield from align(state, spans)
    yield from close(state)


def _run(blocks: list[Aligned], readings: list[Readings]) -> Run:
    frames = join_frames([b.frames for b in blocks])
    energy = [_energy(blocks, series) for series in readings]
    run = Run(frames, readings, [e for e in energy if e is not None])
    return _in_order(run)


def _energy(blocks: list[Aligned], series: Readings) -> FrameEnergy | None:
    """The frames' energy from one series, NaN in blocks that it does not reach; None if it reaches none."""
    found = [_of(block, series) for block in blocks]
    one = next((e for e in found if e is not None), None)
    if one is None:
        return None
    sizes = [len(b.frames) for b in blocks]
    return FrameEnergy(
        one.meter,
        one.domain,
        one.method,
        np.concatenate([e.energy if e else np.full(n, np.nan) for e, n in zip(found, sizes, strict=True)]),
        np.concatenate(
            [e.uncertainty if e else np.full(n, np.nan) for e, n in zip(found, sizes, strict=True)]
        ),
        np.concatenate([e.first if e else np.full(n, -1) for e, n in zip(found, sizes, strict=True)]),
        np.concatenate([e.last if e else np.full(n, -1) for e, n in zip(found, sizes, strict=True)]),
        series.simulated,
    )


def _of(block: Aligned, series: Readings) -> FrameEnergy | None:
    return next(
        (e for e in block.energy if (e.meter, e.domain) == (series.meter, series.domain)),
        None,
    )


def _in_order(run: Run) -> Run:
    """Frames by their end: a frame that arrived very late stands in a later block."""
    frames = run.frames
    if (np.diff(frames.end) >= 0).all():
        return run
    order = np.argsort(frames.end, kind="stable")
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    owner = rank[frames.stage_frame]
    by_frame = np.argsort(owner, kind="stable")
    ordered: Frames = replace(
        frames,
        trace=frames.trace[order],
        span=frames.span[order],
        begin=frames.begin[order],
        end=frames.end[order],
        number=frames.number[order],
        outcome=frames.outcome[order],
        stage_frame=owner[by_frame],
        stage=frames.stage[by_frame],
        stage_begin=frames.stage_begin[by_frame],
        stage_end=frames.stage_end[by_frame],
    )
    energy = [
        replace(
            e,
            energy=e.energy[order],
            uncertainty=e.uncertainty[order],
            first=e.first[order],
            last=e.last[order],
        )
        for e in run.energy
    ]
    return Run(ordered, run.readings, energy)
