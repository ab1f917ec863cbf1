"""Speed and memory of attribution, beside what a user has today.

    python bench/attribution.py [--quick]

Each size runs in a process of its own, so that the peak memory is its own; the time is from arrays
in memory to all energies with their uncertainties. Beside it: the trapezoid over the samples of one
window per call, which is how Zeus's PowerMonitor answers `get_energy` (and gives no stages, no
uncertainty). Streaming: CPU time of `advance` over the time that the data span.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterator

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # as the commands do

import numpy as np

from benchlab_otel.align.attribution.attribute import attribute
from benchlab_otel.align.attribution.stream import State, advance, frame_rows, reading_rows
from benchlab_otel.cli.memory import keep_freed_memory
from benchlab_otel.model import Frames, Readings
from benchlab_otel.simulate.power import Load, Meter, Stage, measure, seconds, simulate

SIZES = [(600, 20), (3600, 20), (14400, 20), (600, 1000), (3600, 1000)]
GOALS = {(3600, 20): 1.0, (3600, 1000): 15.0}
STREAMS = [(60.0, 20.0, 120.0, 0.01), (1000.0, 1000.0, 40.0, 0.25)]


def made(duration: float, rate: float, fps: float = 60.0) -> tuple[Frames, Readings]:
    rng = np.random.default_rng(0)
    shrink = min(1.0, 60.0 / fps)
    stages = tuple(
        Stage(n, w, x * shrink, 0.35, 0.1)
        for n, w, x in (("decode", 60, 0.002), ("infer", 220, 0.006), ("encode", 110, 0.003))
    )
    truth = simulate(Load(stages, fps=fps, duration_s=duration), rng)
    return truth.frames, measure(truth, Meter(rate_hz=rate, noise=0.2), rng)


def offline(duration: float, rate: float) -> dict[str, float]:
    """Seconds and MiB of one run, and microseconds of a trapezoid a window."""
    keep_freed_memory()  # as `report`, `convert` and `align` do
    frames, readings = made(duration, rate)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    start = time.perf_counter()
    attribute([frames], readings)
    took = time.perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {
        "seconds": took,
        "peak": after,
        "input": before,
        "frames": len(frames),
        "trapezoid_us": 1e6 * trapezoid(frames, readings),
    }


def trapezoid(frames: Frames, readings: Readings, windows: int = 2000) -> float:
    """Seconds that one window's energy takes by selecting its samples and integrating them."""
    at, begin, end = seconds(readings.time), seconds(frames.begin), seconds(frames.end)
    chosen = np.random.default_rng(0).integers(0, len(frames), windows)
    start = time.perf_counter()
    for k in chosen:
        first, last = np.searchsorted(at, begin[k]), np.searchsorted(at, end[k], "right")
        np.trapezoid(readings.value[max(first - 1, 0) : last + 1], at[max(first - 1, 0) : last + 1])
    return (time.perf_counter() - start) / windows


def streaming(fps: float, rate: float, duration: float, step_s: float = 0.25) -> float:
    """Share of one core that the stream takes, advanced as often as `conditioner` does."""
    state, used = State(), 0.0
    for new, samples, until in arriving(*made(duration, rate, fps), step_s):
        start = time.process_time()
        state, _ = advance(state, [new], samples, until)
        used += time.process_time() - start
    return used / duration


def arriving(frames: Frames, readings: Readings, step_s: float) -> Iterator[tuple[Frames, Readings, int]]:
    """Frames and readings as they come, some at a time, and until when (Unix ns)."""
    order = np.argsort(frames.end, kind="stable")
    end, at = frames.end[order], readings.time
    for begin in range(int(at[0]), int(at[-1]), round(step_s * 1e9)):
        until = begin + round(step_s * 1e9)
        mine = np.zeros(len(frames), bool)
        mine[order[np.searchsorted(end, begin) : np.searchsorted(end, until)]] = True
        rows = slice(int(np.searchsorted(at, begin)), int(np.searchsorted(at, until)))
        yield frame_rows(frames, mine), reading_rows(readings, rows), until


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="the small sizes only")
    parser.add_argument("--one", nargs=2, type=float, metavar=("SECONDS", "HZ"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        print(json.dumps(offline(*given.one)))
        return
    print(f"{'run':>7} {'meter':>8} {'frames':>8} {'attributed':>11} {'goal':>6} {'a frame':>9}"
          f" {'added memory':>13} {'trapezoid a window':>19}")  # fmt: skip
    for duration, rate in SIZES[:1] + SIZES[3:4] if given.quick else SIZES:
        told = subprocess.run(
            [sys.executable, __file__, "--one", str(duration), str(rate)], check=True, capture_output=True
        )
        r = json.loads(told.stdout)
        goal = GOALS.get((duration, rate))
        print(
            f"{duration / 60:4.0f} min {rate:5.0f} Hz {r['frames']:8.0f} {r['seconds']:9.2f} s"
            f" {'' if goal is None else f'≤{goal:g} s':>6} {1e6 * r['seconds'] / r['frames']:6.2f} µs"
            f" {r['peak'] - r['input']:9.0f} MiB {r['trapezoid_us']:16.1f} µs",
            flush=True,
        )
    print()
    for fps, rate, duration, goal in STREAMS[:1] if given.quick else STREAMS:
        share = streaming(fps, rate, duration)
        said = f"{100 * share:5.2f} % of a core (goal ≤{100 * goal:g} %)"
        print(f"streaming {fps:5.0f} fps, {rate:5.0f} Hz: {said}", flush=True)


if __name__ == "__main__":
    main()
