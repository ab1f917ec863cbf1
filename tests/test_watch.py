"""watch: each finished session is converted once, whenever it finished and whoever was running then."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchlab_otel.archive.session import SessionWriter, create
from benchlab_otel.timebase import anchor
from capframex_validator import json_problems, shared_hashes
from conftest import wait_for
from frames_of import make_run, requests
from test_cli import PROGRAM, run

JSON = ("--to", "capframex-json")


def start(data_dir: Path, name: str, frames: int = 60) -> SessionWriter:
    writer = create(data_dir, anchor(), ["test"], name)
    for body in requests(make_run(frames, seed=len(name) + ord(name[-1]))) if frames else ():
        writer.traces(body)
    writer.flush()
    return writer


@contextmanager
def watching(data_dir: Path, *arguments: str | Path) -> Iterator[subprocess.Popen[str]]:
    env = os.environ | {"BENCHLAB_OTEL_SESSION__DATA_DIR": str(data_dir), "XDG_CONFIG_HOME": "/nonexistent"}
    command = [PROGRAM, "watch", "--every", "0.1", *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def ended(process: subprocess.Popen[str]) -> str:
    process.send_signal(signal.SIGTERM)
    out, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (0, "")
    return out


def captures(out: Path) -> set[str]:
    return {path.name for path in out.glob("*.json")}


def test_sessions_are_converted_as_they_finish_and_once(tmp_path: Path) -> None:
    data, out = tmp_path / "data", tmp_path / "out"
    start(data, "before").close()
    running = start(data, "running")
    with watching(data, *JSON, "--out", out) as process:
        wait_for(lambda: captures(out) == {"before_cam0.json"}, 60)
        start(data, "second").close()
        wait_for(lambda: len(captures(out)) == 2, 60)
        assert "running_cam0.json" not in captures(out)
        running.close()
        wait_for(lambda: len(captures(out)) == 3, 60)
        said = ended(process)
    assert said.count(".json  59 frame times") == 3
    assert all(json_problems(path) == [] for path in out.glob("*.json"))
    assert shared_hashes(list(out.glob("*.json"))) == []

    (out / "before_cam0.json").unlink()  # moved away: it does not come back
    start(data, "while-away").close()
    said = run("watch", *JSON, "--out", out, "--once", data_dir=data).stdout
    assert captures(out) == {"running_cam0.json", "second_cam0.json", "while-away_cam0.json"}
    assert said.count("\n") == 1
    assert run("watch", *JSON, "--out", out, "--once", data_dir=data).stdout == ""


def test_what_cannot_be_converted_is_told_once(tmp_path: Path) -> None:
    data, out = tmp_path / "data", tmp_path / "out"
    start(data, "empty", frames=0).close()
    start(data, "good").close()
    said = run("watch", *JSON, "--out", out, "--once", data_dir=data).stdout
    assert "empty: not converted: no frame in it" in said
    assert captures(out) == {"good_cam0.json"}
    assert run("watch", *JSON, "--out", out, "--once", data_dir=data).stdout == ""


def test_a_session_whose_names_are_too_long_for_a_file_holds_up_no_later_one(tmp_path: Path) -> None:
    data, out = tmp_path / "data", tmp_path / "out"
    writer, made = create(data, anchor(), ["test"], "a"), make_run(60, seed=9)
    made.frames.pipeline = "x" * 300
    writer.traces(requests(made)[0])
    writer.close()
    start(data, "b").close()
    said = run("watch", *JSON, "--out", out, "--once", data_dir=data).stdout
    assert said.count(".json  59 frame times") == 2
    assert "b_cam0.json" in captures(out)


def test_each_format_is_done_by_itself(tmp_path: Path) -> None:
    data, out = tmp_path / "data", tmp_path / "out"
    start(data, "s1").close()
    for to, made in (("parquet", "s1/frames.parquet"), ("perfetto", "s1.pftrace"), ("csv", "s1/energy.csv")):
        run("watch", "--to", to, "--out", out, "--once", data_dir=data)
        assert (out / made).is_file()
    refused = run("watch", "--to", "csv", "--out", out, "--pair", "a:b", data_dir=data, code=2)
    assert "--pair and --accelerator are for capframex-json" in refused.stderr


def test_a_crash_between_capture_and_note_converts_again(tmp_path: Path) -> None:
    data, out = tmp_path / "data", tmp_path / "out"
    start(data, "s1").close()
    run("watch", *JSON, "--out", out, "--once", data_dir=data)
    first = json.loads((out / "s1_cam0.json").read_bytes())
    (out / ".benchlab-otel-converted").unlink()
    run("watch", *JSON, "--out", out, "--once", data_dir=data)
    assert json.loads((out / "s1_cam0.json").read_bytes())["Hash"] == first["Hash"]
    assert len(captures(out)) == 1
