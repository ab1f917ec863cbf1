"""Our metric points to OTLP requests.

Message layout: opentelemetry/proto/metrics/v1/metrics.proto, v1. Metrics come at a few thousand
points a second at most, so the protobuf library does the work here.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.common.v1 import common_pb2
from opentelemetry.proto.metrics.v1 import metrics_pb2

from benchlab_otel import __version__
from benchlab_otel.contract import Metric
from benchlab_otel.model import Float, HistogramPoint, Int, Point, Resource, Scalar
from benchlab_otel.otlp.encode import SCOPE_NAME
from benchlab_otel.otlp.ids import random64

CUMULATIVE = metrics_pb2.AGGREGATION_TEMPORALITY_CUMULATIVE
_NO_RECORDED_VALUE = metrics_pb2.DATA_POINT_FLAGS_NO_RECORDED_VALUE_MASK

_Key = tuple[str | tuple[str, str], ...]  # of a series: the metric's name, and the labels


def encode_metrics(resource: Resource, points: Sequence[Point | HistogramPoint]) -> bytes:
    """One ExportMetricsServiceRequest with all `points` under `resource`, counters cumulative.

    A value of NaN (of a histogram: the sum) says that the series has ended (no recorded value). Such points
    have a message each: the Collector's prometheus exporter (v0.155) skips what follows one in its message.
    """
    request = ExportMetricsServiceRequest()
    resource_metrics = request.resource_metrics.add()
    _set_attributes(resource_metrics.resource.attributes, resource)
    scope_metrics = resource_metrics.scope_metrics.add()
    scope_metrics.scope.name = SCOPE_NAME
    scope_metrics.scope.version = __version__
    messages: dict[Metric, metrics_pb2.Metric] = {}
    for point in points:
        message = None if has_ended(point) else messages.get(point.metric)
        if message is None:
            message = scope_metrics.metrics.add()
            _describe(message, point.metric)
            if not has_ended(point):
                messages[point.metric] = message
        if isinstance(point, HistogramPoint):
            _add_histogram(message.histogram, point)
        else:
            _add_number(message.gauge if point.metric.kind == "gauge" else message.sum, point)
    return request.SerializeToString()


class _Image:
    """An encoded request that is used again with other times and values.

    Each of the two is 8 bytes of a NumberDataPoint, the value a tag behind the time (metrics.proto).
    """

    def __init__(self, resource: Resource, points: Iterable[Point]) -> None:
        some = random64() >> 1  # numbers that stand nowhere else in a request, in place of times
        marked = [replace(point, time_ns=some + i, value=0.0) for i, point in enumerate(points)]
        self._body = encode_metrics(resource, marked)
        marks = [self._body.index(point.time_ns.to_bytes(8, "little")) for point in marked]
        self._open = np.array([marks, [at + 9 for at in marks]], np.int64)

    def request(self, times: Int, values: Float) -> bytes:
        """The request with a time (Unix ns) and a value for each point."""
        out = np.frombuffer(self._body, np.uint8).copy()
        from_each_byte = np.ndarray((len(out) - 7,), "<u8", out, strides=(1,))
        from_each_byte[self._open[0]] = times
        from_each_byte[self._open[1]] = values.view(np.uint64)
        return out.tobytes()


class Told:
    """What was told last as metrics: a series that is not told again ends, with its resource if that changes.

    Else it would stand until it expires, beside its twin under the new resource.
    """

    def __init__(self) -> None:
        self._resource: Resource = {}
        self._points: list[Point | HistogramPoint] = []
        self._image: _Image | None = None  # of the points, once they were told again

    def requests(
        self, resource: Resource, points: Sequence[Point | HistogramPoint], now_ns: int
    ) -> list[bytes]:
        """Metrics requests, to be sent in this order: what ends now (Unix ns), and `points`."""
        same = resource == self._resource
        if same and len(points) == len(self._points) and all(map(_is_told_again, points, self._points)):
            if not points:
                return []
            times, values = zip(*((p.time_ns, p.value) for p in points if isinstance(p, Point)), strict=True)
            return [self.again(np.array(times, np.int64), np.array(values, np.float64))]
        told = {_key(point): point for point in points}
        ends = [ended(p, now_ns) for p in self._points if not (same and _key(p) in told)]
        requests = [encode_metrics(self._resource, ends)] if ends else []
        self._resource, self._points, self._image = resource, list(told.values()), None
        return [*requests, encode_metrics(resource, self._points)] if told else requests

    def again(self, times: Int, values: Float) -> bytes:
        """The series that were told last, all numbers, with new times (Unix ns) and values, none NaN."""
        if self._image is None:
            self._image = _Image(self._resource, (p for p in self._points if isinstance(p, Point)))
        return self._image.request(times, values)


def _is_told_again(point: Point | HistogramPoint, last: Point | HistogramPoint) -> bool:
    """Whether nothing but time and value of a number are new."""
    return (
        isinstance(point, Point)
        and isinstance(last, Point)
        and point.metric is last.metric
        and point.start_ns == last.start_ns
        and (point.labels is last.labels or list(point.labels.items()) == list(last.labels.items()))
        and not math.isnan(point.value + last.value)
    )


def _key(point: Point | HistogramPoint) -> _Key:
    return (point.metric.name, *point.labels.items())


def ended(point: Point | HistogramPoint, now_ns: int) -> Point | HistogramPoint:
    """The point that ends the series of `point`."""
    if isinstance(point, HistogramPoint):
        return replace(point, sum=math.nan, time_ns=now_ns)
    return replace(point, value=math.nan, time_ns=now_ns)


def has_ended(point: Point | HistogramPoint) -> bool:
    """Whether the point ends its series."""
    return math.isnan(point.sum if isinstance(point, HistogramPoint) else point.value)


def _describe(message: metrics_pb2.Metric, metric: Metric) -> None:
    message.name, message.unit, message.description = metric.name, metric.unit, metric.description
    if metric.kind == "histogram":
        message.histogram.aggregation_temporality = CUMULATIVE
    elif metric.kind != "gauge":
        message.sum.aggregation_temporality = CUMULATIVE
        message.sum.is_monotonic = metric.kind == "counter"


def _add_number(data: metrics_pb2.Gauge | metrics_pb2.Sum, point: Point) -> None:
    out = data.data_points.add()
    _set_attributes(out.attributes, point.labels)
    out.time_unix_nano, out.start_time_unix_nano = point.time_ns, point.start_ns
    if has_ended(point):
        out.flags = _NO_RECORDED_VALUE
    else:
        out.as_double = point.value


def _add_histogram(data: metrics_pb2.Histogram, point: HistogramPoint) -> None:
    bounds, counts = point.metric.bounds, [int(c) for c in point.counts]
    if len(counts) != len(bounds) + 1:
        raise ValueError(f"{point.metric.name}: {len(bounds)} bounds need {len(bounds) + 1} counts")
    out = data.data_points.add()
    _set_attributes(out.attributes, point.labels)
    out.time_unix_nano, out.start_time_unix_nano = point.time_ns, point.start_ns
    if has_ended(point):
        out.flags = _NO_RECORDED_VALUE
        return
    out.count, out.sum = sum(counts), point.sum
    out.bucket_counts.extend(counts)
    out.explicit_bounds.extend(bounds)
    for _, exemplar in sorted(point.exemplars.items()):
        example = out.exemplars.add()
        example.as_double, example.time_unix_nano = exemplar.value, exemplar.time_ns
        hi, lo = exemplar.trace
        example.trace_id = int(hi).to_bytes(8, "big") + int(lo).to_bytes(8, "big")
        example.span_id = int(exemplar.span).to_bytes(8, "big")


def _set_attributes(out: Iterable[common_pb2.KeyValue], attributes: Mapping[str, Scalar]) -> None:
    for key, value in attributes.items():
        entry = out.add()  # type: ignore[attr-defined]  # a repeated field, typed only as iterable
        entry.key = key
        if isinstance(value, bool):
            entry.value.bool_value = value
        elif isinstance(value, int):
            entry.value.int_value = value
        elif isinstance(value, float):
            entry.value.double_value = value
        else:
            entry.value.string_value = value
