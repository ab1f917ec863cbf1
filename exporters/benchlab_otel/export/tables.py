"""A session as four tidy tables: frames, stages, samples, energy. What Parquet and CSV files are made of.

`TABLES` declares every column once, with unit and meaning. Tables come in blocks, in time linear in
the session and memory that does not grow with it (`export.stream`). A row of `stages` or `energy`
belongs to the row of `frames` with the same `frame`. What is not known is absent: NaN here, null or
an empty cell in a file; energies without any figure have no row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from benchlab_otel.align.aligner import Aligned
from benchlab_otel.align.attribution.attribute import PipelineEnergy
from benchlab_otel.archive.records import Fault
from benchlab_otel.archive.session import Session
from benchlab_otel.export.stream import stream
from benchlab_otel.model import OUTCOMES, Float, Int, Readings, Uint

Kind = Literal["text", "id", "integer", "number", "time", "boolean"]


@dataclass(frozen=True, slots=True)
class Field:
    """A column: `number` is float64 with NaN where absent, `integer` int64 with −1 where absent, `time`
    int64 ns of Unix time, `id` hexadecimal digits (dtype S), `text` is `Words`."""

    name: str
    kind: Kind
    description: str
    unit: str = ""


TABLES: dict[str, tuple[Field, ...]] = {
    "frames": (
        Field("session", "text", "session id"),
        Field("pipeline", "text", "pipeline.name"),
        Field("service", "text", "service.name of the sender"),
        Field("frame", "integer", "key of the frame in these tables"),
        Field("number", "integer", "frame.number, where the sender counted"),
        Field("trace_id", "id", "the frame's trace"),
        Field("outcome", "text", "completed, dropped or failed"),
        Field("begin", "time", "first mark", "ns"),
        Field("end", "time", "last mark", "ns"),
        Field("duration_s", "number", "first to last mark", "s"),
        Field("simulated", "boolean", "the pipeline is a simulation"),
    ),
    "stages": (
        Field("frame", "integer", "key of the frame"),
        Field("stage", "text", "the stage's name; a frame may pass one more than once"),
        Field("begin", "time", "the stage's begin", "ns"),
        Field("end", "time", "the stage's end", "ns"),
        Field("duration_s", "number", "time in the stage", "s"),
    ),
    "samples": (
        Field("session", "text", "session id"),
        Field("meter", "text", "hw.id"),
        Field("domain", "text", "what is measured: system, cpu, gpu, package-0, …"),
        Field("time", "time", "middle of request and response, less the meter's declared lag", "ns"),
        Field("uncertainty_s", "number", "half of the round trip", "s"),
        Field("power_w", "number", "the reading of a power meter", "W"),
        Field("energy_j", "number", "the reading of a cumulative counter", "J"),
        Field("simulated", "boolean", "the meter is a simulation"),
    ),
    "energy": (
        Field("frame", "integer", "key of the frame"),
        Field("stage", "text", "the stage that the row is about; none: the whole frame"),
        Field("meter", "text", "hw.id"),
        Field("domain", "text", "what is measured"),
        Field("method", "text", "interpolated, or conditioned on all readings and stages"),
        Field("energy_j", "number", "used while the frame was in flight; of a stage: above base", "J"),
        Field("uncertainty_j", "number", "95 % half width of energy_j", "J"),
        Field("shared_j", "number", "the frame's own share: stages above base, base split evenly", "J"),
        Field("shared_uncertainty_j", "number", "95 % half width of shared_j", "J"),
        Field("simulated", "boolean", "frame or meter is a simulation"),
    ),
}


@dataclass(slots=True)
class Words:
    """n texts: `codes` (n,) into `words`, −1 where absent."""

    codes: NDArray[np.int32]
    words: Sequence[str]

    def __len__(self) -> int:
        return len(self.codes)


Column = NDArray[Any] | Words
Block = dict[str, Column]  # by the names of the table's fields, in their order


def table_blocks(
    sessions: Sequence[Session],
    faults: list[Fault],
    progress: Callable[[int], None] | None = None,
    pipeline: str | None = None,
) -> Iterator[tuple[str, Block]]:
    """(table, rows) of the sessions in turn, only the frames of `pipeline` where one is named.

    What could not be read is noted in `faults`. Raises like `stream`.
    """
    frames = 0
    for session in sessions:
        for part in stream(session, faults, progress, pipeline):
            if isinstance(part, Readings):
                yield "samples", sample_rows(part, name_of(session))
            elif len(part.frames):
                yield "frames", frame_rows(part, name_of(session), frames)
                yield "stages", stage_rows(part, frames)
                yield from (("energy", rows) for rows in energy_rows(part, frames) if len(rows["frame"]))
                frames += len(part.frames)


def name_of(session: Session) -> str:
    """The session's id; of bare files their name."""
    return session.manifest.id if session.manifest else session.path.name


