"""decode_traces beside the protobuf library: the same spans from whatever the library can read."""

from __future__ import annotations

import random
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from google.protobuf.message import DecodeError
from hypothesis import example, given, settings
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, ArrayValue, KeyValue, KeyValueList
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, ScopeSpans, Span, Status

from benchlab_otel.model import Spans
from benchlab_otel.otlp import decode
from benchlab_otel.otlp.decode import concatenate, decode_traces, take
from benchlab_otel.otlp.encode import Optional, SpanBatch, Strings, encode_request

# -- a plain reading, span by span ------------------------------------------------------------


def plain(value: AnyValue) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [plain(v) for v in value.array_value.values]
    if kind == "kvlist_value":
        return {kv.key: plain(kv.value) for kv in value.kvlist_value.values}
    return getattr(value, kind) if kind else None


def number(raw: bytes, length: int) -> tuple[int, ...]:
    words = raw if len(raw) == length else bytes(length)
    return tuple(int.from_bytes(words[i : i + 8], "big") for i in range(0, length, 8))


def signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


def same(value: Any) -> str:
    """Text that is equal for equal values of equal type, NaN included."""
    if isinstance(value, np.generic):
        value = value.item()
    return f"{type(value).__name__} {value!r}"


def by_library(body: bytes) -> list[tuple[Any, ...]]:
    out = []
    for group in ExportTraceServiceRequest.FromString(body).resource_spans:
        resource = same({kv.key: plain(kv.value) for kv in group.resource.attributes})
        for scope in group.scope_spans:
            for span in scope.spans:
                attributes = {
                    kv.key: same(plain(kv.value)) for kv in span.attributes if kv.value.WhichOneof("value")
                }
                links = [
                    (*number(link.trace_id, 16), *number(link.span_id, 8))
                    for link in span.links
                    if len(link.trace_id) == 16 and len(link.span_id) == 8
                ]
                code = span.status.code
                out.append(
                    (
                        number(span.trace_id, 16),
                        number(span.span_id, 8)[0],
                        number(span.parent_span_id, 8)[0],
                        span.name,
                        signed(span.start_time_unix_nano),
                        signed(span.end_time_unix_nano),
                        code if 0 <= code < 255 else 255,
                        resource,
                        attributes,
                        links,
                    )
                )
    return out


def rows_of(spans: Spans) -> list[tuple[Any, ...]]:
    attributes: list[dict[str, str]] = [{} for _ in range(len(spans))]
    for key, column in spans.attributes.items():
        assert (np.diff(column.rows) > 0).all(), key
        for row, value in zip(column.rows.tolist(), column.values, strict=True):
            attributes[row][key] = same(value)
    return [
        (
            tuple(spans.trace[i].tolist()),
            int(spans.span[i]),
            int(spans.parent[i]),
            spans.names[spans.name[i]],
            int(spans.start[i]),
            int(spans.end[i]),
            int(spans.status[i]),
            same(spans.resources[spans.resource[i]]),
            attributes[i],
            [tuple(link) for link in spans.links.get(i, np.empty((0, 3))).tolist()],
        )
        for i in range(len(spans))
    ]


def check(body: bytes) -> Spans:
    spans = decode_traces(body, links=True)
    assert rows_of(spans) == by_library(body)
    return spans


# -- random requests ----------------------------------------------------------------------------

