"""The same attribution as data come in: frames get their joules once the meter has covered them.

    state = State()
    state, ready = advance(state, new_frames, new_readings)

What is kept is bounded by `Limits`, whatever the run's length. A fit of the last `history_s` is
renewed every `refit_s`, so that it follows slow change; frames are conditioned on the readings
around them, with the watts of that fit believed. Every figure is out as soon as the readings reach
`look_ahead` rows past its frame and the frames in flight with it have come in. A fit takes longer than
many frames' figures: `advance(..., learn=False)` leaves it to `learn`, for when the figures are out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace

import numpy as np

from benchlab_otel.align.attribution import counters
from benchlab_otel.align.attribution.attribute import (
    Attribution,
    PipelineEnergy,
    Settings,
    attribute_and_fit,
    looking_for_kernel,
    nothing,
    pipeline_energies,
)
from benchlab_otel.align.attribution.block import (
    Sums,
    add_energies,
    design_of,
    forget_lost,
    moved_by,
    usual_span,
)
from benchlab_otel.align.attribution.condition import Posterior, condition
from benchlab_otel.align.attribution.conserve import is_covered, shares_of
from benchlab_otel.align.attribution.design import Design
from benchlab_otel.align.attribution.gls import Fit
from benchlab_otel.align.attribution.identify import Identification, Search
from benchlab_otel.align.attribution.misfit import Misfit
from benchlab_otel.align.attribution.resolve import BASE, Resolution, regrouped
from benchlab_otel.align.attribution.tails import SHOCK_ROUNDS, with_shocks
from benchlab_otel.align.attribution.windows import Kernel, windows
from benchlab_otel.align.attribution.work import join_frames, names_of, work_of
from benchlab_otel.model import Bool, Frames, Int, Readings

_S = 1_000_000_000
_LEAST_ROWS = 4
_OF_LATE = 1024  # frames whose length is what is usual
_RECENT = 8  # periods that the present one is the mean of
_OVERLAPPING = 1.25  # periods that a window is long which counts as longer than one
_PARTS_AT_FIRST = 3  # of the first search at a time, as frames wait for it


@dataclass(frozen=True, slots=True)
class Limits:
    """`history_s` and `most_rows` bound what a fit sees and what is kept; `refit_s` s lie between fits,
    `search_s` s between searches for lag and width, each a part at a time. The first fit is made after
    `warmup_s`.

    `look_ahead` rows past a frame, and `before` rows ahead of it, are what it is conditioned on; twice as
    many where windows overlap, as more readings see the frame then, and none of a meter that reads less often
    than each `look_ahead_s`, as they tell little of the frame and are long in coming.
    Frames wait at most `patience_s`, then go without figures; what ended more than `late_s` before the newest
    reading when it came in is counted as late and gets none either.
    """

    history_s: float = 120.0
    most_rows: int = 8192
    refit_s: float = 60.0
    search_s: float = 600.0
    look_ahead: int = 1
    look_ahead_s: float = 0.125
    before: int = 12
    warmup_s: float = 5.0
    patience_s: float = 15.0
    late_s: float = 30.0


@dataclass(slots=True)
class State:
    """What a stream remembers: recent frames and readings, which frames wait, and the current fit."""

    settings: Settings = field(default_factory=Settings)
    limits: Limits = field(default_factory=Limits)
    frames: list[Frames] = field(default_factory=list)
    waiting: list[Bool] = field(default_factory=list)  # by frame, for each pipeline
    readings: Readings | None = None
    kernel: Kernel | None = None
    fit: Fit | None = None
    resolution: Resolution | None = None
    names: list[tuple[str, str]] = field(default_factory=list)
    summary: Attribution | None = None
    identification: Identification | None = None
    search: Search | None = None  # one that has begun
    fitted_ns: int = 0
    searched_ns: int = 0
    started_ns: int = 0
    longest_ns: int = 0  # of the frames of late, but for the very longest
    widened: float = 1.0
    misfit: Misfit | None = None
    late_frames: int = 0
    late_readings: int = 0


@dataclass(slots=True)
class Ready:
    """Finished frames by pipeline with their energies; `first` and `last` of these are rows of
    `readings`. `summary` is the newest fit's (stages, base, self-check), None before the first."""

    frames: list[Frames]
    energies: list[PipelineEnergy]
    readings: Readings | None
    summary: Attribution | None