# -- rows -------------------------------------------------------------------------------------


def frame_rows(block: Aligned, session: str, first: int) -> Block:
    """Rows of `frames`, the first of which has the key `first`."""
    f = block.frames
    return {
        "session": _same(session, len(f)),
        "pipeline": _same(f.pipeline, len(f)),
        "service": _same(f.service, len(f)),
        "frame": np.arange(first, first + len(f)),
        "number": f.number,
        "trace_id": hexadecimal(f.trace),
        "outcome": Words(f.outcome.astype(np.int32), OUTCOMES),
        "begin": f.begin,
        "end": f.end,
        "duration_s": (f.end - f.begin) / 1e9,
        "simulated": np.full(len(f), f.simulated),
    }


def stage_rows(block: Aligned, first: int) -> Block:
    """Rows of `stages`."""
    f = block.frames
    return {
        "frame": f.stage_frame + first,
        "stage": Words(f.stage, f.stage_names),
        "begin": f.stage_begin,
        "end": f.stage_end,
        "duration_s": (f.stage_end - f.stage_begin) / 1e9,
    }


def sample_rows(readings: Readings, session: str) -> Block:
    """Rows of `samples`."""
    n = len(readings)
    absent = np.full(n, np.nan)
    power = readings.kind == "power"
    return {
        "session": _same(session, n),
        "meter": _same(readings.meter, n),
        "domain": _same(readings.domain, n),
        "time": readings.time,
        "uncertainty_s": readings.uncertainty / 1e9,
        "power_w": readings.value if power else absent,
        "energy_j": absent if power else readings.value,
        "simulated": np.full(n, readings.simulated),
    }


def energy_rows(block: Aligned, first: int) -> Iterator[Block]:
    """Rows of `energy`: for each domain the frames by both methods, then the stages."""
    figures: Sequence[PipelineEnergy | None] = block.conditioned or [None] * len(block.energy)
    for energy, found in zip(block.energy, figures, strict=True):
        about = (energy.meter, energy.domain, energy.simulated or block.frames.simulated)
        frame = np.arange(first, first + len(block.frames))
        yield _energy(frame, None, about, energy.method, energy.energy, energy.uncertainty)
        if found is None:
            continue
        shared = (found.shared, found.shared_uncertainty)
        yield _energy(frame, None, about, "conditioned", found.energy, found.energy_uncertainty, shared)
        owner, stage = block.frames.stage_frame + first, Words(block.frames.stage, block.frames.stage_names)
        yield _energy(owner, stage, about, "conditioned", found.stage, found.stage_uncertainty)


def _energy(
    frame: Int,
    stage: Words | None,
    about: tuple[str, str, bool],
    method: str,
    joules: Float,
    half: Float,
    shared: tuple[Float, Float] | None = None,
) -> Block:
    """The rows that have a figure."""
    rows = np.flatnonzero(np.isfinite(joules))
    n = len(rows)
    absent = np.full(n, np.nan)
    meter, domain, simulated = about
    return {
        "frame": frame[rows],
        "stage": Words(stage.codes[rows], stage.words) if stage else Words(np.full(n, -1, np.int32), []),
        "meter": _same(meter, n),
        "domain": _same(domain, n),
        "method": _same(method, n),
        "energy_j": joules[rows],
        "uncertainty_j": half[rows],
        "shared_j": shared[0][rows] if shared else absent,
        "shared_uncertainty_j": shared[1][rows] if shared else absent,
        "simulated": np.full(n, simulated),
    }


def _same(word: str, n: int) -> Words:
    return Words(np.zeros(n, np.int32), [word])


def hexadecimal(ids: Uint) -> NDArray[np.bytes_]:
    """(n,) S32 of trace ids (n, 2), or S16 of span ids (n,)."""
    digits = 16 * (ids.shape[1] if ids.ndim == 2 else 1)
    return np.frombuffer(ids.astype(">u8").tobytes().hex().encode(), f"S{digits}")
