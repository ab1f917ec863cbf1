"""Live frames with their interpolated energy in, the same frames with their conditioned figures out.

Each domain of each meter is a stream of its own (`stream`). A frame waits until all streams that are
alive have its figures, at most `wait_ns` of event time once they have a fit, and `first_fit_ns` for the
first one; frames that have none by then go on with what there is. Frames go out in the order of their ends,
so a block may go out by parts. Nobody waits for a stream that has no
fit so long after its first reading: its meter's window can't be found, say. The meter's lag and window
are looked for once a meter, on its `system` domain or the first one it has, and used for its other
domains. Fits are renewed after frames went out (`learn_live`), as they take longer than figures do.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace

import numpy as np

from benchlab_otel.align.aligner import Aligned, Aligner
from benchlab_otel.align.attribution.attribute import Attribution, PipelineEnergy, Settings
from benchlab_otel.align.attribution.stream import State, advance, known_until, learn
from benchlab_otel.align.blocks import joined, rows_of
from benchlab_otel.align.frames import frame_key
from benchlab_otel.align.readings import slice_of
from benchlab_otel.model import Frames, Readings

Domain = tuple[str, str]  # meter, domain

STEP_NS = 250_000_000  # streams advance when readings of so long more can be used, or all that there are
STAGE_FIELDS = ("stage", "stage_uncertainty")


Figures = dict[int, tuple[PipelineEnergy, int, int, int]]  # frame's key: (piece, row, its stage rows)


@dataclass(slots=True)
class Stream:
    """One domain of one meter: its state, the readings it has been fed and has used, and what it gave out.

    `lead` is the domain of the same meter whose window counts, `begun_ns` when the first reading came.
    """

    state: State
    lead: Domain
    begun_ns: int
    fed_ns: int = 0
    used_ns: int = 0
    pending: list[Frames] = field(default_factory=list)
    figures: Figures = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Waiting:
    """A block, or what is left of it, whose figures are not complete, with the keys of its frames."""

    block: Aligned
    keys: list[int]


@dataclass(slots=True)
class Conditioner:
    """What waits between the aligner and what goes out; bounded as the streams are."""

    wait_ns: int = 4_000_000_000  # what the aligner waits for a meter, and a second for steps
    first_fit_ns: int = 15_000_000_000
    streams: dict[Domain, Stream] = field(default_factory=dict)
    waiting: list[Waiting] = field(default_factory=list)
    wanted: set[int] = field(default_factory=set)  # keys of the frames that are not out
    turn: int = 0  # whose it is to learn
    stepped: bool = False  # whether a stream advanced in the last block
    put_off: bool = False  # whether learning was, for that

    @property
    def summaries(self) -> list[Attribution]:
        """Each domain's newest fit."""
        return [s.state.summary for s in self.streams.values() if s.state.summary is not None]


def condition_live(state: Conditioner, aligner: Aligner, aligned: list[Aligned]) -> list[Aligned]:
    """Takes in what the aligner gave out, and knows by its last block; returns the frames whose figures are
    complete.

    Streams get frames as soon as these are complete, before any meter has covered them.
    """
    readings = aligner.readings
    for domain, series in readings.items():
        if domain not in state.streams and len(series):
            state.streams[domain] = _stream(state, domain, series)
    state.waiting += [Waiting(b, _keys(b.frames)) for b in aligned]
    state.wanted.update(key for frames in aligner.completed for key in _keys(frames))
    for stream in state.streams.values():
        stream.pending += aligner.completed
    complete = _complete_until(aligner)
    state.stepped = False
    for domain, series in readings.items():
        state.stepped |= _feed(state, state.streams[domain], series, complete)
    return _give_out(state, aligner.assembly.watermark, readings)


def learn_live(state: Conditioner, aligner: Aligner) -> None:
    """Renews what one of the streams goes by, where that is due; for each block once what it gave is out.

    A block with much work is left alone, but not two in a row.
    """
    state.put_off = state.stepped and not state.put_off
    if state.put_off:
        return
    streams = [stream for stream in state.streams.values() if stream.state.fit is not None]
    if streams:
        state.turn += 1
        learn(streams[state.turn % len(streams)].state, _complete_until(aligner))


