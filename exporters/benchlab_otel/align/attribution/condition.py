"""Energies given the readings: best linear unbiased prediction of pieces, base and their sums.

Every wanted energy is a linear function of the model's unknowns (`design`), so its estimate is
p̂ = W + C Aᵀ S⁻¹ (y − A W) and its variance the prior's, less what the readings tell, plus what
the error of W and of the base's level adds (Henderson, Biometrics 31, 1975; Rasmussen & Williams,
Gaussian Processes, 2006, sec. 2.7). The base's level is left out of S; an integral of the base is
therefore written as the nearest row's value less all else in that row, plus the steps between,
which keeps every energy's covariance with the readings short.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.linalg.lapack import dtbtrs

from benchlab_otel.align.attribution import banded
from benchlab_otel.align.attribution.banded import Cholesky
from benchlab_otel.align.attribution.design import Design, stage_totals
from benchlab_otel.align.attribution.gls import Fit, Solved, prior, solve
from benchlab_otel.align.attribution.matrix import (
    Matrix,
    Sparse,
    extent,
    of_rows,
    product,
    sizes,
    sums_by_group,
    times_rows,
    weighted_squares,
)
from benchlab_otel.align.attribution.overlap import Weight, cumulative, join, ragged
from benchlab_otel.align.attribution.windows import tile
from benchlab_otel.model import Float, Int

_LONG = 48  # rows; the covariance of a longer energy with the readings is solved one by one
_AHEAD = 96  # rows after such an energy that still add to what is known of it
_LOST = 1e-6  # of an energy's prior variance; what is left below that may be rounding, and is solved anew
_ROUNDING = 1e-12  # of it: no energy is known better
_CHUNK = 1 << 16


@dataclass(slots=True)
class Posterior:
    """What the readings say: `watts` (m,) of each piece, `steps` (j,) W of the base at the knots,
    `errors` (e,) of the readings, `level` W of the base before its first step. `inverse` is the band of S⁻¹
    where the design's matrices are sparse."""

    design: Design
    solved: Solved
    priors: tuple[Float, Float, Float]
    inverse: Float
    watts: Float
    steps: Float
    errors: Float
    level: float

    @property
    def residual(self) -> Float:
        """(n,) W: what of each row is put down to the meter's error."""
        noise: Float = self.design.rows.noise @ self.errors
        return noise


def condition(design: Design, fit: Fit, span: int = 4) -> Posterior:
    """The posterior of all pieces, steps and errors, in time linear in the rows.

    Energies that reach over at most `span` rows are quick to get the variance of, others slow.
    `fit` is that of this design, or of a longer run (then without `solved`), whose watts are believed.
    """
    priors = fit.priors or prior(design, fit.variances, fit.watts)
    solved = fit.solved or solve(design, priors, fit)
    off, steps, errors = (
        c * (m.T @ solved.alpha)
        for m, c in zip((design.parts, design.steps, design.errors), priors, strict=True)
    )
    rows, knots = design.rows, design.knots
    explained = design.active @ solved.watts + design.overlap @ off + rows.noise @ errors
    walk = np.append(0.0, np.cumsum(design.steps @ steps))
    early = np.searchsorted(knots, rows.hi[0])
    at = knots[:early]
    before = cumulative(at, np.full(early, rows.lo[0]), np.full(early, rows.hi[0]), rows.tau)
    left, weights = rows.value - explained - walk, np.ones(len(rows))
    if tile(rows):  # then the level is the one that conserves the measured energy exactly
        left, weights = left + rows.noise @ errors, rows.hi - rows.lo
    level = float(np.average(left, weights=weights) - np.sum((1 - before) * steps[:early]))
    width = max(design.bandwidth, min(_LONG, span))
    return Posterior(
        design=design,
        solved=solved,
        priors=priors,
        inverse=np.zeros((0, 0)) if design.dense else solved.factor.inverse_band(width),
        watts=solved.watts[design.pieces.stage] + off,
        steps=steps,
        errors=errors,
        level=level,
    )


def base_integral(posterior: Posterior, lo: Float, hi: Float, weight: Weight) -> Float:
    """The weighted integral of the base (J) between the times `lo` and `hi` (f,) s."""
    knots, steps = posterior.design.knots, posterior.steps
    levels = posterior.level + np.append(0.0, np.cumsum(steps))
    shift = np.append(0.0, np.cumsum(steps * weight(knots)))

    def upto(at: Float) -> Float:
        k = np.searchsorted(knots, at, "right")
        total: Float = levels[k] * weight(at) - shift[k]
        return total

    return upto(hi) - upto(lo)


