"""What changed between sessions beyond chance: latency and joules, stage by stage.

Every figure of a session is an estimate: its standard error joins how much frames vary (block bootstrap,
`export.bootstrap`) with how well the energies are known at all (the attribution's intervals, which frames
share, so that more frames don't shrink them). Two sessions differ in a figure where Welch's test says so
after Holm's correction for all figures that are compared (Holm, Scandinavian Journal of Statistics 6,
1979): if nothing changed, the chance that anything at all is called changed is at most 5 %.

It says that sessions differ, not why: heat, other load and the order of runs differ too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from scipy.special import stdtr, stdtrit

from benchlab_otel.align.attribution.attribute import Attribution, PipelineEnergy, StageFigure
from benchlab_otel.align.attribution.work import WHOLE_FRAME
from benchlab_otel.align.marks import latency, stage_time
from benchlab_otel.export.bootstrap import Estimate, mean, nothing, quantiles
from benchlab_otel.export.recording import Recording, of_run
from benchlab_otel.model import COMPLETED, OUTCOMES, Float, Frames, Int, Run

LEVEL = 0.05
NORMAL_95 = 1.959963984540054
QUANTILES = {"p50": 0.5, "p95": 0.95, "p99": 0.99}


@dataclass(frozen=True, slots=True)
class Figure:
    """An estimate in `unit`; `shared` is the standard error that all frames have in common."""

    unit: str
    estimate: Estimate
    shared: float = 0.0


@dataclass(frozen=True, slots=True)
class Change:
    """A figure of one session against that of the first: after less before ± its 95 % half width, and
    the same relative to before. `p` is that of Welch's test, `p_adjusted` after Holm's correction,
    `changed` whether that is below 5 %. What can't be told is null, with a `reason`."""

    figure: str
    unit: str
    before: float | None
    after: float | None
    change: float | None = None
    uncertainty: float | None = None
    relative: float | None = None
    relative_uncertainty: float | None = None
    p: float | None = None
    p_adjusted: float | None = None
    changed: bool = False
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Comparison:
    """The changes of one pipeline in one session; `only_before`, `only_after`: figures of one of the two."""

    pipeline: str
    before: str
    after: str
    frames_before: int
    frames_after: int
    changes: list[Change]
    only_before: list[str] = field(default_factory=list)
    only_after: list[str] = field(default_factory=list)
    simulated: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Missing:
    """A pipeline that one session has and the other has not, so that nothing of it was compared."""

    pipeline: str
    present: str
    absent: str


class NotComparable(ValueError):
    """The sessions have no pipeline in common; the message says what they have."""


def compare(
    sessions: Sequence[tuple[str, Recording]], pairs: Sequence[str] = (), pipeline: str | None = None
) -> list[Comparison]:
    """Each further (name, recording) against the first, for each pipeline that they have in common.

    Two sessions of one pipeline each are compared whatever their pipelines' names. Raises NotComparable,
    and UnknownMark or ValueError for `pairs` of marks.
    """
    (first, baseline), *others = sessions
    out = []
    for name, recording in others:
        for label, i, j in _matched((first, baseline), (name, recording), pipeline):
            out.append(_comparison(label, first, baseline, i, name, recording, j, pairs))
    return _holm(out)


def missing(sessions: Sequence[tuple[str, Recording]], pipeline: str | None = None) -> list[Missing]:
    """The pipelines that `compare` of the same leaves out."""
    (first, baseline), *others = sessions
    out = []
    for name, recording in others:
        before, after = _runs(baseline, pipeline), _runs(recording, pipeline)
        if not _one_each(before, after, pipeline):
            out += [Missing(p, first, name) for p in before if p not in after]
            out += [Missing(p, name, first) for p in after if p not in before]
    return out


def _matched(
    before: tuple[str, Recording], after: tuple[str, Recording], only: str | None
) -> list[tuple[str, int, int]]:
    """What to call and which are the runs of two sessions that belong together."""
    old, new = _runs(before[1], only), _runs(after[1], only)
    if _one_each(old, new, only):
        return [(name, 0, 0) for name in new]
    common = [name for name in old if name in new]
    if not common:
        there = [", ".join(_runs(recording, None)) or "none" for _, recording in (before, after)]
        raise NotComparable(
            f"no pipeline {'in common' if only is None else repr(only) + ' in both'}: {before[0]} has"
            f" {there[0]}, {after[0]} has {there[1]}"
        )
    return [(name, old[name], new[name]) for name in common]


def _one_each(before: dict[str, int], after: dict[str, int], only: str | None) -> bool:
    return only is None and len(before) == len(after) == 1


def _runs(recording: Recording, only: str | None) -> dict[str, int]:
    """The runs by their pipeline's name, with the service's where several have a pipeline of the name."""
    names = [run.frames.pipeline for run in recording.runs]
    return {
        name if names.count(name) == 1 else f"{name} of {recording.runs[i].frames.service}": i
        for i, name in enumerate(names)
        if only in (None, name)
    }


