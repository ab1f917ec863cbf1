"""Anybody's OTLP metrics requests to plain data, by the protobuf library.

Message layout: opentelemetry/proto/metrics/v1/metrics.proto, v1.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal

from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.common.v1 import common_pb2
from opentelemetry.proto.metrics.v1 import metrics_pb2

from benchlab_otel.model import Exemplar

_NO_RECORDED_VALUE = metrics_pb2.DATA_POINT_FLAGS_NO_RECORDED_VALUE_MASK

Type = Literal["gauge", "counter", "updown", "histogram", "summary"]


@dataclass(slots=True)
class Buckets:
    """A histogram's value: `counts` (not accumulated over buckets) has one more entry than `bounds`.

    `sum` is None where the app cannot give one (negative values).
    """

    bounds: tuple[float, ...]
    counts: list[int]
    sum: float | None


@dataclass(slots=True)
class Quantiles:
    """A summary's value: `values` maps a quantile (0..1) to its value."""

    values: dict[float, float]
    count: int
    sum: float


@dataclass(slots=True)
class Series:
    """One point of a metric; `value` None says that the series ended (no recorded value)."""

    attributes: dict[str, str]
    value: float | Buckets | Quantiles | None
    time_ns: int
    start_ns: int
    exemplars: list[Exemplar] = field(default_factory=list)


@dataclass(slots=True)
class MetricData:
    """One metric of one resource and scope, attribute values as text."""

    resource: dict[str, str]
    scope_name: str
    scope_version: str
    scope_attributes: dict[str, str]
    name: str
    unit: str
    description: str
    type: Type
    delta: bool  # values are changes since the point before, not totals since `start_ns`
    series: list[Series]


@dataclass(slots=True)
class DecodedMetrics:
    """The metrics of a request, and how many points had to be left out, by reason."""

    metrics: list[MetricData] = field(default_factory=list)
    dropped: dict[str, int] = field(default_factory=dict)

    def drop(self, reason: str, points: int = 1) -> None:
        """Counts points that could not be taken."""
        self.dropped[reason] = self.dropped.get(reason, 0) + points


def decode_metrics(body: bytes) -> DecodedMetrics:
    """All points of an ExportMetricsServiceRequest (= MetricsData).

    Exponential histograms become explicit ones; points that make no sense are dropped and
    counted. Raises ValueError when the body is no such message.
    """
    request = ExportMetricsServiceRequest()
    try:
        request.ParseFromString(body)
    except DecodeError as error:
        raise ValueError(f"not an OTLP metrics request ({len(body)} bytes): {error}") from None
    out = DecodedMetrics()
    for resource_metrics in request.resource_metrics:
        resource = attribute_texts(resource_metrics.resource.attributes)
        for scope_metrics in resource_metrics.scope_metrics:
            scope = scope_metrics.scope
            scope_attributes = attribute_texts(scope.attributes)
            for metric in scope_metrics.metrics:
                shape = _shape(metric)
                if shape is None:
                    out.drop("unknown_type")
                    continue
                data = MetricData(
                    resource,
                    scope.name,
                    scope.version,
                    scope_attributes,
                    metric.name,
                    metric.unit,
                    metric.description,
                    type=shape[0],
                    delta=shape[1],
                    series=[],
                )
                _decode_points(metric, str(metric.WhichOneof("data")), data, out)
                out.metrics.append(data)
    return out


def _shape(metric: metrics_pb2.Metric) -> tuple[Type, bool] | None:
    """(type, delta) of a metric message, None where its data is missing or of a later version."""
    delta = metrics_pb2.AGGREGATION_TEMPORALITY_DELTA
    match metric.WhichOneof("data"):
        case "gauge":
            return "gauge", False
        case "sum":
            kind: Type = "counter" if metric.sum.is_monotonic else "updown"
            return kind, metric.sum.aggregation_temporality == delta
        case "histogram":
            return "histogram", metric.histogram.aggregation_temporality == delta
        case "exponential_histogram":
            return "histogram", metric.exponential_histogram.aggregation_temporality == delta
        case "summary":
            return "summary", False
    return None


def _decode_points(metric: metrics_pb2.Metric, kind: str, data: MetricData, out: DecodedMetrics) -> None:
    """Appends the metric's points to `data.series`; those without sense are counted in `out`."""
    for point in getattr(metric, kind).data_points:
        value: float | Buckets | Quantiles | None = None
        if not point.flags & _NO_RECORDED_VALUE:
            if kind in ("gauge", "sum"):
                value = _number(point)
            elif kind == "histogram":
                value = _buckets(point)
            elif kind == "exponential_histogram":
                value = _buckets_of_exponential(point)
            else:
                value = _quantiles(point)
            if value is None:
                out.drop(f"invalid_{kind}")
                continue
        exemplars = [] if kind == "summary" else [_exemplar(e) for e in point.exemplars]
        data.series.append(
            Series(
                attribute_texts(point.attributes),
                value,
                point.time_unix_nano,
                point.start_time_unix_nano,
                exemplars,
            )
        )


