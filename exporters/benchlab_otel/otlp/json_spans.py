"""OTLP/JSON trace requests to arrays: typed decoding of what writers usually write, straight to columns.

Usual are camelCase names, ids in hexadecimal, numbers for enums and attributes that are texts, numbers
or booleans: all that the Collector and the SDKs write but for lists and bytes. Anything else goes, a
request at a time, through protobuf (`otlp/json.py`), which takes every spelling and says what is wrong;
both ways give the same arrays. Fields that nothing here reads are not checked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from operator import attrgetter
from typing import Any, Literal

import msgspec
import numpy as np
from msgspec import UNSET, Raw, Struct, UnsetType
from numpy.typing import NDArray

from benchlab_otel.model import Column, Int, Spans, Uint
from benchlab_otel.otlp.decode import Part, concatenate, decode_traces, merged, resource_attributes
from benchlab_otel.otlp.json import resource_to_protobuf, traces_to_protobuf
from benchlab_otel.otlp.locate import by_value

_Unusual = Literal["\0"] | UnsetType  # a field whose presence ends typed decoding: no text equals this


class _Value(Struct, gc=False, frozen=True):
    stringValue: str | UnsetType = UNSET
    intValue: int | UnsetType = UNSET
    doubleValue: float | UnsetType = UNSET
    boolValue: bool | UnsetType = UNSET
    arrayValue: _Unusual = UNSET
    kvlistValue: _Unusual = UNSET
    bytesValue: _Unusual = UNSET
    string_value: _Unusual = UNSET
    int_value: _Unusual = UNSET
    double_value: _Unusual = UNSET
    bool_value: _Unusual = UNSET
    array_value: _Unusual = UNSET
    kvlist_value: _Unusual = UNSET
    bytes_value: _Unusual = UNSET


class _KeyValue(Struct, gc=False):
    key: str = ""
    value: _Value = _Value()


class _Status(Struct, gc=False, frozen=True):
    code: int = 0


_UNSET = _Status()


class _Span(Struct, gc=False):
    traceId: str = ""
    spanId: str = ""
    parentSpanId: str = ""
    name: str = ""
    startTimeUnixNano: int = 0
    endTimeUnixNano: int = 0
    status: _Status = _UNSET
    trace_id: _Unusual = UNSET
    span_id: _Unusual = UNSET
    parent_span_id: _Unusual = UNSET
    start_time_unix_nano: _Unusual = UNSET
    end_time_unix_nano: _Unusual = UNSET


class _FullSpan(_Span, gc=False):
    attributes: list[_KeyValue] = []


class _Scope(Struct, gc=False):
    spans: Sequence[_Span] = []


class _FullScope(_Scope, gc=False):
    spans: Sequence[_FullSpan] = []


class _Group(Struct, gc=False):
    resource: Raw = Raw(b"{}")
    scopeSpans: Sequence[_Scope] = []
    scope_spans: _Unusual = UNSET


class _FullGroup(_Group, gc=False):
    scopeSpans: Sequence[_FullScope] = []


class _Request(Struct, gc=False):
    resourceSpans: Sequence[_Group] = []
    resource_spans: _Unusual = UNSET


class _FullRequest(_Request, gc=False):
    resourceSpans: Sequence[_FullGroup] = []


_NARROW, _FULL = (
    msgspec.json.Decoder(_Request, strict=False),
    msgspec.json.Decoder(_FullRequest, strict=False),
)
_TOGETHER = 4096  # spans that become columns at once: as many as the processor's cache holds


def decode_json_traces(lines: Sequence[bytes], *, attributes: bool = True) -> Spans:
    """The spans of OTLP/JSON requests, one a line; without `attributes` only ids, names, times and status.

    As `decode_traces` of the same requests in protobuf, but for the links. Raises ValueError as
    `traces_to_protobuf` does.
    """
    try:
        return concatenate(list(_typed(lines, _FULL if attributes else _NARROW)))
    except (ValueError, OverflowError, RecursionError):  # msgspec's errors are ValueErrors
        if len(lines) == 1:
            return _any_spelling(lines[0], attributes)
    middle = len(lines) // 2
    return concatenate(
        [decode_json_traces(part, attributes=attributes) for part in (lines[:middle], lines[middle:])]
    )


def _any_spelling(line: bytes, attributes: bool) -> Spans:
    spans = decode_traces(traces_to_protobuf(line))
    if not attributes:
        spans.attributes = {}
    return spans


def _typed(lines: Iterable[bytes], decoder: msgspec.json.Decoder[Any]) -> Iterable[Spans]:
    """Raises ValueError or OverflowError where something is unusual."""
    spans: list[_Span] = []
    counts: list[int] = []  # spans of each resource in turn
    texts: list[bytes] = []
    for line in lines:
        for group in decoder.decode(line).resourceSpans:
            before = len(spans)
            for scope in group.scopeSpans:
                spans += scope.spans
            counts.append(len(spans) - before)
            texts.append(bytes(group.resource))
        if len(spans) >= _TOGETHER:
            yield _columns(spans, counts, texts, decoder is _FULL)
            spans, counts, texts = [], [], []
    yield _columns(spans, counts, texts, decoder is _FULL)


_TRACE, _SPAN, _PARENT, _NAME, _START, _END, _STATUS, _ATTRIBUTES = map(
    attrgetter,
    (
        *("traceId", "spanId", "parentSpanId", "name", "startTimeUnixNano", "endTimeUnixNano"),
        *("status", "attributes"),
    ),
)
_NO_PARENT = "0" * 16


def _columns(spans: list[_Span], counts: list[int], texts: list[bytes], attributes: bool) -> Spans:
    names = list(map(_NAME, spans))
    codes = {name: i for i, name in enumerate(dict.fromkeys(names))}
    resources = {text: i for i, text in enumerate(dict.fromkeys(texts))}
    n = len(spans)
    return Spans(
        trace=_ids(map(_TRACE, spans), n, 32),
        span=_ids(map(_SPAN, spans), n, 16)[:, 0],
        parent=_ids((text or _NO_PARENT for text in map(_PARENT, spans)), n, 16)[:, 0],
        name=np.fromiter(map(codes.__getitem__, names), np.int32, n),
        start=np.fromiter(map(_START, spans), np.int64, n),
        end=np.fromiter(map(_END, spans), np.int64, n),
        status=_statuses(spans),
        resource=np.repeat(np.array([resources[text] for text in texts], np.int32), counts),
        names=list(codes),
        resources=[resource_attributes(resource_to_protobuf(text), 0) for text in resources],
        attributes=_attributes(spans) if attributes else {},
    )


def _ids(texts: Iterable[str], n: int, digits: int) -> Uint:
    """(n, digits / 16) of n ids; ValueError where one has not so many hexadecimal digits."""
    joined = " ".join(texts) + " "
    raw = bytes.fromhex(joined)  # blanks between bytes are passed over
    ends = np.frombuffer(joined.encode(), np.uint8)[digits :: digits + 1]
    whole = len(joined) == max(1, n * (digits + 1)) and 2 * len(raw) == n * digits
    if not whole or (n and (ends != ord(" ")).any()):
        raise ValueError("an id of another length")
    return np.frombuffer(raw, ">u8").reshape(n, digits // 16).astype(np.uint64)


def _statuses(spans: list[_Span]) -> NDArray[np.uint8]:
    found = list(map(_STATUS, spans))
    if found.count(_UNSET) == len(found):
        return np.zeros(len(found), np.uint8)
    return np.fromiter((status.code for status in found), np.uint8, len(found))


# -- attributes -------------------------------------------------------------------------------

_KINDS: tuple[tuple[Callable[[Any], Any], type], ...] = (
    (attrgetter("stringValue"), object),
    (attrgetter("intValue"), np.int64),
    (attrgetter("doubleValue"), np.float64),
    (attrgetter("boolValue"), np.bool_),
)
_KEY, _VALUE = attrgetter("key"), attrgetter("value")


def _attributes(spans: list[_Span]) -> dict[str, Column]:
    lists = list(map(_ATTRIBUTES, spans))
    pairs = [pair for pairs in lists for pair in pairs]
    if not pairs:
        return {}
    rows = np.repeat(np.arange(len(spans)), np.fromiter(map(len, lists), np.int64, len(lists)))
    keys, values = list(map(_KEY, pairs)), list(map(_VALUE, pairs))
    names = list(dict.fromkeys(keys))
    codes = {name: i for i, name in enumerate(names)}
    found: dict[str, list[Part]] = {}
    for code, places in by_value(np.fromiter(map(codes.__getitem__, keys), np.int64, len(keys))):
        of_key = rows[places]
        if (of_key[1:] == of_key[:-1]).any():
            raise ValueError("a key that a span has twice")
        parts = list(_parts(of_key, [values[i] for i in places.tolist()]))
        if parts:
            found[names[code]] = parts
    return merged(found)


def _parts(rows: Int, values: list[_Value]) -> Iterable[Part]:
    """The rows and values of each type; a value of no type says nothing, one of several is unusual."""
    given = 0
    for kind, dtype in _KINDS:
        of_kind = list(map(kind, values))
        if UNSET not in of_kind:
            yield rows, _array(of_kind, dtype)
            given += len(values)
            continue
        places = [i for i, value in enumerate(of_kind) if value is not UNSET]
        if places:
            yield rows[places], _array([of_kind[i] for i in places], dtype)
            given += len(places)
    if given > len(values):
        raise ValueError("a value of two types")


def _array(values: list[Any], dtype: type) -> NDArray[Any]:
    return np.fromiter(values, dtype, len(values))
