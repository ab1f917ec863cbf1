"""OTLP trace requests to arrays: spans of equal layout are read together by NumPy.

Spans that came from one place in a program share their length, tags, keys and value types. One
span of each layout is parsed byte by byte; every other span of the same length is compared with it
at the bytes that carry structure, and where these are equal its values stand at the same offsets.
What fits no common layout goes through the protobuf library, span by span.

Wire format: opentelemetry/proto/trace/v1/trace.proto and common/v1/common.proto, v1.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from opentelemetry.proto.common.v1.common_pb2 import AnyValue
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from benchlab_otel.model import Column, Int, Spans, Uint
from benchlab_otel.otlp.locate import by_value, locate
from benchlab_otel.otlp.protobuf import skip, varint

Bytes = NDArray[np.uint8]
Wanted = Callable[[str], bool]  # of an attribute's key


def all_attributes(_: str) -> bool:
    """Wants every attribute."""
    return True


def decode_traces(*requests: bytes, links: bool = False, wanted: Wanted = all_attributes) -> Spans:
    """The spans of one ExportTraceServiceRequest (= TracesData), or of several, as if they were one.

    Ids of a wrong length become 0 (invalid). `links=True` also fills `Spans.links`; of the attributes those
    are read whose keys are `wanted`. Raises ValueError, with the byte offset in all requests together, for
    what is not such a message.
    """
    body = b"".join((*requests, bytes(_WORD)))  # a span's last word may reach beyond it
    found = locate(body, len(body) - _WORD)
    builder = _Builder(len(found.offsets), links, wanted)
    raw = np.frombuffer(body, np.uint8)
    for length, rows in by_value(found.lengths):
        _decode_length(raw, body, found.offsets, length, rows, builder)
    return builder.finish(found.resource, [resource_attributes(*one) for one in found.resources])


def concatenate(blocks: Sequence[Spans]) -> Spans:
    """All rows of `blocks` in order, names and resources merged."""
    if len(blocks) == 1:
        return blocks[0]
    names: dict[str, int] = {}
    resources: list[dict[str, Any]] = []
    parts: dict[str, list[Part]] = {}
    name_columns, resource_columns = [], []
    links: dict[int, Uint] = {}
    base = 0
    for block in blocks:
        codes = np.array([names.setdefault(name, len(names)) for name in block.names], np.int32)
        name_columns.append(codes[block.name] if len(block) else block.name)
        resource_codes = np.array([_intern(resources, r) for r in block.resources], np.int32)
        resource_columns.append(resource_codes[block.resource] if len(block) else block.resource)
        of_layouts = {id(column.rows): column.rows for column in block.attributes.values()}
        moved = {key: rows + base for key, rows in of_layouts.items()}
        for key, column in block.attributes.items():
            parts.setdefault(key, []).append((moved[id(column.rows)], column.values))
        links.update({row + base: value for row, value in block.links.items()})
        base += len(block)
    return Spans(
        trace=np.concatenate([b.trace for b in blocks]) if blocks else np.empty((0, 2), np.uint64),
        span=_join([b.span for b in blocks], np.uint64),
        parent=_join([b.parent for b in blocks], np.uint64),
        name=_join(name_columns, np.int32),
        start=_join([b.start for b in blocks], np.int64),
        end=_join([b.end for b in blocks], np.int64),
        status=_join([b.status for b in blocks], np.uint8),
        resource=_join(resource_columns, np.int32),
        names=list(names),
        resources=resources,
        attributes=merged(parts),
        links=links,
    )


def take(spans: Spans, rows: Int) -> Spans:
    """The given rows of `spans`, each at most once, in the order given."""
    place = np.full(len(spans), -1, np.int64)
    place[rows] = np.arange(len(rows))
    parts: dict[str, list[Part]] = {}
    moved: dict[int, tuple[Int, NDArray[np.bool_]]] = {}  # by the rows, which attributes share
    for key, column in spans.attributes.items():
        if id(column.rows) not in moved:
            target = place[column.rows]
            moved[id(column.rows)] = target[target >= 0], target >= 0
        rows_now, kept = moved[id(column.rows)]
        if len(rows_now):
            parts[key] = [(rows_now, column.values[kept])]
    return Spans(
        trace=spans.trace[rows],
        span=spans.span[rows],
        parent=spans.parent[rows],
        name=spans.name[rows],
        start=spans.start[rows],
        end=spans.end[rows],
        status=spans.status[rows],
        resource=spans.resource[rows],
        names=spans.names,
        resources=spans.resources,
        attributes=merged(parts),
        links={int(place[r]): v for r, v in spans.links.items() if place[r] >= 0},
    )


def _intern(resources: list[dict[str, Any]], resource: dict[str, Any]) -> int:
    for i, known in enumerate(resources):
        if known == resource:
            return i
    resources.append(resource)
    return len(resources) - 1


def _join(arrays: Sequence[NDArray[Any]], dtype: type) -> NDArray[Any]:
    return np.concatenate(arrays) if arrays else np.empty(0, dtype)


# -- resources ---------------------------------------------------------------------------------


def resource_attributes(raw: bytes, offset: int) -> dict[str, Any]:
    """The attributes of a serialized Resource; ValueError, with the offset, where it is none."""
    try:
        return {kv.key: _plain(kv.value) for kv in Resource.FromString(raw).attributes}
    except DecodeError as error:
        raise ValueError(f"garbled OTLP: resource at byte {offset}: {error}") from None


def _plain(value: AnyValue) -> Any:
    """An AnyValue as a Python value."""
    kind = value.WhichOneof("value")
    if kind is None:
        return None
    if kind == "array_value":
        return [_plain(v) for v in value.array_value.values]
    if kind == "kvlist_value":
        return {kv.key: _plain(kv.value) for kv in value.kvlist_value.values}
    return getattr(value, kind)


# -- one layout at a time ---------------------------------------------------------------------


@dataclass(slots=True)
class _Value:
    """An attribute's place in a span: `kind` is f (double), i (varint), b (bool), s (text), o (other)."""

    key: str
    kind: str
    at: int
    size: int


