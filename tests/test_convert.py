"""convert, format by format, as a user runs it."""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl
import pytest

from benchlab_otel.archive.session import create
from benchlab_otel.timebase import anchor
from capframex_validator import presentmon_problems
from frames_of import make_run, requests
from test_cli import run


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Two pipelines in a session."""
    writer = create(tmp_path / "data", anchor(), ["test"], "s1")
    for seed, name in ((1, "cam0"), (2, "cam 1/x")):
        made = make_run(80, seed=seed)
        made.frames.pipeline = name
        for body in requests(made)[: 3 - seed]:
            writer.traces(body)
    writer.close()
    return tmp_path / "data"


def test_tables(data: Path, tmp_path: Path) -> None:
    done = run("convert", "s1", "--to", "parquet", "--out", tmp_path / "t", data_dir=data)
    assert done.stdout.startswith(f"{tmp_path / 't'}  160 frames, 480 stages, ")
    frames = pl.read_parquet(tmp_path / "t" / "frames.parquet")
    assert set(frames["pipeline"]) == {"cam0", "cam 1/x"}
    one = ("--pipeline", "cam0", "--out", tmp_path / "c")
    assert "80 frames, 240 stages" in run("convert", "s1", "--to", "csv", *one, data_dir=data).stdout


def test_traces_and_requests(data: Path, tmp_path: Path) -> None:
    done = run("convert", "s1", "--to", "perfetto", "--out", tmp_path / "a.pftrace", data_dir=data)
    assert done.stdout == f"{tmp_path / 'a.pftrace'}  640 slices\n"
    run("convert", "s1", "--to", "otlp-json", "--out", tmp_path / "json", data_dir=data)
    again = run("report", tmp_path / "json" / "traces.jsonl", data_dir=data)
    assert "cam 1/x: 80 frames" in again.stdout


def test_captures_of_each_pipeline(data: Path, tmp_path: Path) -> None:
    run("convert", "s1", "--to", "presentmon-csv", "--out", tmp_path / "p", data_dir=data)
    made = sorted((tmp_path / "p").iterdir())
    assert [path.name for path in made] == ["cam0.presentmon.csv", "cam_1_x.presentmon.csv"]
    assert all(presentmon_problems(path) == [] for path in made)


def session_of(data_dir: Path, name: str, pipelines: dict[str, int]) -> None:
    """A session with so many frames of each pipeline."""
    writer = create(data_dir, anchor(), ["test"], name)
    for seed, (pipeline, frames) in enumerate(pipelines.items(), 1):
        made = make_run(frames, seed=seed)
        made.frames.pipeline = pipeline
        writer.traces(requests(made)[0])
    writer.close()


def test_every_pipeline_gets_a_file_of_its_own(tmp_path: Path) -> None:
    """Whatever their names are: none takes another's place, none leaves the folder or is too long for it."""
    names = {"cam/0": 50, "cam_0": 60, "CAM_0": 70, "../../up": 80, "ü" * 300: 90, "..": 100}
    session_of(tmp_path / "data", "s1", names)
    out = tmp_path / "out"
    run("convert", "s1", "--to", "capframex-json", "--out", out, data_dir=tmp_path / "data")
    made = {path: json.loads(path.read_bytes()) for path in out.iterdir()}
    lengths = {d["Info"]["GameName"]: len(d["Runs"][0]["CaptureData"]["Dropped"]) + 1 for d in made.values()}
    assert lengths == names
    assert len({path.name.casefold() for path in made}) == len(names)
    assert not any(path.name.startswith(".") for path in made)


def test_a_pipeline_that_makes_no_capture_keeps_no_other_from_it(tmp_path: Path) -> None:
    session_of(tmp_path / "data", "s1", {"once": 1, "cam0": 50})
    out = ("--out", tmp_path / "out")
    done = run("convert", "s1", "--to", "capframex-json", *out, data_dir=tmp_path / "data", code=2)
    assert "cam0.json  49 frame times" in done.stdout
    assert "pipeline 'once' has 1 frame(s) here" in done.stderr
    assert (tmp_path / "out" / "cam0.json").is_file()


def test_a_trace_goes_into_a_folder_too(data: Path, tmp_path: Path) -> None:
    run("convert", "s1", "--to", "perfetto", "--out", tmp_path, data_dir=data)
    assert (tmp_path / "s1.pftrace").is_file()


def test_what_does_not_go_together_is_refused(data: Path, tmp_path: Path) -> None:
    def refused(*arguments: str | Path) -> str:
        return run("convert", "s1", *arguments, data_dir=data, code=2).stderr

    out = ("--out", tmp_path / "x")
    assert "are for capframex-json" in refused("--to", "parquet", "--pair", "a:b", *out)
    assert "no pipeline 'y' in it; there is cam 1/x, cam0" in refused("--to", "csv", "--pipeline", "y", *out)
    assert "no pipeline 'y'" in refused(
        "--to", "parquet", "--pipeline", "y", "--out", tmp_path / "x" / "deep"
    )
    assert "has no mark 'a'" in refused("--to", "capframex-json", "--pair", "a:b", *out)
    assert "one session's requests" in refused("s1", "--to", "otlp-json", *out)
    assert not (tmp_path / "x").exists(), "no empty folder stays"
    assert "2 pipelines do not go into one file" in refused(
        "--to", "capframex-json", "--out", tmp_path / "x.json"
    )


def test_report_capframex(data: Path) -> None:
    shown = run("report", "s1", "--capframex", data_dir=data).stdout
    assert shown.count("79 frame times") == 2
    assert "FPS/10 W, GPU Power" in shown
    assert '"low1_average"' in run("report", "s1", "--capframex", "--json", data_dir=data).stdout
