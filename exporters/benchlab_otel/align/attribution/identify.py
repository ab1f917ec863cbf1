"""A meter's lag, width and kernel from the pipeline's own activity, by the likelihood of its readings.

First a map: least squares of the readings' differences on the stages' activity, for every pair of
window edges at once (the Gram matrix of the activity's running integrals at all shifts holds every
boxcar's normal equations). Then its peaks are refined by the restricted likelihood of `fit`. A map
that is flat (constant load) or has several peaks as high as the best (periodic load) identifies
nothing, and the configured kernel stays.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np

from benchlab_otel.align.attribution.counters import Clean
from benchlab_otel.align.attribution.design import Design, Pieces, build
from benchlab_otel.align.attribution.fit import Variances, log_likelihood, log_likelihoods, reml
from benchlab_otel.align.attribution.overlap import running_energy
from benchlab_otel.align.attribution.windows import Kernel, windows
from benchlab_otel.model import Float, Int

_STEP = 0.001  # s between the map's edges
_ROWS = 2400  # readings that are looked at
_SURE = 5.0  # log-likelihood that a choice must be ahead by
_SHAPED = 15.0  # log-likelihood of the map's top over its median; chance reaches 10 on so many points
_LEAST_ROWS = 40  # readings below which nothing is looked for
_RIVALS = 4
_WORTH = 60.0  # log-likelihood behind the best from which a peak of the map may still catch up
_SMALLEST = 1e-4  # s, width
_ROUNDS = 2


@dataclass(slots=True)
class Identification:
    """`kernel`: what to use. `found`: whether lag and width come from the readings; if not, `reason`
    tells why and the kernel is the configured one. Uncertainties (s) are 95 % half widths.
    `shape_found`: whether boxcar or low-pass was told apart. `loglik_gain`: over the configured kernel.
    `clock` says how the lag of a meter with a clock of its own agrees with its round trips."""

    kernel: Kernel
    found: bool
    reason: str = ""
    lag_uncertainty_s: float = float("nan")
    width_uncertainty_s: float = float("nan")
    shape_found: bool = False
    loglik_gain: float = float("nan")
    rivals: list[Kernel] = field(default_factory=list)
    clock: str = ""


@dataclass(slots=True)
class Activity:
    """When the stages (`stage` (m,) of `stages`) were active, s on the readings' clock."""

    begin: Float
    end: Float
    stage: Int
    stages: int


def identify(
    readings: Clean, activity: Activity, configured: Kernel, search: tuple[float, float] = (-0.1, 0.3)
) -> Identification:
    """Lag and width within `search` (s before the reading); a counter has a lag only.

    The lag of a meter on another clock is its clock's offset.
    """
    readings = _middle(readings, _ROWS)
    counter = readings.kind == "energy"
    if np.count_nonzero(~readings.fresh) < _LEAST_ROWS or not len(activity.begin):
        return Identification(configured, False, "too little data to find lag and width from")
    if not np.ptp(readings.value):
        return Identification(configured, False, "the readings never change")
    activity = _near(activity, readings, search)
    edges = np.arange(search[0], search[1] + _STEP / 2, _STEP)
    lag, width, score = (
        _counter_map(readings, activity, edges) if counter else _boxcar_map(readings, activity, edges)
    )
    if score.max() - np.median(score) < _SHAPED:
        return Identification(
            configured, False, "the load is too constant: every lag explains the readings as well"
        )
    peaks = _peaks(lag, width, score)
    best = _refine(readings, activity, Kernel("boxcar", lag[peaks[0]], width[peaks[0]]), counter)
    if not np.isfinite(best.loglik):
        return Identification(configured, False, "the stages' activity in the readings is linearly dependent")
    fits = [best]
    for p in peaks[1:]:
        begin = Kernel("boxcar", lag[p], width[p])
        if _loglik(readings, activity, begin, best.variances)[0] > best.loglik - _WORTH:
            fits.append(_refine(readings, activity, begin, counter))
    fits.sort(key=lambda f: -f.loglik)
    best = fits[0]
    rivals = [
        f.kernel
        for f in fits[1:]
        if best.loglik - f.loglik < _SURE and abs(f.kernel.lag_s - best.kernel.lag_s) > 2 * _STEP
    ]
    if rivals:
        said = ", ".join(f"{1e3 * k.lag_s:.1f} ms" for k in [best.kernel, *rivals])
        return Identification(
            configured,
            False,
            f"the load is periodic: lags of {said} explain the readings equally well",
            rivals=rivals,
        )
    shape_found = False
    if not counter:
        other = _refine(readings, activity, _lowpass_like(best.kernel), counter)
        shape_found = bool(abs(other.loglik - best.loglik) > _SURE)
        if other.loglik > best.loglik + (_SURE if configured.shape == "boxcar" else -_SURE):
            best = other
    lag_sd, width_sd = _uncertainty(readings, activity, best, counter)
    gain = best.loglik - _loglik(readings, activity, configured, best.variances)[0]
    return Identification(
        kernel=best.kernel,
        found=True,
        lag_uncertainty_s=1.96 * lag_sd,
        width_uncertainty_s=1.96 * width_sd,
        shape_found=shape_found,
        loglik_gain=float(gain),
    )