@dataclass(frozen=True, slots=True)
class _Alike:
    """What rows have in common with one of them: its `bits` (w,) under `mask` (w,) in the words `at` (w,)."""

    at: Int
    mask: Uint
    bits: Uint


@dataclass(slots=True)
class _Layout:
    """One parsed span: what spans like it have in common, and where the values stand (-1: absent)."""

    alike: _Alike = field(init=False)  # known once it is parsed
    trace: int = -1
    span: int = -1
    parent: int = -1
    start: int = -1
    end: int = -1
    name: tuple[int, int] = (0, 0)
    status: int = 0
    values: list[_Value] = field(default_factory=list)
    links: list[tuple[int, int]] = field(default_factory=list)
    odd: bool = False  # something that only the protobuf library reads right: a value given in parts


_MAX_LAYOUTS = 24  # of one length; what is left then goes through the protobuf library
_WORTH_A_LAYOUT = 16  # spans that must share a layout; below that the library is faster
_CACHED_LAYOUTS, _CACHED_LENGTH = 512, 4096
_layouts: dict[int, tuple[_Layout, ...]] = {}  # seen before, by length: small live requests repeat them
_layouts_lock = threading.Lock()


def _remember(length: int, layout: _Layout) -> None:
    """Caches a layout, of one length the latest ones; what others send can't make the cache grow."""
    if length > _CACHED_LENGTH:
        return
    with _layouts_lock:
        if sum(map(len, _layouts.values())) >= _CACHED_LAYOUTS:
            _layouts.clear()
        _layouts[length] = (*_layouts.get(length, ()), layout)[-_MAX_LAYOUTS:]


