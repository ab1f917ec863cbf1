"""The span encoder against the protobuf library: every field, and the bytes themselves."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from benchlab_otel import __version__
from benchlab_otel.otlp.encode import (
    SCOPE_NAME,
    Optional,
    Repeated,
    SpanBatch,
    Strings,
    Table,
    encode_request,
)

U64 = st.integers(1, 2**64 - 1)
I64 = st.integers(-(2**63), 2**63 - 1) | st.integers(-1, 300)
TEXT = st.text(max_size=20) | st.just("x" * 200)
FLOAT = st.floats(allow_nan=False) | st.sampled_from([0.0, -0.0, float("inf")])
SCALAR = TEXT | st.booleans() | I64 | FLOAT


@st.composite
def batches(draw: DrawFn) -> tuple[SpanBatch, list[dict[str, Any]]]:
    """A batch and, row by row, what its attributes are."""
    n = draw(st.integers(0, 12))

    def rows(values: st.SearchStrategy[Any]) -> list[Any]:
        return draw(st.lists(values, min_size=n, max_size=n))

    attributes: dict[str, Any] = {}
    expected: list[dict[str, Any]] = [{} for _ in range(n)]
    for number in range(draw(st.integers(0, 5))):
        key = draw(st.text(max_size=8)) + f".{number}"
        kind = draw(st.sampled_from(["one", "text", "int", "float", "bool", "some"]))
        if kind == "one":
            attributes[key] = draw(SCALAR)
            values = [attributes[key]] * n
        elif kind == "text":
            table = draw(st.lists(TEXT, min_size=1, max_size=4))
            codes = rows(st.integers(-1, len(table) - 1))
            attributes[key] = Strings(np.array(codes, np.int32), table)
            values = [None if code < 0 else table[code] for code in codes]
        else:
            strategy, dtype = draw(
                st.sampled_from([(I64, np.int64), (FLOAT, np.float64), (st.booleans(), np.bool_)])
            )
            values = rows(strategy)
            attributes[key] = np.array(values, dtype)
            if kind == "some":
                present = rows(st.booleans())
                attributes[key] = Optional(attributes[key], np.array(present, np.bool_))
                values = [v if there else None for v, there in zip(values, present, strict=True)]
        for row, value in zip(expected, values, strict=True):
            if value is not None:
                row[key] = value
    batch = SpanBatch(
        name=draw(TEXT),
        trace=np.array(rows(st.tuples(U64, U64)), np.uint64).reshape(n, 2),
        span=np.array(rows(U64), np.uint64),
        parent=np.array(rows(st.just(0) | U64), np.uint64) if draw(st.booleans()) else None,
        start=np.array(rows(st.integers(1, 2**63 - 1)), np.int64),
        end=np.array(rows(st.integers(1, 2**63 - 1)), np.int64),
        kind=draw(st.integers(0, 5)),
        status=draw(st.integers(0, 2)),
        attributes=attributes,
    )
    if draw(st.booleans()):
        keys = [f"table.{number}" for number in range(draw(st.integers(0, 3)))]
        cells = [rows(FLOAT | st.just(math.nan)) for _ in keys]
        batch.table = Table(tuple(keys), np.array(cells, np.float64).reshape(len(keys), n).T)
        for key, column in zip(keys, cells, strict=True):
            for row, value in zip(expected, column, strict=True):
                if not math.isnan(value):
                    row[key] = value
    if draw(st.booleans()):
        batch.status = np.array(rows(st.integers(0, 2)), np.uint8)
    if draw(st.booleans()):
        width = draw(st.integers(0, 3))
        batch.link_count = np.array(rows(st.integers(0, width)), np.int64)
        links = [draw(st.lists(st.tuples(U64, U64, U64), min_size=width, max_size=width)) for _ in range(n)]
        table = np.array(links, np.uint64).reshape(n, width, 3)
        batch.link_trace, batch.link_span = table[:, :, :2], table[:, :, 2]
    return batch, expected


def any_value(value: Any) -> AnyValue:
    """The value as the library holds it."""
    if isinstance(value, bool | np.bool_):
        return AnyValue(bool_value=bool(value))
    if isinstance(value, int):
        return AnyValue(int_value=value)
    return AnyValue(double_value=value) if isinstance(value, float) else AnyValue(string_value=value)


def library_span(batch: SpanBatch, row: int, attributes: dict[str, Any]) -> Span:
    """The span of this row, filled in field by field."""

    def trace_id(pair: Any) -> bytes:
        return b"".join(int(half).to_bytes(8, "big") for half in pair)

    span = Span(
        trace_id=trace_id(batch.trace[row]),
        span_id=int(batch.span[row]).to_bytes(8, "big"),
        name=batch.name,
        kind=batch.kind,
        start_time_unix_nano=int(batch.start[row]),
        end_time_unix_nano=int(batch.end[row]),
    )
    if batch.parent is not None and batch.parent[row]:
        span.parent_span_id = int(batch.parent[row]).to_bytes(8, "big")
    for key, value in attributes.items():
        span.attributes.add(key=key).value.CopyFrom(any_value(value))
    if batch.link_count is not None:
        assert batch.link_trace is not None
        assert batch.link_span is not None
        for link in range(int(batch.link_count[row])):
            span.links.add(
                trace_id=trace_id(batch.link_trace[row, link]),
                span_id=int(batch.link_span[row, link]).to_bytes(8, "big"),
            )
    if status := int(np.broadcast_to(batch.status, len(batch))[row]):
        span.status.code = status
    return span


@settings(max_examples=300, deadline=None)
@given(batches(), st.dictionaries(TEXT.filter(bool), SCALAR, max_size=4))
def test_same_bytes_as_the_library(
    given_batch: tuple[SpanBatch, list[dict[str, Any]]], resource: Any
) -> None:
    batch, attributes = given_batch
    body = encode_request(resource, [batch])
    read = ExportTraceServiceRequest.FromString(body)
    assert read.SerializeToString(deterministic=True) == body
    (resource_spans,) = read.resource_spans
    assert {a.key: a.value for a in resource_spans.resource.attributes} == {
        key: any_value(value) for key, value in resource.items()
    }
    (scope_spans,) = resource_spans.scope_spans
    assert (scope_spans.scope.name, scope_spans.scope.version) == (SCOPE_NAME, __version__)
    expected = [library_span(batch, row, attributes[row]) for row in range(len(batch))]
    key = Span.SerializeToString
    assert sorted(map(key, scope_spans.spans)) == sorted(map(key, expected))


def test_rows_of_one_layout_keep_their_order() -> None:
    n = 5000
    batch = SpanBatch(
        name="frame",
        trace=np.ones((n, 2), np.uint64),
        span=np.arange(1, n + 1, dtype=np.uint64),
        start=np.arange(n),
        end=np.arange(n) + 1,
        attributes={"frame.number": np.full(n, 7), "ok": np.arange(n) % 2 == 0},
    )
    spans = ExportTraceServiceRequest.FromString(encode_request({}, [batch])).resource_spans[0]
    assert [s.start_time_unix_nano for s in spans.scope_spans[0].spans] == list(range(n))


def test_more_layouts_than_are_sorted_at_once() -> None:
    n = 3000
    rng = np.random.default_rng(3)
    numbers = {f"n{i}": (rng.integers(0, 2, n) << rng.integers(0, 62, n)).astype(np.int64) for i in range(8)}
    batch = SpanBatch(
        name="frame",
        trace=np.ones((n, 2), np.uint64),
        span=np.arange(1, n + 1, dtype=np.uint64),
        start=np.arange(n),
        end=np.arange(n) + 1,
        attributes=dict(numbers),
    )
    spans = ExportTraceServiceRequest.FromString(encode_request({}, [batch])).resource_spans[0].scope_spans[0]
    assert len(spans.spans) == n
    for span in spans.spans:
        row = span.start_time_unix_nano
        assert {a.key: a.value.int_value for a in span.attributes} == {k: v[row] for k, v in numbers.items()}


def test_several_batches_in_one_request() -> None:
    def named(name: str) -> SpanBatch:
        one = np.ones(1, np.uint64)
        return SpanBatch(name, np.ones((1, 2), np.uint64), one, one.astype(np.int64), one.astype(np.int64))

    read = ExportTraceServiceRequest.FromString(encode_request({}, [named("a"), named("b"), named("c")]))
    assert [s.name for s in read.resource_spans[0].scope_spans[0].spans] == ["a", "b", "c"]


def test_a_column_without_otlp_encoding_is_named() -> None:
    batch = SpanBatch(
        name="frame",
        trace=np.ones((1, 2), np.uint64),
        span=np.ones(1, np.uint64),
        start=np.ones(1, np.int64),
        end=np.ones(1, np.int64),
        attributes={"frame.tag": np.array([object()])},
    )
    with pytest.raises(TypeError, match=r"frame\.tag"):
        encode_request({}, [batch])


@given(st.integers(0, 40), st.integers(0, 4), st.integers(0, 2), TEXT, st.booleans())
def test_repeated_spans_are_the_bytes_of_the_same_spans_in_a_batch(n, numbers, absent, text, root):
    def batch(n: int, values: np.ndarray) -> SpanBatch:
        return SpanBatch(
            "sample",
            trace=np.array([[3, 4]], np.uint64).repeat(n, axis=0),
            span=np.arange(1, n + 1, dtype=np.uint64) * 0x0102030405060708,
            start=np.arange(1, n + 1) * 1_795_000_000_000_000_001,
            end=np.arange(1, n + 1) * 1_795_000_000_000_000_003,
            parent=None if root else np.full(n, 7, np.uint64),
            attributes={"hw.id": text, "meter.lag": 5},
            table=Table(tuple(f"key.{i}" for i in range(absent + numbers)), values),
        )

    missing = np.full((n + 1, absent), np.nan)
    there = np.arange((n + 1) * numbers).reshape(n + 1, numbers) / 7
    values = np.hstack([missing, there])
    repeated = Repeated({"host.name": text}, batch(1, values[:1]))
    whole = batch(n, values[:n])
    if n:
        request = repeated.request(whole.span, whole.start, whole.end, there[:n])
        assert request == encode_request({"host.name": text}, [whole])
