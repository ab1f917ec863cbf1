"""Captures that CapFrameX opens: every rule of its importer, and the figures it will show."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from benchlab_otel.align.marks import UnknownMark
from benchlab_otel.export import output
from benchlab_otel.export.capframex import write_json
from benchlab_otel.export.capframex_columns import Options, _in_last_stage, _until_displayed
from benchlab_otel.export.capframex_csv import write_csv, write_presentmon
from benchlab_otel.export.capframex_report import CapFrameXReport, make_capframex_report, render
from benchlab_otel.export.capframex_statistics import fps_per_10_watts, rounded, statistics
from benchlab_otel.export.output import dump_json
from capframex_validator import (
    csv_problems,
    json_problems,
    pc_latency_shows,
    presentmon_problems,
    shared_hashes,
)
from elsewhere import elsewhere
from frames_of import MS, START, make_energy, make_readings, make_run


def written(tmp_path: Path, *runs: Any, **options: Any) -> dict[str, Any]:
    path = tmp_path / "capture.json"
    write_json(path, runs, Options(**options))
    assert json_problems(path) == []
    session: dict[str, Any] = json.loads(path.read_bytes())
    return session


# -- the validator can fail -------------------------------------------------------------------


def broken(change: Callable[[dict[str, Any]], None], tmp_path: Path) -> list[str]:
    session = written(tmp_path, make_run(50))
    change(session)
    path = tmp_path / "broken.json"
    path.write_text(json.dumps(session))
    return json_problems(path)


RULES: dict[str, Callable[[dict[str, Any]], object]] = {
    "no Runs": lambda s: s.pop("Runs"),
    "no CaptureData": lambda s: s["Runs"][0].pop("CaptureData"),
    "no Info": lambda s: s.pop("Info"),
    "2 to 4 parts": lambda s: s["Info"].update(AppVersion="1"),
    "AppVersion None": lambda s: s["Info"].update(AppVersion=None),
    "no GUID": lambda s: s["Info"].update(Id="cam0"),
    "PresentMode has 1.0": lambda s: s["Runs"][0]["CaptureData"].update(PresentMode=[1.0] * 49),
    "SyncInterval has 0.0": lambda s: s["Runs"][0]["CaptureData"].update(SyncInterval=[0.0] * 49),
    "AllowsTearing has False": lambda s: s["Runs"][0]["CaptureData"].update(AllowsTearing=[False] * 49),
    "PcLatency has None": lambda s: s["Runs"][0]["CaptureData"]["PcLatency"].__setitem__(3, None),
    "different lengths": lambda s: s["Runs"][0]["CaptureData"]["QPCTime"].pop(),
    "no Name or Type": lambda s: s["Runs"][0]["SensorData2"]["/pipeline/frame"].pop("Type"),
    "MeasureTime's length": lambda s: s["Runs"][0]["SensorData2"]["/pipeline/frame"]["Values"].pop(),
    "no SensorData2": lambda s: s["Runs"][0].pop("SensorData2"),
    "unknown Type": lambda s: s["Runs"][0]["SensorData2"]["/pipeline/frame"].update(Type="ms"),
    "no SHA1": lambda s: s.update(Hash=None),
    "does not continue": lambda s: s["Runs"].append(s["Runs"][0]),
    "SampleTime": lambda s: s["Runs"][0].pop("SampleTime"),
    "PmdGpuPower has None": lambda s: s["Runs"][0]["PmdGpuPower"].__setitem__(0, None),
}


@pytest.mark.parametrize("rule", RULES)
def test_validator_rejects_each_broken_json_rule(rule: str, tmp_path: Path) -> None:
    problems = broken(RULES[rule], tmp_path)
    assert any(rule in p for p in problems), problems


CSV_RULES: dict[str, Callable[[list[str]], object]] = {
    "ignored": lambda lines: lines.insert(0, "//Ignore=true"),
    "without =": lambda lines: lines.insert(0, "//made by hand"),
    "GameName twice": lambda lines: lines.insert(0, "//GameName=x"),
    "cut at its second =": lambda lines: lines.insert(0, "//OS=a=b"),
    "no GUID": lambda lines: lines.__setitem__(0, "//Id=cam0"),
    "CreationDate": lambda lines: lines.__setitem__(3, "//CreationDate=01.10.2026"),
    "no header": lambda lines: lines.__setitem__(6, "TimeInSeconds," + lines[6]),
    "no column Dropped": lambda lines: lines.__setitem__(6, lines[6].replace("Dropped", "Gone")),
    "too few": lambda lines: lines.__delitem__(slice(30, None)),
    "counts as dropped": lambda lines: lines.__setitem__(9, lines[9].replace(",0,0.", ",no,0.", 1)),
    "no plain decimal": lambda lines: lines.__setitem__(9, lines[9] + "e-5"),
    "cells under": lambda lines: lines.__setitem__(9, lines[9] + ",1"),
    "2 groups": lambda lines: lines.__setitem__(9, lines[9].replace("cam0", "cam1")),
}


@pytest.mark.parametrize("rule", CSV_RULES)
def test_validator_rejects_each_broken_csv_rule(rule: str, tmp_path: Path) -> None:
    path = tmp_path / "capture.csv"
    write_csv(path, [make_run(60)])
    lines = path.read_text().splitlines()
    CSV_RULES[rule](lines)
    path.write_text("\n".join(lines))
    assert any(rule in p for p in csv_problems(path)), csv_problems(path)


@pytest.mark.parametrize("name", ["capframex-with-header.csv", "presentmon-v1.csv"])
def test_validator_takes_real_captures(name: str) -> None:
    assert csv_problems(elsewhere(f"capframex/{name}")) == []


# -- JSON -------------------------------------------------------------------------------------


def test_frame_times_drops_and_latency(tmp_path: Path) -> None:
    run = make_run(100, dropped=(10, 50))
    capture = written(tmp_path, run)["Runs"][0]
    data = capture["CaptureData"]
    assert len(data["MsBetweenPresents"]) == 99
    assert data["MsBetweenPresents"] == pytest.approx(np.diff(run.frames.end) / 1e6, abs=1e-4)
    assert data["TimeInSeconds"][-1] == pytest.approx((run.frames.end[-1] - run.frames.end[0]) / 1e9)
    assert [i + 1 for i, dropped in enumerate(data["Dropped"]) if dropped] == [10, 50]
    assert data["PcLatency"][9] == 0
    assert data["PcLatency"][0] == pytest.approx((run.frames.end[1] - run.frames.begin[1]) / 1e6, abs=1e-4)
    assert data["MsBetweenDisplayChange"][9] == 0
    assert data["MsBetweenDisplayChange"][10] == pytest.approx(
        (run.frames.end[11] - run.frames.end[9]) / 1e6, abs=1e-4
    )
    assert pc_latency_shows(capture)


def test_stages_pairs_and_power_are_sensors(tmp_path: Path) -> None:
    run = make_run(100, dropped=(10,))
    session = written(tmp_path, run, pairs=("ingress:infer", "infer:display"), accelerators=("infer",))
    sensors = {s["Name"]: s for s in session["Runs"][0]["SensorData2"].values()}
    frames = run.frames
    infer = (frames.stage_end - frames.stage_begin)[frames.stage == 1] / 1e9
    assert sensors["infer"]["Type"] == "TimeSpan"
    assert sensors["infer"]["Values"] == pytest.approx(infer, abs=1e-7)  # the dropped frame has none
    first = (frames.stage_end[frames.stage == 1] - np.delete(frames.begin, 10)) / 1e9
    assert sensors["ingress:infer"]["Values"] == pytest.approx(first, abs=1e-7)
    assert np.array(sensors["gpu power in flight"]["Values"]) == pytest.approx(200)
    joules = np.delete(run.energy[0].energy, 10)
    assert np.array(sensors["gpu energy per frame"]["Values"]) * 3.6 == pytest.approx(joules, abs=1e-6)
    data = session["Runs"][0]["CaptureData"]
    assert data["PcLatency"][:9] == pytest.approx(first[1:10] * 1e3, abs=1e-4)
    assert data["GpuActive"][:9] == pytest.approx(infer[1:10] * 1e3, abs=1e-4)
    assert "PC latency is ingress:infer" in session["Info"]["Comment"]


def test_a_sensor_without_values_is_left_out_and_said_so(tmp_path: Path) -> None:
    run = make_run(100)
    run.energy[0].energy[:60] = np.nan
    session = written(tmp_path, run)
    names = [s["Name"] for s in session["Runs"][0]["SensorData2"].values()]
    assert "infer" in names
    assert "gpu power in flight" not in names
    assert "left out, for want of values: gpu power in flight" in session["Info"]["Comment"]


def test_a_partly_covered_sensor_keeps_the_frames_that_have_it(tmp_path: Path) -> None:
    run = make_run(100)
    run.energy[0].energy[:20] = np.nan
    text = (tmp_path / "capture.json").read_text() if written(tmp_path, run) else ""
    sensors = json.loads(text)["Runs"][0]["SensorData2"]
    assert len(sensors["MeasureTime"]["Values"]) == 80
    assert "NaN" not in text


def test_the_meter_goes_to_the_pmd_slots_at_its_own_rate(tmp_path: Path) -> None:
    run = make_run(100)
    run.readings.append(make_readings("cpu", 10**9))  # stops after 0.9 s
    capture = written(tmp_path, run)["Runs"][0]
    assert capture["SampleTime"] == 50
    assert capture["PmdSystemPower"] is None
    gpu = run.readings[0]
    grid = run.frames.end[0] + np.arange(len(capture["PmdGpuPower"])) * 50 * MS
    assert capture["PmdGpuPower"] == pytest.approx(np.interp(grid, gpu.time, gpu.value), abs=1e-3)
    assert len(grid) == pytest.approx((run.frames.end[-1] - run.frames.end[0]) / (50 * MS), abs=1)
    silent = grid > START + 900 * MS
    assert np.isnan(capture["PmdCpuPower"])[silent].all()
    assert not np.isnan(capture["PmdCpuPower"])[grid < START + 840 * MS].any()


def test_a_counter_becomes_power_by_its_slope(tmp_path: Path) -> None:
    run = make_run(100)
    counter = make_readings("package-0", 2 * 10**9)
    counter.kind, counter.value = "energy", 65.0 * (counter.time - START) / 1e9
    run.readings = [counter]
    power = written(tmp_path, run)["Runs"][0]["PmdCpuPower"]
    assert np.array(power) == pytest.approx(65)


def test_only_one_sensor_is_the_cpu(tmp_path: Path) -> None:
    def names(*domains: str) -> list[str]:
        run = make_run(60)
        run.energy, run.readings = [], [make_readings(d, 2 * 10**9) for d in domains]
        sensors = written(tmp_path, run)["Runs"][0]["SensorData2"].values()
        return [s["Name"] for s in sensors if s["Type"] == "Power"]

    assert names("gpu", "cpu", "package-0", "system") == ["CPU Package", "GPU Power"]
    assert names("package-0", "core") == ["CPU Package"]
    assert names("package-0", "package-1", "gpu", "gpu") == []


def test_the_power_that_capframex_averages_is_the_meters_and_not_that_of_frames_in_flight(
    tmp_path: Path,
) -> None:
    """Frames in flight for 11 ms of 16.7 draw 200 W then; the meter reads 60 W, then 90 W, on average."""
    run = make_run(100)
    (gpu,) = run.readings
    half = START + 800 * MS
    gpu.value = np.where(gpu.time < half, 60.0, 90.0)
    capture = written(tmp_path, run)["Runs"][0]
    sensors = {s["Name"]: np.array(s["Values"]) for s in capture["SensorData2"].values()}
    power, time = sensors["GPU Power"], START + 1e9 * sensors["MeasureTime"]
    assert power[time < half - 60 * MS] == pytest.approx(60)
    assert power[time > half + 60 * MS] == pytest.approx(90)
    assert power.mean() == pytest.approx(np.nanmean(capture["PmdGpuPower"]), abs=1)
    assert sensors["gpu power in flight"] == pytest.approx(200)


def test_frames_that_the_meter_did_not_see_have_no_power_of_it(tmp_path: Path) -> None:
    run = make_run(100)
    run.energy, (gpu,) = [], run.readings
    seen = (gpu.time < START + 400 * MS) | (gpu.time > START + 900 * MS)
    gpu.time, gpu.value = gpu.time[seen], gpu.value[seen]
    sensors = {s["Name"]: s for s in written(tmp_path, run)["Runs"][0]["SensorData2"].values()}
    times = np.array(sensors["MeasureTime"]["Values"]) + (run.frames.end[0] - START) / 1e9
    assert len(times) > 60
    assert not ((times > 0.46) & (times < 0.84)).any()


def test_runs_go_on_in_time_and_hashes_differ(tmp_path: Path) -> None:
    session = written(tmp_path, make_run(50), make_run(70, seed=2))
    first, second = (run["CaptureData"]["TimeInSeconds"] for run in session["Runs"])
    assert second[0] > first[-1]
    assert session["Runs"][0]["Hash"] != session["Runs"][1]["Hash"]
    paths = [tmp_path / "a.json", tmp_path / "b.json"]
    for path, seed in zip(paths, (1, 2), strict=True):
        write_json(path, [make_run(50, seed=seed)])
    assert shared_hashes(paths) == []
    assert shared_hashes([paths[0], paths[0]]) != []


def test_simulated_data_say_so(tmp_path: Path) -> None:
    assert "SIMULATED: cam0, benchlab-1" in written(tmp_path, make_run(50, simulated=True))["Info"]["Comment"]
    assert "SIMULATED" not in written(tmp_path, make_run(50))["Info"]["Comment"]
    write_csv(tmp_path / "c.csv", [make_run(50, simulated=True)])
    assert "//Comment=SIMULATED" in (tmp_path / "c.csv").read_text()


def test_frames_without_stages_or_meter(tmp_path: Path) -> None:
    run = make_run(50)
    f = run.frames
    f.stage_frame, f.stage_begin, f.stage_end = (a[:0] for a in (f.stage_frame, f.stage_begin, f.stage_end))
    f.stage, f.stage_names = f.stage[:0], []
    run.readings, run.energy = [], []
    capture = written(tmp_path, run)["Runs"][0]
    assert capture["PmdGpuPower"] is None
    assert [s["Name"] for s in capture["SensorData2"].values()] == [
        "MeasureTime",
        "BetweenMeasureTime",
        "frame",
    ]


def test_all_frames_dropped(tmp_path: Path) -> None:
    capture = written(tmp_path, make_run(50, dropped=tuple(range(50))))["Runs"][0]
    assert all(capture["CaptureData"]["Dropped"])
    assert capture["SensorData2"]["MeasureTime"]["Values"] == []
    assert not pc_latency_shows(capture)


def test_unknown_marks_and_stages_name_those_there_are(tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    with pytest.raises(UnknownMark, match="no mark 'encoded'; it has ingress, decode, infer, display, frame"):
        write_json(path, [make_run(50)], Options(pairs=("ingress:encoded",)))
    with pytest.raises(ValueError, match="no pair of marks"):
        write_json(path, [make_run(50)], Options(pairs=("ingress",)))
    with pytest.raises(ValueError, match="no stage 'gpu'; it has decode, infer, display"):
        write_json(path, [make_run(50)], Options(accelerators=("gpu",)))
    with pytest.raises(ValueError, match="1 frame"):
        write_json(path, [make_run(1)])
    assert list(tmp_path.iterdir()) == []


def test_begin_of_a_stage_is_a_mark(tmp_path: Path) -> None:
    run = make_run(50, first_mark="")
    sensors = written(tmp_path, run, pairs=("infer.begin:display", "frame.begin:frame"))["Runs"][0][
        "SensorData2"
    ]
    f = run.frames
    expected = (f.stage_end[f.stage == 2] - f.stage_begin[f.stage == 1]) / 1e9
    assert sensors["/pipeline/pair/infer.begin:display"]["Values"] == pytest.approx(expected, abs=1e-7)
    whole = (f.end - f.begin) / 1e9
    assert sensors["/pipeline/pair/frame.begin:frame"]["Values"] == pytest.approx(whole, abs=1e-7)


# -- CSV --------------------------------------------------------------------------------------


def test_csv_opens_and_agrees_with_json(tmp_path: Path) -> None:
    run = make_run(100, dropped=(10,))
    run.frames.pipeline = "cam=0, front"
    path = tmp_path / "capture.csv"
    write_csv(path, [run], Options(pairs=("ingress:infer",)))
    assert csv_problems(path) == []
    lines = path.read_text().splitlines()
    header = next(i for i, line in enumerate(lines) if line.startswith("Application"))
    columns = dict(
        zip(
            lines[header].split(","),
            zip(*(r.split(",") for r in lines[header + 1 :]), strict=True),
            strict=True,
        )
    )
    data = written(tmp_path, run, pairs=("ingress:infer",))["Runs"][0]["CaptureData"]
    for name, key in (
        ("MsBetweenPresents", "MsBetweenPresents"),
        ("MsPCLatency", "PcLatency"),
        ("Dropped", "Dropped"),
    ):
        assert [float(v) for v in columns[name]] == pytest.approx([float(v) for v in data[key]], abs=1e-4)


def test_csv_too_short_to_be_listed_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="more than 40 lines"):
        write_csv(tmp_path / "c.csv", [make_run(30)])
    assert list(tmp_path.iterdir()) == []


def test_presentmon_csv_looks_like_presentmons(tmp_path: Path) -> None:
    run = make_run(100, dropped=(10,), simulated=True)
    path = tmp_path / "capture.csv"
    write_presentmon(path, [run])
    assert presentmon_problems(path) == []
    rows = list(csv.DictReader(path.open()))
    assert [float(r["MsBetweenPresents"]) for r in rows] == pytest.approx(
        np.diff(run.frames.end) / 1e6, abs=1e-4
    )
    assert [i + 1 for i, r in enumerate(rows) if r["Dropped"] == "1"] == [10]
    assert {r["Application"] for r in rows} == {"cam0 (SIMULATED)"}
    write_csv(tmp_path / "other.csv", [run])
    assert presentmon_problems(tmp_path / "other.csv") != []
    with pytest.raises(ValueError, match="more than 20 lines"):
        write_presentmon(tmp_path / "short.csv", [make_run(20)])
    with pytest.raises(ValueError, match="1 frame"):
        write_presentmon(tmp_path / "short.csv", [make_run(1)])
    assert not (tmp_path / "short.csv").exists()


def test_real_presentmon_csv_passes_the_same_rules() -> None:
    assert presentmon_problems(elsewhere("capframex/presentmon-v1.csv")) == []


# -- figures ----------------------------------------------------------------------------------


def test_statistics_are_those_of_capframex() -> None:
    i = np.arange(100)
    times = np.where(i == 30, 100.0, np.where(i == 60, 50.0, np.where(i % 25 == 10, 20.0, 10.0)))
    found = statistics(times)
    assert found.average == pytest.approx(86.2069, abs=5e-5)
    assert found.p5 == pytest.approx(67.5)
    assert found.p1 == pytest.approx(13.3667, abs=5e-5)
    assert (found.p02, found.low1_average, found.low1_integral) == pytest.approx((10, 10, 10))
    assert found.adaptive_std == pytest.approx(13.0601, abs=5e-5)
    assert found.stutter_percent == pytest.approx(12.9310, abs=5e-5)
    assert fps_per_10_watts(times, 120) == pytest.approx(7.18, abs=5e-3)


def test_the_report_shows_what_capframex_will(tmp_path: Path) -> None:
    """The golden vector as a session's frames: printed with one digit, half away from zero."""
    i = np.arange(100)
    times = np.where(i == 30, 100, np.where(i == 60, 50, np.where(i % 25 == 10, 20, 10)))
    run = make_run(101)
    f = run.frames
    f.end = START + np.concatenate([[0], np.cumsum(times)]) * MS
    f.begin = f.end - 5 * MS
    run.energy = [make_energy(f, "gpu")]  # 200 W in flight
    run.readings = [make_readings("gpu", 2 * 10**9)]
    run.readings[0].value = np.full(len(run.readings[0]), 120.0)
    report = make_capframex_report(run)
    assert report is not None
    shown = {" ".join(line.split()[:-1]): line.split()[-1] for line in text_of(report).splitlines()[3:]}
    assert shown["Average"] == "86.2"
    assert shown["P5"] == "67.5"
    assert shown["P1"] == "13.4"
    assert shown["P0.2"] == shown["1 % low average"] == shown["1 % low integral"] == "10.0"
    assert shown["Adaptive STDEV"] == "13.1"
    assert shown["Stutter time, %"] == "12.9"
    assert shown["FPS/10 W, GPU Power"] == "7.2"
    written(tmp_path, run)  # and the capture that it is about opens


