"""The names everybody relies on: spans, attributes and metrics (a public contract, held by golden files).

Units are UCUM as OpenTelemetry writes them. Prometheus names follow from name, unit and kind by
`prometheus_name`, the rule of the Collector's prometheus exporter, so both ways to run agree.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

# -- spans ------------------------------------------------------------------------------------

FRAME, SAMPLE, ENERGY, SESSION, CLOCK = "frame", "sample", "energy", "session", "clock"

PIPELINE_NAME = "pipeline.name"
PIPELINE_STAGE = "pipeline.stage"
FRAME_NUMBER = "frame.number"
FRAME_OUTCOME = "frame.outcome"
HW_ID, HW_TYPE = "hw.id", "hw.type"
POWER_PREFIX, ENERGY_PREFIX = "hw.power.", "hw.energy."  # + domain; a domain has no dot in its name
METER_LAG, METER_WINDOW = "meter.lag_ns", "meter.window_ns"
CLOCK_OFFSET, CLOCK_UNCERTAINTY = "clock.offset_ns", "clock.uncertainty_ns"
CLOCK_WALL_OFFSET, CLOCK_SUSPENDED = "clock.wall_offset_ns", "clock.suspended_ns"
SIMULATED = "benchlab.simulated"  # a resource attribute; true wherever any input was simulated
SESSION_ID = "session.id"

# -- metrics ----------------------------------------------------------------------------------

Kind = Literal["gauge", "counter", "updown", "histogram"]


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric of the contract; `labels` are all attribute names its points may carry."""

    name: str
    unit: str
    kind: Kind
    description: str
    labels: tuple[str, ...] = ()
    bounds: tuple[float, ...] = ()  # of a histogram


SECONDS = (
    *(0.0005, 0.001, 0.002, 0.003, 0.004, 0.006, 0.008, 0.010, 0.013, 0.017, 0.021, 0.025, 0.033),
    *(0.042, 0.050, 0.067, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0),
)
JOULES = (
    *(0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 7.5),
    *(10.0, 15.0, 20.0, 30.0, 50.0, 100.0, 200.0, 500.0, 1000.0),
)

_PIPE = ("pipeline.name",)
FRAME_DURATION = Metric(
    "pipeline.frame.duration", "s", "histogram", "Time from a frame's first to its last mark.", _PIPE, SECONDS
)
STAGE_DURATION = Metric(
    "pipeline.stage.duration",
    "s",
    "histogram",
    "Time a frame spent in a stage.",
    (*_PIPE, "pipeline.stage"),
    SECONDS,
)
PAIR_LATENCY = Metric(
    "pipeline.latency",
    "s",
    "histogram",
    "Time between two marks of the same frame.",
    (*_PIPE, "from", "to"),
    SECONDS,
)
FRAMES = Metric("pipeline.frames", "{frame}", "counter", "Frames that ended.", (*_PIPE, "frame.outcome"))
FRAME_ENERGY = Metric(
    "pipeline.frame.energy",
    "J",
    "histogram",
    "Energy a domain used while a frame was in flight.",
    (*_PIPE, "hw.id", "domain", "method"),
    JOULES,
)
PROBE_LOST = Metric(
    "pipeline.probe.lost",
    "{mark}",
    "counter",
    "Marks or spans that a probe had to give up.",
    (*_PIPE, "reason"),
)
COLLECT_SUCCESS = Metric(
    "exporter.collect.success",
    "1",
    "gauge",
    "1 when the source's last reading worked, else 0.",
    ("source", "hw.id"),
)
COLLECT_DURATION = Metric(
    "exporter.collect.duration", "s", "gauge", "Time the source's last reading took.", ("source", "hw.id")
)

_UNIT_WORDS = {
    "s": "seconds", "ms": "milliseconds", "W": "watts", "J": "joules", "V": "volts", "A": "amperes",
    "Cel": "celsius", "By": "bytes", "Hz": "hertz", "%": "percent", "rpm": "rpm", "1": "ratio",
}  # fmt: skip


def prometheus_name(name: str, unit: str, kind: Kind) -> str:
    """The Prometheus metric name that the Collector's exporter gives (counters with `_total`)."""
    parts = [p for p in "".join(c if c.isalnum() else "_" for c in name).split("_") if p]
    word = _UNIT_WORDS.get(unit, "" if unit.startswith("{") else unit)
    if unit == "1" and kind != "gauge":
        word = ""
    if word and word not in parts:
        parts.append(word)
    if kind == "counter":
        parts = [p for p in parts if p != "total"] + ["total"]
    return "_".join(parts)
