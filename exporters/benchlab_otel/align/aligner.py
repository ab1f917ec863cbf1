"""The join in time: frames and readings in, each frame with its energy out.

A pure function of the sequence of spans: a live run, which feeds blocks as they arrive, and its
archive, read later, give the same figures. A frame waits until every meter that is alive has a
reading past its end, at most `meter_wait_ns` of event time, and `no_meter_wait_ns` where none is alive.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from benchlab_otel.align.attribution.attribute import PipelineEnergy
from benchlab_otel.align.clock import Clock, to_time_base
from benchlab_otel.align.frames import Assembly, assemble, finish
from benchlab_otel.align.interpolate import LOOK_BACK, InFlight, frame_energy, in_flight_share
from benchlab_otel.align.readings import Key, Series, extract, slice_of
from benchlab_otel.model import Float, FrameEnergy, Frames, Readings, Spans

KEEP_NS = 60_000_000_000  # readings are kept this long: the longest frame that gets its energy


@dataclass(slots=True)
class Aligned:
    """Frames of one pipeline with their energy.

    `readings[i]` is what `energy[i]` came from and `domains[i]` its name in the session: the domain,
    with `@meter` for a meter that came after another one with the same domain. `conditioned` is empty
    or has, for each domain, what attribution says of the frames and stages.
    """

    frames: Frames
    energy: list[FrameEnergy]
    readings: list[Readings]
    domains: list[str]
    conditioned: list[PipelineEnergy | None] = field(default_factory=list)


@dataclass(slots=True)
class Aligner:
    """What the aligner knows between two blocks. Bounded: it grows with rates, not with time."""

    lateness_ns: int = 300_000_000
    meter_wait_ns: int = 3_000_000_000  # two readings at 1 Hz may lie 2 s apart, and come late
    no_meter_wait_ns: int = 2_000_000_000
    keep_ns: int = KEEP_NS
    clock: Clock = field(default_factory=Clock)
    assembly: Assembly = field(init=False)
    series: dict[Key, Series] = field(default_factory=dict)
    completed: list[Frames] = field(default_factory=list)  # by the last block
    waiting: list[Frames] = field(default_factory=list)
    in_flight: dict[tuple[str, str], InFlight] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.assembly = Assembly(self.lateness_ns)

    @property
    def readings(self) -> dict[tuple[str, str], Readings]:
        """The readings of each meter and domain; of what a meter gives both ways the counter's."""
        kinds = sorted(self.series, key=lambda key: key[2] == "energy")
        chosen = {key[:2]: self.series[key].readings for key in kinds}
        return {key[:2]: chosen[key[:2]] for key in self.series}

    @property
    def late_readings(self) -> int:
        """Readings that came after a later one of the same meter."""
        return sum(series.late for series in self.series.values())


def align(state: Aligner, spans: Spans) -> list[Aligned]:
    """Takes in a block of spans (its times are shifted in place); returns the frames that are done."""
    state.completed = take_in(state, spans)
    state.waiting += state.completed
    out = _ready(state, covered_until(state))
    _forget(state)
    return out


def take_in(state: Aligner, spans: Spans) -> list[Frames]:
    """Takes in a block's readings; returns the frames that are complete, which are yet without energy."""
    ours = to_time_base(state.clock, spans)
    for new in extract(spans):
        key = (new.meter, new.domain, new.kind)
        if key in state.series:
            state.series[key].append(new)
        else:
            state.series[key] = Series(new)
    return assemble(state.assembly, spans, ours)


def close(state: Aligner) -> list[Aligned]:
    """Everything that still waits, at the end of the data."""
    state.completed = finish(state.assembly)
    state.waiting += state.completed
    return _ready(state, np.iinfo(np.int64).max)


def covered_until(state: Aligner) -> int:
    """Frames that ended before this can be aligned: all living meters are past it, or it is long ago."""
    silent = state.assembly.watermark - state.meter_wait_ns
    covered = [int(r.time[-1]) - (r.window_ns or 0) // 2 for r in state.readings.values() if len(r)]
    alive = [time for time in covered if time > silent]
    return min(alive, default=state.assembly.watermark - state.no_meter_wait_ns)


def _ready(state: Aligner, horizon: int) -> list[Aligned]:
    out, waiting = [], []
    series = state.readings if state.waiting else {}
    for frames in state.waiting:
        count = int(np.searchsorted(frames.end, horizon, side="right"))
        if count:
            out.append(_with_energy(state, part(frames, 0, count), series))
        if count < len(frames):
            waiting.append(part(frames, count, len(frames)))
    state.waiting = waiting
    return out


def _with_energy(state: Aligner, frames: Frames, series: dict[tuple[str, str], Readings]) -> Aligned:
    key = (frames.service, frames.pipeline)
    share, state.in_flight[key] = in_flight_share(frames.begin, frames.end, state.in_flight.get(key))
    taken: set[str] = set()
    out = Aligned(frames, [], [], [])
    for (meter, domain), readings in series.items():
        name = f"{domain}@{meter}" if domain in taken else domain
        taken.add(domain)
        energy = _around(readings, frames, share)
        if np.isfinite(energy.energy).any():
            out.energy.append(energy)
            out.readings.append(readings)
            out.domains.append(name)
    return out


def _around(readings: Readings, frames: Frames, share: Float) -> FrameEnergy:
    """The frames' energy from the stretch of readings around them, so that cost follows the frames.

    The stretch is the same whether or not later readings are there yet, and so are the figures.
    """
    half = (readings.window_ns or 0) // 2
    first = int(np.searchsorted(readings.time, frames.begin.min() + half)) - 2 * LOOK_BACK
    last = int(np.searchsorted(readings.time, frames.end.max() + half, side="right")) + 1
    first = max(0, first)
    energy = frame_energy(slice_of(readings, first, last), frames.begin, frames.end, share)
    for rows in (energy.first, energy.last):
        rows[rows >= 0] += first
    return energy


def _forget(state: Aligner) -> None:
    oldest = min([state.assembly.watermark - state.keep_ns, *(int(f.begin.min()) for f in state.waiting)])
    for series in state.series.values():
        time = series.readings.time
        if len(time) > 4 * LOOK_BACK and time[len(time) // 2] < oldest:
            series.forget(oldest, keep_before=2 * LOOK_BACK)


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
