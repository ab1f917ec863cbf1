"""One frame from close by: its stages, what each method says of it, and the samples that it came from.

`find_frames` finds it, `explain` gives the plain data, `render` the text. Times are seconds from the
frame's begin; a value is None where there is no figure.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import inf

import numpy as np
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from benchlab_otel.align.attribution.attribute import Attribution, PipelineEnergy
from benchlab_otel.export.recording import Recording, of_run
from benchlab_otel.export.report_text import number, plus_minus, side_by_side, table_of, unit_of
from benchlab_otel.model import OUTCOMES, Float, FrameEnergy, Frames, Int, Readings, Run, Uint

MOST_SAMPLES = 16  # that are shown of one meter
MOST_FRAMES = 4  # that one name may mean


class FrameNotFound(ValueError):
    """No frame, or too many, go by that name; the message says what there is."""


@dataclass(frozen=True, slots=True)
class Figure:
    """Joules with their 95 % half width."""

    joules: float | None
    uncertainty: float | None


@dataclass(frozen=True, slots=True)
class StageSpan:
    """One stage of the frame, and its joules above base by domain (in the order of `Explained.domains`)."""

    name: str
    begin_s: float
    seconds: float
    energy: list[Figure]


@dataclass(frozen=True, slots=True)
class DomainEnergy:
    """A domain's joules by both methods, and by conditioning the frame's own and its share."""

    meter: str
    domain: str
    interpolated: Figure
    conditioned: Figure
    own: Figure
    shared: Figure


@dataclass(frozen=True, slots=True)
class Sample:
    """A reading used: when (± half the round trip), over what it averages, its value by domain (W or J)."""

    at_s: float
    uncertainty_s: float
    window_begin_s: float
    window_end_s: float
    values: list[float | None]


@dataclass(frozen=True, slots=True)
class MeterSamples:
    """The samples of one meter in the `units` of its domains; `left_out` more lie in the middle of them."""

    meter: str
    domains: list[str]
    units: list[str]
    samples: list[Sample]
    left_out: int


@dataclass(frozen=True, slots=True)
class Explained:
    """One frame; `since_first_s` is its begin after that of the session's first frame."""

    pipeline: str
    number: int
    trace: str
    outcome: str
    since_first_s: float
    seconds: float
    stages: list[StageSpan]
    domains: list[DomainEnergy]
    meters: list[MeterSamples]


def find_frames(recording: Recording, name: str) -> list[tuple[int, int]]:
    """(run, row) of the frames with this number, or else with a trace id that begins so.

    Raises FrameNotFound where there is none or there are more than can be shown.
    """
    found = [
        (i, int(row))
        for i, run in enumerate(recording.runs)
        for row in (np.flatnonzero(run.frames.number == int(name)) if name.isdecimal() else ())
    ]
    if not found:
        prefix = name.lower()
        found = [
            (i, row)
            for i, run in enumerate(recording.runs)
            for row, trace in enumerate(run.frames.trace)
            if trace_id(trace).startswith(prefix)
        ]
    if not found:
        raise FrameNotFound(f"no frame {name}; {_there_is(recording.runs)}")
    if len(found) > MOST_FRAMES:
        ids = ", ".join(trace_id(recording.runs[i].frames.trace[row]) for i, row in found[:MOST_FRAMES])
        raise FrameNotFound(f"{len(found)} frames go by {name}; name one by its trace id: {ids}, …")
    return found


def trace_id(trace: Uint) -> str:
    """The trace id (2,) as hex."""
    return f"{int(trace[0]):016x}{int(trace[1]):016x}"


def _there_is(runs: Sequence[Run]) -> str:
    return "; ".join(
        f"{run.frames.pipeline} has the numbers {run.frames.number.min()} to {run.frames.number.max()}"
        for run in runs
        if len(run.frames)
    )


