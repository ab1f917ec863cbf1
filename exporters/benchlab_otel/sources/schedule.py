"""When to read: absolute deadlines, so that delays never add up, at a random phase in each period.

A sampler locked to the frame rate would see the same point of every frame; one reading at a
uniformly random instant of each period (stratified sampling) sees all of them. Schedules of one seed
have the same phases, so that samplers of one rate wake up together, which costs less than to wake the
processor for each.
"""

from __future__ import annotations

import random


class Schedule:
    """Deadlines on CLOCK_MONOTONIC in seconds, one a period; missed periods are skipped."""

    def __init__(self, period: float, begin: float, seed: int) -> None:
        self.period = period
        self._begin = begin
        self._phase = random.Random(seed).random
        self.number = -1  # of the period of the last deadline

    def next(self, now: float) -> float:
        """The next deadline: in the period after the last one, or in that of `now` where it is later."""
        begin, period, number, phase = self._begin, self.period, self.number + 1, self._phase()
        while begin + (number + 1) * period <= now:  # skipped periods have their phases too
            number += 1
            phase = self._phase()
        self.number = number
        return begin + (number + phase) * period


def multiple_after(moment: float, period: float) -> float:
    """When to tell next: all devices at once, as what one has just done is still in the processor's cache."""
    return (moment // period + 1) * period
