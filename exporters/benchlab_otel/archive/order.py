"""Blocks of spans of several files as one sequence in time, each span once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from benchlab_otel.model import Bool, Int, Spans
from benchlab_otel.otlp.decode import concatenate, take
from benchlab_otel.otlp.ids import mix64

HORIZON = 200_000  # spans that are held back to sort in what comes late
TOLERANCE_NS = 250_000_000  # one file that is less out of order than this, as senders send, stays as it is
BLOCK_SPANS = 40_000  # of blocks that are sorted anew


@dataclass(slots=True)
class _File:
    """The rest of a file, and the time (Unix ns) that its spans so far have surely reached."""

    blocks: Iterator[Spans]
    reached: int


def in_time(files: Sequence[tuple[int, Iterator[Spans]]]) -> Iterator[tuple[Spans, int]]:
    """The spans of all files by their end, and how many of each block came too late to be sorted in.

    `files` are pairs of the time (Unix ns) that a file begins at and its blocks. Files are read side by
    side, the one that is furthest behind next, so of rotated files one at a time. A span may stand up to
    HORIZON spans after its place; repeats within that (same trace, span and end) are left out. A single
    file that is in order keeps its blocks.
    """
    tolerance = TOLERANCE_NS if len(files) == 1 else 0
    reading = [_File(blocks, begin) for begin, blocks in files]
    waiting: list[Spans] = []
    given = 0
    while reading:
        file = min(reading, key=lambda one: one.reached)
        block = next(file.blocks, None)
        if block is None:
            reading.remove(file)
        elif len(block):
            # not the last of its times: one garbled time must not hold a file back for ever
            file.reached = max(file.reached, int(np.median(block.end)))
            waiting.append(block)
        if reading and sum(map(len, waiting)) < 2 * HORIZON:
            continue
        waiting = _in_order(waiting, tolerance)
        for spans in _settled(waiting, min((one.reached for one in reading), default=None)):
            yield spans, int((spans.end < given - TOLERANCE_NS).sum())
            given = max(given, int(spans.end.max()))


def _settled(waiting: list[Spans], reached: int | None) -> Iterator[Spans]:
    """Takes the blocks from `waiting` that nothing will be sorted into any more; all if `reached` is None."""
    size = sum(map(len, waiting))
    while waiting and (
        reached is None or (size - len(waiting[0]) >= HORIZON and int(waiting[0].end.max()) <= reached)
    ):
        size -= len(waiting[0])
        yield waiting.pop(0)


def _in_order(blocks: list[Spans], tolerance: int) -> list[Spans]:
    """The blocks as they are if their ends ascend (but for `tolerance` ns) without repeats, else sorted."""
    if not blocks:
        return blocks
    end = np.concatenate([block.end for block in blocks])
    disorder = int((np.maximum.accumulate(end) - end).max())
    repeats = _may_repeat(blocks)
    if disorder <= tolerance and not repeats:
        return blocks
    spans = concatenate(blocks)
    rows: Int = np.flatnonzero(_first_of_each(spans)) if repeats else np.arange(len(spans))
    if disorder > tolerance:
        rows = rows[np.argsort(spans.end[rows], kind="stable")]
    return [take(spans, rows[at : at + BLOCK_SPANS]) for at in range(0, len(rows), BLOCK_SPANS)]


def _may_repeat(blocks: list[Spans]) -> bool:
    """Whether two spans may be the same; rarely also true where none are."""
    keys = [mix64(b.trace[:, 0] ^ mix64(b.trace[:, 1] ^ mix64(b.span))) for b in blocks]
    ordered = np.sort(np.concatenate(keys))
    return bool((ordered[1:] == ordered[:-1]).any())


def _first_of_each(spans: Spans) -> Bool:
    """Whether a row (n,) is the first of its trace id, span id and end."""
    columns: list[NDArray[np.uint64]] = [
        *(spans.end.view(np.uint64), spans.span, spans.trace[:, 1], spans.trace[:, 0])
    ]
    order = np.lexsort(columns)  # stable: of equal rows the first one stays first
    ids = np.column_stack(columns)[order]
    first = np.ones(len(spans), np.bool_)
    first[order[1:][(ids[1:] == ids[:-1]).all(axis=1)]] = False
    return first