def advance(
    state: State,
    frames: Sequence[Frames],
    readings: Readings | None = None,
    complete_ns: int | None = None,
    learn: bool = True,
) -> tuple[State, Ready]:
    """Takes in new frames (any pipelines, any order) and readings of one domain of one meter, and gives
    out the frames that are now covered. The state given is not to be used again.

    `complete_ns`: all frames that ended before it have been given. Readings later than this, less the
    length of a frame, wait, since frames still in flight work during them. None takes the newest
    frame's end, or one second before the newest reading where that is later. Without `learn` a new fit
    is made only where frames can't do without.
    """
    if readings is not None and len(readings):
        _take_readings(state, readings)
    for f in frames:
        _take_frames(state, f)
    now, horizon = _horizon(state, complete_ns)
    usable = _readings_until(state, horizon)
    if usable is not None and (learn or state.fit is None or _new_stage(state)):
        _learn(state, usable)
    due = [_due(state, p, usable, now) for p in range(len(state.frames))]
    ready = Ready([], [], state.readings, state.summary)
    if any(d.any() for d in due):
        _condition(state, due, usable, ready)
    _forget(state, now)
    return state, ready


def learn(state: State, complete_ns: int) -> None:
    """Goes on with looking for the meter's window, or fits anew, where that is due by the last `advance`."""
    usable = _readings_until(state, complete_ns - state.longest_ns)
    if usable is not None:
        _learn(state, usable)


def _horizon(state: State, complete_ns: int | None) -> tuple[int, int]:
    """The newest time seen (Unix ns), and that up to which all work is known."""
    reading = int(state.readings.time[-1]) if state.readings is not None and len(state.readings) else 0
    frame = max((int(f.end.max()) for f in state.frames if len(f)), default=0)
    complete = max(frame, reading - _S) if complete_ns is None else complete_ns
    lengths = (np.quantile((f.end - f.begin)[-_OF_LATE:], 0.999) for f in state.frames if len(f))
    state.longest_ns = round(max(lengths, default=0.0))
    return max(reading, frame, complete), complete - state.longest_ns


def known_until(state: State, complete_ns: int) -> int:
    """The latest time (Unix ns) that a reading may have of whose window all work is known: frames that work
    then have been given. By the frames of the last `advance`.
    """
    return complete_ns - state.longest_ns + _lag_ns(state)


def _lag_ns(state: State) -> int:
    return round(state.kernel.lag_s * _S) if state.kernel is not None else 0


def _readings_until(state: State, horizon: int) -> Readings | None:
    """The readings whose windows end before the horizon, None without any."""
    if state.readings is None:
        return None
    last = int(np.searchsorted(state.readings.time, horizon + _lag_ns(state), "right"))
    return reading_rows(state.readings, slice(0, last)) if last else None


# -- taking in ------------------------------------------------------------------------------------


def _take_readings(state: State, readings: Readings) -> None:
    if state.readings is None:
        state.readings = readings
        state.started_ns = state.searched_ns = int(readings.time[0])
        return
    old = state.readings
    late = readings.time < old.time[0] if len(old) else np.zeros(len(readings), bool)
    state.late_readings += int(late.sum())
    new = reading_rows(readings, np.flatnonzero(~late))
    both = replace(
        old,
        time=np.concatenate([old.time, new.time]),
        uncertainty=np.concatenate([old.uncertainty, new.uncertainty]),
        value=np.concatenate([old.value, new.value]),
        trace=np.concatenate([old.trace, new.trace]),
        span=np.concatenate([old.span, new.span]),
    )
    in_order = len(new) == 0 or bool(np.all(np.diff(both.time[len(old) - 1 :]) >= 0))
    state.readings = both if in_order else reading_rows(both, np.argsort(both.time, kind="stable"))


def _take_frames(state: State, frames: Frames) -> None:
    """Adds frames of one pipeline; ended too long ago they are counted and left out."""
    newest = int(state.readings.time[-1]) if state.readings is not None and len(state.readings) else None
    if newest is not None:
        late = frames.end < newest - state.limits.late_s * _S
        state.late_frames += int(late.sum())
        if late.any():
            frames = frame_rows(frames, ~late)
    for p, known in enumerate(state.frames):
        if known.pipeline == frames.pipeline:
            state.frames[p] = join_frames([known, frames])
            state.waiting[p] = np.append(state.waiting[p], np.ones(len(frames), bool))
            return
    state.frames.append(frames)
    state.waiting.append(np.ones(len(frames), bool))


