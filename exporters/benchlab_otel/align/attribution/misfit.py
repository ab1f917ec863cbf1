"""Whether the readings contradict the marks: a score test for early and late marks, and what it widens.

A mark (the begin or end of a stage, in all frames) that is recorded δ s late leaves W δ joules out
where the stage begins, and has W δ too many where it ends. To first order that is one more column of
the model for each mark, G. With P of restricted likelihood, GᵀPz (GᵀPG)⁻¹ is χ² where no mark is off
(a score test, Rao 1948), and needs no refit. Where chance can't explain it, δ given the readings has
the mean m = (GᵀPG + Λ)⁻¹ GᵀPz and the covariance (GᵀPG + Λ)⁻¹; no figure is moved, but everything
that δ would move is widened by δ's second moment, that covariance + m mᵀ.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from benchlab_otel.align.attribution.condition import Posterior, Wanted
from benchlab_otel.align.attribution.overlap import overlap
from benchlab_otel.align.attribution.windows import Windows
from benchlab_otel.model import Float, Int

_SMEAR = 0.5e-3  # s before and after a mark; what it is wrong by is spread over them
_USUAL = 2e-3  # s, sd of a mark's error before the readings are asked
_SAME = 1e-6  # s; marks closer than this are one
_ASKED = 512  # marks that are looked up to tell whether two kinds are the same
_SURE = 4.0  # sd that chance is allowed, as in `selfcheck`
_EXPLAINS = 0.9  # share of χ² that one cause must explain to be named


@dataclass(slots=True)
class Misfit:
    """What marks that are off would move, in r independent directions of one sd each: `power`
    (stages, r) W of each stage, `once` (stages, r) J of each occurrence, `base` (r,) W;
    `finding` in words."""

    power: Float
    once: Float
    base: Float
    finding: str

    def of_pieces(self, stage: Int, length: Float) -> Float:
        """(m, r) W: of pieces of `stage` (m,) whose occurrence is `length` (m,) s long."""
        none = np.zeros((len(self.base), len(stage)))
        once = np.divide(self.once[stage].T, length, out=none, where=length > 0)
        moved: Float = self.power[stage] + once.T
        return moved

    def variance(self, wanted: Wanted, pieces: Float) -> Float:
        """(f,) J²: what it adds to the variance of the wanted energies; `pieces` of `of_pieces`."""
        moved = wanted.seconds @ pieces
        if wanted.lo is not None and wanted.hi is not None and wanted.weight is not None:
            moved = moved + np.outer(wanted.weight(wanted.hi) - wanted.weight(wanted.lo), self.base)
        added: Float = np.sum(moved**2, axis=1)
        return added


def misfit(posterior: Posterior, begin: Float, end: Float, stage: Int, names: list[str]) -> Misfit | None:
    """What marks that are off would move, None where chance explains the readings as well.

    `begin`, `end` (m,) s are the marks of stages `stage` (m,), columns of the design named `names`.
    """
    design, solved = posterior.design, posterior.solved
    stages = design.pieces.stages
    if not stages:
        return None
    times = [side[stage == s] for side in (begin, end) for s in range(stages)]
    mark, said = _distinct_marks(times, names)
    moves = np.zeros((2 * stages, len(said)))  # of a stage's begin or end with each mark
    moves[np.arange(2 * stages), mark] = 1.0
    late = np.append(solved.watts, -solved.watts)
    rows = np.column_stack([_density(design.rows, t) for t in times]) @ (late[:, None] * moves)
    columns = np.diff(rows, axis=0)
    pulled = solved.factor.solve(columns)
    taken = solved.covariance @ (design.contrast.T @ pulled)  # what the watts take up of each column
    information = columns.T @ pulled - (design.contrast.T @ pulled).T @ taken
    information += 1e-9 * np.diag(np.maximum(np.diag(information), np.finfo(float).tiny))
    score = columns.T @ solved.alpha
    k = len(said)
    chi2 = float(score @ np.linalg.solve(information, score))
    if chi2 < k + _SURE * np.sqrt(2 * k) + _SURE**2:
        return None
    covariance = np.linalg.inv(information + np.eye(k) / _USUAL**2)
    mean = covariance @ score
    values, vectors = np.linalg.eigh(covariance + np.outer(mean, mean))
    sds = vectors * np.sqrt(np.maximum(values, 0.0))
    power = -taken @ sds
    base = -np.mean(rows @ sds + design.active @ power, axis=0)
    once = (late[:, None] * (moves @ sds)).reshape(2, stages, k).sum(axis=0)
    return Misfit(power, once, base, _finding(chi2, score, information, said))


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
    """Whether most of the times `a` (n,) s are also in `b` (k,) s, by some hundreds of them."""
    if not len(a) or not len(b):
        return False
    a = a[:: max(len(a) // _ASKED, 1)]
    near = np.concatenate([[-np.inf], np.sort(b, kind="stable"), [np.inf]])
    k = np.searchsorted(near, a)
    return bool(np.mean(np.minimum(near[k] - a, a - near[k - 1]) < _SAME) > 0.5)


def _density(rows: Windows, times: Float) -> Float:
    """(n,) 1/s: the weight of each row's window at the times."""
    weights = overlap(rows.lo, rows.hi, times - _SMEAR, times + _SMEAR, rows.tau)
    return np.asarray(weights.sum(axis=1), float).ravel() / (2 * _SMEAR)


def _finding(chi2: float, score: Float, information: Float, said: list[str]) -> str:
    """The one cause that explains most of χ², in words; or that there is none. By how much a mark is
    off is not said: it is of the right order only, since the watts were fitted to the wrong marks."""
    causes = dict(zip(said, np.eye(len(said)), strict=True))
    causes["all marks, against the meter's clock,"] = np.ones(len(said))
    told = {name: (c @ score) ** 2 / (c @ information @ c) for name, c in causes.items()}
    name = max(told, key=lambda n: told[n])
    if told[name] < _EXPLAINS * chi2:
        return "the readings contradict the stages' marks; intervals are widened for it"
    verb = "seem" if name.startswith("all") else "seems"
    side = "late" if causes[name] @ score > 0 else "early"
    return f"{name} {verb} to be recorded {side}; intervals are widened for it"
