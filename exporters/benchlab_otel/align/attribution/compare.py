"""Two meters on the same thing: by how much they differ, and how sure that is."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import stdtrit  # scipy.stats takes a quarter of a second to load

from benchlab_otel.align.attribution import counters
from benchlab_otel.align.attribution.windows import Kernel, windows
from benchlab_otel.model import Float, Readings

_BATCHES = 30
_LEAST = 5


@dataclass(slots=True)
class Difference:
    """First meter less second, `watts` ± `uncertainty` (95 % half width) on average over the `seconds`
    that both saw, `ratio` of their energies; NaN with a `reason` where they share too little time."""

    watts: float
    uncertainty: float
    ratio: float
    seconds: float
    reason: str = ""


def difference(first: Readings, second: Readings) -> Difference:
    """How two meters of the same load differ, by batch means.

    The common time is cut into equal batches, each far longer than either meter's period, so that
    their differences are nearly independent whatever noise and load do within a batch (Law & Kelton,
    Simulation Modeling and Analysis, 1991, sec. 9.5.3); the interval is Student's.
    """
    origin = min((int(r.time.min()) for r in (first, second) if len(r)), default=0)
    curves = [_energy(r, origin) for r in (first, second)]
    begin = max(c[0][0] if len(c[0]) else np.inf for c in curves)
    end = min(c[0][-1] if len(c[0]) else -np.inf for c in curves)
    period = max(float(np.median(np.diff(c[0]))) if len(c[0]) > 1 else np.inf for c in curves)
    count = int(min(_BATCHES, (end - begin) / (10 * period))) if end > begin else 0
    if count < _LEAST:
        nan = float("nan")
        return Difference(
            nan, nan, nan, max(end - begin, 0.0), "the meters share too little time to compare them"
        )
    edges = np.linspace(begin, end, count + 1)
    a, b = (np.diff(np.interp(edges, *c)) for c in curves)
    off = (a - b) / np.diff(edges)
    half = float(stdtrit(count - 1, 0.975) * off.std(ddof=1) / np.sqrt(count))
    return Difference(float(off.mean()), half, float(a.sum() / b.sum()), float(end - begin))


def _energy(readings: Readings, origin_ns: int) -> tuple[Float, Float]:
    """Energy (J) up to some times (s): a counter's own, or the integral of its readings as lines."""
    clean = counters.clean(readings, origin_ns)
    if clean.kind == "energy":
        step = np.where(clean.fresh, 0.0, np.diff(clean.value, prepend=clean.value[:1]))
        return clean.time, np.cumsum(step)
    rows = windows(clean, Kernel("boxcar", 0.0, (readings.window_ns or 0) / 1e9))
    middle = (rows.lo + rows.hi) / 2
    area = np.diff(middle) * (rows.value[1:] + rows.value[:-1]) / 2
    return middle, np.append(0.0, np.cumsum(area))[: len(middle)]
