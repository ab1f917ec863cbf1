"""What CapFrameX will show for a run's capture, computed here, for `report --capframex`."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from rich.console import Group, RenderableType
from rich.text import Text

from benchlab_otel.export.capframex_columns import NO_OPTIONS, completed
from benchlab_otel.export.capframex_sensors import sensor_rows, sensors_of
from benchlab_otel.export.capframex_statistics import (
    Statistics,
    fps_per_10_watts,
    frame_times_of,
    rounded,
    statistics,
)
from benchlab_otel.export.report_text import table_of
from benchlab_otel.model import Run

POWERS = ("CPU Package", "GPU Power")  # sensors that CapFrameX takes for the CPU's and the GPU's power
LABELS = {
    "p99": "P99", "p95": "P95", "average": "Average", "median": "Median", "p5": "P5", "p1": "P1",
    "p02": "P0.2", "p01": "P0.1", "low1_average": "1 % low average", "low01_average": "0.1 % low average",
    "low1_integral": "1 % low integral", "low01_integral": "0.1 % low integral",
    "adaptive_std": "Adaptive STDEV", "stutter_percent": "Stutter time, %",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class CapFrameXReport:
    """Unrounded figures of one pipeline; `fps_per_10_w` by sensor, of those that the capture has."""

    pipeline: str
    frame_times: int
    fps: Statistics
    fps_per_10_w: dict[str, float]


def make_capframex_report(run: Run) -> CapFrameXReport | None:
    """The figures; None where there are not two frames that end apart."""
    times = frame_times_of([run])
    if not len(times):
        return None
    rows, kept = sensor_rows(sensors_of(run, NO_OPTIONS), completed(run.frames))
    watts = {s.name: float(np.mean(s.values()[0][rows])) for s in kept if s.name in POWERS and len(rows)}
    per_10_w = {name: fps_per_10_watts(times, w) for name, w in watts.items() if w > 0}
    return CapFrameXReport(run.frames.pipeline, len(times), statistics(times), per_10_w)


def render(report: CapFrameXReport) -> RenderableType:
    """The figures with one digit, as CapFrameX rounds them."""
    table = table_of("CapFrameX", "fps")
    for name, label in LABELS.items():
        table.add_row(label, rounded(getattr(report.fps, name)))
    for name, value in report.fps_per_10_w.items():
        table.add_row(f"FPS/10 W, {name}", rounded(value))
    return Group(Text(f"{report.pipeline}: {report.frame_times:,} frame times", style="bold"), "", table)
