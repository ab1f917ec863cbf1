"""How much of each window falls on each piece of time: sparse, linear time, no loop over windows.

Times are float64 seconds from any common origin. A window's kernel is normalised: its overlaps with
pieces that tile all time add up to one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from benchlab_otel.align.attribution.matrix import Matrix, of_entries
from benchlab_otel.model import Float, Int


def ragged(first: Int, last: Int) -> tuple[Int, Int]:
    """The ranges first[i] … last[i] − 1 laid end to end: (i, element), each (total,)."""
    count = np.maximum(last - first, 0)
    owner = np.repeat(np.arange(len(count)), count)
    start = np.cumsum(count) - count
    return owner, np.arange(len(owner)) + (first - start)[owner]


def distinct(values: Float) -> Float:
    """The values ascending, each once; quick where they are nearly sorted."""
    ascending = np.sort(values, kind="stable")
    return ascending[np.append(True, np.diff(ascending) > 0)] if len(ascending) else ascending


def join(lo: Float, hi: Float, begin: Float, end: Float) -> tuple[Int, Int]:
    """All pairs (window, piece) that share time: windows [lo, hi) (n,), pieces [begin, end) (m,).

    Either the piece begins inside the window or the window begins inside the piece; each of the
    two is a range in a sorted array, so any order and any nesting of intervals is found exactly
    once, in time linear in inputs and pairs (after the sorts).
    """
    by_begin, by_lo = np.argsort(begin, kind="stable"), np.argsort(lo, kind="stable")
    begins, los = begin[by_begin], lo[by_lo]
    window, k = ragged(np.searchsorted(begins, lo, "left"), np.searchsorted(begins, hi, "left"))
    piece, j = ragged(np.searchsorted(los, begin, "right"), np.searchsorted(los, end, "left"))
    return np.concatenate([window, by_lo[j]]), np.concatenate([by_begin[k], piece])


def cumulative(time: Float, lo: Float, hi: Float, tau: float = 0.0) -> Float:
    """The share of a window's kernel before `time`; all arrays (k,), the result in 0 … 1.

    `tau` 0: a boxcar, (t − lo) / (hi − lo). Otherwise the part of a first-order low-pass with time
    constant `tau` (s) that lies in the window and is read at its end: exp((t − hi) / tau),
    normalised. An empty window is a step just after `lo`.
    """
    if tau == 0.0:
        width = hi - lo
        inside = np.divide(time - lo, width, out=np.array(time > lo, float), where=width > 0)
        return np.clip(inside, 0.0, 1.0)
    left = np.exp((lo - hi) / tau)
    share: Float = (np.exp((np.clip(time, lo, hi) - hi) / tau) - left) / (1.0 - left)
    return share


def overlap(lo: Float, hi: Float, begin: Float, end: Float, tau: float = 0.0, dense: bool = False) -> Matrix:
    """A (n, m): the share of window k's kernel (see `cumulative`) during which piece i was active."""
    window, piece = join(lo, hi, begin, end)
    w_lo, w_hi = lo[window], hi[window]
    value = cumulative(end[piece], w_lo, w_hi, tau) - cumulative(begin[piece], w_lo, w_hi, tau)
    return of_entries(value, window, piece, (len(lo), len(begin)), dense)


def seconds_in(lo: Float, hi: Float, begin: Float, end: Float, dense: bool = False) -> Matrix:
    """(n, m): the seconds that interval k shares with piece i."""
    window, piece = join(lo, hi, begin, end)
    value = np.minimum(hi[window], end[piece]) - np.maximum(lo[window], begin[piece])
    return of_entries(value, window, piece, (len(lo), len(begin)), dense)


@dataclass(slots=True)
class Weight:
    """A measure of time: the weight between two times is `upto` (k,) there less here, linear between
    `times` (k,) s. None of both: seconds."""

    times: Float | None = None
    upto: Float | None = None

    def __call__(self, at: Float) -> Float:
        if self.times is None or self.upto is None:
            return at
        return np.interp(at, self.times, self.upto)


def integral_of(times: Float, share: Float) -> Weight:
    """Time counted by a step function: `share` (k − 1,) between the `times` (k,) ascending, 0 elsewhere."""
    return Weight(times, np.append(0.0, np.cumsum(share * np.diff(times)))) if len(times) else never()


def never() -> Weight:
    """No time counts."""
    return Weight(np.zeros(1), np.zeros(1))


def running_energy(begin: Float, end: Float, watts: Float) -> Weight:
    """The energy (J) of pieces [begin, end) (m,) s of `watts` (m,) until a time."""
    times = np.concatenate([begin, end])
    order = np.argsort(times, kind="stable")
    level = np.cumsum(np.concatenate([watts, -watts])[order])
    return integral_of(times[order], level[:-1])