def _comparison(
    pipeline: str,
    first: str,
    baseline: Recording,
    i: int,
    name: str,
    recording: Recording,
    j: int,
    pairs: Sequence[str],
) -> Comparison:
    old, new = baseline.runs[i], recording.runs[j]
    a, b = (figures(run, of_run(r, k), pairs) for run, r, k in ((old, baseline, i), (new, recording, j)))
    return Comparison(
        pipeline=pipeline,
        before=first,
        after=name,
        frames_before=len(old.frames),
        frames_after=len(new.frames),
        changes=[change(key, a[key], b[key]) for key in a if key in b],
        only_before=[key for key in a if key not in b],
        only_after=[key for key in b if key not in a],
        simulated=[f"{first}: {what}" for what in _simulated(old)]
        + [f"{name}: {what}" for what in _simulated(new)],
    )


def _simulated(run: Run) -> list[str]:
    pipeline = [run.frames.pipeline] if run.frames.simulated else []
    return [*pipeline, *dict.fromkeys(r.meter for r in run.readings if r.simulated)]


# -- one session's figures --------------------------------------------------------------------


def figures(
    run: Run, attributed: Sequence[tuple[Attribution, PipelineEnergy]], pairs: Sequence[str] = ()
) -> dict[str, Figure]:
    """All that is compared, by name: `fps`, `drops`, `latency.STAGE.STATISTIC`, `energy.DOMAIN.STAGE`."""
    return {**_rates(run.frames), **_latencies(run.frames, pairs), **_energies(run, attributed)}


def _rates(frames: Frames) -> dict[str, Figure]:
    done = frames.outcome == OUTCOMES.index(COMPLETED)
    interval = mean(np.diff(frames.end[done]) / 1e9)
    rate = nothing("fewer than two completed frames")
    if interval.value > 0:
        rate = replace(interval, value=1 / interval.value, error=interval.error / interval.value**2)
    return {
        "fps": Figure("1/s", rate),
        "drops": Figure("share", mean((~done).astype(np.float64))),
    }


def _latencies(frames: Frames, pairs: Sequence[str]) -> dict[str, Figure]:
    done = frames.outcome == OUTCOMES.index(COMPLETED)
    times = {"frame": ((frames.end - frames.begin) / 1e9)[done]}
    for stage in frames.stage_names:
        seconds, present = stage_time(frames, stage)
        times[stage] = seconds[present]
    for pair in pairs:
        seconds, both = latency(frames, pair)
        times[pair] = seconds[both]
    out = {}
    for name, values in times.items():
        out[f"latency.{name}.mean"] = Figure("s", mean(values))
        for label, found in zip(QUANTILES, quantiles(values, list(QUANTILES.values())), strict=True):
            out[f"latency.{name}.{label}"] = Figure("s", found)
    return out


def _energies(run: Run, attributed: Sequence[tuple[Attribution, PipelineEnergy]]) -> dict[str, Figure]:
    """Joules a frame by domain: all while in flight, the frame's own share, and each stage's.

    Where nothing is attributed they are interpolated, and named so: the two don't compare.
    """
    out: dict[str, Figure] = {}
    taken: set[str] = set()
    for readings in run.readings:
        key = (readings.meter, readings.domain)
        domain = readings.domain if readings.domain not in taken else f"{readings.domain}@{readings.meter}"
        taken.add(readings.domain)
        found = next(((a, e) for a, e in attributed if (a.meter, a.domain) == key), None)
        if found is not None and np.isfinite(found[1].energy).any():
            out |= _conditioned(domain, run.frames, *found)
            continue
        plain = next((e for e in run.energy if (e.meter, e.domain) == key), None)
        if plain is not None and np.isfinite(plain.energy).any():
            out[f"energy.{domain}.interpolated"] = _joules(plain.energy, plain.uncertainty, np.inf)
    return out


def _conditioned(
    domain: str, frames: Frames, found: Attribution, energy: PipelineEnergy
) -> dict[str, Figure]:
    mine = [s for s in found.stages if s.pipeline == frames.pipeline and np.isfinite(s.joules)]
    parts, ledger = _sum_of_parts(frames, found, energy, mine), _by_ledger(found, energy)
    alone = np.array_equal(energy.energy, energy.shared, equal_nan=True)
    out = {
        f"energy.{domain}.frame": _joules(
            energy.energy, energy.energy_uncertainty, min(parts, ledger) if alone else parts
        ),
        f"energy.{domain}.shared": _joules(energy.shared, energy.shared_uncertainty, min(parts, ledger)),
    }
    for stage in mine:
        if stage.group == [WHOLE_FRAME]:
            continue  # frames without stages: that is the frame's own figure
        out[f"energy.{domain}.{'+'.join(stage.group)}"] = _of_stage(frames, energy, stage)
    return out


def _sum_of_parts(
    frames: Frames, found: Attribution, energy: PipelineEnergy, stages: Sequence[StageFigure]
) -> float:
    """What the mean of frames' joules can be off (95 %) if stages and base are off the same way."""
    length = float(np.mean((frames.end - frames.begin) / 1e9))
    covered = max(int(np.isfinite(energy.energy).sum()), 1)
    parts = [s.joules_uncertainty * s.frames / covered for s in stages] + [found.base_uncertainty * length]
    return float(sum(parts)) if np.isfinite(parts).all() else np.inf


