"""One frame from close by: found by number or trace, with the whole's figures and the right samples."""

from __future__ import annotations

import io
import itertools
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import zstandard
from rich.console import Console

from benchlab_otel.archive.records import Fault, frame
from benchlab_otel.archive.session import open_session
from benchlab_otel.export.explain import (
    Explained,
    Figure,
    FrameNotFound,
    explain,
    find_frames,
    render,
    trace_id,
)
from benchlab_otel.export.recording import Recording, load, of_run
from benchlab_otel.simulate.power import Load, Meter, Stage, measure, requests, simulate


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """12 s of a pipeline with a counter and a power meter, as an archive."""
    rng = np.random.default_rng(8)
    stages = (Stage("decode", 60.0, 0.002), Stage("infer", 220.0, 0.006))
    truth = simulate(Load(stages, duration_s=12), rng)
    meters = [
        Meter(noise=0.2, round_trip_s=0.001),
        Meter(name="rapl", domain="package-0", kind="energy", rate_hz=50.0),
    ]
    readings = [measure(truth, meter, rng) for meter in meters]
    compressor = zstandard.ZstdCompressor()
    path = tmp_path_factory.mktemp("session") / "traces.otlp"
    path.write_bytes(b"".join(frame(body, compressor) for body in requests([truth.frames], readings, meters)))
    return path


@pytest.fixture(scope="module")
def recording(session: Path) -> Recording:
    faults: list[Fault] = []
    return load(open_session(str(session), session.parent), faults)


def text(frame: Explained) -> str:
    out = io.StringIO()
    Console(file=out, width=80, highlight=False).print(render(frame))
    return out.getvalue()


def test_found_by_number_and_by_trace(recording: Recording) -> None:
    frames = recording.runs[0].frames
    ((run, row),) = find_frames(recording, "300")
    assert (run, frames.number[row]) == (0, 300)
    whole = trace_id(frames.trace[row])
    assert find_frames(recording, whole) == find_frames(recording, whole[:12].upper()) == [(run, row)]


def test_not_found_and_too_many(recording: Recording) -> None:
    with pytest.raises(FrameNotFound, match="no frame 99999; simulated has the numbers 0 to 719"):
        find_frames(recording, "99999")
    with pytest.raises(FrameNotFound, match=r"\d+ frames go by ; name one by its trace id: [0-9a-f]{32}, "):
        find_frames(recording, "")


def test_figures_are_those_of_the_whole_recording(recording: Recording) -> None:
    ((_, row),) = find_frames(recording, "300")
    one = explain(recording, 0, row)
    run = recording.runs[0]
    assert [s.name for s in one.stages] == ["decode", "infer"]
    assert sum(s.seconds for s in one.stages) == pytest.approx(one.seconds)  # one after the other
    for domain, (_, energy) in zip(one.domains, of_run(recording, 0), strict=True):
        assert domain.conditioned.joules == energy.energy[row]
        assert domain.shared.uncertainty == energy.shared_uncertainty[row]
        assert domain.interpolated.joules is not None
    system = [d.domain for d in one.domains].index("system")
    together = sum(s.energy[system].joules or 0.0 for s in one.stages)
    assert together == pytest.approx(one.domains[system].own.joules)
    assert one.since_first_s == pytest.approx((run.frames.begin[row] - run.frames.begin.min()) / 1e9)


def test_samples_surround_the_frame(recording: Recording) -> None:
    ((_, row),) = find_frames(recording, "300")
    one = explain(recording, 0, row)
    power, counter = sorted(one.meters, key=lambda m: m.meter)
    assert (power.domains, power.units) == (["system"], ["W"])
    assert (counter.domains, counter.units) == (["package-0"], ["J"])
    assert min(s.at_s for s in power.samples) < 0
    assert max(s.at_s for s in power.samples) > one.seconds
    assert any(s.window_begin_s < one.seconds and s.window_end_s > 0 for s in power.samples)
    for s in power.samples:
        assert s.window_end_s - s.window_begin_s == pytest.approx(0.05)  # as configured
        assert s.uncertainty_s == pytest.approx(0.0005, rel=0.01)
    edges = [(s.window_begin_s, s.window_end_s) for s in counter.samples]
    assert all(a[1] == pytest.approx(b[0]) for a, b in itertools.pairwise(edges))
    values = [v for s in counter.samples for v in s.values if v is not None]
    assert values == sorted(values)


def test_a_long_frame_leaves_out_the_middle(recording: Recording) -> None:
    run = recording.runs[0]
    ((_, row),) = find_frames(recording, "100")
    before = [(e, e.last[row]) for e in run.energy]
    try:
        for e in run.energy:
            e.last[row] += 100  # as if it had lasted 5 s
        one = explain(recording, 0, row)
    finally:
        for e, last in before:
            e.last[row] = last
    for meter in one.meters:
        assert len(meter.samples) == 16
        assert meter.left_out > 80
        assert f"… {meter.left_out} more" in text(one)


def test_a_frame_without_samples_says_so(recording: Recording) -> None:
    run = recording.runs[0]
    last = len(run.frames) - 1
    lost = [(e, e.first[last]) for e in run.energy]
    try:
        for e in run.energy:
            e.first[last] = -1
        shown = text(explain(recording, 0, last))
    finally:
        for e, first in lost:
            e.first[last] = first
    assert "none: the frame lies outside them or in a gap" in shown


def test_without_figures_no_unit_is_guessed(recording: Recording) -> None:
    """Not microjoules, which would say that there is hardly any energy."""
    found = explain(recording, 0, 0)
    nothing = Figure(None, None)
    domains = [
        replace(d, interpolated=nothing, conditioned=nothing, own=nothing, shared=nothing)
        for d in found.domains
    ]
    assert "Energy, J " in text(replace(found, domains=domains))


def test_as_a_command(session: Path) -> None:
    program = Path(sys.executable).with_name("benchlab-otel")

    def report(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [program, "report", session, "--explain", *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=120, env={"COLUMNS": "80"})

    shown = report("300").stdout
    assert "Frame 300 of simulated, completed" in shown
    assert max(map(len, shown.splitlines())) <= 80
    found = json.loads(report("300", "--json").stdout)
    assert found["frames"][0]["number"] == 300
    refused = report("99999")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr.startswith("benchlab-otel: no frame 99999; simulated has")
