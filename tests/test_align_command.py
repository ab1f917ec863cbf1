"""Simulated archives through the whole `align` command: its energy spans beside the simulator's truth."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from benchlab_otel.archive.reader import read_spans
from benchlab_otel.archive.records import compressor, frame
from benchlab_otel.model import Float
from benchlab_otel.otlp.decode import concatenate
from benchlab_otel.simulate import power

SECONDS = 60.0


def stages(*lengths: float) -> tuple[power.Stage, ...]:
    named = zip(("decode", "infer", "encode"), (60.0, 220.0, 110.0), lengths, strict=True)
    return tuple(power.Stage(name, watts, length, 0.35, 0.1) for name, watts, length in named)


SERIAL = power.Load(stages(0.002, 0.006, 0.003), duration_s=SECONDS)
OVERLAPPING = power.Load(
    stages(0.006, 0.010, 0.006),
    duration_s=SECONDS,
    background=power.Background(95.0, switch_w=30.0),
    drop=0.05,
)
TRIP = {"round_trip_s": 0.0005, "round_trip_jitter_s": 0.0005}


@dataclass
class Told:
    """Mean absolute error over the mean of `joules`, by both methods, and how often intervals held."""

    conditioned: float
    interpolated: float
    held: float
    share: float  # of the frames that have energy


def told(tmp_path: Path, load: power.Load, meter: power.Meter, seed: int) -> Told:
    """Writes the archive, runs the command, reads what it wrote."""
    rng = np.random.default_rng(seed)
    truth = power.simulate(load, rng)
    readings = power.measure(truth, meter, rng)
    pack, archive, out = compressor(), tmp_path / "traces.otlp", tmp_path / "energy.otlp"
    bodies = power.requests([truth.frames], [readings], [meter], 0.4)
    archive.write_bytes(b"".join(frame(body, pack) for body in bodies))
    program = [sys.executable, "-m", "benchlab_otel", "align", str(archive), "--out", str(out)]
    done = subprocess.run(program, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    faults: list = []
    spans = concatenate(list(read_spans([out], faults)))
    assert not faults
    place = {trace: row for row, trace in enumerate(truth.frames.trace[:, 0].tolist())}
    rows = np.array([place[trace] for trace in spans.trace[:, 0].tolist()])
    right = power.frame_truth(truth, 0.0, load.duration_s).energy

    def column(name: str) -> tuple[Float, Float]:
        """Values, and the truth beside them."""
        found = spans.attributes[name]
        return found.values, right[rows[found.rows]]

    joules, true = column("energy.system_j")
    half, _ = column("energy.system_uncertainty_j")
    plain, beside = column("energy.system_interpolated_j")
    return Told(
        conditioned=float(np.abs(joules - true).mean() / true.mean()),
        interpolated=float(np.abs(plain - beside).mean() / beside.mean()),
        held=float(np.mean(np.abs(joules - true) <= half)),
        share=len(joules) / len(right),
    )


@pytest.mark.parametrize(
    ("load", "meter", "most"),
    [
        (SERIAL, power.Meter(lag_s=0.015, noise=0.1, known=False, **TRIP), 0.04),
        (SERIAL, power.Meter(kernel="instantaneous", rate_hz=100.0, noise=0.1, **TRIP), 0.04),
        (SERIAL, power.Meter(rate_hz=100.0, kind="energy", quantum=2.0**-14, wrap_j=700.0, **TRIP), 0.018),
        (SERIAL, power.Meter(rate_hz=100.0, refresh_hz=20.0, width_s=0.05, noise=0.1, **TRIP), 0.05),
        (SERIAL, power.Meter(noise=0.1, missed=0.05, late=0.05, late_s=0.03, **TRIP), 0.045),
        (OVERLAPPING, power.Meter(noise=0.1, **TRIP), 0.045),
    ],
    ids=[
        "unknown window",
        "instantaneous",
        "wrapping counter",
        "slow refresh",
        "missed and late",
        "overlapping",
    ],
)
def test_joules_of_an_archive(load: power.Load, meter: power.Meter, most: float, tmp_path: Path) -> None:
    found = [told(tmp_path, load, meter, seed) for seed in range(2)]
    assert np.mean([f.conditioned for f in found]) < most
    assert all(f.conditioned < f.interpolated for f in found)
    assert np.mean([f.held for f in found]) >= 0.9
    assert min(f.share for f in found) > 0.95


def test_a_sparse_session_of_many_segments_keeps_its_readings(tmp_path: Path) -> None:
    """An hour and a half in one block of spans, and a segment is a quarter of an hour."""
    slow = tuple(power.Stage(s.name, s.watts, 100 * s.length_s, 0.35, 0.1) for s in SERIAL.stages)
    load = power.Load(slow, fps=0.5, duration_s=5400.0)
    found = told(tmp_path, load, power.Meter(rate_hz=2.0, noise=0.1, **TRIP), 0)
    assert found.share > 0.99
    assert found.conditioned < 0.6 * found.interpolated
    assert found.held >= 0.9