def text_of(report: CapFrameXReport) -> str:
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(render(report))
    return console.export_text()


@pytest.mark.parametrize(("value", "shown"), [(0.25, "0.3"), (0.35, "0.4"), (-0.25, "-0.3"), (7.0, "7.0")])
def test_rounding_is_away_from_zero(value: float, shown: str) -> None:
    assert rounded(value) == shown


# -- size -------------------------------------------------------------------------------------


def test_a_large_capture_takes_little_memory(tmp_path: Path) -> None:
    """The writer's own memory over that of the arrays: 300k frames × 3 stages."""
    script = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from pathlib import Path
from frames_of import make_run
from benchlab_otel.export.capframex import write_json
def peak():  # not ru_maxrss, which begins at what pytest had
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
run = make_run(300_000)
before = peak()
write_json(Path({str(tmp_path / "large.json")!r}), [run])
print(peak() - before)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 100_000, "KiB over the arrays"


# -- columns as text ----------------------------------------------------------------------------

FLOATS = st.sampled_from([0.0, -0.0, 16.6667, 1e-7, float("nan")])
ARRAYS = st.one_of(
    st.lists(FLOATS).map(np.array),
    st.tuples(FLOATS, st.integers(1, 9)).map(lambda one: np.full(one[1], one[0])),
    st.tuples(FLOATS, st.integers(1, 9)).map(lambda one: np.broadcast_to(one[0], one[1])),
    st.lists(st.booleans()).map(lambda values: np.array(values, np.bool_)),
    st.lists(st.integers(-3, 3)).map(lambda values: np.array(values, np.int64)),
)