def base_power(posterior: Posterior, at: Float) -> Float:
    """The base (W) at the times (k,) s."""
    levels = posterior.level + np.append(0.0, np.cumsum(posterior.steps))
    power: Float = levels[np.searchsorted(posterior.design.knots, at, "right")]
    return power


@dataclass(slots=True)
class Wanted:
    """f energies: `seconds` (f, m) of each piece, plus the base from `lo` to `hi` (f,) s by `weight`
    where these are given."""

    seconds: Matrix
    lo: Float | None = None
    hi: Float | None = None
    weight: Weight | None = None


def energies(posterior: Posterior, wanted: Wanted) -> tuple[Float, Float]:
    """The wanted energies (f,) J and their variances (f,) J²."""
    mean: Float = wanted.seconds @ posterior.watts
    if wanted.lo is not None and wanted.hi is not None and wanted.weight is not None:
        mean = mean + base_integral(posterior, wanted.lo, wanted.hi, wanted.weight)
    count = wanted.seconds.shape[0]
    if count <= _CHUNK:
        return mean, _variance(posterior, wanted) + _shocked(posterior, wanted)
    variance = np.empty(count)
    for first in range(0, count, _CHUNK):
        part = slice(first, min(first + _CHUNK, count))
        variance[part] = _variance(posterior, _slice(wanted, part))
    return mean, variance + _shocked(posterior, wanted)


def _slice(wanted: Wanted, part: slice) -> Wanted:
    return Wanted(
        wanted.seconds[part],
        None if wanted.lo is None else wanted.lo[part],
        None if wanted.hi is None else wanted.hi[part],
        wanted.weight,
    )


def _variance(posterior: Posterior, wanted: Wanted) -> Float:
    design, solved, reach = posterior.design, posterior.solved, posterior.solved.reach
    weights = [wanted.seconds]
    gain = sums_by_group(wanted.seconds, design.pieces.stage, design.pieces.stages)
    if wanted.lo is not None and wanted.hi is not None and wanted.weight is not None:
        near, total, steps = _base_weights(design, wanted.lo, wanted.hi, wanted.weight)
        seen = times_rows(-total, design.overlap, near)
        weights = [wanted.seconds + seen, steps, times_rows(-total, design.rows.noise, near)]
        gain = gain - total[:, None] * design.active[near]
    before = sum(
        (weighted_squares(g, c) for g, c in zip(weights, posterior.priors, strict=False)), np.zeros(len(gain))
    )
    covariance = product(weights[0], reach[0])
    for g, r in zip(weights[1:], reach[1:], strict=False):
        covariance = covariance + g @ r
    told = told_of(covariance, posterior)
    if not isinstance(covariance, np.ndarray):
        for f in np.flatnonzero(before - told < _LOST * before):
            told[f] = _told_alone(covariance, int(f), solved.factor)
    left = gain - covariance @ solved.u
    variance = before - told + banded.bilinear(left, solved.covariance, left)
    return np.maximum(variance, _ROUNDING * before)


def _shocked(posterior: Posterior, wanted: Wanted) -> Float:
    """J² (f,): what the shocks leave unsure of each energy with a part of the base.

    A load that the base's step shows may have been switched at any time of the windows beside it: half of
    its power is unsure there. A wild reading may tell of a load as well as of the meter.
    """
    out = np.zeros(wanted.seconds.shape[0])
    design, rows = posterior.design, posterior.design.rows
    if wanted.lo is None or wanted.hi is None or wanted.weight is None:
        return out
    if not (design.step_extra.any() or design.error_extra.any()):
        return out
    step, wild = np.flatnonzero(design.step_extra), np.flatnonzero(sizes(rows.noise, design.error_extra))
    reach = max(rows.period, float(np.median(rows.hi - rows.lo)))
    before, after = np.append(rows.lo[0], rows.hi[:-1]), np.append(rows.lo[1:], rows.hi[-1])  # seen by others
    begin = np.append(design.knots[step] - reach, np.minimum(rows.lo, before)[wild])
    end = np.append(design.knots[step] + reach, np.maximum(rows.hi, after)[wild])
    watts = np.append(0.5 * posterior.steps[step], posterior.residual[wild])
    energy, k = join(wanted.lo, wanted.hi, begin, end)
    first, last = np.maximum(wanted.lo[energy], begin[k]), np.minimum(wanted.hi[energy], end[k])
    unsure = watts[k] * (wanted.weight(last) - wanted.weight(first))
    return out + np.bincount(energy, unsure**2, len(out))


