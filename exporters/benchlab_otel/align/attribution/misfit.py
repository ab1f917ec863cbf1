"""Whether the readings contradict the model: a score test for marks that are early or late and for
stages whose power swings unseen, and what it widens.

A mark (the begin or end of a stage, in all frames) that is recorded δ s late leaves W δ joules out
where the stage begins, and has W δ too many where it ends. To first order that is one more column of
the model for each mark, G. With P of restricted likelihood, GᵀPz (GᵀPG)⁻¹ is χ² where no mark is off
(a score test, Rao 1948), and needs no refit. Where chance can't explain it, δ given the readings has
the mean m = (GᵀPG + Λ)⁻¹ GᵀPz and the covariance (GᵀPG + Λ)⁻¹; no figure is moved, but everything
that δ would move is widened by δ's second moment, that covariance + m mᵀ.

A stage's power that follows something without marks looks like a base that moves. So the base's slow
movement b(t), too, is one more column for each stage: what it would be if the stage alone made it, in
step with the stage's activity (one degree of freedom for nonadditivity, Tukey 1949).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from benchlab_otel.align.attribution.condition import Posterior, Wanted, base_power
from benchlab_otel.align.attribution.overlap import Weight, overlap, ragged
from benchlab_otel.align.attribution.windows import Windows
from benchlab_otel.model import Float, Int

_SMEAR = 0.5e-3  # s before and after a mark; what it is wrong by is spread over them
_USUAL = 2e-3  # s, sd of a mark's error before the readings are asked
_SAME = 1e-6  # s; marks closer than this are one
_NEAR, _FAR = (4, 0.2), (10, 1.0)  # readings at least, and s, on both sides: left out, and taken in
_LEAST_DUTY = 0.01
_ASKED = 512  # marks that are looked up to tell whether two kinds are the same
_SURE = 4.0  # sd that chance is allowed, as in `selfcheck`
_BLIND = 1e-7  # of a direction's information if the watts were known: less is nothing
_EXPLAINS = 0.9  # share of χ² that one cause must explain to be named


@dataclass(slots=True)
class Misfit:
    """What would be otherwise if the model is wrong so, in r independent directions of one sd each:
    `power` (stages, r) W of each stage, `once` (stages, r) J of each occurrence, `base` (r,) W; per W
    that the base is above `level`, `swing` (stages, r) W of each stage and `back` (r,) W of the base;
    `finding` in words."""

    power: Float
    once: Float
    base: Float
    level: float
    swing: Float
    back: Float
    finding: str

    def moves(self, posterior: Posterior, length: Float) -> Moved:
        """What it moves of a posterior whose pieces are parts of occurrences `length` (m,) s long."""
        pieces = posterior.design.pieces
        middle, base = slow_base(posterior)
        above = base - self.level
        none = np.zeros((len(self.base), len(pieces)))
        once = np.divide(self.once[pieces.stage].T, length, out=none, where=length > 0)
        at = np.interp((pieces.begin + pieces.end) / 2, middle, above)
        moved = self.power[pieces.stage] + once.T + at[:, None] * self.swing[pieces.stage]
        return Moved(moved, self.base, self.back, middle, above)


@dataclass(slots=True)
class Moved:
    """`pieces` (m, r) W of each piece and `base` (r,) W in each direction of a `Misfit`, and `back` (r,)
    for each W that the base is `above` its mean at the `times` (n,) s."""

    pieces: Float
    base: Float
    back: Float
    times: Float
    above: Float

    def variance(self, wanted: Wanted) -> Float:
        """(f,) J²: what it adds to the variance of the wanted energies."""
        moved = wanted.seconds @ self.pieces
        if wanted.lo is not None and wanted.hi is not None and wanted.weight is not None:
            weight = wanted.weight(wanted.hi) - wanted.weight(wanted.lo)
            above = np.interp((wanted.lo + wanted.hi) / 2, self.times, self.above)
            moved = moved + weight[:, None] * (self.base + np.outer(above, self.back))
        added: Float = np.sum(moved**2, axis=1)
        return added

    def variance_of_total(self, seconds: Float, lo: float, hi: float, weight: Weight) -> float:
        """J²: the same of one energy that reaches over many rows, `seconds` (m,) of the pieces."""
        middle = np.clip((self.times[1:] + self.times[:-1]) / 2, lo, hi)
        each = np.diff(weight(np.concatenate([[lo], middle, [hi]])))
        moved = seconds @ self.pieces + each.sum() * self.base + (each @ self.above) * self.back
        return float(moved @ moved)


def slow_base(posterior: Posterior) -> tuple[Float, Float]:
    """Times (n,) s and the base (n,) W around them, the mean of some seconds but for the readings close by.

    Chance in a reading moves the base at it, too; what both have in common would look like a swing.
    """
    rows = posterior.design.rows
    middle = (rows.lo + rows.hi) / 2
    base = base_power(posterior, middle)
    near, far = (max(least, round(s / rows.period)) for least, s in (_NEAR, _FAR))
    around = _running_sum(base, far) - _running_sum(base, near)
    return middle, around / (2 * (far - near))


def _running_sum(values: Float, half: int) -> Float:
    """(n,): the sum of each value and `half` ones on both sides; the first and last one go on for ever."""
    sums = np.cumsum(np.append(0.0, np.pad(values, half, mode="edge")))
    return sums[2 * half + 1 :] - sums[: -2 * half - 1]


def misfit(posterior: Posterior, begin: Float, end: Float, stage: Int, names: list[str]) -> Misfit | None:
    """What would be otherwise, None where chance explains the readings as well.

    `begin`, `end` (m,) s are the marks of stages `stage` (m,), columns of the design named `names`.
    """
    design, solved = posterior.design, posterior.solved
    stages = design.pieces.stages
    if not stages:
        return None
    times = [np.sort(side[stage == s], kind="stable") for side in (begin, end) for s in range(stages)]
    mark, said = _distinct_marks(times, names)
    moves = np.zeros((2 * stages, len(said)))  # of a stage's begin or end with each mark
    moves[np.arange(2 * stages), mark] = 1.0
    late = np.append(solved.watts, -solved.watts)
    densities: list[Float] = []
    for k, t in enumerate(times):  # most stages begin where another one ends
        same = next((j for j in range(k) if np.array_equal(times[j], t)), None)
        densities.append(_density(design.rows, t) if same is None else densities[same])
    shifted = np.column_stack(densities) @ (late[:, None] * moves)
    level, swung, duty = _swings(posterior)
    rows = np.hstack([shifted, swung])
    taken, information, alone, score = _tested(posterior, np.diff(rows, axis=0))
    marks, k = len(said), len(said) + stages
    said += [f"the power of {n}" for n in names]
    chi2, degrees = _chi2(information, alone, score)
    if chi2 < degrees + _SURE * np.sqrt(2 * degrees) + _SURE**2:
        return None
    usual = np.append(np.full(marks, _USUAL), 1 / np.maximum(duty, _LEAST_DUTY))
    covariance = np.linalg.inv(information + np.diag(usual**-2.0))
    mean = covariance @ score
    values, vectors = np.linalg.eigh(covariance + np.outer(mean, mean))
    sds = vectors * np.sqrt(np.maximum(values, 0.0))
    power = -taken @ sds
    base = -np.mean(rows @ sds + design.active @ power, axis=0)
    once = (late[:, None] * (moves @ sds[:marks])).reshape(2, stages, k).sum(axis=0)
    finding = _finding(chi2, score, information, said, marks)
    return Misfit(power, once, base, level, sds[marks:], -duty @ sds[marks:], finding)


def _tested(posterior: Posterior, columns: Float) -> tuple[Float, Float, Float, Float]:
    """What the watts take up (stages, k) of more columns (n − 1, k) of the model, their information (k, k)
    and that (k,) if the watts were known, and their score (k,)."""
    design, solved = posterior.design, posterior.solved
    pulled = solved.factor.solve(columns)
    against = design.contrast.T @ pulled
    taken = solved.covariance @ against
    known = columns.T @ pulled
    information, alone = known - against.T @ taken, np.diag(known)
    information += 1e-9 * np.diag(np.maximum(np.diag(information), np.finfo(float).tiny))
    return taken, information, alone, columns.T @ solved.alpha


def _chi2(information: Float, alone: Float, score: Float) -> tuple[float, int]:
    """χ² and its degrees of freedom: directions of which the watts leave nothing, as of the marks of a stage
    that ran once, are none."""
    size = np.divide(1.0, np.sqrt(alone), out=np.zeros(len(alone)), where=alone > 0)
    values, vectors = np.linalg.eigh(information * np.outer(size, size))
    told = values > _BLIND
    found = (vectors.T @ (score * size))[told]
    return float(np.sum(found**2 / values[told])), int(np.count_nonzero(told))


def _swings(posterior: Posterior) -> tuple[float, Float, Float]:
    """The base's mean, what the readings would be (n, stages) W if each stage alone made the base's slow
    movement, 1 W of it a W, and the share of the time (stages,) that each is active."""
    design = posterior.design
    pieces = design.pieces
    middle, base = slow_base(posterior)
    level = float(base.mean())
    above = np.interp((pieces.begin + pieces.end) / 2, middle, base) - level
    columns = [design.overlap @ np.where(pieces.stage == s, above, 0.0) for s in range(pieces.stages)]
    return level, np.column_stack(columns), design.active.mean(axis=0)


def _distinct_marks(times: list[Float], names: list[str]) -> tuple[Int, list[str]]:
    """The number (2 stages,) of each begin's, then each end's mark, and the marks' names; a begin that
    coincides with an end is the same mark."""
    stages = len(names)
    mark, said = np.arange(2 * stages), [f"the begin of {n}" for n in names]
    for e in range(stages):
        same = [b for b in range(stages) if _coincide(times[b], times[stages + e])]
        mark[stages + e] = same[0] if same else len(said)
        if same:
            said[same[0]] = f"the mark between {names[e]} and {names[same[0]]}"
        else:
            said.append(f"the end of {names[e]}")
    return mark, said


def _coincide(a: Float, b: Float) -> bool:
    """Whether most of the times `a` (n,) s are also in `b` (k,) s, by some hundreds; both ascending."""
    if not len(a) or not len(b):
        return False
    a = a[:: max(len(a) // _ASKED, 1)]
    near = np.concatenate([[-np.inf], b, [np.inf]])
    k = np.searchsorted(near, a)
    return bool(np.mean(np.minimum(near[k] - a, a - near[k - 1]) < _SAME) > 0.5)


def _density(rows: Windows, times: Float) -> Float:
    """(n,) 1/s: the weight of each row's window at the times."""
    if rows.tau:
        weights = overlap(rows.lo, rows.hi, times - _SMEAR, times + _SMEAR, rows.tau)
        return np.asarray(weights.sum(axis=1), float).ravel() / (2 * _SMEAR)
    return (_passed(times, rows.hi) - _passed(times, rows.lo)) / (rows.hi - rows.lo)


