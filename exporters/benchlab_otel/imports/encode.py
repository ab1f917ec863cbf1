"""Blocks of a foreign file as OTLP trace requests. Ids follow from the content: imported twice is once."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from benchlab_otel import contract
from benchlab_otel.imports.capture import Block, Samples
from benchlab_otel.model import COMPLETED, OUTCOMES, STATUS_ERROR, STATUS_UNSET, Int, Resource, Uint
from benchlab_otel.otlp.encode import SpanBatch, Strings, Table, encode_request
from benchlab_otel.otlp.ids import mix64, nonzero


@dataclass(slots=True)
class Ids:
    """Trace and span ids of one file, in the order that they are asked for."""

    high: int
    seed: int
    count: int = 0

    def next(self, n: int) -> Uint:
        """n further ids (n,)."""
        places = np.arange(self.count, self.count + n, dtype=np.uint64)
        self.count += n
        return nonzero(mix64(places + np.uint64(self.seed)))

    def traces(self, n: int) -> Uint:
        """n further trace ids (n, 2)."""
        return np.stack([np.full(n, self.high, np.uint64), self.next(n)], axis=1)


def ids_of(path: Path) -> Ids:
    """The ids that follow from the file's content. Raises OSError."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").digest()
    return Ids(*(int.from_bytes(digest[i : i + 8], "big") | 1 for i in (0, 8)))


@dataclass(slots=True)
class Encoder:
    """Encodes the blocks of one file; counts frames and readings, and keeps their extent (Unix ns)."""

    name: str
    resource: Resource
    ids: Ids
    frames: int = 0
    samples: int = 0
    first_ns: int = 1 << 62
    last_ns: int = 0
    _meters: dict[str, Uint] = field(default_factory=dict)  # a trace for each

    def encode(self, item: Block | Samples, shift: Int) -> bytes:
        """One request; `shift` (n,) or (1,) is added to the item's times and gives Unix ns."""
        self.first_ns = min(self.first_ns, int((item.begin + shift).min()))
        self.last_ns = max(self.last_ns, int((item.end + shift).max()))
        if isinstance(item, Samples):
            self.samples += len(item.begin)
            return encode_request(self.resource, [self._readings(item, shift)])
        self.frames += len(item.begin)
        return encode_request(self.resource, self._frames(item, shift))

    def _frames(self, block: Block, shift: Int) -> list[SpanBatch]:
        n = len(block.begin)
        shift = np.broadcast_to(shift, n)
        trace, span = self.ids.traces(n), self.ids.next(n)
        completed = block.outcome == OUTCOMES.index(COMPLETED)
        frames = SpanBatch(
            name=contract.FRAME,
            trace=trace,
            span=span,
            start=block.begin + shift,
            end=block.end + shift,
            status=np.where(completed, STATUS_UNSET, STATUS_ERROR).astype(np.uint8),
            attributes={
                contract.PIPELINE_NAME: f"{self.name}/{block.pipeline}" if block.pipeline else self.name,
                contract.FRAME_NUMBER: block.number,
                contract.FRAME_OUTCOME: Strings(block.outcome.astype(np.int32), list(OUTCOMES)),
                **block.attributes,
            },
        )
        stages = [
            SpanBatch(
                name=stage.name,
                trace=trace[stage.frame],
                span=self.ids.next(len(stage.frame)),
                parent=span[stage.frame],
                start=stage.begin + shift[stage.frame],
                end=stage.end + shift[stage.frame],
                attributes={contract.PIPELINE_STAGE: stage.name, **stage.attributes},
            )
            for stage in block.stages
        ]
        return [frames, *stages]

    def _readings(self, samples: Samples, shift: Int) -> SpanBatch:
        n = len(samples.begin)
        if samples.hw_id not in self._meters:
            self._meters[samples.hw_id] = self.ids.traces(1)
        root = mix64(self._meters[samples.hw_id][0])
        return SpanBatch(
            name=contract.SAMPLE,
            trace=np.broadcast_to(self._meters[samples.hw_id], (n, 2)),
            span=self.ids.next(n),
            parent=np.full(n, root[1] | np.uint64(1), np.uint64),
            start=samples.begin + shift,
            end=samples.end + shift,
            attributes={contract.HW_ID: samples.hw_id, contract.HW_TYPE: samples.hw_type},
            table=Table(samples.keys, samples.values),
        )
