"""The report: figures against independent calculations, and clear words where there are none."""

from __future__ import annotations

import io
import json
import re
import statistics
from dataclasses import asdict, replace

import numpy as np
import pytest
from rich.console import Console

from benchlab_otel.align.marks import UnknownMark
from benchlab_otel.align.readings import slice_of
from benchlab_otel.export.recording import attributed, of_run
from benchlab_otel.export.report import Energy, KnownTruth, Report, make_report, to_json
from benchlab_otel.export.report_text import number, plus_minus, render
from benchlab_otel.model import Run
from benchlab_otel.simulate.power import (
    Background,
    Load,
    Meter,
    Stage,
    frame_truth,
    measure,
    merged,
    simulate,
)
from frames_of import MS, START, make_energy, make_readings, make_run


def text(*reports: Report) -> str:
    out = io.StringIO()
    Console(file=out, width=80, highlight=False).print(render(reports))
    return out.getvalue()


def test_latency_drops_and_rate() -> None:
    run = make_run(300, dropped=(7, 8))
    report = make_report(run, pairs=["ingress:infer"])
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
    assert energy.interpolated is not None
    assert energy.interpolated.frames == 270
    assert energy.coverage == pytest.approx(0.9)
    assert energy.interpolated.mean_j == pytest.approx(known.mean())
    assert energy.interpolated.uncertainty_j == pytest.approx(0.05 * known.mean())
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
    report = make_report(run, truth={"gpu": KnownTruth(true, {}, {})})
    assert report.energy[0].interpolated is not None
    truth = report.energy[0].interpolated.truth
    assert truth is not None
    assert truth.mean_j == pytest.approx(true.mean())
    assert truth.error_j == pytest.approx(np.abs(true - measured).mean())
    assert truth.held == pytest.approx(0.9)
    assert "The truth, mJ" in text(report)
    assert "90.0%" in text(report)


def test_text_fits_80_columns_without_colour() -> None:
    run = make_run(300, dropped=(3,), simulated=True)
    shown = text(make_report(run, (), ["ingress:infer"], {"gpu": KnownTruth(run.energy[0].energy, {}, {})}))
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
    assert (found["schema"], found["session"], found["faults"]) == (2, "s1", ["a fault"])
    (run_json,) = found["runs"]
    assert set(run_json) == {
        *("pipeline", "service", "frames", "outcomes", "seconds", "fps", "frame", "stages", "pairs"),
        *("energy", "comparisons", "simulated", "unresolved"),
    }
    assert run_json["energy"][0]["interpolated"]["uncertainty_j"] is None
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
        make_report(make_run(10), pairs=["ingress:shown"])


def test_frames_that_overlap_are_in_flight_together() -> None:
    run = make_run(100)
    run.frames.begin -= 20 * MS  # more than one in flight at any time between the first and the last
    (energy,) = make_report(run).energy
    time, watts = run.readings[0].time, run.readings[0].value
    outside = (time < run.frames.begin[0]) | (time > run.frames.end[-1])
    assert energy.idle_w == pytest.approx(watts[outside].mean())


# -- watts and joules of stages -----------------------------------------------------------------

STAGES = (Stage("decode", 60.0, 0.002), Stage("infer", 220.0, 0.006), Stage("display", 110.0, 0.003))


def recorded(
    stages: tuple[Stage, ...] = STAGES, seconds: float = 40.0, meter: Meter | None = None, seed: int = 3
) -> tuple[Run, dict[str, KnownTruth]]:
    """A simulated pipeline over 95 W, read at 20 Hz; and its truth."""
    rng = np.random.default_rng(seed)
    truth = simulate(Load(stages, duration_s=seconds, background=Background(95.0)), rng)
    readings = measure(truth, meter or Meter(noise=0.2), rng)
    frames = truth.frames
    own = np.bincount(frames.stage, truth.watts * (frames.stage_end - frames.stage_begin) / 1e9)
    return Run(frames, [readings]), {
        "system": KnownTruth(
            frame_truth(truth, 0.0, seconds).energy,
            {s.name: s.watts for s in stages},
            dict(zip(frames.stage_names, own / len(frames), strict=True)),
        )
    }


def reported(run: Run, truth: dict[str, KnownTruth] | None = None) -> tuple[Report, Energy]:
    """The report of a run, and its only domain."""
    report = make_report(run, of_run(attributed([run]), 0), truth=truth)
    return report, report.energy[0]


