"""Offline: aligned blocks in, the same blocks with their conditioned figures out, a segment at a time.

Memory is that of a segment, whatever the archive's length. Neighbouring segments overlap by
MARGIN_NS on both sides, so that no frame is conditioned without the frames around it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np

from benchlab_otel.align.aligner import Aligned, Aligner
from benchlab_otel.align.attribution.attribute import PipelineEnergy
from benchlab_otel.align.attribution.meters import Windows, attribute_all
from benchlab_otel.align.attribution.work import join_frames
from benchlab_otel.align.interpolate import LOOK_BACK
from benchlab_otel.align.readings import slice_of

SEGMENT_NS = 900_000_000_000
MARGIN_NS = 5_000_000_000
KEEP_NS = SEGMENT_NS + 12 * MARGIN_NS  # of the readings, for frames that may come


@dataclass(slots=True)
class Segment:
    """The blocks of the current stretch; the first `given` of them are out and only lend context.

    All frames that ended after `since` are there, so its readings begin there.
    """

    blocks: list[Aligned] = field(default_factory=list)
    given: int = 0
    since: int = 0
    length_ns: int = SEGMENT_NS
    windows: Windows = field(default_factory=dict)


def add_to_segment(state: Segment, aligner: Aligner, blocks: list[Aligned]) -> Iterator[Aligned]:
    """Takes in blocks in order of time; gives out a segment's when it is full."""
    state.blocks += blocks
    new = state.blocks[state.given :]
    if new and _end(new[-1]) - _end(new[0]) > state.length_ns:
        yield from finish_segment(state, aligner, _end(state.blocks[-1]) - MARGIN_NS)


def finish_segment(
    state: Segment, aligner: Aligner, until: int = np.iinfo(np.int64).max
) -> Iterator[Aligned]:
    """Attributes what is there and gives out the blocks that end by `until`; the last ones stay."""
    if not state.blocks:
        return
    groups: dict[tuple[str, str], list[Aligned]] = {}
    for block in state.blocks:
        groups.setdefault((block.frames.service, block.frames.pipeline), []).append(block)
    frames = [join_frames([b.frames for b in group]) for group in groups.values()]
    skipped = {key: int(np.searchsorted(r.time, state.since)) for key, r in aligner.readings.items()}
    readings = [slice_of(r, skipped[key], len(r)) for key, r in aligner.readings.items()]
    found = {(a.meter, a.domain): a for a in attribute_all(frames, readings, state.windows)}
    for place, group in enumerate(groups.values()):
        _hand_back(group, {key: _later(a.pipelines[place], skipped[key]) for key, a in found.items()})
    out = [b for b in state.blocks[state.given :] if _end(b) <= until]
    left = [b for b in state.blocks[state.given :] if _end(b) > until]
    state.since = min([until, *(int(b.frames.begin.min()) for b in left)]) - MARGIN_NS
    context = [b for b in (*state.blocks[: state.given], *out) if _end(b) > state.since]
    state.blocks, state.given = context + left, len(context)
    yield from out


def forget_readings(aligner: Aligner, state: Segment) -> None:
    """Lets go of the readings that nothing needs any more: no frame of the segment, none that may come.

    For an aligner that forgets nothing by itself: a block of spans may be longer than a segment.
    """
    needed = [int(block.frames.begin.min()) for block in state.blocks[:1]]
    oldest = min([aligner.assembly.watermark - KEEP_NS, *(begin - MARGIN_NS for begin in needed)])
    for series in aligner.series.values():
        if len(series.readings) and series.readings.time[len(series.readings) // 2] < oldest:
            series.forget(oldest, keep_before=2 * LOOK_BACK)


def _end(block: Aligned) -> int:
    return int(block.frames.end[-1])


def _later(figures: PipelineEnergy, skipped: int) -> PipelineEnergy:
    """The figures with rows of all the readings, of which so many had been left out."""
    first, last = (np.where(rows < 0, -1, rows + skipped) for rows in (figures.first, figures.last))
    return replace(figures, first=first, last=last)


def _hand_back(group: list[Aligned], by_domain: dict[tuple[str, str], PipelineEnergy]) -> None:
    """Gives each block of a pipeline its rows of the pipeline's figures."""
    frame = stage = 0
    for block in group:
        n, m = len(block.frames), len(block.frames.stage_frame)
        block.conditioned = [
            _rows(by_domain[e.meter, e.domain], slice(frame, frame + n), slice(stage, stage + m))
            for e in block.energy
        ]
        frame, stage = frame + n, stage + m


def _rows(figures: PipelineEnergy, frames: slice, stages: slice) -> PipelineEnergy:
    return replace(
        figures,
        own=figures.own[frames],
        own_uncertainty=figures.own_uncertainty[frames],
        shared=figures.shared[frames],
        shared_uncertainty=figures.shared_uncertainty[frames],
        energy=figures.energy[frames],
        energy_uncertainty=figures.energy_uncertainty[frames],
        stage=figures.stage[stages],
        stage_uncertainty=figures.stage_uncertainty[stages],
        first=figures.first[frames],
        last=figures.last[frames],
    )