@given(ARRAYS, st.sampled_from([1, 2, 1000]))
def test_arrays_are_written_as_their_values(values: np.ndarray, block: int) -> None:
    out = io.BytesIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(output, "BLOCK", block)
        dump_json(out, values)
    assert out.getvalue().decode() == json.dumps(values.tolist(), separators=(",", ":")).replace(
        "1e-07", "1e-7"
    )


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 9), st.integers(0, 9)), max_size=12))
def test_the_last_stage_is_the_one_that_ends_last(stages: list[tuple[int, int, int]]) -> None:
    """Stages (frame, begin, length in ms) that run one after the other or side by side."""
    stages.sort()
    frames = make_run(6, dropped=(2,)).frames
    frames.stage_frame = np.array([f for f, _, _ in stages], np.int64)
    frames.stage_begin = np.array([frames.begin[f] + b * MS for f, b, _ in stages], np.int64)
    frames.stage_end = np.array([frames.begin[f] + (b + d) * MS for f, b, d in stages], np.int64)
    inside, until = [0.0] * 6, [0.0] * 6
    for f in {f for f, _, _ in stages} - {2}:
        _, begin, length = max((s for s in stages if s[0] == f), key=lambda s: (s[1] + s[2], s[1]))
        inside[f] = length / 1e3
        until[f] = (frames.end[f] - frames.begin[f] - begin * MS) / 1e9
    assert _in_last_stage(frames).tolist() == inside
    assert _until_displayed(frames).tolist() == pytest.approx(until)
