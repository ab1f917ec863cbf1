"""The frames of all pipelines that one meter sees, as one table in seconds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchlab_otel.model import Float, Frames, Int

WHOLE_FRAME = "(frame)"  # the stage of a frame that has none


@dataclass(slots=True)
class Work:
    """`begin`, `end` (n,) s of the frames; stage rows (m,) with their `frame`, `stage` and times.

    `names` (pipeline, stage) of the stages, for each pipeline `WHOLE_FRAME` last. `frame_splits`,
    `row_splits` (pipelines + 1,) tell where each pipeline's rows begin; a pipeline's rows that stand
    for frames without stages come last.
    """

    begin: Float
    end: Float
    frame: Int
    stage: Int
    piece_begin: Float
    piece_end: Float
    names: list[tuple[str, str]]
    frame_splits: Int
    row_splits: Int


def work_of(frames: Sequence[Frames], origin_ns: int) -> Work:
    """All pipelines in one table, times in s from `origin_ns`; a frame without stages is its own stage."""
    names = names_of(frames)
    columns: list[tuple[Any, ...]] = []
    frame_splits, row_splits, named = [0], [0], 0
    for f in frames:
        bare = np.flatnonzero(np.bincount(f.stage_frame, minlength=len(f)) == 0)
        columns.append(
            (
                (f.begin - origin_ns) / 1e9,
                (f.end - origin_ns) / 1e9,
                np.concatenate([f.stage_frame, bare]) + frame_splits[-1],
                np.concatenate([f.stage, np.full(len(bare), len(f.stage_names))]) + named,
                (np.concatenate([f.stage_begin, f.begin[bare]]) - origin_ns) / 1e9,
                (np.concatenate([f.stage_end, f.end[bare]]) - origin_ns) / 1e9,
            )
        )
        named += len(f.stage_names) + 1
        frame_splits.append(frame_splits[-1] + len(f))
        row_splits.append(row_splits[-1] + len(f.stage_frame) + len(bare))
    empty = (np.zeros(0), np.zeros(0), np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0), np.zeros(0))
    begin, end, frame, stage, piece_begin, piece_end = (
        np.concatenate(parts) for parts in zip(empty, *columns, strict=True)
    )
    return Work(
        begin,
        end,
        frame,
        stage.astype(np.int64),
        piece_begin,
        piece_end,
        names,
        np.array(frame_splits),
        np.array(row_splits),
    )


def names_of(frames: Sequence[Frames]) -> list[tuple[str, str]]:
    """(pipeline, stage) of all stages, for each pipeline `WHOLE_FRAME` last."""
    return [(f.pipeline, name) for f in frames for name in (*f.stage_names, WHOLE_FRAME)]


def stages_of(work: Work) -> Int:
    """The stages that occur, ascending."""
    return np.flatnonzero(np.bincount(work.stage, minlength=len(work.names)))


def join_frames(blocks: list[Frames]) -> Frames:
    """One table of several of the same pipeline, in their order."""
    names: dict[str, int] = {}
    stages, owners = [], []
    base = 0
    for block in blocks:
        codes = np.array([names.setdefault(n, len(names)) for n in block.stage_names], np.int32)
        stages.append(codes[block.stage] if len(codes) else block.stage)
        owners.append(block.stage_frame + base)
        base += len(block)

    def joined(name: str) -> NDArray[Any]:
        return np.concatenate([getattr(b, name) for b in blocks])

    return replace(
        blocks[0],
        trace=joined("trace"),
        span=joined("span"),
        begin=joined("begin"),
        end=joined("end"),
        number=joined("number"),
        outcome=joined("outcome"),
        stage_frame=np.concatenate(owners),
        stage=np.concatenate(stages).astype(np.int32),
        stage_begin=joined("stage_begin"),
        stage_end=joined("stage_end"),
        stage_names=list(names),
        simulated=any(b.simulated for b in blocks),
    )
