"""The report: figures against independent calculations, and clear words where there are none."""

from __future__ import annotations

import io
import json
import re
import statistics
from dataclasses import asdict

import numpy as np
import pytest
from rich.console import Console

from benchlab_otel.align.marks import UnknownMark
from benchlab_otel.export.report import Report, make_report, render, to_json
from benchlab_otel.model import Run
from frames_of import MS, START, make_energy, make_readings, make_run


def text(report: Report) -> str:
    out = io.StringIO()
    Console(file=out, width=80, highlight=False).print(render(report))
    return out.getvalue()


def test_latency_drops_and_rate() -> None:
    run = make_run(300, dropped=(7, 8))
    report = make_report(run, ["ingress:infer"])
    frames = run.frames
    durations = sorted(
        float(e - b) / 1e9 for e, b, o in zip(frames.end, frames.begin, frames.outcome, strict=True) if o == 0
    )
    assert report.frame is not None
    assert report.frame.count == 298
    assert report.frame.p50_s == pytest.approx(statistics.median(durations))
    cut = statistics.quantiles(durations, n=100, method="inclusive")
    assert (report.frame.p95_s, report.frame.p99_s) == pytest.approx((cut[94], cut[98]))
    assert report.frame.max_s == durations[-1]
    assert report.outcomes == {"completed": 298, "dropped": 2, "failed": 0}
    assert [s.name for s in report.stages] == ["decode", "infer", "display"]
    assert [s.count for s in report.stages] == [300, 298, 298]
    assert sum(s.share or 0 for s in report.stages) == pytest.approx(1)  # no time between the stages
    assert report.pairs[0].p50_s == pytest.approx(0.008, rel=0.05)
    assert report.fps == pytest.approx(60 * 297 / 299, rel=0.01)


def test_joules_a_frame_and_idle_power() -> None:
    run = make_run(300)
    run.energy[0].energy[:30] = np.nan
    (energy,) = make_report(run).energy
    known = run.energy[0].energy[30:]
    assert energy.frames == 270
    assert energy.coverage == pytest.approx(0.9)
    assert energy.mean_j == pytest.approx(known.mean())
    assert energy.uncertainty_j == pytest.approx(0.05 * known.mean())
    assert energy.in_flight_w == pytest.approx(200)
    assert energy.rate_hz == pytest.approx(20)
    idle = [
        w
        for t, w in zip(run.readings[0].time, run.readings[0].value, strict=True)
        if not ((run.frames.begin <= t) & (t < run.frames.end)).any()
    ]
    assert energy.idle_w == pytest.approx(np.mean(idle))


def test_idle_power_of_a_counter() -> None:
    run = make_run(60)
    counter = make_readings("package-0", 3 * 10**9)
    seconds = (counter.time - START) / 1e9
    counter.kind = "energy"
    late = 20 * (seconds - 1)  # 20 W after the last frame
    counter.value = np.where(seconds < 1, 50 * seconds, 50 + late)
    run.readings, run.energy = [counter], [make_energy(run.frames, "package-0")]
    (energy,) = make_report(run).energy
    before, after = 2, sum(counter.time[:-1] >= run.frames.end[-1])
    assert energy.idle_w == pytest.approx((50 * before + 20 * after) / (before + after), rel=0.05)


def test_truth_stands_beside_the_measurement() -> None:
    run = make_run(100)
    measured, half = run.energy[0].energy, run.energy[0].uncertainty
    true = measured + np.where(np.arange(100) < 10, 2, 0.5) * half
    report = make_report(run, truth={"gpu": true})
    truth = report.energy[0].truth
    assert truth is not None
    assert truth.mean_j == pytest.approx(true.mean())
    assert truth.error_j == pytest.approx(np.abs(true - measured).mean())
    assert truth.held == pytest.approx(0.9)
    assert "Beside the truth" in text(report)
    assert "90.0%" in text(report)


