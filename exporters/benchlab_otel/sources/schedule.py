"""When to read: absolute deadlines, so that delays never add up, at a random phase in each period.

A sampler locked to the frame rate would see the same point of every frame; one reading at a
uniformly random instant of each period (stratified sampling) sees all of them. The phase follows from
the seed and the period's number, so samplers of one seed and rate wake up together, which costs less
than half of waking the processor for each.
"""

from __future__ import annotations

_MASK = (1 << 64) - 1


class Schedule:
    """Deadlines on CLOCK_MONOTONIC in seconds, one a period; missed periods are skipped."""

    def __init__(self, period: float, begin: float, seed: int) -> None:
        self.period = period
        self._begin = begin
        self._seed = seed
        self._number = -1

    def next(self, now: float) -> float:
        """The next deadline: in the period after the last one, or in that of `now` where it is later."""
        self._number = max(self._number + 1, int((now - self._begin) // self.period))
        return self._begin + (self._number + _phase(self._seed, self._number)) * self.period


def _phase(seed: int, number: int) -> float:
    """Uniform in [0, 1): the number's output of SplitMix64 (Steele, Lea, Flood 2014)."""
    z = (seed + (number + 1) * 0x9E3779B97F4A7C15) & _MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
    return ((z ^ (z >> 31)) >> 11) * 2.0**-53
