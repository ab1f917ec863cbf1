"""The last value of every metric series, and the /metrics page that shows them.

Follows the Collector's prometheus exporter, so that both ways to run show the same series: names by
`contract.prometheus_name`, labels `job` and `instance` from the service's name and instance id, the
other resource attributes in `target_info`, series without an update for five minutes expire.
"""

from __future__ import annotations

import threading
import time
from bisect import bisect_left
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from prometheus_client.exposition import choose_encoder, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.samples import Exemplar as ShownExemplar
from prometheus_client.samples import Timestamp
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from benchlab_otel.contract import SESSION_ID, Kind, prometheus_label, prometheus_name
from benchlab_otel.model import Exemplar
from benchlab_otel.otlp.decode_metrics import (
    Buckets,
    DecodedMetrics,
    MetricData,
    Quantiles,
    Series,
    Type,
    decode_metrics,
)
from benchlab_otel.timebase import CLOCK_ATTRIBUTE

EXPIRY_SECONDS = 300.0  # metric_expiration of the Collector's exporter
TARGET = "target"

# Resource attributes that `job` and `instance` say already, or that would make a new series each run.
_NOT_IN_TARGET = {"service.name", "service.namespace", "service.instance.id", SESSION_ID, CLOCK_ATTRIBUTE}
_SHOWN_TYPE = {
    "gauge": "gauge",
    "updown": "gauge",
    "counter": "counter",
    "histogram": "histogram",
    "summary": "summary",
}
_SUFFIXES = {
    "gauge": ("",),
    "counter": ("", "_total", "_created"),
    "histogram": ("", "_bucket", "_sum", "_count", "_created"),
    "summary": ("", "_sum", "_count", "_created"),
    "info": ("", "_info"),
}
_OWN_LABEL = {"histogram": "le", "summary": "quantile"}  # the label that the type itself needs


@dataclass(slots=True)
class _Stored:
    """One series: its labels, its newest value, and when (by our clock) it came."""

    labels: dict[str, str]
    value: float | Buckets | Quantiles
    time_ns: int
    exemplars: list[Exemplar]
    seen: float


@dataclass(slots=True)
class _Family:
    """All series of one Prometheus name. `base` is the name without a counter's `_total`."""

    base: str
    type: str
    help: str
    series: dict[tuple[tuple[str, str], ...], _Stored] = field(default_factory=dict)

    def names(self) -> list[str]:
        """Every sample name that the family may show; no other family may use one of them."""
        return [self.base + suffix for suffix in _SUFFIXES[self.type]]