def test_stages_against_the_truth() -> None:
    run, truth = recorded()
    report, energy = reported(run, truth)
    assert [s.stages for s in energy.stages] == [["decode"], ["infer"], ["display"]]
    held = [
        abs(figure - true) <= 1.5 * half  # 1.5: three stages all within 95 % would fail too often
        for s in energy.stages
        for figure, half, true in (
            (s.watts, s.watts_uncertainty, s.true_watts),
            (s.joules, s.joules_uncertainty, s.true_joules),
        )
        if figure is not None and half is not None and true is not None
    ]
    assert held == [True] * 6
    assert sum(s.share or 0 for s in energy.stages) == pytest.approx(1)
    assert energy.base_w == pytest.approx(95, abs=0.5)
    assert energy.window is not None
    assert (energy.window.origin, energy.window.width_s) == ("configured", 0.05)
    assert energy.conditioned is not None
    assert energy.interpolated is None  # the runs of this test were not read by the aligner
    assert energy.conditioned.truth is not None
    assert energy.conditioned.truth.error_j < 0.02 * energy.conditioned.mean_j
    assert energy.own is not None
    assert energy.shared is not None
    assert energy.own.mean_j < energy.shared.mean_j <= energy.conditioned.mean_j * 1.001
    assert energy.ledger is not None
    parts = energy.ledger.shares + energy.ledger.idle + energy.ledger.residual
    assert parts == pytest.approx(energy.ledger.measured)
    assert energy.check is not None
    assert energy.check.error < energy.check.error_no_stages / 5
    assert report.unresolved == []


def test_text_of_stages() -> None:
    run, truth = recorded()
    shown = text(reported(run, truth)[0])
    assert max(map(len, shown.splitlines())) <= 80
    assert "Mean over 50.00 ms (configured)" in shown
    assert re.search(r"^infer +\d+\.\d+ ± \d\.\d+  220\.0$", shown, re.MULTILINE)
    assert re.search(r"^base +9[45]\.\d+ ± 0\.\d+", shown, re.MULTILINE)
    assert re.search(r"^system +\d+ .*\(0\.\d%\) +\d+\.\d%$", shown, re.MULTILINE)
    assert "Not resolved" not in shown
    assert (
        "%" in text(reported(recorded()[0])[0]).split("J a frame")[1].split("\n")[1]
    )  # shares, without truth


def test_json_of_stages() -> None:
    run, truth = recorded(seconds=20)
    (found,) = json.loads(to_json([reported(run, truth)[0]], "s"))["runs"]
    (energy,) = found["energy"]
    assert set(energy) == {
        *("meter", "domain", "kind", "simulated", "readings", "rate_hz", "coverage", "reason"),
        *("interpolated", "conditioned", "own", "shared", "stages", "base_w", "base_uncertainty_w"),
        *("in_flight_w", "idle_w", "window", "ledger", "check"),
    }
    assert set(energy["stages"][0]) == {
        *("stages", "frames", "watts", "watts_uncertainty", "spread_w", "joules", "joules_uncertainty"),
        *("share", "reason", "true_watts", "true_joules"),
    }
    assert set(energy["conditioned"]) == {*("frames", "mean_j", "p50_j", "p95_j", "uncertainty_j", "truth")}
    assert set(energy["window"]) == {
        *("shape", "lag_s", "width_s", "origin", "reason", "lag_uncertainty_s", "width_uncertainty_s"),
        "clock",
    }
    assert set(energy["ledger"]) == {
        *("measured", "shares", "idle", "residual", "residual_uncertainty", "exact")
    }
    assert set(energy["check"]) == {
        *("error", "error_no_stages", "coverage", "tails", "correlation", "widened", "findings")
    }
    assert len(f"{energy['base_w']:.12g}") <= 7  # six digits


def test_the_window_of_an_unknown_meter_is_found_once() -> None:
    meter = Meter(noise=0.2, lag_s=0.012, width_s=0.04, known=False)
    run, _ = recorded(meter=meter)
    half = replace(run.readings[0], domain="half", value=run.readings[0].value / 2)
    run.readings.append(half)
    report = make_report(run, of_run(attributed([run]), 0))
    first, second = (e.window for e in report.energy)
    assert first is not None
    assert first == second
    assert first.origin == "found"
    assert first.lag_s == pytest.approx(0.012, abs=0.001)
    assert first.width_s == pytest.approx(0.04, rel=0.1)
    assert re.search(r"Mean over \d+\.\d+ ± .* ms late \(found from the activity\)", text(report))


