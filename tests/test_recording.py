"""Sessions read back: the same run however its spans are spread over files and blocks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import zstandard

from benchlab_otel.align.aligner import part
from benchlab_otel.align.readings import slice_of
from benchlab_otel.align.segments import SEGMENT_NS
from benchlab_otel.archive.records import Fault, frame
from benchlab_otel.archive.session import open_session
from benchlab_otel.export.recording import attributed, load, load_conditioned_runs, load_runs, of_run
from benchlab_otel.model import Run
from benchlab_otel.simulate.power import Load, Meter, Stage, measure, simulate
from benchlab_otel.simulate.power import requests as simulated
from frames_of import MS, make_run, requests


def test_one_file_and_many_give_the_same_run(tmp_path: Path) -> None:
    """The meter starts late and stands in the second file, as do the first frames with all stages."""
    whole = make_run(600, dropped=tuple(range(300)))
    meter = whole.readings[0]
    meter.time += 5_000 * MS  # covers only the second half
    compressor = zstandard.ZstdCompressor()

    def store(path: Path, *bodies: bytes) -> None:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"".join(frame(body, compressor) for body in bodies))

    thirds = [part(whole.frames, at, at + 200) for at in (0, 200, 400)]
    pieces = [requests(Run(frames, [meter] if i == 1 else [])) for i, frames in enumerate(thirds)]
    store(tmp_path / "one" / "a.otlp", *(body for bodies in pieces for body in bodies))
    for i, bodies in enumerate(pieces):
        store(tmp_path / "many" / f"{i}.otlp", *bodies)
    faults: list[Fault] = []
    (one,) = load_runs(open_session(str(tmp_path / "one"), tmp_path), faults)
    (many,) = load_runs(open_session(str(tmp_path / "many"), tmp_path), faults)
    assert faults == []
    for run in (one, many):
        f = run.frames
        assert (f.end == whole.frames.end).all()
        assert (f.number == whole.frames.number).all()
        assert [f.stage_names[s] for s in f.stage] == [
            whole.frames.stage_names[s] for s in whole.frames.stage
        ]
        assert (f.stage_end == whole.frames.stage_end).all()
        assert (f.stage_frame == whole.frames.stage_frame).all()
    (a,), (b,) = one.energy, many.energy
    covered = np.isfinite(a.energy)
    assert 0 < covered.sum() < 600
    assert (np.isfinite(b.energy) == covered).all()
    assert a.energy[covered] == pytest.approx(b.energy[covered], rel=1e-12)
    assert (a.first == b.first).all()


def test_both_methods_stand_beside_each_other(tmp_path: Path) -> None:
    """Two pipelines that share a meter are attributed together; each run gets its own rows."""
    rng = np.random.default_rng(5)
    stages = (Stage("decode", 60.0, 0.002), Stage("infer", 220.0, 0.006))
    truth = simulate(Load(stages, duration_s=20, name="cam0"), rng)
    meter = Meter(noise=0.2)
    other = part(truth.frames, 100, 200)
    other.pipeline, other.trace = "late", other.trace + np.uint64(1)
    bodies = simulated([truth.frames, other], [measure(truth, meter, rng)], [meter])
    compressor = zstandard.ZstdCompressor()
    (tmp_path / "traces.otlp").write_bytes(b"".join(frame(body, compressor) for body in bodies))
    faults: list[Fault] = []
    recording = load(open_session(str(tmp_path / "traces.otlp"), tmp_path), faults)
    assert faults == []
    assert [run.frames.pipeline for run in recording.runs] == ["cam0", "late"]
    assert [a.domain for a in recording.attributions] == ["system"]
    for i, run in enumerate(recording.runs):
        assert [e.method for e in run.energy] == ["interpolated", "conditioned"]
        ((_, energy),) = of_run(recording, i)
        assert energy.pipeline == run.frames.pipeline
        assert run.energy[1].energy is energy.energy
        assert len(energy.energy) == len(run.frames)


def test_a_meter_that_says_nothing_of_a_run_adds_nothing() -> None:
    run = make_run(60)
    run.readings = [slice_of(run.readings[0], 0, 3)]
    recording = attributed([run])
    assert [e.method for e in run.energy] == ["interpolated"]
    assert recording.attributions[0].reason
    assert attributed([]).attributions == []


def test_a_session_of_several_segments_gives_every_frame_once(tmp_path: Path) -> None:
    """Conditioned at the seams too, as if the session had been attributed whole; rows of all readings."""
    rng = np.random.default_rng(7)
    stages = (Stage("decode", 60.0, 0.01), Stage("infer", 220.0, 0.03))
    seconds = 2.4 * SEGMENT_NS / 1e9
    truth = simulate(Load(stages, fps=15.0, duration_s=seconds), rng)
    meter = Meter(rate_hz=5.0, noise=0.2)
    compressor = zstandard.ZstdCompressor()
    bodies = simulated([truth.frames], [measure(truth, meter, rng)], [meter], 60.0)
    (tmp_path / "traces.otlp").write_bytes(b"".join(frame(body, compressor) for body in bodies))
    session = open_session(str(tmp_path / "traces.otlp"), tmp_path)
    (cut,) = load_conditioned_runs(session, [])
    (whole,) = load(session, []).runs
    assert len(cut.frames) == len(truth.frames)
    assert np.array_equal(cut.frames.number, whole.frames.number)
    assert [e.method for e in cut.energy] == ["interpolated", "conditioned"]
    a, b = cut.energy[1], whole.energy[1]
    found = np.isfinite(a.energy)
    assert np.array_equal(found, np.isfinite(b.energy))
    assert found.mean() > 0.99
    assert (np.abs(a.energy - b.energy) <= np.hypot(a.uncertainty, b.uncertainty))[found].mean() > 0.99
    assert (a.energy != b.energy)[found].any()  # it was cut
    assert np.array_equal(a.first, b.first)
    assert np.array_equal(a.last, b.last)


def test_a_session_of_one_segment_has_the_same_energies_either_way(tmp_path: Path) -> None:
    rng = np.random.default_rng(8)
    truth = simulate(Load((Stage("work", 80.0, 0.005),), duration_s=20), rng)
    meter = Meter(noise=0.2)
    compressor = zstandard.ZstdCompressor()
    bodies = simulated([truth.frames], [measure(truth, meter, rng)], [meter])
    (tmp_path / "traces.otlp").write_bytes(b"".join(frame(body, compressor) for body in bodies))
    session = open_session(str(tmp_path / "traces.otlp"), tmp_path)
    (cut,), (whole,) = load_conditioned_runs(session, []), load(session, []).runs
    for a, b in zip(cut.energy, whole.energy, strict=True):
        assert a.method == b.method
        assert np.array_equal(a.energy, b.energy, equal_nan=True)
        assert np.array_equal(a.uncertainty, b.uncertainty, equal_nan=True)
        assert np.array_equal(a.first, b.first)
