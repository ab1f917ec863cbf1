"""Energy of a frame's window: ours beside Zeus's PowerMonitor and NumPy's trapezoid, in one run.

    python bench/windows.py [--minutes M]

All three get the same readings of a simulated meter (20 Hz, of 60 fps × 3 stages ± 10 %) and are asked
for the energy of the same frames; error is the mean absolute error over the mean. Zeus answers by its
own `get_energy`, whose samples are set to these readings, since no GPU is needed for that (`pip install
zeus`, as `make bench` does; without it that row is missing, and says so). It gives 0 J where fewer than
two samples lie in the window, as in most frames. Goal: an interpolated window in 250 ns or less.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np

from benchlab_otel.align.attribution.attribute import attribute
from benchlab_otel.align.interpolate import curve, window_energy
from benchlab_otel.model import Float, Frames, Int, Readings
from benchlab_otel.simulate.power import Load, Meter, Stage, frame_truth, measure, seconds, simulate

ROUNDS = 5
ASKED = 200  # windows that the slow ones are asked for
WATTS = (("decode", 60, 0.002), ("infer", 220, 0.006), ("encode", 110, 0.003))


def interpolated(frames: Frames, readings: Readings, rows: Int) -> Float:
    """All windows at once, from readings at hand: the curve is made anew each time."""
    found = curve(readings)
    assert found is not None
    return window_energy(found, frames.begin, frames.end)[0][rows]


def conditioned(frames: Frames, readings: Readings, rows: Int) -> Float:
    return attribute([frames], readings).pipelines[0].energy[rows]


def trapezoid(frames: Frames, readings: Readings, rows: Int) -> Float:
    """What one would write: the samples around the window, cut at its edges."""
    at, begin, end = seconds(readings.time), seconds(frames.begin), seconds(frames.end)
    out = np.empty(len(rows))
    for i, k in enumerate(rows.tolist()):
        inside = (at > begin[k]) & (at < end[k])
        times = np.concatenate([[begin[k]], at[inside], [end[k]]])
        out[i] = np.trapezoid(np.interp(times, at, readings.value), times)
    return out


def zeus() -> Callable[[Frames, Readings, Int], Float] | None:
    """Zeus's `PowerMonitor.get_energy`, None where it is not installed."""
    try:
        from zeus.monitor.power import PowerDomain, PowerMonitor, PowerSample
    except ImportError:
        return None
    monitor = object.__new__(PowerMonitor)  # its constructor wants a GPU; `get_energy` only samples
    domain = PowerDomain.DEVICE_INSTANT
    monitor.gpu_indices, monitor.measurement_domains, monitor.data_queues = [0], [domain], {}

    def energies(frames: Frames, readings: Readings, rows: Int) -> Float:
        at, begin, end = seconds(readings.time), seconds(frames.begin), seconds(frames.end)
        mw = (readings.value * 1e3).tolist()
        samples = [PowerSample(t, 0, p) for t, p in zip(at.tolist(), mw, strict=True)]
        monitor.samples = {domain: {0: samples}}
        return np.array([monitor.get_energy(begin[k], end[k])[0] for k in rows.tolist()])

    return energies


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=10.0)
    given = parser.parse_args()
    rng = np.random.default_rng(0)
    stages = tuple(Stage(n, w, x, 0.35, 0.1) for n, w, x in WATTS)
    truth = simulate(Load(stages, duration_s=60 * given.minutes), rng)
    readings = measure(truth, Meter(noise=0.2), rng)
    frames = truth.frames
    everything = np.arange(len(frames))
    few = rng.choice(everything[60:-60], ASKED, replace=False)
    true = frame_truth(truth, 0.0, 60 * given.minutes).energy
    asked = {
        "interpolated (ours)": (interpolated, everything),
        "conditioned (ours)": (conditioned, everything),
        "NumPy trapezoid": (trapezoid, few),
    }
    if peer := zeus():
        asked["Zeus get_energy"] = (peer, few)
    else:
        print("Zeus is not installed: pip install zeus")
    took: dict[str, list[float]] = {name: [] for name in asked}
    error = {}
    for _ in range(ROUNDS):
        for name, (energies, rows) in asked.items():
            start = time.perf_counter()
            found = energies(frames, readings, rows)
            took[name].append((time.perf_counter() - start) / len(rows))
            known = np.isfinite(found)
            error[name] = float(np.abs(found - true[rows])[known].mean() / true[rows][known].mean())
    fastest = np.median(took["interpolated (ours)"])
    print(f"{len(frames):,} frames, {len(readings):,} readings, {ROUNDS} rounds in turn")
    print(f"{'':22} {'a window':>12} {'min – max':>25} {'ratio':>9} {'error':>8}")
    for name, times in took.items():
        middle, low, high = np.median(times), min(times), max(times)
        print(
            f"{name:22} {1e9 * middle:9,.0f} ns {1e9 * low:10,.0f} – {1e9 * high:9,.0f} ns"
            f" {middle / fastest:8,.1f}× {100 * error[name]:6.1f} %"
        )


if __name__ == "__main__":
    main()
