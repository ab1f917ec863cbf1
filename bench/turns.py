"""Several ways to do the same, by turns, so that all of them meet the same moods of the machine."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping


def rates(
    ways: Mapping[str, Callable[[], object]],
    items: int,
    repeats: int,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Items a second of each way in each of `repeats` turns, after one to warm up."""
    found: dict[str, list[float]] = {name: [] for name in ways}
    for repeat in range(repeats + 1):
        for name, way in ways.items():
            begin = clock()
            way()
            if repeat:
                found[name].append(items / (clock() - begin))
    return found


def show(found: Mapping[str, list[float]], plain: str) -> None:
    """Prints min, median and max of each way, and how often as fast it is as the way `plain`."""
    reference = statistics.median(found[plain])
    width = max(map(len, found))
    for name, values in found.items():
        middle = statistics.median(values)
        print(
            f"  {name:{width}} {min(values) / 1e3:8,.0f} {middle / 1e3:8,.0f} {max(values) / 1e3:8,.0f}"
            f" k spans/s (min, median, max of {len(values)}), {middle / reference:.2f} times"
        )
