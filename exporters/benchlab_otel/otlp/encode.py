"""Arrays to OTLP trace requests: a serialized span as template, its varying bytes patched by NumPy.

Ids and times have fixed width, so spans that share name, attribute keys and value lengths differ
only at known offsets. Rows are grouped by what changes the length (strings, varint widths, absent
values, number of links); each group is one template repeated and patched. The bytes are exactly
those the protobuf library would write (fields in order, canonical varints).

Wire format: opentelemetry/proto/trace/v1/trace.proto and common/v1/common.proto, v1.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import compress

import numpy as np
from numpy.typing import NDArray

from benchlab_otel import __version__
from benchlab_otel.model import Bool, Float, Int, Resource, Scalar, Uint

KIND_INTERNAL = 1
SCOPE_NAME = "benchlab-otel"
Buffer = bytes | memoryview


@dataclass(slots=True)
class Strings:
    """A string column (n,): `codes` index `table`, so that equal strings are encoded once."""

    codes: NDArray[np.int32]
    table: list[str]


@dataclass(slots=True)
class Optional:
    """A number column of which only the rows with `present` carry the attribute."""

    values: Int | Float | Bool
    present: Bool


@dataclass(slots=True)
class Table:
    """Number attributes that are read together: `values` (n, len(keys)) float64, NaN = absent in that row."""

    keys: tuple[str, ...]
    values: Float


Attribute = Scalar | Int | Float | Bool | Strings | Optional


@dataclass(slots=True)
class SpanBatch:
    """n spans of one name to be encoded.

    `trace` (n, 2), `span` (n,), `parent` (n,) or None for roots: uint64; `start`, `end` (n,)
    int64 Unix ns, not 0; `status` the OTLP code, one or (n,). An attribute is one value for all
    rows or a column; keys are not empty; those of `table` come last. Links: `link_count` (n,) of
    the first entries of `link_trace` (n, w, 2) and `link_span` (n, w).
    """

    name: str
    trace: Uint
    span: Uint
    start: Int
    end: Int
    parent: Uint | None = None
    kind: int = KIND_INTERNAL
    status: int | NDArray[np.uint8] = 0
    attributes: dict[str, Attribute] = field(default_factory=dict)
    table: Table | None = None
    link_count: Int | None = None
    link_trace: Uint | None = None
    link_span: Uint | None = None

    def __len__(self) -> int:
        return len(self.span)


def encode_request(resource: Resource, batches: Sequence[SpanBatch]) -> bytes:
    """One ExportTraceServiceRequest (= TracesData) with all spans of `batches` under `resource`."""
    return _request(_about(resource), [piece for batch in batches for piece in _encoded_groups(batch)])


class Repeated:
    """Requests of spans that differ from `example` in nothing but span id, times and numbers of the table.

    All else is encoded once. `example` is one span; what its table has no number for, they have none for. The
    bytes are those of `encode_request`, for a fraction of its calls.
    """

    def __init__(self, resource: Resource, example: SpanBatch) -> None:
        columns = _columns(example)
        ((keys, _),) = _layouts(columns, 1)
        template = _known_template(example, columns, keys)
        self._image = np.frombuffer(_encode_group(example, columns, keys, None), np.uint8)
        self._open = np.array([template.span, template.start, template.end, *template.table[::8]], np.int64)
        self._about = _about(resource)

    def request(self, span: Uint, start: Int, end: Int, values: Float) -> bytes:
        """One ExportTraceServiceRequest of n spans, with `values` (n, numbers of the table), none NaN."""
        n = len(span)
        numbers = np.empty((n, len(self._open)), "<u8")
        numbers[:, 0], numbers[:, 1], numbers[:, 2] = span.byteswap(), start, end
        numbers.view("<f8")[:, 3:] = values
        out = np.empty((n, len(self._image)), np.uint8)
        out[:] = self._image
        from_each_byte = np.ndarray((n, out.shape[1] - 7), "<u8", out, strides=(out.shape[1], 1))
        from_each_byte[:, self._open] = numbers
        return _request(self._about, [out.reshape(-1).data])


def _request(about: bytes, spans: Sequence[Buffer]) -> bytes:
    """The request of encoded spans."""
    scope = _scope()
    size = len(scope) + sum(map(len, spans))
    spans_head = _head(2, size)
    return b"".join([_head(1, len(about) + len(spans_head) + size), about, spans_head, scope, *spans])


def _encoded_groups(batch: SpanBatch) -> list[Buffer]:
    """The batch as `ScopeSpans.spans` entries (tag, length, span), grouped by layout."""
    n = len(batch)
    if n == 0:
        return []
    columns = _columns(batch)
    return [_encode_group(batch, columns, keys, rows) for keys, rows in _layouts(columns, n)]


# -- layout: which rows share a template ------------------------------------------------------


@dataclass(slots=True)
class _Column:
    """A varying part: `layout` (n,) int64 decides the template, `values` fills the open bytes."""

    key: str
    layout: Int | None
    values: NDArray[np.generic] | None
    kind: str  # i = varint, f = double, b = bool, s = string, status, links, parent, table
    table: list[str] | None = None
    present: Bool | None = None  # of a table: for each layout, which keys it has


_ABSENT = -1
_SORTED_AT_ONCE = 1 << 16  # layouts
_CACHED_BYTES = 1 << 18  # rows patched together: they stay in the processor's cache


def _columns(batch: SpanBatch) -> list[_Column]:
    """The parts of the batch that differ between rows."""
    columns = []
    if batch.parent is not None:
        roots = batch.parent == 0
        columns.append(_Column("", roots.astype(np.int64) if roots.any() else None, batch.parent, "parent"))
    columns += [
        _attribute_column(key, value)
        for key, value in batch.attributes.items()
        if not isinstance(value, str | bool | int | float)
    ]
    if batch.table is not None:
        columns.append(_table_column(batch.table))
    if isinstance(batch.status, np.ndarray):
        columns.append(_Column("", batch.status.astype(np.int64), None, "status"))
    if batch.link_count is not None:
        columns.append(_Column("", batch.link_count.astype(np.int64), None, "links"))
    return columns


def _attribute_column(key: str, value: Attribute) -> _Column:
    if isinstance(value, Strings):
        return _Column(key, value.codes.astype(np.int64), None, "s", value.table)
    values, present = (value.values, value.present) if isinstance(value, Optional) else (value, None)
    array = np.asarray(values)
    layout: Int | None = None
    if array.dtype.kind in "iu":
        array, kind = array.astype(np.int64, copy=False), "i"
        layout = _varint_widths(array)
    elif array.dtype.kind == "f":
        array, kind = array.astype(np.float64, copy=False), "f"
    elif array.dtype.kind == "b":
        kind = "b"
    else:
        raise TypeError(f"attribute {key!r}: no OTLP encoding for an array of {array.dtype}; use Strings")
    if present is not None and not present.all():
        base = layout if layout is not None else np.zeros(len(array), np.int64)
        layout = np.where(present, base, _ABSENT)
    return _Column(key, layout, array, kind)


def _table_column(table: Table) -> _Column:
    present = ~np.isnan(table.values)
    if (present == present[0]).all():
        return _Column("", None, table.values, "table", present=present[:1])
    patterns, layout = np.unique(present, axis=0, return_inverse=True)
    return _Column("", layout.reshape(-1), table.values, "table", present=patterns)


def _varint_widths(values: Int) -> Int:
    """Bytes that each value takes as a varint (negative: 10)."""
    low = int(values.min())
    if low >= 0 and (width := max(1, (low.bit_length() + 6) // 7)) == max(
        1, (int(values.max()).bit_length() + 6) // 7
    ):
        return np.full(len(values), width, np.int64)
    bounds = np.array([1 << (7 * k) for k in range(1, 9)], np.int64)
    widths = np.searchsorted(bounds, values, side="right") + 1
    return np.where(values < 0, 10, widths).astype(np.int64)


Layout = tuple[int, ...]


def _layouts(columns: list[_Column], n: int) -> list[tuple[Layout, Int | None]]:
    """(layout key of each column, rows) per group; rows None means all of them."""
    varying = [c.layout for c in columns if c.layout is not None and (c.layout != c.layout[0]).any()]
    first: Layout = tuple(0 if c.layout is None else int(c.layout[0]) for c in columns)
    if not varying:
        return [(first, None)]
    combined, size = np.zeros(n, np.int64), 1
    for layout in varying:
        low = int(layout.min())
        width = int(layout.max()) - low + 1
        if size * width > _SORTED_AT_ONCE:
            _, combined = np.unique(combined, return_inverse=True)
            size = int(combined.max()) + 1
            _, layout = np.unique(layout, return_inverse=True)
            low, width = 0, int(layout.max()) + 1
        combined = combined * width + (layout - low)
        size *= width
    if size <= _SORTED_AT_ONCE:
        combined = combined.astype(np.uint16)  # so few bits that NumPy sorts by radix
    order = np.argsort(combined, kind="stable")
    in_order = combined[order]
    starts = np.flatnonzero(in_order[1:] != in_order[:-1]) + 1
    groups: list[tuple[Layout, Int | None]] = []
    for rows in np.split(order, starts):
        row = rows[0]
        groups.append((tuple(0 if c.layout is None else int(c.layout[row]) for c in columns), rows))
    return groups


# -- templates --------------------------------------------------------------------------------


@dataclass(slots=True)
class _Template:
    """A serialized span entry and where its open bytes are."""

    image: NDArray[np.uint8]
    trace: int
    span: int
    parent: int
    start: int
    end: int
    open: list[int]  # offset of each column's open bytes, -1 where it has none
    table: Int  # offsets of all open bytes of the table
    link_offsets: list[tuple[int, int]]  # (trace id, span id) of each link


def _encode_group(batch: SpanBatch, columns: list[_Column], keys: Layout, rows: Int | None) -> Buffer:
    template = _known_template(batch, columns, keys)
    m = len(batch) if rows is None else len(rows)
    out = np.empty((m, len(template.image)), np.uint8)
    step = max(1, _CACHED_BYTES // len(template.image))
    for at in range(0, m, step):
        chosen = slice(at, at + step) if rows is None else rows[at : at + step]
        _fill(out[at : at + step], template, batch, columns, keys, chosen)
    return out.reshape(-1).data


def _fill(
    out: NDArray[np.uint8],
    template: _Template,
    batch: SpanBatch,
    columns: list[_Column],
    keys: Layout,
    rows: Int | slice,
) -> None:
    """Writes the template into each row of `out` and patches it with the batch's `rows`."""
    out[:] = template.image
    _put_u64(out, template.trace, batch.trace[rows], ">u8")
    _put_u64(out, template.span, batch.span[rows], ">u8")
    _put_u64(out, template.start, batch.start[rows], "<u8")
    _put_u64(out, template.end, batch.end[rows], "<u8")
    for column, key, offset in zip(columns, keys, template.open, strict=True):
        if offset < 0 or column.values is None:
            continue
        values = column.values[rows]
        if column.kind == "table":
            assert column.present is not None
            there = np.ascontiguousarray(values[:, column.present[key]], "<f8")
            out[:, template.table] = there.view(np.uint8).reshape(len(out), -1)
        elif column.kind == "parent":
            _put_u64(out, offset, values, ">u8")
        elif column.kind == "f":
            _put_u64(out, offset, values, "<f8")
        elif column.kind == "b":
            out[:, offset] = values
        else:
            _put_varint(out, offset, values.astype(np.uint64), key)
    for j, (trace_at, span_at) in enumerate(template.link_offsets):
        assert batch.link_trace is not None
        assert batch.link_span is not None
        _put_u64(out, trace_at, batch.link_trace[rows, j], ">u8")
        _put_u64(out, span_at, batch.link_span[rows, j], ">u8")


