"""Recorded sessions of small simulated pipelines, for tests of what is made of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from benchlab_otel.archive.session import Session, create, open_session
from benchlab_otel.export.recording import Recording, attributed
from benchlab_otel.model import Run
from benchlab_otel.simulate.power import Load, Meter, Stage, Truth, measure, requests, simulate
from benchlab_otel.timebase import anchor

METER = Meter(noise=0.2)


def truth_of(seed: int, seconds: float = 20, infer_w: float = 220.0, infer_s: float = 0.006) -> Truth:
    """60 fps; decode, infer and encode of 2, 6 and 3 ms ± 35 % draw 60, 220 and 110 W ± 10 % above base."""
    stages = (
        Stage("decode", 60.0, 0.002, 0.35, 0.1),
        Stage("infer", infer_w, infer_s, 0.35, 0.1),
        Stage("encode", 110.0, 0.003, 0.35, 0.1),
    )
    return simulate(Load(stages, duration_s=seconds, name="cam0"), np.random.default_rng(seed))


def recording_of(seed: int, seconds: float = 20, **load: float) -> Recording:
    """Such a pipeline as it is read back, with its meter's readings at 20 Hz attributed."""
    truth = truth_of(seed, seconds, **load)
    return attributed([Run(truth.frames, [measure(truth, METER, np.random.default_rng(seed))])])


def recorded(data_dir: Path, name: str, seed: int = 1, seconds: float = 20, **load: float) -> Session:
    """Such a pipeline as a finished session on disk."""
    truth = truth_of(seed, seconds, **load)
    readings = measure(truth, METER, np.random.default_rng(seed))
    writer = create(data_dir, anchor(), ["test"], name)
    for body in requests([truth.frames], [readings], [METER]):
        writer.traces(body)
    writer.close()
    return open_session(name, data_dir)
