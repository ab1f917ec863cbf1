"""A session's requests as OTLP/JSON lines, the text format of the Collector's file exporter.

One file for each of the session's: traces, energy (as it was recorded) and metrics, each request as it
came. Encoding: opentelemetry.io/docs/specs/otlp, "JSON Protobuf Encoding": camelCase names, ids in
hexadecimal, 64-bit integers as texts, enums as numbers.
"""

from __future__ import annotations

import base64
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import DecodeError, Message
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from benchlab_otel.archive.records import Fault, read_records
from benchlab_otel.archive.session import METRICS, Session
from benchlab_otel.export.output import replacing

_IDS = {"trace_id", "span_id", "parent_span_id"}
_LONG = {
    FieldDescriptor.TYPE_INT64, FieldDescriptor.TYPE_UINT64, FieldDescriptor.TYPE_SINT64,
    FieldDescriptor.TYPE_FIXED64, FieldDescriptor.TYPE_SFIXED64,
}  # fmt: skip


def write_otlp_json(
    folder: Path, session: Session, faults: list[Fault], progress: Callable[[int], None] | None = None
) -> dict[str, int]:
    """Writes NAME.jsonl for each file of the session and returns how many requests each has.

    What could not be read is noted in `faults`. Raises OSError for files and disk.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files: dict[Path, type[Message]] = dict.fromkeys(
        (*session.traces, *session.energy), ExportTraceServiceRequest
    )
    metrics = session.path / METRICS
    if session.manifest and metrics.is_file():
        files[metrics] = ExportMetricsServiceRequest
    counts = {}
    for path, request in files.items():
        with replacing(folder / f"{path.stem}.jsonl") as out:
            counts[path.stem] = 0
            for record in read_records(path, faults):
                try:
                    line = record.body if record.json else to_json(request.FromString(record.body))
                except DecodeError as error:
                    faults.append(Fault(str(path), record.offset, str(error), record.size))
                    continue
                out.write(line.strip() + b"\n")
                counts[path.stem] += 1
                if progress:
                    progress(record.size)
    return counts


def to_json(message: Message) -> bytes:
    """An OTLP message as one line of OTLP/JSON."""
    return msgspec.json.encode(_plain(message))


def _plain(message: Message) -> dict[str, Any]:
    out = {}
    for field, value in message.ListFields():
        convert = _converter(field)
        out[field.json_name] = [convert(v) for v in value] if field.is_repeated else convert(value)
    return out


@cache
def _converter(field: FieldDescriptor) -> Callable[[Any], Any]:
    """How one value of a field is written."""
    if field.message_type is not None:
        return _plain
    if field.type == FieldDescriptor.TYPE_BYTES:
        return bytes.hex if field.name in _IDS else lambda value: base64.b64encode(value).decode()
    if field.type in _LONG:
        return str
    return _number if field.type == FieldDescriptor.TYPE_DOUBLE else lambda value: value


def _number(value: float) -> float | str:
    """JSON has no word for what is not finite; protobuf's JSON mapping has."""
    if value - value == 0:
        return value
    return "NaN" if value != value else "Infinity" if value > 0 else "-Infinity"
