"""The aligner: frames joined from spans in any order, and their energy beside the simulator's truth."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import tracemalloc
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, ArrayValue, KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from benchlab_otel import contract
from benchlab_otel.align.aligner import Aligned, Aligner, align, close
from benchlab_otel.align.energy_spans import encode_energy, has_energy
from benchlab_otel.align.frames import _owners
from benchlab_otel.align.interpolate import LOOK_BACK
from benchlab_otel.archive.records import Fault, compressor, frame
from benchlab_otel.archive.session import Session
from benchlab_otel.export.recording import load_runs
from benchlab_otel.model import Frames, Spans
from benchlab_otel.otlp.decode import concatenate, decode_traces, take
from benchlab_otel.otlp.encode import SpanBatch, encode_request
from benchlab_otel.simulate import power
from benchlab_otel.timebase import CLOCK_ATTRIBUTE

START = 1_790_000_000_000_000_000
MS = 1_000_000
LATE_NS = 500 * MS

# -- spans by hand ------------------------------------------------------------------------------


@dataclass(frozen=True)
class One:
    """One span: frame `trace` has id `trace`, and stages are its children."""

    name: str
    trace: int
    span: int
    begin: int  # ms from START
    end: int
    parent: int = 0
    service: str = "app"
    attributes: tuple[tuple[str, Any], ...] = ()
    resource: tuple[tuple[str, Any], ...] = ()

    def body(self) -> bytes:
        batch = SpanBatch(
            self.name,
            np.array([[self.trace, self.trace]], np.uint64),
            np.array([self.span], np.uint64),
            np.array([START + self.begin * MS]),
            np.array([START + self.end * MS]),
            np.array([self.parent], np.uint64) if self.parent else None,
            attributes=dict(self.attributes),
        )
        return encode_request({"service.name": self.service, **dict(self.resource)}, [batch])


def frame_of(number: int, begin: int, end: int, pipeline: str = "cam0", **more: Any) -> One:
    attributes = (("pipeline.name", pipeline), ("frame.number", number), ("frame.outcome", "completed"))
    return One("frame", number + 1, number + 1, begin, end, attributes=attributes, **more)


def stage_of(number: int, name: str, begin: int, end: int, **more: Any) -> One:
    span = abs(hash((number, name))) % (1 << 60) + 1000
    return One(name, number + 1, span, begin, end, number + 1, attributes=(("pipeline.stage", name),), **more)


def sample_of(at: int, watts: Any, meter: str = "m", attribute: str = "hw.power.system", **more: Any) -> One:
    return One(
        "sample", 1 << 40, at + (1 << 41), at, at, attributes=(("hw.id", meter), (attribute, watts)), **more
    )


def feed(bodies: Iterable[bytes | Spans], state: Aligner | None = None, whole: bool = True) -> list[Aligned]:
    state = state or Aligner()
    out: list[Aligned] = []
    for body in bodies:
        out += align(state, decode_traces(body) if isinstance(body, bytes) else body)
    return out + (close(state) if whole else [])


Row = tuple[Any, ...]


def table(aligned: Sequence[Aligned]) -> dict[tuple[str, str, int], Row]:
    """(service, pipeline, trace): (number, outcome, begin, end, stages) of every frame."""
    rows: dict[tuple[str, str, int], Row] = {}
    for block in aligned:
        f = block.frames
        assert (np.diff(f.end) >= 0).all()
        assert (np.diff(f.stage_frame) >= 0).all()
        for i in range(len(f)):
            mine = np.flatnonzero(f.stage_frame == i)
            stages = sorted((f.stage_names[f.stage[k]], f.stage_begin[k], f.stage_end[k]) for k in mine)
            key = (f.service, f.pipeline, int(f.trace[i, 0]))
            assert key not in rows, "a frame came out twice"
            rows[key] = (int(f.number[i]), int(f.outcome[i]), int(f.begin[i]), int(f.end[i]), stages)
    return rows


def small_run(n: int = 30) -> list[One]:
    """Two pipelines; the second's stages come from another process, and one outlasts its frame."""
    spans = []
    for i in range(n):
        t = i * 20
        spans += [
            frame_of(i, t, t + 15),
            stage_of(i, "decode", t, t + 5),
            stage_of(i, "infer", t + 5, t + 15),
        ]
        j = i + 1000
        spans += [
            frame_of(j, t + 3, t + 13, "cam1", service="other"),
            stage_of(j, "read", t + 3, t + 6, service="other"),
            stage_of(j, "send", t + 6, t + 18, service="process-b"),
        ]
    return spans


