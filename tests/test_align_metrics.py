"""What the aligner's metrics say of frames whose truth is known."""

from __future__ import annotations

import numpy as np
import pytest

from benchlab_otel import contract
from benchlab_otel.align.aligner import Aligned, Aligner, align, close
from benchlab_otel.align.attribution.attribute import attribute
from benchlab_otel.align.conditioner import Conditioner, close_conditioner, condition_live, learn_live
from benchlab_otel.align.metrics import (
    FrameMetrics,
    attribution_points,
    points,
    progress_points,
    take_in,
    take_in_conditioned,
)
from benchlab_otel.align.readings import slice_of
from benchlab_otel.contract import Metric
from benchlab_otel.model import HistogramPoint, Point
from benchlab_otel.otlp.decode import decode_traces
from benchlab_otel.simulate import power
from frames_of import make_run, requests

STAGE = power.Stage("infer", 220.0, 0.006, 0.35, 0.1)


def one(state: FrameMetrics, metric: Metric) -> Point | HistogramPoint:
    (point,) = [p for p in points(state, 0) if p.metric is metric]
    return point


def test_intervals_lie_between_completed_frames_across_blocks() -> None:
    run = make_run(60, dropped=(7, 30))
    completed = run.frames.end[run.frames.outcome == 0]
    aligner, state = Aligner(), FrameMetrics(0)
    blocks = 0
    for body in requests(run):
        for aligned in align(aligner, decode_traces(body)):
            blocks += 1
            take_in(state, aligned)
    for aligned in close(aligner):
        blocks += 1
        take_in(state, aligned)
    found = one(state, contract.FRAME_INTERVAL)
    assert isinstance(found, HistogramPoint)
    assert int(found.counts.sum()) == len(completed) - 1
    assert found.sum == pytest.approx((completed[-1] - completed[0]) / 1e9)
    assert blocks > 1


def test_a_frame_that_comes_late_is_no_interval() -> None:
    state = FrameMetrics(0)
    for begin, end in ((10, 20), (5, 10), (20, 30)):
        frames = make_run(40).frames
        rows = slice(begin, end)
        m = (frames.stage_frame >= begin) & (frames.stage_frame < end)
        frames.stage_frame = frames.stage_frame[m] - begin
        frames.stage, frames.stage_begin, frames.stage_end = (
            frames.stage[m], frames.stage_begin[m], frames.stage_end[m],
        )  # fmt: skip
        for name in ("trace", "span", "begin", "end", "number", "outcome"):
            setattr(frames, name, getattr(frames, name)[rows])
        take_in(state, Aligned(frames, [], [], []))
    found = one(state, contract.FRAME_INTERVAL)
    assert isinstance(found, HistogramPoint)
    assert int(found.counts.sum()) == 9 + 4 + 10  # within each block, and from frame 19 to 20


def test_how_far_conditioning_is_behind() -> None:
    random = np.random.default_rng(0)
    truth = power.simulate(power.Load((STAGE,), duration_s=25.0), random)
    meter = power.Meter(noise=0.2, round_trip_s=0.0005)
    readings = power.measure(truth, meter, random)
    aligner, conditioner, state = Aligner(), Conditioner(), FrameMetrics(0)
    done: list[Aligned] = []
    for body in power.requests([truth.frames], [readings], [meter], 0.2):
        done += condition_live(conditioner, aligner, align(aligner, decode_traces(body)))
        learn_live(conditioner, aligner)
    done += condition_live(conditioner, aligner, close(aligner)) + close_conditioner(conditioner)
    for aligned in done:
        take_in(state, aligned)
        take_in_conditioned(state, aligned)
    half = next(b.conditioned[0] for b in reversed(done) if any(b.conditioned)).energy_uncertainty
    mean = one(state, contract.FRAME_ENERGY_UNCERTAINTY)
    assert isinstance(mean, Point)
    assert mean.value == pytest.approx(np.nanmean(half))
    newest = int(truth.frames.end.max())
    behind = {p.metric: p.value for p in progress_points(state, -250_000_000, newest + 3_000_000_000)}
    assert behind == {contract.CLOCK_WALL: -0.25, contract.ALIGN_BEHIND: pytest.approx(3.0)}
    later = newest + 61_000_000_000
    assert [p.metric for p in progress_points(state, 0, later)] == [contract.CLOCK_WALL]
    assert contract.FRAME_ENERGY_UNCERTAINTY not in {p.metric for p in points(state, later)}
    take_in(state, Aligned(make_run(40).frames, [], [], []))  # of another pipeline, and it waits for ever
    state.done_until["cam0"] = state.seen_until["cam0"] - 1
    told = progress_points(state, 0, state.seen_until["cam0"] + 90_000_000_000)
    assert contract.ALIGN_BEHIND in {p.metric for p in told}


def test_what_could_not_be_resolved_is_told_with_its_reason() -> None:
    random = np.random.default_rng(2)
    truth = power.simulate(power.Load((power.Stage("spin", 70.0, 1 / 60, 0.0),), duration_s=30.0), random)
    readings = power.measure(truth, power.Meter(noise=0.5), random)
    inside = slice_of(readings, 30, len(readings) - 30)  # before and after it the stage is not active
    told = attribution_points(attribute([truth.frames], inside), 0)
    (point,) = [p for p in told if p.metric is contract.UNRESOLVED]
    assert point.value == 1.0
    assert point.labels["pipeline.stage"] == "spin"
    assert point.labels["reason"] == "always active while the meter was read"
    few = attribute([truth.frames], slice_of(inside, 0, 5))
    (point,) = attribution_points(few, 0)
    assert point.metric is contract.UNRESOLVED
    assert point.labels["reason"] == "too little data"
    assert "pipeline.stage" not in point.labels
