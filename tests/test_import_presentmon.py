"""PresentMon's CSV of all releases: which column becomes what, and what is not a row."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from benchlab_otel.cli.errors import UserError
from benchlab_otel.export.capframex import write_json
from benchlab_otel.export.capframex_csv import write_csv
from benchlab_otel.export.capframex_statistics import frame_times_of
from elsewhere import elsewhere
from foreign import V1, V2, V23, v1, v2
from imported import START, START_NS, durations_ms, import_file, stages


def write(path: Path, *lines: str, encoding: str = "utf-8") -> Path:
    path.write_text("\n".join(lines) + "\n", encoding=encoding)
    return path


def test_a_present_of_1x(tmp_path: Path) -> None:
    back = import_file(write(tmp_path / "a.csv", V1, v1(1.0), v1(1.01, rest="10,2,6,25")), start=START)
    frames = back.frames
    assert frames.pipeline == "g.exe"
    assert (frames.begin - START_NS).tolist() == [990_000_000, 1_000_000_000]
    assert durations_ms(frames).tolist() == [30.0, 35.0]
    assert stages(frames, 0) == {
        "presented": (0, 10),
        "present": (10, 11),
        "gpu": (10, 15),
        "display": (15, 30),
    }


def test_presents_that_were_not_displayed_end_when_the_gpu_was_done(tmp_path: Path) -> None:
    lines = [V1, v1(1.0, dropped=1, rest="0,1,5,0"), v1(1.01, dropped=1, rest="0,2,0,0"), v1(1.02)]
    frames = import_file(write(tmp_path / "a.csv", *lines), start=START).frames
    assert durations_ms(frames).tolist() == [15.0, 12.0, 30.0]
    assert frames.outcome.tolist() == [1, 1, 0]


def test_the_begin_of_gpu_work_where_it_is_known(tmp_path: Path) -> None:
    line = v1(1.0)
    active = import_file(write(tmp_path / "a.csv", V1 + ",msGPUActive", line + ",4"), start=START).frames
    assert stages(active, 0)["gpu"] == (11, 15)
    started = import_file(
        write(tmp_path / "b.csv", V1 + ",msGPUActive,msUntilRenderStart", line + ",4,2.5"), start=START
    ).frames
    assert stages(started, 0)["gpu"] == (12.5, 15)


@pytest.mark.parametrize("header", [V2, V23], ids=["2.0", "2.3"])
@pytest.mark.parametrize("scale", [1.0, 0.001], ids=["ms", "s"])
def test_a_frame_of_2x(tmp_path: Path, header: str, scale: float) -> None:
    rows = [v2(round(16 * i * scale, 4)) for i in range(1, 9)]
    frames = import_file(write(tmp_path / "a.csv", header, *rows), start=START).frames
    assert (frames.begin - START_NS).tolist() == [16_000_000 * i for i in range(1, 9)]
    assert stages(frames, 3) == {"presented": (0, 10), "wait": (10, 16), "gpu": (4, 16), "display": (16, 30)}


def test_a_frame_of_2x_that_was_not_displayed_is_dropped(tmp_path: Path) -> None:
    frames = import_file(write(tmp_path / "a.csv", V2, v2(16), v2(32, "NA"), v2(48)), start=START).frames
    by_number = dict(zip(frames.number.tolist(), frames.outcome.tolist(), strict=True))
    assert by_number == {0: 0, 1: 1, 2: 0}


def test_each_swap_chain_is_a_pipeline(tmp_path: Path) -> None:
    lines = [V2, v2(16), v2(20, app="other.exe"), v2(32), v2(33, chain="0x2"), v2(48)]
    runs = import_file(write(tmp_path / "a.csv", *lines), start=START).runs
    assert {run.frames.pipeline: len(run.frames) for run in runs} == {
        "g.exe": 3,
        "g.exe/other.exe": 1,
        "g.exe/g.exe/1/0x2": 1,
    }


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_encodings_of_windows(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(f"{V1}\r\n{v1(1.0)}\r\n".encode(encoding))
    assert len(import_file(path, start=START).frames) == 1


def test_lines_that_can_not_be_are_counted_and_located(tmp_path: Path) -> None:
    lines = [V1, v1(1.0), "garbage", v1(1.01).replace("10.0", "x"), "", v1(-5), v1(1.03), v1(1.04)[:-9]]
    back = import_file(write(tmp_path / "a.csv", *lines), start=START)
    assert len(back.frames) == 2
    notes = back.notes()
    assert "line 3: expected 15 values, found 1" in notes
    assert "line 4: expected a number in betweenpresents, found 'x'" in notes
    assert "5 could not be read" in notes  # line 4 twice: its value, and the frame that lacks it


@pytest.mark.parametrize("value", ["1e400", "-inf", "1e300", "9" * 500])
def test_a_value_beyond_reason_is_absent_and_said_so(value: str, tmp_path: Path) -> None:
    """The frame stays, without what it says of the display."""
    back = import_file(
        write(tmp_path / "a.csv", V1, v1(1.0), v1(1.01, rest=f"10,2,6,{value}"), v1(1.02)), start=START
    )
    assert sorted(durations_ms(back.frames)) == [16.0, 30.0, 30.0]  # in order of their ends
    told = f"1 could not be read: line 3: expected untildisplayed up to 3.6e+06, found '{value[:40]}'"
    assert told in back.notes()
    late = v2(32.0, latency=value)
    back = import_file(write(tmp_path / "b.csv", V2, v2(16.0), late, v2(48.0)), start=START)
    assert "1 could not be read: line 3: expected displaylatency up to" in back.notes()


def test_quotes_do_not_swallow_lines(tmp_path: Path) -> None:
    names = ['"a, b.exe"', '"a, b.exe"', '"open', '"a, b.exe"']
    lines = [v1(1 + i / 100, app=name) for i, name in enumerate(names)]
    back = import_file(write(tmp_path / "a.csv", V1, *lines), start=START)
    assert back.runs[0].frames.pipeline == "a, b.exe"
    assert len(back.runs[0].frames) == 3


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "Application,TimeInSeconds\ng.exe,1\n",
            "line 1: expected the columns timeinseconds, between",
        ),
        ("Application,CPUStartQPCTime,FrameTime\n", "expected the columns cpustarttime"),
        ("Application,CPUStartDateTime,FrameTime\n", "record without --qpc_time and --date_time"),
        (V1 + "\n", "no frame in it"),
        (V1 + "\n" + v1(1.0).replace("1.0,", "x,", 1) + "\n", "line 2: expected"),
    ],
)
def test_what_is_wrong_is_said(tmp_path: Path, text: str, expected: str) -> None:
    path = tmp_path / "a.csv"
    path.write_text(text)
    with pytest.raises(UserError, match=expected) as caught:
        import_file(path, start=START)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_a_real_capture(tmp_path: Path) -> None:
    sample = elsewhere("capframex/presentmon-v1.csv")
    path = tmp_path / sample.name
    path.write_bytes(sample.read_bytes())
    frames = import_file(path, start=START).frames
    with path.open() as file:
        rows = list(csv.DictReader(file))
    assert len(frames) == len(rows) == 399
    order = np.argsort(frames.number)
    times = np.array([float(row["TimeInSeconds"]) for row in rows])
    between = np.array([float(row["MsBetweenPresents"]) for row in rows])
    shown = np.array([float(row["MsUntilDisplayed"]) for row in rows])
    assert np.allclose((frames.begin[order] - START_NS) / 1e9, times - between / 1e3, atol=1e-9)
    displayed = frames.outcome[order] == 0
    assert displayed.tolist() == [row["Dropped"] == "0" for row in rows]
    assert np.allclose(durations_ms(frames)[order][displayed], (between + shown)[displayed], atol=1e-6)


@pytest.mark.parametrize("suffix", ["json", "csv"])
@pytest.mark.parametrize("name", ["presentmon-v1.csv", "capframex-with-header.csv"])
def test_a_real_capture_becomes_the_same_capture(tmp_path: Path, name: str, suffix: str) -> None:
    sample = elsewhere(f"capframex/{name}")
    (tmp_path / name).write_bytes(sample.read_bytes())
    run = import_file(tmp_path / name, start=START).runs[0]
    with sample.open() as file:
        rows = list(csv.DictReader(line for line in file if not line.startswith("//")))
    out = tmp_path / f"out.{suffix}"
    columns = ("MsBetweenPresents", "MsInPresentAPI", "MsUntilRenderComplete", "MsUntilDisplayed", "Dropped")
    if suffix == "json":
        write_json(out, [run])
        data = json.loads(out.read_text())["Runs"][0]["CaptureData"]
    else:
        write_csv(out, [run])
        written = list(csv.DictReader(line for line in out.open() if not line.startswith("//")))
        data = {column: [float(row[column]) for row in written] for column in columns}
    original = {column: np.array([float(row[column]) for row in rows]) for column in columns}
    original["MsUntilDisplayed"][original["Dropped"] == 1] = 0
    for column, values in original.items():
        # times in seconds have a digit less than the times between
        assert np.allclose(data[column], values[1:], rtol=0, atol=0.0011), column
    times = frame_times_of([run])
    assert np.allclose(times, original["MsBetweenPresents"][1:], rtol=0, atol=0.0011)
