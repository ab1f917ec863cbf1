"""Conditioned joules live and from an archive, on runs whose truth is known."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from benchlab_otel.align.aligner import Aligned, Aligner, align, close
from benchlab_otel.align.conditioner import Conditioner, close_conditioner, condition_live, learn_live
from benchlab_otel.align.energy_spans import encode_energy
from benchlab_otel.align.readings import slice_of
from benchlab_otel.align.segments import KEEP_NS, Segment, add_to_segment, finish_segment
from benchlab_otel.model import Float, Int
from benchlab_otel.otlp.decode import decode_traces
from benchlab_otel.simulate import power

STAGES = (
    power.Stage("decode", 60.0, 0.002, 0.35, 0.1),
    power.Stage("infer", 220.0, 0.006, 0.35, 0.1),
    power.Stage("encode", 110.0, 0.003, 0.35, 0.1),
)


@dataclass
class Run:
    """Requests as they would arrive, and the true energy of any stretch."""

    requests: list[bytes]
    truth: power.Truth


def make(seconds: float, seed: int = 0, chunk_s: float = 0.2, **meter: object) -> Run:
    random = np.random.default_rng(seed)
    truth = power.simulate(power.Load(STAGES, duration_s=seconds), random)
    made = power.Meter(**{"noise": 0.2, "round_trip_s": 0.0005, **meter})  # type: ignore[arg-type]
    readings = power.measure(truth, made, random)
    return Run(list(power.requests([truth.frames], [readings], [made], chunk_s)), truth)


def live(run: Run) -> tuple[list[Aligned], Conditioner, Aligner]:
    aligner, conditioner = Aligner(), Conditioner()
    out: list[Aligned] = []
    for body in run.requests:
        out += condition_live(conditioner, aligner, align(aligner, decode_traces(body)))
        learn_live(conditioner, aligner)
    out += condition_live(conditioner, aligner, close(aligner))
    return out + close_conditioner(conditioner), conditioner, aligner


def offline(run: Run, length_ns: int) -> list[Aligned]:
    aligner, segment = Aligner(keep_ns=KEEP_NS), Segment(length_ns=length_ns)
    out: list[Aligned] = []
    for body in run.requests:
        out += add_to_segment(segment, aligner, align(aligner, decode_traces(body)))
    out += add_to_segment(segment, aligner, close(aligner))
    return out + list(finish_segment(segment, aligner))


@dataclass
class Figures:
    begin: Int
    end: Int
    energy: Float
    uncertainty: Float


def figures(blocks: list[Aligned]) -> Figures:
    """Conditioned figures by time; NaN where a frame has none."""
    columns = []
    for block in blocks:
        found = block.conditioned[0] if block.conditioned else None
        nothing = np.full(len(block.frames), np.nan)
        energy, half = (found.energy, found.energy_uncertainty) if found else (nothing, nothing)
        columns.append((block.frames.begin, block.frames.end, energy, half))
    begin, end, energy, half = (np.concatenate(c) for c in zip(*columns, strict=True))
    order = np.argsort(begin)
    return Figures(begin[order], end[order], energy[order], half[order])


def true_energy(run: Run, found: Figures) -> Float:
    return run.truth.energy(power.seconds(found.begin), power.seconds(found.end))


@pytest.fixture(scope="module")
def known() -> Run:
    return make(60.0, lag_s=0.004)


@pytest.fixture(scope="module")
def unknown() -> Run:
    return make(60.0, seed=1, lag_s=0.004, known=False)


def test_live_figures_hold_the_truth(known: Run) -> None:
    found = figures(live(known)[0])
    true = true_energy(known, found)
    has = np.isfinite(found.energy)
    assert len(found.begin) == 3600
    assert has.mean() > 0.98
    off = np.abs(found.energy - true)[has]
    assert off.mean() < 0.04 * true.mean()
    assert 0.9 < (off <= found.uncertainty[has]).mean() < 0.98


def test_the_meters_window_is_found_live(unknown: Run) -> None:
    blocks, conditioner, _ = live(unknown)
    (stream,) = conditioner.streams.values()
    assert stream.state.kernel is not None
    assert stream.state.kernel.lag_s == pytest.approx(0.004, abs=0.001)
    assert stream.state.kernel.width_s == pytest.approx(0.05, rel=0.1)
    found = figures(blocks)
    has = np.isfinite(found.energy)
    off = np.abs(found.energy - true_energy(unknown, found))[has]
    assert has.mean() > 0.9
    assert (off <= found.uncertainty[has]).mean() > 0.9


def test_live_and_offline_agree_within_their_uncertainty(known: Run) -> None:
    now, later = figures(live(known)[0]), figures(offline(known, 1 << 60))
    assert np.array_equal(now.begin, later.begin)
    both = np.isfinite(now.energy) & np.isfinite(later.energy)
    assert both.mean() > 0.98
    apart = np.abs(now.energy - later.energy)[both]
    assert (apart <= np.hypot(now.uncertainty, later.uncertainty)[both]).mean() > 0.97


def test_segments_give_each_frame_once_and_seams_do_not_show(known: Run) -> None:
    whole, cut = figures(offline(known, 1 << 60)), figures(offline(known, 20_000_000_000))
    assert np.array_equal(whole.begin, cut.begin)
    both = np.isfinite(whole.energy) & np.isfinite(cut.energy)
    assert np.array_equal(np.isfinite(whole.energy), np.isfinite(cut.energy))
    apart = np.abs(whole.energy - cut.energy)[both]
    assert (apart <= np.hypot(whole.uncertainty, cut.uncertainty)[both]).mean() > 0.97


def test_the_same_archive_gives_the_same_bytes(known: Run) -> None:
    first, again = ([encode_energy(b, {}) for b in offline(known, 1 << 60)] for _ in range(2))
    assert first == again


def waits(run: Run) -> Float:
    """How long each frame waited, s of event time, with requests 0.2 s long."""
    aligner, conditioner = Aligner(), Conditioner()
    out: list[float] = []
    for body in run.requests:
        for block in condition_live(conditioner, aligner, align(aligner, decode_traces(body))):
            out += ((aligner.assembly.watermark - block.frames.end) / 1e9).tolist()
        learn_live(conditioner, aligner)
    return np.array(out)


def test_frames_are_out_within_a_second(known: Run) -> None:
    waited = waits(known)
    after_first_fit = waited[len(waited) // 4 :]
    assert np.percentile(after_first_fit, 99) < 0.9


def test_frames_of_a_slow_meter_are_out_once_it_has_covered_them() -> None:
    """Two readings may lie two periods apart; 0.3 s may a span be late, and 0.2 s is a step."""
    run = make(60.0, rate_hz=1.0)
    found = figures(live(run)[0])
    has = np.isfinite(found.energy)
    assert has[found.begin > found.begin[0] + 20_000_000_000].mean() > 0.95
    off = np.abs(found.energy - true_energy(run, found))
    assert (off <= found.uncertainty)[has].mean() > 0.85  # of the first ones fewer, as little is known yet
    assert waits(run)[-2400:].max() < 2.8


def test_each_frame_is_given_once_and_in_its_turn(known: Run) -> None:
    end = np.concatenate([block.frames.end for block in live(known)[0]])
    assert np.array_equal(end, known.truth.frames.end)


def test_each_frames_readings_are_those_around_it(known: Run) -> None:
    """Also in blocks that went out by parts, or as one."""
    blocks = live(known)[0]
    assert max(len(block.frames) for block in blocks) > 60  # those that waited for the first fit
    for block in blocks:
        for energy, readings in zip(block.energy, block.readings, strict=True):
            has = energy.first >= 0
            first, last = readings.time[energy.first[has]], readings.time[energy.last[has]]
            assert (np.abs(first - block.frames.begin[has]) < 300_000_000).all()
            assert (np.abs(last - block.frames.end[has]) < 300_000_000).all()


def test_nothing_piles_up_for_a_meter_that_is_gone() -> None:
    """Its frames are let go once they are out without it."""
    random = np.random.default_rng(0)
    truth = power.simulate(power.Load(STAGES, duration_s=60.0), random)
    meters = [power.Meter(noise=0.2, name="stays"), power.Meter(noise=0.2, name="goes")]
    readings = [power.measure(truth, meter, random) for meter in meters]
    readings[1] = slice_of(readings[1], 0, 400)
    aligner, conditioner, held = Aligner(), Conditioner(), []
    for body in power.requests([truth.frames], readings, meters, 0.2):
        condition_live(conditioner, aligner, align(aligner, decode_traces(body)))
        learn_live(conditioner, aligner)
        held.append([sum(map(len, stream.pending)) for stream in conditioner.streams.values()])
    assert max(map(max, held)) <= 60 * (15 + 1)


def test_what_is_kept_does_not_grow_with_the_run() -> None:
    def kept(seconds: float) -> int:
        _, conditioner, aligner = live(make(seconds, chunk_s=1.0))
        (stream,) = conditioner.streams.values()
        held = stream.state.frames[0]
        return len(held) + len(stream.state.readings or ()) + len(stream.figures) + len(aligner.series)

    assert kept(400.0) < 1.3 * kept(200.0)


@pytest.fixture(scope="module")
def steady() -> Run:
    """A load that never varies tells nothing of a meter's window."""
    random = np.random.default_rng(0)
    load = power.Load((power.Stage("work", 50.0, 0.010, 0.0, 0.0),), duration_s=30.0)
    truth = power.simulate(load, random)
    meter = power.Meter(known=False, noise=0.1)
    readings = power.measure(truth, meter, random)
    return Run(list(power.requests([truth.frames], [readings], [meter], 0.2)), truth)


def test_a_meter_that_cannot_be_known_is_not_attributed(steady: Run) -> None:
    found = figures(live(steady)[0])
    assert len(found.begin) == len(steady.truth.frames)
    assert not np.isfinite(found.energy).any()


def test_a_meter_that_cannot_be_known_is_not_waited_for(steady: Run) -> None:
    """But for the first seconds, when it may yet be."""
    assert waits(steady)[-600:].max() < 1.2
