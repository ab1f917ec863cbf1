"""Watts of each stage and what varies by how much: generalised least squares and REML.

The covariance of the differences z is a sum of known banded matrices, one for each kind of
variation, times unknown variances θ: of each stage's power from frame to frame (W²), of the base's
random walk (W²/s), of the readings' noise (W², or J² of a counter) and of their times (s²). REML
(Patterson & Thompson 1971) finds θ with the average-information matrix (Gilmour, Thompson & Cullis,
Biometrics 51, 1995) in log θ, so that variances stay positive; the traces that the gradient needs
come exactly from the band of the inverse.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.special import log_ndtr

from benchlab_otel.align.attribution import banded
from benchlab_otel.align.attribution.banded import Cholesky
from benchlab_otel.align.attribution.design import Design, part_of
from benchlab_otel.align.attribution.matrix import Matrix, band_of, sizes, square, times_columns, transposed
from benchlab_otel.align.attribution.overlap import running_energy
from benchlab_otel.align.attribution.windows import edge_gain
from benchlab_otel.model import Bool, Float

_ROUNDS = 25
_ALIKE = 0.5  # sd of log(σ/W) between stages
_LONGEST = 3.0  # step in log θ
_FIRST_ROWS = 1024  # rows that a first idea of the variances comes from
_GAIN = 3e-2  # log-likelihood below which another round is not worth it
_FLOOR = 1e-12  # of the differences' variance: what a variation that is not there is held at
_NOISE_FLOOR = 1e-6  # the same for noise: it keeps S well conditioned, and no meter is better
_FEW = 30.0  # information of the spreads below which they are far from normal
_LEAST_SPREAD, _FARTHER = 1e-4, 1.4  # relative ones that are tried then, and how far apart
_GONE = 10.0  # log-likelihood below the highest that ends this
_STEEP = -30.0  # sd that a spread's summit is below zero
_STEADY = 1e-7  # least variance of the base from one row to the next, as a share of the noise


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


def fit(design: Design, start: Variances | None = None, most_rows: int = 8192) -> Fit:
    """Watts and variances from the readings; `start` shortens the search.

    Variances come from at most `most_rows` rows in the middle (they settle long before), watts from
    all. Raises numpy.linalg.LinAlgError where the stages can't be told apart (see `resolve`).
    """
    if start is None and len(design.rows) > 2 * _FIRST_ROWS:
        start = reml(_middle(design, _FIRST_ROWS))[0]
    variances, loglik = reml(_middle(design, most_rows), start, thorough=True)
    priors = prior(design, variances, least_squares(design))
    solved = solve(design, priors)
    return Fit(solved.watts, solved.covariance, variances, loglik, solved, priors)


def _middle(design: Design, most: int) -> Design:
    n = len(design.rows)
    return design if n <= most else part_of(design, (n - most) // 2, (n + most) // 2)


# -- generalised least squares ------------------------------------------------------------------


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
    solved = _gls(sum(bands, np.zeros(1)), design, known)
    return replace(solved, reach=reach)


def _gls(band: Float, design: Design, known: Fit | None = None) -> Solved:
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
    calm = _calm(design)
    return np.asarray(np.linalg.lstsq(design.contrast[calm], design.difference[calm], rcond=None)[0], float)


def _calm(design: Design) -> Bool:
    """(n − 1,) the differences that no shock is in; all where there is none without."""
    if not (design.step_extra.any() or design.error_extra.any()):
        return np.ones(len(design.difference), bool)
    shocks = sizes(design.steps, design.step_extra) + sizes(design.errors, design.error_extra)
    calm: Bool = shocks == 0.0
    return calm if calm.any() else np.ones(len(calm), bool)


# -- REML ---------------------------------------------------------------------------------------


def components(design: Design, watts: Float) -> list[Float]:
    """The bands of dS/dθ: one a stage, the walk, the noise, and timing where times are uncertain."""
    width = design.bandwidth
    stage = design.pieces.stage
    out = [square(design.parts, (stage == s).astype(float), width) for s in range(design.pieces.stages)]
    out.append(square(design.steps, design.gaps, width))
    out.append(square(design.errors, noise_weights(design), width))
    timing = timing_weights(design, watts)
    if timing.any():
        out.append(square(design.errors, timing, width))
    return out


def _known(design: Design) -> Float:
    """The band of what adds to S whatever θ: the shocks."""
    width = design.bandwidth
    return square(design.steps, design.step_extra, width) + square(design.errors, design.error_extra, width)


def reml(design: Design, start: Variances | None = None, thorough: bool = False) -> tuple[Variances, float]:
    """The variances of greatest restricted likelihood, those of the stages at their mean (see below), for
    which `thorough` takes its time where rows are few; and that log-likelihood."""
    watts = least_squares(design)
    bands, known = np.stack(components(design, watts)), _known(design)
    sizes = np.maximum(bands[:, 0].mean(axis=1), 1e-300)
    total = float(np.var(design.difference[_calm(design)])) or 1.0
    stages = design.pieces.stages
    floor = _FLOOR * total / sizes
    floor[stages + 1] *= _NOISE_FLOOR / _FLOOR
    most = np.full(len(bands), np.inf)
    most[stages + 2 :] = np.median(design.rows.uncertainty) ** 2  # a reading lies within its round trip
    if start is None:
        left = float(np.mean((design.difference - design.contrast @ watts) ** 2))
        share = np.where(np.arange(len(bands)) < stages, 1.0 / max(stages, 1), 0.03)
        theta = np.maximum(left * share / sizes, floor)
    else:
        begun = np.array([*start.stage, start.walk, start.noise, start.timing])[: len(bands)]
        theta = np.maximum(begun, 10 * floor)

    def bounded(values: Float) -> Float:
        values = np.clip(values, floor, np.maximum(most, floor))
        values[stages] = max(values[stages], _STEADY * values[stages + 1] * sizes[stages + 1] / sizes[stages])
        return values

    def likelihood(at: Float) -> tuple[float, Solved | None]:
        value, solved = _likelihood(bands, known, at, design)
        return value - 0.5 * float(np.sum(_unlike(at[:stages], usual) ** 2)), solved

    def slopes(at: Float, solved: Solved) -> tuple[Float, Float]:
        gradient, information = _slopes(bands, at, solved)
        return _with_prior(gradient, information, _unlike(at[:stages], usual))

    def with_others_anew(at: Float) -> tuple[float, Float]:
        value, solved = likelihood(at)
        for _ in range(_ROUNDS):
            if solved is None:
                break
            gradient, information = slopes(at, solved)
            step = np.zeros(len(at))
            own = information[stages:, stages:]
            step[stages:] = np.clip(np.linalg.pinv(own) @ gradient[stages:], -1.0, 1.0)
            proposal = np.append(at[:stages], bounded(at * np.exp(step))[stages:])
            there, solved = likelihood(proposal)
            if there < value + _GAIN:
                break
            value, at = there, proposal
        return value, at

    size = float(np.mean(np.abs(design.rows.value))) or 1.0
    usual = np.maximum(np.abs(watts), 0.05 * size)
    theta = bounded(theta)
    here, solved = likelihood(theta)
    if solved is None:
        raise np.linalg.LinAlgError("the stages' activity in the readings is linearly dependent")
    gradient, information = slopes(theta, solved)
    damping = 1e-3
    for _ in range(_ROUNDS):
        proposal = bounded(
            theta * np.exp(_step(theta, bounded(theta * 0.99), gradient, information, damping))
        )
        there, solved = likelihood(proposal)
        if solved is None or there < here:
            damping *= 10
            if damping > 1e4:
                break
            continue
        gain, here, theta, damping = there - here, there, proposal, max(damping / 10, 1e-4)
        enough = gain < _GAIN
        if stages or not enough:
            gradient, information = slopes(theta, solved)
        if enough:
            break
    if stages:
        told, summit = _told_of_spreads(theta, gradient, information, stages)
        if thorough and told < _FEW and len(design.rows) <= _FIRST_ROWS:
            factor = _mean_by_likelihood(theta, with_others_anew, usual)
        else:
            factor = _mean_by_curvature(told, summit)
        theta[:stages] *= max(factor, 1.0)
    timing = float(theta[stages + 2]) if len(theta) > stages + 2 else 0.0
    found = Variances(theta[:stages].copy(), float(theta[stages]), float(theta[stages + 1]), timing)
    return found, here


# Where readings hardly show a spread, the most likely one is often zero, or far off, and intervals from it
# are too narrow. So the stages' variances are multiplied, all by one factor, to the mean that the readings
# allow; a spread that they show clearly stays.


def _told_of_spreads(theta: Float, gradient: Float, information: Float, stages: int) -> tuple[float, float]:
    """What is known of that factor: its information at 1, all other variances as free as they are, and by how
    much a Newton step would change it."""
    own, others = slice(0, stages), slice(stages, None)
    shared = information[own, others].sum(axis=0)
    told = float(information[own, own].sum() - shared @ np.linalg.pinv(information[others, others]) @ shared)
    return told, float(gradient[own].sum()) / told if told > 0.0 else 0.0


def _mean_by_curvature(told: float, step: float) -> float:
    """The mean of the factor, seen as a normal distribution that is cut off at zero."""
    if not told > 0.0:
        return 1.0
    sd = told**-0.5
    summit = (1.0 + step) / sd
    if summit < _STEEP:  # nothing but an exponential decay is left of the normal distribution
        return -sd / summit
    return float(sd * (summit + np.exp(-0.5 * summit**2 - log_ndtr(summit)) / np.sqrt(2 * np.pi)))


def _mean_by_likelihood(theta: Float, anew: Callable[[Float], tuple[float, Float]], usual: Float) -> float:
    """The mean of the factor where few readings tell it, whose likelihood is far from normal then: by its
    likelihood, given by `anew` with the other variances found anew. Before the readings, a relative spread is
    as likely anywhere from 0 to 1 (Gelman, Bayesian Analysis 1, 2006)."""
    stages = len(usual)
    begun = float(np.exp(np.mean(np.log(theta[:stages]) / 2 - np.log(usual))))
    first = float(np.clip(begun, _LEAST_SPREAD, 1.0))
    found: list[tuple[float, float]] = []
    for spread, ratio in ((first, _FARTHER), (first / _FARTHER, 1 / _FARTHER)):
        others = theta[stages:]
        while _LEAST_SPREAD <= spread <= 1.0:
            value, at = anew(np.append(theta[:stages] * (spread / begun) ** 2, others))
            found.append((spread, value))
            if value < max(v for _, v in found) - _GONE:
                break
            others, spread = at[stages:], spread * ratio
    spreads, logs = np.array(sorted(found)).T
    if len(spreads) < 2:
        return 1.0
    weight = np.exp(logs - logs.max()) * np.gradient(spreads)
    return float(weight @ spreads**2 / weight.sum()) / begun**2


def log_likelihood(design: Design, variances: Variances) -> float:
    """The restricted log-likelihood of given variances (−∞ where it can't be computed), without constants."""
    try:
        return _restricted(design, solve(design, prior(design, variances, least_squares(design))))
    except np.linalg.LinAlgError:
        return -np.inf


def log_likelihoods(design: Design, variances: Variances) -> Float:
    """What each difference (n − 1,) adds to the log-likelihood, given all before it and the watts found."""
    solved = solve(design, prior(design, variances, least_squares(design)))
    surprise = solved.factor.whiten(design.difference - design.contrast @ solved.watts)
    return -0.5 * surprise**2 - np.log(solved.factor.factor[0])


def _restricted(design: Design, solved: Solved) -> float:
    sign, logdet = np.linalg.slogdet(solved.covariance)
    if len(solved.covariance) and sign <= 0:
        return -np.inf
    residual = design.difference - design.contrast @ solved.watts
    return -0.5 * float(solved.factor.logdet() - logdet + residual @ solved.alpha)


def _unlike(spread: Float, usual: Float) -> Float:
    """How unlike the relative spreads of stages' powers are, in prior sds: log(σ/W) varies between stages
    with sd `_ALIKE` around its mean. It matters only where the readings can't tell a spread, which
    restricted likelihood alone would then often put at zero, with too narrow intervals."""
    off = np.log(spread) / 2 - np.log(usual)
    unlike: Float = (off - off.mean()) / _ALIKE if len(off) else off
    return unlike


def _with_prior(gradient: Float, information: Float, unlike: Float) -> tuple[Float, Float]:
    """Adds what that prior adds to both, in place."""
    n = len(unlike)
    if n:
        gradient[:n] -= 0.5 * unlike / _ALIKE
        information[:n, :n] += 0.25 * (np.eye(n) - 1 / n) / _ALIKE**2
    return gradient, information


def _step(theta: Float, lower: Float, gradient: Float, information: Float, damping: float) -> Float:
    """A damped Newton step in log θ; variances that rest on their floor (`lower` > 0.995 θ) stay."""
    free = ~((lower > 0.995 * theta) & (gradient < 0))
    step = np.zeros(len(theta))
    if free.any():
        own = information[np.ix_(free, free)]
        diagonal = np.diag(own)
        ridge = damping * diagonal + 1e-6 * max(float(diagonal.max()), 1.0)
        step[free] = np.linalg.solve(own + np.diag(ridge), gradient[free])
    longest = float(np.abs(step).max())
    return step * min(1.0, _LONGEST / longest) if longest else step


def _likelihood(bands: Float, known: Float, theta: Float, design: Design) -> tuple[float, Solved | None]:
    """Restricted log-likelihood, −∞ and None where it can't be computed."""
    try:
        solved = _gls(np.tensordot(theta, bands, axes=1) + known, design)
    except np.linalg.LinAlgError:
        return -np.inf, None
    value = _restricted(design, solved)
    return value, solved if np.isfinite(value) else None


def _slopes(bands: Float, theta: Float, solved: Solved) -> tuple[Float, Float]:
    """Its gradient and average information, both in log θ."""
    inverse = solved.factor.inverse_band(bands.shape[1] - 1)
    alpha, u, cov = solved.alpha, solved.u, solved.covariance
    pulled = [banded.product(b, np.column_stack([alpha, u])) for b in bands]
    trace = np.array(
        [
            banded.inner(inverse, b) - np.trace(cov @ (u.T @ f[:, 1:]))
            for b, f in zip(bands, pulled, strict=True)
        ]
    )
    f = np.column_stack([p[:, 0] for p in pulled])
    gradient = 0.5 * (f.T @ alpha - trace) * theta
    projected = solved.factor.solve(f)
    uf = u.T @ f
    information = 0.5 * (f.T @ projected - uf.T @ cov @ uf) * np.outer(theta, theta)
    return gradient, information
