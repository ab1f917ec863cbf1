"""Aligned frames to the metrics of the contract: histograms and counters with exemplars."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from benchlab_otel import contract
from benchlab_otel.align.aligner import Aligned, Aligner
from benchlab_otel.align.attribution.attribute import Attribution, PipelineEnergy
from benchlab_otel.align.marks import UnknownMark, latency
from benchlab_otel.contract import Metric
from benchlab_otel.model import (
    COMPLETED,
    OUTCOMES,
    Exemplar,
    Float,
    FrameEnergy,
    Frames,
    HistogramPoint,
    Int,
    Point,
)

Labels = tuple[str, ...]

_ENDED_NS = 60_000_000_000


@dataclass(slots=True)
class _Histogram:
    counts: Int
    sum: float = 0.0
    exemplars: dict[int, Exemplar] = field(default_factory=dict)


@dataclass(slots=True)
class FrameMetrics:
    """Cumulative metrics of all frames taken in; `pairs` are the mark pairs that get a latency."""

    start_ns: int
    pairs: Sequence[str] = ()
    histograms: dict[tuple[Metric, Labels], _Histogram] = field(default_factory=dict)
    counters: dict[tuple[Metric, Labels], int] = field(default_factory=dict)
    gauges: dict[tuple[Metric, Labels], float] = field(default_factory=dict)  # labels: the pipeline first
    last_end: dict[tuple[str, str], int] = field(default_factory=dict)  # service, pipeline: Unix ns
    seen_until: dict[str, int] = field(default_factory=dict)  # pipeline: end of the newest frame taken in
    done_until: dict[str, int] = field(default_factory=dict)  # and of the newest one whose energies are out


def take_in(state: FrameMetrics, aligned: Aligned) -> None:
    """Adds frames with their stages and interpolated energies."""
    frames = aligned.frames
    everything = np.arange(len(frames))
    pipeline = frames.pipeline
    for code, count in enumerate(np.bincount(frames.outcome, minlength=len(OUTCOMES)).tolist()):
        key = (contract.FRAMES, (pipeline, OUTCOMES[code]))
        state.counters[key] = state.counters.get(key, 0) + count
    state.seen_until[pipeline] = max(int(frames.end.max()), state.seen_until.get(pipeline, 0))
    seconds = (frames.end - frames.begin) / 1e9
    _observe(state, contract.FRAME_DURATION, (pipeline,), seconds, frames, everything)
    _observe_intervals(state, frames)
    spent = (frames.stage_end - frames.stage_begin) / 1e9
    for code, stage in enumerate(frames.stage_names):
        rows = frames.stage == code
        _observe(
            state,
            contract.STAGE_DURATION,
            (pipeline, stage),
            spent[rows],
            frames,
            frames.stage_frame[rows],
        )
    for pair in state.pairs:
        _observe_pair(state, pair, frames)
    for energy in aligned.energy:
        _observe_energy(state, frames, energy, energy.method, energy.energy)


def take_in_conditioned(state: FrameMetrics, aligned: Aligned) -> None:
    """Adds the conditioned energies of frames that were taken in before, and are now done with."""
    pipeline = aligned.frames.pipeline
    state.done_until[pipeline] = max(int(aligned.frames.end.max()), state.done_until.get(pipeline, 0))
    for energy, figures in zip(aligned.energy, aligned.conditioned, strict=bool(aligned.conditioned)):
        if figures is not None:
            _observe_energy(state, aligned.frames, energy, "conditioned", figures.energy)
            _note_conditioned(state, aligned.frames, energy, figures)


def _note_conditioned(
    state: FrameMetrics, frames: Frames, source: FrameEnergy, figures: PipelineEnergy
) -> None:
    known = np.isfinite(figures.energy_uncertainty)
    if not known.any():
        return
    key = (contract.FRAME_ENERGY_UNCERTAINTY, (frames.pipeline, source.meter, source.domain))
    state.gauges[key] = float(figures.energy_uncertainty[known].mean())


def _observe_intervals(state: FrameMetrics, frames: Frames) -> None:
    """From the end of one completed frame to the next; one that came late begins no interval."""
    rows = np.flatnonzero(frames.outcome == OUTCOMES.index(COMPLETED))
    if not len(rows):
        return
    key = (frames.service, frames.pipeline)
    ends = frames.end[rows]
    before = state.last_end.get(key)
    state.last_end[key] = int(ends[-1]) if before is None else max(int(ends[-1]), before)
    if before is None:
        before, ends, rows = int(ends[0]), ends[1:], rows[1:]
    seconds = np.diff(ends, prepend=before) / 1e9
    forward = seconds >= 0.0
    _observe(state, contract.FRAME_INTERVAL, (frames.pipeline,), seconds[forward], frames, rows[forward])


def _observe_energy(
    state: FrameMetrics, frames: Frames, source: FrameEnergy, method: str, joules: Float
) -> None:
    known = np.flatnonzero(np.isfinite(joules))
    labels = (frames.pipeline, source.meter, source.domain, method)
    _observe(state, contract.FRAME_ENERGY, labels, joules[known], frames, known)


def _observe_pair(state: FrameMetrics, pair: str, frames: Frames) -> None:
    try:
        seconds, both = latency(frames, pair)
    except UnknownMark:
        return  # another pipeline's pair, or no frame got that far yet
    begin, _, end = pair.partition(":")
    rows = np.flatnonzero(both)
    _observe(state, contract.PAIR_LATENCY, (frames.pipeline, begin, end), seconds[rows], frames, rows)


def _observe(
    state: FrameMetrics, metric: Metric, labels: Labels, values: Float, frames: Frames, owner: Int
) -> None:
    """Adds values (n,) to a histogram; `owner` (n,) is the frame that each belongs to."""
    if not len(values):
        return
    bounds = np.array(metric.bounds)
    found = state.histograms.setdefault((metric, labels), _Histogram(np.zeros(len(bounds) + 1, np.int64)))
    bucket = np.searchsorted(bounds, values, side="left")  # a bucket includes its upper bound
    found.counts += np.bincount(bucket, minlength=len(bounds) + 1)
    found.sum += float(values.sum())
    _, last = np.unique(bucket[::-1], return_index=True)
    for i in (len(values) - 1 - last).tolist():
        frame = owner[i]
        trace = (int(frames.trace[frame, 0]), int(frames.trace[frame, 1]))
        found.exemplars[int(bucket[i])] = Exemplar(
            float(values[i]), int(frames.end[frame]), trace, int(frames.span[frame])
        )


def attribution_points(found: Attribution, now_ns: int) -> list[Point]:
    """What a domain's newest fit says of stages, base and meter; where it could not be resolved, why."""
    domain = {"hw.id": found.meter, "domain": found.domain}
    out: list[Point] = []

    def add(metric: Metric, value: float, **labels: str) -> None:
        if np.isfinite(value):
            out.append(Point(metric, domain | labels, value, now_ns))

    for stage in found.stages:
        labels = {"pipeline.name": stage.pipeline, "pipeline.stage": "+".join(stage.group)}
        if stage.reason:
            add(contract.UNRESOLVED, 1.0, **labels, reason=_kind_of(stage.reason))
        add(contract.STAGE_POWER, stage.watts, **labels)
        add(contract.STAGE_POWER_UNCERTAINTY, stage.watts_uncertainty, **labels)
        add(contract.STAGE_ENERGY, stage.joules, **labels)
        add(contract.STAGE_ENERGY_UNCERTAINTY, stage.joules_uncertainty, **labels)
    if found.reason:
        add(contract.UNRESOLVED, 1.0, reason=_kind_of(found.reason))
    add(contract.BASE_POWER, found.base_watts)
    add(contract.BASE_POWER_UNCERTAINTY, found.base_uncertainty)
    if found.identification is not None and found.identification.found:
        add(contract.METER_LAG_TIME, found.kernel.lag_s)
        add(contract.METER_WINDOW_TIME, found.kernel.width_s)
    if found.check is not None:
        add(contract.PREDICTION_ERROR, found.check.error, model="stages")
        add(contract.PREDICTION_ERROR, found.check.error_no_stages, model="none")
        add(contract.PREDICTION_COVERAGE, found.check.coverage)
    if found.ledger is not None:
        add(contract.ENERGY_RESIDUAL, found.ledger.residual)
        add(contract.ENERGY_RESIDUAL_UNCERTAINTY, found.ledger.residual_uncertainty)
    return out