def frame_rows(frames: Frames, keep: Bool) -> Frames:
    """The frames with `keep` (n,) alone, with their stages."""
    stages = keep[frames.stage_frame]
    return replace(
        frames,
        trace=frames.trace[keep],
        span=frames.span[keep],
        begin=frames.begin[keep],
        end=frames.end[keep],
        number=frames.number[keep],
        outcome=frames.outcome[keep],
        stage_frame=(np.cumsum(keep) - 1)[frames.stage_frame[stages]],
        stage=frames.stage[stages],
        stage_begin=frames.stage_begin[stages],
        stage_end=frames.stage_end[stages],
    )


def reading_rows(readings: Readings, rows: Int | slice) -> Readings:
    """The readings of the given rows alone."""
    return replace(
        readings,
        time=readings.time[rows],
        uncertainty=readings.uncertainty[rows],
        value=readings.value[rows],
        trace=readings.trace[rows],
        span=readings.span[rows],
    )


def _forget(state: State, now: int) -> None:
    """Drops what neither a fit nor a late frame can need."""
    oldest = now - round(state.limits.history_s * _S)
    if state.readings is not None:
        first = int(np.searchsorted(state.readings.time, oldest))
        first = max(first, len(state.readings) - state.limits.most_rows)
        if first > len(state.readings) // 8:  # not for every row
            state.readings = reading_rows(state.readings, slice(first, None))
        if len(state.readings):
            oldest = max(oldest, int(state.readings.time[0]))
    for p, f in enumerate(state.frames):
        old = (f.end < oldest) & ~state.waiting[p]
        if np.count_nonzero(old) > len(f) // 8:
            state.frames[p] = frame_rows(f, ~old)
            state.waiting[p] = state.waiting[p][~old]


# -- fitting and conditioning -----------------------------------------------------------------------


def _seen_s(readings: Readings) -> float:
    """Seconds from the first to the last reading."""
    return (int(readings.time[-1]) - int(readings.time[0])) / _S


def _learn(state: State, readings: Readings) -> None:
    if state.settings.find_kernel:
        _look_for_kernel(state, readings)
    if _fit_is_due(state, readings):
        _refit(state, readings)


def _look_for_kernel(state: State, readings: Readings) -> None:
    """Goes on with looking for the meter's lag and window, or begins to where it is due: after the warm-up,
    and again after as long as until then, as what little data found may change."""
    newest = int(readings.time[-1])
    if state.search is None:
        wait = min(state.limits.search_s * _S, state.searched_ns - state.started_ns)
        if _seen_s(readings) < state.limits.warmup_s or newest - state.searched_ns < wait:
            return
        state.search = looking_for_kernel(state.frames, readings, state.settings)
        state.searched_ns = newest
    parts = 1 if state.identification is not None else _PARTS_AT_FIRST
    try:
        for _ in range(parts):
            next(state.search)
    except StopIteration as end:
        state.search, state.fitted_ns = None, 0
        if end.value.found or state.identification is None:  # what was found once stays
            state.identification = end.value


def _fit_is_due(state: State, readings: Readings) -> bool:
    """Every `refit_s`; earlier while there is little yet, and when a new stage has shown up."""
    seen = _seen_s(readings)
    unknown = state.settings.find_kernel and state.identification is None
    if seen < state.limits.warmup_s or unknown:
        return False
    since = int(readings.time[-1]) - state.fitted_ns
    return since >= min(state.limits.refit_s, 0.3 * seen) * _S or _new_stage(state)


def _new_stage(state: State) -> bool:
    """Whether there is one that the fit does not know."""
    return state.fit is not None and state.names != names_of(state.frames)


def _refit(state: State, readings: Readings) -> None:
    """Fits all that is remembered; the old fit stays where there is too little."""
    found = state.identification if state.settings.find_kernel else None
    state.summary, block = attribute_and_fit(state.frames, readings, state.settings, found)
    state.fitted_ns = int(readings.time[-1])
    if block is None:
        return
    state.kernel = state.summary.kernel
    state.fit = replace(block.fit, solved=None, priors=None)
    state.resolution, state.widened = block.resolution, block.check.widened
    state.misfit = block.misfit
    state.names = names_of(state.frames)


def _due(state: State, p: int, readings: Readings | None, now: int) -> Bool:
    """Waiting frames of pipeline p that the readings have passed, or that have waited long enough."""
    end = state.frames[p].end
    due: Bool = state.waiting[p] & (end < now - state.limits.patience_s * _S)
    if state.fit is None or state.kernel is None or readings is None:
        return due
    ahead = _look_ahead(state.limits, state.kernel, readings.time)
    passed = int(readings.time[-1 - min(ahead, len(readings) - 1)])
    return due | (state.waiting[p] & (end <= passed - _lag_ns(state)))


