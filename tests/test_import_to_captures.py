"""A GStreamer log from another machine, all the way: import, report, CapFrameX JSON and CSV."""

import csv
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from capframex_validator import csv_problems, json_problems
from elsewhere import elsewhere

LOG = "gstreamer/latency-traces.log"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    log = elsewhere(LOG)
    folder = tmp_path_factory.mktemp("import")
    run(folder, "import", str(log), "--name", "camera", "--session", "imported")
    return folder


def run(place: Path, *arguments: str) -> str:
    program = Path(sys.executable).with_name("benchlab-otel")
    environment = {**os.environ, "XDG_STATE_HOME": str(place), "XDG_CONFIG_HOME": str(place)}
    done = subprocess.run(
        [program, *arguments], cwd=place, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def latencies_ns() -> list[tuple[int, int]]:
    """(end, latency) of every buffer at the video sink, read from the log with one expression."""
    pattern = r":: latency, .*sink-element=\(string\)sink,.* time=\(guint64\)(\d+), ts=\(guint64\)(\d+);"
    return sorted((int(ts), int(time)) for time, ts in re.findall(pattern, elsewhere(LOG).read_text()))


def test_report(place: Path) -> None:
    report = json.loads(run(place, "report", "imported", "--json"))["runs"][0]
    times = np.array([time for _, time in latencies_ns()]) / 1e9
    assert report["frames"] == len(times) == 96
    for key, share in (("p50_s", 50), ("p95_s", 95), ("p99_s", 99), ("max_s", 100)):
        assert report["frame"][key] == pytest.approx(np.percentile(times, share), abs=1e-9)
    assert report["stages"][0]["name"] == "avdec_h265-0"


def test_captures(place: Path) -> None:
    pair = "avdec_h265-0:glcolorbalance0"
    for suffix in ("json", "csv"):
        run(
            place,
            "convert",
            "imported",
            "--to",
            f"capframex-{suffix}",
            "--out",
            f"c.{suffix}",
            "--pair",
            pair,
        )
    assert json_problems(place / "c.json") == []
    assert csv_problems(place / "c.csv") == []
    ends = np.array([ts for ts, _ in latencies_ns()])
    wanted = np.diff(ends) / 1e6
    capture = json.loads((place / "c.json").read_text())["Runs"][0]["CaptureData"]
    assert np.allclose(capture["MsBetweenPresents"], wanted, atol=1e-5)
    lines = [line for line in (place / "c.csv").read_text().splitlines() if not line.startswith("//")]
    rows = list(csv.DictReader(lines))
    assert np.allclose([float(row["MsBetweenPresents"]) for row in rows], wanted, atol=1e-3)