def expected(spans: list[One]) -> dict[tuple[str, str, int], Row]:
    rows = {}
    for f in spans:
        if f.parent or f.name == "sample":
            continue
        mine = [s for s in spans if s.parent == f.span and s.trace == f.trace]
        begin, end = min(s.begin for s in [f, *mine]), max(s.end for s in [f, *mine])
        attributes = dict(f.attributes)
        rows[f.service, attributes["pipeline.name"], f.trace] = (
            attributes["frame.number"],
            0,
            START + begin * MS,
            START + end * MS,
            sorted((s.name, START + s.begin * MS, START + s.end * MS) for s in mine),
        )
    return rows


RUN = small_run()
RUN_SPANS = concatenate([decode_traces(span.body()) for span in RUN])


def copy(spans: Spans, rows: Iterable[int]) -> Spans:
    return take(spans, np.array(list(rows), np.int64))


@settings(max_examples=60, deadline=None)
@given(st.randoms(use_true_random=False), st.integers(1, 60), st.booleans())
def test_spans_in_any_order_and_any_blocks(chance: random.Random, blocks: int, repeats: bool) -> None:
    order = list(range(len(RUN)))
    if repeats:  # an exporter that tried again
        order += chance.sample(order, len(order) // 3)
    chance.shuffle(order)
    cuts = sorted(chance.sample(range(len(order)), min(blocks, len(order) - 1)))
    pieces = [order[a:b] for a, b in zip([0, *cuts], [*cuts, len(order)], strict=True)]
    state = Aligner(lateness_ns=10**10)
    aligned = feed((concatenate([copy(RUN_SPANS, [i]) for i in piece]) for piece in pieces if piece), state)
    assert table(aligned) == expected(RUN)
    assert state.assembly.late == state.assembly.orphaned == state.assembly.invalid == 0


def test_in_order_frames_come_out_as_event_time_passes_them() -> None:
    state = Aligner()
    out = []
    run = small_run(150)
    for span in sorted(run, key=lambda s: s.end):
        out += align(state, decode_traces(span.body()))
        given_out = [int(f.frames.end.max()) for f in out]
        assert max(given_out, default=0) <= state.assembly.watermark - LATE_NS
    assert 0 < len(table(out)) < len(expected(run))
    assert table(out + close(state)) == expected(run)


def test_what_comes_too_late_is_counted() -> None:
    state = Aligner()
    spans = [frame_of(0, 0, 10), stage_of(0, "decode", 0, 5), frame_of(1, 3000, 3010)]
    later = [stage_of(0, "infer", 5, 10), frame_of(0, 0, 10), stage_of(77, "lost", 3000, 3005)]
    found = table(feed((s.body() for s in spans + later), state))
    assert set(found) == {("app", "cam0", 1), ("app", "cam0", 2)}
    assert found["app", "cam0", 1] == expected(spans)["app", "cam0", 1]
    assert (state.assembly.late, state.assembly.repeated, state.assembly.orphaned) == (1, 1, 1)


def test_a_stage_waits_for_its_frame_half_a_minute() -> None:
    state = Aligner()
    feed([stage_of(0, "decode", 0, 5).body(), frame_of(1, 20_000, 20_010).body()], state, whole=False)
    assert state.assembly.orphaned == 0
    feed([frame_of(2, 31_000, 31_010).body()], state, whole=False)
    assert state.assembly.orphaned == 1


def test_a_frame_that_never_ends_is_no_frame() -> None:
    """Its span is never sent; its stages wait, and are counted when they are given up."""
    state = Aligner()
    spans = [stage_of(0, "decode", 0, 5), *(frame_of(i, i * 1000, i * 1000 + 10) for i in range(1, 60))]
    assert len(table(feed((s.body() for s in spans), state))) == 59
    assert state.assembly.orphaned == 1


def test_children_of_stages_and_of_other_roots_do_not_wait() -> None:
    """An app's nested spans are no stages; thirty seconds of them would be much to carry along."""
    state = Aligner()
    nested = One("sql", 1, 5000, 1, 2, parent=stage_of(0, "decode", 0, 5).span)
    web = One("GET /", 900, 900, 0, 5)
    handler = One("handler", 900, 901, 1, 4, parent=900)
    spans = [stage_of(0, "decode", 0, 5), nested, handler, web]
    feed([b"".join(s.body() for s in spans)], state, whole=False)
    assert state.assembly.waiting is not None
    assert len(state.assembly.waiting) == 1
    assert table(feed([frame_of(0, 0, 5).body()], state)) == expected([frame_of(0, 0, 5), spans[0]])


def test_times_without_sense_are_left_out_and_counted() -> None:
    state = Aligner()
    spans = [
        frame_of(0, 0, 10),
        replace(frame_of(1, 0, 0), begin=-START // MS),  # no begin
        frame_of(2, 50, 40),  # ends before it begins
        stage_of(0, "decode", 5, 3),
    ]
    assert table(feed((s.body() for s in spans), state)) == expected(spans[:1])
    assert state.assembly.invalid == 3


def test_a_plain_app_without_our_attributes() -> None:
    """Stages have the names of their spans, the outcome is the status, there is no number."""
    root = One("job", 1, 1, 0, 10, attributes=(("pipeline.name", "jobs"),))
    child = One("resize", 1, 2, 2, 6, parent=1)
    (block,) = feed([root.body() + child.body()])
    f = block.frames
    assert (f.pipeline, f.number.tolist(), f.outcome.tolist(), f.stage_names) == (
        "jobs",
        [-1],
        [0],
        ["resize"],
    )


# -- clocks -------------------------------------------------------------------------------------


def ours(offset: int = 5 * 10**17) -> tuple[tuple[str, Any], ...]:
    return ((CLOCK_ATTRIBUTE, offset),)


def clock_of(at: int, wall_offset_ms: int, offset: int = 5 * 10**17) -> One:
    return One(
        "clock",
        7,
        10**6 + at,
        at,
        at,
        attributes=((contract.CLOCK_WALL_OFFSET, wall_offset_ms * MS),),
        resource=ours(offset),
    )


def begins(aligned: list[Aligned]) -> dict[int, int]:
    """Number: begin in ms from START."""
    return {
        int(n): int(b - START) // MS
        for block in aligned
        for n, b in zip(block.frames.number, block.frames.begin, strict=True)
    }


@pytest.mark.parametrize("together", [False, True])
def test_foreign_spans_are_shifted_by_the_last_wall_offset_before_them(together: bool) -> None:
    spans = [
        clock_of(0, 200),
        frame_of(0, 1200, 1210),  # wall time: 1000 on the time base
        frame_of(1, 1000, 1010, resource=ours()),
        clock_of(1500, -3000),  # the wall clock was stepped back
        frame_of(2, -1000, -990),
        frame_of(3, 2000, 2010, resource=ours()),
    ]
    bodies = [s.body() for s in spans]
    found = begins(feed([b"".join(bodies)] if together else bodies))
    assert found == {0: 1000, 1: 1000, 2: 2000, 3: 2000}


def test_two_time_bases_of_ours_are_put_on_the_first() -> None:
    """A container that could not see the host's anchor: its offset differs by 40 ms."""
    base = 5 * 10**17
    spans = [
        frame_of(0, 1000, 1010, resource=ours(base)),
        frame_of(1, 1040, 1050, resource=ours(base + 40 * MS)),
        frame_of(2, 1060, 1070, resource=ours(base + 40 * MS)),
    ]
    assert begins(feed(s.body() for s in spans)) == {0: 1000, 1: 1000, 2: 1020}


def test_a_time_base_that_is_zero() -> None:
    """A board without a clock counts Unix time from its boot."""
    spans = [frame_of(0, 10, 20, resource=ours(0)), frame_of(1, 10, 20, resource=ours(-5 * MS))]
    assert begins(feed(s.body() for s in spans)) == {0: 10, 1: 15}


def test_a_foreign_clock_far_ahead_does_not_end_others_frames() -> None:
    state = Aligner()
    spans = [
        clock_of(0, 0),
        frame_of(9, 3_600_000, 3_600_010, "broken"),
        stage_of(0, "decode", 0, 5, resource=ours()),
        frame_of(0, 0, 10, resource=ours()),
        stage_of(0, "infer", 5, 10, resource=ours()),
        *(sample_of(t, 100.0, resource=ours()) for t in range(-100, 1000, 50)),
    ]
    aligned = feed((s.body() for s in spans), state)
    (good,) = [a for a in aligned if a.frames.pipeline == "cam0"]
    assert len(good.frames.stage) == 2
    assert good.energy[0].energy == pytest.approx([1.0])


# -- readings -----------------------------------------------------------------------------------


def energies(spans: list[One], state: Aligner | None = None) -> dict[str, list[float]]:
    """Domain: joules of the frames in order of their number, NaN where there are none."""
    aligned = feed((s.body() for s in spans), state)
    numbers = sorted(n for block in aligned for n in block.frames.number.tolist())
    found: dict[str, dict[int, float]] = {
        d: dict.fromkeys(numbers, np.nan) for a in aligned for d in a.domains
    }
    for block in aligned:
        for domain, energy in zip(block.domains, block.energy, strict=True):
            found[domain] |= dict(zip(block.frames.number.tolist(), energy.energy.tolist(), strict=True))
    return {domain: list(rows.values()) for domain, rows in found.items()}


def steady(times: Iterable[int], watts: Any = 50.0, **more: Any) -> list[One]:
    return [sample_of(t, watts, **more) for t in times]


FRAMES = [frame_of(i, i * 1000 + 100, i * 1000 + 300) for i in range(5)]


def in_time(*spans: One) -> list[One]:
    return sorted(spans, key=lambda s: s.end)


def test_constant_power_is_exact() -> None:
    found = energies(in_time(*FRAMES, *steady(range(0, 5000, 50))))
    assert found == {"system": pytest.approx([10.0] * 5, rel=1e-12)}


def test_without_a_meter_frames_have_no_energy() -> None:
    aligned = feed(s.body() for s in FRAMES)
    assert len(table(aligned)) == 5
    assert all(not a.energy and encode_energy(a, {}) == b"" for a in aligned)


@pytest.mark.parametrize("watts", [1e300, -1e20, 1e12, float("inf"), float("nan")])
def test_what_no_meter_reads_is_no_reading(watts: float) -> None:
    """One garbled value spoils no other frame's figure."""
    times = list(range(0, 5000, 50))
    garbled = [sample_of(1225, watts)]
    (joules,) = energies(in_time(*FRAMES, *steady(times), *garbled)).values()
    assert np.array(joules) == pytest.approx(10.0)


def test_a_gap_in_the_readings_is_no_figure() -> None:
    times = [t for t in range(0, 5000, 50) if not 900 < t < 2050]
    (joules,) = energies(in_time(*FRAMES, *steady(times))).values()
    assert np.isnan(joules).tolist() == [False, True, False, False, False]  # frame 1 is in the gap
    assert np.array(joules)[[0, 2, 3, 4]] == pytest.approx(10.0)


def test_a_meter_that_dies_and_comes_back() -> None:
    """Frames wait for it only while it is alive."""
    state = Aligner()
    frames = [frame_of(i, i * 1000 + 100, i * 1000 + 300) for i in range(20)]
    times = [*range(0, 4000, 50), *range(12_000, 20_000, 50)]
    spans = in_time(
        *frames, *steady(times), *steady(range(0, 20_000, 50), 30.0, meter="n", attribute="hw.power.cpu")
    )
    found = energies(spans, state)
    assert found["cpu"] == pytest.approx([6.0] * 20)
    assert np.isnan(found["system"]).tolist() == [False] * 4 + [True] * 8 + [False] * 8


def test_a_counter_that_starts_anew_is_a_gap() -> None:
    counter = [
        sample_of(t, (t if t < 2000 else t - 2000) * 0.05, attribute="hw.energy.package")
        for t in range(0, 5000, 50)
    ]
    frames = [frame_of(i, i * 250 + 60, i * 250 + 240) for i in range(18)]
    spans = in_time(*frames, *counter)
    (joules,) = energies(spans).values()
    over = [f.begin < 2000 and f.end > 1950 for f in frames]
    assert np.isnan(joules).tolist() == over
    assert [j for j, o in zip(joules, over, strict=True) if not o] == pytest.approx([9.0] * (18 - sum(over)))
    half = np.concatenate([a.energy[0].uncertainty for a in feed(s.body() for s in spans) if a.energy])
    assert np.nanmax(half) < 9.0  # the fall by 100 J is no power that varies


def test_two_meters_of_one_domain_keep_their_names() -> None:
    """The second one's name is the same even where only it covers a frame."""
    first, second = steady(range(0, 2500, 50), 50.0), steady(range(25, 5000, 50), 60.0, meter="n")
    found = energies(in_time(*FRAMES, *first, *second))
    assert set(found) == {"system", "system@n"}
    assert found["system@n"] == pytest.approx([12.0] * 5)
    assert found["system"][:3] == pytest.approx([10.0] * 3)
    assert all(np.isnan(found["system"][3:]))


def test_a_domain_given_as_power_and_as_counter_is_read_from_the_counter() -> None:
    both = [
        replace(s, attributes=(*s.attributes, ("hw.energy.system", s.begin * 0.07)))
        for s in steady(range(0, 5000, 50))
    ]
    assert energies(in_time(*FRAMES, *both)) == {"system": pytest.approx([14.0] * 5)}


def test_readings_late_and_out_of_order() -> None:
    state = Aligner()
    samples = steady(range(0, 5000, 50))
    chance = random.Random(2)
    by_arrival = sorted([*FRAMES, *samples, *samples[::7]], key=lambda s: s.end + chance.randrange(400))
    assert energies(by_arrival, state) == {"system": pytest.approx([10.0] * 5)}
    assert state.late_readings > 10
    series = state.readings["m", "system"]
    assert (np.diff(series.time) > 0).all()
    assert len(series) == 100


def test_a_power_that_comes_now_as_int_now_as_double() -> None:
    """As JavaScript's exporter sends 50 and 50.5."""
    samples = [sample_of(t, 50 if t % 100 else 50.0) for t in range(0, 5000, 50)]
    expected_joules = {"system": pytest.approx([10.0] * 5)}
    assert energies(in_time(*FRAMES, *samples)) == expected_joules
    assert (
        energies([replace(s) for s in in_time(*FRAMES, *samples, sample_of(77, "broken"))]) == expected_joules
    )


def test_lag_and_window_of_the_meter_are_taken_from_its_samples() -> None:
    """Power steps from 0 to 100 W at 2000 ms; the meter shows the mean of 40 ms, 30 ms late."""
    samples = []
    for t in range(0, 4000, 10):
        seen = np.clip((t - 30 - 2000) / 40, 0, 1) * 100.0
        declared = (("meter.lag_ns", 30 * MS), ("meter.window_ns", 40 * MS))
        sample = sample_of(t, float(seen))
        samples.append(replace(sample, attributes=(*sample.attributes, *declared)))
    frames = [frame_of(0, 1500, 2500), frame_of(1, 1000, 1900), frame_of(2, 2200, 2700)]
    (joules,) = energies(in_time(*frames, *samples)).values()
    assert joules == pytest.approx([50.0, 0.0, 50.0], abs=0.01)


# -- what others send -----------------------------------------------------------------------------

NAMES = st.sampled_from(
    [contract.FRAME, contract.SAMPLE, contract.CLOCK, contract.ENERGY, "decode", ""]
)  # fmt: skip
KEYS = st.sampled_from(
    [
        *(contract.PIPELINE_NAME, contract.PIPELINE_STAGE, contract.FRAME_NUMBER, contract.FRAME_OUTCOME),
        *(contract.FIRST_MARK, contract.HW_ID, contract.METER_LAG, contract.METER_WINDOW),
        *(contract.CLOCK_WALL_OFFSET, "hw.power.system", "hw.energy.cpu", "hw.power.", "hw.power.rail.X"),
    ]
)
ANY = st.one_of(
    st.builds(AnyValue, string_value=st.sampled_from(["", "junk", "true", "completed", "nan"])),
    st.builds(AnyValue, bool_value=st.booleans()),
    st.builds(AnyValue, int_value=st.sampled_from([0, -1, 5, 2**63 - 1, -(2**63)])),
    st.builds(AnyValue, double_value=st.floats()),
    st.builds(AnyValue, bytes_value=st.just(b"x")),
    st.just(AnyValue(array_value=ArrayValue(values=[AnyValue(int_value=1)]))),
    st.just(AnyValue()),
)
PAIRS = st.lists(st.builds(KeyValue, key=KEYS, value=ANY), max_size=5)
MOMENTS = st.one_of(
    st.integers(START - 10**9, START + 6 * 10**9), st.sampled_from([0, 1, 2**63 - 1, 2**63, 2**64 - 1])
)
IDS8 = st.integers(1, 4).map(lambda i: i.to_bytes(8, "big"))
JUNK = st.builds(
    Span,
    trace_id=st.integers(10**6, 10**6 + 3).map(lambda i: i.to_bytes(8, "big") * 2),
    span_id=IDS8,
    parent_span_id=st.one_of(st.just(b""), IDS8),
    name=NAMES,
    start_time_unix_nano=MOMENTS,
    end_time_unix_nano=MOMENTS,
    attributes=PAIRS,
)
RESOURCES = st.lists(
    st.builds(KeyValue, key=st.sampled_from(["service.name", contract.SIMULATED]), value=ANY), max_size=3
)


def junk_request(spans: list[Span], resource: list[KeyValue]) -> bytes:
    request = ExportTraceServiceRequest()
    group = request.resource_spans.add()
    group.resource.attributes.extend(resource)
    group.scope_spans.add().spans.extend(spans)
    return request.SerializeToString()


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.builds(junk_request, st.lists(JUNK, max_size=6), RESOURCES), max_size=8),
    st.integers(0, 10**6),
)
def test_nonsense_of_others_changes_nothing_of_ours(junk: list[bytes], seed: int) -> None:
    mine = [
        replace(s, resource=ours(), service="mine").body()
        for s in in_time(*FRAMES, *steady(range(0, 5000, 50)))
    ]
    good = [b"".join(mine[i : i + 6]) for i in range(0, len(mine), 6)]
    bodies = [clock_of(0, 0).body(), *good]
    chance = random.Random(seed)
    for body in junk:
        bodies.insert(chance.randrange(1, len(bodies) + 1), body)
    aligned = feed(bodies)
    joules = []
    for block in aligned:
        encode_energy(block, {})
        if block.frames.service == "mine":
            (energy,) = [e for e in block.energy if e.meter == "m" and e.domain == "system"]
            joules += energy.energy.tolist()
    assert joules == pytest.approx([10.0] * 5)


