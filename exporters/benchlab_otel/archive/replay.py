"""A session's requests once more: in order of time, on one time base, moved to another time if wanted.

Moved by one constant, so every duration and distance stays. Moved spans get trace ids of their own
(the old ones, changed by one random number), so that a backend that has the session already does not
mix the two. Each resource is marked as replayed, and stays marked as simulated where it was.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.resource.v1.resource_pb2 import Resource

from benchlab_otel.archive.reader import of_other_signal
from benchlab_otel.archive.records import Fault, Record, read_records
from benchlab_otel.contract import CLOCK, CLOCK_WALL_OFFSET, REPLAYED
from benchlab_otel.otlp.json import metrics_to_protobuf, traces_to_protobuf
from benchlab_otel.timebase import CLOCK_ATTRIBUTE

Signal = Literal["traces", "metrics"]
_LIMIT = 1 << 63


@dataclass(frozen=True, slots=True)
class Request:
    """One OTLP request and the latest time (Unix ns on the session's time base) in it or before it."""

    time_ns: int
    signal: Signal
    message: Any  # ExportTraceServiceRequest or ExportMetricsServiceRequest


@dataclass(frozen=True, slots=True)
class Move:
    """How a request is changed: times by `by_ns`, trace ids by exclusive or with `ids` (128 bits)."""

    session_id: str
    by_ns: int = 0
    ids: int = 0


def requests(traces: Sequence[Path], metrics: Sequence[Path], faults: list[Fault]) -> Iterator[Request]:
    """The requests of all files by time. Their resources no longer name a time base: all are on one.

    What can't be read is noted in `faults`. Raises OSError where a file can't be opened.
    """
    files = [*(_traces(path, faults) for path in traces), *(_metrics(path, faults) for path in metrics)]
    return heapq.merge(*files, key=lambda request: request.time_ns)


def _traces(path: Path, faults: list[Fault]) -> Iterator[Request]:
    latest = 0
    clock = _Clock()
    for record in read_records(path, faults):
        message = _parsed(record, "traces", path, faults)
        if message is None:
            continue
        for group in message.resource_spans:
            spans = [span for scope in group.scope_spans for span in scope.spans]
            by = clock.to_time_base(group.resource, spans)
            for span in spans:
                _move_span(span, by, 0)
                latest = max(latest, span.end_time_unix_nano)
        yield Request(latest, "traces", message)


def _metrics(path: Path, faults: list[Fault]) -> Iterator[Request]:
    latest = 0
    for record in read_records(path, faults):
        message = _parsed(record, "metrics", path, faults)
        if message is None:
            continue
        for group in message.resource_metrics:
            _take(group.resource, CLOCK_ATTRIBUTE)
            latest = max([latest, *(point.time_unix_nano for point in _points(group))])
        yield Request(latest, "metrics", message)


def _parsed(record: Record, signal: Signal, path: Path, faults: list[Fault]) -> Any:
    kind = ExportTraceServiceRequest if signal == "traces" else ExportMetricsServiceRequest
    if signal == "traces" and of_other_signal(record):
        return None
    try:
        convert = traces_to_protobuf if signal == "traces" else metrics_to_protobuf
        return kind.FromString(convert(record.body) if record.json else record.body)
    except (ValueError, DecodeError) as error:
        faults.append(Fault(str(path), record.offset, str(error), record.size, line=record.line))
        return None


class _Clock:
    """As `align.clock`: what is ours is on a known time base, the rest carries wall time."""

    def __init__(self) -> None:
        self._reference: int | None = None
        self._wall_offset = 0

    def to_time_base(self, resource: Resource, spans: Iterable[Any]) -> int:
        """What to add to the times of a resource's spans; takes the name of the time base away."""
        own = _take(resource, CLOCK_ATTRIBUTE)
        if own is None:
            return -self._wall_offset
        for span in spans:
            if span.name == CLOCK:
                for attribute in span.attributes:
                    if attribute.key == CLOCK_WALL_OFFSET:
                        self._wall_offset = attribute.value.int_value
        self._reference = own if self._reference is None else self._reference
        return self._reference - own


def _take(resource: Resource, key: str) -> int | None:
    """Removes an attribute and returns its number."""
    for i, attribute in enumerate(resource.attributes):
        if attribute.key == key:
            value: int = attribute.value.int_value
            del resource.attributes[i]
            return value
    return None


def moved(request: Request, move: Move) -> bytes:
    """The request's bytes, moved and marked; the request is changed."""
    groups = (
        request.message.resource_spans if request.signal == "traces" else request.message.resource_metrics
    )
    for group in groups:
        group.resource.attributes.add(key=REPLAYED).value.string_value = move.session_id
        if request.signal == "traces":
            for scope in group.scope_spans:
                for span in scope.spans:
                    _move_span(span, move.by_ns, move.ids)
        else:
            for point in _points(group):
                _move_point(point, move)
    body: bytes = request.message.SerializeToString()
    return body


def _move_span(span: Any, by: int, ids: int) -> None:
    if by:
        span.start_time_unix_nano = _later(span.start_time_unix_nano, by)
        span.end_time_unix_nano = _later(span.end_time_unix_nano, by)
        for event in span.events:
            event.time_unix_nano = _later(event.time_unix_nano, by)
    if ids:
        span.trace_id = _other_id(span.trace_id, ids)
        for link in span.links:
            link.trace_id = _other_id(link.trace_id, ids)


def _points(group: Any) -> Iterator[Any]:
    """All data points of a ResourceMetrics."""
    for scope in group.scope_metrics:
        for metric in scope.metrics:
            kind = metric.WhichOneof("data")
            if kind is not None:
                yield from getattr(metric, kind).data_points


def _move_point(point: Any, move: Move) -> None:
    point.time_unix_nano = _later(point.time_unix_nano, move.by_ns)
    point.start_time_unix_nano = _later(point.start_time_unix_nano, move.by_ns)
    for exemplar in getattr(point, "exemplars", ()):
        exemplar.time_unix_nano = _later(exemplar.time_unix_nano, move.by_ns)
        exemplar.trace_id = _other_id(exemplar.trace_id, move.ids)


def _later(time_ns: int, by: int) -> int:
    """A time that was not given stays so, and one that would leave its range stays where it is."""
    there = time_ns + by
    return there if time_ns and 0 < there < _LIMIT else time_ns


def _other_id(trace_id: bytes, ids: int) -> bytes:
    return (int.from_bytes(trace_id, "big") ^ ids).to_bytes(16, "big") if len(trace_id) == 16 else trace_id
