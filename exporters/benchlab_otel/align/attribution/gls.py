"""Watts by generalised least squares, given by how much everything varies.

The covariance of the differences z is a sum of known banded matrices, one for each kind of variation, times
its variance: of each stage's power from frame to frame (W²), of the base's random walk (W²/s), of the
readings' noise (W², or J² of a counter) and of their times (s²).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from benchlab_otel.align.attribution.banded import Cholesky
from benchlab_otel.align.attribution.design import Design
from benchlab_otel.align.attribution.matrix import Matrix, band_of, sizes, times_columns, transposed
from benchlab_otel.align.attribution.overlap import running_energy
from benchlab_otel.align.attribution.windows import edge_gain
from benchlab_otel.model import Bool, Float


@dataclass(slots=True)
class Variances:
    """`stage` (stages,) W²; `walk` W²/s of the base; `noise` W² (J² of a counter) of a reading;
    `timing` s² of a reading's time."""

    stage: Float
    walk: float
    noise: float
    timing: float


@dataclass(slots=True)
class Fit:
    """`watts` (stages,) W above base, `covariance` (stages, stages) W², the variances, and the
    restricted log-likelihood of the rows that the variances were found on. `solved` and `priors` are
    of the design that was fitted."""

    watts: Float
    covariance: Float
    variances: Variances
    loglik: float
    solved: Solved | None = None
    priors: tuple[Float, Float, Float] | None = None


@dataclass(slots=True)
class Solved:
    """The factor of S of the differences, U = S⁻¹Z, W and its covariance, α = S⁻¹(z − ZW). `reach` is C Mᵀ:
    the covariance of pieces, steps and errors with the differences, where S was made of it."""

    factor: Cholesky
    u: Float
    watts: Float
    covariance: Float
    alpha: Float
    reach: Sequence[Matrix] = ()


def noise_weights(design: Design) -> Float:
    """How a reading's noise variance scales with its window (e,): that of white noise averaged."""
    rows = design.rows
    if rows.counter or rows.tau:
        return np.ones(rows.noise.shape[1])
    width = rows.hi - rows.lo
    weights: Float = np.mean(width) / width
    return weights


def timing_weights(design: Design, watts: Float) -> Float:
    """Squared change of a reading with its time (e,), more where the round trip was slower; 0 when
    all times are certain."""
    rows = design.rows
    usual = float(np.median(rows.uncertainty))
    if not rows.uncertainty.any():
        return np.zeros(rows.noise.shape[1])
    energy = running_energy(design.pieces.begin, design.pieces.end, watts[design.pieces.stage])
    base = float(np.mean(rows.value - design.active @ watts))
    slower = np.maximum(rows.uncertainty / max(usual, 1e-9), 1.0)
    gain: Float = (edge_gain(rows, energy, base) * slower) ** 2
    return gain


def prior(design: Design, variances: Variances, watts: Float) -> tuple[Float, Float, Float]:
    """Prior variances of the pieces (m,), the base's steps (j,) and the readings' errors (e,); `watts`
    (stages,) is the guess that turns the uncertainty of times into that of readings."""
    timing = timing_weights(design, watts) if variances.timing else np.zeros(design.rows.noise.shape[1])
    return (
        variances.stage[design.pieces.stage],
        variances.walk * design.gaps + design.step_extra,
        variances.noise * noise_weights(design) + variances.timing * timing + design.error_extra,
    )


def solve(design: Design, priors: tuple[Float, Float, Float], known: Fit | None = None) -> Solved:
    """Watts by generalised least squares given the prior variances; with `known` its watts are taken
    and their covariance believed (a short stretch of a longer run)."""
    matrices, width = (design.parts, design.steps, design.errors), design.bandwidth
    reach = [transposed(times_columns(m, c)) for m, c in zip(matrices, priors, strict=True)]
    bands = [band_of(m @ r, width) for m, r in zip(matrices, reach, strict=True)]
    solved = solved_by(sum(bands, np.zeros(1)), design, known)
    return replace(solved, reach=reach)


def solved_by(band: Float, design: Design, known: Fit | None = None) -> Solved:
    """`solve` given the band of S."""
    factor = Cholesky.of(band)
    both = factor.solve(np.column_stack([design.contrast, design.difference]))
    u, y = both[:, :-1], both[:, -1]
    if known is not None:
        return Solved(factor, u, known.watts, known.covariance, y - u @ known.watts)
    covariance: Float = np.asarray(np.linalg.inv(design.contrast.T @ u), float)
    watts = covariance @ (u.T @ design.difference)
    return Solved(factor, u, watts, covariance, y - u @ watts)


def least_squares(design: Design) -> Float:
    """Watts by ordinary least squares of the differences that no shock is in: where the search starts."""
    rows = calm(design)
    return np.asarray(np.linalg.lstsq(design.contrast[rows], design.difference[rows], rcond=None)[0], float)


def calm(design: Design) -> Bool:
    """(n − 1,) the differences that no shock is in; all where there is none without."""
    if not (design.step_extra.any() or design.error_extra.any()):
        return np.ones(len(design.difference), bool)
    shocks = sizes(design.steps, design.step_extra) + sizes(design.errors, design.error_extra)
    without: Bool = shocks == 0.0
    return without if without.any() else np.ones(len(without), bool)


def restricted_likelihood(design: Design, solved: Solved) -> float:
    """The logarithm of the restricted likelihood, without constants."""
    sign, logdet = np.linalg.slogdet(solved.covariance)
    if len(solved.covariance) and sign <= 0:
        return -np.inf
    residual = design.difference - design.contrast @ solved.watts
    return -0.5 * float(solved.factor.logdet() - logdet + residual @ solved.alpha)
