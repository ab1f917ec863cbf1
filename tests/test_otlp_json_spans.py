"""Typed decoding of OTLP/JSON gives the arrays that the way over protobuf gives."""

from __future__ import annotations

import json
import random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchlab_otel.model import Spans
from benchlab_otel.otlp.decode import decode_traces
from benchlab_otel.otlp.json import traces_to_protobuf
from benchlab_otel.otlp.json_spans import decode_json_traces

TIMES = st.integers(0, (1 << 63) - 1)
VALUES = (
    st.builds(lambda text: {"stringValue": text}, st.text(max_size=5))
    | st.builds(
        lambda n, as_text: {"intValue": str(n) if as_text else n}, st.integers(-9, 1 << 62), st.booleans()
    )
    | st.builds(lambda x: {"doubleValue": x}, st.floats(allow_nan=False, allow_infinity=False))
    | st.sampled_from([{"doubleValue": "NaN"}, {"doubleValue": "-Infinity"}, {"doubleValue": 3}])
    | st.builds(lambda b: {"boolValue": b}, st.booleans())
    | st.sampled_from([{}, {"arrayValue": {"values": [{"intValue": 1}]}}, {"bytesValue": "AQI="}])
    | st.sampled_from([{"string_value": "x"}, {"kvlistValue": {"values": [{"key": "a"}]}}])
)


@st.composite
def spans(draw: st.DrawFn) -> dict[str, Any]:
    """A span as somebody might write it: mostly as the Collector does."""
    chance = draw(st.integers(0, 19))
    span: dict[str, Any] = {
        "traceId": draw(st.binary(min_size=16, max_size=16)).hex(),
        "spanId": draw(st.binary(min_size=8, max_size=8)).hex().upper(),
        "name": draw(st.sampled_from(["frame", "décode", ""])),
        "startTimeUnixNano": str(draw(TIMES)),
        "endTimeUnixNano": draw(TIMES),
        "kind": 1,
        "links": [{"traceId": "00" * 16, "spanId": "11" * 8}],
    }
    if draw(st.booleans()):
        span["parentSpanId"] = draw(st.sampled_from(["", "00000000000000ff"]))
    if draw(st.booleans()):
        span["status"] = draw(st.sampled_from([{}, {"code": 2}, {"code": "STATUS_CODE_ERROR"}]))
    keys = st.sampled_from(["pipeline.name", "frame.number", "x"])
    span["attributes"] = draw(
        st.lists(st.builds(lambda k, v: {"key": k, "value": v}, keys, VALUES), max_size=3)
    )
    odd = {
        0: {"traceId": "ab"},
        1: {"spanId": ""},
        2: {"parentSpanId": None},
        3: {"status": None},
        4: {"attributes": [{"key": "without"}]},
    }
    span |= odd.get(chance, {})
    if chance == 5:
        span["trace_id"] = span.pop("traceId")
    if chance == 6:
        span["end_time_unix_nano"] = span.pop("endTimeUnixNano")
    return span


@st.composite
def requests(draw: st.DrawFn) -> bytes:
    groups = [
        {
            "resource": {
                "attributes": [{"key": "service.name", "value": {"stringValue": draw(st.text(max_size=3))}}]
            },
            draw(st.sampled_from(["scopeSpans"] * 9 + ["scope_spans"])): [
                {"spans": draw(st.lists(spans(), max_size=4))} for _ in range(draw(st.integers(0, 2)))
            ],
        }
        for _ in range(draw(st.integers(0, 2)))
    ]
    return json.dumps({"resourceSpans": groups}).encode()


def same(found: Spans, expected: Spans) -> None:
    """Equal in every column; codes may differ, what they stand for may not."""
    for name in ("trace", "span", "parent", "start", "end", "status"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
    assert [found.names[i] for i in found.name] == [expected.names[i] for i in expected.name]
    assert [found.resources[i] for i in found.resource] == [expected.resources[i] for i in expected.resource]
    assert found.attributes.keys() == expected.attributes.keys()
    for key, column in expected.attributes.items():
        assert found.attributes[key].values.dtype == column.values.dtype
        np.testing.assert_array_equal(found.attributes[key].rows, column.rows)
        assert repr(found.attributes[key].values.tolist()) == repr(column.values.tolist())  # NaN is NaN


@settings(deadline=None, max_examples=150)
@given(st.lists(requests(), min_size=1, max_size=3))
def test_as_the_way_over_protobuf(lines: list[bytes]) -> None:
    expected = decode_traces(b"".join(map(traces_to_protobuf, lines)))
    same(decode_json_traces(lines), expected)
    expected.attributes = {}
    same(decode_json_traces(lines, attributes=False), expected)


GOOD = json.dumps(
    {"resourceSpans": [{"scopeSpans": [{"spans": [{"traceId": "ab" * 16, "spanId": "cd" * 8}]}]}]}
).encode()


@pytest.mark.parametrize(
    "bad", [b"", b"[1]", b"{", b'{"resourceSpans":{}}', GOOD.replace(b"cdcd", b"c-cd", 1)]
)
def test_what_is_wrong_is_said_as_by_the_other_way(bad: bytes) -> None:
    with pytest.raises(ValueError, match="OTLP/JSON"):
        decode_json_traces([GOOD, bad, GOOD])


@pytest.mark.parametrize("seed", range(3))
def test_many_lines_become_columns_in_their_order(seed: int) -> None:
    """More spans than become columns at once."""
    chance = random.Random(seed)
    numbers = [chance.randrange(1, 1 << 60) for _ in range(9000)]
    lines, at = [], 0
    while at < len(numbers):
        size = chance.randrange(1, 900)
        group = [
            {
                "traceId": f"{n:032x}",
                "spanId": f"{n:016x}",
                "attributes": [{"key": "n", "value": {"intValue": str(n)}}],
            }
            for n in numbers[at : at + size]
        ]
        lines.append(json.dumps({"resourceSpans": [{"scopeSpans": [{"spans": group}]}]}).encode())
        at += size
    found = decode_json_traces(lines)
    assert found.span.tolist() == numbers
    assert found.attributes["n"].values.tolist() == numbers
