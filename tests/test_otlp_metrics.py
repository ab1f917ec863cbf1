"""OTLP metrics: ours through the protobuf library and back, and what foreign apps send."""

from __future__ import annotations

import math
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.exporter.otlp.proto.common.metrics_encoder import encode_metrics as sdk_encode
from opentelemetry.metrics import Observation
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.metrics.v1 import metrics_pb2 as pb
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.metrics.view import ExponentialBucketHistogramAggregation, View

from benchlab_otel import contract
from benchlab_otel.model import Exemplar, HistogramPoint, Point
from benchlab_otel.otlp.decode_metrics import Buckets, MetricData, Quantiles, decode_metrics
from benchlab_otel.otlp.encode_metrics import Told, encode_metrics

RESOURCE = {"service.name": "app", "benchlab.simulated": True, "cores": 4, "share": 0.5}
NOW, BEGIN = 1_700_000_000_000_000_000, 1_600_000_000_000_000_000


def foreign(*metrics: pb.Metric) -> bytes:
    request = ExportMetricsServiceRequest()
    scope = request.resource_metrics.add().scope_metrics.add()
    scope.scope.name = "lib"
    scope.metrics.extend(metrics)
    return request.SerializeToString()


def only(body: bytes) -> MetricData:
    (metric,) = decode_metrics(body).metrics
    return metric


def test_points_come_back_as_they_went() -> None:
    counts = np.arange(len(contract.SECONDS) + 1, dtype=np.int64)
    exemplar = Exemplar(0.0025, NOW, (0x0123456789ABCDEF, 0xFEDCBA9876543210), 0xF000000000000001)
    body = encode_metrics(
        RESOURCE,
        [
            Point(contract.FRAMES, {"pipeline.name": "a", "frame.outcome": "completed"}, 3.0, NOW, BEGIN),
            Point(contract.FRAMES, {"pipeline.name": "a", "frame.outcome": "dropped"}, 1.0, NOW, BEGIN),
            Point(contract.COLLECT_SUCCESS, {"source": "rapl"}, 1.0, NOW),
            HistogramPoint(
                contract.FRAME_DURATION, {"pipeline.name": "a"}, counts, 7.5, NOW, BEGIN, {3: exemplar}
            ),
        ],
    )
    frames, success, duration = decode_metrics(body).metrics
    assert frames.resource == {
        "service.name": "app", "benchlab.simulated": "true", "cores": "4", "share": "0.5",
    }  # fmt: skip
    assert (frames.name, frames.unit, frames.type, frames.delta) == (
        "pipeline.frames", "{frame}", "counter", False,
    )  # fmt: skip
    assert [(s.attributes["frame.outcome"], s.value, s.start_ns) for s in frames.series] == [
        ("completed", 3.0, BEGIN),
        ("dropped", 1.0, BEGIN),
    ]
    assert (success.type, success.series[0].value, success.series[0].time_ns) == ("gauge", 1.0, NOW)
    assert duration.series[0].value == Buckets(contract.SECONDS, counts.tolist(), 7.5)
    assert duration.series[0].exemplars == [exemplar]


def test_the_request_is_what_the_protocol_wants() -> None:
    updown = contract.Metric("hw.status", "1", "updown", "")
    request = ExportMetricsServiceRequest.FromString(
        encode_metrics(
            RESOURCE, [Point(contract.FRAMES, {}, 3.0, NOW, BEGIN), Point(updown, {}, -1.0, NOW, BEGIN)]
        )
    )
    frames, status = request.resource_metrics[0].scope_metrics[0].metrics
    for metric in (frames, status):
        assert metric.sum.aggregation_temporality == pb.AGGREGATION_TEMPORALITY_CUMULATIVE
    assert (frames.sum.is_monotonic, status.sum.is_monotonic) == (True, False)


def test_what_is_not_told_again_ends() -> None:
    """A series that went, and all of them where the resource changed."""

    def seen(bodies: list[bytes]) -> list[tuple[int, str, object]]:
        """(attributes of the resource, source, value) of each point."""
        found = [m for body in bodies for m in decode_metrics(body).metrics]
        return [(len(m.resource), s.attributes["source"], s.value) for m in found for s in m.series]

    told = Told()
    one, two = (Point(contract.COLLECT_SUCCESS, {"source": source}, 1.0, NOW) for source in "ab")
    assert seen(told.requests({}, [one, two], NOW)) == [(0, "a", 1.0), (0, "b", 1.0)]
    assert seen(told.requests({}, [one], NOW)) == [(0, "b", None), (0, "a", 1.0)]
    assert seen(told.requests({}, [one], NOW)) == [(0, "a", 1.0)]
    other = {"service.name": "other"}
    assert seen(told.requests(other, [one, two], NOW)) == [(0, "a", None), (1, "a", 1.0), (1, "b", 1.0)]
    assert seen(told.requests(other, [], NOW)) == [(1, "a", None), (1, "b", None)]
    assert told.requests(other, [], NOW) == []


