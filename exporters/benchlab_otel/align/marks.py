"""The instants of marks, read from the stages of frames.

A stage ends at the mark it is named after. So mark `encoded` is the end of stage `encoded`;
`encoded.begin` is that stage's begin; the frame's first mark, and `frame.begin`, are the frame's
begin, and `frame` is its end. Where a frame passed a stage more than once, its begin is the first
and its end the last.
"""

from __future__ import annotations

import numpy as np

from benchlab_otel.contract import PRESENTED
from benchlab_otel.model import Bool, Float, Frames, Int

BEGIN = ".begin"


class UnknownMark(ValueError):
    """No frame of the pipeline has such a mark; the message lists those there are."""


def mark_names(frames: Frames) -> list[str]:
    """The marks of a pipeline by name, without the `.begin` of each stage."""
    first = [frames.first_mark] if frames.first_mark else []
    return [*first, *(s for s in frames.stage_names if s != frames.first_mark), "frame"]


def mark_times(frames: Frames, mark: str) -> tuple[Int, Bool]:
    """(times (n,) int64 ns, which of the n frames have the mark); a time without the mark is 0.

    Raises UnknownMark.
    """
    if mark in frames.stage_names:
        return _extreme(frames, mark, frames.stage_end, first=False)
    stage = mark.removesuffix(BEGIN)
    if stage != mark and stage in frames.stage_names:
        return _extreme(frames, stage, frames.stage_begin, first=True)
    everywhere = np.ones(len(frames), np.bool_)
    if mark in (frames.first_mark or "frame.begin", "frame.begin"):
        return frames.begin, everywhere
    if mark == "frame":
        return frames.end, everywhere
    raise UnknownMark(
        f"pipeline {frames.pipeline!r} has no mark {mark!r}; it has {', '.join(mark_names(frames))}"
        f" and, for the begin of a stage, {BEGIN} after its name"
    )


def latency(frames: Frames, pair: str) -> tuple[Float, Bool]:
    """(seconds (n,) float64 from the first to the second mark of `from:to`, which frames have both).

    Raises UnknownMark, and ValueError for what is no pair.
    """
    begin_mark, colon, end_mark = pair.partition(":")
    if not (colon and begin_mark and end_mark):
        raise ValueError(f"{pair!r} is no pair of marks: write from:to, such as ingress:display")
    begin, has_begin = mark_times(frames, begin_mark)
    end, has_end = mark_times(frames, end_mark)
    both = has_begin & has_end
    return np.where(both, end - begin, 0) / 1e9, both


def frame_moments(frames: Frames) -> Int:
    """(n,) int64 ns between which frame times are counted: where each frame was `presented`, as games'
    are, or its end where not all frames have that mark."""
    if PRESENTED in frames.stage_names:
        times, present = mark_times(frames, PRESENTED)
        if present.all():
            return times
    return frames.end


def stage_time(frames: Frames, stage: str) -> tuple[Float, Bool]:
    """(seconds (n,) float64 spent in the stage, all passes together, which frames passed it)."""
    rows = np.flatnonzero(frames.stage == frames.stage_names.index(stage))
    frame = frames.stage_frame[rows]
    spent = (frames.stage_end[rows] - frames.stage_begin[rows]) / 1e9
    present = np.zeros(len(frames), np.bool_)
    present[frame] = True
    seconds: Float = np.bincount(frame, spent, minlength=len(frames)).astype(np.float64, copy=False)
    return seconds, present


def _extreme(frames: Frames, stage: str, times: Int, first: bool) -> tuple[Int, Bool]:
    """The first or last of the stage's times in each frame."""
    rows = np.flatnonzero(frames.stage == frames.stage_names.index(stage))
    frame = frames.stage_frame[rows]  # ascending
    starts = np.flatnonzero(np.diff(frame, prepend=-1))
    out, present = np.zeros(len(frames), np.int64), np.zeros(len(frames), np.bool_)
    if len(starts):
        reduce = np.minimum if first else np.maximum
        out[frame[starts]] = reduce.reduceat(times[rows], starts)
        present[frame[starts]] = True
    return out, present