def test_text_fits_80_columns_without_colour() -> None:
    run = make_run(300, dropped=(3,), simulated=True)
    shown = text(make_report(run, ["ingress:infer"], truth={"gpu": run.energy[0].energy}))
    assert max(map(len, shown.splitlines())) <= 80
    assert "\x1b" not in shown
    assert "…" not in shown
    assert shown.startswith("cam0: 300 frames in 5.0 s, 59.8 fps, 1 dropped (0.3%)")
    assert "SIMULATED: pipeline cam0, meter benchlab-1" in shown


def test_json_is_whole_and_strict() -> None:
    run = make_run(100)
    run.energy[0].uncertainty[:] = np.nan
    shown = to_json([make_report(run)], "s1", ["a fault"])
    assert not re.search("NaN|Infinity", shown)
    found = json.loads(shown)
    assert (found["schema"], found["session"], found["faults"]) == (1, "s1", ["a fault"])
    (run_json,) = found["runs"]
    assert set(run_json) == {
        *("pipeline", "service", "frames", "outcomes", "seconds", "fps", "frame", "stages", "pairs"),
        *("energy", "simulated", "unresolved"),
    }
    assert run_json["energy"][0]["uncertainty_j"] is None
    assert set(run_json["frame"]) == {"name", "count", "p50_s", "p95_s", "p99_s", "max_s", "share"}


def test_what_is_not_resolved_and_why() -> None:
    run = make_run(100)
    run.energy[0].energy[:40] = np.nan
    cold = make_readings("system", 10**9)
    cold.time -= 3600 * 10**9
    run.readings.append(cold)
    missing, slow, nowhere = make_report(run).unresolved
    assert missing == "gpu of benchlab-1: 40 of 100 frames lie outside its readings or in a gap of them"
    assert re.search(r"no reading within a typical frame \(1\d\.\d ms; a reading every 50\.0 ms\)", slow)
    assert nowhere == "system of benchlab-1: no joules: none of its 20 readings lie around a frame"
    assert "no joules: the session has no reading" in make_report(Run(run.frames)).unresolved[0]


def test_the_same_reason_is_told_once_a_meter() -> None:
    run = make_run(100)
    run.readings.append(make_readings("cpu", 2 * 10**9))
    run.energy.append(make_energy(run.frames, "cpu"))
    (reason,) = make_report(run).unresolved
    assert reason.startswith("gpu, cpu of benchlab-1: no reading within a typical frame")


def test_one_frame_and_none_completed() -> None:
    one = make_report(make_run(1))
    assert one.fps is None
    assert one.frame is not None
    assert "one frame: no frame rate" in one.unresolved[0]
    assert "cam0: 1 frames" in text(one)
    none = make_report(make_run(20, dropped=tuple(range(20))))
    assert none.frame is None
    assert none.unresolved[0] == "no frame completed: no frame latency"
    assert "20 dropped (100.0%)" in text(none)


def test_no_frames_at_all() -> None:
    run = make_run(1)
    frames = run.frames
    for name, value in asdict(frames).items():
        if isinstance(value, np.ndarray):
            setattr(frames, name, value[:0])
    report = make_report(Run(frames))
    assert report.unresolved == ["no frame: nothing to measure"]
    assert "no frame: nothing to measure" in text(report)


def test_unknown_pair() -> None:
    with pytest.raises(UnknownMark, match="it has ingress, decode, infer, display, frame"):
        make_report(make_run(10), ["ingress:shown"])


def test_frames_that_overlap_are_in_flight_together() -> None:
    run = make_run(100)
    run.frames.begin -= 20 * MS  # more than one in flight at any time between the first and the last
    (energy,) = make_report(run).energy
    time, watts = run.readings[0].time, run.readings[0].value
    outside = (time < run.frames.begin[0]) | (time > run.frames.end[-1])
    assert energy.idle_w == pytest.approx(watts[outside].mean())
