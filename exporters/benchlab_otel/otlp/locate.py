"""Where the spans of OTLP trace requests stand: only tags and lengths are read.

The requests of one sender repeat their form. ResourceSpans of equal size are compared with one of them at
the bytes that stand between its spans; where these are equal, the spans stand at the same places.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from benchlab_otel.model import Int
from benchlab_otel.otlp.protobuf import fields, skip, varint


@dataclass(frozen=True, slots=True)
class Located:
    """n spans: `offsets` and `lengths` (n,) of each in the body; `resource` (n,) int32 into `resources`,
    which are serialized, each with an offset of where it was first met."""

    offsets: Int
    lengths: Int
    resource: NDArray[np.int32]
    resources: list[tuple[bytes, int]]


@dataclass(frozen=True, slots=True)
class _Group:
    """One ResourceSpans: where it starts, its resource, offsets and lengths (n,) of its spans."""

    start: int
    resource: bytes
    offsets: Int
    lengths: Int


def locate(body: bytes, end: int) -> Located:
    """The spans of one ExportTraceServiceRequest in `body[:end]`, or of several concatenated, in their order.

    Raises ValueError with the byte offset for what is no such message.
    """
    found = _groups(body, end)
    codes: dict[bytes, int] = {}
    resources = []
    for group in found:
        if group.resource not in codes:
            codes[group.resource] = len(codes)
            resources.append((group.resource, group.start))
    counts = [len(group.offsets) for group in found]
    return Located(
        offsets=np.concatenate([_NONE, *(group.offsets for group in found)]),
        lengths=np.concatenate([_NONE, *(group.lengths for group in found)]),
        resource=np.repeat(np.array([codes[group.resource] for group in found], np.int32), counts),
        resources=resources,
    )


_NONE = np.empty(0, np.int64)
_WORTH_COMPARING = 8  # of equal size; fewer are sooner read one by one


def _groups(body: bytes, end: int) -> list[_Group]:
    """The ResourceSpans in their order."""
    places = [(start, after) for number, start, after in fields(body, 0, end) if number == 1]
    starts = np.array([start for start, _ in places], np.int64)
    found: dict[int, _Group] = {}
    for size, members in by_value(np.array([after - start for start, after in places], np.int64)):
        found.update(zip(members.tolist(), _of_size(body, starts[members], size), strict=True))
    return [found[i] for i in range(len(places))]


def _of_size(body: bytes, starts: Int, size: int) -> list[_Group]:
    """The ResourceSpans, all of one size, that start at `starts` (n,)."""
    found: dict[int, _Group] = {}
    left = np.arange(len(starts))
    while len(left) >= _WORTH_COMPARING:
        first = _read_group(body, int(starts[left[0]]), size)
        alike = _alike(body, starts[left], first, size)
        rows = left[alike].tolist()
        moved = starts[rows]
        offsets = moved[:, None] + (first.offsets - first.start)
        for row, start, at in zip(rows, moved.tolist(), offsets, strict=True):
            found[row] = _Group(start, first.resource, at, first.lengths)
        left = left[~alike]
        if len(rows) < _WORTH_COMPARING:
            break
    for row in left.tolist():
        found[row] = _read_group(body, int(starts[row]), size)
    return [found[row] for row in range(len(starts))]


def _alike(body: bytes, starts: Int, first: _Group, size: int) -> NDArray[np.bool_]:
    """Which (n,) have their spans where the first one has: their bytes outside of them are the same."""
    spans = first.offsets - first.start
    begins, gaps = np.append(0, spans + first.lengths), np.append(spans, size)
    gaps -= begins
    outside = np.arange(gaps.sum()) + np.repeat(begins - np.cumsum(gaps) + gaps, gaps)
    if 2 * len(outside) > size:
        return np.arange(len(starts)) == 0  # there is little to gain, and comparing would take much memory
    raw = np.frombuffer(body, np.uint8)
    same: NDArray[np.bool_] = (raw[starts[:, None] + outside] == raw[first.start + outside]).all(axis=1)
    return same


def _read_group(body: bytes, start: int, size: int) -> _Group:
    """One ResourceSpans, read field by field."""
    resource, offsets, lengths = b"", array("q"), array("q")
    for number, inner_start, inner_end in fields(body, start, start + size):
        if number == 1:
            resource += body[inner_start:inner_end]  # a message given twice is merged
        elif number == 2:
            _read_scope(body, inner_start, inner_end, offsets, lengths)
    return _Group(start, resource, np.array(offsets, np.int64), np.array(lengths, np.int64))


_GALLOP_AFTER, _GALLOP_OVER = 8, 32  # spans of one length in a row, and how many must fit into the rest


def _read_scope(body: bytes, pos: int, end: int, offsets: array[int], lengths: array[int]) -> None:
    """Adds the spans of one ScopeSpans; runs of equal length are found by comparing headers at a stride."""
    previous, repeats = -1, 0
    while pos < end:
        tag, start = (0x12, pos + 1) if body[pos] == 0x12 else varint(body, pos, end)
        if tag != 0x12:
            pos = skip(body, pos, end)
            continue
        first, second = (body[start], body[start + 1]) if start + 1 < end else (0x80, 0x80)
        if first < 0x80:  # nearly all spans are as short as this or the next: no call of a function
            length, start = first, start + 1
        elif second < 0x80:
            length, start = first & 0x7F | second << 7, start + 2
        else:
            length, start = varint(body, start, end)
        if length > end - start:
            raise ValueError(
                f"garbled OTLP: span at byte {pos} claims {length} bytes, {end - start} are left"
            )
        offsets.append(start)
        lengths.append(length)
        repeats = repeats + 1 if length == previous else 0
        previous = length
        stride, head, pos = start + length - pos, start - pos, start + length
        if repeats >= _GALLOP_AFTER and end - pos >= _GALLOP_OVER * stride:
            repeats = 0
            run = _equal_headers(body, pos, end, body[pos - stride : pos - stride + head], stride)
            offsets.frombytes(np.arange(pos + head, pos + head + run * stride, stride).tobytes())
            lengths.extend(array("q", [length]) * run)
            pos += run * stride


def _equal_headers(body: bytes, pos: int, end: int, head: bytes, stride: int) -> int:
    """How many entries in a row from `pos` on begin with `head`, `stride` bytes apart."""
    most, found, ahead = (end - pos) // stride, 0, _GALLOP_OVER
    while found < most:  # further at each step, so that what a short run costs does not grow with the rest
        count = min(ahead, most - found)
        table = np.frombuffer(body, np.uint8, count * stride, pos + found * stride).reshape(count, stride)
        differs = np.zeros(count, np.bool_)
        for k, byte in enumerate(head):
            differs |= table[:, k] != byte
        first = int(differs.argmax())
        if differs[first]:
            return found + first
        found, ahead = found + count, 4 * ahead
    return most


def by_value(values: Int) -> Iterable[tuple[int, Int]]:
    """(value, indices ascending) for each distinct value."""
    if not len(values):
        return []
    if (values == values[0]).all():
        return [(int(values[0]), np.arange(len(values)))]
    order = np.argsort(values, kind="stable")
    cuts = np.flatnonzero(np.diff(values[order])) + 1
    return [(int(values[rows[0]]), rows) for rows in np.split(order, cuts)]