def _number(point: metrics_pb2.NumberDataPoint) -> float | None:
    match point.WhichOneof("value"):
        case "as_double":
            return point.as_double
        case "as_int":
            return float(point.as_int)
    return None


def _buckets(point: metrics_pb2.HistogramDataPoint) -> Buckets | None:
    bounds, counts = tuple(point.explicit_bounds), list(point.bucket_counts)
    if not counts and not bounds:
        counts = [point.count]  # allowed by the protocol: only count and sum are known
    return _checked(bounds, counts, point)


def _buckets_of_exponential(point: metrics_pb2.ExponentialHistogramDataPoint) -> Buckets | None:
    """Explicit buckets with the same edges: base**(offset + i) with base = 2**(2**-scale)."""
    try:
        step = 2.0**-point.scale
        up = [
            2.0 ** (step * (point.positive.offset + i)) for i in range(len(point.positive.bucket_counts) + 1)
        ]
        down = [
            2.0 ** (step * (point.negative.offset + i)) for i in range(len(point.negative.bucket_counts) + 1)
        ]
    except OverflowError:
        return None
    bounds: list[float] = []
    counts: list[int] = []
    if point.negative.bucket_counts:
        bounds += [-edge for edge in reversed(down)]
        counts += [0, *reversed(point.negative.bucket_counts)]
    if point.positive.bucket_counts:
        counts += [point.zero_count, *point.positive.bucket_counts]
        bounds += up
    else:
        bounds.append(point.zero_threshold)
        counts.append(point.zero_count)
    counts.append(0)
    return _checked(tuple(bounds), counts, point)


def _checked(
    bounds: tuple[float, ...],
    counts: list[int],
    point: metrics_pb2.HistogramDataPoint | metrics_pb2.ExponentialHistogramDataPoint,
) -> Buckets | None:
    """The buckets, None unless bounds ascend and are finite and the counts fit them."""
    if bounds and bounds[-1] == math.inf and len(counts) == len(bounds):
        bounds = bounds[:-1]  # some apps write the last bound out
    ascending = all(a < b for a, b in pairwise(bounds))
    if not ascending or not all(map(math.isfinite, bounds)) or len(counts) != len(bounds) + 1:
        return None
    return Buckets(bounds, counts, point.sum if point.HasField("sum") else None)


def _quantiles(point: metrics_pb2.SummaryDataPoint) -> Quantiles | None:
    values = {q.quantile: q.value for q in point.quantile_values}
    if not all(0.0 <= quantile <= 1.0 for quantile in values):
        return None
    return Quantiles(values, point.count, point.sum)


def _exemplar(exemplar: metrics_pb2.Exemplar) -> Exemplar:
    """The exemplar; ids of a wrong length count as absent (0)."""
    value = exemplar.as_double if exemplar.HasField("as_double") else float(exemplar.as_int)
    trace, span = exemplar.trace_id, exemplar.span_id
    hi = int.from_bytes(trace[:8], "big") if len(trace) == 16 else 0
    lo = int.from_bytes(trace[8:], "big") if len(trace) == 16 else 0
    return Exemplar(
        value, exemplar.time_unix_nano, (hi, lo), int.from_bytes(span, "big") if len(span) == 8 else 0
    )


def attribute_texts(attributes: Iterable[common_pb2.KeyValue]) -> dict[str, str]:
    """Attributes as text, as the Collector writes them into labels; of a repeated key the last."""
    return {entry.key: _text(entry.value) for entry in attributes}


def _text(value: common_pb2.AnyValue) -> str:
    plain = _plain(value)
    return plain if isinstance(plain, str) else json.dumps(plain, separators=(",", ":"), ensure_ascii=False)


def _plain(value: common_pb2.AnyValue) -> object:
    match value.WhichOneof("value"):
        case "string_value":
            return value.string_value
        case "bool_value":
            return value.bool_value
        case "int_value":
            return value.int_value
        case "double_value":
            number = value.double_value
            return int(number) if number.is_integer() and abs(number) < 1e15 else number
        case "bytes_value":
            return base64.b64encode(value.bytes_value).decode()
        case "array_value":
            return [_plain(v) for v in value.array_value.values]
        case "kvlist_value":
            return {entry.key: _plain(entry.value) for entry in value.kvlist_value.values}
    return ""
