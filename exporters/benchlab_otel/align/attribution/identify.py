"""A meter's lag, width and kernel from the pipeline's own activity, by the likelihood of its readings.

First a map for each kernel (`kernel_map`): least squares for every pair of window edges at once, and for
every lag and time constant of a low-pass. Then the maps' peaks are refined by the restricted likelihood of
`fit`. A map that is flat (constant load) or several peaks that are as likely as the best (periodic load)
identify nothing, and the configured kernel stays.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass, field, replace

import numpy as np

from benchlab_otel.align.attribution.counters import Clean
from benchlab_otel.align.attribution.design import Design, Pieces, build
from benchlab_otel.align.attribution.fit import log_likelihood, log_likelihoods
from benchlab_otel.align.attribution.gls import Variances
from benchlab_otel.align.attribution.kernel_map import (
    STEP,
    Activity,
    Map,
    boxcar_map,
    counter_map,
    limit_of,
    lowpass_map,
    peaks_of,
)
from benchlab_otel.align.attribution.reml import reml
from benchlab_otel.align.attribution.windows import Kernel, Shape, windows
from benchlab_otel.model import Float

_ROWS = 2400  # readings that are looked at
_SURE = 10.0  # log-likelihood that a choice must be ahead by: chance among many lags reaches 7
_SHAPED = 15.0  # log-likelihood of the map's top over its median; chance reaches 10 on so many points
_LEAST_ROWS = 40  # readings below which nothing is looked for
_LOOSE = 0.01  # s, half width of lag or width that stages of some milliseconds can't be told with
_SMALLEST = 1e-4  # s, width
_FREE = 4.0  # times at most that freed variances make the uncertainty wider
_DELAY: dict[Shape, float] = {"boxcar": 0.5, "lowpass": 1.0}  # mean delay after the lag, in widths
_AT_ONCE = 16  # likelihoods between two parts of a search
_NEAREST, _FARTHER, _FARTHEST = 2e-4, 1.6, 0.02  # s, factor, s: how far beside a peak others are looked for
_FALLEN = 6.0  # log-likelihood below the peak that ends this, twice in a row
_MOVES = 3  # times that a better peak is moved to


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


Search = Generator[None, None, Identification]


def identify(
    readings: Clean, activity: Activity, configured: Kernel, within: tuple[float, float] = (-0.1, 0.3)
) -> Identification:
    """Lag and width, the lag `within` these s before the reading; a counter has a lag only.

    The lag of a meter on another clock is its clock's offset.
    """
    return finished(search(readings, activity, configured, within))


def finished(looking: Search) -> Identification:
    """What a search finds."""
    while True:
        try:
            next(looking)
        except StopIteration as end:
            found: Identification = end.value
            return found


def search(
    readings: Clean, activity: Activity, configured: Kernel, within: tuple[float, float] = (-0.1, 0.3)
) -> Search:
    """`identify` in parts, for those who have to do something else every few tenths of a second."""
    readings = _middle(readings, _ROWS)
    counter = readings.kind == "energy"
    if np.count_nonzero(~readings.fresh) < _LEAST_ROWS or not len(activity.begin):
        return Identification(configured, False, "too little data to find lag and width from")
    if not np.ptp(readings.value):
        return Identification(configured, False, "the readings never change")
    activity = _near(activity, readings, within)
    edges = np.arange(within[0], within[1] + STEP / 2, STEP)
    seen = (counter_map if counter else boxcar_map)(readings, activity, edges)
    usual = np.median(seen.rest[np.isfinite(seen.rest)])
    if 0.5 * seen.rows * np.log(usual / seen.rest.min()) < _SHAPED:
        return Identification(
            configured, False, "the load is too constant: every lag explains the readings as well"
        )
    yield
    limit = limit_of(seen)
    fits = yield from _refined_peaks(readings, activity, seen, limit, "boxcar")
    if not fits:
        return Identification(configured, False, "the stages' activity in the readings is linearly dependent")
    shape_found = False
    if not counter:
        seen = lowpass_map(readings, activity, edges[::2])
        yield
        limit = min(limit, limit_of(seen))
        others = yield from _refined_peaks(readings, activity, seen, limit, "lowpass")
        ahead = others[0].loglik - fits[0].loglik if others else -np.inf
        shape_found = bool(abs(ahead) > _SURE)
        if ahead > (_SURE if configured.shape == "boxcar" else -_SURE):
            fits = others
    best, beside = yield from _highest(readings, activity, fits[0], counter)
    rivals = [
        f.kernel
        for f in fits[1:]
        if best.loglik - f.loglik < _SURE and abs(f.kernel.lag_s - best.kernel.lag_s) > 2 * STEP
    ]
    if rivals:
        said = ", ".join(f"{1e3 * k.lag_s:.1f} ms" for k in [best.kernel, *rivals])
        return Identification(
            configured,
            False,
            f"the load is periodic: lags of {said} explain the readings equally well",
            rivals=rivals,
        )
    try:
        lag_sd, width_sd = yield from _uncertainty(readings, activity, best, beside, counter)
    except np.linalg.LinAlgError as e:
        return Identification(configured, False, f"how sure lag and width are can't be computed: {e}")
    period = float(np.median(np.diff(readings.time)))
    if open_ := _left_open(best.kernel, 1.96 * lag_sd, 1.96 * width_sd, period):
        return Identification(configured, False, f"the readings leave {open_}: too few of them tell of it")
    gain = best.loglik - _loglik(readings, activity, configured, best.variances)[0]
    return Identification(
        kernel=best.kernel,
        found=True,
        lag_uncertainty_s=1.96 * lag_sd,
        width_uncertainty_s=1.96 * width_sd,
        shape_found=shape_found,
        loglik_gain=float(gain),
    )


def _left_open(found: Kernel, lag_half: float, width_half: float, period: float) -> str:
    """Which of lag and width is known so badly that it is no figure, in words; "" where none is."""
    loose = max(_LOOSE, 0.2 * period)
    if lag_half > loose:
        return f"the lag open (± {1e3 * lag_half:.0f} ms)"
    if width_half > max(loose, 0.5 * found.width_s):
        return f"the width open (± {1e3 * width_half:.0f} ms)"
    return ""


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


def _refined_peaks(
    readings: Clean, activity: Activity, seen: Map, limit: float, shape: Shape
) -> Generator[None, None, list[_Refined]]:
    """The likelihood's peaks near those of the map, the highest first; those that may be it are refined
    twice."""
    counter = readings.kind == "energy"
    once: list[_Refined] = []
    for lag, width in peaks_of(seen, limit):
        begin = Kernel(shape, lag, width)
        value, variances = _loglik(readings, activity, begin, None)
        if variances is not None:
            once.append(_refine(readings, activity, _Refined(begin, value, variances), counter))
        yield
    fits: list[_Refined] = []
    once.sort(key=lambda f: -f.loglik)
    for f in once:
        if f.loglik > once[0].loglik - 3 * _SURE and not any(_same(f.kernel, g.kernel) for g in fits):
            fits.append(_refine(readings, activity, f, counter))
            yield
    return sorted(fits, key=lambda f: -f.loglik)


def _same(a: Kernel, b: Kernel) -> bool:
    """Whether two refined kernels are one peak."""
    return max(abs(a.lag_s - b.lag_s), abs(a.width_s - b.width_s)) < STEP / 2


def _refine(readings: Clean, activity: Activity, begin: _Refined, counter: bool) -> _Refined:
    """The likelihood's peak near `begin` with its variances, then with the variances found there."""
    kernel = _peak(readings, activity, begin.kernel, begin.variances, counter)
    value, variances = _loglik(readings, activity, kernel, begin.variances)
    return _Refined(kernel, value, variances) if value > begin.loglik and variances else begin


