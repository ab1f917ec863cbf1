"""Deadlines: one at random in each period, without drift, and none made up for."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchlab_otel.sources.schedule import Schedule


@given(st.floats(1e-3, 10.0), st.integers(1, 200), st.integers())
def test_one_deadline_in_each_period_wherever_the_reading_ends_in_it(period, count, seed):
    schedule = Schedule(period, 100.0, seed)
    now = 100.0
    for k in range(count):
        now = schedule.next(now)
        assert 100.0 + k * period <= now <= 100.0 + (k + 1) * period


def test_missed_periods_are_skipped():
    schedule = Schedule(1.0, 0.0, 7)
    schedule.next(0.0)
    assert 7.0 <= schedule.next(7.3) < 8.0
    assert 8.0 <= schedule.next(7.4) < 9.0


def test_phases_fill_the_period_evenly():
    schedule = Schedule(1.0, 0.0, 1)
    phases = [schedule.next(0.0) % 1.0 for _ in range(4000)]
    counts = [sum(k / 10 <= p < (k + 1) / 10 for p in phases) for k in range(10)]
    assert all(300 < count < 500 for count in counts)


def test_schedules_of_one_seed_wake_together_also_after_one_has_missed_some():
    early, late = Schedule(0.05, 10.0, 3), Schedule(0.05, 10.001, 3)
    late.next(12.0)
    for now in (12.05, 12.1, 14.0):
        assert late.next(now + 0.001) == pytest.approx(early.next(now) + 0.001)
