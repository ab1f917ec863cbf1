"""Archives to blocks of spans, whatever format the files are in."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from benchlab_otel.archive.records import Fault, Record, read_records
from benchlab_otel.model import Spans
from benchlab_otel.otlp.decode import concatenate, decode_traces
from benchlab_otel.otlp.json import traces_to_protobuf

BLOCK_BYTES = 4 << 20  # records are decoded together up to this size: one pass over many small requests
BLOCK_SPANS = 40_000  # the same for records of several files


def read_spans(
    paths: Sequence[Path],
    faults: list[Fault],
    *,
    links: bool = False,
    progress: Callable[[int], None] | None = None,
) -> Iterator[Spans]:
    """The spans of the files, in blocks, in the order of the records in each.

    Several files (rotated, or one for each sender) are read side by side, whichever record begins
    first in time comes first. What can't be read is passed over and noted in `faults`; `progress` is
    told the bytes of each decoded block. Raises OSError where a file can't be opened.
    """
    told = progress or (lambda size: None)
    if len(paths) == 1:
        for block in _blocks(read_records(paths[0], faults)):
            yield from _decode(block, paths[0], faults, links)
            told(sum(len(record.body) for record in block))
        return
    files = [_in_time(path, faults, links) for path in paths]
    waiting: list[Spans] = []
    for _, size, spans in heapq.merge(*files, key=lambda entry: entry[0]):
        waiting.append(spans)
        told(size)
        if sum(map(len, waiting)) >= BLOCK_SPANS:
            yield concatenate(waiting)
            waiting = []
    if waiting:
        yield concatenate(waiting)


def _blocks(records: Iterator[Record]) -> Iterator[list[Record]]:
    block: list[Record] = []
    size = 0
    for record in records:
        block.append(record)
        size += len(record.body)
        if size >= BLOCK_BYTES:
            yield block
            block, size = [], 0
    if block:
        yield block


def _in_time(path: Path, faults: list[Fault], links: bool) -> Iterator[tuple[int, int, Spans]]:
    """(when it begins, bytes, spans) of each record; the time never falls within a file."""
    latest = 0
    for record in read_records(path, faults):
        for spans in _decode([record], path, faults, links):
            known = spans.start[spans.start > 0]
            latest = max(latest, int(known.min()) if len(known) else 0)
            yield latest, len(record.body), spans


def _decode(block: list[Record], path: Path, faults: list[Fault], links: bool) -> Iterator[Spans]:
    """All records at once (concatenated requests are one request); one by one if one is garbled."""
    try:
        yield decode_traces(b"".join(map(_protobuf, block)), links=links)
    except ValueError as error:
        if len(block) == 1:
            faults.append(Fault(str(path), block[0].offset, str(error), block[0].size))
            return
        middle = len(block) // 2
        yield from _decode(block[:middle], path, faults, links)
        yield from _decode(block[middle:], path, faults, links)


def _protobuf(record: Record) -> bytes:
    return traces_to_protobuf(record.body) if record.json else record.body
