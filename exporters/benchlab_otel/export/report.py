"""What a run's frames took: latency by stage, watts and joules by stage and domain, what has no figure.

`make_report` computes plain data, `report_text.render` makes it readable at 80 columns, and `to_json`
gives the stable form that scripts read: the fields of `Report` under their names, in seconds, joules
and watts, null where there is no figure. Each `uncertainty` is a 95 % half width.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np

from benchlab_otel.align.attribution.attribute import Attribution, PipelineEnergy
from benchlab_otel.align.attribution.compare import difference
from benchlab_otel.align.attribution.conserve import Ledger
from benchlab_otel.align.attribution.selfcheck import SelfCheck
from benchlab_otel.align.marks import latency, stage_time
from benchlab_otel.model import COMPLETED, OUTCOMES, Float, Frames, Int, Readings, Run

AS_RECORDED = (
    "joules as they were recorded, since the samples are gone: no ± of means over frames, and no base,"
    " window, ledger or self-check"
)
SCHEMA = 2  # of the JSON; a new number where a field's name or meaning changes


@dataclass(frozen=True, slots=True)
class Latency:
    """Time that frames spent in one stage, between two marks, or as a whole.

    `count` frames had it; `share` of the time of all frames (stages only).
    """

    name: str
    count: int
    p50_s: float
    p95_s: float
    p99_s: float
    max_s: float
    share: float | None = None


@dataclass(frozen=True, slots=True)
class KnownTruth:
    """What a simulation knows of one domain: each frame's joules (n,) while in flight, and of each stage
    its watts above base and its joules a frame."""

    frames: Float
    watts: Mapping[str, float]
    joules: Mapping[str, float]


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
class Joules:
    """Energy a frame by one method, over the `frames` that have it.

    `uncertainty_j` is the mean 95 % half width of a single frame.
    """

    frames: int
    mean_j: float
    p50_j: float
    p95_j: float
    uncertainty_j: float
    truth: Truth | None = None


@dataclass(frozen=True, slots=True)
class StageEnergy:
    """What a stage draws above base and takes of a frame, or all of `stages` where they can't be told apart.

    The uncertainties are those of the means over all frames, `spread_w` is how much the power varies
    from frame to frame (sd), `share` that of the frames' own joules. Without a figure `reason` says why;
    with one it says what the figure stands for.
    """

    stages: list[str]
    frames: int
    watts: float | None
    watts_uncertainty: float | None
    spread_w: float | None
    joules: float | None
    joules_uncertainty: float | None
    share: float | None
    reason: str
    true_watts: float | None = None
    true_joules: float | None = None


@dataclass(frozen=True, slots=True)
class Window:
    """Over what the meter averages: a `boxcar` of `width_s`, or a `lowpass` with that time constant, that
    ended `lag_s` before the reading. `origin`: found (from the pipeline's activity), configured, or
    not identifiable with a `reason`; then what is configured was used."""

    shape: str
    lag_s: float
    width_s: float
    origin: str
    reason: str = ""
    lag_uncertainty_s: float | None = None
    width_uncertainty_s: float | None = None
    clock: str = ""


@dataclass(frozen=True, slots=True)
class Energy:
    """What one domain of a meter used, over the share `coverage` of the frames that the meter covered.

    Joules a frame: all that the domain used while the frame was in flight (`conditioned` on all
    readings, or `interpolated` from those around it), the frame's `own` stages above base, and
    `shared`: own, and the base split evenly over the frames in flight. `base_w` is what the domain
    draws without any stage, `in_flight_w` energy over time in flight, `idle_w` the mean reading while no
    frame was in flight. `ledger` (J) tells where the energy went, of all pipelines, `check` how well each
    reading is predicted from all others. `reason` says why nothing is attributed to stages.
    """

    meter: str
    domain: str
    kind: str
    simulated: bool
    readings: int
    rate_hz: float | None
    coverage: float
    interpolated: Joules | None
    conditioned: Joules | None
    own: Joules | None
    shared: Joules | None
    stages: list[StageEnergy]
    base_w: float | None
    base_uncertainty_w: float | None
    in_flight_w: float | None
    idle_w: float | None
    window: Window | None
    ledger: Ledger | None
    check: SelfCheck | None
    reason: str


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two meters that see the same thing: first less second in W, ± its 95 % half width, over `seconds`.

    `ratio` of their energies; null figures with a `reason` where they share too little time.
    """

    first: str
    second: str
    watts: float
    uncertainty_w: float
    ratio: float
    seconds: float
    reason: str


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
    comparisons: list[Comparison]
    simulated: list[str] = field(default_factory=list)
    unresolved: list[str] = field(default_factory=list)


def make_report(
    run: Run,
    attributed: Sequence[tuple[Attribution, PipelineEnergy]] = (),
    pairs: Sequence[str] = (),
    truth: Mapping[str, KnownTruth] | None = None,
) -> Report:
    """The report of a run with what the meters tell of it; `truth` is by domain.

    Raises UnknownMark for a pair of marks that the run does not have.
    """
    frames = run.frames
    duration = (frames.end - frames.begin) / 1e9
    completed = frames.outcome == OUTCOMES.index(COMPLETED)
    domains = [_domain(run, readings, attributed, truth or {}) for readings in run.readings]
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
        energy=[e for e in domains if e.coverage > 0],
        comparisons=list(_comparisons([r for r in run.readings if len(r)])),
        simulated=_simulated(run),
        unresolved=list(_unresolved(run, domains, duration[completed])),
    )


