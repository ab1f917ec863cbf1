"""What a run's frames took: latency by stage, joules by domain, and what could not be resolved.

`make_report` computes plain data, `render` makes it readable at 80 columns, and `to_json` gives the
stable form that scripts read: the fields of `Report` under their names, seconds, joules and watts,
null where there is no figure.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import msgspec
import numpy as np
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from benchlab_otel.align.marks import latency, stage_time
from benchlab_otel.model import COMPLETED, OUTCOMES, Float, FrameEnergy, Frames, Int, Readings, Run

SCHEMA = 1  # of the JSON; a new number where a field's name or meaning changes


@dataclass(frozen=True, slots=True)
class Latency:
    """Time that frames spent in one stage, between two marks, or as a whole.

    `count` frames had it; `share` of the time of all frames (stages only). A stage's watts and
    joules take their place here once readings are attributed to stages.
    """

    name: str
    count: int
    p50_s: float
    p95_s: float
    p99_s: float
    max_s: float
    share: float | None = None


@dataclass(frozen=True, slots=True)
class Truth:
    """A simulation's own figures beside the measured ones, over the frames that were measured.

    `error_j` is the mean absolute error of a frame, `held` the share of 95 % intervals with the
    truth inside.
    """

    mean_j: float
    error_j: float
    held: float


@dataclass(frozen=True, slots=True)
class Energy:
    """Energy that a domain used while a frame was in flight, over the `frames` that its meter covered.

    `uncertainty_j` is the mean 95 % half width of a single frame. `in_flight_w` is energy over
    time in flight; `idle_w` the mean reading while no frame was in flight, null where there was none.
    """

    meter: str
    domain: str
    method: str
    frames: int
    coverage: float
    mean_j: float
    p50_j: float
    p95_j: float
    uncertainty_j: float
    in_flight_w: float | None
    idle_w: float | None
    readings: int
    rate_hz: float | None
    simulated: bool
    truth: Truth | None = None


@dataclass(frozen=True, slots=True)
class Report:
    """One pipeline of a session. `unresolved` says in words what has no figure, and why."""

    pipeline: str
    service: str
    frames: int
    outcomes: dict[str, int]
    seconds: float
    fps: float | None
    frame: Latency | None
    stages: list[Latency]
    pairs: list[Latency]
    energy: list[Energy]
    simulated: list[str] = field(default_factory=list)
    unresolved: list[str] = field(default_factory=list)


def make_report(run: Run, pairs: Sequence[str] = (), truth: Mapping[str, Float] | None = None) -> Report:
    """The report of a run; `truth` maps a domain to the true joules (n,) of each frame.

    Raises UnknownMark for a pair of marks that the run does not have.
    """
    frames = run.frames
    duration = (frames.end - frames.begin) / 1e9
    completed = frames.outcome == OUTCOMES.index(COMPLETED)
    return Report(
        pipeline=frames.pipeline,
        service=frames.service,
        frames=len(frames),
        outcomes={o: int((frames.outcome == i).sum()) for i, o in enumerate(OUTCOMES)},
        seconds=int(frames.end.max() - frames.begin.min()) / 1e9 if len(frames) else 0.0,
        fps=_rate(frames.end[completed]),
        frame=_latency("frame", duration[completed]),
        stages=list(_stages(frames, float(duration.sum()))),
        pairs=list(_pairs(frames, pairs)),
        energy=[e for e in (_energy(run, energy, truth or {}) for energy in run.energy) if e],
        simulated=_simulated(run),
        unresolved=list(_unresolved(run, duration[completed])),
    )


def to_json(reports: Sequence[Report], session: str, faults: Sequence[str] = ()) -> str:
    """`{"schema": 1, "session": …, "faults": [what could not be read], "runs": [the reports]}`."""
    whole = {"schema": SCHEMA, "session": session, "faults": list(faults), "runs": list(reports)}
    return msgspec.json.format(msgspec.json.encode(whole), indent=2).decode()


# -- figures ----------------------------------------------------------------------------------


def _rate(times: Int) -> float | None:
    """Events per second between the first and the last; None where there are not two."""
    if len(times) < 2 or times[-1] <= times[0]:
        return None
    return (len(times) - 1) * 1e9 / int(times[-1] - times[0])


def _latency(name: str, seconds: Float, whole: float | None = None) -> Latency | None:
    if not len(seconds):
        return None
    p50, p95, p99 = np.percentile(seconds, (50, 95, 99)).tolist()
    share = float(seconds.sum()) / whole if whole else None
    return Latency(name, len(seconds), p50, p95, p99, float(seconds.max()), share)


def _stages(frames: Frames, whole: float) -> Iterator[Latency]:
    for stage in frames.stage_names:
        seconds, present = stage_time(frames, stage)
        if found := _latency(stage, seconds[present], whole):
            yield found


def _pairs(frames: Frames, pairs: Sequence[str]) -> Iterator[Latency]:
    for pair in pairs:
        seconds, both = latency(frames, pair)
        if found := _latency(pair, seconds[both]):
            yield found


def _energy(run: Run, energy: FrameEnergy, truth: Mapping[str, Float]) -> Energy | None:
    known = np.isfinite(energy.energy)
    if not known.any():
        return None
    joules, half = energy.energy[known], energy.uncertainty[known]
    frames = run.frames
    seconds = float((frames.end - frames.begin)[known].sum()) / 1e9
    p50, p95 = np.percentile(joules, (50, 95)).tolist()
    readings = _readings_of(run, energy)
    return Energy(
        meter=energy.meter,
        domain=energy.domain,
        method=energy.method,
        frames=int(known.sum()),
        coverage=float(known.mean()),
        mean_j=float(joules.mean()),
        p50_j=p50,
        p95_j=p95,
        uncertainty_j=float(half.mean()),
        in_flight_w=float(joules.sum()) / seconds if seconds > 0 else None,
        idle_w=_idle_watts(frames, readings) if readings else None,
        readings=len(readings) if readings else 0,
        rate_hz=_rate(readings.time) if readings else None,
        simulated=energy.simulated,
        truth=_beside(truth[energy.domain][known], joules, half) if energy.domain in truth else None,
    )


def _beside(true: Float, measured: Float, half: Float) -> Truth:
    error = np.abs(measured - true)
    return Truth(float(true.mean()), float(error.mean()), float((error <= half).mean()))


def _readings_of(run: Run, energy: FrameEnergy) -> Readings | None:
    same = [r for r in run.readings if (r.meter, r.domain) == (energy.meter, energy.domain)]
    return same[0] if same else None


def _idle_watts(frames: Frames, readings: Readings) -> float | None:
    """Mean power at the readings (of a counter: between those) with no frame in flight."""
    if readings.kind == "power":
        watts = readings.value[_in_flight(frames, readings.time) == 0]
        return float(watts.mean()) if len(watts) else None
    begin, end = readings.time[:-1], readings.time[1:]
    started = np.searchsorted(np.sort(frames.begin), end) - np.searchsorted(np.sort(frames.begin), begin)
    idle = (started == 0) & (_in_flight(frames, begin) == 0)
    seconds = float((end - begin)[idle].sum()) / 1e9
    return float(np.diff(readings.value)[idle].sum()) / seconds if seconds > 0 else None


def _in_flight(frames: Frames, time: Int) -> Int:
    """How many frames are in flight at each time."""
    begun = np.searchsorted(np.sort(frames.begin), time, side="right")
    return begun - np.searchsorted(np.sort(frames.end), time, side="right")


def _simulated(run: Run) -> list[str]:
    named = [f"pipeline {run.frames.pipeline}"] if run.frames.simulated else []
    named += [f"meter {r.meter}" for r in run.readings if r.simulated]
    named += [f"meter {e.meter}" for e in run.energy if e.simulated]
    return list(dict.fromkeys(named))


def _unresolved(run: Run, durations: Float) -> Iterator[str]:
    """What has no figure or a wide one, each with its reason."""
    frames = run.frames
    if not len(frames):
        yield "no frame: nothing to measure"
        return
    if len(frames) == 1:
        yield "one frame: no frame rate, and percentiles are that frame's value"
    if not len(durations):
        yield "no frame completed: no frame latency"
    if not frames.stage_names:
        yield "no stages: the frames have no child spans"
    if not run.readings and not run.energy:
        yield "no joules: the session has no reading of any power or energy meter"
    reasons: dict[tuple[str, str], list[str]] = {}  # domains by meter and reason
    for readings in run.readings:
        for reason in _of_readings(run, readings, durations):
            reasons.setdefault((readings.meter, reason), []).append(readings.domain)
    for (meter, reason), domains in reasons.items():
        yield f"{', '.join(domains)} of {meter}: {reason}"


def _of_readings(run: Run, readings: Readings, durations: Float) -> Iterator[str]:
    mine = [e for e in run.energy if (e.meter, e.domain) == (readings.meter, readings.domain)]
    known = max((int(np.isfinite(e.energy).sum()) for e in mine), default=0)
    missing = len(run.frames) - known
    if not known:
        yield f"no joules: none of its {len(readings)} readings lie around a frame"
        return
    if missing:
        yield f"{missing} of {len(run.frames)} frames lie outside its readings or in a gap of them"
    between = float(np.median(np.diff(readings.time))) / 1e9
    if len(durations) and np.median(durations) < between:
        yield (
            f"no reading within a typical frame ({np.median(durations) * 1e3:.1f} ms; a reading every"
            f" {between * 1e3:.1f} ms): a single frame's joules are interpolated, see their ±"
        )


# -- text -------------------------------------------------------------------------------------


def render(report: Report) -> RenderableType:
    """The report for a person, at most 80 columns wide where names are short.

    Beside the mean of a frame's joules stands the mean half width of a single frame's 95 % interval.
    """
    parts: list[RenderableType] = [Text(_headline(report), style="bold")]
    if report.simulated:
        parts.append(Text(f"SIMULATED: {', '.join(report.simulated)}", style="bold yellow"))
    rows = [r for r in (report.frame, *report.stages, *report.pairs) if r]
    if rows:
        parts += ["", _latency_table(rows)]
    for meter in dict.fromkeys(e.meter for e in report.energy):
        parts += _meter([e for e in report.energy if e.meter == meter])
    if report.unresolved:
        parts += ["", Text("Not resolved", style="bold")]
        parts += [Padding(Text(f"- {line}"), (0, 0, 0, 2)) for line in report.unresolved]
    return Group(*parts)


def _headline(report: Report) -> str:
    words = [f"{report.pipeline}: {report.frames:,} frames in {report.seconds:.1f} s"]
    if report.fps is not None:
        words.append(f"{report.fps:.1f} fps")
    for outcome, count in report.outcomes.items():
        if outcome != COMPLETED and count:
            words.append(f"{count:,} {outcome} ({count / report.frames:.1%})")
    return ", ".join(words)


def _table(*columns: str) -> Table:
    """The first column is names, the others are figures."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column(columns[0], overflow="fold")
    for column in columns[1:]:
        table.add_column(column, justify="right", no_wrap=True)
    return table