def _base_weights(design: Design, lo: Float, hi: Float, weight: Weight) -> tuple[Int, Float, Matrix]:
    """The nearest row, the total weight, and the weights of the steps, of each integral of the base.

    B(t) − Y_k = Σ (F_k(τ_j) − [t < τ_j]) η_j, integrated.
    """
    rows, knots = design.rows, design.knots
    middle = (rows.lo + rows.hi) / 2
    wanted = (lo + hi) / 2
    right = np.clip(np.searchsorted(middle, wanted), 1, len(middle) - 1)
    near = np.where(wanted - middle[right - 1] < middle[right] - wanted, right - 1, right)
    total = weight(hi) - weight(lo)
    row_lo, row_hi = rows.lo[near], rows.hi[near]
    first = np.searchsorted(knots, np.minimum(lo, row_lo), "left")
    last = np.searchsorted(knots, np.maximum(hi, row_hi), "right")
    owner, knot = ragged(first, last)
    at = knots[knot]
    before = weight(np.clip(at, lo[owner], hi[owner])) - weight(lo)[owner]
    value = total[owner] * cumulative(at, row_lo[owner], row_hi[owner], rows.tau) - before
    return near, total, of_rows(value, knot, last - first, len(knots), design.dense)


def told_of(covariance: Matrix, posterior: Posterior) -> Float:
    """kᵀ S⁻¹ k of each row: what the readings tell of something with these covariances with them."""
    if isinstance(covariance, np.ndarray):
        return posterior.solved.factor.squares(covariance.T)
    first, span = extent(covariance)
    long = span >= posterior.inverse.shape[0]
    if not long.any():
        return banded.quadratic(covariance, first, posterior.inverse)
    out = np.empty(covariance.shape[0])
    short = np.flatnonzero(~long)
    out[short] = banded.quadratic(covariance[short], first[short], posterior.inverse)
    for f in np.flatnonzero(long):
        out[f] = _told_alone(covariance, int(f), posterior.solved.factor)
    return out


def _told_alone(covariance: Sparse, f: int, factor: Cholesky) -> float:
    """|L⁻¹ k|² of row f by forward substitution from the first entry to some rows past the last.

    What still later rows would tell is left out, so the variance is never too small.
    """
    entries = slice(covariance.indptr[f], covariance.indptr[f + 1])
    columns, values = covariance.indices[entries], covariance.data[entries]
    if not len(columns):
        return 0.0
    first = int(columns.min())
    last = min(int(columns.max()) + 1 + _AHEAD, factor.factor.shape[1])
    dense = np.zeros((last - first, 1))
    dense[columns - first, 0] = values
    solved, _ = dtbtrs(np.ascontiguousarray(factor.factor[:, first:last]), dense, uplo="L")
    return float(solved[:, 0] @ solved[:, 0])


def sums_of(posterior: Posterior, seconds: Float, base_s: float = 0.0) -> tuple[Float, Float]:
    """Energies that reach over all rows, (k,) J and their variances (k,) J²: `seconds` (m, k) of each piece,
    and `base_s` seconds of the base's mean over all rows."""
    design, solved = posterior.design, posterior.solved
    gain, value = stage_totals(seconds, design.pieces), posterior.watts @ seconds
    weights, used = [seconds], [(design.parts, posterior.priors[0])]
    if base_s:
        rows = design.rows
        mean_row = np.full(len(rows), base_s / len(rows))
        value = value + mean_row @ (rows.value - design.overlap @ posterior.watts - posterior.residual)
        gain = gain - mean_row @ design.active
        weights = [seconds - (design.overlap.T @ mean_row)[:, None], -(rows.noise.T @ mean_row)[:, None]]
        used.append((design.errors, posterior.priors[2]))
    covariance: Float = np.zeros((len(solved.alpha), seconds.shape[1]))
    before: Float = np.zeros(seconds.shape[1])
    for g, (matrix, c) in zip(weights, used, strict=True):
        spread = c[:, None] * g
        covariance = covariance + matrix @ spread
        before = before + np.einsum("mk,mk->k", g, spread)
    left = gain - covariance.T @ solved.u
    told = np.einsum("nk,nk->k", covariance, solved.factor.solve(covariance))
    return value, np.maximum(before - told + banded.bilinear(left, solved.covariance, left), 0.0)