def _comparisons(readings: Sequence[Readings]) -> Iterator[Comparison]:
    """Meters with a domain in common; RAPL's packages, all together, are the meter's `cpu`."""
    packages = _packages(readings)
    alone = packages[0] if len(packages) == 1 else None
    for i, first in enumerate(readings):
        for second in readings[i + 1 :]:
            names = {"cpu" if r is alone else r.domain for r in (first, second)}
            if first.meter != second.meter and len(names) == 1:
                yield _comparison(first, [second])
        if len(packages) > 1 and first.domain == "cpu" and first.meter != packages[0].meter:
            yield _comparison(first, packages)


def _packages(readings: Sequence[Readings]) -> list[Readings]:
    """All packages of a host; none where several meters have some, or the number of one is left out, as
    its counter can't be read."""
    found = [r for r in readings if r.domain.startswith("package")]
    numbers = {int(match[1]) for r in found if (match := re.match(r"package-(\d+)", r.domain))}
    complete = numbers == set(range(len(numbers))) and (numbers or len(found) == 1)
    return found if complete and len({r.meter for r in found}) == 1 else []


def _comparison(first: Readings, parts: Sequence[Readings]) -> Comparison:
    found = difference(first, *parts)
    return Comparison(
        first=f"{first.domain} of {first.meter}",
        second=f"{' + '.join(r.domain for r in parts)} of {parts[0].meter}",
        watts=found.watts,
        uncertainty_w=found.uncertainty,
        ratio=found.ratio,
        seconds=found.seconds,
        reason=found.reason,
    )


def to_json(reports: Sequence[Report], session: str, faults: Sequence[str] = ()) -> str:
    """`{"schema": 2, "session": …, "faults": [what could not be read], "runs": [the reports]}`.

    Energies and what they come from have six digits, more than any is certain to.
    """
    runs = _plain(reports)
    for run in runs:
        run["energy"] = six_digits(run["energy"])
    return dump_json({"schema": SCHEMA, "session": session, "faults": list(faults), "runs": runs})


def dump_json(data: Any) -> str:
    """Dataclasses, lists and figures as JSON to read; what is not finite becomes null."""
    return msgspec.json.format(msgspec.json.encode(_plain(data)), indent=2).decode()


def _plain(data: Any) -> Any:
    return msgspec.to_builtins(data, enc_hook=float)  # NumPy's floats are not msgspec's


def six_digits(data: Any) -> Any:
    """The same plain data with all floats rounded to six significant digits."""
    if isinstance(data, dict):
        return {key: six_digits(value) for key, value in data.items()}
    if isinstance(data, list):
        return [six_digits(value) for value in data]
    return float(f"{data:.6g}") if isinstance(data, float) else data


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


def _domain(
    run: Run,
    readings: Readings,
    attributed: Sequence[tuple[Attribution, PipelineEnergy]],
    truth: Mapping[str, KnownTruth],
) -> Energy:
    """The figures of one domain of one meter."""
    key, known = (readings.meter, readings.domain), truth.get(readings.domain)
    methods = {e.method: e for e in run.energy if (e.meter, e.domain) == key}
    true = known.frames if known else None
    by = {name: joules_of(e.energy, e.uncertainty, true) for name, e in methods.items()}
    best = methods.get("conditioned") or methods.get("interpolated")
    covered = np.isfinite(best.energy) if best else np.zeros(len(run.frames), np.bool_)
    seconds = float((run.frames.end - run.frames.begin)[covered].sum()) / 1e9
    found, energy = next(((a, e) for a, e in attributed if (a.meter, a.domain) == key), (None, None))
    return Energy(
        meter=readings.meter,
        domain=readings.domain,
        kind=readings.kind,
        simulated=readings.simulated,
        readings=len(readings),
        rate_hz=_rate(readings.time),
        coverage=float(covered.mean()) if len(covered) else 0.0,
        interpolated=by.get("interpolated"),
        conditioned=by.get("conditioned"),
        own=joules_of(energy.own, energy.own_uncertainty) if energy else None,
        shared=joules_of(energy.shared, energy.shared_uncertainty) if energy else None,
        stages=list(_stage_energies(found, run.frames, known)) if found else [],
        base_w=_finite(found.base_watts) if found else None,
        base_uncertainty_w=_finite(found.base_uncertainty) if found else None,
        in_flight_w=float(best.energy[covered].sum()) / seconds if best and seconds > 0 else None,
        idle_w=_idle_watts(run.frames, readings),
        window=_window(found) if found and len(readings) else None,
        ledger=found.ledger if found else None,
        check=found.check if found else None,
        reason=found.reason if found else "",
    )