# -- energy beside the truth ----------------------------------------------------------------------

STAGES = (
    power.Stage("decode", 60.0, 0.002, spread=0.1),
    power.Stage("infer", 220.0, 0.006, spread=0.1),
    power.Stage("display", 110.0, 0.003, spread=0.1),
)
LOAD = power.Load(STAGES, fps=60.0, duration_s=20.0)
OVERLAPPING = replace(
    LOAD,
    stages=(power.Stage("read", 40.0, 0.01, spread=0.3), power.Stage("infer", 150.0, 0.014, spread=0.3)),
    start_spread=0.8,
    background=power.Background(60.0, switch_w=30.0),
    drop=0.1,
)
JITTER = {"round_trip_s": 0.0004, "round_trip_jitter_s": 0.0005}
METERS = {
    "power, 20 Hz": power.Meter(rate_hz=20.0, lag_s=0.004, noise=0.2, **JITTER),
    "power, 100 Hz": power.Meter(rate_hz=100.0, lag_s=0.002, noise=0.2, **JITTER),
    "power, 1 kHz": power.Meter(rate_hz=1000.0, noise=0.5, round_trip_s=0.0002),
    "counter, 20 Hz": power.Meter(rate_hz=20.0, kind="energy", quantum=6.1e-5, **JITTER),
    "counter, 100 Hz": power.Meter(rate_hz=100.0, kind="energy", quantum=6.1e-5, **JITTER),
    "counter, 1 kHz": power.Meter(rate_hz=1000.0, kind="energy", quantum=6.1e-5, round_trip_s=0.0002),
}


