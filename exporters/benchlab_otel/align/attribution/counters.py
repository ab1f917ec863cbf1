"""From raw readings to clean ones: wraps, resets and repeats of counters and slow meters.

A counter's unit (RAPL's energy unit, a millijoule of NVML) needs no care of its own: it is part of
the noise of each reading, which the fit finds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from benchlab_otel.model import Bool, Float, Int, Readings


@dataclass(slots=True)
class Clean:
    """n readings that each say something new, ascending in time.

    `time`, `uncertainty` (n,) s from `origin_ns`; `value` (n,) W, or J of a counter that no longer
    wraps; `row` (n,) int64 the rows in the readings they came from; `fresh` (n,) bool: the counter
    started anew here, so the step from the reading before tells nothing.
    `repeats` is how many readings only repeated the one before, `absent` how many had no value.
    """

    kind: Literal["power", "energy"]
    origin_ns: int
    time: Float
    uncertainty: Float
    value: Float
    row: Int
    fresh: Bool
    repeats: int = 0
    wraps: int = 0
    resets: int = 0
    absent: int = 0


def clean(readings: Readings, origin_ns: int) -> Clean:
    """Readings in order of time, without absent values and repeats, counters unwrapped.

    Where the readings do not say at which value the counter starts again, a fall is a reset: the step
    over it is left out, never guessed.
    """
    order = np.argsort(readings.time, kind="stable")
    present = order[np.isfinite(readings.value[order])]
    out = Clean(
        kind=readings.kind,
        origin_ns=origin_ns,
        time=(readings.time[present] - origin_ns) / 1e9,
        uncertainty=readings.uncertainty[present] / 1e9,
        value=readings.value[present].astype(np.float64),
        row=present,
        fresh=np.zeros(len(present), bool),
        absent=len(order) - len(present),
    )
    moving = np.diff(out.time, prepend=-np.inf) > 0
    _keep(out, moving)
    if readings.kind == "energy":
        out.value, wrapped, reset = unwrapped(out.value, np.diff(out.time), readings.wrap_j)
        out.fresh[1:] = reset
        out.wraps, out.resets = int(wrapped.sum()), int(reset.sum())
    _drop_repeats(out)
    return out


def _keep(readings: Clean, rows: Bool) -> None:
    readings.time, readings.uncertainty = readings.time[rows], readings.uncertainty[rows]
    readings.value, readings.row = readings.value[rows], readings.row[rows]
    readings.fresh = readings.fresh[rows]


def unwrapped(value: Float, gap: Float, wrap_j: float) -> tuple[Float, Bool, Bool]:
    """A counter's values (n,) J that go on after each wrap, and which of the n - 1 steps were wraps and
    which resets; `gap` (n - 1,) s.

    A fall that a wrap can't explain, or that would need ten times the counter's usual power, is a reset.
    """
    step = np.diff(value)
    fell = step < 0
    rises = (step / gap)[~fell]
    limit = 10.0 * float(np.median(rises)) if len(rises) else np.inf
    wrapped = fell & (wrap_j > 0) & ((step + wrap_j) <= max(limit, 0.0) * gap) & (step + wrap_j >= 0)
    return value + np.append(0.0, np.cumsum(np.where(wrapped, wrap_j, 0.0))), wrapped, fell & ~wrapped


def _drop_repeats(readings: Clean) -> None:
    """Keeps the first reading of each value that a meter shows several times over.

    A meter that refreshes slower than it is polled repeats itself exactly, and changes at regular
    intervals; the new value came up at some time between the two polls around the change. Readings
    of power that repeat without such a rhythm are taken as they are: an idle machine on a coarse
    meter. A counter that stood still adds nothing, so its repeats always go.
    """
    if len(readings.value) < 3:
        return
    same = np.append(False, (np.diff(readings.value) == 0) & ~readings.fresh[1:])
    if not same.any():
        return
    slow = _refreshes_slowly(readings.time, readings.value, ~same)
    if readings.kind == "power" and not slow:
        return
    if slow:
        gap = np.append(0.0, np.diff(readings.time))
        readings.time = readings.time - gap / 2
        readings.uncertainty = readings.uncertainty + gap / 2
    readings.repeats = int(same.sum())
    _keep(readings, ~same)


def _refreshes_slowly(time: Float, value: Float, changed: Bool) -> bool:
    """Whether the value changes at regular intervals that are longer than the polls', and to another
    value each time (an idle machine between periodic frames comes back to the same one)."""
    poll = float(np.median(np.diff(time)))
    intervals = np.diff(time[changed])
    if len(intervals) < 8:
        return False
    low, high = np.quantile(intervals, [0.1, 0.9])
    regular = intervals.mean() > 1.25 * poll and high - low <= 2.5 * poll
    shown = value[np.flatnonzero(changed)]
    held = np.append(~changed[1:], False)[changed]  # seen more than once
    return bool(regular and len(np.unique(shown[held])) > 0.7 * np.count_nonzero(held))
