"""The protobuf wire format: fields of a message by their place, nothing else read of it.

Format: protobuf.dev/programming-guides/encoding. Everything here raises ValueError with the byte offset
for what is no message.
"""

from __future__ import annotations

from collections.abc import Iterable


def fields(body: bytes, pos: int, end: int) -> Iterable[tuple[int, int, int]]:
    """(field number, start, end) of the length-delimited fields; others are skipped."""
    while pos < end:
        tag, start = varint(body, pos, end)
        if tag & 7 != 2 or tag < 8:
            pos = skip(body, pos, end)
            continue
        length, start = varint(body, start, end)
        if length > end - start:
            raise ValueError(
                f"garbled OTLP: field at byte {pos} claims {length} bytes, {end - start} are left"
            )
        yield tag >> 3, start, start + length
        pos = start + length


def varint(body: bytes, pos: int, end: int) -> tuple[int, int]:
    """(value, next position)."""
    value = shift = 0
    at, last = pos, min(pos + 10, end)
    while at < last:
        byte = body[at]
        at += 1
        if byte < 0x80:
            return value | byte << shift, at
        value |= (byte & 0x7F) << shift
        shift += 7
    raise ValueError(f"garbled OTLP: no number at byte {pos}")


def skip(body: bytes, pos: int, end: int) -> int:
    """The position after the field at `pos`."""
    groups: list[int] = []  # the field numbers of the groups that `pos` is in
    while True:
        tag, at = varint(body, pos, end)
        number, wire = tag >> 3, tag & 7
        if tag < 8 or wire > 5 or (wire == 4 and (not groups or groups.pop() != number)):
            raise ValueError(f"garbled OTLP: no field at byte {pos}")
        after = at
        if wire == 0:
            after = varint(body, at, end)[1]
        elif wire == 2:
            length, at = varint(body, at, end)
            after = at + length
        elif wire == 3:
            groups.append(number)
        elif wire != 4:
            after = at + (8 if wire == 1 else 4)
        if after > end:
            raise ValueError(f"garbled OTLP: field at byte {pos} reaches past its message")
        if not groups:
            return after
        pos = after