def test_a_window_that_cannot_be_found_says_so() -> None:
    steady = (Stage("all", 100.0, 0.015, length_spread=0.0),)
    run, _ = recorded(steady, meter=Meter(noise=0.5, known=False))
    run.energy = [replace(make_energy(run.frames, "system"), meter=run.readings[0].meter)]
    report, energy = reported(run)
    assert energy.window is not None
    assert energy.window.origin == "not identifiable"
    assert energy.window.reason
    assert (energy.conditioned, energy.stages) == (None, [])
    assert energy.interpolated is not None
    assert energy.window.reason in report.unresolved[0]
    assert "Mean over" not in text(report)


def test_two_stages_never_apart_get_one_figure() -> None:
    run, truth = recorded((Stage("decode", 60.0, 0.003), Stage("infer", 220.0, 0.004)))
    frames = run.frames
    second = frames.stage == 1
    begin, end = frames.stage_begin[~second].copy(), frames.stage_end[second].copy()
    frames.stage_begin[second], frames.stage_end[~second] = begin, end  # both all the time
    report, energy = reported(run, truth)
    (figure,) = energy.stages
    assert figure.stages == ["decode", "infer"]
    assert figure.watts is not None
    assert figure.true_watts is None  # the truth knows no group
    assert "never seen apart: decode, infer" in report.unresolved[0]
    assert re.search(r"^decode \+ infer +\d", text(report), re.MULTILINE)


def test_a_stage_that_is_always_active_has_no_figure() -> None:
    run, _ = recorded((Stage("decode", 60.0, 0.003), Stage("infer", 220.0, 0.004)))
    frames = run.frames
    last = np.flatnonzero(frames.stage == 1)
    frames.stage_end[last[:-1]] = frames.stage_begin[last[1:]]  # from one frame's to the next
    frames.end[:-1] = frames.stage_end[last[:-1]]
    frames.stage_begin[last[0]] = frames.begin[0] = run.readings[0].time[0] - 10**9
    frames.stage_end[last[-1]] = frames.end[-1] = run.readings[0].time[-1] + 10**9
    report, energy = reported(run)
    figures = {tuple(s.stages): s for s in energy.stages}
    infer = figures["infer",]
    assert (infer.watts, infer.joules, infer.share) == (None, None, None)
    assert "always active" in infer.reason
    assert any("infer" in line and "part of the base" in line for line in report.unresolved)


def test_what_two_stages_share_is_told_once() -> None:
    """Two stages of 2 µs that are never apart, of which the readings show nothing: one reason for both."""
    run, _ = recorded((Stage("decode", 60.0, 0.003), Stage("infer", 220.0, 0.004)), seconds=10.0)
    frames = run.frames
    frames.stage_begin, frames.stage_end = (np.repeat(t, 2) for t in (frames.begin, frames.begin + 2_000))
    run.readings[0].value[:] = np.random.default_rng(1).normal(100.0, 0.2, len(run.readings[0]))
    report, energy = reported(run)
    assert [s.watts for s in energy.stages] == [None, None]
    told = [line for line in report.unresolved if "decode, infer" in line]
    why = "takes too little time to show in the readings"
    assert told == [f"system of meter0: {why}: decode, infer; part of the base"]


def test_too_short_a_run_has_words_and_no_figure() -> None:
    run, _ = recorded(seconds=0.3)
    run.readings = [slice_of(run.readings[0], 0, 15)]
    run.energy = [replace(make_energy(run.frames, "system"), meter=run.readings[0].meter)]
    report, energy = reported(run)
    assert (energy.conditioned, energy.shared, energy.base_w, energy.stages) == (None, None, None, [])
    assert re.search(
        "nothing for stages: too little data: 15 readings for . stages, 17", report.unresolved[0]
    )
    run, _ = recorded(seconds=1.5, meter=Meter(noise=60.0))
    report, energy = reported(run)
    told = [s for s in energy.stages if s.reason]
    assert told
    assert all(s.watts is None for s in told if len(s.stages) == 1)
    assert re.search(r"too little data: about \d+ s more of this kind are needed", told[0].reason)
    figures = text(report).split("Watts")[1].split("One frame")[0]
    assert not any(line.startswith(told[0].stages[0]) for line in figures.splitlines())


