"""By how much everything varies: the variances of greatest restricted likelihood.

REML (Patterson & Thompson, Biometrika 58, 1971) finds the variances θ of `gls` with the average-information
matrix (Gilmour, Thompson & Cullis, Biometrics 51, 1995) in log θ, so that they stay positive; the traces that
the gradient needs come exactly from the band of the inverse.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import log_ndtr

from benchlab_otel.align.attribution import banded
from benchlab_otel.align.attribution.design import Design
from benchlab_otel.align.attribution.gls import (
    Solved,
    Variances,
    calm,
    least_squares,
    noise_weights,
    restricted_likelihood,
    solved_by,
    timing_weights,
)
from benchlab_otel.align.attribution.matrix import square
from benchlab_otel.model import Float

FEW_ROWS = 1024  # that a first idea of the variances comes from, and of which much more can be asked
_ROUNDS = 25
_ALIKE = 0.5  # sd of log(σ/W) between stages
_LONGEST = 3.0  # step in log θ
_GAIN = 3e-2  # log-likelihood below which another round is not worth it
_FLOOR = 1e-12  # of the differences' variance: what a variation that is not there is held at
_NOISE_FLOOR = 1e-6  # the same for noise: it keeps S well conditioned, and no meter is better
_FEW = 30.0  # information of the spreads below which they are far from normal
_LEAST_SPREAD, _FARTHER = 1e-4, 1.4  # relative ones that are tried then, and how far apart
_GONE = 10.0  # log-likelihood below the highest that ends this
_STEEP = -30.0  # sd that a spread's summit is below zero
_STEADY = 1e-7  # least variance of the base from one row to the next, as a share of the noise


def reml(design: Design, start: Variances | None = None, thorough: bool = False) -> tuple[Variances, float]:
    """The variances of greatest restricted likelihood, and its logarithm. Those of the stages are at their
    mean (`_mean_factor`), for which `thorough` takes its time where rows are few."""
    watts = least_squares(design)
    problem = _problem(design, watts)
    top = _climb(problem, problem.bounded(_begin(problem, watts, start)))
    stages, theta = problem.stages, top.theta
    if stages:
        theta[:stages] *= _mean_factor(problem, top, thorough)
    timing = float(theta[stages + 2]) if len(theta) > stages + 2 else 0.0
    found = Variances(theta[:stages].copy(), float(theta[stages]), float(theta[stages + 1]), timing)
    return found, top.value


@dataclass(slots=True)
class _Problem:
    """`bands` (k, width + 1, n) of dS/dθ, that of what is `known` of S, the bounds `floor` and `most` (k,) of
    θ, and `usual` (stages,) W, how large the stages are. `steady` is the least walk for a noise of 1."""

    design: Design
    bands: Float
    known: Float
    floor: Float
    most: Float
    steady: float
    usual: Float

    @property
    def stages(self) -> int:
        return len(self.usual)

    def bounded(self, theta: Float) -> Float:
        """θ within its bounds."""
        theta = np.clip(theta, self.floor, np.maximum(self.most, self.floor))
        theta[self.stages] = max(theta[self.stages], self.steady * theta[self.stages + 1])
        return theta

    def likelihood(self, theta: Float) -> tuple[float, Solved | None]:
        """The logarithm of restricted likelihood and prior, −∞ and None where it can't be computed."""
        try:
            solved = solved_by(np.tensordot(theta, self.bands, axes=1) + self.known, self.design)
        except np.linalg.LinAlgError:
            return -np.inf, None
        value = restricted_likelihood(self.design, solved)
        if not np.isfinite(value):
            return -np.inf, None
        return value - 0.5 * float(np.sum(_unlike(theta[: self.stages], self.usual) ** 2)), solved

    def slopes(self, theta: Float, solved: Solved) -> tuple[Float, Float]:
        """Its gradient and average information in log θ."""
        gradient, information = _slopes(self.bands, theta, solved)
        return _with_prior(gradient, information, _unlike(theta[: self.stages], self.usual))


def _problem(design: Design, watts: Float) -> _Problem:
    stages, width = design.pieces.stages, design.bandwidth
    bands = np.stack(components(design, watts))
    known = square(design.steps, design.step_extra, width) + square(design.errors, design.error_extra, width)
    size = _sizes(bands)
    floor = _FLOOR * (float(np.var(design.difference[calm(design)])) or 1.0) / size
    floor[stages + 1] *= _NOISE_FLOOR / _FLOOR
    most = np.full(len(bands), np.inf)
    most[stages + 2 :] = np.median(design.rows.uncertainty) ** 2  # a reading lies within its round trip
    mean = float(np.mean(np.abs(design.rows.value))) or 1.0
    steady = _STEADY * float(size[stages + 1] / size[stages])
    return _Problem(design, bands, known, floor, most, steady, np.maximum(np.abs(watts), 0.05 * mean))


def _sizes(bands: Float) -> Float:
    """How much a variance of 1 adds to that of a difference (k,), on average."""
    return np.maximum(bands[:, 0].mean(axis=1), 1e-300)


