"""The join in time: frames and readings in, each frame with its energy out.

A pure function of the sequence of spans: a live run, which feeds blocks as they arrive, and its
archive, read later, give the same figures. A frame waits until every meter that is alive has a
reading past its end, at most `meter_wait_ns` of event time.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from benchlab_otel.align.clock import Clock, to_time_base
from benchlab_otel.align.frames import Assembly, assemble, finish
from benchlab_otel.align.interpolate import LOOK_BACK, InFlight, frame_energy, in_flight_share
from benchlab_otel.align.readings import Key, append, extract, since, slice_of
from benchlab_otel.model import Float, FrameEnergy, Frames, Readings, Spans

KEEP_NS = 60_000_000_000  # readings are kept this long: the longest frame that gets its energy


@dataclass(slots=True)
class Aligned:
    """Frames of one pipeline with their energy; `readings[i]` is what `energy[i]` came from."""

    frames: Frames
    energy: list[FrameEnergy]
    readings: list[Readings]


@dataclass(slots=True)
class Aligner:
    """What the aligner knows between two blocks. Bounded: it grows with rates, not with time."""

    lateness_ns: int = 500_000_000
    meter_wait_ns: int = 2_000_000_000
    keep_ns: int = KEEP_NS
    clock: Clock = field(default_factory=Clock)
    assembly: Assembly = field(init=False)
    readings: dict[Key, Readings] = field(default_factory=dict)
    waiting: list[Frames] = field(default_factory=list)
    in_flight: dict[tuple[str, str], InFlight] = field(default_factory=dict)
    late_readings: int = 0

    def __post_init__(self) -> None:
        self.assembly = Assembly(self.lateness_ns)


def align(state: Aligner, spans: Spans) -> list[Aligned]:
    """Takes in a block of spans (its times are shifted in place); returns the frames that are done."""
    to_time_base(state.clock, spans)
    for new in extract(spans):
        key = (new.meter, new.domain)
        state.readings[key], late = append(state.readings.get(key), new)
        state.late_readings += late
    state.waiting += assemble(state.assembly, spans)
    out = _ready(state, _horizon(state))
    _forget(state)
    return out


def close(state: Aligner) -> list[Aligned]:
    """Everything that still waits, at the end of the data."""
    state.waiting += finish(state.assembly)
    return _ready(state, np.iinfo(np.int64).max)


def _horizon(state: Aligner) -> int:
    """Frames that ended before this can be aligned: all living meters are past it, or it is long ago."""
    patience = state.assembly.watermark - state.meter_wait_ns
    covered = [int(r.time[-1]) - r.window_ns // 2 for r in state.readings.values() if len(r)]
    alive = [time for time in covered if time > patience]
    return max(patience, min(alive, default=patience))


def _ready(state: Aligner, horizon: int) -> list[Aligned]:
    out, waiting = [], []
    for frames in state.waiting:
        count = int(np.searchsorted(frames.end, horizon, side="right"))
        if count:
            out.append(_with_energy(state, part(frames, 0, count)))
        if count < len(frames):
            waiting.append(part(frames, count, len(frames)))
    state.waiting = waiting
    return out


def _with_energy(state: Aligner, frames: Frames) -> Aligned:
    series = list(state.readings.values())
    key = (frames.service, frames.pipeline)
    share, state.in_flight[key] = in_flight_share(frames.begin, frames.end, state.in_flight.get(key))
    energy = [_around(r, frames, share) for r in series]
    known = [i for i, e in enumerate(energy) if np.isfinite(e.energy).any()]
    return Aligned(frames, [energy[i] for i in known], [series[i] for i in known])


def _around(readings: Readings, frames: Frames, share: Float) -> FrameEnergy:
    """The frames' energy from the stretch of readings around them, so that cost follows the frames.

    The stretch is the same whether or not later readings are there yet, and so are the figures.
    """
    half = readings.window_ns // 2
    first = int(np.searchsorted(readings.time, frames.begin.min() + half)) - 2 * LOOK_BACK
    last = int(np.searchsorted(readings.time, frames.end.max() + half, side="right")) + 1
    first = max(0, first)
    energy = frame_energy(slice_of(readings, first, last), frames.begin, frames.end, share)
    for rows in (energy.first, energy.last):
        rows[rows >= 0] += first
    return energy


def _forget(state: Aligner) -> None:
    oldest = min([state.assembly.watermark - state.keep_ns, *(int(f.begin.min()) for f in state.waiting)])
    for key, readings in state.readings.items():
        if len(readings) and readings.time[len(readings) // 2] < oldest:
            state.readings[key] = since(readings, oldest, keep_before=2 * LOOK_BACK)


def part(frames: Frames, first: int, last: int) -> Frames:
    """Frames `first` to `last` (exclusive) with their stages."""
    a, b = np.searchsorted(frames.stage_frame, [first, last])
    return Frames(
        pipeline=frames.pipeline,
        trace=frames.trace[first:last],
        span=frames.span[first:last],
        begin=frames.begin[first:last],
        end=frames.end[first:last],
        number=frames.number[first:last],
        outcome=frames.outcome[first:last],
        stage_frame=frames.stage_frame[a:b] - first,
        stage=frames.stage[a:b],
        stage_begin=frames.stage_begin[a:b],
        stage_end=frames.stage_end[a:b],
        stage_names=frames.stage_names,
        simulated=frames.simulated,
        service=frames.service,
        first_mark=frames.first_mark,
    )
