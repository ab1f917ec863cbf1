"""A run as CapFrameX's columns: a row for each frame but the first, whose end is second 0."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from benchlab_otel.align.marks import frame_moments, latency, stage_time
from benchlab_otel.contract import PRESENTED
from benchlab_otel.export.output import Array, Lazy
from benchlab_otel.export.recording import in_order
from benchlab_otel.model import COMPLETED, OUTCOMES, Bool, Float, Frames, Int, Run


@dataclass(frozen=True, slots=True)
class Options:
    """`pairs` of marks (`from:to`), the first one as PcLatency; `accelerators`: stages not on the CPU."""

    pairs: tuple[str, ...] = ()
    accelerators: tuple[str, ...] = ()


NO_OPTIONS = Options()


@dataclass(slots=True)
class Capture:
    """A run as CapFrameX sees it: rows are the frames but the first, `start` its TimeInSeconds."""

    run: Run
    start: float
    columns: dict[str, Lazy] = field(default_factory=dict)


def captures(runs: Sequence[Run], options: Options) -> Iterator[Capture]:
    """The runs in turn; TimeInSeconds goes on from one to the next."""
    start = 0.0
    for unordered in runs:
        run = in_order(unordered, frame_moments(unordered.frames))
        frames = run.frames
        if len(frames) < 2:
            raise ValueError(
                f"pipeline {frames.pipeline!r} has {len(frames)} frame(s) here; a capture needs two or more,"
                " since a frame time is the time between two of them"
            )
        yield Capture(run, start, _columns(frames, start, options))
        moments = frame_moments(frames)
        start += (int(moments[-1]) - int(moments[0])) / 1e9


def _columns(frames: Frames, start: float, options: Options) -> dict[str, Lazy]:
    """The arrays of CaptureData by name, each computed when it is written: they are large."""
    unknown = [s for s in options.accelerators if s not in frames.stage_names]
    if unknown:
        raise ValueError(
            f"pipeline {frames.pipeline!r} has no stage {unknown[0]!r};"
            f" it has {', '.join(frames.stage_names) or 'none'}"
        )
    for pair in options.pairs:
        latency(frames, pair)  # an unknown mark is found before anything is written
    rows = len(frames) - 1
    moments = frame_moments(frames)
    host = [s for s in frames.stage_names if s not in options.accelerators]

    def zeros() -> Array:
        return np.broadcast_to(0.0, rows)

    def no_mode() -> Array:
        return np.broadcast_to(0, rows)

    columns: dict[str, Lazy] = {
        "TimeInSeconds": lambda: np.round((moments[1:] - moments[0]) / 1e9 + start, 7),
        "MsBetweenPresents": lambda: np.round(np.diff(moments) / 1e6, 4),
        "MsInPresentAPI": lambda: _ms(_in_last_stage(frames)),
        "MsBetweenDisplayChange": lambda: np.round(_between_completed(frames) / 1e6, 4),
        "MsUntilRenderComplete": zeros,
        "MsUntilDisplayed": lambda: _ms(_until_displayed(frames)),
        "QPCTime": zeros,
        "PresentMode": no_mode,
        "AllowsTearing": no_mode,
        "SyncInterval": no_mode,
        "Dropped": lambda: ~completed(frames)[1:],
        "PcLatency": lambda: _ms(np.where(completed(frames), _pc_latency(frames, options), 0)),
        "AnimationError": zeros,
        "GpuActive": lambda: _ms(_time_in(frames, options.accelerators)),
        "CpuActive": lambda: _ms(_time_in(frames, host)),
    }
    return columns if moments is frames.end else columns | _of_presents(frames, options)


def _of_presents(frames: Frames, options: Options) -> dict[str, Lazy]:
    """What is known better of a game's frames, whose stages are those of `imports.presentmon`."""

    def since_present(mark: str) -> Lazy:
        return lambda: _ms(np.where(completed(frames), latency(frames, f"{PRESENTED}:{mark}")[0], 0))

    def time_in(stage: str) -> Lazy:
        return lambda: _ms(stage_time(frames, stage)[0])

    columns = {"MsUntilDisplayed": since_present("frame")}
    if "present" in frames.stage_names:
        columns["MsInPresentAPI"] = time_in("present")
    if "gpu" in frames.stage_names:
        columns["MsUntilRenderComplete"] = lambda: _ms(latency(frames, f"{PRESENTED}:gpu")[0])
        if not options.accelerators:
            columns |= {"GpuActive": time_in("gpu"), "CpuActive": time_in(PRESENTED)}
    return columns


def _ms(seconds: Float) -> Float:
    """Seconds of all frames to milliseconds of the rows."""
    return np.round(seconds[1:] * 1e3, 4)


def completed(frames: Frames) -> Bool:
    """Which frames completed."""
    return frames.outcome == OUTCOMES.index(COMPLETED)


def _between_completed(frames: Frames) -> Float:
    """Nanoseconds since the previous completed frame; 0 for those not completed, (n − 1,)."""
    out = np.zeros(len(frames))
    done = np.flatnonzero(completed(frames))
    if len(done):
        out[done] = np.maximum(np.diff(frames.end[done], prepend=frames.end[0]), 0)
    return out[1:]


def _pc_latency(frames: Frames, options: Options) -> Float:
    if not options.pairs:
        return (frames.end - frames.begin) / 1e9
    seconds, present = latency(frames, options.pairs[0])
    return np.where(present, seconds, 0)


def _time_in(frames: Frames, stages: Sequence[str]) -> Float:
    """Seconds that each frame spent in the stages together."""
    total = np.zeros(len(frames))
    for stage in stages:
        total += stage_time(frames, stage)[0]
    return total


def _in_last_stage(frames: Frames) -> Float:
    """Seconds (n,) in each completed frame's last stage."""
    frame, row = _last_stages(frames)
    return _of_completed(frames, frame, frames.stage_end[row] - frames.stage_begin[row])


def _until_displayed(frames: Frames) -> Float:
    """Seconds (n,) from the begin of each completed frame's last stage to its end."""
    frame, row = _last_stages(frames)
    return _of_completed(frames, frame, frames.end[frame] - frames.stage_begin[row])


def _of_completed(frames: Frames, frame: Int, nanoseconds: Int) -> Float:
    """Seconds (n,), 0 for the frames that have none or did not complete."""
    seconds = np.zeros(len(frames))
    seconds[frame] = nanoseconds / 1e9
    seconds[~completed(frames)] = 0
    return seconds


def _last_stages(frames: Frames) -> tuple[Int, Int]:
    """(frames that have stages, of each the row of the stage that ended last)."""
    owner, end = frames.stage_frame, frames.stage_end
    if not len(owner):
        return owner, owner
    last = np.append(np.flatnonzero(owner[1:] != owner[:-1]), len(owner) - 1)
    first = np.append(0, last[:-1] + 1)
    latest = np.maximum.reduceat(end, first)
    if (end[last] != latest).any():  # stages that run side by side
        rows = np.flatnonzero(end == np.repeat(latest, last - first + 1))
        last[np.searchsorted(last, rows)] = rows  # of several the one that began last
    return owner[last], last
