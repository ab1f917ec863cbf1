"""Live frames with their interpolated energy in, the same frames with their conditioned figures out.

Each domain of each meter is a stream of its own (`stream`). A frame waits until all streams that are
alive have its figures, at most `wait_ns` of event time once they have a fit, and `first_fit_ns` for the
first one; frames that have none by then go on with what there is. Nobody waits for a stream that has no
fit so long after its first reading: its meter's window can't be found, say. The meter's lag and window
are looked for once a meter, on its `system` domain or the first one it has, and used for its other
domains.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace

import numpy as np

from benchlab_otel.align.aligner import Aligned, Aligner, covered_until
from benchlab_otel.align.attribution.attribute import Attribution, PipelineEnergy, Settings
from benchlab_otel.align.attribution.stream import State, advance
from benchlab_otel.align.frames import frame_key
from benchlab_otel.align.readings import slice_of
from benchlab_otel.model import Frames, Readings

Domain = tuple[str, str]  # meter, domain

STEP_NS = 300_000_000  # streams advance when this much more has been read
STAGE_FIELDS = ("stage", "stage_uncertainty")


Figures = dict[int, tuple[PipelineEnergy, int, int, int]]  # frame's key: (piece, row, its stage rows)


@dataclass(slots=True)
class Stream:
    """One domain of one meter: its state, what it has been fed up to, and what it gave out.

    `lead` is the domain of the same meter whose window counts, `begun_ns` when the first reading came.
    """

    state: State
    lead: Domain
    begun_ns: int
    fed_ns: int = 0
    pending: list[Frames] = field(default_factory=list)
    figures: Figures = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Waiting:
    """A block whose figures are not complete, with the keys of its frames."""

    block: Aligned
    keys: list[int]


@dataclass(slots=True)
class Conditioner:
    """What waits between the aligner and what goes out; bounded as the streams are."""

    wait_ns: int = 2_000_000_000
    first_fit_ns: int = 15_000_000_000
    streams: dict[Domain, Stream] = field(default_factory=dict)
    waiting: list[Waiting] = field(default_factory=list)
    wanted: set[int] = field(default_factory=set)  # keys of the frames that wait

    @property
    def summaries(self) -> list[Attribution]:
        """Each domain's newest fit."""
        return [s.state.summary for s in self.streams.values() if s.state.summary is not None]


def condition_live(state: Conditioner, aligner: Aligner, aligned: list[Aligned]) -> list[Aligned]:
    """Takes in what the aligner gave out; returns the frames whose figures are complete."""
    readings = aligner.readings
    for domain, series in readings.items():
        if domain not in state.streams and len(series):
            state.streams[domain] = _stream(state, domain, series)
    new = [Waiting(b, frame_key(b.frames.trace, b.frames.span).tolist()) for b in aligned]
    state.waiting += new
    state.wanted.update(key for one in new for key in one.keys)
    for stream in state.streams.values():
        stream.pending += [block.frames for block in aligned]
    complete = min(aligner.assembly.watermark - aligner.lateness_ns, covered_until(aligner))
    for domain, series in readings.items():
        _feed(state, state.streams[domain], series, complete)
    return _give_out(state, aligner.assembly.watermark, readings)


def close_conditioner(state: Conditioner) -> list[Aligned]:
    """Everything that still waits, with the figures there are."""
    out = [_with_figures(state, one) for one in state.waiting]
    state.waiting = []
    return out


def _stream(state: Conditioner, domain: Domain, series: Readings) -> Stream:
    meter, _ = domain
    lead = next((s.lead for (m, _), s in state.streams.items() if m == meter), domain)
    declared = (series.window_ns is not None or series.kind == "energy") and series.clock_ns is None
    settings = Settings(find_kernel=lead == domain and not declared)
    return Stream(State(settings=settings), lead, int(series.time[0]))


def _feed(state: Conditioner, stream: Stream, series: Readings, complete_ns: int) -> None:
    """Advances a stream by the readings since the last time, once its meter's window is known.

    All frames that ended before `complete_ns` have been given.
    """
    newest = int(series.time[-1]) if len(series) else 0
    if newest - stream.fed_ns < STEP_NS:
        return
    lead = state.streams[stream.lead]
    if lead is not stream:
        if lead.state.kernel is None:
            recent = newest - state.first_fit_ns
            stream.pending = [frames for frames in stream.pending if frames.end[-1] > recent]
            return
        stream.state.settings = replace(stream.state.settings, kernel=lead.state.kernel)
    first = int(np.searchsorted(series.time, stream.fed_ns, side="right"))
    new = slice_of(series, first, len(series))
    stream.fed_ns = newest
    pending, stream.pending = stream.pending, []
    stream.state, ready = advance(stream.state, pending, new, complete_ns)
    for frames, energy in zip(ready.frames, ready.energies, strict=True):
        keys = frame_key(frames.trace, frames.span).tolist()
        edges = np.searchsorted(frames.stage_frame, np.arange(len(frames) + 1)).tolist()
        for row, key in enumerate(keys):
            if key in state.wanted:
                stream.figures[key] = (energy, row, edges[row], edges[row + 1])


def _give_out(state: Conditioner, watermark: int, readings: dict[Domain, Readings]) -> list[Aligned]:
    streams = [
        state.streams[domain]
        for domain, series in readings.items()
        if len(series) and series.time[-1] > watermark - state.wait_ns
    ]
    hopeful = [s for s in streams if s.state.fit or watermark < s.begun_ns + state.first_fit_ns]
    fitted = all(stream.state.fit for stream in hopeful)
    too_old = watermark - (state.wait_ns if fitted else state.first_fit_ns)
    out, waiting = [], []
    for one in state.waiting:
        complete = all(key in stream.figures for stream in hopeful for key in one.keys)
        if complete or int(one.block.frames.end[-1]) < too_old:
            out.append(_with_figures(state, one))
        else:
            waiting.append(one)
    state.waiting = waiting
    return out


def _with_figures(state: Conditioner, one: Waiting) -> Aligned:
    """The block with its figures, which the streams forget."""
    block, keys = one.block, one.keys
    counts = np.diff(np.searchsorted(block.frames.stage_frame, np.arange(len(keys) + 1))).tolist()
    block.conditioned = [
        _gathered(state.streams[e.meter, e.domain].figures, block.frames.pipeline, keys, counts)
        for e in block.energy
    ]
    for stream in state.streams.values():
        for key in keys:
            stream.figures.pop(key, None)
    state.wanted.difference_update(keys)
    return block


def _gathered(figures: Figures, pipeline: str, keys: list[int], counts: list[int]) -> PipelineEnergy | None:
    """The figures of frames that may come from several pieces; NaN where a frame has none."""
    found = [figures.get(key) for key in keys]
    if not any(found):
        return None
    columns = {}
    for f in fields(PipelineEnergy):
        if f.name == "pipeline":
            continue
        if f.name in STAGE_FIELDS:
            parts = [
                getattr(at[0], f.name)[at[2] : at[3]] if at else np.full(count, np.nan)
                for at, count in zip(found, counts, strict=True)
            ]
            columns[f.name] = np.concatenate(parts)
        else:
            absent = -1 if f.name in ("first", "last") else np.nan
            columns[f.name] = np.array([getattr(at[0], f.name)[at[1]] if at else absent for at in found])
    return PipelineEnergy(pipeline, **columns)
