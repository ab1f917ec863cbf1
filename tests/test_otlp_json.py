"""OTLP/JSON in every spelling becomes the protobuf message it was rendered from."""

from __future__ import annotations

import base64
import json
from contextlib import suppress
from typing import Any

import pytest
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from benchlab_otel.otlp.json import metrics_to_protobuf, traces_to_protobuf

IDS = {"trace_id": 16, "span_id": 8, "parent_span_id": 8}
INTEGERS = {
    FieldDescriptor.CPPTYPE_INT32: (-(1 << 31), (1 << 31) - 1),
    FieldDescriptor.CPPTYPE_UINT32: (0, (1 << 32) - 1),
    FieldDescriptor.CPPTYPE_INT64: (-(1 << 63), (1 << 63) - 1),
    FieldDescriptor.CPPTYPE_UINT64: (0, (1 << 64) - 1),
}
SPECIAL = {"NaN": float("nan"), "Infinity": float("inf"), "-Infinity": float("-inf")}


def values(field: FieldDescriptor) -> st.SearchStrategy[Any]:
    if field.enum_type is not None:
        return st.sampled_from([value.number for value in field.enum_type.values])
    if field.cpp_type in INTEGERS:
        return st.integers(*INTEGERS[field.cpp_type])
    if field.cpp_type == FieldDescriptor.CPPTYPE_BOOL:
        return st.booleans()
    if field.type == FieldDescriptor.TYPE_BYTES:
        size = IDS.get(field.name)
        return st.binary(min_size=size, max_size=size) if size else st.binary(max_size=9)
    if field.type == FieldDescriptor.TYPE_STRING:
        return st.text(max_size=8)
    return st.floats(allow_nan=False) | st.just(float("nan"))  # JSON has one NaN of the many


@st.composite
def messages(draw: st.DrawFn, kind: type[Message], depth: int = 0) -> Message:
    """A random message of any OTLP type; nests AnyValues a few levels deep."""
    message = kind()
    for field in message.DESCRIPTOR.fields:
        if draw(st.integers(0, 3)) == 0 or (field.message_type is not None and depth > 8):
            continue
        if field.message_type is not None:
            child = messages(field.message_type._concrete_class, depth + 1)
            if field.is_repeated:
                getattr(message, field.name).extend(draw(st.lists(child, max_size=2)))
            else:
                getattr(message, field.name).CopyFrom(draw(child))
        elif field.is_repeated:
            getattr(message, field.name).extend(draw(st.lists(values(field), max_size=3)))
        else:
            setattr(message, field.name, draw(values(field)))
    return message


def render(draw: st.DrawFn, message: Message) -> dict[str, Any]:
    """The message as a JSON object, each field in a spelling of chance."""
    out: dict[str, Any] = {}
    for field, value in message.ListFields():
        if field.message_type is not None:
            shown = [render(draw, v) for v in value] if field.is_repeated else render(draw, value)
        else:
            shown = (
                [scalar(draw, field, v) for v in value] if field.is_repeated else scalar(draw, field, value)
            )
        out[draw(st.sampled_from([field.name, field.json_name]))] = shown
    if draw(st.booleans()):
        out["fieldOfTheFuture"] = {"x": [1, None]}
    if draw(st.booleans()):
        out = dict(reversed(out.items()))
    return out


def scalar(draw: st.DrawFn, field: FieldDescriptor, value: Any) -> Any:
    if field.enum_type is not None:
        return draw(st.sampled_from([value, field.enum_type.values_by_number[value].name]))
    if field.cpp_type in INTEGERS:
        return draw(st.sampled_from([value, str(value)]))
    if field.name in IDS:
        return draw(st.sampled_from([value.hex(), value.hex().upper()]))
    if field.type == FieldDescriptor.TYPE_BYTES:
        return draw(
            st.sampled_from([base64.b64encode(value).decode(), base64.urlsafe_b64encode(value).decode()])
        )
    if isinstance(value, float):
        for name, special in SPECIAL.items():
            if repr(value) == repr(special):
                return name
    return value


