"""The measurement core against its own definitions: dense algebra, brute force, conservation."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from benchlab_otel.align.attribution import banded, counters, matrix, selfcheck
from benchlab_otel.align.attribution.attribute import Settings, attribute
from benchlab_otel.align.attribution.condition import Wanted, condition, energies
from benchlab_otel.align.attribution.design import Pieces, build
from benchlab_otel.align.attribution.fit import fit
from benchlab_otel.align.attribution.gls import Fit, Variances, prior, solve
from benchlab_otel.align.attribution.overlap import Weight, cumulative, join, overlap
from benchlab_otel.align.attribution.stream import Limits, State, advance, reading_rows
from benchlab_otel.align.attribution.windows import Kernel, windows
from benchlab_otel.simulate.power import (
    ORIGIN_NS,
    Background,
    Load,
    Meter,
    Stage,
    frame_truth,
    measure,
    seconds,
    simulate,
)

BASE = Background()
STAGES = (("decode", 60.0, 0.002), ("infer", 220.0, 0.006), ("encode", 110.0, 0.003))


def stages(spread=0.1, scale=1.0):
    return tuple(Stage(n, w, length * scale, 0.35, spread) for n, w, length in STAGES)


def run(seed=0, spread=0.1, duration=20.0, scale=1.0, background=BASE, **meter):
    rng = np.random.default_rng(seed)
    truth = simulate(Load(stages(spread, scale), duration_s=duration, background=background), rng)
    meter = Meter(**{"noise": 0.2, **meter})
    return truth, measure(truth, meter, rng), meter


def design_of(truth, readings, kernel):
    rows = windows(counters.clean(readings, ORIGIN_NS), kernel)
    f = truth.frames
    return build(
        rows,
        Pieces(seconds(f.stage_begin), seconds(f.stage_end), f.stage.astype(np.int64), len(f.stage_names)),
    )


def dense(band):
    n = band.shape[1]
    lower = sum(np.diag(band[d, : n - d], -d) for d in range(min(len(band), n)))
    return lower + np.tril(lower, -1).T


METERS = [
    {"kind": "power", "kernel": "boxcar"},
    {"kind": "power", "kernel": "boxcar", "width_s": 0.08, "noise": 1.0},
    {"kind": "power", "kernel": "instantaneous", "round_trip_s": 0.002},
    {"kind": "power", "kernel": "lowpass", "width_s": 0.03},
    {"kind": "energy", "noise": 0.01, "missed": 0.1},
]


def kernel_of(meter):
    return Kernel("lowpass" if meter.kernel == "lowpass" else "boxcar", meter.lag_s, meter.window_s)


# -- overlaps and banded algebra ------------------------------------------------------------------


@given(
    st.lists(st.tuples(st.integers(0, 60), st.integers(0, 20)), max_size=12),
    st.lists(st.tuples(st.integers(0, 60), st.integers(0, 20)), max_size=12),
)
def test_join_finds_every_overlap_once(windows_, pieces):
    lo, width = (np.array([w[k] for w in windows_], float) for k in (0, 1))
    begin, length = (np.array([p[k] for p in pieces], float) for k in (0, 1))
    found = list(zip(*(x.tolist() for x in join(lo, lo + width, begin, begin + length)), strict=True))
    assert len(found) == len(set(found))
    sharing = {
        (k, i)
        for k in range(len(lo))
        for i in range(len(begin))
        if min(lo[k] + width[k], begin[i] + length[i]) > max(lo[k], begin[i])
    }
    assert sharing <= set(found)


@pytest.mark.parametrize("tau", [0.0, 0.7])
def test_overlaps_of_pieces_that_tile_add_up_to_one(tau):
    rng = np.random.default_rng(1)
    edges = np.append(np.sort(rng.uniform(-3, 13, 60)), 14.0)
    edges[0] = -4.0
    lo = np.sort(rng.uniform(0, 9, 25))
    a = overlap(lo, lo + rng.uniform(0.01, 3, 25), edges[:-1], edges[1:], tau)
    np.testing.assert_allclose(a.sum(axis=1), 1.0, atol=1e-12)


def test_low_pass_rows_are_what_the_meter_answers():
    """(y_k − ρ y_{k−1}) / (1 − ρ) of a noise-free low-pass is the kernel's average of the true power."""
    truth, readings, meter = run(kernel="lowpass", width_s=0.03, noise=0.0, duration=3.0)
    rows = windows(counters.clean(readings, ORIGIN_NS), kernel_of(meter))
    a = overlap(rows.lo, rows.hi, truth.edges[:-1], truth.edges[1:], rows.tau)
    np.testing.assert_allclose(a @ truth.level, rows.value, rtol=1e-5)