def close_conditioner(state: Conditioner) -> list[Aligned]:
    """Everything that still waits, with the figures there are."""
    out = [_with_figures(state, one) for one in state.waiting]
    state.waiting = []
    return out


def _keys(frames: Frames) -> list[int]:
    keys: list[int] = frame_key(frames.trace, frames.span).tolist()
    return keys


def _complete_until(aligner: Aligner) -> int:
    """All frames that ended before it are complete."""
    return aligner.assembly.watermark - aligner.lateness_ns


def _stream(state: Conditioner, domain: Domain, series: Readings) -> Stream:
    meter, _ = domain
    lead = next((s.lead for (m, _), s in state.streams.items() if m == meter), domain)
    declared = (series.window_ns is not None or series.kind == "energy") and series.clock_ns is None
    settings = Settings(find_kernel=lead == domain and not declared)
    return Stream(State(settings=settings), lead, int(series.time[0]))


def _feed(state: Conditioner, stream: Stream, series: Readings, complete_ns: int) -> bool:
    """Advances a stream where readings and frames have come far enough, once its meter's window is known;
    whether it did.

    All frames that ended before `complete_ns` have been given.
    """
    newest = int(series.time[-1]) if len(series) else 0
    usable = min(newest, known_until(stream.state, complete_ns))
    if usable <= stream.used_ns or (usable < newest and usable - stream.used_ns < STEP_NS):
        _forget_pending(stream, complete_ns - state.first_fit_ns)  # a meter that is gone tells no more
        return False
    lead = state.streams[stream.lead]
    if lead is not stream:
        if lead.state.kernel is None:
            _forget_pending(stream, newest - state.first_fit_ns)
            return False
        stream.state.settings = replace(stream.state.settings, kernel=lead.state.kernel)
    first = int(np.searchsorted(series.time, stream.fed_ns, side="right"))
    new = slice_of(series, first, len(series))
    stream.fed_ns = newest
    pending, stream.pending = stream.pending, []
    stream.state, ready = advance(stream.state, pending, new, complete_ns, learn=False)
    stream.used_ns = min(newest, known_until(stream.state, complete_ns))
    for frames, energy in zip(ready.frames, ready.energies, strict=True):
        keys = _keys(frames)
        edges = np.searchsorted(frames.stage_frame, np.arange(len(frames) + 1)).tolist()
        for row, key in enumerate(keys):
            if key in state.wanted:
                stream.figures[key] = (energy, row, edges[row], edges[row + 1])
    return True


def _forget_pending(stream: Stream, before_ns: int) -> None:
    """Frames that ended before it are out by now."""
    if stream.pending and stream.pending[0].end[-1] <= before_ns:
        stream.pending = [frames for frames in stream.pending if frames.end[-1] > before_ns]


def _give_out(state: Conditioner, watermark: int, readings: dict[Domain, Readings]) -> list[Aligned]:
    streams = [
        state.streams[domain]
        for domain, series in readings.items()
        if len(series) and series.time[-1] > watermark - state.wait_ns
    ]
    hopeful = [s for s in streams if s.state.fit or watermark < s.begun_ns + state.first_fit_ns]
    fitted = all(stream.state.fit for stream in hopeful)
    too_old = watermark - (state.wait_ns if fitted else state.first_fit_ns)
    done, waiting = [], []
    for one in state.waiting:
        count = int(np.searchsorted(one.block.frames.end, too_old))
        while count < len(one.keys) and all(one.keys[count] in stream.figures for stream in hopeful):
            count += 1
        first, rest = _parted(one, count)
        if first is not None:
            done.append(first)
        if rest is not None:
            waiting.append(rest)
    state.waiting = waiting
    return [_with_figures(state, Waiting(b, _keys(b.frames))) for b in joined([one.block for one in done])]


def _parted(one: Waiting, count: int) -> tuple[Waiting | None, Waiting | None]:
    """The first so many frames, and the others; None where there are none."""
    if count in (0, len(one.keys)):
        return (one, None) if count else (None, one)
    first, rest = (0, count), (count, len(one.keys))
    return Waiting(rows_of(one.block, *first), one.keys[:count]), Waiting(
        rows_of(one.block, *rest), one.keys[count:]
    )


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
