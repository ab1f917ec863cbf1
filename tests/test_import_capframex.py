"""CapFrameX captures: those of CapFrameX, and our own, which come back as they went."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from benchlab_otel.cli.errors import UserError
from benchlab_otel.export.capframex import write_json
from benchlab_otel.export.capframex_columns import Options
from benchlab_otel.export.capframex_csv import write_csv, write_presentmon
from benchlab_otel.model import Frames, Run
from elsewhere import elsewhere
from foreign import capture
from imported import START, START_NS, durations_ms, import_file, readings, stages
from sessions_of import recording_of

CREATED_NS = START_NS


def written(path: Path, document: Any) -> Path:
    path.write_text(json.dumps(document))
    return path


# -- of CapFrameX ---------------------------------------------------------------------------------


def test_a_capture_ends_when_it_was_saved(tmp_path: Path) -> None:
    back = import_file(written(tmp_path / "c.json", capture()))
    frames = back.frames
    assert frames.pipeline == "game"
    assert int(frames.end[-1]) == CREATED_NS
    assert "CreationDate" in back.notes()
    order = np.argsort(frames.number)
    assert durations_ms(frames)[order].tolist() == [30.0, 15.0, 30.0]
    assert frames.outcome[order].tolist() == [0, 1, 0]
    assert stages(frames, int(order[0])) == {
        "presented": (0, 10),
        "present": (10, 11),
        "gpu": (11, 15),
        "display": (15, 30),
    }


def test_power_meter_and_sensors(tmp_path: Path) -> None:
    def sensor(name: str, kind: str, *values: float) -> dict[str, Any]:
        return {"Name": name, "Type": kind, "Values": values}

    sensors = {
        "MeasureTime": sensor("MeasureTime", "Time", 0.0, 0.01, 0.02),
        "/gpu/0/power/0": sensor("GPU Power", "Power", 101, 102, 103),
        "/cpu/0/power/0": sensor("CPU Package", "Power", 50, 51, 52),
        "/cpu/0/power/1": sensor("CPU Cores", "Power", 40, 41, 42),
        "/gpu/0/temperature/0": sensor("GPU Core", "Temperature", 60, 61, 62),
    }
    pmd = {"SampleTime": 5, "PmdGpuPower": [1.0, 2.0, 3.0, 4.0], "PmdSystemPower": None}
    path = written(tmp_path / "c.json", capture(SensorData2=sensors, **pmd))
    text = path.read_text().replace("[1.0, 2.0, 3.0, 4.0]", "[1.0, NaN, 3.0, 4.0]")
    path.write_text(text)
    back = import_file(path, start=START)
    meter = readings(back, "capframex-pmd", "gpu")
    assert ((meter.time - START_NS).tolist(), meter.value.tolist()) == (
        [0, 10_000_000, 15_000_000],
        [1, 3, 4],
    )
    assert readings(back, "capframex", "gpu").value.tolist() == [101, 102, 103]
    assert readings(back, "capframex", "cpu").value.tolist() == [50, 51, 52]
    assert {(r.meter, r.domain) for r in back.runs[0].readings} == {
        ("capframex-pmd", "gpu"),
        ("capframex", "gpu"),
        ("capframex", "cpu"),
    }


def test_two_sensors_of_one_meaning_are_no_domain(tmp_path: Path) -> None:
    sensors = {
        "MeasureTime": {"Name": "MeasureTime", "Type": "Time", "Values": [0.0]},
        "a": {"Name": "GPU Power", "Type": "Power", "Values": [1.0]},
        "b": {"Name": "GPU Power", "Type": "Power", "Values": [2.0]},
    }
    back = import_file(written(tmp_path / "c.json", capture(SensorData2=sensors)))
    assert back.runs[0].readings == []


def test_runs_follow_each_other(tmp_path: Path) -> None:
    document = capture()
    document["Runs"] *= 2
    frames = import_file(written(tmp_path / "c.json", document), start=START).frames
    assert sorted(frames.number.tolist()) == list(range(6))
    assert len(frames) == 6


def test_a_real_csv(tmp_path: Path) -> None:
    sample = elsewhere("capframex/capframex-with-header.csv")
    path = tmp_path / sample.name
    path.write_bytes(sample.read_bytes())
    back = import_file(path)
    assert len(back.frames) == 382
    assert back.frames.pipeline == "re2.exe"
    assert "CreationDate" in back.notes()


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda text: text[: len(text) // 2], r"line 1: .*truncated"),
        (lambda text: text.replace('"Runs"', '"Rnus"'), "Runs"),
        (lambda text: text.replace('"TimeInSeconds"', '"Time"'), "expected the arrays TimeInSeconds"),
        (lambda text: text.replace("[1.0, 1.0, 1.0]", "[1.0]"), "MsInPresentAPI: expected 3 values"),
        (lambda text: text.replace("[1.0, 1.0, 1.0]", '"x"'), "MsInPresentAPI: expected an array of numbers"),
        (
            lambda text: text.replace("0.01, 0.02]", '0.01, "x"]'),
            "TimeInSeconds: expected an array",
        ),
        (lambda text: text + "]", r"line 1: "),
        (lambda text: text.replace("game", "\udcff"), "expected a CapFrameX capture"),  # no UTF-8
    ],
)
def test_what_is_wrong_is_said(tmp_path: Path, change: Any, expected: str) -> None:
    path = tmp_path / "c.json"
    path.write_text(change(json.dumps(capture())), errors="surrogateescape")
    with pytest.raises(UserError, match=expected) as caught:
        import_file(path)
    assert str(caught.value).startswith(f"{path}: ")


def test_presents_that_can_not_be_are_counted(tmp_path: Path) -> None:
    document = capture()
    document["Runs"][0]["CaptureData"]["TimeInSeconds"][1] = None
    back = import_file(written(tmp_path / "c.json", document), start=START)
    assert len(back.frames) == 2
    assert "1 could not be read: Runs[0].CaptureData[1]: expected TimeInSeconds" in back.notes()


# -- our own --------------------------------------------------------------------------------------


def check_same(back: Frames, frames: Frames, atol_ns: int) -> None:
    """Row i of a capture is frame i + 1: the first one only gives second 0."""
    assert len(back) == len(frames) - 1
    wanted = np.diff(frames.end[1:])
    assert np.allclose(np.diff(back.end), wanted, rtol=0, atol=atol_ns)
    done = frames.outcome[1:] == 0
    length = (frames.end - frames.begin)[1:]
    assert np.allclose((back.end - back.begin)[done], length[done], rtol=0, atol=atol_ns)
    assert ((back.outcome == 0) == done).all()


@pytest.mark.parametrize("suffix", ["json", "csv"])
def test_our_captures_come_back(tmp_path: Path, suffix: str) -> None:
    run = recording_of(seed=3, seconds=5).runs[0]
    path = tmp_path / f"c.{suffix}"
    (write_json if suffix == "json" else write_csv)(path, [run])
    back = import_file(path)
    check_same(back.frames, run.frames, atol_ns=100)
    off_ns = int(run.frames.end[1] - back.frames.end[0])
    assert abs(off_ns) < 1_500_000_000  # CreationDate is in whole seconds
    assert back.frames.simulated
    if suffix == "json":
        meter, original = readings(back, "capframex-pmd", "system"), run.readings[0]
        wanted = np.interp(meter.time + off_ns, original.time, original.value)
        assert np.allclose(meter.value, wanted, atol=0.01)
        assert {r.meter for r in back.runs[0].readings} == {"capframex-pmd"}  # not the figures about frames


def test_a_pair_as_latency_is_said(tmp_path: Path) -> None:
    run = recording_of(seed=3, seconds=2).runs[0]
    write_csv(tmp_path / "c.csv", [run], Options(pairs=("decode.begin:infer",)))
    assert "PC latency is decode.begin:infer" in import_file(tmp_path / "c.csv").notes()


def test_our_presentmon_csv_comes_back_in_present_intervals(tmp_path: Path) -> None:
    run = recording_of(seed=3, seconds=2).runs[0]
    write_presentmon(tmp_path / "p.csv", [run])
    back = import_file(tmp_path / "p.csv")
    assert back.done.simulated
    frames = back.frames
    mine = frames.stage == frames.stage_names.index("presented")
    order = np.argsort(frames.number[frames.stage_frame[mine]])
    times = (frames.stage_end - frames.stage_begin)[mine][order]
    assert np.allclose(times, np.diff(run.frames.end), rtol=0, atol=100)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_frames_come_back(tmp_path: Path, data: st.DataObject) -> None:
    n = data.draw(st.integers(41, 80))
    gaps = data.draw(st.lists(st.integers(0, 2_000_000_000), min_size=n, max_size=n))
    lengths = data.draw(st.lists(st.integers(1, 3_000_000_000), min_size=n, max_size=n))
    outcome = data.draw(st.lists(st.integers(0, 2), min_size=n, max_size=n))
    end = START_NS + np.cumsum(gaps)
    none = np.zeros(0, np.int64)
    frames = Frames(
        pipeline="cam0",
        trace=np.arange(2 * n, dtype=np.uint64).reshape(n, 2) + np.uint64(1),
        span=np.arange(1, n + 1, dtype=np.uint64),
        begin=end - np.array(lengths),
        end=end,
        number=np.arange(n),
        outcome=np.array(outcome, np.uint8),
        stage_frame=none,
        stage=none.astype(np.int32),
        stage_begin=none,
        stage_end=none,
        stage_names=[],
    )
    for suffix, write in (("json", write_json), ("csv", write_csv)):
        path = tmp_path / f"c.{suffix}"
        write(path, [Run(frames)])
        back = import_file(path).frames
        order = np.argsort(back.number)
        assert np.allclose(np.diff(back.end[order]), np.diff(frames.end[1:]), rtol=0, atol=100)
        done = frames.outcome[1:] == 0
        length = (frames.end - frames.begin)[1:][done]
        assert np.allclose((back.end - back.begin)[order][done], length, rtol=0, atol=100)
