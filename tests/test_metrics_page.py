"""/metrics: names, formats, exemplars, conflicts, expiry; read back by promtool, Prometheus and parsers."""

from __future__ import annotations

import gzip
import json
import re
import subprocess
import time
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.metrics.v1 import metrics_pb2 as pb
from prometheus_client import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_plain

from benchlab_otel import contract
from benchlab_otel.contract import Kind, prometheus_label, prometheus_name
from benchlab_otel.hub.http import HttpServer
from benchlab_otel.hub.metrics import MetricStore, metrics_app, metrics_page
from benchlab_otel.model import Exemplar, HistogramPoint, Point
from benchlab_otel.otlp.encode_metrics import encode_metrics
from benchlab_otel.otlp.json import metrics_to_protobuf
from conftest import free_ports, need

NOW = 1_700_000_000_000_000_000
OPENMETRICS = "application/openmetrics-text; version=1.0.0"
APP = {
    "service.name": "camera",
    "service.instance.id": "7",
    "host.name": "box",
    "benchlab.simulated": True,
    "session.id": "20261122T000000Z-aaaa",
}
CONTRACT = [value for value in vars(contract).values() if isinstance(value, contract.Metric)]


def point_of(metric: contract.Metric, value: float = 1.0, time_ns: int = NOW) -> Point | HistogramPoint:
    labels = dict.fromkeys(metric.labels, "x")
    if metric.kind != "histogram":
        return Point(metric, labels, value, time_ns, NOW - 1)
    counts = np.ones(len(metric.bounds) + 1, np.int64)
    exemplar = Exemplar(metric.bounds[2], NOW, (1, 2), 3)
    return HistogramPoint(metric, labels, counts, value, time_ns, NOW - 1, {2: exemplar})


def families(store: MetricStore) -> dict[str, Metric]:
    """The page by name, after checking that both formats say the same."""
    open_text = metrics_page(store, OPENMETRICS)[0].decode()
    plain_text = metrics_page(store, "")[0].decode()
    found = {family.name: family for family in parse_openmetrics(open_text)}

    def samples(parsed: Any) -> set[tuple[Any, ...]]:
        return {(s.name, tuple(sorted(s.labels.items())), s.value) for f in parsed for s in f.samples}

    assert samples(found.values()) == samples(parse_plain(plain_text))
    return found


def foreign(resource: dict[str, str], *metrics: dict[str, Any]) -> bytes:
    attributes = [{"key": k, "value": {"stringValue": v}} for k, v in resource.items()]
    scopes = [{"metrics": list(metrics)}]
    request = {"resourceMetrics": [{"resource": {"attributes": attributes}, "scopeMetrics": scopes}]}
    return metrics_to_protobuf(json.dumps(request).encode())


def gauge(name: str, value: float, **attributes: str) -> dict[str, Any]:
    return {"name": name, "gauge": {"dataPoints": [number(value, **attributes)]}}


def number(value: float, at: int = 1, **attributes: str) -> dict[str, Any]:
    listed = [{"key": k, "value": {"stringValue": v}} for k, v in attributes.items()]
    return {"asDouble": value, "timeUnixNano": str(at), "attributes": listed}


# -- names ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "unit", "kind", "expected"),
    [
        ("hw.energy", "J", "counter", "hw_energy_joules_total"),
        ("hw.power", "W", "gauge", "hw_power_watts"),
        ("hw.errors", "{error}", "counter", "hw_errors_total"),
        ("hw.status", "1", "updown", "hw_status"),
        ("hw.temperature", "Cel", "gauge", "hw_temperature_celsius"),
        ("hw.voltage", "V", "gauge", "hw_voltage_volts"),
        ("hw.current", "A", "gauge", "hw_current_amperes"),
        ("hw.fan.speed", "rpm", "gauge", "hw_fan_speed_rpm"),
        ("hw.fan.speed_ratio", "1", "gauge", "hw_fan_speed_ratio"),
        ("hw.gpu.utilization", "1", "gauge", "hw_gpu_utilization_ratio"),
        ("hw.gpu.memory.usage", "By", "updown", "hw_gpu_memory_usage_bytes"),
        ("hw.gpu.io", "By", "counter", "hw_gpu_io_bytes_total"),
        ("pipeline.frame.duration", "s", "histogram", "pipeline_frame_duration_seconds"),
        ("pipeline.frames", "{frame}", "counter", "pipeline_frames_total"),
        ("disk.read", "By/s", "gauge", "disk_read_bytes_per_second"),
        ("requests", "1/s", "counter", "requests_per_second_total"),
        ("cost", "J/{frame}", "gauge", "cost_joules"),
        ("cpu.time", "s", "counter", "cpu_time_seconds_total"),
        ("a.total.b", "", "counter", "a_b_total"),
        ("response_time_seconds", "s", "gauge", "response_time_seconds"),
        ("3d.load", "%", "gauge", "_3d_load_percent"),
        ("__a..b--c", "odd unit", "gauge", "a_b_c_odd_unit"),
        ("@#$", "", "gauge", ""),
    ],
)
def test_names_are_the_collectors(name: str, unit: str, kind: Kind, expected: str) -> None:
    assert prometheus_name(name, unit, kind) == expected


