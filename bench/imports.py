"""A million frames of a PresentMon CSV and of a CapFrameX JSON imported: time and memory.

    python bench/imports.py

Beside it what only reads the file: pandas for the CSV, json for the JSON. The import also makes spans of
the rows (5 a frame) and writes them, compressed, as a session does. Each way runs three times in processes of
its own, in turn; prints the median of the time and the largest peak of memory.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROWS, REPEATS = 1_000_000, 3
WAYS = {
    "CSV, benchlab-otel import": ("presentmon", "p.csv"),
    "CSV, pandas.read_csv": ("pandas", "p.csv"),
    "JSON, benchlab-otel import": ("capframex", "c.json"),
    "JSON, json.load": ("json", "c.json"),
}


def write_inputs(folder: Path) -> None:
    """The same presents in both formats."""
    rng = np.random.default_rng(1)
    between = rng.uniform(5, 9, ROWS).round(3)
    columns = {
        "TimeInSeconds": (np.cumsum(between) / 1e3).round(6),
        "MsBetweenPresents": between,
        "MsInPresentAPI": rng.uniform(0.5, 2, ROWS).round(3),
        "MsUntilRenderComplete": rng.uniform(3, 5, ROWS).round(3),
        "MsUntilDisplayed": rng.uniform(12, 16, ROWS).round(3),
    }
    with (folder / "p.csv").open("w") as file:
        file.write(
            "Application,ProcessID,SwapChainAddress,Runtime,PresentMode,Dropped," + ",".join(columns) + "\n"
        )
        for row in zip(*(column.tolist() for column in columns.values()), strict=True):
            file.write(
                "game.exe,1936,0x0000000076F3DB00,DXGI,Composed: Flip,0," + ",".join(map(str, row)) + "\n"
            )
    data = {name: column.tolist() for name, column in columns.items()} | {"Dropped": [False] * ROWS}
    run = {"Hash": "1", "PresentMonRuntime": "DXGI", "CaptureData": data}
    info = {"AppVersion": "1.8.4", "CreationDate": "2026-10-01T12:00:00Z"}
    (folder / "c.json").write_text(json.dumps({"Hash": "2", "Info": info, "Runs": [run]}))


def read(way: str, path: Path) -> None:
    """One way, in a child process: prints its seconds and its peak of memory in MiB."""
    if way == "pandas":
        import pandas

        begin = time.perf_counter()
        assert len(pandas.read_csv(path)) == ROWS
    elif way == "json":
        begin = time.perf_counter()
        with path.open() as file:
            assert len(json.load(file)["Runs"]) == 1
    else:
        from datetime import UTC, datetime

        from benchlab_otel.cli.importing import WALL, Source, convert

        begin = time.perf_counter()
        source = Source(path, way, None, datetime(2026, 10, 1, tzinfo=UTC))
        assert f"{ROWS} frames" in convert(source, path.with_suffix(".otlp"), WALL, "s1").notes[0]
    seconds = time.perf_counter() - begin
    print(seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def run_child(way: str, path: Path) -> bytes:
    """What this program prints with these arguments."""
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
    command = [sys.executable, __file__, way, str(path)]
    return subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True).stdout


def main() -> None:
    """All ways in turn."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run_child("write", folder)  # not here: a child's peak of memory begins at its parent's size
        found: dict[str, list[tuple[float, float]]] = {title: [] for title in WAYS}
        for _ in range(REPEATS):
            for title, (way, file) in WAYS.items():
                seconds, memory = map(float, run_child(way, folder / file).split())
                found[title].append((seconds, memory))
        for title, runs in found.items():
            seconds = statistics.median(s for s, _ in runs)
            size = (folder / WAYS[title][1]).stat().st_size / 1e6
            print(f"{title:28} {size:4.0f} MB  {seconds:5.2f} s  {max(m for _, m in runs):5.0f} MiB")


if __name__ == "__main__":
    if sys.argv[1:2] == ["write"]:
        write_inputs(Path(sys.argv[2]))
    elif len(sys.argv) == 3:
        read(sys.argv[1], Path(sys.argv[2]))
    else:
        main()