def _put_u64(out: NDArray[np.uint8], offset: int, values: NDArray[np.generic], dtype: str) -> None:
    """Writes 8 (or, for (m, 2) values, 16) bytes of each row at `offset`."""
    raw = values.astype(dtype, order="C").view(np.uint8).reshape(len(out), -1)
    out[:, offset : offset + raw.shape[1]] = raw


def _put_varint(out: NDArray[np.uint8], offset: int, values: Uint, width: int) -> None:
    for k in range(width):
        byte = (values >> np.uint64(7 * k)).astype(np.uint8) & np.uint8(0x7F)
        out[:, offset + k] = byte | np.uint8(0x80 if k < width - 1 else 0)


_templates: dict[object, _Template] = {}
_MOST_TEMPLATES = 256


def _known_template(batch: SpanBatch, columns: list[_Column], keys: Layout) -> _Template:
    """The template of such spans, kept from the last time unless texts differ from span to span."""
    if any(column.table is not None for column in columns):
        return _template(batch, columns, keys)
    shape = (
        (batch.name, batch.kind, None if isinstance(batch.status, np.ndarray) else int(batch.status), keys),
        tuple((key, type(value), _exactly(value)) for key, value in batch.attributes.items()),
        tuple((column.key, column.kind) for column in columns),
        tuple(
            c.present[key].tobytes() for c, key in zip(columns, keys, strict=True) if c.present is not None
        ),
        batch.table.keys if batch.table is not None else (),
    )
    template = _templates.get(shape)  # once: another thread may clear it at any time
    if template is None:
        if len(_templates) >= _MOST_TEMPLATES:
            _templates.clear()
        template = _templates[shape] = _template(batch, columns, keys)
    return template


