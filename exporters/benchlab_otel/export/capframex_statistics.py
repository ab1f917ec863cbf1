"""The figures that CapFrameX 1.8.4 shows for a capture, by its own formulas.

`frame_times` is always (n,) float64 ms, dropped frames included, n ≥ 1 and all above 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal

import numpy as np

from benchlab_otel.align.marks import frame_moments
from benchlab_otel.model import Float, Run

ADAPTIVE_WINDOW = 500.0  # sum of fps values that the moving average of the deviation reaches back over
STUTTER_FACTOR = 2.5
SPIKE_FACTOR = 3.0


@dataclass(frozen=True, slots=True)
class Statistics:
    """Frames per second, but for `stutter_percent` (of the time)."""

    p99: float
    p95: float
    average: float
    median: float
    p5: float
    p1: float
    p02: float
    p01: float
    low1_average: float
    low01_average: float
    low1_integral: float
    low01_integral: float
    adaptive_std: float
    stutter_percent: float


def frame_times_of(runs: Sequence[Run]) -> Float:
    """(n,) ms between frames (`marks.frame_moments`), of all runs; those of frames at one moment have no
    rate and are left out."""
    times = np.concatenate([np.diff(np.sort(frame_moments(run.frames))) / 1e6 for run in runs])
    return times[times > 0]


def shown(runs: Sequence[Run]) -> str:
    """The figures that CapFrameX will show of the runs, in a line to recognise the capture by."""
    times = frame_times_of(runs)
    if not len(times):
        return f"{len(runs)} run(s) whose frames all end together"
    low = rounded(low_average(times, 0.01))
    return (
        f"{len(times):,} frame times; CapFrameX shows {rounded(average_fps(times))} fps on average,"
        f" P1 {rounded(percentile_fps(times, 0.01))}, 1 % low {low}"
    )


def rounded(value: float) -> str:
    """One digit, half away from zero, as CapFrameX rounds."""
    return str(Decimal(repr(value)).quantize(Decimal("0.1"), ROUND_HALF_UP))


def statistics(frame_times: Float) -> Statistics:
    """All figures of one capture, unrounded (CapFrameX shows one digit)."""
    return Statistics(
        p99=percentile_fps(frame_times, 0.99),
        p95=percentile_fps(frame_times, 0.95),
        average=average_fps(frame_times),
        median=percentile_fps(frame_times, 0.5),
        p5=percentile_fps(frame_times, 0.05),
        p1=percentile_fps(frame_times, 0.01),
        p02=percentile_fps(frame_times, 0.002),
        p01=percentile_fps(frame_times, 0.001),
        low1_average=low_average(frame_times, 0.01),
        low01_average=low_average(frame_times, 0.001),
        low1_integral=low_integral(frame_times, 0.01),
        low01_integral=low_integral(frame_times, 0.001),
        adaptive_std=adaptive_std(frame_times),
        stutter_percent=stutter_percent(frame_times),
    )


def average_fps(frame_times: Float) -> float:
    """Frames over time."""
    return float(len(frame_times) * 1e3 / frame_times.sum())


def percentile_fps(frame_times: Float, quantile: float) -> float:
    """Quantile R8 (median-unbiased; Hyndman and Fan 1996) of the frames' rates."""
    return float(np.quantile(1e3 / frame_times, quantile, method="median_unbiased"))


def low_average(frame_times: Float, share: float) -> float:
    """Rate over the slowest `share` of the frames."""
    bound = np.quantile(frame_times, 1 - share, method="median_unbiased")
    return float(1e3 / frame_times[frame_times >= bound].mean())


def low_integral(frame_times: Float, share: float) -> float:
    """Rate of the frame at which the slowest frames have taken `share` of the time."""
    slowest_first = np.sort(frame_times)[::-1]
    reached = np.searchsorted(np.cumsum(slowest_first), share * frame_times.sum())
    return float(1e3 / slowest_first[reached])


def adaptive_std(frame_times: Float) -> float:
    """Deviation of the rates from their trailing moving average, which spans a sum of 500."""
    fps = 1e3 / frame_times
    if len(fps) < 2:
        return 0.0
    total = np.concatenate(([0.0], np.cumsum(fps)))
    first = np.maximum(np.searchsorted(total, total[1:] - ADAPTIVE_WINDOW, side="right") - 1, 0)
    row = np.arange(len(fps))
    average = (total[row + 1] - total[first]) / (row + 1 - first)
    return float(np.sqrt(np.sum((fps - average) ** 2) / (len(fps) - 1)))


def stutter_percent(frame_times: Float) -> float:
    """Share of the time in frames 2.5 times as long as the moving average of those before.

    The average runs over round(10·√mean) frames in which a spike (over 3 times its predecessor)
    counts as its predecessor.
    """
    previous = np.concatenate((frame_times[:1], frame_times[:-1]))
    smooth = np.where(frame_times > SPIKE_FACTOR * previous, previous, frame_times)
    width = max(1, round(10 * float(np.sqrt(frame_times.mean()))))
    total = np.concatenate(([0.0], np.cumsum(smooth)))
    row = np.arange(len(smooth))
    first = np.maximum(row + 1 - width, 0)
    average = (total[row + 1] - total[first]) / (row + 1 - first)
    stuttering = frame_times > STUTTER_FACTOR * average
    return float(100 * frame_times[stuttering].sum() / frame_times.sum())


def fps_per_10_watts(frame_times: Float, watts: float) -> float:
    """Rate that 10 W buy at a mean power of `watts`."""
    return 10 * average_fps(frame_times) / watts