def _latency_table(rows: Sequence[Latency]) -> Table:
    table = _table("Latency (ms)", "p50", "p95", "p99", "max", "of frame time", "frames")
    for r in rows:
        figures = [f"{s * 1e3:.2f}" for s in (r.p50_s, r.p95_s, r.p99_s, r.max_s)]
        table.add_row(r.name, *figures, "" if r.share is None else f"{r.share:.1%}", f"{r.count:,}")
    return table


def _meter(energies: Sequence[Energy]) -> list[RenderableType]:
    """The domains of one meter, beside their truth where that is known."""
    rate = energies[0].rate_hz
    title = f"Meter {energies[0].meter}" + (f", read at {rate:.3g} Hz" if rate else "")
    parts: list[RenderableType] = ["", Text(title, style="bold"), _energy_table(energies)]
    if any(e.truth for e in energies):
        parts += ["", _truth_table(energies)]
    return parts


def _energy_table(energies: Sequence[Energy]) -> Table:
    table = _table("Joules a frame", "mean", "± 95 %", "p50", "p95", "W in flight", "W idle", "covered")
    for e in energies:
        watts = ["" if w is None else f"{w:.1f}" for w in (e.in_flight_w, e.idle_w)]
        joules = [f"{j:.3g}" for j in (e.mean_j, e.uncertainty_j, e.p50_j, e.p95_j)]
        table.add_row(e.domain, *joules, *watts, f"{e.coverage:.1%}")
    return table


def _truth_table(energies: Sequence[Energy]) -> Table:
    table = _table("Beside the truth", "measured J", "true J", "mean error of a frame", "95 % held")
    for e in energies:
        if t := e.truth:
            error = f"{t.error_j:.3g} J ({t.error_j / t.mean_j:.1%})" if t.mean_j else f"{t.error_j:.3g} J"
            table.add_row(e.domain, f"{e.mean_j:.3g}", f"{t.mean_j:.3g}", error, f"{t.held:.1%}")
    return table
