"""Least squares of the readings' differences on the stages' activity, for very many kernels at once.

For every pair of window edges: the Gram matrix of the activity's running integrals at all shifts holds every
boxcar's normal equations. For a counter every lag, for a low-pass every lag and time constant.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.linalg.lapack import dtbtrs

from benchlab_otel.align.attribution.counters import Clean
from benchlab_otel.align.attribution.overlap import running_energy
from benchlab_otel.model import Float, Int

STEP = 0.001  # s between the map's edges
_RIVALS = 8
_BLURRED = 2.0  # times the sum of squares beside the best point: a peak above that is none
_TAUS = np.geomspace(0.001, 0.3, 16)  # s, time constants of the low-pass map


@dataclass(slots=True)
class Activity:
    """When the stages (`stage` (m,) of `stages`) were active, s on the readings' clock."""

    begin: Float
    end: Float
    stage: Int
    stages: int


def _running_integrals(activity: Activity, at: Float) -> Float:
    """(stages, k): how long each stage was active before the times `at` (k,) s, in s (summed over frames)."""
    out = np.zeros((activity.stages, len(at)))
    for s in range(activity.stages):
        mine = activity.stage == s
        if mine.any():
            out[s] = running_energy(activity.begin[mine], activity.end[mine], np.ones(int(mine.sum())))(at)
    return out


@dataclass(slots=True)
class Map:
    """Residual sums of squares `rest` (j, k) of `rows` differences for kernels of `lag` and `width` (j, k) s,
    neighbours in both; infinite where there is no such kernel."""

    lag: Float
    width: Float
    rest: Float
    rows: int


def boxcar_map(readings: Clean, activity: Activity, edges: Float) -> Map:
    """Every pair of edges."""
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
    rest = np.full((count, count), np.inf)
    rest[i, j] = _rest(normal, (right[i] - right[j]) / width[:, None], y)
    last, first = np.meshgrid(edges, edges)
    return Map(first, last - first, rest, n - 1)


def counter_map(readings: Clean, activity: Activity, edges: Float) -> Map:
    n, count, s = len(readings.time), len(edges), activity.stages
    at = (readings.time[:, None] - edges).ravel()
    columns = np.diff(_running_integrals(activity, at).reshape(s, n, count), axis=1)
    gap = np.diff(readings.time)
    usable = np.flatnonzero(~readings.fresh[1:])
    mean = (columns / gap[:, None])[:, usable]
    y = np.diff((np.diff(readings.value) / gap)[usable])
    rest = _rest(*_normal_equations(np.diff(mean, axis=1), y), y)
    return Map(edges[None], np.zeros((1, count)), rest[None], len(y))


def lowpass_map(readings: Clean, activity: Activity, lags: Float) -> Map:
    """These lags with each of `_TAUS`; the activity is filtered on a grid of `STEP`."""
    begin = readings.time[0] - lags[-1] - 5 * _TAUS[-1]
    grid = np.arange(begin, readings.time[-1] - lags[0] + 2 * STEP, STEP)
    mean = np.diff(_running_integrals(activity, grid), axis=1).T / STEP  # (g, stages) up to each grid[1:]
    place = (readings.time[:, None] - lags - grid[1]) / STEP
    before = np.floor(place).astype(np.int64)
    part = (place - before)[:, :, None]
    y = np.diff(readings.value)
    rest = []
    for tau in _TAUS:
        rho = np.exp(-STEP / tau)
        filtered = _decaying_sums(mean * (1.0 - rho), rho)
        columns = (1.0 - part) * filtered[before] + part * filtered[before + 1]
        rest.append(_rest(*_normal_equations(np.diff(columns.transpose(2, 0, 1), axis=1), y), y))
    lag, width = np.meshgrid(lags, _TAUS)
    return Map(lag, width, np.stack(rest), len(y))


def _decaying_sums(values: Float, rho: float) -> Float:
    """s_k = v_k + ρ s_{k−1} of each column (n, k): a triangular system of two diagonals."""
    ab = np.ones((2, len(values)))
    ab[1] = -rho
    return np.asarray(dtbtrs(ab, values, uplo="L")[0], float)


def _normal_equations(moved: Float, y: Float) -> tuple[Float, Float]:
    """(k, s, s) and (k, s) of k least squares problems of y (n,) on s columns: `moved` (s, n, k)."""
    return np.einsum("snk,tnk->kst", moved, moved, optimize=True), np.einsum("snk,n->ks", moved, y)


def _rest(normal: Float, right: Float, y: Float) -> Float:
    """Residual sums of squares of many least squares problems (k, s, s), (k, s) of y (n,); activity
    that changes by less than 1e-5 of a window from row to row counts as constant."""
    s, total = normal.shape[-1], float(y @ y)
    ridge = 1e-9 * np.trace(normal, axis1=1, axis2=2)[:, None, None] * np.eye(s) / s
    solved = np.linalg.solve(normal + ridge + 1e-10 * len(y) * np.eye(s), right[:, :, None])[:, :, 0]
    least = max(1e-12 * total, float(np.finfo(float).tiny))
    return np.maximum(total - np.einsum("ks,ks->k", solved, right), least)


def limit_of(seen: Map) -> float:
    """The sum of squares above which no point may be a peak as high as the map's highest: both lie between
    points of the grid, which makes their sums larger, as it does of the points beside the best one."""
    at = np.unravel_index(np.argmin(seen.rest), seen.rest.shape)
    beside = _around(seen.rest)[:, at[0], at[1]]
    return _BLURRED * float(np.median(beside[np.isfinite(beside)]))


def peaks_of(seen: Map, limit: float) -> list[tuple[float, float]]:
    """(lag, width) of the points that are better than those around them and below the limit, best first."""
    peak = np.isfinite(seen.rest) & (seen.rest <= np.minimum(_around(seen.rest).min(axis=0), limit))
    order = np.argsort(seen.rest[peak], kind="stable")[:_RIVALS]
    return list(zip(seen.lag[peak][order].tolist(), seen.width[peak][order].tolist(), strict=True))


def _around(grid: Float) -> Float:
    """(8, j, k): the neighbours of each point, infinite past the grid's edges."""
    padded = np.pad(grid, 1, constant_values=np.inf)
    j, k = grid.shape
    shifts = [(a, b) for a in range(3) for b in range(3) if (a, b) != (1, 1)]
    return np.stack([padded[a : a + j, b : b + k] for a, b in shifts])