def _exactly(value: Attribute) -> object:
    """What a template has of an attribute: all of a single value, nothing of a column."""
    if isinstance(value, float):
        return value.hex()  # 0.0 equals -0.0
    return value if isinstance(value, str | bool | int) else None


def _template(batch: SpanBatch, columns: list[_Column], keys: Layout) -> _Template:
    """Serializes one span of the group, with zeros where rows differ, and notes the offsets."""
    by_kind = {c.kind: i for i, c in enumerate(columns) if not c.key}
    by_key = {c.key: i for i, c in enumerate(columns) if c.key}
    open_at = [-1] * len(columns)
    body = bytearray(b"\x0a\x10" + bytes(16) + b"\x12\x08" + bytes(8))
    trace_at, span_at, parent_at = 2, 20, -1
    if "parent" in by_kind and keys[by_kind["parent"]] == 0:
        body += b"\x22\x08" + bytes(8)
        parent_at = open_at[by_kind["parent"]] = len(body) - 8
    body += _field(5, batch.name.encode()) if batch.name else b""
    body += b"\x30" + _varint(batch.kind) if batch.kind else b""
    start_at = len(body) + 1
    body += b"\x39" + bytes(8)
    end_at = len(body) + 1
    body += b"\x41" + bytes(8)
    for key, value in batch.attributes.items():
        if isinstance(value, str | bool | int | float):
            body += _field(9, _key_value(key, value))
            continue
        index = by_key[key]
        column = columns[index]
        if keys[index] == _ABSENT:
            continue
        if column.table is not None:
            body += _field(9, _key_value(key, column.table[keys[index]]))
            continue
        open_bytes = {"i": keys[index], "f": 8, "b": 1}[column.kind]
        tag = {"i": b"\x18", "f": b"\x21", "b": b"\x10"}[column.kind]
        body += _field(9, _field(1, key.encode()) + _field(2, tag + bytes(open_bytes)))
        open_at[index] = len(body) - open_bytes
    table_at = np.empty(0, np.int64)
    if batch.table is not None:
        index = by_kind["table"]
        present = columns[index].present
        assert present is not None
        fields, offsets = _doubles(tuple(compress(batch.table.keys, present[keys[index]].tolist())))
        table_at, open_at[index] = offsets + len(body), len(body)
        body += fields
    links: list[tuple[int, int]] = []
    for _ in range(keys[by_kind["links"]] if "links" in by_kind else 0):
        body += b"\x6a\x1c\x0a\x10" + bytes(16) + b"\x12\x08" + bytes(8)
        links.append((len(body) - 26, len(body) - 8))
    status = keys[by_kind["status"]] if "status" in by_kind else int(np.asarray(batch.status).flat[0])
    body += b"\x7a\x02\x18" + _varint(status) if status else b""
    head = b"\x12" + _varint(len(body))
    shift = len(head)
    return _Template(
        image=np.frombuffer(head + bytes(body), np.uint8),
        trace=trace_at + shift,
        span=span_at + shift,
        parent=parent_at + shift,
        start=start_at + shift,
        end=end_at + shift,
        open=[at + shift if at >= 0 else -1 for at in open_at],
        table=table_at + shift,
        link_offsets=[(a + shift, b + shift) for a, b in links],
    )