def explain(recording: Recording, i: int, row: int) -> Explained:
    """All that is known of the frame in `row` of run `i`."""
    run, told = recording.runs[i], of_run(recording, i)
    frames = run.frames
    first = min(int(r.frames.begin.min()) for r in recording.runs if len(r.frames))
    return Explained(
        pipeline=frames.pipeline,
        number=int(frames.number[row]),
        trace=trace_id(frames.trace[row]),
        outcome=OUTCOMES[frames.outcome[row]],
        since_first_s=(int(frames.begin[row]) - first) / 1e9,
        seconds=(int(frames.end[row]) - int(frames.begin[row])) / 1e9,
        stages=list(_stages(frames, told, row)),
        domains=[_domain(run, a, energy, row) for a, energy in told],
        meters=[
            _samples(run, meter, told, row)
            for meter in dict.fromkeys(r.meter for r in run.readings if len(r))
        ],
    )


def _stages(
    frames: Frames, told: Sequence[tuple[Attribution, PipelineEnergy]], row: int
) -> Iterator[StageSpan]:
    first, last = np.searchsorted(frames.stage_frame, [row, row + 1])
    begin = int(frames.begin[row])
    for k in sorted(range(first, last), key=lambda k: int(frames.stage_begin[k])):
        yield StageSpan(
            name=frames.stage_names[frames.stage[k]],
            begin_s=(int(frames.stage_begin[k]) - begin) / 1e9,
            seconds=(int(frames.stage_end[k]) - int(frames.stage_begin[k])) / 1e9,
            energy=[_figure(energy.stage, energy.stage_uncertainty, k) for _, energy in told],
        )


def _domain(run: Run, found: Attribution, energy: PipelineEnergy, row: int) -> DomainEnergy:
    interpolated = _energy_of(run, found.meter, found.domain, "interpolated")
    nothing = Figure(None, None)
    return DomainEnergy(
        meter=found.meter,
        domain=found.domain,
        interpolated=_figure(interpolated.energy, interpolated.uncertainty, row) if interpolated else nothing,
        conditioned=_figure(energy.energy, energy.energy_uncertainty, row),
        own=_figure(energy.own, energy.own_uncertainty, row),
        shared=_figure(energy.shared, energy.shared_uncertainty, row),
    )


def _figure(values: Float, halves: Float, row: int) -> Figure:
    if not np.isfinite(values[row]):
        return Figure(None, None)
    return Figure(float(values[row]), float(halves[row]) if np.isfinite(halves[row]) else None)


def _energy_of(run: Run, meter: str, domain: str, method: str) -> FrameEnergy | None:
    named = (e for e in run.energy if (e.meter, e.domain, e.method) == (meter, domain, method))
    return next(named, None)


def _samples(
    run: Run, meter: str, told: Sequence[tuple[Attribution, PipelineEnergy]], row: int
) -> MeterSamples:
    """The samples that any of the meter's domains had a figure from."""
    mine = [r for r in run.readings if r.meter == meter]
    found = {a.domain: a for a, _ in told if a.meter == meter}
    times = np.unique(np.concatenate([r.time[_used(run, r, row)] for r in mine]))
    half = MOST_SAMPLES // 2
    shown = times if len(times) <= MOST_SAMPLES else np.concatenate([times[:half], times[-half:]])
    begin = int(run.frames.begin[row])
    samples = []
    for time in shown.tolist():
        rows = [int(np.searchsorted(r.time, time)) for r in mine]
        here = [k < len(r) and int(r.time[k]) == time for r, k in zip(mine, rows, strict=True)]
        lead = here.index(True)
        window = _window(mine[lead], rows[lead], found.get(mine[lead].domain))
        samples.append(
            Sample(
                at_s=(time - begin) / 1e9,
                uncertainty_s=int(mine[lead].uncertainty[rows[lead]]) / 1e9,
                window_begin_s=(time - begin) / 1e9 - window[0],
                window_end_s=(time - begin) / 1e9 - window[1],
                values=[
                    float(r.value[k]) if is_here else None
                    for r, k, is_here in zip(mine, rows, here, strict=True)
                ],
            )
        )
    left_out = len(times) - len(shown)
    units = ["W" if r.kind == "power" else "J" for r in mine]
    return MeterSamples(meter, [r.domain for r in mine], units, samples, left_out)