def _by_ledger(found: Attribution, energy: PipelineEnergy) -> float:
    """The same from the other side: all shares are what was measured, less the base while idle."""
    ledger, frames = found.ledger, int(np.isfinite(energy.shared).sum())
    if ledger is None or len(found.pipelines) != 1 or not frames or not found.base_watts > 0:
        return np.inf
    idle = abs(ledger.idle) * found.base_uncertainty / found.base_watts
    bound = (ledger.residual_uncertainty + idle) / frames
    return bound if np.isfinite(bound) else np.inf


def _joules(energy: Float, half: Float, bound: float) -> Figure:
    """The mean of frames' joules; `bound` J is what the 95 % half width of the mean can be at most."""
    known = np.isfinite(energy)
    at_most = min(float(half[known].mean()), bound)
    return Figure("J", _of_frames(energy[known], half[known]), at_most / NORMAL_95)


def _of_stage(frames: Frames, energy: PipelineEnergy, stage: StageFigure) -> Figure:
    """A stage's joules a frame, or a group's."""
    codes = [frames.stage_names.index(name) for name in stage.group if name in frames.stage_names]
    rows = np.flatnonzero(np.isin(frames.stage, codes) & np.isfinite(energy.stage))
    owner, value = _by_frame(frames.stage_frame[rows], energy.stage[rows])
    _, half = _by_frame(frames.stage_frame[rows], energy.stage_uncertainty[rows])
    estimate = _of_frames(value[owner], half[owner]) if len(owner) else nothing("no frame has a figure")
    if np.isfinite(estimate.value):
        estimate = replace(estimate, value=stage.joules)
    bound = stage.joules_uncertainty
    if not np.isfinite(bound) and len(half):
        bound = float(half.mean())  # no mean is off by more than its frames are on average
    return Figure("J", estimate, bound / NORMAL_95)


def _by_frame(frame: Int, values: Float) -> tuple[Int, Float]:
    """(frames that have any, sums by frame)."""
    return np.unique(frame), np.bincount(frame, values).astype(np.float64)


def _of_frames(joules: Float, half: Float) -> Estimate:
    """The mean of what frames took. They vary by more than their estimates do: each has its own error."""
    found = mean(joules)
    own = float(np.mean((half / NORMAL_95) ** 2)) / len(joules)
    return replace(found, error=float(np.hypot(found.error, np.sqrt(own))))


# -- two figures ------------------------------------------------------------------------------


def change(name: str, before: Figure, after: Figure) -> Change:
    """One figure of two sessions."""
    a, b = before.estimate, after.estimate
    known = Change(name, before.unit, _finite(a.value), _finite(b.value))
    reason = a.reason or b.reason
    if reason or not np.isfinite([a.value, b.value, a.error, b.error]).all():
        return replace(known, reason=reason or "no figure")
    parts = [(a.error**2, a.freedom), (b.error**2, b.freedom), (before.shared**2 + after.shared**2, np.inf)]
    variance = sum(v for v, _ in parts)
    difference = b.value - a.value
    lost = sum(v**2 / max(f, 1) for v, f in parts)
    freedom = variance**2 / lost if lost > 0 else np.inf  # Welch & Satterthwaite
    reach = float(stdtrit(freedom, 1 - LEVEL / 2))
    sure = difference == 0 if variance == 0 else 2 * stdtr(freedom, -abs(difference) / np.sqrt(variance))
    halves = [reach * float(np.hypot(f.estimate.error, f.shared)) for f in (before, after)]
    relative, relative_half = _relative(a.value, b.value, *halves)
    return replace(
        known,
        change=difference,
        uncertainty=reach * float(np.sqrt(variance)),
        relative=relative,
        relative_uncertainty=relative_half,
        p=float(sure),
    )


def _relative(
    before: float, after: float, half_before: float, half_after: float
) -> tuple[float | None, float | None]:
    """The change as a share of what was before ± by the error of the quotient; None where that is 0."""
    if before == 0:
        return None, None
    half = float(np.hypot(half_after, after / before * half_before)) / abs(before)
    return (after - before) / abs(before), half


def _holm(comparisons: list[Comparison]) -> list[Comparison]:
    """All changes with their p adjusted for how many there are."""
    flat = [c for comparison in comparisons for c in comparison.changes]
    tested = sorted((c.p, i) for i, c in enumerate(flat) if c.p is not None)
    highest = 0.0
    for rank, (p, i) in enumerate(tested):
        highest = max(highest, min(1.0, p * (len(tested) - rank)))
        flat[i] = replace(flat[i], p_adjusted=highest, changed=highest < LEVEL)
    place = 0
    out = []
    for comparison in comparisons:
        end = place + len(comparison.changes)
        out.append(replace(comparison, changes=flat[place:end]))
        place = end
    return out


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None