@settings(deadline=None)
@given(
    st.text(max_size=20), st.text(max_size=6), st.sampled_from(["gauge", "counter", "updown", "histogram"])
)
def test_any_name_is_valid_and_stays_what_it_is(name: str, unit: str, kind: Kind) -> None:
    shown = prometheus_name(name, unit, kind)
    if shown:
        assert re.fullmatch(r"[a-zA-Z_:][a-zA-Z0-9_:]*", shown)
        again = prometheus_name(shown, "", kind)  # but for underscores that an odd unit leaves
        assert re.sub("_+", "", again) == re.sub("_+", "", shown)
    assert shown.endswith("total") or kind != "counter"
    label = prometheus_label(name)
    assert label == "" or re.fullmatch(r"[a-zA-Z_][a-zA-Z0-9_]*", label)


# -- the page ---------------------------------------------------------------------------------


def contract_store() -> MetricStore:
    store = MetricStore()
    assert store.ingest(encode_metrics(APP, [point_of(metric) for metric in CONTRACT])) == {}
    return store


def test_every_metric_of_the_contract_passes_promtool() -> None:
    promtool = need("promtool")
    store = contract_store()
    plain = metrics_page(store, "")[0].decode()
    # promtool reads the plain format only: of OpenMetrics, what both have is checked by `families`
    checked = subprocess.run([promtool, "check", "metrics"], input=plain, capture_output=True, text=True)
    assert (checked.stdout, checked.stderr, checked.returncode) == ("", "", 0)
    shown = families(store)
    for metric in CONTRACT:
        name = prometheus_name(metric.name, metric.unit, metric.kind)
        family = shown[name.removesuffix("_total") if metric.kind == "counter" else name]
        assert family.documentation == metric.description
        for sample in family.samples:
            labels = {prometheus_label(label) for label in metric.labels} | {"job", "instance"}
            assert set(sample.labels) - {"le"} == labels


def test_the_resource_is_in_job_instance_and_target_info() -> None:
    (sample,) = families(contract_store())["target"].samples
    assert sample.labels == {
        "job": "camera", "instance": "7", "host_name": "box", "benchlab_simulated": "true",
    }  # fmt: skip
    store = MetricStore()
    store.ingest(foreign({"service.name": "a", "service.namespace": "shop"}, gauge("x", 1)))
    assert families(store)["x"].samples[0].labels == {"job": "shop/a"}


def test_exemplars_are_in_openmetrics_only() -> None:
    store = contract_store()
    bucket = next(
        s for s in families(store)["pipeline_frame_duration_seconds"].samples if s.exemplar is not None
    )
    assert bucket.labels["le"] == "0.002"
    assert bucket.exemplar.labels == {
        "trace_id": "00000000000000010000000000000002", "span_id": "0000000000000003",
    }  # fmt: skip
    assert (bucket.exemplar.value, float(bucket.exemplar.timestamp)) == (0.002, NOW / 1e9)
    assert b"trace_id" not in metrics_page(store, "text/plain")[0]


def test_the_served_page_speaks_both_formats() -> None:
    store, refreshed = contract_store(), list[int]()
    with HttpServer(
        metrics_app(store, lambda: refreshed.append(1)), "127.0.0.1", 0, "metrics.port"
    ) as server:
        url = f"http://127.0.0.1:{server.port}/metrics"
        for accept, kind in (
            ("application/openmetrics-text; version=1.0.0, text/plain;q=0.5", "application/openmetrics-text"),
            ("*/*", "text/plain"),
            ("application/openmetrics-text; version=junk", "text/plain"),
        ):
            request = urllib.request.Request(url, headers={"Accept": accept, "Accept-Encoding": "gzip"})
            with urllib.request.urlopen(request, timeout=30) as answer:
                assert answer.headers["content-type"].startswith(kind)
                assert b"pipeline_frames_total" in gzip.decompress(answer.read())
    assert len(refreshed) == 3


