"""What a simulated machine really draws: a base, and what each stage adds while it is active.

A background load is a stage like any other, begun and ended by whoever simulates it.
All times are Unix ns on the shared time base, powers watts, energies joules.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass, field
from threading import Lock

import numpy as np

from benchlab_otel import wire
from benchlab_otel.model import Float, Int
from benchlab_otel.timebase import anchor


@dataclass(frozen=True)
class Load:
    """Watts by rail: always (`base`), and on top of it while a stage is active (`stages`)."""

    base: Mapping[str, float]
    stages: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for where, watts in [("base", self.base), *self.stages.items()]:
            if unknown := set(watts) - set(wire.RAILS):
                known = ", ".join(wire.RAILS)
                raise ValueError(f"load {where!r}: no rail {', '.join(sorted(unknown))}; rails: {known}")


class Activity:
    """Which stages are active when: a log that any thread may write and read.

    The same stage may be active more than once (frames that overlap); its power counts as often.
    """

    def __init__(self, stages: tuple[str, ...]) -> None:
        self.stages = stages
        self._index = {stage: i for i, stage in enumerate(stages)}
        self._lock = Lock()
        self._times: list[int] = [0]
        self._changes: list[tuple[int, int]] = [(0, 0)]  # stage, +1 or -1; the first row is a sentinel
        self._counts: list[tuple[int, ...]] = [(0,) * len(stages)]  # active from this row's time on
        self._totals: list[tuple[int, ...]] = [(0,) * len(stages)]  # stage-ns until this row's time

    def begin(self, stage: str, time_ns: int | None = None) -> None:
        """A stage begins (now, or at a time that may lie behind ones already told)."""
        self._change(stage, +1, time_ns)

    def end(self, stage: str, time_ns: int | None = None) -> None:
        """One activity of the stage ends."""
        self._change(stage, -1, time_ns)

    def _change(self, stage: str, step: int, time_ns: int | None) -> None:
        change = (self._index[stage], step)
        with self._lock:
            time = anchor().now_ns() if time_ns is None else time_ns
            row = bisect_right(self._times, time)  # nearly always the end
            self._times.insert(row, time)
            self._changes.insert(row, change)
            del self._counts[row:], self._totals[row:]
            for k in range(row, len(self._times)):
                self._append_state(k)

    def _append_state(self, k: int) -> None:
        elapsed = self._times[k] - self._times[k - 1] if k > 1 else 0
        counts, totals = self._counts[-1], self._totals[-1]
        changed, step = self._changes[k]
        self._totals.append(tuple(t + c * elapsed for t, c in zip(totals, counts, strict=True)))
        self._counts.append(tuple(c + step if i == changed else c for i, c in enumerate(counts)))

    def counts(self, time_ns: int) -> tuple[int, ...]:
        """How often each stage is active at a time."""
        with self._lock:
            return self._counts[bisect_right(self._times, time_ns) - 1]

    def active_ns(self, time_ns: int) -> tuple[int, ...]:
        """Time that each stage has been active until `time_ns`; differences are exact integrals."""
        with self._lock:
            k = bisect_right(self._times, time_ns) - 1
            elapsed = time_ns - self._times[k]
            return tuple(t + c * elapsed for t, c in zip(self._totals[k], self._counts[k], strict=True))

    def active_ns_at(self, times: Int) -> Int:
        """`active_ns` of many times (n,) at once: (n, stages)."""
        with self._lock:
            rows, counts, totals = (np.array(c, np.int64) for c in (self._times, self._counts, self._totals))
        k = np.searchsorted(rows, times, side="right") - 1
        active: Int = totals[k] + counts[k] * (times - rows[k])[:, None]
        return active


class Truth:
    """Power and energy of a load under an activity, exact."""

    def __init__(self, load: Load, activity: Activity | None = None) -> None:
        self.load = load
        self.activity = activity or Activity(tuple(load.stages))
        if self.activity.stages != tuple(load.stages):
            raise ValueError(f"activity of {self.activity.stages}, load of {tuple(load.stages)}")

    def rail_watts(self, begin_ns: int, end_ns: int) -> dict[str, float]:
        """Mean power of each rail over [begin, end], or at that instant where both are equal."""
        if end_ns <= begin_ns:
            share: list[float] = [float(c) for c in self.activity.counts(end_ns)]
        else:
            pairs = zip(self.activity.active_ns(begin_ns), self.activity.active_ns(end_ns), strict=True)
            share = [(b - a) / (end_ns - begin_ns) for a, b in pairs]
        watts = {rail: self.load.base.get(rail, 0.0) for rail in wire.RAILS}
        for part, stage in zip(share, self.load.stages.values(), strict=True):
            for rail, power in stage.items():
                watts[rail] += part * power
        return watts

    def power(self, where: str, time_ns: int) -> float:
        """Watts of a rail or domain at a time."""
        watts = self.rail_watts(time_ns, time_ns)
        return sum(watts[rail] for rail in _rails(where))

    def energy(self, where: str, begin_ns: Int | int, end_ns: Int | int) -> Float:
        """Joules of a rail or domain over windows (n,), base included."""
        begin, end = (
            np.atleast_1d(np.asarray(begin_ns, np.int64)),
            np.atleast_1d(np.asarray(end_ns, np.int64)),
        )
        stages = self.activity.active_ns_at(end) - self.activity.active_ns_at(begin)
        watts = np.array([self.stage_watts(stage, where) for stage in self.load.stages], np.float64)
        base = sum(self.load.base.get(rail, 0.0) for rail in _rails(where))
        joules: Float = ((end - begin) * base + stages @ watts) * 1e-9
        return joules

    def stage_watts(self, stage: str, where: str) -> float:
        """What one active stage adds to a rail or domain, in watts."""
        return sum(self.load.stages[stage].get(rail, 0.0) for rail in _rails(where))


def _rails(where: str) -> tuple[str, ...]:
    return wire.DOMAINS.get(where) or (where,)
