"""The simulated truth: its energies must be exact, whatever the order in which stages are told."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchlab_otel.simulate.truth import Activity, Load, Truth

STAGES = ("decode", "encode")
LOAD = Load(
    base={"EPS1": 40.0, "ATX12V": 10.0}, stages={"decode": {"EPS1": 60.0}, "encode": {"HPWR1": 200.0}}
)
intervals = st.lists(
    st.tuples(st.sampled_from(STAGES), st.integers(1, 10**9), st.integers(0, 10**9)), max_size=20
)


def overlap(begin: int, length: int, t0: int, t1: int) -> int:
    return max(0, min(begin + length, t1) - max(begin, t0))


@given(intervals, st.integers(0, 10**9), st.integers(0, 10**9), st.randoms())
def test_energy_is_the_sum_over_intervals_in_any_order(told, t0, length, random):
    t1 = t0 + length
    calls = [(s, b, True) for s, b, _ in told] + [(s, b + n, False) for s, b, n in told]
    random.shuffle(calls)
    truth = Truth(LOAD)
    for stage, time, begins in calls:
        (truth.activity.begin if begins else truth.activity.end)(stage, time)
    for where, watts, base in (("cpu", {"decode": 60.0}, 40.0), ("HPWR1", {"encode": 200.0}, 0.0)):
        expected = base * length + sum(watts.get(s, 0.0) * overlap(b, n, t0, t1) for s, b, n in told)
        assert truth.energy(where, t0, t1)[0] == pytest.approx(expected * 1e-9, rel=1e-12, abs=1e-12)


def test_energy_of_many_windows_agrees_with_mean_power():
    truth = Truth(LOAD)
    for k in range(1200):
        truth.activity.begin("decode", k * 1000 + 1)
        truth.activity.end("decode", k * 1000 + 1 + k % 700)
    begin = np.arange(1200, dtype=np.int64) * 1000
    joules = truth.energy("system", begin, begin + 1000)
    one = truth.rail_watts(int(begin[321]), int(begin[321]) + 1000)
    assert joules[321] == pytest.approx(sum(one.values()) * 1000e-9)
    assert joules.sum() == pytest.approx(truth.energy("system", 0, 1_200_000)[0])


def test_a_stage_that_is_still_active_counts_until_now():
    truth = Truth(LOAD)
    truth.activity.begin("encode", 100)
    assert truth.power("gpu", 99) == 0.0
    assert truth.power("gpu", 100) == 200.0
    assert truth.energy("gpu", 0, 1100)[0] == pytest.approx(200 * 1000e-9)


def test_unknown_rails_and_foreign_activities_are_refused():
    with pytest.raises(ValueError, match="EPS9"):
        Load(base={"EPS9": 1.0})
    with pytest.raises(ValueError, match="activity"):
        Truth(LOAD, Activity(("other",)))