@pytest.mark.parametrize(("n", "w", "width"), [(1, 1, 0), (2, 1, 1), (9, 3, 1), (40, 2, 6), (65, 5, 5)])
def test_band_of_the_inverse_is_exact(n, w, width):
    rng = np.random.default_rng(n)
    m = sparse.csr_array(
        sparse.diags_array(
            [rng.normal(size=n - d) for d in range(min(w + 1, n))], offsets=range(min(w + 1, n))
        )
    )
    s = (m.T @ m).toarray() + 0.1 * np.eye(n)
    band = banded.Cholesky.of(matrix.band_of(sparse.csr_array(s), w)).inverse_band(width)
    inverse = np.linalg.inv(s)
    for d in range(min(width + 1, n)):
        np.testing.assert_allclose(band[d, : n - d], np.diag(inverse, -d), rtol=1e-8, atol=1e-10)


# -- the banded way equals the dense one ------------------------------------------------------------


def reach_of(design):
    """(n, j): how much of each step of the base is in each row."""
    rows, knots = design.rows, design.knots
    full = np.ones(len(knots))
    return np.array(
        [
            1 - cumulative(knots, lo * full, hi * full, rows.tau)
            for lo, hi in zip(rows.lo, rows.hi, strict=True)
        ]
    )


def dense_posterior(design, found):
    """Mean and covariance of (W, p̃, η, level) by the mixed model's formulas; W and level have flat priors."""
    rows = design.rows
    pieces, steps, errors = prior(design, found.variances, found.watts)
    fixed = np.hstack([design.active, np.ones((len(rows), 1))])
    drawn, c = np.hstack([design.overlap.toarray(), reach_of(design)]), np.concatenate([pieces, steps])
    n = rows.noise.toarray()
    v = drawn * c @ drawn.T + n * errors @ n.T
    level_and_watts = np.linalg.inv(fixed.T @ np.linalg.solve(v, fixed))
    gain = level_and_watts @ np.linalg.solve(v, fixed).T  # of the fixed ones
    reach = c[:, None] * drawn.T
    told = np.linalg.solve(v, np.eye(len(rows)) - fixed @ gain)
    mean = np.concatenate([gain @ rows.value, reach @ told @ rows.value])
    between = -gain @ reach.T
    covariance = np.block([[level_and_watts, between], [between.T, np.diag(c) - reach @ told @ reach.T]])
    s = design.active.shape[1]
    order = np.concatenate([np.arange(s), np.arange(s + 1, len(mean)), [s]])
    return mean[order], covariance[np.ix_(order, order)]


@pytest.mark.parametrize("kind", METERS, ids=lambda m: "-".join(map(str, m.values())))
def test_conditioning_equals_the_dense_formula(kind):
    truth, readings, meter = run(duration=3.0, phase=0.5, **kind)
    design = design_of(truth, readings, kernel_of(meter))
    variances = Variances(
        np.array([36.0, 484.0, 121.0]), 30.0, meter.noise**2, 1e-8 if meter.round_trip_s else 0.0
    )
    solved = solve(design, prior(design, variances, np.array([60.0, 220.0, 110.0])))
    found = Fit(np.array([60.0, 220.0, 110.0]), solved.covariance, variances, 0.0)
    found.solved, found.priors = solved, prior(design, variances, found.watts)
    posterior = condition(design, found, 6)
    mean, covariance = dense_posterior(design, found)
    s, m, j = 3, len(design.pieces), len(design.knots)
    np.testing.assert_allclose(solved.watts, mean[:s], rtol=1e-5)
    off = mean[:s][design.pieces.stage] + mean[s : s + m]
    np.testing.assert_allclose(posterior.watts, off, rtol=1e-5)

    f = truth.frames
    inside = (seconds(f.begin) > design.rows.lo[0]) & (seconds(f.end) < design.rows.hi[-1])
    lo, hi = seconds(f.begin[inside]), seconds(f.end[inside])
    own = sparse.csr_array(
        (seconds(f.stage_end) - seconds(f.stage_begin), (f.stage_frame, np.arange(m))), shape=(len(f), m)
    )[np.flatnonzero(inside)]
    value, variance = energies(posterior, Wanted(own, lo, hi, Weight()))
    # the same energies as functions of all unknowns
    later = np.clip(hi[:, None] - np.clip(design.knots, lo[:, None], hi[:, None]), 0, None)
    g = np.hstack([own @ np.eye(3)[design.pieces.stage], own.toarray(), later, (hi - lo)[:, None]])
    assert g.shape[1] == s + m + j + 1
    np.testing.assert_allclose(value, g @ mean, rtol=1e-5)
    np.testing.assert_allclose(variance, np.einsum("fi,ij,fj->f", g, covariance, g), rtol=1e-5)


