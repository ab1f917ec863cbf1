"""Archives to blocks of spans, whatever format the files are in."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchlab_otel.archive.order import in_time
from benchlab_otel.archive.records import Fault, Record, read_records
from benchlab_otel.model import Spans
from benchlab_otel.otlp.decode import Wanted, all_attributes, decode_traces, take
from benchlab_otel.otlp.json import traces_to_protobuf
from benchlab_otel.otlp.json_spans import decode_json_traces

BLOCK_BYTES = 4 << 20  # records are decoded together up to this size: one pass over many small requests
_OTHER_SIGNALS = (b'{"resourceMetrics"', b'{"resourceLogs"', b'{"resourceProfiles"')


def read_spans(
    paths: Sequence[Path],
    faults: list[Fault],
    *,
    as_arrived: bool = False,
    links: bool = False,
    attributes: bool = True,
    wanted: Wanted = all_attributes,
    progress: Callable[[int], None] | None = None,
) -> Iterator[Spans]:
    """The spans of the files, in blocks, by time; repeats (same trace and span id) come once.

    One file `as_arrived` keeps its order and its repeats, as a session does, so that it aligns to the
    same figures as it did live. Files (rotated, or one for each sender) may be given in any order; see
    `order.in_time` for how far out of order their spans may be. Without `attributes` the spans have
    none, else those `wanted` by their keys: the fewer, the faster. What can't be read is passed over and
    noted in `faults`; `progress` is told the bytes of each decoded block. Raises OSError where a file
    can't be opened.
    """
    reading = _Reading(faults, links, attributes, wanted, progress or (lambda size: None))
    if as_arrived and len(paths) == 1:
        yield from _spans(paths[0], reading)
        return
    beginnings = {path: _begin(path) for path in paths}
    in_turn = sorted(paths, key=lambda path: beginnings[path])
    files = [(beginnings[path], _spans(path, reading)) for path in in_turn]
    late = 0
    for spans, late_now in in_time(files):
        late += late_now
        yield spans
    if late:
        reason = f"{late} spans are further out of order than can be sorted; what comes too late is counted"
        faults.append(Fault(", ".join(map(str, paths)), 0, reason, 0))


def not_otlp(paths: Sequence[Path]) -> Fault | None:
    """What is wrong with files of which not one request can be read; None where one can, or all are empty."""
    reading = _Reading([], False, False, all_attributes, lambda size: None)
    for path in paths:
        for record in read_records(path, reading.faults):
            if of_other_signal(record) or any(True for _ in _decode([record], path, reading)):
                return None
    return reading.faults[0] if reading.faults else None


@dataclass(frozen=True, slots=True)
class _Reading:
    """What is wanted of the spans, and where is told what comes of it."""

    faults: list[Fault]
    links: bool
    attributes: bool
    wanted: Wanted
    progress: Callable[[int], None]


def _begin(path: Path) -> int:
    """When the first spans of a file begin (Unix ns), 0 where it has none."""
    found = _Reading([], False, False, all_attributes, lambda size: None)
    for record in read_records(path, found.faults):
        for spans in _decode([record], path, found):
            known = spans.start[spans.start > 0]
            if len(known):
                return int(known.min())
    return 0


def _spans(path: Path, reading: _Reading) -> Iterator[Spans]:
    for block in _blocks(read_records(path, reading.faults)):
        yield from _decode(block, path, reading)
        reading.progress(sum(len(record.body) for record in block))


def of_other_signal(record: Record) -> bool:
    """Whether it is no trace request: the Collector can write all signals into one file."""
    return record.json and record.body.startswith(_OTHER_SIGNALS)


def _blocks(records: Iterator[Record]) -> Iterator[list[Record]]:
    block: list[Record] = []
    size = 0
    for record in records:
        if of_other_signal(record):
            continue
        block.append(record)
        size += len(record.body)
        if size >= BLOCK_BYTES:
            yield block
            block, size = [], 0
    if block:
        yield block


def _decode(block: list[Record], path: Path, reading: _Reading) -> Iterator[Spans]:
    """All records at once (concatenated requests are one request); in halves if one is garbled."""
    try:
        yield _with_ids(_together(block, reading), block, path, reading.faults)
    except ValueError as error:
        if len(block) == 1:
            record = block[0]
            reading.faults.append(Fault(str(path), record.offset, str(error), record.size, line=record.line))
            return
        middle = len(block) // 2
        yield from _decode(block[:middle], path, reading)
        yield from _decode(block[middle:], path, reading)


def _together(block: list[Record], reading: _Reading) -> Spans:
    if not reading.links and all(record.json for record in block):
        spans = decode_json_traces([record.body for record in block], attributes=reading.attributes)
        spans.attributes = {key: column for key, column in spans.attributes.items() if reading.wanted(key)}
        return spans
    wanted = reading.wanted if reading.attributes else lambda key: False
    return decode_traces(*map(_protobuf, block), links=reading.links, wanted=wanted)


def _protobuf(record: Record) -> bytes:
    return traces_to_protobuf(record.body) if record.json else record.body


def _with_ids(spans: Spans, block: list[Record], path: Path, faults: list[Fault]) -> Spans:
    """Without the spans that have no valid ids, which receivers refuse too."""
    valid = ((spans.trace[:, 0] | spans.trace[:, 1]) != 0) & (spans.span != 0)
    if valid.all():
        return spans
    reason = (
        f"{int((~valid).sum())} spans without a valid trace and span id (in {len(block)} records from here)"
    )
    faults.append(Fault(str(path), block[0].offset, reason, 0, line=block[0].line))
    return take(spans, np.flatnonzero(valid))