def test_series_that_are_told_again_have_their_new_numbers_and_nothing_of_before() -> None:
    """As a request is used again for the same series, the bytes are those of one that is made anew."""
    told = Told()
    labels = {"pipeline.name": "a", "frame.outcome": "completed"}
    rounds = [
        [Point(contract.FRAMES, labels, 1.0, NOW, BEGIN), Point(contract.COLLECT_SUCCESS, {}, 1.0, NOW)],
        [
            Point(contract.FRAMES, labels, 2.0, NOW + 1, BEGIN),
            Point(contract.COLLECT_SUCCESS, {}, 0.0, NOW + 2),
        ],
        [
            Point(contract.FRAMES, labels, 0.5, NOW + 3, NOW),
            Point(contract.COLLECT_SUCCESS, {}, 1.0, NOW + 4),
        ],
        [
            Point(contract.FRAMES, labels, math.nan, NOW + 5, NOW),
            Point(contract.COLLECT_SUCCESS, {}, 1.0, NOW),
        ],
        [Point(contract.FRAMES, labels, 3.0, NOW + 6, NOW), Point(contract.COLLECT_SUCCESS, {}, 1.0, NOW)],
        [Point(contract.COLLECT_SUCCESS, {}, 1.0, NOW), Point(contract.FRAMES, labels, 4.0, NOW + 7, NOW)],
    ]
    for points in rounds:
        assert told.requests(RESOURCE, points, NOW) == [encode_metrics(RESOURCE, points)]


def test_counts_that_do_not_fit_the_bounds_are_refused() -> None:
    with pytest.raises(ValueError, match=r"pipeline\.frame\.duration: 24 bounds need 25 counts"):
        encode_metrics(
            {}, [HistogramPoint(contract.FRAME_DURATION, {}, np.zeros(3, np.int64), 0.0, NOW, BEGIN)]
        )


def test_sdk_metrics_of_every_kind_are_read() -> None:
    reader = InMemoryMetricReader()
    view = View(instrument_name="size", aggregation=ExponentialBucketHistogramAggregation())
    meter = MeterProvider([reader], views=[view]).get_meter("test")
    meter.create_counter("jobs").add(2, {"ok": True, "ids": [1, 2]})
    meter.create_up_down_counter("queue").add(-3)
    meter.create_observable_gauge("load", [lambda _: [Observation(0.25)]])
    histogram, exponential = meter.create_histogram("wait"), meter.create_histogram("size")
    values = [0.0, 0.3, 3.0, 30.0, 300.0]
    for value in values:
        histogram.record(value)
        exponential.record(value)
    body = sdk_encode(reader.get_metrics_data()).SerializeToString()

    found = {metric.name: metric for metric in decode_metrics(body).metrics}
    assert {name: metric.type for name, metric in found.items()} == {
        "jobs": "counter", "queue": "updown", "load": "gauge", "wait": "histogram", "size": "histogram",
    }  # fmt: skip
    assert found["jobs"].series[0].attributes == {"ok": "true", "ids": "[1,2]"}
    assert [found[name].series[0].value for name in ("jobs", "queue", "load")] == [2.0, -3.0, 0.25]
    for name in ("wait", "size"):
        buckets = found[name].series[0].value
        assert isinstance(buckets, Buckets)
        assert buckets.sum == sum(values)
        assert_holds(buckets, values)


def assert_holds(buckets: Buckets, values: list[float]) -> None:
    """Each value lies in a bucket that counts it."""
    expected = [0] * len(buckets.counts)
    for value in values:
        expected[int(np.searchsorted(buckets.bounds, value))] += 1
    assert buckets.counts == expected


@settings(deadline=None)
@given(
    st.integers(-3, 6),
    st.lists(st.floats(1e-6, 1e6) | st.floats(-1e6, -1e-6) | st.just(0.0), min_size=1, max_size=30),
)
def test_exponential_histograms_become_explicit_ones(scale: int, values: list[float]) -> None:
    def index(value: float) -> int:
        # the definition: base**index < |value| <= base**(index + 1)
        return math.ceil(math.log2(abs(value)) * 2.0**scale) - 1

    point = pb.ExponentialHistogramDataPoint(count=len(values), sum=sum(values), scale=scale)
    for side, picked in (
        (point.positive, [v for v in values if v > 0]),
        (point.negative, [v for v in values if v < 0]),
    ):
        if picked:
            indices = [index(v) for v in picked]
            side.offset = min(indices)
            side.bucket_counts.extend(indices.count(i) for i in range(min(indices), max(indices) + 1))
    point.zero_count = values.count(0.0)
    metric = pb.Metric(name="x", exponential_histogram=pb.ExponentialHistogram(data_points=[point]))
    buckets = only(foreign(metric)).series[0].value

    assert isinstance(buckets, Buckets)
    assert sum(buckets.counts) == len(values)
    edges = [-math.inf, *buckets.bounds, math.inf]
    for low, high, count in zip(edges, edges[1:], buckets.counts, strict=False):
        slack = 1e-9 * max(abs(low), abs(high)) if math.isfinite(low) and math.isfinite(high) else 0.0
        assert count <= sum(low - slack <= v <= high + slack for v in values)