TEXT = st.one_of(
    st.sampled_from(["", "a", "b", "frame", "decode", "naïve", "\0", "x" * 130]), st.text(max_size=5)
)
IDS = st.one_of(
    st.binary(min_size=8, max_size=8), st.binary(min_size=16, max_size=16), st.binary(max_size=20)
)
TIMES = st.one_of(
    st.just(0), st.integers(1_700_000_000 * 10**9, 1_800_000_000 * 10**9), st.integers(0, 2**64 - 1)
)
INTEGERS = st.one_of(st.integers(-3, 300), st.integers(-(2**63), 2**63 - 1))
SIMPLE = st.one_of(
    st.builds(AnyValue),
    st.builds(AnyValue, string_value=TEXT),
    st.builds(AnyValue, bool_value=st.booleans()),
    st.builds(AnyValue, int_value=INTEGERS),
    st.builds(AnyValue, double_value=st.floats()),
    st.builds(AnyValue, bytes_value=st.binary(max_size=4)),
)
VALUES = st.recursive(
    SIMPLE,
    lambda inner: st.one_of(
        st.builds(AnyValue, array_value=st.builds(ArrayValue, values=st.lists(inner, max_size=3))),
        st.builds(
            AnyValue,
            kvlist_value=st.builds(
                KeyValueList, values=st.lists(st.builds(KeyValue, key=TEXT, value=inner), max_size=3)
            ),
        ),
    ),
    max_leaves=4,
)
ATTRIBUTES = st.lists(
    st.one_of(st.builds(KeyValue, key=TEXT, value=VALUES), st.builds(KeyValue, key=TEXT)), max_size=4
)
LINKS = st.lists(
    st.builds(Span.Link, trace_id=IDS, span_id=IDS, trace_state=TEXT, attributes=ATTRIBUTES), max_size=3
)
EVENTS = st.lists(st.builds(Span.Event, time_unix_nano=TIMES, name=TEXT, attributes=ATTRIBUTES), max_size=2)
STATUS = st.one_of(st.none(), st.builds(Status, code=st.sampled_from([0, 1, 2]), message=TEXT))
SPANS = st.builds(
    Span,
    trace_id=IDS,
    span_id=IDS,
    parent_span_id=st.one_of(st.just(b""), IDS),
    trace_state=st.one_of(st.just(""), TEXT),
    flags=st.sampled_from([0, 1, 0x101]),
    name=TEXT,
    kind=st.sampled_from([0, 1, 5]),
    start_time_unix_nano=TIMES,
    end_time_unix_nano=TIMES,
    attributes=ATTRIBUTES,
    dropped_attributes_count=st.sampled_from([0, 0, 3, 300]),
    events=EVENTS,
    links=LINKS,
    status=STATUS,
)


@st.composite
def requests(draw: st.DrawFn) -> bytes:
    """Few kinds of span, each several times with other ids and times, as programs send them."""
    kinds = draw(st.lists(SPANS, min_size=1, max_size=5))
    chance = random.Random(draw(st.integers(0, 2**32)))
    request = ExportTraceServiceRequest()
    for _ in range(draw(st.integers(1, 3))):
        group = request.resource_spans.add()
        group.resource.attributes.extend(draw(ATTRIBUTES))
        for _ in range(draw(st.integers(0, 2))):
            scope = group.scope_spans.add(schema_url=draw(TEXT))
            for _ in range(draw(st.integers(0, 30))):
                scope.spans.append(varied(chance.choice(kinds), chance))
    return request.SerializeToString()


def varied(kind: Span, chance: random.Random) -> Span:
    span = Span()
    span.CopyFrom(kind)
    if span.span_id:
        span.span_id = chance.randbytes(len(span.span_id))
    if span.start_time_unix_nano:
        span.start_time_unix_nano = chance.getrandbits(60) + 1
    for kv in span.attributes:
        if kv.value.WhichOneof("value") == "int_value":
            kv.value.int_value = chance.choice([kv.value.int_value, chance.getrandbits(7), -1])
        elif kv.value.WhichOneof("value") == "string_value" and chance.random() < 0.3:
            kv.value.string_value = kv.value.string_value[::-1]
        elif kv.value.WhichOneof("value") == "bytes_value":
            kv.value.bytes_value = chance.randbytes(len(kv.value.bytes_value))
    return span


@settings(max_examples=100, deadline=None)
@given(requests(), requests())
def test_reads_what_the_protobuf_library_reads(one: bytes, other: bytes) -> None:
    check(one)
    check(one + other)  # concatenated requests are one request