def test_figures_are_rounded_to_their_uncertainty() -> None:
    assert plus_minus(61.3461, 2.4761) == "61.3 ± 2.5"
    assert plus_minus(0.0311512, 0.00125737, 1e3) == "31.2 ± 1.3"
    assert plus_minus(12345.6, 1480.2) == "12346 ± 1480"
    assert (plus_minus(5.0, 0.0996), plus_minus(50.04, 9.96)) == ("5.00 ± 0.10", "50 ± 10")
    assert plus_minus(None, None) == plus_minus(float("nan"), 1.0) == ""
    assert plus_minus(2.0, None) == "2.000"
    assert plus_minus(-0.2, 14.0) == "0 ± 14"
    assert (number(1020.4, 3), number(0.0, 3), number(-0.01234, 2)) == ("1020", "0", "-0.012")


def test_two_meters_of_the_same_thing_are_compared() -> None:
    """A RAPL package and the power meter's CPU rails, one of them reading 3 W more."""
    random = np.random.default_rng(4)
    truth = simulate(Load((Stage("work", 40.0, 0.004),), duration_s=60.0), random)
    rails = measure(truth, Meter(name="board", domain="cpu", noise=0.2), random)
    package = measure(truth, Meter(name="rapl", domain="package-0", kind="energy", rate_hz=100.0), random)
    shifted = replace(rails, value=rails.value + 3.0)
    report = make_report(Run(truth.frames, [shifted, package]))
    (found,) = report.comparisons
    assert (found.first, found.second) == ("cpu of board", "package-0 of rapl")
    assert abs(found.watts - 3.0) <= found.uncertainty_w
    assert found.uncertainty_w < 1.0
    assert "cpu of board less package-0 of rapl: " in text(report)
    alone = make_report(Run(truth.frames, [shifted, replace(package, domain="dram")]))
    assert not alone.comparisons


def test_the_packages_of_a_host_are_compared_together_with_its_cpu_rails() -> None:
    """The rails feed two packages, one with a third of the power, and read 3 W more than both."""
    random = np.random.default_rng(4)
    truth = simulate(Load((Stage("work", 40.0, 0.004),), duration_s=60.0), random)
    rails = measure(truth, Meter(name="board", domain="cpu", noise=0.2), random)
    rails = replace(rails, value=rails.value + 3.0)
    whole = measure(truth, Meter(name="rapl", domain="package-0", kind="energy", rate_hz=100.0), random)
    packages = [
        replace(whole, value=whole.value * part, domain=f"package-{i}")
        for i, part in enumerate((2 / 3, 1 / 3))
    ]
    report = make_report(Run(truth.frames, [*packages, rails]))
    (found,) = report.comparisons
    assert (found.first, found.second) == ("cpu of board", "package-0 + package-1 of rapl")
    assert abs(found.watts - 3.0) <= found.uncertainty_w < 1.0
    assert "cpu of board less package-0 + package-1 of rapl: " in text(report)
    late = slice_of(packages[1], len(packages[1]) // 2, len(packages[1]))
    (half,) = make_report(Run(truth.frames, [packages[0], late, rails])).comparisons
    assert abs(half.watts - 3.0) <= half.uncertainty_w
    assert half.seconds == pytest.approx(found.seconds / 2, rel=0.1)  # while all of them were read
    for unreadable in ([packages[0], replace(packages[1], domain="package-2")], packages[1:]):
        assert not make_report(Run(truth.frames, [*unreadable, rails])).comparisons


def test_what_is_of_all_pipelines_is_told_once() -> None:
    """The meter's ledger has the frames of both: under the heading of one they would seem its own."""
    rng = np.random.default_rng(3)
    loads = (("cam0", 60.0, 95.0, 60.0), ("cam1", 30.0, 0.0, 25.0))
    pipelines = [
        simulate(
            Load(
                (Stage("work", watts, 0.004),), fps, duration_s=40.0, name=name, background=Background(base)
            ),
            rng,
        )
        for name, watts, base, fps in loads
    ]
    readings = measure(merged(pipelines), Meter(noise=0.2), rng)
    runs = [Run(one.frames, [readings, replace(readings, meter="other")]) for one in pipelines]
    recording = attributed(runs)
    reports = [make_report(run, of_run(recording, i)) for i, run in enumerate(recording.runs)]
    shown = text(*reports)
    cam1, everything = shown[shown.index("cam1:") :].split("All pipelines, meter", 1)
    for word in ("Ledger, J", "Readings predicted", "The same by two meters"):
        assert shown.count(word) == everything.count(word) == (1 if "same" in word else 2)
    assert "= all frames" in everything
    assert "Ledger" not in cam1
    assert "= frames" in text(reports[0])
