"""Shocks: the few steps of the base and the few readings that no normal distribution explains.

The smoothed step η̂ (or error ε̂) over its own standard deviation, the auxiliary residual, is standard
normal where the model holds (de Jong & Penzer, JASA 93, 1998). Where it is beyond `_LIMIT` a load was
switched, or a reading is wild: that one step or error gets the freedom of all that the meter has
shown, and everything else keeps the model that fits it.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from benchlab_otel.align.attribution.condition import Posterior, told_of
from benchlab_otel.align.attribution.design import Design
from benchlab_otel.model import Bool, Float

_LIMIT = 4.0  # standard deviations
_MOST, _FEW = 0.05, 3  # share or number of steps or readings that may be shocks; more are no exception
SHOCK_ROUNDS = 8  # setting some free shows others


def with_shocks(posterior: Posterior, strongest: bool = False) -> Design | None:
    """The design with the shocks that the posterior shows set free; None when there is no new one.

    Only the `strongest` where the base is known to be slow: then a switched load makes all readings after
    it look wild.
    """
    design = posterior.design
    step = _score(posterior, 1, posterior.steps)
    error = _score(posterior, 2, posterior.errors)
    wild, switched = _peaks(error, design.bandwidth), _peaks(step, design.bandwidth)
    if strongest:
        highest = max(error.max(initial=0.0), step.max(initial=0.0))
        wild, switched = wild & (error >= highest), switched & (step >= highest)
    free = float(np.ptp(design.rows.value)) ** 2
    freedom = float(np.mean(design.rows.hi - design.rows.lo)) ** 2 if design.rows.counter else 1.0
    step_extra = np.where(switched, free, design.step_extra)
    error_extra = np.where(wild, free * freedom, design.error_extra)
    most = max(np.count_nonzero(step_extra), np.count_nonzero(error_extra))
    if not (switched.any() or wild.any()) or most > max(_MOST * len(step), _FEW):
        return None
    return replace(design, step_extra=step_extra, error_extra=error_extra)


def _score(posterior: Posterior, kind: int, mean: Float) -> Float:
    """|v̂| over its standard deviation, 0 where the readings tell nothing of v."""
    reach = posterior.solved.reach[kind]
    told = told_of(reach, posterior)
    return np.divide(np.abs(mean), np.sqrt(np.maximum(told, 0.0)), out=np.zeros(len(mean)), where=told > 0)


def _peaks(score: Float, width: int) -> Bool:
    """Scores beyond the limit that are the largest within `width` of themselves."""
    if score.max(initial=0.0) <= _LIMIT:
        return np.zeros(len(score), bool)
    padded = np.pad(score, width)
    highest = np.lib.stride_tricks.sliding_window_view(padded, 2 * width + 1).max(axis=1)
    peaks: Bool = (score > _LIMIT) & (score >= highest)
    return peaks