@settings(max_examples=40, deadline=None)
@given(st.lists(requests(), min_size=1, max_size=3), st.randoms(use_true_random=False))
def test_blocks_concatenated_and_rows_taken(bodies: list[bytes], chance: random.Random) -> None:
    joined = concatenate([decode_traces(body, links=True) for body in bodies])
    expected = by_library(b"".join(bodies))
    assert rows_of(joined) == expected
    rows = sorted(chance.sample(range(len(expected)), len(expected) // 2))
    assert rows_of(take(joined, np.array(rows, np.int64))) == [expected[i] for i in rows]


@settings(max_examples=40, deadline=None)
@given(requests(), st.sets(TEXT))
def test_only_the_wanted_attributes_are_read(body: bytes, wanted: set[str]) -> None:
    expected = decode_traces(body)
    expected.attributes = {key: column for key, column in expected.attributes.items() if key in wanted}
    found = decode_traces(body, wanted=wanted.__contains__)
    assert rows_of(found) == rows_of(expected)
    assert found.attributes.keys() == expected.attributes.keys()


@settings(max_examples=20, deadline=None)
@given(st.lists(requests(), max_size=3))
def test_several_requests_are_as_one(bodies: list[bytes]) -> None:
    assert rows_of(decode_traces(*bodies, links=True)) == by_library(b"".join(bodies))


@settings(max_examples=20, deadline=None)
@given(requests(), requests(), st.randoms(use_true_random=False))
def test_many_requests_that_repeat_their_form(one: bytes, other: bytes, chance: random.Random) -> None:
    check(b"".join(chance.choice([one, other]) for _ in range(60)))


def test_requests_of_equal_size_and_unequal_form() -> None:
    """They differ in their resource, in where their second span begins, or in what their spans say only."""

    def request(i: int, host: str, first: str, second: str) -> bytes:
        spans = [span_of(2 * i + 1, name=first), span_of(2 * i + 2, name=second)]
        group = ResourceSpans(scope_spans=[ScopeSpans(spans=spans)])
        group.resource.attributes.add(key="host.name").value.string_value = host
        return ExportTraceServiceRequest(resource_spans=[group]).SerializeToString()

    forms = [
        ("a", "xx", "yyyy"),
        ("a", "zz", "yyyy"),
        ("a", "xxxx", "yy"),
        ("b", "xx", "yyyy"),
        ("b", "xxxx", "yy"),
    ]
    bodies = [request(i, *forms[i % len(forms)]) for i in range(200)]
    assert len(set(map(len, bodies))) == 1
    check(b"".join(bodies[40:] + bodies[:40]))
    few = [request(i, *forms[0]) for i in range(60)] + bodies[:20]
    check(b"".join(few))


# -- layouts ------------------------------------------------------------------------------------


def body_of(*spans: Span) -> bytes:
    group = ResourceSpans(scope_spans=[ScopeSpans(spans=spans)])
    return ExportTraceServiceRequest(resource_spans=[group]).SerializeToString()


def span_of(i: int, *attributes: tuple[str, AnyValue], **extra: Any) -> Span:
    return Span(
        trace_id=i.to_bytes(16, "big"),
        span_id=i.to_bytes(8, "big"),
        attributes=[KeyValue(key=k, value=v) for k, v in attributes],
        **extra,
    )


def test_equal_length_but_another_layout() -> None:
    """All of these attributes take the same bytes; only their tags differ."""
    forms = [
        ("ab", AnyValue(double_value=1.5)),
        ("ab", AnyValue(string_value="1234567")),
        ("ab", AnyValue(bytes_value=b"1234567")),
        ("ab", AnyValue(int_value=1 << 50)),
        ("ac", AnyValue(double_value=1.5)),
        ("abcdefg", AnyValue(int_value=5 << 14)),
        ("abcdefghi", AnyValue(bool_value=True)),
        ("abcdefghi", AnyValue(int_value=7)),
        ("abcdefghi", AnyValue(string_value="")),
    ]
    spans = [span_of(i + 1, forms[i % len(forms)]) for i in range(200)]
    assert len({len(s.SerializeToString()) for s in spans}) == 1
    check(body_of(*spans))


@pytest.mark.parametrize("count", [30, 60])
def test_more_layouts_of_one_length_than_are_looked_for(count: int) -> None:
    spans = [span_of(i + 1, (f"k{i % count:02}", AnyValue(int_value=i % 100))) for i in range(4 * count)]
    spans += [span_of(i + 1, ("zzz", AnyValue(int_value=i % 100)), name="last") for i in range(50)]
    check(body_of(*spans))


def test_many_lengths_and_runs_of_equal_ones() -> None:
    chance = random.Random(3)
    spans = [
        span_of(i + 1, name="n" * (chance.randrange(300) if i % 100 > 60 else 10), start_time_unix_nano=i + 1)
        for i in range(3000)
    ]
    check(body_of(*spans))


def test_many_different_texts_in_one_layout() -> None:
    spans = [
        span_of(i + 1, ("k", AnyValue(string_value=f"{i % 500:05}")), name=f"s{i % 40:03}")
        for i in range(2000)
    ]
    check(body_of(*spans))


def varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def raw_field(number: int, payload: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(payload)) + payload


def wrapped(*spans: bytes) -> bytes:
    return raw_field(1, raw_field(2, b"".join(raw_field(2, s) for s in spans)))


ID = raw_field(1, bytes(15) + b"\1") + raw_field(2, bytes(7) + b"\2")
ODD = {
    "unknown fields of each wire type": b"\xf8\x07\x05"
    + b"\xf9\x07"
    + bytes(8)
    + b"\xfd\x07"
    + bytes(4)
    + b"\xfa\x07\1x",
    "a group": b"\xfb\x07\x08\x01\xfb\x07\xfc\x07\xfc\x07",
    "name twice": raw_field(5, b"first") + raw_field(5, b"last"),
    "id twice": raw_field(2, b"12345678"),
    "a second id of the wrong length": raw_field(2, b"123"),
    "key twice": raw_field(9, raw_field(1, b"a") + raw_field(1, b"b") + raw_field(2, b"\x18\x05")),
    "value before key": raw_field(9, raw_field(2, b"\x18\x05") + raw_field(1, b"b")),
    "value in two parts": raw_field(
        9, raw_field(1, b"a") + raw_field(2, b"\x18\x05") + raw_field(2, b"\x10\x01")
    ),
    "array in two parts": raw_field(
        9, raw_field(1, b"a") + 2 * raw_field(2, raw_field(5, raw_field(1, b"\x18\1")))
    ),
    "two values in one": raw_field(9, raw_field(1, b"a") + raw_field(2, b"\x18\x05\x10\x01")),
    "value of unknown kind": raw_field(9, raw_field(1, b"a") + raw_field(2, b"\x50\x05")),
    "value and unknown kind": raw_field(9, raw_field(1, b"a") + raw_field(2, b"\x18\x05\x50\x05")),
    "no key": raw_field(9, raw_field(2, b"\x18\x05")),
    "bool of two bytes, true": raw_field(9, raw_field(1, b"a") + raw_field(2, b"\x10\x80\x01")),
    "bool of two bytes, false": raw_field(9, raw_field(1, b"a") + raw_field(2, b"\x10\x80\x00")),
    "padded int": raw_field(9, raw_field(1, b"a") + raw_field(2, b"\x18\x85\x80\x00")),
    "same key twice": 2 * raw_field(9, raw_field(1, b"a") + raw_field(2, b"\x18\x05")),
    "same key, other kind": raw_field(9, raw_field(1, b"a") + raw_field(2, b"\x18\x05"))
    + raw_field(9, raw_field(1, b"a") + raw_field(2, b"\x10\x01")),
    "status twice": raw_field(15, b"\x18\x02") + raw_field(15, raw_field(2, b"why")),
    "negative status": raw_field(15, b"\x18" + b"\xff" * 9 + b"\x01"),
    "status beyond 32 bits": raw_field(15, b"\x18\x82\x80\x80\x80\x10"),
    "status 300": raw_field(15, b"\x18\xac\x02"),
    "times as numbers of the wrong kind": b"\x38\x05\x40\x05",
    "time twice": b"\x39" + bytes(7) + b"\1" + b"\x39" + bytes(7) + b"\2",
    "tag of two bytes": b"\xaa\x00\x01x",
}


@pytest.mark.parametrize("extra", ODD.values(), ids=ODD)
def test_odd_but_valid_spans(extra: bytes) -> None:
    for body in (wrapped(ID + extra), wrapped(extra + ID, ID + extra, ID, extra + ID)):
        check(body)
        check(body)  # now with the layouts known


def test_odd_but_valid_requests() -> None:
    resource = Resource(attributes=[KeyValue(key="a", value=AnyValue(int_value=1))]).SerializeToString()
    other = Resource(attributes=[KeyValue(key="b", value=AnyValue(int_value=2))]).SerializeToString()
    scope = raw_field(2, raw_field(2, ID))
    check(raw_field(1, raw_field(1, resource) + scope + raw_field(1, other)))  # resource in two parts
    check(raw_field(1, scope + raw_field(1, resource)) + raw_field(9, b"unknown"))
    check(raw_field(1, raw_field(2, b"\x92\x00" + raw_field(2, ID)[1:])))  # padded tag of a span
    check(raw_field(1, raw_field(2, raw_field(2, ID) + b"\x1b\x08\1\x1c" + raw_field(2, ID))))
    check(b"")


# -- garbled input ------------------------------------------------------------------------------


def accepted(body: bytes) -> bool:
    """Never anything but a result or a ValueError; what the library reads we read to the same."""
    expected = found = None
    with suppress(DecodeError, ValueError):
        expected = by_library(body)
    with suppress(ValueError):
        found = rows_of(decode_traces(body, links=True))
    assert expected is None or found == expected
    return found is not None


def sample_request(n: int = 3) -> bytes:
    ids = np.arange(1, n + 1, dtype=np.uint64)
    batch = SpanBatch(
        "frame",
        np.stack([ids, ids], axis=1),
        ids,
        np.full(n, 10**18),
        np.full(n, 10**18 + 5),
        status=np.arange(n, dtype=np.uint8) % 3,
        attributes={
            "pipeline.name": "cam0",
            "frame.number": np.arange(n) * 100,
            "x": Optional(np.arange(n) / 3, ids % 2 == 0),
            "outcome": Strings(np.arange(n, dtype=np.int32) % 2, ["ja", "nein"]),
        },
        link_count=np.arange(n) % 2,
        link_trace=np.ones((n, 1, 2), np.uint64),
        link_span=np.ones((n, 1), np.uint64),
    )
    return encode_request({"service.name": "app"}, [batch])


def test_cut_off_at_every_byte() -> None:
    body = sample_request()
    check(body)
    assert [n for n in range(len(body)) if accepted(body[:n])] == [0]


@settings(max_examples=250, deadline=None)
@given(st.data())
def test_garbled_bytes(data: st.DataObject) -> None:
    body = bytearray(data.draw(st.one_of(requests(), st.just(sample_request(12)))))
    if body:
        for _ in range(data.draw(st.integers(1, 4))):
            body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    accepted(bytes(body))


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=60))
@example(b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x7f")
@example(b"\x0b" * 50)
@example(wrapped(raw_field(5, b"\xff\xfe")))
@example(wrapped(raw_field(9, raw_field(1, b"k") + raw_field(2, raw_field(1, b"\xc3(")))))
def test_noise(body: bytes) -> None:
    accepted(body)
    if len(body) < 100:
        accepted(wrapped(body))


def test_nested_beyond_measure_is_refused() -> None:
    value = b"\x18\x01"
    for _ in range(200):
        value = raw_field(5, raw_field(1, value))
    assert not accepted(wrapped(ID + raw_field(9, raw_field(1, b"deep") + raw_field(2, value))))


def test_the_error_names_the_byte() -> None:
    body = sample_request()
    with pytest.raises(ValueError, match=r"byte \d+ claims \d+ bytes, \d+ are left"):
        decode_traces(body[:-5])


# -- the cache of layouts -----------------------------------------------------------------------


def test_hostile_variety_does_not_grow_the_cache() -> None:
    for length in range(0, 3000, 7):
        spans = [ID + raw_field(20 + k, b"x" * length) for k in range(3)]
        decode_traces(wrapped(*spans * decode._WORTH_A_LAYOUT))
    layouts = [layout for known in decode._layouts.values() for layout in known]
    assert layouts
    assert len(layouts) <= decode._CACHED_LAYOUTS
    arrays = [array for one in layouts for array in (one.alike.at, one.alike.mask, one.alike.bits)]
    assert sum(array.nbytes for array in arrays) < 4 << 20
    for i in range(10 * decode._MAX_LAYOUTS):
        span = span_of(1, (f"key{i:03}", AnyValue(int_value=1)))
        check(body_of(*[span] * decode._WORTH_A_LAYOUT))
    assert max(map(len, decode._layouts.values())) <= decode._MAX_LAYOUTS
    check(body_of(span_of(1, ("key000", AnyValue(int_value=1)))))


def test_threads_share_the_cache() -> None:
    chance = random.Random(7)
    bodies = []
    for _ in range(60):
        keys = [f"k{chance.randrange(400):03}" for _ in range(8)]
        spans = [
            span_of(i + 1, *((k, AnyValue(int_value=chance.randrange(100))) for k in chance.sample(keys, 3)))
            for i in range(40)
        ]
        bodies.append(body_of(*spans))
    expected = [by_library(body) for body in bodies]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(8) as pool:
            for _ in range(4):
                found = pool.map(lambda body: rows_of(decode_traces(body, links=True)), bodies)
                assert list(found) == expected
    finally:
        sys.setswitchinterval(interval)
