"""Whole sessions as a stream: every frame and every reading once, however long the session is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import zstandard

from benchlab_otel.align.aligner import Aligned
from benchlab_otel.align.segments import SEGMENT_NS
from benchlab_otel.archive.records import Fault, frame
from benchlab_otel.archive.session import open_session
from benchlab_otel.export.recording import load_conditioned_runs
from benchlab_otel.export.stream import stream
from benchlab_otel.model import Float, Readings
from benchlab_otel.simulate.power import Load, Meter, Stage, measure, requests, simulate


@pytest.mark.parametrize(("fps", "rate_hz", "least"), [(2.0, 2.0, 1), (15.0, 5.0, 3)])
def test_a_session_of_several_segments(fps: float, rate_hz: float, least: int, tmp_path: Path) -> None:
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
    times, numbers, energies = [], [], []
    for part in stream(session, faults):
        if isinstance(part, Readings):
            times.append(part.time.copy())
            continue
        numbers.append(part.frames.number)
        energies.append(_conditioned(part))
    assert faults == []
    assert np.array_equal(np.concatenate(times), readings.time)
    assert len(times) >= least
    assert np.array_equal(np.concatenate(numbers), truth.frames.number)
    (run,) = load_conditioned_runs(session, faults)
    assert np.array_equal(np.concatenate(energies), run.energy[1].energy, equal_nan=True)


def _conditioned(block: Aligned) -> Float:
    found = block.conditioned[0] if block.conditioned else None
    return found.energy if found is not None else np.full(len(block.frames), np.nan)
