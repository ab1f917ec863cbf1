"""Energy of a window from readings around it: prefix sums, so a window costs two look-ups.

Between two readings the power is not known. The value is the plain one (power readings joined by
straight lines, counters interpolated linearly); the uncertainty says how far the truth may be off:

- What the readings show: the power's fast part as white noise of spectral density S = s²·w (s:
  deviation of the readings from one to the next, w: time that one reading averages over). Given the
  energy of an interval of length T, that of a part d of it has variance S·d·(T - d)/T, as a Brownian
  bridge has.
- What they can't show: below its own rate a meter says only that power is not negative. If all the
  energy was used while frames were in flight, a share f of the time, the power then was m/f (m: mean
  power); it may also have been 0. So the part d of an edge interval may be off by up to
  m·min(d, T - d)·max(1, 1/f - 1); 95 % of that is taken, and the two edges are added up, because the
  pipeline's own work makes both err the same way. A power reading may stand for the time around it or
  for the time before it, so for power meters the worse of both phases counts.
- When the readings were taken: half the round trip, uniform, times s.

So a frame much shorter than the meter's period has an interval of ±100 % and more: a single window
can't be told from its neighbours by interpolation. Conditioning on the stages can.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from benchlab_otel.align.attribution.counters import unwrapped
from benchlab_otel.model import Bool, Float, FrameEnergy, Int, Readings

Z95 = 1.959963984540054
LOOK_BACK = 16  # steps between readings from which the local deviation is estimated
GAP_FACTOR = 5.0  # an interval this many times the usual one is a gap in the readings


@dataclass(slots=True)
class Curve:
    """Cumulative energy of a domain at its readings, ready for look-ups.

    n readings, n-1 intervals. `time` (n,) int64 ns; `energy` (n,) J since the first reading; `power` (n,) W
    at the readings (power meters) or None (counters: constant within an interval); `density` (n,)
    J²/s, S of the intervals up to this reading; `step` (n,) W, the local deviation s; `level` (n,) W,
    the local mean m; `jitter` (n,) s, the standard deviation of the reading's time; `gaps` (n,) how
    many of the intervals before are gaps.
    """

    time: Int
    energy: Float
    power: Float | None
    density: Float
    step: Float
    level: Float
    jitter: Float
    gaps: Int


def curve(readings: Readings) -> Curve | None:
    """Prepares the look-ups; None for fewer than two readings.

    A reading that averages over `window_ns` is placed at the middle of its window. A meter whose
    window is not known is taken to average over the whole interval.
    """
    if len(readings) < 2:
        return None
    time = readings.time - (readings.window_ns or 0) // 2
    span = np.diff(time) * 1e-9
    typical = _running_median(span)
    gap = span > GAP_FACTOR * typical
    if readings.kind == "energy":
        power = None
        energy, _, reset = unwrapped(readings.value - readings.value[0], span, readings.wrap_j)
        gap |= reset  # the counter started anew
        level = _without(np.diff(energy) / span, reset)
    else:
        power = readings.value
        energy = np.append(0.0, np.cumsum((power[1:] + power[:-1]) * 0.5 * span))
        level = power
    window = (readings.window_ns or 0) * 1e-9 or np.append(typical[:1], typical)
    deviation, mean = _deviation(level), _running_mean(level)
    if power is None:
        deviation, mean = np.append(deviation[:1], deviation), np.append(mean[:1], mean)
    return Curve(
        time=time,
        energy=energy,
        power=power,
        density=deviation**2 * window,
        step=deviation,
        level=mean,
        jitter=readings.uncertainty * (1e-9 / np.sqrt(3.0)),
        gaps=np.append(0, np.cumsum(gap)),
    )


def _without(level: Float, reset: Bool) -> Float:
    """The levels (n,) with that of an interval in which the counter started anew taken from the last one
    before it that is one: a fall by all that was counted is no deviation of the power."""
    last = np.maximum.accumulate(np.where(reset, 0, np.arange(len(level))))
    return np.where(reset[last], 0.0, level[last])


def _deviation(level: Float) -> Float:
    """Running standard deviation (n,) from successive differences (von Neumann et al., 1941).

    Only looks back, so that the value at a reading does not change when later ones arrive; the
    first few take in what is there.
    """
    if len(level) < 2:
        return np.zeros(len(level))
    return np.sqrt(_running_mean(np.diff(level, prepend=level[0]) ** 2, skip=1) / 2.0)


def _running_median(values: Float) -> Float:
    """Median (n,) of the last LOOK_BACK values; the first few rows take in what is there."""
    width = min(LOOK_BACK, len(values))
    medians: Float = np.median(sliding_window_view(values, width), axis=1)
    return np.append(np.full(width - 1, medians[0]), medians)


def _running_mean(values: Float, skip: int = 0) -> Float:
    """Mean (n,) of the last LOOK_BACK values; the first few rows take in what is there.

    `skip` leading values are no data.
    """
    sums = np.append(0.0, np.cumsum(values))
    last = np.maximum(np.arange(1, len(values) + 1), min(LOOK_BACK + skip, len(values)))
    first = np.maximum(last - LOOK_BACK, skip)
    return np.maximum(sums[last] - sums[first], 0.0) / (last - first)


def window_energy(
    found: Curve, begin: Int, end: Int, share: Float | float = 1.0
) -> tuple[Float, Float, Int, Int]:
    """Energy (n,) J of the windows [begin, end) (n,) ns, its 95 % half width, first and last reading used.

    `share` (n,) is the part of the time around that such windows cover, 0 to 1. NaN and -1 where the
    readings do not cover a window or have a gap in it.
    """
    n = len(found.time)
    low = np.searchsorted(found.time, begin, side="right") - 1
    high = np.searchsorted(found.time, end, side="left")
    covered = (low >= 0) & (high < n) & (end >= begin)
    low_in, high_in = np.clip(low, 0, n - 2), np.clip(high, 1, n - 1)
    covered &= found.gaps[high_in] == found.gaps[low_in]
    energy = _at(found, end, high_in - 1) - _at(found, begin, low_in)
    edges = _edges(found, begin, end, low_in, high_in)
    variance = found.density[high_in] * edges.bridge + _timing(found, low_in, high_in)
    most = np.maximum(1.0, 1.0 / np.maximum(share, 1e-6) - 1.0)
    half = np.hypot(Z95 * np.sqrt(variance), 0.95 * np.abs(found.level[high_in]) * edges.unseen * most)
    return (
        np.where(covered, energy, np.nan),
        np.where(covered, half, np.nan),
        np.where(covered, low_in, -1),
        np.where(covered, high_in, -1),
    )


def _at(found: Curve, time: Int, interval: Int) -> Float:
    """Cumulative energy at `time`, which lies in the given interval."""
    inside = (time - found.time[interval]) * 1e-9
    width = (found.time[interval + 1] - found.time[interval]) * 1e-9
    if found.power is None:
        rise = found.energy[interval + 1] - found.energy[interval]
        return found.energy[interval] + rise * inside / width
    begin, rise = found.power[interval], found.power[interval + 1] - found.power[interval]
    return found.energy[interval] + inside * (begin + rise * inside / (2.0 * width))


@dataclass(slots=True)
class _Edges:
    """Of the edge intervals of windows (n,): `bridge` s, the sum of d·(T - d)/T, and `unseen` s, that
    of min(d, T - d)."""

    bridge: Float
    unseen: Float


def _edges(found: Curve, begin: Int, end: Int, low: Int, high: Int) -> _Edges:
    first = (found.time[low + 1] - found.time[low]) / 1e9
    last = (found.time[high] - found.time[high - 1]) / 1e9
    head = (found.time[low + 1] - begin) / 1e9
    tail = (end - found.time[high - 1]) / 1e9
    inside = (end - begin) / 1e9
    same: Bool = low + 1 >= high

    def both(part: Callable[[Float, Float], Float]) -> Float:
        return np.where(same, part(inside, first), part(head, first) + part(tail, last))

    def unseen(part: Float, width: Float) -> Float:
        nearest = np.minimum(part, np.maximum(width - part, 0.0))
        return nearest if found.power is None else np.maximum(nearest, width / 2 - nearest)

    return _Edges(
        bridge=both(lambda d, width: d * np.maximum(width - d, 0.0) / width),
        unseen=np.minimum(both(unseen), inside),
    )


def _timing(found: Curve, low: Int, high: Int) -> Float:
    """Variance (n,) J² from not knowing when the edge readings were taken: deviation times jitter."""
    return (found.step[high] ** 2) * (found.jitter[low] ** 2 + found.jitter[high] ** 2)


@dataclass(slots=True)
class InFlight:
    """The last k frames of a pipeline: their ends (k,) ns, and what each added to the time in flight."""

    end: Int
    added: Int


RECENT_FRAMES = 64


def in_flight_share(begin: Int, end: Int, before: InFlight | None) -> tuple[Float, InFlight]:
    """The share (n,) of the last RECENT_FRAMES frames' time in which any of them was in flight.

    Frames in order of their end. It looks back only, over `before` too; the first frames of all look
    ahead instead. Returns what to hand in with the next frames.
    """
    covered_until = np.maximum.accumulate(end)
    earlier = before.end[-1] if before is not None and len(before.end) else begin[0]
    covered_before = np.maximum(np.append(earlier, covered_until[:-1]), earlier)
    added = np.maximum(end - np.maximum(begin, covered_before), 0)
    if before is None:
        ends, adds = np.append(begin[0], end), np.append(0, added)
    else:
        ends, adds = np.append(before.end, end), np.append(before.added, added)
    sums = np.cumsum(adds)
    last = np.maximum(np.arange(len(ends) - len(end), len(ends)), min(RECENT_FRAMES, len(ends) - 1))
    first = np.maximum(last - RECENT_FRAMES, 0)
    lasted = ends[last] - ends[first]
    share = np.where(lasted > 0, (sums[last] - sums[first]) / np.maximum(lasted, 1), 1.0)
    return np.clip(share, 0.0, 1.0), InFlight(ends[-RECENT_FRAMES - 1 :], adds[-RECENT_FRAMES - 1 :])


def frame_energy(readings: Readings, begin: Int, end: Int, share: Float) -> FrameEnergy:
    """`window_energy` of a whole set of frames, NaN where there is none."""
    found = curve(readings)
    if found is None:
        nothing = np.full(len(begin), np.nan)
        nowhere = np.full(len(begin), -1, np.int64)
        energy, half, first, last = nothing, nothing.copy(), nowhere, nowhere.copy()
    else:
        energy, half, first, last = window_energy(found, begin, end, share)
    return FrameEnergy(
        readings.meter, readings.domain, "interpolated", energy, half, first, last, readings.simulated
    )