def test_prometheus_scrapes_series_and_exemplars(tmp_path: Path) -> None:
    prometheus = need("prometheus")
    (port,) = free_ports(1)
    with HttpServer(metrics_app(contract_store()), "127.0.0.1", 0, "metrics.port") as server:
        target = f"127.0.0.1:{server.port}"
        jobs = [{"job_name": "hub", "honor_labels": True, "static_configs": [{"targets": [target]}]}]
        config = tmp_path / "prometheus.yml"
        config.write_text(json.dumps({"global": {"scrape_interval": "1s"}, "scrape_configs": jobs}))
        process = subprocess.Popen(
            [
                prometheus, f"--config.file={config}", f"--storage.tsdb.path={tmp_path / 'data'}",
                f"--web.listen-address=127.0.0.1:{port}", "--enable-feature=exemplar-storage",
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            found = ask_until(port, "query", query='pipeline_frames_total{job="camera",instance="7"}')
            assert found["result"][0]["value"][1] == "1"
            span = {"query": "pipeline_frame_duration_seconds_bucket", "start": NOW // 10**9 - 60}
            found = ask_until(port, "query_exemplars", end=NOW // 10**9 + 60, **span)
            labels = found[0]["exemplars"][0]["labels"]
            assert labels["trace_id"] == "00000000000000010000000000000002"
        finally:
            process.terminate()
            process.wait(30)


def ask_until(port: int, what: str, **parameters: Any) -> Any:
    """The data of a Prometheus query once there are any."""
    url = f"http://127.0.0.1:{port}/api/v1/{what}?{urllib.parse.urlencode(parameters)}"
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(url, timeout=10) as answer:
                data = json.load(answer)["data"]
        except OSError:  # not up yet
            data = None
        if data and (not isinstance(data, dict) or data["result"]):
            return data
        time.sleep(0.1)
    raise AssertionError(f"Prometheus has no answer to {url}")


# -- conflicts and ends -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("first", "second", "reason"),
    [
        (gauge("x", 1), {"name": "x", "summary": {"dataPoints": [{}]}}, "type_conflict"),
        (
            {"name": "x", "sum": {"isMonotonic": True, "dataPoints": [number(1)]}},
            gauge("x_total", 2),
            "type_conflict",
        ),
        (
            {"name": "x", "histogram": {"dataPoints": [{"count": 1, "sum": 2}]}},
            gauge("x_count", 2),
            "type_conflict",
        ),
        (
            gauge("x_bucket", 2),
            {"name": "x", "histogram": {"dataPoints": [{"count": 1, "sum": 2}]}},
            "type_conflict",
        ),
        (gauge("x", 1), gauge("target_info", 2), "type_conflict"),
        (gauge("x", 1), gauge("...", 2), "invalid_name"),
        (gauge("x", 1), gauge("x", 2, job="mine"), "label_conflict"),
        (gauge("x", 1), gauge("y", 2, __name__="z"), "label_conflict"),
        (
            gauge("x", 1),
            {
                "name": "h",
                "histogram": {
                    "dataPoints": [{"count": 1, "attributes": [{"key": "le", "value": {"stringValue": "1"}}]}]
                },
            },
            "label_conflict",
        ),
        (
            gauge("x", 1),
            {"name": "c", "sum": {"isMonotonic": True, "dataPoints": [number(-1)]}},
            "invalid_value",
        ),
        (
            gauge("x", 1),
            {"name": "u", "sum": {"aggregationTemporality": 1, "dataPoints": [number(1)]}},
            "delta_updown",
        ),
    ],
)
def test_conflicts_keep_the_first_and_count_the_rest(
    first: dict[str, Any], second: dict[str, Any], reason: str
) -> None:
    store = MetricStore()
    assert store.ingest(foreign({"service.name": "a"}, first)) == {}
    before = metrics_page(store, OPENMETRICS)
    assert store.ingest(foreign({"service.name": "b"}, second)) == {reason: 1}
    assert metrics_page(store, OPENMETRICS) == before
    families(store)


def test_attributes_of_one_name_are_joined_and_odd_values_escaped() -> None:
    store = MetricStore()
    odd = 'quote " back \\ line \n end'
    store.ingest(foreign({}, gauge("x", 1, **{"a.b": "1", "a-b": "2", "...": "gone", "odd": odd})))
    assert families(store)["x"].samples[0].labels == {"a_b": "2;1", "odd": odd}


def test_series_without_updates_expire_and_free_their_name() -> None:
    now = [0.0]
    store = MetricStore(expiry_seconds=300, clock=lambda: now[0])
    store.ingest(encode_metrics(APP, [point_of(contract.FRAMES)]))
    now[0] = 200.0
    store.ingest(foreign({"service.name": "b", "service.instance.id": "1"}, gauge("y", 1)))
    now[0] = 301.0
    assert set(families(store)) == {"target", "y"}
    assert len(families(store)["target"].samples) == 1
    assert store.ingest(foreign({}, gauge("pipeline_frames_total", 1))) == {}
    now[0] = 1000.0
    assert families(store) == {}


def test_a_point_without_value_ends_its_series() -> None:
    store = MetricStore()
    store.ingest(foreign({}, gauge("x", 1, a="1"), gauge("x", 1, a="2")))
    end = number(0, at=2, a="1") | {"flags": 1}
    store.ingest(foreign({}, {"name": "x", "gauge": {"dataPoints": [end]}}))
    assert [s.labels for s in families(store)["x"].samples] == [{"a": "2"}]


def test_late_points_do_not_replace_newer_ones() -> None:
    store = MetricStore()
    for value, at in ((1.0, 10), (2.0, 5), (3.0, 11)):
        store.ingest(foreign({}, {"name": "x", "gauge": {"dataPoints": [number(value, at)]}}))
        expected = 1.0 if value < 3 else 3.0
        assert families(store)["x"].samples[0].value == expected


def test_deltas_add_up() -> None:
    store = MetricStore()
    for at in (1, 2, 3):
        buckets = {"explicitBounds": [1.0], "bucketCounts": [1, 2], "count": 3, "sum": 4.0}
        store.ingest(
            foreign(
                {},
                {
                    "name": "c",
                    "sum": {
                        "isMonotonic": True,
                        "aggregationTemporality": 1,
                        "dataPoints": [number(2.5, at)],
                    },
                },
                {
                    "name": "h",
                    "histogram": {
                        "aggregationTemporality": 1,
                        "dataPoints": [buckets | {"timeUnixNano": str(at)}],
                    },
                },
            )
        )
    shown = families(store)
    assert [s.value for s in shown["c"].samples] == [7.5]
    assert {s.name + s.labels.get("le", ""): s.value for s in shown["h"].samples} == {
        "h_bucket1.0": 3.0, "h_bucket+Inf": 9.0, "h_count": 9.0, "h_sum": 12.0,
    }  # fmt: skip


@settings(deadline=None, max_examples=60)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["gauge", "sum", "histogram", "exponential_histogram", "summary"]),
            st.text(max_size=4) | st.sampled_from(["x", "x.total", "x_sum", "x.count", "target.info"]),
            st.sampled_from(["", "1", "s", "/"]),
            st.dictionaries(
                st.sampled_from(["le", "quantile", "a.b", "a_b", "é", "job", "__name__", ""]),
                st.text(max_size=3),
            ),
            st.floats() | st.integers(-5, 5).map(float),
        ),
        max_size=12,
    )
)
def test_no_request_makes_a_scrape_fail(
    chosen: list[tuple[str, str, str, dict[str, str], float]],
) -> None:
    store = MetricStore()
    request = ExportMetricsServiceRequest()
    scope = request.resource_metrics.add().scope_metrics.add()
    for kind, name, unit, attributes, value in chosen:
        metric = scope.metrics.add(name=name, unit=unit, description=f"{name} \n\\")
        point = getattr(metric, kind).data_points.add()
        for key, text in attributes.items():
            point.attributes.add(key=key).value.string_value = text
        if isinstance(point, pb.NumberDataPoint):
            point.as_double = value
            point.exemplars.add(as_double=value)
        else:
            point.count, point.sum = 3, value
        if isinstance(point, pb.HistogramDataPoint):
            point.explicit_bounds.append(value)
            point.bucket_counts.extend([1, 2])
            point.exemplars.add(as_double=value, trace_id=bytes(16))
        if isinstance(metric, pb.Metric) and kind == "sum":
            metric.sum.is_monotonic = value > 0
    store.ingest(request.SerializeToString())
    plain = metrics_page(store, "")[0].decode()
    list(parse_plain(plain))
    list(parse_openmetrics(metrics_page(store, OPENMETRICS)[0].decode()))
