"""`sessions`, `note` and disk limits as a user runs them."""

from __future__ import annotations

import json
import re
import signal
import subprocess
from pathlib import Path

import pytest

from benchlab_otel.archive.records import compressor, frame
from benchlab_otel.archive.session import create
from conftest import need, wait_for
from test_archive import BASE, REQUESTS
from test_commands import PROGRAM, Place, place
from test_replay import recorded as recorded_power

__all__ = ["place"]  # the fixture


def data_dir(place: Place) -> Path:
    return place.state / "benchlab-otel"


def recorded(place: Place, name: str) -> Path:
    writer = create(data_dir(place), BASE, ["record", "--", "x"], name)
    writer.traces(REQUESTS[0])
    writer.close()
    return writer.path


def test_a_session_from_recording_to_removal(place: Place, tmp_path: Path) -> None:
    """run with notes, list, show, export, rm, import, prune."""
    with place.started("run", "--source", "host") as run:
        wait_for(place.sessions)
        (name,) = place.sessions()
        place.run("note", "it begins")
        assert place.run("note").stdout == f"{name}: bookmark 2\n"
        busy = place.run("sessions", "rm", name, "--yes", code=2)
        assert "being recorded" in busy.stderr
        assert "0.0 KiB" in place.run("sessions", "prune", "--raw-days", "0", "--aligned-days", "0").stdout
        manifest = data_dir(place) / "sessions" / name / "manifest.json"
        wait_for(lambda: json.loads(manifest.read_text())["devices"])
        run.send_signal(signal.SIGINT)
        assert run.wait(60) == 0
    (listed,) = json.loads(place.run("sessions", "list", "--json").stdout)
    assert (listed["id"], listed["running"], listed["simulated"], listed["notes"]) == (name, False, False, 2)
    shown = json.loads(place.run("sessions", "show", "--check", "--json").stdout)
    assert [mark["text"] for mark in shown["marks"]] == ["it begins", "bookmark 2"]
    assert shown["marks"][0]["time_ns"] < shown["marks"][1]["time_ns"]
    assert shown["devices"][0]["source"] == "host"
    assert shown["settings"]["session.min_free_mib"] == 256.0
    assert shown["damage"] == []
    assert shown["spans"]["session"] == 1
    assert sum(shown["files"].values()) == shown["bytes"]
    text = place.run("sessions", "show").stdout
    assert re.search(r" [+-]\d+\.\d{3} s  it begins", text)
    assert str(data_dir(place) / "sessions" / name) in re.sub(r"\s", "", text), "not cut off"
    out = tmp_path / "a.tar"
    place.run("sessions", "export", "--out", out)
    assert "removed" in place.run("sessions", "rm", name, "--yes").stdout
    assert place.sessions() == []
    assert name in place.run("sessions", "import", out).stdout
    again = place.run("sessions", "import", out, code=2)
    assert "there already" in again.stderr
    assert "would remove" in place.run("sessions", "prune", "--dry-run", "--aligned-days", "0").stdout
    assert place.sessions() == [name]
    assert "removed" in place.run("sessions", "prune", "--aligned-days", "0").stdout
    assert place.sessions() == []


def test_mistakes_are_said_in_one_line(place: Place, tmp_path: Path) -> None:
    assert "nothing is being recorded" in place.run("note", "x", code=2).stderr
    (tmp_path / "bad.tar").write_bytes(b"nonsense" * 200)
    bad = place.run("sessions", "import", tmp_path / "bad.tar", code=2)
    assert "bad.tar: byte 0: expected" in bad.stderr
    assert "0 sessions" in place.run("sessions", "list").stdout


def test_a_list_with_long_names_fits_80_columns(place: Place) -> None:
    """Each id whole, and beside or below it all that there is to say."""
    short = recorded(place, "a" * 20)
    table = place.run("sessions", "list", COLUMNS="80").stdout.splitlines()
    assert re.search(f"^{short.name}  .* KiB  record -- x$", table[1])
    long = recorded(place, "kitchen-camera-experiment-2026-11-28-with-the-new-lens-and-filter")
    lines = place.run("sessions", "list", COLUMNS="80").stdout.splitlines()
    assert max(map(len, lines)) <= 80
    ids = [i for i, line in enumerate(lines) if line.strip() in (short.name, long.name)]
    assert len(ids) == 2
    for i in ids:
        assert re.search(r"^ +\d{4}-\d\d-\d\d \d\d:\d\d  .* KiB  record -- x *$", lines[i + 1])


def test_check_tells_damage_and_its_place(place: Place) -> None:
    path = recorded(place, "a")
    with (path / "traces.otlp").open("ab") as file:
        file.write(b"garbage" * 3 + frame(REQUESTS[1], compressor()))
    found = place.run("sessions", "show", "a", "--check", code=1)
    assert "traces.otlp: byte" in found.stdout.replace("\n", "")
    assert "s 20" in found.stdout


def test_without_yes_it_asks(place: Place) -> None:
    recorded(place, "a")
    place.run("sessions", "rm", "a", code=1)  # nobody answers
    assert place.sessions() == ["a"]


def test_run_does_not_start_on_a_disk_that_is_nearly_full(place: Place) -> None:
    done = place.run("run", "--for", "1", code=1, BENCHLAB_OTEL_SESSION__MIN_FREE_MIB="1e9")
    assert "session.min_free_mib" in done.stderr
    assert place.sessions() == []


def test_the_timer_s_units_are_right() -> None:
    need("systemd-analyze")
    units = Path(__file__).parents[1] / "deploy" / "systemd"
    done = subprocess.run(
        ["systemd-analyze", "verify", units / "benchlab-otel-prune.timer"], capture_output=True, text=True
    )
    problems = [line for line in done.stderr.splitlines() if "benchlab-otel-prune" in line]
    if any("not executable" in line or "No such file" in line for line in problems):
        problems = [line for line in problems if "Command /opt" not in line]
    if done.returncode and not problems and "benchlab" not in done.stderr:
        pytest.skip(f"systemd-analyze does not work here: {done.stderr.strip()[:100]}")
    assert problems == []


def test_align_of_standard_input_and_of_the_file_give_the_same(place: Place, tmp_path: Path) -> None:
    path = recorded_power(data_dir(place))
    for source, name in ((path / "traces.otlp", "file"), ("-", "stdin")):
        done = subprocess.run(
            [*PROGRAM, "align", source, "--out", tmp_path / name],
            input=(path / "traces.otlp").read_bytes(),
            capture_output=True,
            env=place.environment,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "file").read_bytes() == (tmp_path / "stdin").read_bytes() != b""