def joules_of(energy: Float, half: Float, true: Float | None = None) -> Joules | None:
    """Figures of one kind of energy (n,) J ± (n,), over the frames that have it; None where none has."""
    known = np.isfinite(energy)
    if not known.any():
        return None
    p50, p95 = np.percentile(energy[known], (50, 95)).tolist()
    return Joules(
        frames=int(known.sum()),
        mean_j=float(energy[known].mean()),
        p50_j=p50,
        p95_j=p95,
        uncertainty_j=float(half[known].mean()),
        truth=_beside(true[known], energy[known], half[known]) if true is not None else None,
    )


def _beside(true: Float, measured: Float, half: Float) -> Truth:
    error = np.abs(measured - true)
    return Truth(float(true.mean()), float(error.mean()), float((error <= half).mean()))


def _stage_energies(found: Attribution, frames: Frames, truth: KnownTruth | None) -> Iterator[StageEnergy]:
    mine = [figure for figure in found.stages if figure.pipeline == frames.pipeline]
    sums = [figure.joules * figure.frames for figure in mine if np.isfinite(figure.joules)]
    halves = [figure.joules_uncertainty * figure.frames for figure in mine if np.isfinite(figure.joules)]
    total = sum(sums)
    clear = total > np.hypot.reduce(halves, initial=0.0)  # else a share would be one of noise
    for figure in mine:
        joules, name = _finite(figure.joules), figure.group[0]
        told = truth if joules is not None and len(figure.group) == 1 else None
        yield StageEnergy(
            stages=figure.group,
            frames=figure.frames,
            watts=_finite(figure.watts),
            watts_uncertainty=_finite(figure.watts_uncertainty),
            spread_w=_finite(figure.spread),
            joules=joules,
            joules_uncertainty=_finite(figure.joules_uncertainty),
            share=joules * figure.frames / total if clear and joules is not None else None,
            reason=figure.reason,
            true_watts=told.watts.get(name) if told else None,
            true_joules=told.joules.get(name) if told else None,
        )


def _window(found: Attribution) -> Window:
    kernel, identified = found.kernel, found.identification
    if identified is None:
        return Window(kernel.shape, kernel.lag_s, kernel.width_s, "configured")
    if not identified.found:
        return Window(kernel.shape, kernel.lag_s, kernel.width_s, "not identifiable", identified.reason)
    width = _finite(identified.width_uncertainty_s)
    lag = _finite(identified.lag_uncertainty_s)
    return Window(kernel.shape, kernel.lag_s, kernel.width_s, "found", "", lag, width, identified.clock)


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None


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
    return list(dict.fromkeys(named))


def _unresolved(run: Run, domains: Sequence[Energy], durations: Float) -> Iterator[str]:
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
    if not domains:
        yield "no joules: the session has no reading of a power or energy meter"
    if any(domain.coverage > 0 and not domain.readings for domain in domains):
        yield AS_RECORDED
    reasons: dict[tuple[str, str], list[str]] = {}  # the domains of a meter often share their reason
    for domain in domains:
        for reason in dict.fromkeys(_of_domain(domain, len(frames), durations)):
            reasons.setdefault((domain.meter, reason), []).append(domain.domain)
    for (meter, reason), names in reasons.items():
        yield f"{', '.join(names)} of {meter}: {reason}"


def _of_domain(domain: Energy, frames: int, durations: Float) -> Iterator[str]:
    best = domain.conditioned or domain.interpolated
    if best is None:
        yield f"no joules: none of its {domain.readings} readings lie around a frame"
        return
    if best.frames < frames:
        missing = frames - best.frames
        why = "lie outside its readings or in a gap of them" if domain.readings else "have no joules recorded"
        yield f"{missing:,} of {frames:,} frames {why}"
    if domain.reason:
        yield f"nothing for stages: {domain.reason}"
    for stage in domain.stages:
        if stage.reason:
            named = all(name in stage.reason for name in stage.stages)
            yield stage.reason if named else f"{' + '.join(stage.stages)}: {stage.reason}"
    typical = float(np.median(durations)) if len(durations) else np.inf
    if domain.conditioned is None and domain.rate_hz and typical < 1 / domain.rate_hz:
        yield (
            f"no reading within a typical frame ({typical * 1e3:.1f} ms; a reading every"
            f" {1e3 / domain.rate_hz:.1f} ms): a single frame's joules are interpolated, see their ±"
        )
