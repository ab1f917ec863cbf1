"""Frames, readings and energies of a small made pipeline, as plain arrays (simulated, and says so)."""

from __future__ import annotations

import numpy as np

from benchlab_otel.contract import FIRST_MARK
from benchlab_otel.model import OUTCOMES, FrameEnergy, Frames, Readings, Run
from benchlab_otel.otlp.encode import Attribute, SpanBatch, Strings, encode_request

START = 1_790_000_000_000_000_000
MS = 1_000_000


def make_run(
    n: int = 100,
    *,
    dropped: tuple[int, ...] = (),
    simulated: bool = False,
    first_mark: str = "ingress",
    seed: int = 1,
) -> Run:
    """A camera of 60 fps with the stages decode, infer and display of 2, 6 and 3 ms ± 20 %.

    Dropped frames end after decode. The meter reads 100 W + 10 W × row at 20 Hz over all frames.
    """
    rng = np.random.default_rng(seed)
    begin = START + np.arange(n, dtype=np.int64) * 16_666_667
    lengths = (np.array([2.0, 6.0, 3.0]) * MS * rng.uniform(0.8, 1.2, (n, 3))).astype(np.int64)
    ends = begin[:, None] + np.cumsum(lengths, axis=1)
    whole = np.ones((n, 3), bool)
    whole[list(dropped), 1:] = False
    end = np.where(whole[:, 2], ends[:, 2], ends[:, 0])
    outcome = np.where(whole[:, 2], 0, 1).astype(np.uint8)
    ids = np.arange(1, n + 1, dtype=np.uint64) + np.uint64(seed << 32)
    frames = Frames(
        pipeline="cam0",
        trace=np.stack([ids, ids], axis=1),
        span=ids,
        begin=begin,
        end=end,
        number=np.arange(n, dtype=np.int64),
        outcome=outcome,
        stage_frame=np.repeat(np.arange(n), 3)[whole.ravel()],
        stage=np.tile(np.arange(3, dtype=np.int32), n)[whole.ravel()],
        stage_begin=(ends - lengths).ravel()[whole.ravel()],
        stage_end=ends.ravel()[whole.ravel()],
        stage_names=["decode", "infer", "display"],
        simulated=simulated,
        first_mark=first_mark,
    )
    readings = make_readings("gpu", n * 16_666_667 + 200 * MS, simulated=simulated)
    return Run(frames, [readings], [make_energy(frames, "gpu", simulated=simulated)])


def make_readings(domain: str, length_ns: int, *, simulated: bool = False) -> Readings:
    """20 Hz from 100 ms before the first frame."""
    time = START - 100 * MS + np.arange(0, length_ns, 50 * MS, dtype=np.int64)
    m = len(time)
    return Readings(
        meter="benchlab-1",
        domain=domain,
        kind="power",
        time=time,
        uncertainty=np.full(m, MS, np.int64),
        value=100.0 + 10 * np.arange(m),
        trace=np.zeros((m, 2), np.uint64),
        span=np.arange(1, m + 1, dtype=np.uint64),
        simulated=simulated,
    )


def make_energy(frames: Frames, domain: str, *, simulated: bool = False) -> FrameEnergy:
    """200 W while a frame is in flight, ± 5 %."""
    joules = 200 * (frames.end - frames.begin) / 1e9
    return FrameEnergy(
        meter="benchlab-1",
        domain=domain,
        method="interpolated",
        energy=joules,
        uncertainty=0.05 * joules,
        first=np.zeros(len(frames), np.int64),
        last=np.ones(len(frames), np.int64),
        simulated=simulated,
    )


def requests(run: Run) -> list[bytes]:
    """What a probe and a meter would have sent for the run."""
    f = run.frames
    attributes: dict[str, Attribute] = {
        "pipeline.name": f.pipeline,
        "frame.number": f.number,
        "frame.outcome": Strings(f.outcome.astype(np.int32), list(OUTCOMES)),
        FIRST_MARK: "ingress",
    }
    status = (2 * (f.outcome > 0)).astype(np.uint8)
    batches = [SpanBatch("frame", f.trace, f.span, f.begin, f.end, status=status, attributes=attributes)]
    for i, stage in enumerate(f.stage_names):
        rows = f.stage == i
        frame = f.stage_frame[rows]
        ids = f.span[frame] + np.uint64((i + 1) << 56)
        batch = SpanBatch(stage, f.trace[frame], ids, f.stage_begin[rows], f.stage_end[rows])
        batch.parent, batch.attributes = f.span[frame], {"pipeline.stage": stage}
        batches.append(batch)
    bodies = [encode_request({"service.name": "camera"}, batches)]
    for r in run.readings:
        ids = r.span + np.uint64(1 << 60)
        values = {"hw.id": r.meter, "hw.type": "power_rail", f"hw.power.{r.domain}": r.value}
        begin, end = r.time - r.uncertainty, r.time + r.uncertainty
        batch = SpanBatch("sample", np.ones((len(r), 2), np.uint64), ids, begin, end, attributes=values)
        resource = {"service.name": "benchlab", "benchlab.simulated": r.simulated}
        bodies.append(encode_request(resource, [batch]))
    return bodies