def test_restricted_likelihood_is_at_its_top():
    """No other variances are likelier: each moved by 3 % either way makes the likelihood smaller."""
    truth, readings, meter = run(seed=3, duration=60.0, noise=1.0)
    design = design_of(truth, readings, kernel_of(meter))
    found = fit(design)

    def likelihood(v):
        solved = solve(design, prior(design, v, found.watts))
        residual = design.difference - design.contrast @ solved.watts
        off = np.log(v.stage) / 2 - np.log(
            np.abs(np.linalg.lstsq(design.contrast, design.difference, rcond=None)[0])
        )
        alike = 0.5 * np.sum((off - off.mean()) ** 2) / 0.5**2
        return (
            -0.5
            * (solved.factor.logdet() - np.linalg.slogdet(solved.covariance)[1] + residual @ solved.alpha)
            - alike
        )

    top = likelihood(found.variances)
    for factor in (0.7, 1.4):
        for s in range(3):
            stage = found.variances.stage.copy()
            stage[s] *= factor
            assert likelihood(replace(found.variances, stage=stage)) < top + 0.02
        assert likelihood(replace(found.variances, noise=found.variances.noise * factor)) < top + 0.02


def test_leave_one_out_equals_brute_force():
    truth, readings, meter = run(duration=4.0, noise=1.0)
    design = design_of(truth, readings, kernel_of(meter))
    variances = Variances(np.array([36.0, 484.0, 121.0]), 30.0, 1.0, 0.0)
    priors = prior(design, variances, np.zeros(3))
    solved = solve(design, priors)
    miss, sd = selfcheck.leave_one_out(solved, solved.factor.inverse_band(1))
    n = len(design.rows)
    model = np.hstack([design.overlap.toarray(), reach_of(design), design.rows.noise.toarray()])
    s = model * np.concatenate(priors) @ model.T
    x = np.column_stack([design.active, np.ones(n)])
    for k in (0, 1, n // 2, n - 1):
        rest = np.arange(n) != k
        inverse = np.linalg.inv(s[np.ix_(rest, rest)])
        cov = np.linalg.inv(x[rest].T @ inverse @ x[rest])
        beta = cov @ x[rest].T @ inverse @ design.rows.value[rest]
        gain = s[k, rest] @ inverse
        predicted = x[k] @ beta + gain @ (design.rows.value[rest] - x[rest] @ beta)
        left = x[k] - gain @ x[rest]
        variance = s[k, k] - gain @ s[rest, k] + left @ cov @ left
        assert design.rows.value[k] - predicted == pytest.approx(miss[k], rel=1e-6, abs=1e-8)
        assert np.sqrt(variance) == pytest.approx(sd[k], rel=1e-6)


# -- conservation -------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    fps=st.sampled_from([7.0, 30.0, 60.0, 144.0]),
    lengths=st.lists(st.floats(0.0005, 0.04), min_size=1, max_size=4),
    drop=st.sampled_from([0.0, 0.2]),
    background=st.sampled_from([Background(), Background(50.0, 30.0, 1.0), Background(80.0, drift_w=4.0)]),
    meter=st.sampled_from(
        [
            Meter(rate_hz=20.0, kind="energy"),
            Meter(rate_hz=100.0, kind="energy", missed=0.2),
            Meter(rate_hz=20.0, phase=0.0),
            Meter(rate_hz=50.0, phase=0.0, missed=0.1),
        ]
    ),
)
def test_shares_and_idle_are_the_measured_energy(seed, fps, lengths, drop, background, meter):
    """To 1e-9 without meter noise, whatever the load, the meter, its gaps and the drops."""
    rng = np.random.default_rng(seed)
    work = tuple(Stage(f"s{k}", 40.0 * (k + 1), x, 0.3, 0.1) for k, x in enumerate(lengths))
    truth = simulate(Load(work, fps=fps, duration_s=6.0, background=background, drop=drop), rng)
    readings = measure(truth, meter, rng)
    if meter.kind == "power":
        # windows that end where the next begins, as a meter of its own period has them
        readings.window_ns = round(1e9 / meter.rate_hz)
        readings.time = (
            readings.time[0]
            + np.round((readings.time - readings.time[0]) / readings.window_ns).astype(np.int64)
            * readings.window_ns
        )
    result = attribute([truth.frames], readings)
    book = result.ledger
    assert book is not None
    assert book.exact
    assert book.shares + book.idle == pytest.approx(book.measured, rel=1e-9)