def _peak(readings: Clean, activity: Activity, begin: Kernel, variances: Variances, counter: bool) -> Kernel:
    """The kernel near `begin` that makes the readings most likely, the variances being given, by Nelder and
    Mead's simplex."""
    from scipy.optimize import minimize  # takes 0.3 s, which most runs need not wait for

    def unlikely(at: Float) -> float:
        kernel = _kernel(begin, at, counter)
        if not counter and kernel.width_s < _SMALLEST:
            return 1e12
        return -max(_loglik_with(readings, activity, kernel, variances), -1e12)

    x0 = np.array([begin.lag_s] if counter else [begin.lag_s, begin.width_s])
    simplex = np.vstack([x0, x0 + 0.6 * STEP * np.eye(len(x0))])
    found = minimize(
        unlikely, x0, method="Nelder-Mead",
        options={"initial_simplex": simplex, "maxfev": 45, "xatol": 2e-5, "fatol": 0.05},
    )  # fmt: skip
    return _kernel(begin, found.x, counter)


def _highest(
    readings: Clean, activity: Activity, best: _Refined, counter: bool
) -> Generator[None, None, tuple[_Refined, list[_Refined]]]:
    """The highest of the peaks around `best`, and the kernels beside it in order of their lag.

    Where frames are nearly alike the likelihood has many narrow peaks on one wide hill.
    """
    beside = yield from _beside(readings, activity, best)
    for _ in range(_MOVES):
        top = max(beside, key=lambda f: f.loglik)
        if top is best:
            break
        best = _refine(readings, activity, top, counter)
        beside = yield from _beside(readings, activity, best)
    return best, beside


def _beside(readings: Clean, activity: Activity, best: _Refined) -> Generator[None, None, list[_Refined]]:
    """`best` between kernels of smaller and larger lag, until they are much less likely."""
    out = [best]
    for side in (-1, 1):
        off, fallen = _NEAREST, 0
        while fallen < 2 and off < _FARTHEST:
            kernel = replace(best.kernel, lag_s=best.kernel.lag_s + side * off)
            value, variances = _loglik(readings, activity, kernel, best.variances)
            out.append(_Refined(kernel, value, variances or best.variances))
            fallen = fallen + 1 if value < best.loglik - _FALLEN else 0
            off *= _FARTHER
            yield
    return sorted(out, key=lambda f: f.kernel.lag_s)


