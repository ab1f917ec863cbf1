"""When to read: absolute deadlines, so that delays never add up, at a random phase in each period.

A sampler locked to the frame rate would see the same point of every frame; one reading at a
uniformly random instant of each period (stratified sampling) sees all of them.
"""

from __future__ import annotations

import random


class Schedule:
    """Deadlines on CLOCK_MONOTONIC in seconds, one a period; missed periods are skipped."""

    def __init__(self, period: float, begin: float, randomness: random.Random | None = None) -> None:
        self.period = period
        self._begin = begin
        self._random = randomness or random.Random()
        self._number = -1

    def next(self, now: float) -> float:
        """The next deadline: in the period after the last one, or in that of `now` where it is later."""
        self._number = max(self._number + 1, int((now - self._begin) // self.period))
        return self._begin + (self._number + self._random.random()) * self.period
