"""Two meters on the same thing, or one and those of its parts: how much they differ, and how sure that is."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import stdtrit  # scipy.stats takes a quarter of a second to load

from benchlab_otel.align.attribution import counters
from benchlab_otel.align.attribution.windows import Kernel, windows
from benchlab_otel.model import Float, Readings

_BATCHES = 30
_LEAST = 5
_GAP = 3.0  # periods without a reading of power that make a gap


@dataclass(slots=True)
class Difference:
    """First meter less the others, `watts` ± `uncertainty` (95 % half width) on average over the `seconds`
    that all saw, `ratio` of their energies; NaN with a `reason` where they share too little time."""

    watts: float
    uncertainty: float
    ratio: float
    seconds: float
    reason: str = ""


def difference(first: Readings, *parts: Readings) -> Difference:
    """How a meter and another one, or the sum of those of the load's parts, differ, by batch means.

    The common time is cut into equal batches, each far longer than any meter's period, so that
    their differences are nearly independent whatever noise and load do within a batch (Law & Kelton,
    Simulation Modeling and Analysis, 1991, sec. 9.5.3); the interval is Student's. Batches in which one
    of them was blind are left out.
    """
    origin = min((int(r.time.min()) for r in (first, *parts) if len(r)), default=0)
    curves = [_curve(r, origin) for r in (first, *parts)]
    begin = max(c.time[0] if len(c.time) else np.inf for c in curves)
    end = min(c.time[-1] if len(c.time) else -np.inf for c in curves)
    period = max(float(np.median(np.diff(c.time))) if len(c.time) > 1 else np.inf for c in curves)
    count = int(min(_BATCHES, (end - begin) / (10 * period))) if end > begin else 0
    if count < _LEAST:
        return _too_little(max(end - begin, 0.0))
    edges = np.linspace(begin, end, count + 1)
    seen = np.logical_and.reduce([np.diff(np.interp(edges, c.time, c.blind)) <= 0 for c in curves])
    length = np.diff(edges)[seen]
    if len(length) < _LEAST:
        return _too_little(float(length.sum()))
    a, *rest = (np.diff(np.interp(edges, c.time, c.energy))[seen] for c in curves)
    b = np.sum(rest, axis=0)
    off = (a - b) / length
    half = float(stdtrit(len(off) - 1, 0.975) * off.std(ddof=1) / np.sqrt(len(off)))
    ratio = float(a.sum() / b.sum()) if b.sum() else float("nan")
    return Difference(float(off.mean()), half, ratio, float(length.sum()))


def _too_little(shared_s: float) -> Difference:
    nan = float("nan")
    return Difference(nan, nan, nan, shared_s, "the meters share too little time to compare them")


@dataclass(slots=True)
class _Curve:
    """Up to some times (n,) s: `energy` (n,) J, and for how long (n,) s the meter was `blind`."""

    time: Float
    energy: Float
    blind: Float


def _curve(readings: Readings, origin_ns: int) -> _Curve:
    """A counter's own steps, blind over a reset; or the integral of readings as lines, blind in a gap."""
    clean = counters.clean(readings, origin_ns)
    if clean.kind == "energy":
        time, unseen = clean.time, clean.fresh[1:]
        step = np.where(unseen, 0.0, np.diff(clean.value))
    else:
        rows = windows(clean, Kernel("boxcar", 0.0, (readings.window_ns or 0) / 1e9))
        time = (rows.lo + rows.hi) / 2
        unseen = np.diff(time) > _GAP * rows.period
        step = np.diff(time) * (rows.value[1:] + rows.value[:-1]) / 2
    blind = np.diff(time) * unseen
    return _Curve(time, *(np.append(0.0, np.cumsum(part))[: len(time)] for part in (step, blind)))