@lru_cache(maxsize=64)
def _doubles(keys: tuple[str, ...]) -> tuple[bytes, Int]:
    """Attributes of type double, and the offsets of the 8 open bytes of each."""
    fields = [_field(9, _key_value(key, 0.0)) for key in keys]
    ends = np.cumsum([len(f) for f in fields], dtype=np.int64)
    return b"".join(fields), (ends[:, None] + np.arange(-8, 0)).reshape(-1)


# -- protobuf primitives ----------------------------------------------------------------------


def _varint(value: int) -> bytes:
    value &= (1 << 64) - 1
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _field(number: int, payload: bytes) -> bytes:
    """A length-delimited field."""
    return _head(number, len(payload)) + payload


def _head(number: int, length: int) -> bytes:
    """Tag and length of a length-delimited field."""
    return _varint(number << 3 | 2) + _varint(length)


def _key_value(key: str, value: Scalar) -> bytes:
    if isinstance(value, str):
        any_value = _field(1, value.encode())
    elif isinstance(value, bool):
        any_value = b"\x10" + _varint(int(value))
    elif isinstance(value, int):
        any_value = b"\x18" + _varint(value)
    else:
        any_value = b"\x21" + struct.pack("<d", value)
    return _field(1, key.encode()) + _field(2, any_value)


def _about(resource: Resource) -> bytes:
    return _resource(tuple(resource.items()), tuple(map(type, resource.values())))


@lru_cache(maxsize=64)
def _resource(items: tuple[tuple[str, Scalar], ...], types: tuple[type, ...]) -> bytes:
    """`types` tell apart what is equal and not the same, such as 1 and True."""
    return _field(1, b"".join(_field(1, _key_value(k, v)) for k, v in items))


@lru_cache(maxsize=1)
def _scope() -> bytes:
    return _field(1, _field(1, SCOPE_NAME.encode()) + _field(2, __version__.encode()))


def resource_of(attributes: Mapping[str, Scalar]) -> Resource:
    """The resource attributes in a fixed order, so that equal resources are equal bytes."""
    return dict(sorted(attributes.items()))