class MetricStore:
    """Takes OTLP metrics requests and is a collector for prometheus_client's exposition code.

    Safe to call from several threads. `clock` gives seconds and decides when series expire.
    """

    def __init__(
        self, expiry_seconds: float = EXPIRY_SECONDS, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._expiry = expiry_seconds
        self._clock = clock
        self._families: dict[str, _Family] = {}
        self._owner = dict.fromkeys((TARGET, f"{TARGET}_info"), TARGET)
        self._targets: dict[tuple[str, str], _Stored] = {}
        self._lock = threading.Lock()

    def ingest(self, body: bytes) -> dict[str, int]:
        """Takes the request's points; returns how many are not shown, by reason.

        Raises ValueError for what is not a metrics request.
        """
        decoded = decode_metrics(body)
        now = self._clock()
        with self._lock:
            for metric in decoded.metrics:
                self._take(metric, decoded, now)
        return decoded.dropped

    def collect(self) -> Iterator[Metric]:
        """The families as they are now, by name; series that were not updated for long are gone."""
        with self._lock:
            self._expire(self._clock() - self._expiry)
            shown = [_show(family) for _, family in sorted(self._families.items())]
            info = Metric(TARGET, "Target metadata", "info")
            for target in self._targets.values():
                info.add_sample(f"{TARGET}_info", target.labels, 1.0)
        yield from [info, *shown] if info.samples else shown

    # -- taking points ------------------------------------------------------------------------

    def _take(self, metric: MetricData, decoded: DecodedMetrics, now: float) -> None:
        # prometheus_client writes ":" as "_" in OpenMetrics samples only; one name for both formats
        name = prometheus_name(metric.name, metric.unit, _kind(metric.type)).replace(":", "_")
        if not name:
            decoded.drop("invalid_name", len(metric.series))
            return
        if metric.delta and metric.type == "updown":
            decoded.drop("delta_updown", len(metric.series))
            return
        target = self._target(metric.resource, now)
        for series in metric.series:
            labels = _labels(series.attributes, target, _OWN_LABEL.get(metric.type))
            if labels is None:
                decoded.drop("label_conflict")
                continue
            key = tuple(sorted(labels.items()))
            if series.value is None:
                if name in self._families:
                    self._families[name].series.pop(key, None)
                continue
            if not _showable(series.value, metric.type):
                decoded.drop("invalid_value")
                continue
            family = self._family(name, metric)
            if family is None:
                decoded.drop("type_conflict")
                continue
            before = family.series.get(key)
            if before is not None and series.time_ns < before.time_ns:
                continue  # a late repeat of what was newer already
            value = _sum(before, series) if metric.delta else series.value
            family.series[key] = _Stored(labels, value, series.time_ns, series.exemplars, now)

    def _family(self, name: str, metric: MetricData) -> _Family | None:
        """The family of that name, made where it is new; None where its type or a name is taken."""
        shown = _SHOWN_TYPE[metric.type]
        family = self._families.get(name)
        if family is not None:
            return family if family.type == shown else None
        base = name.removesuffix("_total") if shown == "counter" else name
        family = _Family(base, shown, metric.description)
        if any(taken in self._owner for taken in family.names()):
            return None
        self._families[name] = family
        self._owner.update(dict.fromkeys(family.names(), name))
        return family

    def _target(self, resource: dict[str, str], now: float) -> dict[str, str]:
        """The job and instance labels of a resource; notes its other attributes for target_info."""
        labels = {}
        if "service.name" in resource:
            namespace = resource.get("service.namespace")
            service = resource["service.name"]
            labels["job"] = f"{namespace}/{service}" if namespace else service
        if "service.instance.id" in resource:
            labels["instance"] = resource["service.instance.id"]
        if labels.get("job") and labels.get("instance"):
            others = {k: v for k, v in resource.items() if k not in _NOT_IN_TARGET}
            shown = _merged(others) | labels
            self._targets[labels["job"], labels["instance"]] = _Stored(shown, 1.0, 0, [], now)
        return labels

    def _expire(self, oldest: float) -> None:
        for name, family in list(self._families.items()):
            for key in [key for key, stored in family.series.items() if stored.seen < oldest]:
                del family.series[key]
            if not family.series:
                del self._families[name]
                for taken in family.names():
                    del self._owner[taken]
        for target in [key for key, stored in self._targets.items() if stored.seen < oldest]:
            del self._targets[target]


def _kind(type_: Type) -> Kind:
    return "histogram" if type_ == "summary" else type_  # neither has a suffix of its own


def _merged(attributes: dict[str, str]) -> dict[str, str]:
    """Labels of attributes; where two come to the same name, both values with ';' between them."""
    labels: dict[str, str] = {}
    for key in sorted(attributes):
        name = prometheus_label(key)
        if name:
            labels[name] = f"{labels[name]};{attributes[key]}" if name in labels else attributes[key]
    return labels


def _labels(attributes: dict[str, str], target: dict[str, str], own: str | None) -> dict[str, str] | None:
    """The labels of a series, None where an attribute takes a name that the page itself needs."""
    labels = _merged(attributes)
    if any(name in labels for name in (*target, own, "__name__")):
        return None
    return labels | target


def _showable(value: float | Buckets | Quantiles, type_: str) -> bool:
    """OpenMetrics forbids negative and NaN totals and negative quantiles: a scrape would fail."""
    if isinstance(value, Quantiles):
        return value.sum >= 0 and not any(number < 0 for number in value.values.values())
    return type_ != "counter" or (isinstance(value, float) and value >= 0)


def _sum(before: _Stored | None, series: Series) -> float | Buckets | Quantiles:
    """The total after a delta; a histogram whose bounds changed begins anew."""
    assert series.value is not None
    if before is None:
        return series.value
    if isinstance(before.value, float) and isinstance(series.value, float):
        return before.value + series.value
    if isinstance(before.value, Buckets) and isinstance(series.value, Buckets):
        old, new = before.value, series.value
        if old.bounds == new.bounds:
            total = None if old.sum is None or new.sum is None else old.sum + new.sum
            return Buckets(new.bounds, [a + b for a, b in zip(old.counts, new.counts, strict=True)], total)
    return series.value


# -- showing them -----------------------------------------------------------------------------


def _show(family: _Family) -> Metric:
    shown = Metric(family.base, family.help, family.type)
    for stored in family.series.values():
        if isinstance(stored.value, Buckets):
            _show_buckets(shown, stored.value, stored)
        elif isinstance(stored.value, Quantiles):
            _show_quantiles(shown, stored.value, stored.labels)
        elif family.type == "counter":
            newest = max(stored.exemplars, key=lambda e: e.time_ns, default=None)
            shown.add_sample(
                f"{family.base}_total", stored.labels, stored.value, exemplar=_shown_exemplar(newest)
            )
        else:
            shown.add_sample(family.base, stored.labels, stored.value)
    return shown


def _show_buckets(shown: Metric, value: Buckets, stored: _Stored) -> None:
    newest: dict[int, Exemplar] = {}
    for exemplar in sorted(stored.exemplars, key=lambda e: e.time_ns):
        newest[bisect_left(value.bounds, exemplar.value)] = exemplar
    total = 0
    for i, (bound, count) in enumerate(zip((*value.bounds, float("inf")), value.counts, strict=True)):
        total += count
        labels = stored.labels | {"le": _number(bound)}
        shown.add_sample(f"{shown.name}_bucket", labels, total, exemplar=_shown_exemplar(newest.get(i)))
    # With negative values the sum may fall, which Prometheus would take for a restart.
    if value.sum is not None and value.sum >= 0 and not (value.bounds and value.bounds[0] < 0):
        shown.add_sample(f"{shown.name}_count", stored.labels, total)
        shown.add_sample(f"{shown.name}_sum", stored.labels, value.sum)


def _show_quantiles(shown: Metric, value: Quantiles, labels: dict[str, str]) -> None:
    for quantile, number in sorted(value.values.items()):
        shown.add_sample(shown.name, labels | {"quantile": _number(quantile)}, number)
    shown.add_sample(f"{shown.name}_count", labels, value.count)
    shown.add_sample(f"{shown.name}_sum", labels, value.sum)


def _number(value: float) -> str:
    return "+Inf" if value == float("inf") else repr(value)


def _shown_exemplar(exemplar: Exemplar | None) -> ShownExemplar | None:
    if exemplar is None:
        return None
    hi, lo = exemplar.trace
    labels = {"trace_id": f"{hi:016x}{lo:016x}"} if hi or lo else {}
    if exemplar.span:
        labels["span_id"] = f"{exemplar.span:016x}"
    when = Timestamp(*divmod(exemplar.time_ns, 1_000_000_000)) if exemplar.time_ns else None
    return ShownExemplar(labels, exemplar.value, when)


def metrics_page(store: MetricStore, accept: str) -> tuple[bytes, str]:
    """The page in the format that the Accept header asks for (OpenMetrics or plain), and its type."""
    try:
        encode, content_type = choose_encoder(accept)
    except (ValueError, TypeError):  # a version that is no number
        encode, content_type = generate_latest, "text/plain; version=0.0.4; charset=utf-8"
    return encode(store), content_type


def metrics_app(store: MetricStore, refresh: Callable[[], None] | None = None) -> Starlette:
    """/metrics of `store`; `refresh` is called before each scrape to add what is counted elsewhere."""

    def page(request: Request) -> Response:
        if refresh is not None:
            refresh()
        body, content_type = metrics_page(store, request.headers.get("accept", ""))
        return Response(body, headers={"Content-Type": content_type})

    routes: list[Any] = [Route("/metrics", page)]
    return Starlette(routes=routes, middleware=[Middleware(GZipMiddleware)])