def test_summaries_flags_and_missing_sums() -> None:
    quantile = pb.SummaryDataPoint.ValueAtQuantile
    summary = pb.SummaryDataPoint(count=4, sum=2.0, quantile_values=[quantile(quantile=0.5, value=0.4)])
    ended = pb.NumberDataPoint(flags=pb.DATA_POINT_FLAGS_NO_RECORDED_VALUE_MASK)
    bare = pb.HistogramDataPoint(count=9)
    found = decode_metrics(
        foreign(
            pb.Metric(name="s", summary=pb.Summary(data_points=[summary])),
            pb.Metric(name="g", gauge=pb.Gauge(data_points=[ended])),
            pb.Metric(name="h", histogram=pb.Histogram(data_points=[bare])),
        )
    ).metrics
    assert [metric.series[0].value for metric in found] == [
        Quantiles({0.5: 0.4}, 4, 2.0),
        None,
        Buckets((), [9], None),
    ]


@pytest.mark.parametrize(
    ("metric", "reason"),
    [
        (pb.Metric(name="nothing"), "unknown_type"),
        (pb.Metric(name="g", gauge=pb.Gauge(data_points=[pb.NumberDataPoint()])), "invalid_gauge"),
        (
            pb.Metric(
                name="h",
                histogram=pb.Histogram(
                    data_points=[pb.HistogramDataPoint(explicit_bounds=[2, 1], bucket_counts=[1, 1, 1])]
                ),
            ),
            "invalid_histogram",
        ),
        (
            pb.Metric(
                name="h",
                histogram=pb.Histogram(
                    data_points=[pb.HistogramDataPoint(explicit_bounds=[1], bucket_counts=[1])]
                ),
            ),
            "invalid_histogram",
        ),
        *(
            (
                pb.Metric(
                    name="e",
                    exponential_histogram=pb.ExponentialHistogram(
                        data_points=[
                            pb.ExponentialHistogramDataPoint(
                                scale=scale,
                                positive=pb.ExponentialHistogramDataPoint.Buckets(
                                    offset=offset, bucket_counts=[1]
                                ),
                            )
                        ]
                    ),
                ),
                "invalid_exponential_histogram",
            )
            for scale, offset in ((-(1 << 31), 0), ((1 << 31) - 1, 0), (0, (1 << 31) - 1), (-20, -5))
        ),
        (
            pb.Metric(
                name="s",
                summary=pb.Summary(
                    data_points=[
                        pb.SummaryDataPoint(
                            quantile_values=[pb.SummaryDataPoint.ValueAtQuantile(quantile=math.nan)]
                        )
                    ]
                ),
            ),
            "invalid_summary",
        ),
    ],
)
def test_points_without_sense_are_dropped_and_counted(metric: pb.Metric, reason: str) -> None:
    good = pb.Metric(name="good", gauge=pb.Gauge(data_points=[pb.NumberDataPoint(as_int=3)]))
    decoded = decode_metrics(foreign(metric, good))
    assert decoded.dropped == {reason: 1}
    assert decoded.metrics[-1].series[0].value == 3.0


def test_exemplars_of_wrong_ids_keep_their_value() -> None:
    exemplar = pb.Exemplar(as_int=7, trace_id=b"\x01", span_id=b"", time_unix_nano=5)
    point = pb.NumberDataPoint(as_int=1, exemplars=[exemplar])
    metric = pb.Metric(name="c", sum=pb.Sum(data_points=[point], is_monotonic=True))
    assert only(foreign(metric)).series[0].exemplars == [Exemplar(7.0, 5, (0, 0), 0)]


@settings(deadline=None)
@given(st.binary(max_size=60))
def test_garbage_is_a_value_error(body: bytes) -> None:
    with suppress(ValueError):
        decode_metrics(body)


def test_truncated_requests_are_value_errors() -> None:
    body = encode_metrics(RESOURCE, [Point(contract.FRAMES, {"pipeline.name": "a"}, 3.0, NOW, BEGIN)])
    for end in range(1, len(body)):
        with pytest.raises(ValueError, match="not an OTLP metrics request"):
            decode_metrics(body[:end])