def test_frames_shares_are_those_of_the_ledger():
    """Frames wholly within the readings: their shares, added up, are the ledger's."""
    truth, readings, _ = run(kind="energy", noise=0.0, duration=5.0, scale=2.2)
    result = attribute([truth.frames], readings)
    assert result.frames_covered == len(truth.frames)
    assert result.ledger is not None
    assert result.pipelines[0].shared.sum() == pytest.approx(result.ledger.shares, rel=1e-9)
    own = np.bincount(truth.frames.stage_frame, result.pipelines[0].stage)
    np.testing.assert_allclose(own, result.pipelines[0].own, rtol=1e-9)


def test_the_integral_beside_the_ledger_leaves_gaps_out():
    """Over three seconds without readings a line between two of them would be 600 J of nobody."""
    truth, readings, _ = run(3, 0.02)
    at = seconds(readings.time)
    seen = reading_rows(readings, np.flatnonzero((at < 8.0) | (at > 11.0)))
    whole, part = (attribute([truth.frames], r).ledger for r in (readings, seen))
    assert not part.exact
    lost = truth.energy(np.array([8.0]), np.array([11.0]))[0]
    assert whole.measured - part.measured == pytest.approx(lost, rel=0.03)
    assert abs(part.residual) < 15.0  # of 3,500 J
    assert part.residual_uncertainty < 1.5 * whole.residual_uncertainty


def test_two_pipelines_share_one_domain():
    rng = np.random.default_rng(5)
    from benchlab_otel.simulate.power import merged

    first = simulate(Load(stages(0.02), duration_s=30.0, name="a"), rng)
    second = simulate(
        Load((Stage("work", 150.0, 0.012, 0.3, 0.02),), fps=25.0, duration_s=30.0, name="b"), rng
    )
    both = merged([first, second])
    result = attribute([first.frames, second.frames], measure(both, Meter(rate_hz=50.0, noise=0.2), rng))
    watts = {(s.pipeline, s.group[0]): (s.watts, s.watts_uncertainty) for s in result.stages}
    for key, truth in {("a", "infer"): 220.0, ("b", "work"): 150.0}.items():
        assert abs(watts[key][0] - truth) < 2 * watts[key][1]
        assert watts[key][1] < 0.1 * truth
    own = np.bincount(
        second.frames.stage_frame,
        second.watts * (seconds(second.frames.stage_end) - seconds(second.frames.stage_begin)),
    )
    assert np.mean(np.abs(result.pipelines[1].own - own)) < 0.06 * own.mean()


# -- what can't be known ------------------------------------------------------------------------


def test_no_readings_and_no_frames_tell_nothing():
    truth, readings, _ = run(duration=2.0)
    few = replace(
        readings, **{k: getattr(readings, k)[:3] for k in ("time", "uncertainty", "value", "trace", "span")}
    )
    result = attribute([truth.frames], few)
    assert "too little data" in result.reason
    assert np.isnan(result.pipelines[0].shared).all()
    empty = attribute([], readings)
    assert empty.pipelines == []
    assert empty.base_watts == pytest.approx(np.mean(readings.value), rel=0.1)