def _passed(times: Float, at: Float) -> Float:
    """How many of the times, ascending and each spread over ± `_SMEAR`, lie before `at` (n,) s."""
    first = np.searchsorted(times, at - _SMEAR, "right")
    near, k = ragged(first, np.searchsorted(times, at + _SMEAR, "left"))
    parts = np.bincount(near, (at[near] - times[k] + _SMEAR) / (2 * _SMEAR), len(at))
    return np.asarray(first + parts, float)


def _finding(chi2: float, score: Float, information: Float, said: list[str], marks: int) -> str:
    """The one cause that explains most of χ², in words; or that there is none. By how much a mark is
    off is not said: it is of the right order only, since the watts were fitted to the wrong marks."""
    causes = dict(zip(said, np.eye(len(said)), strict=True))
    causes["all marks, against the meter's clock,"] = (np.arange(len(said)) < marks).astype(float)
    told = {name: (c @ score) ** 2 / (c @ information @ c) for name, c in causes.items()}
    name = max(told, key=lambda n: told[n])
    if told[name] < _EXPLAINS * chi2:
        return "the readings contradict the stages' marks or steady powers; intervals are widened for it"
    if name.startswith("the power of"):
        return f"{name} seems to follow something that has no marks; intervals are widened for it"
    verb = "seem" if name.startswith("all") else "seems"
    side = "late" if causes[name] @ score > 0 else "early"
    return f"{name} {verb} to be recorded {side}; intervals are widened for it"