def _kind_of(reason: str) -> str:
    """What a reason says before its names and numbers, which would make a new series each time."""
    return re.split(r" *[:;(]", reason, maxsplit=1)[0]


def progress_points(state: FrameMetrics, wall_offset_ns: int, now_ns: int) -> list[Point]:
    """How far conditioning is behind, and how far the wall clock is from the time base."""
    out = [Point(contract.CLOCK_WALL, {}, wall_offset_ns * 1e-9, now_ns)]
    for pipeline, done_ns in state.done_until.items():
        if not _has_ended(state, pipeline, now_ns):
            behind = (now_ns - done_ns) * 1e-9
            out.append(Point(contract.ALIGN_BEHIND, {"pipeline.name": pipeline}, behind, now_ns))
    return out


def _has_ended(state: FrameMetrics, pipeline: str, now_ns: int) -> bool:
    """Whether nothing waits and no frame came for a while: what was true of the last ones is no news."""
    done_ns = state.done_until.get(pipeline, 0)
    return done_ns >= state.seen_until[pipeline] and now_ns - done_ns > _ENDED_NS


def late_points(aligner: Aligner, start_ns: int, now_ns: int) -> list[Point]:
    """What came too late, twice, or without the rest, since `start_ns`."""
    assembly = aligner.assembly
    counts = {
        "late_stages": assembly.late,
        "repeated_frames": assembly.repeated,
        "stages_without_frame": assembly.orphaned,
        "late_readings": aligner.late_readings,
    }
    return [Point(contract.ALIGN_LATE, {"item": k}, float(n), now_ns, start_ns) for k, n in counts.items()]


def points(state: FrameMetrics, now_ns: int) -> list[Point | HistogramPoint]:
    """Every series as it stands."""
    out: list[Point | HistogramPoint] = [
        Point(metric, dict(zip(metric.labels, labels, strict=True)), float(n), now_ns, state.start_ns)
        for (metric, labels), n in state.counters.items()
    ]
    out += [
        Point(metric, dict(zip(metric.labels, labels, strict=True)), value, now_ns)
        for (metric, labels), value in state.gauges.items()
        if not _has_ended(state, labels[0], now_ns)
    ]
    for (metric, labels), found in state.histograms.items():
        named = dict(zip(metric.labels, labels, strict=True))
        out.append(
            HistogramPoint(
                metric,
                named,
                found.counts.copy(),
                found.sum,
                now_ns,
                state.start_ns,
                dict(found.exemplars),
            )
        )
    return out