def _used(run: Run, readings: Readings, row: int) -> Int:
    """Rows of the readings that the frame's figures by either method came from."""
    mine = [e for e in run.energy if (e.meter, e.domain) == (readings.meter, readings.domain)]
    ranges = [(int(e.first[row]), int(e.last[row])) for e in mine if e.first[row] >= 0]
    if not ranges:
        return np.empty(0, np.int64)
    return np.arange(min(first for first, _ in ranges), max(last for _, last in ranges) + 1)


def _window(readings: Readings, row: int, found: Attribution | None) -> tuple[float, float]:
    """How long before the reading its window began and ended (s)."""
    declared = (readings.window_ns or 0) / 1e9
    lag, width = (found.kernel.lag_s, found.kernel.width_s) if found else (0.0, declared)
    if readings.kind == "energy":
        width = int(readings.time[row] - readings.time[max(row - 1, 0)]) / 1e9
    return lag + width, lag


# -- text -------------------------------------------------------------------------------------


def render(frame: Explained) -> RenderableType:
    """The frame for a person."""
    parts: list[RenderableType] = [
        Text(f"Frame {frame.number} of {frame.pipeline}, {frame.outcome}", style="bold"),
        Text(f"Trace {frame.trace}"),
        Text(f"{frame.seconds * 1e3:.3f} ms, begun {frame.since_first_s:.3f} s after the first frame"),
    ]
    if frame.stages:
        table = table_of("Stage, ms", "begin", "end", "length")
        for s in frame.stages:
            times = (s.begin_s, s.begin_s + s.seconds, s.seconds)
            table.add_row(s.name, *(f"{t * 1e3:.3f}" for t in times))
        parts += ["", table]
    if frame.domains:
        for table in _energies(frame):
            parts += ["", table]
    for meter in frame.meters:
        parts += ["", *_meter(meter)]
    return Group(*parts)


def _energies(frame: Explained) -> Iterator[Table]:
    """Stages above base, together, with the frame's share of the base, and all while it was in flight."""
    known = [abs(d.conditioned.joules or d.interpolated.joules or 0.0) for d in frame.domains]
    unit, scale = unit_of(max(known) or inf)
    rows = [*(s.name for s in frame.stages), "its stages", "own share", "conditioned", "interpolated"]
    groups = []
    for i, d in enumerate(frame.domains):
        figures = [*(s.energy[i] for s in frame.stages), d.own, d.shared, d.conditioned, d.interpolated]
        groups.append([[d.domain, *(_shown(figure, scale) for figure in figures)]])
    return side_by_side(f"Energy, {unit}", rows, groups)


def _shown(figure: Figure, scale: float) -> str:
    return plus_minus(figure.joules, figure.uncertainty, scale) or "–"


def _meter(meter: MeterSamples) -> Iterator[RenderableType]:
    yield Text(f"Samples of {meter.meter}, ms from the frame's begin")
    if not meter.samples:
        yield Text("none: the frame lies outside them or in a gap")
        return
    table = table_of("at", "mean from", "to", *map(" ".join, zip(meter.domains, meter.units, strict=True)))
    for n, s in enumerate(meter.samples):
        if meter.left_out and n == MOST_SAMPLES // 2:
            table.add_row(f"… {meter.left_out} more")
        at = plus_minus(s.at_s, s.uncertainty_s, 1e3)
        window = (f"{t * 1e3:.2f}" for t in (s.window_begin_s, s.window_end_s))
        table.add_row(at, *window, *(number(value, 5) for value in s.values))
    yield table
