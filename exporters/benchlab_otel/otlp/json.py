"""OTLP/JSON to OTLP protobuf, in all the spellings that apps and the Collector write.

Differs from protobuf's own JSON mapping: trace and span ids are hexadecimal, not base64, and enums
may be numbers. Field names are taken in camelCase and snake_case, 64-bit numbers as strings or
numbers, unknown fields are ignored. Source: opentelemetry.io/docs/specs/otlp, "JSON Protobuf
Encoding". The messages' descriptors say which fields there are, so no field is named here but ids.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import msgspec
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import EncodeError, Message
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.resource.v1.resource_pb2 import Resource

_IDS = {"trace_id", "span_id", "parent_span_id"}
_INTEGER = re.compile(r"-?[0-9]{1,20}\Z")

Put = Callable[[Message, Any], None]


class _Mismatch(ValueError):
    """A value that does not fit its field; `path` grows while the error leaves the nested fields."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.path: list[str] = []


def traces_to_protobuf(line: bytes) -> bytes:
    """The ExportTraceServiceRequest (= TracesData) that `line` says in JSON, as protobuf bytes.

    Raises ValueError with the path of the field (`resourceSpans[0].scopeSpans[2].spans[5].traceId`)
    or the position of what is not JSON.
    """
    return _to_protobuf(line, ExportTraceServiceRequest())


def metrics_to_protobuf(line: bytes) -> bytes:
    """As `traces_to_protobuf`, for an ExportMetricsServiceRequest (= MetricsData)."""
    return _to_protobuf(line, ExportMetricsServiceRequest())


def resource_to_protobuf(text: bytes) -> bytes:
    """As `traces_to_protobuf`, for a Resource."""
    return _to_protobuf(text, Resource())


def _to_protobuf(line: bytes, message: Message) -> bytes:
    try:
        _fill(message, msgspec.json.decode(line))
        return message.SerializeToString()
    except _Mismatch as error:
        place = "".join(reversed(error.path)).lstrip(".") or "the request"
        raise ValueError(f"OTLP/JSON: {place}: {error}") from None
    except (msgspec.DecodeError, UnicodeError) as error:
        raise ValueError(f"OTLP/JSON: not JSON: {error}") from None
    except (RecursionError, EncodeError):
        raise ValueError("OTLP/JSON: values are nested too deeply") from None


def _fill(message: Message, value: Any) -> None:
    """Sets the fields of `message` from a JSON object."""
    if not isinstance(value, dict):
        raise _expected("an object", value)
    fields = _fields(message.DESCRIPTOR)
    for key, item in value.items():
        put = fields.get(key)
        if put is None or item is None:  # null is proto3's way to say: not there
            continue
        try:
            put(message, item)
        except _Mismatch as error:
            error.path.append(f".{key}")
            raise


@cache
def _fields(descriptor: Descriptor) -> Mapping[str, Put]:
    """How to set each field of a message, by its camelCase and its snake_case name."""
    puts = {}
    for field in descriptor.fields:
        puts[field.json_name] = puts[field.name] = _putter(field)
    return puts


def _putter(field: FieldDescriptor) -> Put:
    name, convert = field.name, _converter(field)

    def put_message(message: Message, value: Any) -> None:
        child = getattr(message, name)
        child.SetInParent()
        _fill(child, value)

    def put_value(message: Message, value: Any) -> None:
        try:
            setattr(message, name, convert(value))
        except (ValueError, TypeError) as error:
            raise _mismatch(error) from None

    def put_messages(message: Message, value: Any) -> None:
        children = getattr(message, name)
        for i, item in enumerate(_list(value)):
            try:
                _fill(children.add(), item)
            except _Mismatch as error:
                error.path.append(f"[{i}]")
                raise

    def put_values(message: Message, value: Any) -> None:
        values = getattr(message, name)
        for i, item in enumerate(_list(value)):
            try:
                values.append(convert(item))
            except (ValueError, TypeError) as error:
                raise _mismatch(error, f"[{i}]") from None

    if field.message_type is not None:
        return put_messages if field.is_repeated else put_message
    return put_values if field.is_repeated else put_value


def _mismatch(error: Exception, *path: str) -> _Mismatch:
    out = error if isinstance(error, _Mismatch) else _Mismatch(str(error))
    out.path.extend(path)
    return out


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise _expected("an array", value)
    return value


def _expected(what: str, value: Any) -> _Mismatch:
    return _Mismatch(f"expected {what}, found {msgspec.json.encode(value).decode()[:80]}")


def _converter(field: FieldDescriptor) -> Callable[[Any], Any]:
    """What makes a Python value for the field of a JSON one; raises _Mismatch."""
    kinds = {
        FieldDescriptor.CPPTYPE_DOUBLE: _float,
        FieldDescriptor.CPPTYPE_FLOAT: _float,
        FieldDescriptor.CPPTYPE_BOOL: _bool,
    }
    if field.enum_type is not None:
        numbers = {value.name: value.number for value in field.enum_type.values}
        return lambda value: _enum(value, numbers)
    if field.type == FieldDescriptor.TYPE_STRING:
        return _string
    if field.type == FieldDescriptor.TYPE_BYTES:
        return _hex if field.name in _IDS else _base64
    return kinds.get(field.cpp_type, _integer)


def _enum(value: Any, numbers: Mapping[str, int]) -> int:
    if isinstance(value, str) and value in numbers:
        return numbers[value]
    if type(value) is int:
        return value
    raise _expected(f"a number or one of {', '.join(numbers)}", value)


def _integer(value: Any) -> int:
    if type(value) is int:
        return value
    if isinstance(value, str) and _INTEGER.match(value):
        return int(value)
    if isinstance(value, float) and value.is_integer():
        return int(value)
    raise _expected("an integer (a number or a string of digits)", value)


def _float(value: Any) -> float:
    if type(value) in (int, float):
        return float(value)
    if value in ("NaN", "Infinity", "-Infinity"):
        return float(value)
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            pass
    raise _expected('a number, "NaN", "Infinity" or "-Infinity"', value)


def _bool(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    raise _expected("true or false", value)


def _string(value: Any) -> str:
    if isinstance(value, str):
        return value
    raise _expected("a string", value)


def _hex(value: Any) -> bytes:
    try:
        return binascii.unhexlify(_string(value))
    except ValueError:
        raise _expected("an id in hexadecimal digits", value) from None


def _base64(value: Any) -> bytes:
    """Standard or URL-safe base64, padded or not, as protobuf's JSON mapping allows."""
    text = _string(value).replace("-", "+").replace("_", "/").rstrip("=")
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except ValueError:
        raise _expected("bytes in base64", value) from None