@pytest.mark.filterwarnings("error")
def test_odd_input_gives_reasons_not_errors():
    truth, readings, _ = run(duration=10.0)
    f = truth.frames
    noise = np.random.default_rng(0).normal(size=len(readings))
    at = {k: np.full(len(getattr(f, k)), f.begin[50]) for k in ("begin", "end", "stage_begin", "stage_end")}
    instant = replace(f, **at)
    short = replace(f, stage_end=np.where(f.stage == 1, f.stage_begin, f.stage_end))
    odd = {
        "constant": ([f], replace(readings, value=np.full(len(readings), 50.0))),
        "zero": ([f], replace(readings, value=np.zeros(len(readings)))),
        "absent": ([f], replace(readings, value=np.full(len(readings), np.nan))),
        "twice": ([f, f], readings),
        "elsewhere": ([f], replace(readings, time=readings.time + 10**13)),
        "marks at once": ([replace(f, stage_end=f.stage_begin)], readings),
        "falling": ([f], replace(readings, kind="energy", value=-np.arange(len(readings), dtype=float))),
        "noise": ([f], replace(readings, value=noise)),
        "huge": ([f], replace(readings, value=1e9 * noise)),
        "two readings": ([f], reading_rows(readings, slice(0, 2))),
        "few readings": ([f], reading_rows(readings, slice(0, 20))),
        "one stage of no length": ([short], readings),
        "all at one instant": ([instant], readings),
        "no frames": ([], readings),
    }
    for name, (frames, measured) in odd.items():
        advance(State(limits=Limits(warmup_s=0.0)), frames, measured)
        for search in (False, True):
            result = attribute(frames, measured, Settings(find_kernel=search))
            assert len(result.pipelines) == len(frames), name
            for s in result.stages:
                assert s.reason or np.isfinite(s.watts), name


def test_frames_that_the_meter_did_not_cover_have_no_figure():
    truth, readings, _ = run(duration=20.0)
    time = seconds(readings.time)
    keep = (time < 8.0) | (time > 12.0)
    result = attribute(
        [truth.frames],
        replace(
            readings,
            **{k: getattr(readings, k)[keep] for k in ("time", "uncertainty", "value", "trace", "span")},
        ),
    )
    begin, end = seconds(truth.frames.begin), seconds(truth.frames.end)
    lost = (begin > 8.1) & (end < 11.9)
    assert np.isnan(result.pipelines[0].shared[lost]).all()
    assert np.isfinite(result.pipelines[0].shared[(end < 7.9) | (begin > 12.2)][:-3]).all()
    assert 0.75 < result.coverage < 0.85


def test_joules_of_a_stage_are_the_mean_of_the_frames_that_the_meter_covered():
    """A meter that starts late and has a gap says nothing of the frames that it did not see."""
    held = []
    for seed in range(6):
        truth, readings, _ = run(seed=seed, duration=20.0, rate_hz=100.0)
        time = seconds(readings.time)
        result = attribute(
            [truth.frames],
            reading_rows(readings, np.flatnonzero((time > 6.0) & ((time < 12.0) | (time > 15.0)))),
        )
        f, seen = truth.frames, np.isfinite(result.pipelines[0].shared)
        joules = truth.watts * (seconds(f.stage_end) - seconds(f.stage_begin))
        for s, figure in enumerate(result.stages):
            right = joules[(f.stage == s) & seen[f.stage_frame]].mean()
            assert figure.frames == seen.sum()
            assert figure.joules == pytest.approx(right, rel=0.1)
            held.append(abs(figure.joules - right) <= figure.joules_uncertainty)
    assert 0.5 < result.coverage < 0.6
    assert np.mean(held) > 0.8


def test_too_little_data_counts_the_stages_that_have_names():
    truth, readings, _ = run(duration=10.0)
    f = truth.frames
    bare = replace(f, **{k: getattr(f, k)[3:] for k in ("stage_frame", "stage", "stage_begin", "stage_end")})
    few = reading_rows(readings, slice(0, 9))
    assert attribute([f], few).reason == "too little data: 9 readings for 3 stages, 17 are needed"
    assert attribute([bare], few).reason == "too little data: 9 readings for 3 stages, 20 are needed"


