"""Archives to blocks of spans, whatever format the files are in."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from benchlab_otel.archive.records import Fault, Record, read_records
from benchlab_otel.model import Spans
from benchlab_otel.otlp.decode import decode_traces
from benchlab_otel.otlp.json import traces_to_protobuf

BLOCK_BYTES = 4 << 20  # records are decoded together up to this size: one pass over many small requests


def read_spans(
    paths: Iterable[Path],
    faults: list[Fault],
    *,
    links: bool = False,
    progress: Callable[[int], None] | None = None,
) -> Iterator[Spans]:
    """The spans of the files, in blocks, in the order of the files and of the records in each.

    What can't be read is passed over and noted in `faults`; `progress` is told the bytes of each
    decoded block. Raises OSError where a file can't be opened.
    """
    for path in paths:
        block: list[Record] = []
        size = 0
        for record in read_records(path, faults):
            block.append(record)
            size += len(record.body)
            if size >= BLOCK_BYTES:
                yield from _decode(block, path, faults, links)
                if progress:
                    progress(size)
                block, size = [], 0
        yield from _decode(block, path, faults, links)
        if progress:
            progress(size)


def _decode(block: list[Record], path: Path, faults: list[Fault], links: bool) -> Iterator[Spans]:
    """All records at once (concatenated requests are one request); one by one if one is garbled."""
    if not block:
        return
    try:
        yield decode_traces(b"".join(map(_protobuf, block)), links=links)
    except ValueError as error:
        if len(block) == 1:
            faults.append(Fault(str(path), block[0].offset, str(error), len(block[0].body)))
            return
        middle = len(block) // 2
        yield from _decode(block[:middle], path, faults, links)
        yield from _decode(block[middle:], path, faults, links)


def _protobuf(record: Record) -> bytes:
    return traces_to_protobuf(record.body) if record.json else record.body
