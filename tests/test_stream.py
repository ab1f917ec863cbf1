"""Whole sessions as a stream: every frame and every reading once, however long the session is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import zstandard

from benchlab_otel.align.segments import SEGMENT_NS
from benchlab_otel.archive.records import Fault, frame
from benchlab_otel.archive.session import open_session
from benchlab_otel.export.recording import load_conditioned_runs
from benchlab_otel.export.stream import stream
from benchlab_otel.model import Readings
from benchlab_otel.simulate.power import Load, Meter, Stage, measure, requests, simulate


@pytest.mark.parametrize(("fps", "rate_hz", "stretches"), [(2.0, 2.0, 1), (15.0, 5.0, 3)])
def test_a_session_of_several_segments(fps: float, rate_hz: float, stretches: int, tmp_path: Path) -> None:
    """The same frames and energies as read at once, and readings that don't all wait for the end.

    The slow one is read in blocks that are longer than a segment.
    """
    rng = np.random.default_rng(3)
    load = Load((Stage("work", 200.0, 0.02),), fps=fps, duration_s=2.4 * SEGMENT_NS / 1e9)
    truth, meter = simulate(load, rng), Meter(rate_hz=rate_hz, noise=0.2)
    readings = measure(truth, meter, rng)
    bodies = requests([truth.frames], [readings], [meter], 60.0)
    compressor = zstandard.ZstdCompressor()
    (tmp_path / "traces.otlp").write_bytes(b"".join(frame(body, compressor) for body in bodies))
    session, faults = open_session(str(tmp_path / "traces.otlp"), tmp_path), list[Fault]()
    parts = list(stream(session, faults))
    assert faults == []
    times = np.concatenate([part.time for part in parts if isinstance(part, Readings)])
    assert np.array_equal(times, readings.time)
    blocks = [part for part in parts if not isinstance(part, Readings)]
    assert len(parts) - len(blocks) >= stretches
    assert np.array_equal(np.concatenate([b.frames.number for b in blocks]), truth.frames.number)
    (run,) = load_conditioned_runs(session, faults)
    conditioned = [b.conditioned[0].energy for b in blocks if b.conditioned and b.conditioned[0] is not None]
    assert np.array_equal(np.concatenate(conditioned), run.energy[1].energy, equal_nan=True)
