"""Health and latest reading of one device as metrics. What is the same each time is prepared once."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from benchlab_otel.model import Int, Point, Resource
from benchlab_otel.otlp.encode_metrics import Told
from benchlab_otel.sources.reading import Batch


class Metrics:
    """Metrics requests of one device after the other; series that are not told again end."""

    def __init__(self) -> None:
        self._told = Told()
        self._kind: tuple[object, ...] = ()  # what decides which series there are
        self._there: Int = np.empty(0, np.int64)  # columns of the values that were told

    def health(self, resource: Resource, health: Sequence[Point], now_ns: int) -> list[bytes]:
        """The requests of points about health alone."""
        self._kind = ()
        return self._told.requests(resource, health, now_ns)

    def reading(
        self, resource: Resource, health: Sequence[Point], batch: Batch, since_ns: int, now_ns: int
    ) -> list[bytes]:
        """The requests of health and a batch's last reading, counters since `since_ns`; NaN has no point."""
        values, time_ns = batch.values[-1], batch.end_ns.item(-1)
        about = [(point.metric.name, *point.labels.values()) for point in health]
        kind = (resource, about, batch.fields, np.isnan(values).tobytes(), since_ns)
        if kind != self._kind:
            points = _points(batch, since_ns)
            self._kind, self._there = kind, np.array(list(points), np.int64)
            return self._told.requests(resource, [*health, *points.values()], now_ns)
        times = np.array([*(point.time_ns for point in health), *[time_ns] * len(self._there)])
        told = np.concatenate([[point.value for point in health], values[self._there]])
        return [self._told.again(times, told)]


def _points(batch: Batch, since_ns: int) -> dict[int, Point]:
    """The last reading as metric points, by column: of equal series the last one."""
    time_ns, values = batch.end_ns.item(-1), batch.values[-1].tolist()
    last: dict[tuple[object, ...], tuple[int, Point]] = {}
    for i, (field, value) in enumerate(zip(batch.fields, values, strict=True)):
        if field.metric and not math.isnan(value):
            start_ns = since_ns if field.metric.kind == "counter" else 0
            point = Point(field.metric, field.labels, value, time_ns, start_ns)
            last[field.metric.name, *field.labels.items()] = i, point
    return dict(last.values())