def bodies_of(load: power.Load, meter: power.Meter, seed: int) -> tuple[power.Truth, list[bytes]]:
    rng = np.random.default_rng(seed)
    truth = power.simulate(load, rng)
    readings = power.measure(truth, meter, rng)
    return truth, list(power.requests([truth.frames], [readings], [meter]))


def true_joules(truth: power.Truth, frames: Frames) -> np.ndarray[Any, Any]:
    return truth.energy(power.seconds(frames.begin), power.seconds(frames.end))


@pytest.mark.parametrize("load", [LOAD, OVERLAPPING], ids=["in turn", "overlapping"])
@pytest.mark.parametrize("name", METERS)
def test_the_interval_holds_the_truth(name: str, load: power.Load) -> None:
    inside = []
    error = []
    for seed in range(3):
        truth, bodies = bodies_of(load, METERS[name], seed)
        aligned = feed(bodies)
        assert sum(len(a.frames) for a in aligned) == len(truth.frames)
        for block in aligned:
            for energy in block.energy:  # the last frames may lie past the last reading and have none
                known = np.isfinite(energy.energy)
                off = energy.energy[known] - true_joules(truth, block.frames)[known]
                inside += (np.abs(off) <= energy.uncertainty[known]).tolist()
                error += off.tolist()
    assert len(inside) > 3000
    assert np.mean(inside) >= 0.93
    mean = np.mean([true_joules(truth, a.frames).mean() for a in aligned])
    assert abs(np.mean(error)) < 0.35 * mean  # interpolation smears, but makes nothing of nothing


