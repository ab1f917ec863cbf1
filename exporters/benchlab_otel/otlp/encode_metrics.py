"""Our metric points to OTLP requests.

Message layout: opentelemetry/proto/metrics/v1/metrics.proto, v1. Metrics come at a few thousand
points a second at most, so the protobuf library does the work here.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.common.v1 import common_pb2
from opentelemetry.proto.metrics.v1 import metrics_pb2

from benchlab_otel import __version__
from benchlab_otel.contract import Metric
from benchlab_otel.model import HistogramPoint, Point, Resource, Scalar
from benchlab_otel.otlp.encode import SCOPE_NAME

CUMULATIVE = metrics_pb2.AGGREGATION_TEMPORALITY_CUMULATIVE
_NO_RECORDED_VALUE = metrics_pb2.DATA_POINT_FLAGS_NO_RECORDED_VALUE_MASK

_Key = tuple[str | tuple[str, str], ...]  # of a series: the metric's name, and the labels
_Data = metrics_pb2.NumberDataPoint | metrics_pb2.HistogramDataPoint


def encode_metrics(resource: Resource, points: Sequence[Point | HistogramPoint]) -> bytes:
    """One ExportMetricsServiceRequest with all `points` under `resource`, counters cumulative.

    A value of NaN (of a histogram: the sum) says that the series has ended (no recorded value). Such points
    have a message each: the Collector's prometheus exporter (v0.155) skips what follows one in its message.
    """
    return _message(resource, points)[0].SerializeToString()


def _message(
    resource: Resource, points: Iterable[Point | HistogramPoint]
) -> tuple[ExportMetricsServiceRequest, list[_Data]]:
    """The request, and in it the data point of each of `points`."""
    request = ExportMetricsServiceRequest()
    resource_metrics = request.resource_metrics.add()
    _set_attributes(resource_metrics.resource.attributes, resource)
    scope_metrics = resource_metrics.scope_metrics.add()
    scope_metrics.scope.name = SCOPE_NAME
    scope_metrics.scope.version = __version__
    messages: dict[Metric, metrics_pb2.Metric] = {}
    data: list[_Data] = []
    for point in points:
        message = None if has_ended(point) else messages.get(point.metric)
        if message is None:
            message = scope_metrics.metrics.add()
            _describe(message, point.metric)
            if not has_ended(point):
                messages[point.metric] = message
        if isinstance(point, HistogramPoint):
            data.append(_add_histogram(message.histogram, point))
        else:
            data.append(_add_number(message.gauge if point.metric.kind == "gauge" else message.sum, point))
    return request, data


class Told:
    """What was told last as metrics: a series that is not told again ends, with its resource if that changes.

    Else it would stand until it expires, beside its twin under the new resource. As long as the series are
    the same, only their values and times are set in the last request.
    """

    def __init__(self) -> None:
        self._resource: Resource = {}
        self._points: list[Point | HistogramPoint] = []
        self._request: ExportMetricsServiceRequest | None = None  # to be told again with other numbers
        self._numbers: list[metrics_pb2.NumberDataPoint] = []  # in it, of each point

    def requests(
        self, resource: Resource, points: Sequence[Point | HistogramPoint], now_ns: int
    ) -> list[bytes]:
        """Metrics requests, to be sent in this order: what ends now (Unix ns), and `points`."""
        same = resource == self._resource
        if same and len(points) == len(self._points) and all(map(_same_series, points, self._points)):
            self._points = list(points)
            return [self._encoded()] if points else []
        told = {_key(point): point for point in points}
        ends = [ended(p, now_ns) for p in self._points if not (same and _key(p) in told)]
        requests = [encode_metrics(self._resource, ends)] if ends else []
        self._resource, self._points, self._request = resource, list(told.values()), None
        return [*requests, self._encoded()] if told else requests

    def _encoded(self) -> bytes:
        """The request of all points."""
        points = [p for p in self._points if isinstance(p, Point) and not math.isnan(p.value)]
        if len(points) < len(self._points):
            self._request = None
            return encode_metrics(self._resource, self._points)
        if self._request is None:
            self._request, data = _message(self._resource, points)
            self._numbers = [number for number in data if isinstance(number, metrics_pb2.NumberDataPoint)]
        for number, point in zip(self._numbers, points, strict=True):
            number.time_unix_nano, number.start_time_unix_nano = point.time_ns, point.start_ns
            number.as_double = point.value
        return self._request.SerializeToString()


def _key(point: Point | HistogramPoint) -> _Key:
    return (point.metric.name, *point.labels.items())


def _same_series(a: Point | HistogramPoint, b: Point | HistogramPoint) -> bool:
    """As equal keys, which cost more to make."""
    return a.metric is b.metric and (a.labels is b.labels or list(a.labels.items()) == list(b.labels.items()))


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


def _add_number(data: metrics_pb2.Gauge | metrics_pb2.Sum, point: Point) -> metrics_pb2.NumberDataPoint:
    out = data.data_points.add()
    _set_attributes(out.attributes, point.labels)
    out.time_unix_nano, out.start_time_unix_nano = point.time_ns, point.start_ns
    if has_ended(point):
        out.flags = _NO_RECORDED_VALUE
    else:
        out.as_double = point.value
    return out


def _add_histogram(data: metrics_pb2.Histogram, point: HistogramPoint) -> metrics_pb2.HistogramDataPoint:
    bounds, counts = point.metric.bounds, [int(c) for c in point.counts]
    if len(counts) != len(bounds) + 1:
        raise ValueError(f"{point.metric.name}: {len(bounds)} bounds need {len(bounds) + 1} counts")
    out = data.data_points.add()
    _set_attributes(out.attributes, point.labels)
    out.time_unix_nano, out.start_time_unix_nano = point.time_ns, point.start_ns
    if has_ended(point):
        out.flags = _NO_RECORDED_VALUE
        return out
    out.count, out.sum = sum(counts), point.sum
    out.bucket_counts.extend(counts)
    out.explicit_bounds.extend(bounds)
    for _, exemplar in sorted(point.exemplars.items()):
        example = out.exemplars.add()
        example.as_double, example.time_unix_nano = exemplar.value, exemplar.time_ns
        hi, lo = exemplar.trace
        example.trace_id = int(hi).to_bytes(8, "big") + int(lo).to_bytes(8, "big")
        example.span_id = int(exemplar.span).to_bytes(8, "big")
    return out


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