def _decode_length(raw: Bytes, body: bytes, offsets: Int, length: int, rows: Int, out: _Builder) -> None:
    """Decodes the spans `rows`, all of `length` bytes."""
    if length == 0:
        return  # an empty span: all its columns stay 0, so its ids are invalid
    at = offsets[rows]
    if len(rows) >= _WORTH_A_LAYOUT:
        whole_words = -(-length // _WORD) * _WORD
        table = sliding_window_view(raw, whole_words)[at]
        for layout in _layouts.get(length, ()):
            rows, at, table = _decode_matching(layout, rows, at, table, out)
        for _ in range(_MAX_LAYOUTS):
            before = len(rows)
            if before < _WORTH_A_LAYOUT:
                break
            layout = _parse_layout(table[0, :length], int(at[0]))
            if layout.odd:
                break
            _remember(length, layout)
            rows, at, table = _decode_matching(layout, rows, at, table, out)
            if before - len(rows) < _WORTH_A_LAYOUT:
                break
    if len(rows):
        _decode_singly(body, rows, at, length, out)


def _decode_matching(
    layout: _Layout, rows: Int, at: Int, table: Bytes, out: _Builder
) -> tuple[Int, Int, Bytes]:
    """Reads the rows that have this layout; returns the others."""
    if not len(rows):
        return rows, at, table
    differs = _differs(table, layout.alike)
    if differs.all():
        return rows, at, table
    if differs.any():
        same = ~differs
        _read(layout, rows[same], table[same], out)
        return rows[differs], at[differs], table[differs]
    _read(layout, rows, table, out)
    return rows[:0], at[:0], table[:0]


_WORD = 8  # bytes that are looked at together
_ALL_BITS = np.uint64((1 << 64) - 1)


def _words(table: Bytes, at: int, dtype: str) -> NDArray[Any]:
    """The 8 bytes from `at` on of each row (n,), as a view."""
    return np.ndarray(len(table), dtype, table, at, table.strides[:1])


def _alike(image: Bytes, structure: Bytes) -> _Alike:
    """The words of an image (length,) in which there is a bit of `structure` (length,)."""
    mask, bits = np.zeros((2, -(-len(image) // _WORD) * _WORD), np.uint8)
    mask[: len(image)] = structure
    bits[: len(image)] = image & structure
    at = np.flatnonzero(mask.view("<u8"))
    return _Alike(at, mask.view("<u8")[at], bits.view("<u8")[at])


def _differs(table: Bytes, alike: _Alike) -> NDArray[np.bool_]:
    """Which rows (n,) of whole words differ in any of the bits."""
    words = table.view("<u8")
    differs = np.zeros(len(table), np.bool_)
    for at, mask, bits in zip(alike.at.tolist(), alike.mask, alike.bits, strict=True):
        column = words[:, at]
        differs |= (column if mask == _ALL_BITS else column & mask) != bits
    return differs


def _read(layout: _Layout, rows: Int, table: Bytes, out: _Builder) -> None:
    if layout.trace >= 0:
        out.trace[rows, 0] = _words(table, layout.trace, ">u8")
        out.trace[rows, 1] = _words(table, layout.trace + _WORD, ">u8")
    if layout.span >= 0:
        out.span[rows] = _words(table, layout.span, ">u8")
    if layout.parent >= 0:
        out.parent[rows] = _words(table, layout.parent, ">u8")
    if layout.start >= 0:
        out.start[rows] = _words(table, layout.start, "<i8")
    if layout.end >= 0:
        out.end[rows] = _words(table, layout.end, "<i8")
    if layout.status:
        out.status[rows] = layout.status
    _read_names(layout, rows, table, out)
    for value in layout.values:
        if not out.wanted(value.key):
            continue
        column = _read_value(value, table)
        if value.kind == "o":
            given = np.array([v is not None for v in column], np.bool_)
            out.add(value.key, rows[given], column[given])
        else:
            out.add(value.key, rows, column)
    if out.want_links and layout.links:
        places = [place for t, s in layout.links for place in (t, t + _WORD, s)]
        ids = np.stack([_words(table, place, ">u8") for place in places], axis=1).astype(np.uint64)
        for row, links in zip(rows.tolist(), ids.reshape(len(rows), -1, 3), strict=True):
            out.links[row] = links


def _read_names(layout: _Layout, rows: Int, table: Bytes, out: _Builder) -> None:
    at, size = layout.name
    texts = _texts(table, at, size)
    codes = {text: out.name_code(_utf8(text)) for text in dict.fromkeys(texts)}
    out.name[rows] = codes[texts[0]] if len(texts) == 1 else [codes[text] for text in texts]


def _read_value(value: _Value, table: Bytes) -> NDArray[Any]:
    part = table[:, value.at : value.at + value.size]
    if value.kind == "f":
        return _words(table, value.at, "<f8").astype(np.float64)
    if value.kind == "b":
        return np.asarray((part & np.uint8(0x7F)).any(axis=1))
    if value.kind == "i":
        number = np.zeros(len(part), np.uint64)
        for k in range(value.size):
            number |= (part[:, k] & np.uint8(0x7F)).astype(np.uint64) << np.uint64(7 * k)
        return number.view(np.int64)
    texts = _texts(table, value.at, value.size)
    convert: Callable[[bytes], Any] = _utf8 if value.kind == "s" else _other
    converted = {text: convert(text) for text in dict.fromkeys(texts)}
    if len(texts) < len(part):
        column = np.empty(len(part), object)
        column.fill(converted[texts[0]])
        return column
    return np.fromiter(map(converted.__getitem__, texts), object, len(part))


def _texts(table: Bytes, at: int, size: int) -> list[bytes]:
    """`size` bytes of each row from `at` on; one only where all are equal."""
    part, text = table[:, at : at + size], np.zeros(table.shape[1], np.uint8)
    text[at : at + size] = 0xFF
    if not _differs(table, _alike(table[0], text)).any():
        return [part[0].tobytes()]
    joined = np.ascontiguousarray(part)
    texts: list[bytes] = joined.view(np.dtype((np.void, joined.shape[1])))[:, 0].tolist()
    return texts


def _utf8(raw: bytes) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        raise ValueError(f"garbled OTLP: text that is not UTF-8: {raw[:40]!r}") from None


def _other(raw: bytes) -> Any:
    try:
        return _plain(AnyValue.FromString(raw))
    except DecodeError as error:
        raise ValueError(f"garbled OTLP: attribute value: {error}") from None


def _parse_layout(image: Bytes, offset: int) -> _Layout:
    """Parses one span; `offset` is for error messages."""
    body = image.tobytes()
    layout, structure = _Layout(), np.full(len(body), 0xFF, np.uint8)  # all its bits, but for its values
    pos, end = 0, len(body)
    while pos < end:
        try:
            tag, at = varint(body, pos, end)
            after = skip(body, pos, end)
        except ValueError as error:
            raise ValueError(f"{error} of the span at byte {offset}") from None
        number, wire = tag >> 3, tag & 7
        if wire == 2:
            _, at = varint(body, at, end)
        _place(layout, structure, body, number, wire, at, after)
        pos = after
    layout.alike = _alike(image, structure)
    return layout


_BYTES_FIELDS = {1: ("trace", 16), 2: ("span", 8), 4: ("parent", 8)}


def _place(
    layout: _Layout, structure: Bytes, body: bytes, number: int, wire: int, at: int, after: int
) -> None:
    """Notes one field of the span, and opens the bits of `structure` that are its value."""
    opened = structure[at:after]
    if wire == 2 and number in _BYTES_FIELDS:
        name, size = _BYTES_FIELDS[number]
        setattr(layout, name, at if after - at == size else -1)
        opened[:] = 0
    elif wire == 1 and number in (7, 8):
        setattr(layout, "start" if number == 7 else "end", at)
        opened[:] = 0
    elif wire == 2 and number == 5:
        layout.name = (at, after - at)
        opened[:] = 0
    elif wire == 2 and number == 9:
        _place_attribute(layout, structure, body, at, after)
    elif wire == 2 and number == 13:
        _place_link(layout, structure, body, at, after)
    elif wire == 2 and number == 15:
        for inner, value, inner_wire in _inner(body, at, after):
            if inner == 3 and inner_wire == 0:
                layout.status = _status(varint(body, value[0], after)[0])
    elif wire == 0:
        opened[:] = opened & 0x80  # kinds, flags, states, events: nothing here reads them
    elif wire in (1, 5) or (wire == 2 and number in (3, 11)):
        opened[:] = 0


def _inner(body: bytes, pos: int, end: int) -> Iterable[tuple[int, tuple[int, int], int]]:
    """(field number, (start, end) of its content, wire type) of a message in `body[pos:end]`."""
    while pos < end:
        tag, at = varint(body, pos, end)
        after = skip(body, pos, end)
        if tag & 7 == 2:
            _, at = varint(body, at, end)
        yield tag >> 3, (at, after), tag & 7
        pos = after


def _status(code: int) -> int:
    """An enum's number as a byte, 255 for what no version knows (protobuf keeps the low 32 bits)."""
    code &= 0xFFFFFFFF
    return code if code < 255 else 255


_KINDS = {(1, 2): "s", (2, 0): "b", (3, 0): "i", (4, 1): "f"}


def _place_attribute(layout: _Layout, structure: Bytes, body: bytes, at: int, end: int) -> None:
    key, whole = "", None
    for number, (a, b), wire in _inner(body, at, end):
        if number == 1 and wire == 2:
            key = _utf8(body[a:b])
        elif number == 2 and wire == 2:
            layout.odd |= whole is not None
            whole = (a, b)
    if whole is None or whole[0] == whole[1]:
        return  # an attribute without a value says nothing
    given = list(_inner(body, *whole))
    number, (a, b), wire = given[-1]
    kind = _KINDS.get((number, wire))
    if kind is None or len(given) > 1:
        kind, (a, b) = "o", whole
    structure[a:b] = 0x80 if kind in "ib" else 0
    layout.values.append(_Value(key, kind, a, b - a))


def _place_link(layout: _Layout, structure: Bytes, body: bytes, at: int, end: int) -> None:
    found = {
        number: (a, b) for number, (a, b), wire in _inner(body, at, end) if wire == 2 and number in (1, 2)
    }
    trace, span = found.get(1, (0, 0)), found.get(2, (0, 0))
    if trace[1] - trace[0] == 16 and span[1] - span[0] == 8:
        structure[trace[0] : trace[1]] = 0
        structure[span[0] : span[1]] = 0
        layout.links.append((trace[0], span[0]))


def _decode_singly(body: bytes, rows: Int, at: Int, length: int, out: _Builder) -> None:
    """Reads spans by the protobuf library, one by one."""
    spans = [_span(body[start : start + length], start) for start in at.tolist()]
    out.trace[rows] = np.frombuffer(b"".join(_id(span.trace_id, 16) for span in spans), ">u8").reshape(-1, 2)
    out.span[rows] = np.frombuffer(b"".join(_id(span.span_id, 8) for span in spans), ">u8")
    out.parent[rows] = np.frombuffer(b"".join(_id(span.parent_span_id, 8) for span in spans), ">u8")
    out.start[rows] = np.array([span.start_time_unix_nano for span in spans], np.uint64).view(np.int64)
    out.end[rows] = np.array([span.end_time_unix_nano for span in spans], np.uint64).view(np.int64)
    out.status[rows] = [_status(span.status.code) for span in spans]
    out.name[rows] = [out.name_code(span.name) for span in spans]
    for row, span in zip(rows.tolist(), spans, strict=True):
        given = {
            kv.key: _plain(kv.value)
            for kv in span.attributes
            if kv.value.WhichOneof("value") and out.wanted(kv.key)
        }
        for key, value in given.items():
            out.add_one(key, row, value)
        if out.want_links:
            links = [
                (*np.frombuffer(link.trace_id, ">u8"), int.from_bytes(link.span_id, "big"))
                for link in span.links
                if len(link.trace_id) == 16 and len(link.span_id) == 8
            ]
            if links:
                out.links[row] = np.array(links, np.uint64)


def _span(raw: bytes, offset: int) -> Span:
    try:
        return Span.FromString(raw)
    except DecodeError as error:
        raise ValueError(f"garbled OTLP: span at byte {offset}: {error}") from None


def _id(raw: bytes, length: int) -> bytes:
    return raw if len(raw) == length else bytes(length)


# -- columns ----------------------------------------------------------------------------------


class _Builder:
    """Columns being filled: each layout writes its rows."""

    def __init__(self, n: int, want_links: bool, wanted: Wanted) -> None:
        self.trace = np.zeros((n, 2), np.uint64)
        self.span = np.zeros(n, np.uint64)
        self.parent = np.zeros(n, np.uint64)
        self.start = np.zeros(n, np.int64)
        self.end = np.zeros(n, np.int64)
        self.status = np.zeros(n, np.uint8)
        self.name = np.zeros(n, np.int32)
        self.names: dict[str, int] = {"": 0}
        self.parts: dict[str, list[Part]] = {}
        self.ones: dict[tuple[str, type], tuple[list[int], list[Any]]] = {}
        self.links: dict[int, Uint] = {}
        self.want_links = want_links
        self.wanted = wanted

    def name_code(self, name: str) -> int:
        return self.names.setdefault(name, len(self.names))

    def add(self, key: str, rows: Int, values: NDArray[Any]) -> None:
        self.parts.setdefault(key, []).append((rows, values))

    def add_one(self, key: str, row: int, value: Any) -> None:
        kind = type(value) if isinstance(value, bool | int | float) else object
        rows, values = self.ones.setdefault((key, kind), ([], []))
        rows.append(row)
        values.append(value)

    def finish(self, resource: NDArray[np.int32], resources: list[dict[str, Any]]) -> Spans:
        for (key, kind), (rows, values) in self.ones.items():
            column: NDArray[Any] = np.empty(
                len(values), {int: np.int64, float: np.float64, bool: np.bool_}.get(kind, object)
            )
            for i, value in enumerate(values):
                column[i] = value
            order = np.argsort(rows)
            self.add(key, np.array(rows, np.int64)[order], column[order])
        return Spans(
            trace=self.trace,
            span=self.span,
            parent=self.parent,
            name=self.name,
            start=self.start,
            end=self.end,
            status=self.status,
            resource=resource,
            names=list(self.names),
            resources=resources,
            attributes=merged(self.parts),
            links=self.links,
        )


Part = tuple[Int, NDArray[Any]]  # rows, ascending, and their values


def merged(parts: dict[str, list[Part]]) -> dict[str, Column]:
    """The parts of each attribute as a column; values of different types become objects."""
    places: dict[tuple[int, ...], tuple[Int, Int | None]] = {}  # attributes of one layout have the same rows
    out = {}
    for key, found in parts.items():
        all_rows = [rows for rows, _ in found]
        same = tuple(map(id, all_rows))
        if same not in places:
            places[same] = _ascending(all_rows)
        rows, order = places[same]
        values = _joined([values for _, values in found])
        out[key] = Column(rows, values if order is None else values[order])
    return out


def _ascending(parts: list[Int]) -> tuple[Int, Int | None]:
    """(rows, which of the parts' values they have), None where they have them all as they come.

    Of a key given twice in a span the last value counts.
    """
    rows = parts[0] if len(parts) == 1 else np.concatenate(parts)
    if (rows[1:] > rows[:-1]).all():
        return rows, None
    order = np.argsort(rows, kind="stable")
    rows = rows[order]
    last = np.append(rows[1:] != rows[:-1], True)
    return rows[last], order[last]


def _joined(arrays: list[NDArray[Any]]) -> NDArray[Any]:
    if len(arrays) == 1:
        return arrays[0]
    if len({a.dtype for a in arrays}) > 1:
        arrays = [a.astype(object) for a in arrays]
    return np.concatenate(arrays)
