"""How well the mean and the quantiles of a run are known: block bootstrap, since frames are autocorrelated.

A run is cut into blocks much longer than its memory (twice the automatic length of Politis & White,
Econometric Reviews 23, 2004, as corrected by Patton, Politis & White 2009), and whole blocks are drawn
with replacement (Carlstein, Annals of Statistics 14, 1986). The spread of a figure over the draws is
its standard error; with few blocks Student's distribution takes care of what the spread itself is off.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from benchlab_otel.model import Float

DRAWS = 1000
MOST_BLOCKS = 200
LEAST_BLOCKS = 10
LEAST_BEYOND = 10  # values beyond a quantile, of which it can be told
_BINS = 64
_SEED = 20040101  # the same figures each time


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure with its standard error and degrees of freedom; NaN with a `reason` where it has none."""

    value: float
    error: float
    freedom: float
    reason: str = ""


def mean(values: Float) -> Estimate:
    """The mean of values (n,) in order of time."""
    if not len(values):
        return nothing("no value")
    blocks = _blocks(values)
    if isinstance(blocks, str):
        return Estimate(float(values.mean()), np.nan, 0, blocks)
    weights = _weights(len(blocks))
    size = np.array([len(block) for block in blocks])
    draws = weights @ [block.sum() for block in blocks] / (weights @ size)
    return _estimate(float(values.mean()), draws, len(blocks))


def quantiles(values: Float, levels: Sequence[float]) -> list[Estimate]:
    """Quantiles of values (n,) in order of time, at levels between 0 and 1."""
    return [_quantile(values, level) for level in levels]


def nothing(reason: str) -> Estimate:
    """No figure."""
    return Estimate(np.nan, np.nan, 0, reason)


def block_length(values: Float) -> float:
    """The length of blocks that is best for the mean (Politis & White 2004, eq. 9 and sec. 3.2)."""
    n = len(values)
    centred = values - values.mean()
    if n < 8 or not centred.any():
        return 1.0
    reach = max(5, round(np.sqrt(np.log10(n))))
    most = min(int(np.ceil(np.sqrt(n))) + reach, n - 1)
    spectrum = np.abs(np.fft.rfft(centred, 2 << (n - 1).bit_length())) ** 2
    covariance = np.fft.irfft(spectrum)[: most + 1] / n
    large = np.abs(covariance / covariance[0]) >= 2 * np.sqrt(np.log10(n) / n)
    after = np.flatnonzero(large[1:])
    gaps = np.diff(np.concatenate([[-1], after, [most]]))  # runs of small correlations between large ones
    memory = int(np.concatenate([[-1], after])[np.argmax(gaps > reach)]) + 1 if (gaps > reach).any() else most
    bandwidth = min(2 * max(memory, 1), most)
    lag = np.arange(1, bandwidth + 1)
    window = np.minimum(1.0, 2 * (1 - lag / bandwidth))  # flat top
    slope = 2 * float(np.sum(window * lag * covariance[1 : bandwidth + 1]))
    level = float(covariance[0]) + 2 * float(np.sum(window * covariance[1 : bandwidth + 1]))
    if level <= 0:
        return 1.0
    if level < covariance[0]:  # values alternate, as intervals of a paced source do: short blocks are safe
        most = round(np.sqrt(n))
    best = (2 * slope**2 / (4 / 3 * level**2)) ** (1 / 3) * n ** (1 / 3)
    return float(np.clip(best, 1.0, max(1.0, min(n / 3, most))))


def _blocks(values: Float) -> list[Float] | str:
    """The values in blocks of about equal length, or why they can't be."""
    length = max(2 * block_length(values), len(values) / MOST_BLOCKS, 1)
    count = int(len(values) / length)
    if count < LEAST_BLOCKS:
        return f"{len(values)} values in too few stretches that are independent: record for longer"
    return np.array_split(values, count)


@lru_cache(maxsize=8)
def _weights(blocks: int) -> Float:
    """(draws, blocks): how often each block is in each draw."""
    drawn = np.random.default_rng(_SEED).integers(0, blocks, (DRAWS, blocks))
    cell = (drawn + blocks * np.arange(DRAWS)[:, None]).ravel()
    return np.bincount(cell, minlength=DRAWS * blocks).reshape(DRAWS, blocks).astype(np.float64)


def _estimate(value: float, draws: Float, blocks: int) -> Estimate:
    error = float(draws.std()) * float(np.sqrt(blocks / (blocks - 1)))
    return Estimate(value, error, blocks - 1)


def _quantile(values: Float, level: float) -> Estimate:
    """A quantile; each draw's is read from counts of the blocks' values between fixed bounds."""
    if not len(values):
        return nothing("no value")
    value = float(np.quantile(values, level))
    if len(values) * min(level, 1 - level) < LEAST_BEYOND:
        return Estimate(value, np.nan, 0, f"{len(values)} values are too few for this quantile")
    beyond = (values > value).astype(np.float64)
    blocks = _blocks(beyond)
    if isinstance(blocks, str):
        return Estimate(value, np.nan, 0, blocks)
    share = [float(block.mean()) for block in blocks]
    reach = 8 * float(np.std(share)) / np.sqrt(len(blocks)) + 2 / len(values)
    levels = np.linspace(max(0.0, level - reach), min(1.0, level + reach), _BINS + 1)
    bounds = np.quantile(values, levels)
    edges = np.cumsum([len(block) for block in blocks])[:-1]
    counts = [np.searchsorted(np.sort(part), bounds, "right") for part in np.split(values, edges)]
    weights = _weights(len(blocks))
    size = weights @ [len(block) for block in blocks]
    cumulative = weights @ np.array(counts, np.float64) / size[:, None]
    return _estimate(value, _crossings(cumulative, bounds, level), len(blocks))


def _crossings(cumulative: Float, bounds: Float, level: float) -> Float:
    """Where each row of cumulative shares at the bounds reaches the level, along straight lines."""
    last = len(bounds) - 1
    right = np.clip((cumulative < level).sum(axis=1), 1, last)
    row = np.arange(len(cumulative))
    low, high = cumulative[row, right - 1], cumulative[row, right]
    part = np.where(high > low, (level - low) / np.where(high > low, high - low, 1), 0.5)
    crossed: Float = bounds[right - 1] + np.clip(part, 0, 1) * (bounds[right] - bounds[right - 1])
    return crossed