def _begin(problem: _Problem, watts: Float, start: Variances | None) -> Float:
    """Where the search starts."""
    design, stages = problem.design, problem.stages
    if start is not None:
        begun = np.array([*start.stage, start.walk, start.noise, start.timing])[: len(problem.bands)]
        return np.maximum(begun, 10 * problem.floor)
    left = float(np.mean((design.difference - design.contrast @ watts) ** 2))
    share = np.where(np.arange(len(problem.bands)) < stages, 1.0 / max(stages, 1), 0.03)
    return np.maximum(left * share / _sizes(problem.bands), problem.floor)


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


# -- the search -----------------------------------------------------------------------------------


@dataclass(slots=True)
class _Top:
    """Where the likelihood is greatest, its logarithm there, and gradient and information in log θ."""

    theta: Float
    value: float
    gradient: Float
    information: Float


def _climb(problem: _Problem, theta: Float) -> _Top:
    """By damped Newton steps; LinAlgError where the stages can't be told apart."""
    here, solved = problem.likelihood(theta)
    if solved is None:
        raise np.linalg.LinAlgError("the stages' activity in the readings is linearly dependent")
    gradient, information = problem.slopes(theta, solved)
    damping = 1e-3
    for _ in range(_ROUNDS):
        step = _step(theta, problem.bounded(theta * 0.99), gradient, information, damping)
        proposal = problem.bounded(theta * np.exp(step))
        there, solved = problem.likelihood(proposal)
        if solved is None or there < here:
            damping *= 10
            if damping > 1e4:
                break
            continue
        gain, here, theta, damping = there - here, there, proposal, max(damping / 10, 1e-4)
        enough = gain < _GAIN
        if problem.stages or not enough:
            gradient, information = problem.slopes(theta, solved)
        if enough:
            break
    return _Top(theta, here, gradient, information)


def _others_anew(problem: _Problem, theta: Float) -> tuple[float, Float]:
    """The greatest likelihood near θ with the stages' variances held, and where that is."""
    stages = problem.stages
    here, solved = problem.likelihood(theta)
    for _ in range(_ROUNDS):
        if solved is None:
            break
        gradient, information = problem.slopes(theta, solved)
        step = np.zeros(len(theta))
        own = np.linalg.pinv(information[stages:, stages:])
        step[stages:] = np.clip(own @ gradient[stages:], -1.0, 1.0)
        proposal = np.append(theta[:stages], problem.bounded(theta * np.exp(step))[stages:])
        there, solved = problem.likelihood(proposal)
        if there < here + _GAIN:
            break
        here, theta = there, proposal
    return here, theta


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


# -- the stages' variances at their mean ----------------------------------------------------------


def _mean_factor(problem: _Problem, top: _Top, thorough: bool) -> float:
    """What the stages' variances are multiplied by, all alike, to come to the mean that the readings allow.

    Where they hardly show a spread, the most likely one is often zero, or far off, and intervals from it are
    too narrow. A spread that they show clearly stays.
    """
    told, step = _told_of_spreads(problem, top)
    if thorough and told < _FEW and len(problem.design.rows) <= FEW_ROWS:
        return max(_mean_by_likelihood(problem, top.theta), 1.0)
    return max(_mean_by_curvature(told, step), 1.0)


def _told_of_spreads(problem: _Problem, top: _Top) -> tuple[float, float]:
    """What is known of that factor: its information at 1, all other variances as free as they are, and by how
    much a Newton step would change it."""
    own, others = slice(0, problem.stages), slice(problem.stages, None)
    information = top.information
    shared = information[own, others].sum(axis=0)
    told = float(information[own, own].sum() - shared @ np.linalg.pinv(information[others, others]) @ shared)
    return told, float(top.gradient[own].sum()) / told if told > 0.0 else 0.0


def _mean_by_curvature(told: float, step: float) -> float:
    """The mean of the factor, seen as a normal distribution that is cut off at zero."""
    if not told > 0.0:
        return 1.0
    sd = told**-0.5
    summit = (1.0 + step) / sd
    if summit < _STEEP:  # nothing but an exponential decay is left of the normal distribution
        return -sd / summit
    return float(sd * (summit + np.exp(-0.5 * summit**2 - log_ndtr(summit)) / np.sqrt(2 * np.pi)))


def _mean_by_likelihood(problem: _Problem, theta: Float) -> float:
    """The mean of the factor where few readings tell it, whose likelihood is far from normal then: by its
    likelihood, the other variances found anew for each. Before the readings, a relative spread is as likely
    anywhere from 0 to 1 (Gelman, Bayesian Analysis 1, 2006)."""
    stages = problem.stages
    begun = float(np.exp(np.mean(np.log(theta[:stages]) / 2 - np.log(problem.usual))))
    first = float(np.clip(begun, _LEAST_SPREAD, 1.0))
    found: list[tuple[float, float]] = []
    for spread, ratio in ((first, _FARTHER), (first / _FARTHER, 1 / _FARTHER)):
        others = theta[stages:]
        while _LEAST_SPREAD <= spread <= 1.0:
            value, at = _others_anew(problem, np.append(theta[:stages] * (spread / begun) ** 2, others))
            found.append((spread, value))
            if value < max(v for _, v in found) - _GONE:
                break
            others, spread = at[stages:], spread * ratio
    spreads, logs = np.array(sorted(found)).T
    if len(spreads) < 2:
        return 1.0
    weight = np.exp(logs - logs.max()) * np.gradient(spreads)
    return float(weight @ spreads**2 / weight.sum()) / begun**2
