"""The processor time of a scrape, per 1,000 series, beside plain prometheus_client.

    python bench/scrape.py

The same gauges (10 names, 4 labels, changing values) in our store, fed by OTLP requests, and in a
prometheus_client registry, as text and as OpenMetrics; then the cost of taking the values in: an OTLP
request encoded and stored, and `Gauge.labels(...).set`. All take turns in the same run; prints the
median, min and max over the repeats.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

from prometheus_client import CollectorRegistry, Gauge, generate_latest
from prometheus_client.openmetrics import exposition

from benchlab_otel.contract import Metric, prometheus_name
from benchlab_otel.hub.metrics import MetricStore, metrics_page
from benchlab_otel.model import Point
from benchlab_otel.otlp.encode import resource_of
from benchlab_otel.otlp.encode_metrics import encode_metrics

NAMES, SERIES, REPEATS = 10, 1000, 15
LABELS = ("hw.id", "hw.type", "hw.sensor_location")
METRICS = [Metric(f"bench.value.{i}", "W", "gauge", "A value.", LABELS) for i in range(NAMES)]
RESOURCE = resource_of({"service.name": "bench", "service.instance.id": "host/bench", "host.name": "host"})
OPENMETRICS = "application/openmetrics-text; version=1.0.0"


def points(round_: int) -> list[Point]:
    """All series, with values of that round."""
    return [
        Point(
            METRICS[i % NAMES],
            {"hw.id": f"meter-{i // 100}", "hw.type": "power_rail", "hw.sensor_location": f"rail-{i}"},
            100.0 + i * 0.1 + round_,
            1_795_000_000_000_000_000 + round_,
        )
        for i in range(SERIES)
    ]


def gauges(registry: CollectorRegistry) -> list[Gauge]:
    """The same metrics as prometheus_client has them."""
    labels = [*(label.replace(".", "_") for label in LABELS), "job", "instance"]
    return [
        Gauge(prometheus_name(m.name, m.unit, m.kind), m.description, labels, registry=registry)
        for m in METRICS
    ]


def set_all(registered: list[Gauge], values: list[Point]) -> None:
    """Sets every series, as an exporter written by hand would."""
    for i, point in enumerate(values):
        registered[i % NAMES].labels(*point.labels.values(), "bench", "host/bench").set(point.value)


def main() -> None:
    """Prints the comparison."""
    store, registry = MetricStore(), CollectorRegistry()
    registered = gauges(registry)
    values = points(0)
    ways: dict[str, Callable[[], object]] = {
        "scrape, text: ours": lambda: metrics_page(store, "text/plain"),
        "scrape, text: prometheus_client": lambda: generate_latest(registry),
        "scrape, OpenMetrics: ours": lambda: metrics_page(store, OPENMETRICS),
        "scrape, OpenMetrics: prometheus_client": lambda: exposition.generate_latest(registry),
        "update: OTLP encoded and stored": lambda: store.ingest(encode_metrics(RESOURCE, values)),
        "update: prometheus_client": lambda: set_all(registered, values),
    }
    store.ingest(encode_metrics(RESOURCE, values))
    set_all(registered, values)
    ours = sorted(
        line for line in metrics_page(store, "text/plain")[0].decode().splitlines() if "rail-" in line
    )
    theirs = [line for line in generate_latest(registry).decode().splitlines() if "rail-" in line]
    assert len(ours) == len(theirs) == SERIES
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for round_ in range(REPEATS):
        values = points(round_)
        for name, way in ways.items():
            begin = time.thread_time()
            way()
            taken[name].append((time.thread_time() - begin) * 1e3)
    for name, times in taken.items():
        print(f"{name:40}{statistics.median(times):7.2f} ms  (min {min(times):.2f}, max {max(times):.2f})")


if __name__ == "__main__":
    main()