def test_stages_never_seen_apart_are_one_group():
    """Two stages that always run at once have one figure, their frame's own energy is still right."""
    rng = np.random.default_rng(2)
    load = Load(stages(0.02), duration_s=30.0)
    truth = simulate(load, rng)
    f = truth.frames
    twin = f.stage == 1
    frames = replace(
        f,
        stage_frame=np.concatenate([f.stage_frame, f.stage_frame[twin]]),
        stage=np.concatenate([f.stage, np.full(int(twin.sum()), 3, np.int32)]),
        stage_begin=np.concatenate([f.stage_begin, f.stage_begin[twin]]),
        stage_end=np.concatenate([f.stage_end, f.stage_end[twin]]),
        stage_names=[*f.stage_names, "twin"],
    )
    result = attribute([frames], measure(truth, Meter(noise=0.2), rng))
    group = next(s for s in result.stages if len(s.group) > 1)
    assert group.group == ["infer", "twin"]
    assert "never seen apart" in group.reason
    assert np.isnan(result.pipelines[0].stage[frames.stage == 3]).all()
    own = frame_truth(truth, 0, 30).own
    assert np.nanmean(np.abs(result.pipelines[0].own - own)) < 0.03 * own.mean()


def test_a_stage_that_is_always_active_is_part_of_the_base():
    rng = np.random.default_rng(2)
    truth = simulate(Load((Stage("spin", 70.0, 1 / 60, 0.0),), duration_s=30.0), rng)
    readings = measure(truth, Meter(noise=0.5), rng)
    inside = (seconds(readings.time) > 1.0) & (seconds(readings.time) < 29.0)
    readings = replace(
        readings,
        **{k: getattr(readings, k)[inside] for k in ("time", "uncertainty", "value", "trace", "span")},
    )
    result = attribute([truth.frames], readings)
    assert np.isnan(result.stages[0].watts)
    assert "part of the base" in result.stages[0].reason
    assert result.base_watts == pytest.approx(165.0, abs=1.0)


def test_what_the_base_mirrors_says_why():
    """A stage that takes no time, and one that a meter in step with the frames always sees as much of."""
    truth, readings, _ = run(2)
    f = truth.frames
    instant = replace(f, stage_end=np.where(f.stage == 0, f.stage_begin, f.stage_end))
    decode, infer, _ = attribute([instant], readings).stages
    assert np.isnan(decode.watts)
    assert decode.reason == "takes too little time to show in the readings: decode; part of the base"
    assert infer.reason == ""
    periodic = Load((Stage("work", 50.0, 0.006, 0.0),), duration_s=20.0)
    locked = simulate(periodic, np.random.default_rng(1))
    (work,) = attribute(
        [locked.frames], inside(measure(locked, Meter(phase=0.0), np.random.default_rng(1)))
    ).stages
    assert work.reason == "active for the same part of each reading: work; part of the base"


def inside(readings):
    """The readings between the first frame's begin and the last one's end."""
    at = seconds(readings.time)
    return reading_rows(readings, np.flatnonzero((at > 0.2) & (at < 19.8)))


def test_too_little_data_says_how_much_more():
    truth, readings, _ = run(duration=6.0, spread=0.3, noise=8.0, rate_hz=10.0)
    reasons = [s.reason for s in attribute([truth.frames], readings).stages if s.reason]
    assert any("s more of this kind are needed" in r for r in reasons)


def test_same_input_same_figures():
    truth, readings, _ = run(duration=10.0)
    one, two = (attribute([truth.frames], readings, Settings()) for _ in range(2))
    assert np.array_equal(one.pipelines[0].shared, two.pipelines[0].shared, equal_nan=True)


def test_a_covariance_that_is_singular_by_rounding_is_factored():
    band = np.array([[1.0, 1.0, 2.0], [1.0, 0.0, 0.0]])  # the first two rows are the same
    assert np.isfinite(banded.Cholesky.of(band).logdet())
    assert np.isfinite(banded.Cholesky.of(band).inverse_band(1)).all()
    with pytest.raises(np.linalg.LinAlgError):
        banded.Cholesky.of(np.array([[1.0, -1.0], [0.0, 0.0]]))