def _uncertainty(
    readings: Clean, activity: Activity, best: _Refined, beside: list[_Refined], counter: bool
) -> Generator[None, None, tuple[float, float]]:
    """Standard deviations of lag and width: of the likelihood taken as a density around its peak.

    Its curvature would be too sharp, as the likelihood is rough on a scale below the uncertainty. A
    coarse grid along the kernel's mean delay and width, which the readings tell nearly independently,
    shows where a finer one is to lie.
    """
    k = 1 if counter else 2
    delay = 0.0 if counter else _DELAY[best.kernel.shape]
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
        step = 0.1 * STEP
        while 2 * highest - loglik(peak + step * unit) - loglik(peak - step * unit) < 2.0 and step < 0.05:
            step *= 2
        axes[a, a] = step
        yield
    spread = axes @ axes.T
    for points in (5, 7):
        axes = _axes(spread)
        grid = np.stack(np.meshgrid(*[np.linspace(-3.0, 3.0, points)] * k), axis=-1).reshape(-1, k)
        off = grid @ axes.T
        logs = np.empty(len(off))
        for n, x in enumerate(off):
            logs[n] = loglik(peak + x)
            if n % _AT_ONCE == 0:
                yield
        weight = np.exp(logs - logs.max())
        spread = (off * weight[:, None]).T @ off / weight.sum() + 0.02 * spread  # never a single point
    spread = _freed(
        spread, best.loglik, lambda x: _loglik(readings, activity, kernel_of(peak + x), best.variances)[0]
    )
    yield
    spread = _pulled(spread, peak, each)
    wider = max(1.0, _hill(best, beside) / float(np.sqrt(spread[0, 0])))
    spread[0] *= wider
    spread[:, 0] *= wider
    if best.kernel.shape == "boxcar" and k == 2:
        spread[1, 1] += _smeared(readings, best.kernel.width_s) ** 2
    lag = np.array([1.0, -delay][:k])
    width_sd = float(np.sqrt(spread[1, 1])) if k == 2 else float("nan")
    return float(np.sqrt(lag @ spread @ lag)), width_sd


def _hill(best: _Refined, beside: list[_Refined]) -> float:
    """Sd (s) of the lag by the likelihoods beside the best one's: 1 / 1.96 of the distance from it within
    which 95 % of them lie, as where there are many narrow peaks their distribution is far from normal."""
    lag, loglik = np.array([(f.kernel.lag_s, f.loglik) for f in beside]).T
    weight = np.exp(loglik - loglik.max()) * np.gradient(lag)
    off = np.abs(lag - best.kernel.lag_s)
    order = np.argsort(off)
    within = np.cumsum(weight[order]) / weight.sum()
    return float(np.interp(0.95, within, off[order])) / 1.96


def _smeared(readings: Clean, width: float) -> float:
    """Sd (s) of the width of a boxcar that uncertain times smear into a trapezoid: the boxcar of equal
    variance that stands for it (`windows`) is wider than the trapezoid at half its height, and the width that
    fits the readings best lies between the two."""
    trip = 2 * float(np.median(readings.uncertainty))
    return 0.5 * (np.hypot(width, trip) - width)


def _axes(spread: Float) -> Float:
    """The principal axes (k, k) of a covariance, each one sd long, as columns."""
    values, vectors = np.linalg.eigh(spread)
    axes: Float = vectors * np.sqrt(values)
    return axes


def _freed(spread: Float, highest: float, loglik: Callable[[Float], float]) -> Float:
    """The covariance `spread` (k, k), wider along the axes on which the likelihood with variances found anew,
    `highest` at the peak, falls by less than a normal distribution's: by 2 at 2 sd."""
    axes = _axes(spread)
    for axis in axes.T:
        fall = highest - np.mean([loglik(2 * axis), loglik(-2 * axis)])
        axis *= np.sqrt(2.0 / np.clip(fall, 2.0 / _FREE**2, 2.0))
    wider: Float = axes @ axes.T
    return wider


def _pulled(spread: Float, peak: Float, each: Callable[[Float], Float]) -> Float:
    """The covariance `spread` (k, k), wider where readings pull to both sides of the peak harder than the
    model expects (White, Econometrica 50, 1982): times that are off change some of them much. `each` is
    what each difference adds to the log-likelihood."""
    axes = _axes(spread)
    pull = np.stack([each(peak + axis) - each(peak - axis) for axis in axes.T]) / 2  # per sd
    values, vectors = np.linalg.eigh(pull @ pull.T)
    wider: Float = axes @ (vectors * np.maximum(values, 1.0)) @ vectors.T @ axes.T
    return wider