@settings(deadline=None, max_examples=40)
@given(st.data())
@pytest.mark.parametrize(
    ("kind", "convert"),
    [(ExportTraceServiceRequest, traces_to_protobuf), (ExportMetricsServiceRequest, metrics_to_protobuf)],
)
def test_any_request_in_any_spelling(kind: type[Message], convert: Any, data: st.DataObject) -> None:
    message = data.draw(messages(kind))
    text = json.dumps(render(data.draw, message)).encode()
    assert convert(text) == message.SerializeToString(deterministic=True)


def only_value_errors(line: bytes) -> None:
    """Any other exception fails the test that calls this."""
    with suppress(ValueError):
        ExportTraceServiceRequest.FromString(traces_to_protobuf(line))


@settings(deadline=None)
@given(st.binary(max_size=40) | st.text(max_size=40).map(str.encode))
def test_anything_else_is_a_value_error(line: bytes) -> None:
    only_value_errors(line)


@settings(deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(
                    ["resourceSpans", "scopeSpans", "spans", "kind", "traceId", "attributes", "links"]
                ),
                inner,
                max_size=4,
            )
        ),
    )
)
def test_json_of_another_shape_is_a_value_error(value: Any) -> None:
    only_value_errors(json.dumps(value).encode())


def span(**fields: Any) -> bytes:
    return json.dumps({"resourceSpans": [{}, {"scopeSpans": [{"spans": [{}, fields]}]}]}).encode()


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"traceId": "0102x"}, "traceId: expected an id in hexadecimal digits"),
        ({"trace_id": 12}, "trace_id: expected an id in hexadecimal digits"),
        ({"kind": "SPAN_KIND_NOVEL"}, "kind: expected a number or one of SPAN_KIND_UNSPECIFIED"),
        ({"kind": []}, "kind: expected a number or one of"),
        ({"startTimeUnixNano": "yesterday"}, "startTimeUnixNano: expected an integer"),
        ({"startTimeUnixNano": 1.5}, "startTimeUnixNano: expected an integer"),
        ({"startTimeUnixNano": -1}, "startTimeUnixNano: "),
        ({"startTimeUnixNano": "99999999999999999999"}, "startTimeUnixNano: "),
        ({"name": {}}, "name: expected a string"),
        ({"attributes": {}}, "attributes: expected an array"),
        ({"attributes": [{"key": "a", "value": 1}]}, "attributes[0].value: expected an object"),
        ({"attributes": [{"value": {"doubleValue": "much"}}]}, "attributes[0].value.doubleValue: expected"),
        ({"attributes": [{"value": {"boolValue": 1}}]}, "attributes[0].value.boolValue: expected true"),
        ({"attributes": [{"value": {"bytesValue": "?"}}]}, "attributes[0].value.bytesValue: expected bytes"),
    ],
)
def test_errors_name_the_field(fields: dict[str, Any], expected: str) -> None:
    with pytest.raises(ValueError, match="OTLP/JSON") as caught:
        traces_to_protobuf(span(**fields))
    assert f"resourceSpans[1].scopeSpans[0].spans[1].{expected}" in str(caught.value)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (b"", "not JSON"),
        (span(name="x")[:-3], "not JSON"),
        (b"[1]", "the request: expected an object, found [1]"),
        (b"\xff", "not JSON"),
        (b'{"resourceSpans":' * 50 + b"[" * 50_000, "nested too deeply"),
        (
            span(attributes=[]).replace(
                b"[]", b'[{"value":' + b'{"arrayValue":{"values":[' * 4000 + b"]}}" * 4000 + b"}]"
            ),
            "nested too deeply",
        ),
    ],
)
def test_what_is_no_request_is_said(line: bytes, expected: str) -> None:
    with pytest.raises(ValueError, match="OTLP/JSON") as caught:
        traces_to_protobuf(line)
    assert expected in str(caught.value)


def test_nulls_and_unknown_fields_are_ignored() -> None:
    line = span(name=None, status=None, links=None, droppedThingsCount=7)
    request = ExportTraceServiceRequest.FromString(traces_to_protobuf(line))
    assert len(request.resource_spans[1].scope_spans[0].spans) == 2
