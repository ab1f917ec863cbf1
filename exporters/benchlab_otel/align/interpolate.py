"""Energy of a window from readings around it: prefix sums, so a window costs two look-ups.

Between two readings the power is not known. The value is the plain one (power readings joined by
straight lines, counters interpolated linearly); the uncertainty says how far the truth may be off,
from how much the power moved around the window. Model: the power's fast part is white noise of
spectral density S = s²·w (s: deviation of the readings from one to the next, w: time that one
reading averages over). Given the energy of a whole interval of length T, the energy of a part d of
it then has variance S·d·(T - d)/T, that of a Brownian bridge.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from benchlab_otel.model import Bool, Float, FrameEnergy, Int, Readings

Z95 = 1.959963984540054
LOOK_BACK = 16  # steps between readings from which the local deviation is estimated
GAP_FACTOR = 5.0  # an interval this many times the median is a gap in the readings


@dataclass(slots=True)
class Curve:
    """Cumulative energy of a domain at its readings, ready for look-ups.

    n readings, n-1 intervals. `time` (n,) int64 ns; `energy` (n,) J since the first reading; `power` (n,) W
    at the readings (power meters) or None (counters: constant within an interval); `density` (n,)
    J²/s, S of the intervals up to this reading; `step` (n,) W, the local deviation s; `jitter` (n,) s, the
    standard deviation of the reading's time; `gaps` (n,) how many of the intervals before are gaps;
    `typical` the median interval in s.
    """

    time: Int
    energy: Float
    power: Float | None
    density: Float
    step: Float
    jitter: Float
    gaps: Int
    typical: float


def curve(readings: Readings) -> Curve | None:
    """Prepares the look-ups; None for fewer than two readings.

    A reading that averages over `window_ns` is placed at the middle of its window. A meter whose
    window is not known is taken to average over the whole interval.
    """
    if len(readings) < 2:
        return None
    time = readings.time - readings.window_ns // 2
    span = np.diff(time) * 1e-9
    typical = float(np.median(span))
    gap = span > GAP_FACTOR * typical
    if readings.kind == "energy":
        power = None
        energy = readings.value - readings.value[0]
        level = np.diff(energy) / span
    else:
        power = readings.value
        energy = np.append(0.0, np.cumsum((power[1:] + power[:-1]) * 0.5 * span))
        level = power
    window = readings.window_ns * 1e-9 or typical
    deviation = _deviation(level)
    if power is None:
        deviation = np.append(deviation[:1], deviation)
    return Curve(
        time=time,
        energy=energy,
        power=power,
        density=deviation**2 * window,
        step=deviation,
        jitter=readings.uncertainty * (1e-9 / np.sqrt(3.0)),
        gaps=np.append(0, np.cumsum(gap)),
        typical=typical,
    )


def _deviation(level: Float) -> Float:
    """Running standard deviation (n,) from successive differences (von Neumann et al., 1941).

    Only looks back, so that the value at a reading does not change when later ones arrive; the
    first few take in what is there.
    """
    if len(level) < 2:
        return np.zeros(len(level))
    squares = np.append(0.0, np.cumsum(np.diff(level) ** 2))
    last = np.maximum(np.arange(len(level)), min(LOOK_BACK, len(level) - 1))
    first = np.maximum(last - LOOK_BACK, 0)
    return np.sqrt(np.maximum(squares[last] - squares[first], 0.0) / (2.0 * (last - first)))


def window_energy(found: Curve, begin: Int, end: Int) -> tuple[Float, Float, Int, Int]:
    """Energy (n,) J of the windows [begin, end) (n,) ns, its 95 % half width, first and last reading used.

    NaN and -1 where the readings do not cover a window or have a gap in it.
    """
    n = len(found.time)
    low = np.searchsorted(found.time, begin, side="right") - 1
    high = np.searchsorted(found.time, end, side="left")
    covered = (low >= 0) & (high < n) & (end >= begin)
    low_in, high_in = np.clip(low, 0, n - 2), np.clip(high, 1, n - 1)
    covered &= found.gaps[high_in] == found.gaps[low_in]
    energy = _at(found, end, high_in - 1) - _at(found, begin, low_in)
    variance = _bridge(found, begin, end, low_in, high_in) + _timing(found, low_in, high_in)
    half = Z95 * np.sqrt(variance)
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


def _bridge(found: Curve, begin: Int, end: Int, low: Int, high: Int) -> Float:
    """Variance (n,) J² of what is not known between the readings at both edges."""

    def part(inside: NDArray[np.floating], width: NDArray[np.floating]) -> NDArray[np.floating]:
        return inside * np.maximum(width - inside, 0.0) / width

    density = found.density[high]
    first = (found.time[low + 1] - found.time[low]) * 1e-9
    last = (found.time[high] - found.time[high - 1]) * 1e-9
    head = (found.time[low + 1] - begin) * 1e-9
    tail = (end - found.time[high - 1]) * 1e-9
    same: Bool = low + 1 >= high
    inside = (end - begin) * 1e-9
    return density * np.where(same, part(inside, first), part(head, first) + part(tail, last))


def _timing(found: Curve, low: Int, high: Int) -> Float:
    """Variance (n,) J² from not knowing when the edge readings were taken: deviation times jitter."""
    return (found.step[high] ** 2) * (found.jitter[low] ** 2 + found.jitter[high] ** 2)


def frame_energy(readings: Readings, begin: Int, end: Int) -> FrameEnergy:
    """`window_energy` of a whole set of frames, NaN where there is none."""
    found = curve(readings)
    if found is None:
        nothing = np.full(len(begin), np.nan)
        nowhere = np.full(len(begin), -1, np.int64)
        energy, half, first, last = nothing, nothing.copy(), nowhere, nowhere.copy()
    else:
        energy, half, first, last = window_energy(found, begin, end)
    return FrameEnergy(
        readings.meter, readings.domain, "interpolated", energy, half, first, last, readings.simulated
    )