def beside_round_trips(found: Identification, configured: Kernel, allowed_s: float) -> Identification:
    """What the found lag says of a meter's own clock, whose offset round trips tell to ± `allowed_s`."""
    off, half = found.kernel.lag_s - configured.lag_s, found.lag_uncertainty_s
    said = f"its clock is {1e3 * off:+.1f} ± {1e3 * half:.1f} ms off by the activity"
    if abs(off) > np.hypot(half, allowed_s):
        said += f", which round trips (± {1e3 * allowed_s:.1f} ms) don't explain"
    else:
        said += f", as round trips (± {1e3 * allowed_s:.1f} ms) allow"
    return replace(found, clock=said) if found.found else found


def _middle(readings: Clean, most: int) -> Clean:
    n = len(readings.time)
    part = slice((n - most) // 2, (n + most) // 2) if n > most else slice(0, n)
    return replace(
        readings,
        time=readings.time[part],
        uncertainty=readings.uncertainty[part],
        value=readings.value[part],
        row=readings.row[part],
        fresh=readings.fresh[part],
    )


def _near(activity: Activity, readings: Clean, search: tuple[float, float]) -> Activity:
    first, last = readings.time[0] - search[1] - 1.0, readings.time[-1] - search[0] + 1.0
    keep = (activity.end > first) & (activity.begin < last)
    return Activity(activity.begin[keep], activity.end[keep], activity.stage[keep], activity.stages)


# -- the map --------------------------------------------------------------------------------------


def _running_integrals(activity: Activity, at: Float) -> Float:
    """(stages, k): how long each stage was active before the times `at` (k,) s, in s (summed over frames)."""
    out = np.zeros((activity.stages, len(at)))
    for s in range(activity.stages):
        mine = activity.stage == s
        if mine.any():
            out[s] = running_energy(activity.begin[mine], activity.end[mine], np.ones(int(mine.sum())))(at)
    return out


def _score(rest: Float, n: int, total: float) -> Float:
    """Log-likelihood of least squares with the given residual sums of squares."""
    score: Float = -0.5 * n * np.log(np.maximum(rest, 1e-12 * total))
    return score


def _boxcar_map(readings: Clean, activity: Activity, edges: Float) -> tuple[Float, Float, Float]:
    """(lag, width, log-likelihood) of every pair of edges."""
    n, count, s = len(readings.time), len(edges), activity.stages
    at = (readings.time[:, None] - edges).ravel()
    columns = _running_integrals(activity, at).reshape(s, n, count)
    moved = np.diff(columns, axis=1).transpose(1, 2, 0).reshape(n - 1, count * s)
    y = np.diff(readings.value)
    gram = (moved.T @ moved).reshape(count, s, count, s).transpose(0, 2, 1, 3)
    right = (moved.T @ y).reshape(count, s)
    i, j = np.triu_indices(count, 1)  # the window runs from edges[j] to edges[i] before the reading
    width = edges[j] - edges[i]
    own = np.einsum("kkst->kst", gram)
    normal = own[i] + own[j] - gram[i, j] - gram[j, i]
    normal = normal / width[:, None, None] ** 2
    rhs = (right[i] - right[j]) / width[:, None]
    return edges[i], width, _score(_rest(normal, rhs, float(y @ y), n), n - 1, float(y @ y))


def _counter_map(readings: Clean, activity: Activity, edges: Float) -> tuple[Float, Float, Float]:
    n, count, s = len(readings.time), len(edges), activity.stages
    at = (readings.time[:, None] - edges).ravel()
    columns = np.diff(_running_integrals(activity, at).reshape(s, n, count), axis=1)
    gap = np.diff(readings.time)
    usable = np.flatnonzero(~readings.fresh[1:])
    mean = (columns / gap[:, None])[:, usable]
    y = np.diff((np.diff(readings.value) / gap)[usable])
    moved = np.diff(mean, axis=1)
    normal = np.einsum("snk,tnk->kst", moved, moved)
    rest = _rest(normal, np.einsum("snk,n->ks", moved, y), float(y @ y), len(y))
    return edges, np.zeros(count), _score(rest, len(y), float(y @ y))


def _rest(normal: Float, right: Float, total: float, n: int) -> Float:
    """Residual sums of squares of many least squares problems (k, s, s), (k, s) of n rows; activity
    that changes by less than 1e-5 of a window from row to row counts as constant."""
    s = normal.shape[-1]
    ridge = 1e-9 * np.trace(normal, axis1=1, axis2=2)[:, None, None] * np.eye(s) / s + 1e-10 * n * np.eye(s)
    solved = np.linalg.solve(normal + ridge, right[:, :, None])[:, :, 0]
    rest: Float = total - np.einsum("ks,ks->k", solved, right)
    return rest


def _peaks(lag: Float, width: Float, score: Float) -> list[int]:
    """The best point, and the best ones whose middle lies elsewhere."""
    order = np.argsort(-score)[:20000]
    middle = lag + width / 2
    chosen: list[int] = []
    for p in order:
        if all(
            abs(middle[p] - middle[c]) > 4 * _STEP or abs(width[p] - width[c]) > 8 * _STEP for c in chosen
        ):
            chosen.append(int(p))
        if len(chosen) == _RIVALS:
            break
    return chosen


# -- refinement -----------------------------------------------------------------------------------


@dataclass(slots=True)
class _Refined:
    kernel: Kernel
    loglik: float
    variances: Variances


def _model(readings: Clean, activity: Activity, kernel: Kernel) -> tuple[Design, Float]:
    """The model under the kernel, and what the change of variables adds to the log-likelihood of each of
    its differences."""
    rows = windows(readings, kernel)
    design = build(rows, Pieces(activity.begin, activity.end, activity.stage, activity.stages))
    if not rows.tau:
        return design, np.zeros(len(design.difference))
    own = np.asarray(rows.noise.max(axis=1).todense()).ravel()  # du_k / dy_k
    return design, np.log(own[1:])


def _loglik(
    readings: Clean, activity: Activity, kernel: Kernel, start: Variances | None
) -> tuple[float, Variances | None]:
    """Restricted log-likelihood of the readings under the kernel (−∞ where it can't be computed), and
    the variances of which it is the greatest."""
    design, change = _model(readings, activity, kernel)
    try:
        variances, value = reml(design, start)
    except np.linalg.LinAlgError:
        return -np.inf, start
    return value + float(change.sum()), variances


def _loglik_with(readings: Clean, activity: Activity, kernel: Kernel, variances: Variances) -> float:
    """`_loglik` with the variances given, which takes a tenth of the time."""
    design, change = _model(readings, activity, kernel)
    return log_likelihood(design, variances) + float(change.sum())


def _kernel(like: Kernel, at: Float, counter: bool) -> Kernel:
    return Kernel(like.shape, float(at[0]), 0.0 if counter else float(at[1]))


def _refine(readings: Clean, activity: Activity, begin: Kernel, counter: bool) -> _Refined:
    """The likelihood's peak near `begin`, by Nelder and Mead's simplex; variances are those of the kernel
    that was the best before."""
    kernel, variances = begin, _loglik(readings, activity, begin, None)[1]
    for _ in range(_ROUNDS):
        if variances is None:
            break
        kernel = _peak(readings, activity, kernel, variances, counter)
        value, variances = _loglik(readings, activity, kernel, variances)
    if variances is None:
        return _Refined(begin, -np.inf, Variances(np.zeros(0), 0.0, 0.0, 0.0))
    return _Refined(kernel, value, variances)


def _peak(readings: Clean, activity: Activity, begin: Kernel, variances: Variances, counter: bool) -> Kernel:
    """The kernel near `begin` that makes the readings most likely, the variances being given."""
    from scipy.optimize import minimize  # takes 0.3 s, which most runs need not wait for

    def unlikely(at: Float) -> float:
        kernel = _kernel(begin, at, counter)
        if not counter and kernel.width_s < _SMALLEST:
            return 1e12
        return -max(_loglik_with(readings, activity, kernel, variances), -1e12)

    x0 = np.array([begin.lag_s] if counter else [begin.lag_s, begin.width_s])
    simplex = np.vstack([x0, x0 + 0.6 * _STEP * np.eye(len(x0))])
    found = minimize(
        unlikely, x0, method="Nelder-Mead",
        options={"initial_simplex": simplex, "maxfev": 45, "xatol": 2e-5, "fatol": 0.05},
    )  # fmt: skip
    return _kernel(begin, found.x, counter)


def _lowpass_like(kernel: Kernel) -> Kernel:
    """The low-pass of the same mean delay and spread."""
    tau = max(kernel.width_s / np.sqrt(12.0), 2 * _STEP)
    return Kernel("lowpass", kernel.lag_s + kernel.width_s / 2 - tau, tau)


def _uncertainty(readings: Clean, activity: Activity, best: _Refined, counter: bool) -> tuple[float, float]:
    """Standard deviations of lag and width: of the likelihood taken as a density around its peak.

    Its curvature would be too sharp, as the likelihood is rough on a scale below the uncertainty. A
    coarse grid along the kernel's mean delay and width, which the readings tell nearly independently,
    shows where a finer one is to lie.
    """
    k = 1 if counter else 2
    delay = 0.0 if counter else 0.5 if best.kernel.shape == "boxcar" else 1.0  # mean delay in widths
    peak = np.array([best.kernel.lag_s + delay * best.kernel.width_s, best.kernel.width_s][:k])

    def kernel_of(at: Float) -> Kernel:
        width = 0.0 if counter else max(float(at[1]), _SMALLEST)
        return Kernel(best.kernel.shape, float(at[0]) - delay * width, width)

    def loglik(at: Float) -> float:
        return _loglik_with(readings, activity, kernel_of(at), best.variances)

    def each(at: Float) -> Float:
        design, change = _model(readings, activity, kernel_of(at))
        return log_likelihoods(design, best.variances) + change

    highest = loglik(peak)
    axes = np.eye(k)
    for a, unit in enumerate(np.eye(k)):
        step = 0.1 * _STEP
        while 2 * highest - loglik(peak + step * unit) - loglik(peak - step * unit) < 2.0 and step < 0.05:
            step *= 2
        axes[a, a] = step
    spread = axes @ axes.T
    for points in (5, 7):
        values, vectors = np.linalg.eigh(spread)
        axes = vectors * np.sqrt(values)
        grid = np.stack(np.meshgrid(*[np.linspace(-3.0, 3.0, points)] * k), axis=-1).reshape(-1, k)
        off = grid @ axes.T
        logs = np.array([loglik(peak + x) for x in off])
        weight = np.exp(logs - logs.max())
        spread = (off * weight[:, None]).T @ off / weight.sum() + 0.02 * spread  # never a single point
    spread = _pulled(spread, peak, each)
    lag = np.array([1.0, -delay][:k])
    width_sd = float(np.sqrt(spread[1, 1])) if k == 2 else float("nan")
    return float(np.sqrt(lag @ spread @ lag)), width_sd


def _pulled(spread: Float, peak: Float, each: Callable[[Float], Float]) -> Float:
    """The covariance `spread` (k, k), wider where readings pull to both sides of the peak harder than the
    model expects (White, Econometrica 50, 1982): times that are off change some of them much. `each` is
    what each difference adds to the log-likelihood."""
    values, vectors = np.linalg.eigh(spread)
    axes = vectors * np.sqrt(values)
    pull = np.stack([each(peak + axis) - each(peak - axis) for axis in axes.T]) / 2  # per sd
    values, vectors = np.linalg.eigh(pull @ pull.T)
    wider: Float = axes @ (vectors * np.maximum(values, 1.0)) @ vectors.T @ axes.T
    return wider