@pytest.mark.parametrize("name", METERS)
def test_live_in_any_blocks_equals_offline(name: str, tmp_path: Path) -> None:
    truth, bodies = bodies_of(OVERLAPPING, METERS[name], 5)
    path = tmp_path / "traces.otlp"
    pack = compressor()
    path.write_bytes(b"".join(frame(body, pack) for body in bodies))
    faults: list[Fault] = []
    (run,) = load_runs(Session(tmp_path, None, [path], []), faults)
    assert not faults
    assert len(run.frames) == len(truth.frames)
    spans = decode_traces(b"".join(bodies))
    chance = random.Random(name)
    cuts = [0, *sorted(chance.sample(range(1, len(spans)), 150)), len(spans)]
    state = Aligner()
    live = feed((copy(spans, range(a, b)) for a, b in zip(cuts, cuts[1:], strict=False)), state)  # noqa: RUF007
    trace = np.concatenate([a.frames.trace[:, 0] for a in live])
    place = np.argsort(trace)
    same = np.argsort(run.frames.trace[:, 0])
    assert (trace[place] == run.frames.trace[same, 0]).all()
    found = np.concatenate([a.energy[0].energy if a.energy else np.full(len(a.frames), np.nan) for a in live])
    half = np.concatenate(
        [a.energy[0].uncertainty if a.energy else np.full(len(a.frames), np.nan) for a in live]
    )
    np.testing.assert_allclose(found[place], run.energy[0].energy[same], rtol=1e-9)
    begun = run.readings[0].time[min(2 * LOOK_BACK, len(run.readings[0]) // 2)]
    late = (run.frames.begin[same] > begun) & (np.arange(len(same)) > 0)
    late &= run.frames.end[same] > np.sort(run.frames.end)[70]  # the first frames look at what is there
    np.testing.assert_allclose(half[place][late], run.energy[0].uncertainty[same][late], rtol=1e-6)


def test_missed_and_late_replies() -> None:
    meter = replace(METERS["power, 100 Hz"], missed=0.05, late=0.05, late_s=0.03)
    truth, bodies = bodies_of(LOAD, meter, 8)
    inside = []
    for block in feed(bodies):
        off = block.energy[0].energy - true_joules(truth, block.frames)
        known = np.isfinite(off)
        inside += (np.abs(off[known]) <= block.energy[0].uncertainty[known]).tolist()
    assert np.mean(inside) >= 0.93


# -- over a long time -----------------------------------------------------------------------------


def state_size(state: Aligner) -> int:
    waiting = state.assembly.waiting
    return (
        sum(len(r) for r in state.readings.values())
        + (len(waiting) + len(waiting.names) + len(waiting.resources) if waiting is not None else 0)
        + len(state.assembly.done)
        + sum(len(f) for f in state.waiting)
    )


def second(i: int) -> bytes:
    """The second `i` of 100 fps at 20 Hz, with a span and a resource whose names were never seen before."""
    numbers = np.arange(100 * i, 100 * i + 100, dtype=np.uint64) + np.uint64(1)
    begin = START + i * 1000 * MS + np.arange(100) * 10 * MS
    trace = np.stack([numbers, numbers], axis=1)
    frames = SpanBatch("frame", trace, numbers, begin, begin + 5 * MS, attributes={"pipeline.name": "cam0"})
    stages = SpanBatch("work", trace, numbers + np.uint64(1 << 32), begin, begin + 5 * MS, numbers)
    times = START + i * 1000 * MS + np.arange(20) * 50 * MS
    ids = np.arange(20, dtype=np.uint64) + np.uint64(1)
    attributes = {"hw.id": "m", "hw.power.system": 50.0}
    samples = SpanBatch("sample", np.stack([ids, ids], axis=1), ids, times, times, attributes=attributes)
    odd = One(f"GET /{i}", 10**7 + i, 5, i * 1000, i * 1000, parent=9, service=f"pod-{i}")
    return encode_request({}, [frames, stages, samples]) + odd.body()


def test_state_does_not_grow_with_the_run() -> None:
    """Ten minutes, ten times as long as anything is remembered but for what the last minute needs."""
    state = Aligner(keep_ns=10 * 10**9)
    sizes, memory = [], []
    tracemalloc.start()
    try:
        for minute in range(10):
            for i in range(60 * minute, 60 * minute + 60):
                for block in feed([second(i)], state, whole=False):
                    assert len(block.energy) == 1
            sizes.append(state_size(state))
            memory.append(tracemalloc.get_traced_memory()[0])
    finally:
        tracemalloc.stop()
    assert max(sizes[5:]) <= 1.2 * max(sizes[:5])
    assert min(memory[7:]) < 1.2 * max(memory[1:4])


# -- energy spans ---------------------------------------------------------------------------------


def energy_spans(aligned: Aligned) -> Spans:
    return decode_traces(encode_energy(aligned, {"service.name": "test"}), links=True)


def test_energy_spans_keep_the_contract() -> None:
    meters = [
        power.Meter(rate_hz=200.0, domain="system"),
        power.Meter(rate_hz=20.0, kind="energy", name="rapl", domain="package-0"),
    ]
    rng = np.random.default_rng(1)
    truth = power.simulate(
        replace(LOAD, duration_s=3.0, fps=10.0, stages=(power.Stage("work", 100.0, 0.3),)), rng
    )
    readings = [power.measure(truth, meter, rng) for meter in meters]
    covered = readings[1].time < truth.frames.end[20]
    readings[1] = replace(
        readings[1],
        **{c: getattr(readings[1], c)[covered] for c in ("time", "uncertainty", "value", "trace", "span")},
    )
    patient = Aligner(lateness_ns=10**11)
    (block,) = feed([b"".join(power.requests([truth.frames], readings, meters))], patient)
    spans = energy_spans(block)
    f = block.frames
    assert [spans.names[i] for i in set(spans.name.tolist())] == ["energy"]
    assert spans.resources == [{"service.name": "test", "benchlab.simulated": True}]
    known = {
        d: np.flatnonzero(np.isfinite(e.energy)) for d, e in zip(block.domains, block.energy, strict=True)
    }
    assert len(known["package-0"]) < len(known["system"]) == len(f) == len(spans)
    place = {trace: row for row, trace in enumerate(f.trace[:, 0].tolist())}
    frame_row = np.array([place[trace] for trace in spans.trace[:, 0].tolist()])  # of each energy span
    for own, frames in (
        (spans.trace, f.trace),
        (spans.parent, f.span),
        (spans.start, f.begin),
        (spans.end, f.end),
    ):
        assert (own == frames[frame_row]).all()
    for domain, energy in zip(block.domains, block.energy, strict=True):
        rows = known[domain]
        for name, values in (
            (f"energy.{domain}_j", energy.energy),
            (f"energy.{domain}_uncertainty_j", energy.uncertainty),
            (f"power.{domain}_mean_w", energy.energy / ((f.end - f.begin) / 1e9)),
        ):
            column = spans.attributes[name]
            here = frame_row[column.rows]
            assert sorted(here) == rows.tolist()  # absent, not zero, where the meter did not cover it
            assert column.values == pytest.approx(values[here], rel=1e-12)
        assert set(spans.attributes[f"energy.{domain}.method"].values) == {"interpolated"}
    for row, own in enumerate(frame_row.tolist()):
        check_links([tuple(link) for link in spans.links[row].tolist()], block, own)


def check_links(links: list[tuple[int, ...]], block: Aligned, row: int) -> None:
    """The links of the frame `row`: of each meter the first and last reading used, 32 in all."""
    assert 2 <= len(links) <= 32
    assert len(set(links)) == len(links)
    for energy, readings in zip(block.energy, block.readings, strict=True):
        if energy.first[row] < 0:
            continue
        rows = range(energy.first[row], energy.last[row] + 1)
        used = [(*readings.trace[k].tolist(), int(readings.span[k])) for k in rows]
        mine = [link for link in links if link in used]
        assert mine[0] == used[0]
        assert mine[-1] == used[-1]


def test_many_meters_share_the_links() -> None:
    samples = [
        s for k in range(20) for s in steady(range(k, 5000, 50), meter=f"m{k}", attribute=f"hw.power.d{k}")
    ]
    for block in feed(s.body() for s in in_time(*FRAMES, *samples)):
        spans = energy_spans(block)
        assert len(block.energy) == 20
        assert {len(spans.links[row]) for row in range(len(spans))} == {32}


def test_frames_with_energy_are_those_that_get_a_span() -> None:
    late = steady(range(2500, 5000, 50))
    blocks = list(feed(s.body() for s in in_time(*FRAMES, *late)))
    spans = sum(len(energy_spans(x)) for x in blocks if encode_energy(x, {}))
    counted = sum(int(has_energy(x).sum()) for x in blocks)
    assert 0 < counted == spans < sum(len(x.frames) for x in blocks)


def test_ids_follow_from_the_trace() -> None:
    truth, bodies = bodies_of(replace(LOAD, duration_s=2.0), METERS["power, 20 Hz"], 3)
    a, b = (np.concatenate([energy_spans(x).span for x in feed(bodies)]) for _ in range(2))
    assert (a == b).all()
    assert len(np.unique(a)) == len(a)
    assert not np.isin(a, truth.frames.span).any()


def test_the_command_gives_the_same_bytes_twice(tmp_path: Path) -> None:
    _, bodies = bodies_of(OVERLAPPING, METERS["power, 20 Hz"], 4)
    pack = compressor()
    source = tmp_path / "traces.otlp"
    source.write_bytes(b"".join(frame(body, pack) for body in bodies))
    out = [tmp_path / "1.otlp", tmp_path / "2.otlp"]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("BENCHLAB_OTEL_")}
    for path in out:
        program = [sys.executable, "-c", "from benchlab_otel.cli import main; main()"]
        done = subprocess.run(
            [*program, "align", str(source), "--out", str(path)],
            capture_output=True,
            text=True,
            timeout=60,
            env=environment | {"PYTHONHASHSEED": str(len(str(path)) + out.index(path))},
        )
        assert done.returncode == 0, done.stderr
        assert "1,200 of 1,200 frames with energy" in done.stdout
    assert out[0].read_bytes() == out[1].read_bytes() != b""


# -- which frame a stage is of ------------------------------------------------------------------


@given(st.lists(st.integers(0, 400), unique=True, max_size=200), st.lists(st.integers(0, 400)), st.booleans())
def test_each_stage_finds_its_frame(frames: list[int], stages: list[int], in_order: bool) -> None:
    """Whether they come in the order of their frames, as mostly, or in any."""
    wanted = [*frames, *frames[3:], *stages] if in_order else stages
    found = _owners(np.array(wanted, np.uint64), np.array(frames, np.uint64))
    assert found.tolist() == [frames.index(key) if key in frames else -1 for key in wanted]
