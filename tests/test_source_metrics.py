"""Readings as metrics: what is told again for a fraction of the cost is what would be told anew."""

import math
from dataclasses import replace

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from benchlab_otel import contract
from benchlab_otel.model import Point
from benchlab_otel.otlp.encode_metrics import Told
from benchlab_otel.sources.metrics import Metrics
from benchlab_otel.sources.reading import Batch, Field

NOW, SINCE = 1_700_000_000_000_000_000, 1_600_000_000_000_000_000
RESOURCE = {"service.name": "benchlab-otel"}
FIELDS = [
    Field("hw.energy.a", contract.HW_ENERGY, {"hw.id": "x", "hw.sensor_location": "a"}),
    Field("in samples only", None, {}),
    Field("", contract.HW_POWER, {"hw.id": "x", "hw.sensor_location": "a"}),
    Field("", contract.HW_POWER, {"hw.id": "x", "hw.sensor_location": "b"}),
    Field("", contract.HW_POWER, {"hw.id": "x", "hw.sensor_location": "a"}),  # the third one's series again
]
VALUES = st.one_of(st.just(math.nan), st.just(math.inf), st.floats(-1e6, 1e6))


def health(ok: bool) -> list[Point]:
    labels = {"source": "x", "hw.id": "x"}
    failures = [] if ok else [Point(contract.COLLECT_FAILURES, labels | {"reason": "late"}, 1.0, NOW, SINCE)]
    return [Point(contract.COLLECT_SUCCESS, labels, float(ok), NOW), *failures]


@given(
    st.lists(st.tuples(st.booleans(), st.lists(VALUES, min_size=5, max_size=5), st.booleans()), max_size=8)
)
def test_each_request_is_the_one_that_would_be_made_anew(readings) -> None:
    metrics, anew = Metrics(), Told()
    for number, (ok, values, also_new_list) in enumerate(readings):
        time = np.array([NOW + number])
        fields = [replace(field) for field in FIELDS] if also_new_list else FIELDS
        batch = Batch(time, time, fields, np.array([values]))
        points = [
            Point(f.metric, f.labels, value, NOW + number, SINCE if f.metric is contract.HW_ENERGY else 0)
            for f, value in zip(FIELDS, values, strict=True)
            if f.metric and not math.isnan(value)
        ]
        wanted = anew.requests(RESOURCE, [*health(ok), *points], NOW + number)
        assert metrics.reading(RESOURCE, health(ok), batch, SINCE, NOW + number) == wanted


def test_series_end_when_only_health_is_told() -> None:
    metrics, anew = Metrics(), Told()
    time = np.array([NOW])
    batch = Batch(time, time, FIELDS, np.ones((1, 5)))
    for _ in range(3):
        metrics.reading(RESOURCE, health(True), batch, SINCE, NOW)
    points = [Point(f.metric, f.labels, 1.0, NOW, 0) for f in FIELDS if f.metric]
    points[0].start_ns = SINCE
    anew.requests(RESOURCE, [*health(True), *points], NOW)
    assert metrics.health(RESOURCE, health(False), NOW) == anew.requests(RESOURCE, health(False), NOW)
    again = metrics.reading(RESOURCE, health(True), batch, SINCE, NOW)
    assert again == anew.requests(RESOURCE, [*health(True), *points], NOW)
