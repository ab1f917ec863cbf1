"""Memory and time of `align` and `convert` for a long session: 1 M frames of three stages, and a meter.

    python bench/memory.py [frames]

The session (60 fps, so 4.6 hours; readings at 20 Hz of one meter) is written by the encoder into a
temporary folder. Each command runs in a process of its own; its peak resident memory is what the
kernel counted (ru_maxrss), goal 500 MiB.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from benchlab_otel.archive.session import create
from benchlab_otel.otlp.encode import SpanBatch, encode_request
from benchlab_otel.timebase import anchor

FRAMES = 1_000_000
BLOCK = 600  # frames a request: 10 s
STAGES = {"decode": 2_000_000, "infer": 6_000_000, "display": 3_000_000}
PERIOD, SAMPLE_PERIOD = 16_666_667, 50_000_000
GOAL_MIB = 500
COMMANDS = {
    "align": ("align", "{session}", "--out", "{out}/energy.otlp"),
    "convert to CapFrameX JSON": ("convert", "{session}", "--to", "capframex-json", "--out", "{out}/a.json"),
    "convert to CapFrameX CSV": ("convert", "{session}", "--to", "capframex-csv", "--out", "{out}/a.csv"),
    "report": ("report", "{session}", "--json"),
}


def write(folder: Path, frames: int) -> Path:
    """A session with so many frames; returns its folder."""
    writer = create(folder, anchor(), ["bench/memory.py"])
    rng = np.random.default_rng(1)
    start = 1_795_000_000_000_000_000
    for first in range(0, frames, BLOCK):
        number = np.arange(first, min(first + BLOCK, frames))
        writer.traces(encode_request({"service.name": "bench"}, frame_spans(number, start, rng)))
        times = np.arange(
            start + first * PERIOD, start + (int(number[-1]) + 1) * PERIOD, SAMPLE_PERIOD, np.int64
        )
        writer.traces(encode_request({"service.name": "meter"}, [sample_spans(times, rng)]))
    writer.close()
    return writer.path


def frame_spans(number: np.ndarray, start: int, rng: np.random.Generator) -> list[SpanBatch]:
    """Frames with their stages, of lengths that vary by 35 %."""
    n = len(number)
    begin = start + number * PERIOD
    ids = rng.integers(1, 1 << 63, (n, 3 + len(STAGES)), dtype=np.uint64)
    lengths = (np.array(list(STAGES.values())) * rng.uniform(0.65, 1.35, (n, len(STAGES)))).astype(np.int64)
    edges = begin[:, None] + np.concatenate([np.zeros((n, 1), np.int64), np.cumsum(lengths, axis=1)], axis=1)
    about = {"pipeline.name": "cam0", "frame.number": number, "frame.outcome": "completed"}
    batches = [SpanBatch("frame", ids[:, :2], ids[:, 2], begin, edges[:, -1], attributes=about)]
    for k, name in enumerate(STAGES):
        own, stage = ids[:, 3 + k], {"pipeline.stage": name}
        batches.append(
            SpanBatch(name, ids[:, :2], own, edges[:, k], edges[:, k + 1], ids[:, 2], attributes=stage)
        )
    return batches


def sample_spans(times: np.ndarray, rng: np.random.Generator) -> SpanBatch:
    """What the meter said at these times, with half a millisecond of round trip."""
    m = len(times)
    ids = rng.integers(1, 1 << 63, (m, 3), dtype=np.uint64)
    attributes = {
        "hw.id": "meter",
        "hw.type": "power_supply",
        "hw.power.system": 200 + rng.normal(0, 20, m),
        "meter.window_ns": SAMPLE_PERIOD,
    }
    return SpanBatch("sample", ids[:, :2], ids[:, 2], times, times + 500_000, attributes=attributes)


def measure(arguments: list[str]) -> tuple[float, float]:
    """(peak MiB, seconds) of one command in a process of its own."""
    program = [sys.executable, "-c", "from benchlab_otel.cli import main; main()", *arguments]
    begin = time.perf_counter()
    process = subprocess.Popen(program, stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0, arguments
    return used.ru_maxrss / 1024, time.perf_counter() - begin


def main() -> None:
    """Writes the session, then runs each command over it."""
    frames = int(sys.argv[1]) if len(sys.argv) > 1 else FRAMES
    with tempfile.TemporaryDirectory() as folder:
        begin = time.perf_counter()
        session = write(Path(folder), frames)
        size = (session / "traces.otlp").stat().st_size / (1 << 20)
        seconds = time.perf_counter() - begin
        print(f"{frames:,} frames of {len(STAGES)} stages, 20 Hz: {size:.0f} MiB, written in {seconds:.1f} s")
        for name, arguments in COMMANDS.items():
            filled = [part.format(session=session, out=folder) for part in arguments]
            peak, seconds = measure(filled)
            verdict = "" if peak <= GOAL_MIB else f" — more than {GOAL_MIB}"
            print(f"  {name:26} {peak:6.0f} MiB {seconds:7.1f} s{verdict}", flush=True)


if __name__ == "__main__":
    main()
