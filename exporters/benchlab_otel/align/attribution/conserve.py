"""The conservation law: shares of all frames + idle = measured energy.

A frame's share is its stages above base plus the base split evenly, at each instant, over the
frames in flight; idle is the base while none is. Both are integrals of the same posterior, so they
add up to it exactly. With the base's level unknown the readings' residuals sum to zero (as those of
any regression with a constant), so for a meter whose windows tile time that posterior is the
measured energy itself, to rounding (`condition` sets the level so where the windows differ).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from benchlab_otel.align.attribution.condition import Posterior, base_integral, sums_of
from benchlab_otel.align.attribution.misfit import Moved
from benchlab_otel.align.attribution.overlap import Weight, integral_of, never
from benchlab_otel.align.attribution.windows import Windows, tile
from benchlab_otel.model import Bool, Float

_GAP = 3.0  # periods without a reading that make a gap


@dataclass(slots=True)
class Ledger:
    """Where the energy (J) went: measured = shares + idle + residual.

    `exact`: the meter covers all time, `measured` is Σ value · window and the residual is what the
    model puts down to the meter's noise. Otherwise `measured` is the plain integral of the readings,
    an estimate too, and the residual is by how much it is off. Either is expected within
    ± `residual_uncertainty` (95 %): of zero if exact, else of the residual given.
    """

    measured: float
    shares: float
    idle: float
    residual: float
    residual_uncertainty: float
    exact: bool


@dataclass(slots=True)
class Entry:
    """One block's sums (J) for the ledger; `variance` (J²) of the residual."""

    measured: float
    shares: float
    idle: float
    variance: float


@dataclass
class Shares:
    """Measures of time: `split` by which frames in flight share the base; `alone`: frames never overlap."""

    split: Weight
    alone: bool
    rows: Windows

    @cached_property
    def covered(self) -> Weight:
        """The seconds that the meter saw."""
        return covered_seconds(self.rows)

    @cached_property
    def busy(self) -> Weight:
        """Those of them with a frame in flight."""
        return _both(_in_flight(self.split), self.covered)


def shares_of(begin: Float, end: Float, rows: Windows) -> Shares:
    """The measures of time of frames `begin` to `end` (n,) s under these rows."""
    first, last = np.sort(begin, kind="stable"), np.sort(end, kind="stable")
    return Shares(even_split(begin, end), bool(np.all(first[1:] >= last[:-1])), rows)


def even_split(begin: Float, end: Float) -> Weight:
    """Seconds divided by the number of frames in flight, 0 while there is none."""
    times = np.concatenate([begin, end])
    order = np.argsort(times, kind="stable")
    times = times[order]
    active = np.cumsum(np.repeat([1, -1], len(begin))[order])[:-1]
    share = np.where(active > 0, 1.0 / np.maximum(active, 1), 0.0)
    return integral_of(times, share)


def covered_seconds(rows: Windows) -> Weight:
    """Seconds that the meter saw: the windows where they tile, else all but the gaps between them."""
    reach = np.maximum.accumulate(rows.hi)
    longest = 1e-9 if tile(rows) else _GAP * rows.period
    new = np.append(True, rows.lo[1:] - reach[:-1] > longest)
    begin, end = rows.lo[new], reach[np.append(np.flatnonzero(new)[1:] - 1, len(rows) - 1)]
    share = np.ones(2 * len(begin) - 1)
    share[1::2] = 0.0
    return integral_of(np.column_stack([begin, end]).ravel(), share)


def is_covered(rows: Windows, begin: Float, end: Float) -> Bool:
    """Whether each frame lies between the first and the last window and touches no gap."""
    reach = np.maximum.accumulate(rows.hi)
    gap = np.flatnonzero(rows.lo[1:] - reach[:-1] > _GAP * rows.period)
    inside: Bool = (begin >= rows.lo[0] - 1e-9) & (end <= reach[-1] + 1e-9)
    if len(gap):
        passed = np.searchsorted(rows.lo[gap + 1], begin, "right")
        inside &= np.searchsorted(reach[gap], end, "left") <= passed
    return inside


def entry(
    posterior: Posterior, shares: Shares, core: tuple[float, float], widened: float, moved: Moved | None
) -> Entry:
    """The ledger's sums for the rows of one block, whose time is `core`; what the readings say against the
    model widens the residual as it does each frame's interval."""
    design = posterior.design
    rows, pieces = design.rows, design.pieces
    begin, end = np.clip(pieces.begin, *core), np.clip(pieces.end, *core)
    lo, hi = np.array(core[:1]), np.array(core[1:])
    own = float(posterior.watts @ (shares.covered(end) - shares.covered(begin)))
    in_flight = float(base_integral(posterior, lo, hi, shares.busy)[0])
    base = float(base_integral(posterior, lo, hi, shares.covered)[0])
    width, off = rows.hi - rows.lo, 0.0
    if tile(rows):
        measured = float(rows.value @ width)
        variance = float((rows.noise.T @ width) ** 2 @ posterior.priors[2])
    else:
        measured = _plain_integral(rows, core, shares.covered)
        seen = shares.covered(end) - shares.covered(begin)
        covered_s = float((shares.covered(hi) - shares.covered(lo))[0])
        variance = float(sums_of(posterior, seen[:, None], covered_s)[1][0])
        if moved is not None:
            off = moved.variance_of_total(seen, *core, shares.covered)
    return Entry(measured, own + in_flight, base - in_flight, widened**2 * variance + off)


def ledger(entries: list[Entry], exact: bool) -> Ledger:
    """The sum of all blocks."""
    measured, shares, idle, variance = (
        sum(getattr(e, name) for e in entries) for name in ("measured", "shares", "idle", "variance")
    )
    half = 1.959964 * float(np.sqrt(variance))
    return Ledger(measured, shares, idle, measured - shares - idle, half, exact)


def _plain_integral(rows: Windows, core: tuple[float, float], covered: Weight) -> float:
    """The readings as straight lines between the middles of their windows, level at both ends and beside
    gaps: what was used while the meter saw nothing is not guessed."""
    middle = (rows.lo + rows.hi) / 2
    times = np.concatenate([core[:1], middle, core[1:]])
    value = np.concatenate([rows.value[:1], rows.value, rows.value[-1:]])
    return float(np.diff(covered(times)) @ (value[1:] + value[:-1])) / 2


def _in_flight(split: Weight) -> Weight:
    """Seconds with a frame in flight."""
    if split.times is None or split.upto is None:
        return never()
    return integral_of(split.times, (np.diff(split.upto) > 0).astype(float))


def _both(a: Weight, b: Weight) -> Weight:
    """Seconds that count in both of two measures that are 0 or 1 at each instant."""
    if a.times is None or b.times is None:
        return never()
    times = np.sort(np.concatenate([a.times, b.times]), kind="stable")
    half = 0.5 * np.diff(times)
    share = (np.diff(a(times)) > half) & (np.diff(b(times)) > half)
    return integral_of(times, share.astype(float))