def _look_ahead(limits: Limits, kernel: Kernel, time: Int) -> int:
    """How many readings past a frame are worth waiting for, of a meter that read at these times (n,)."""
    recent = time[-1 - _RECENT :]
    period = (int(recent[-1]) - int(recent[0])) / _S / max(len(recent) - 1, 1)
    if period > limits.look_ahead_s:
        return 0
    reach = 3 * kernel.tau or kernel.width_s
    return limits.look_ahead if reach <= _OVERLAPPING * period else 2 * limits.look_ahead


def _condition(state: State, due: list[Bool], readings: Readings | None, ready: Ready) -> None:
    """Energies of the due frames from the rows around them."""
    if readings is None or state.fit is None:
        ready.frames = [frame_rows(f, d) for f, d in zip(state.frames, due, strict=True)]
        ready.energies = [nothing(f) for f in ready.frames]
        state.waiting = [w & ~d for w, d in zip(state.waiting, due, strict=True)]
        return
    begin = min(int(f.begin[d].min()) for f, d in zip(state.frames, due, strict=True) if d.any())
    first = max(int(np.searchsorted(readings.time, begin)) - state.limits.before, 0)
    part = reading_rows(readings, slice(first, None))
    near = [frame_rows(f, f.end >= part.time[0] - 2 * _S) for f in state.frames]
    chosen = [d[f.end >= part.time[0] - 2 * _S] for f, d in zip(state.frames, due, strict=True)]
    energies = _energies_of(state, near, part, first)
    for p, (f, e, mine) in enumerate(zip(near, energies, chosen, strict=True)):
        ready.frames.append(frame_rows(f, mine))
        ready.energies.append(_energy_rows(e, mine, mine[f.stage_frame]))
        state.waiting[p] &= ~due[p]


def _energies_of(state: State, frames: list[Frames], readings: Readings, offset: int) -> list[PipelineEnergy]:
    origin = int(readings.time[0])
    work = work_of(frames, origin)
    if state.fit is None or state.resolution is None or state.kernel is None:
        return [nothing(f) for f in frames]
    rows = windows(counters.clean(readings, origin), state.kernel)
    if len(rows) < _LEAST_ROWS:
        return [nothing(f) for f in frames]
    sums = Sums(work, shares_of(work.begin, work.end, rows), is_covered(rows, work.begin, work.end))
    full, owner = design_of(work, rows)
    column = state.resolution.column
    design = regrouped(full, column, len(state.fit.watts))
    kept = column[work.stage[owner]] != BASE
    try:
        posterior = _conditioned(design, state.fit, usual_span(work, rows))
        moved = moved_by(state.misfit, work, posterior, owner[kept])
        add_energies(sums, posterior, owner[kept], (rows.lo[0], rows.hi[-1]), state.widened, moved)
    except np.linalg.LinAlgError:  # readings that contradict the fit beyond what numbers can hold
        return [nothing(f) for f in frames]
    blind = np.array([bool(r) for r in state.resolution.reason], bool)
    sums.usable &= ~blind[work.stage]
    forget_lost(sums, state.resolution, np.ones(len(work.stage), bool))
    sums.first += np.where(sums.first >= 0, offset, 0)
    sums.last += np.where(sums.last >= 0, offset, 0)
    return pipeline_energies(sums, frames)


def _conditioned(design: Design, fit: Fit, span: int) -> Posterior:
    """The posterior of a short stretch, in which loads may have been switched: the fit's base is too slow."""
    posterior = condition(design, fit, span)
    for _ in range(SHOCK_ROUNDS):
        freed = with_shocks(posterior, strongest=True)
        if freed is None:
            break
        posterior = condition(freed, fit, span)
    return posterior


def _energy_rows(energy: PipelineEnergy, frames: Bool, stages: Bool) -> PipelineEnergy:
    """The figures of the chosen frames (n,) and stage rows (m,) alone."""
    by_stage = ("stage", "stage_uncertainty")
    return PipelineEnergy(
        energy.pipeline,
        **{
            f.name: getattr(energy, f.name)[stages if f.name in by_stage else frames]
            for f in fields(energy)
            if f.name != "pipeline"
        },
    )
