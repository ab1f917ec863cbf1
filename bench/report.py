"""`benchlab-otel report` of an hour, as a person waits for it: a fresh process each time, imports included.

    python bench/report.py [hours]

60 fps of three stages, and a meter at 20 Hz (`memory.write`). Goal: 2 s for the median of an hour. The
processor's seconds stand beside, which are less at the mercy of what else the machine does; they are more
than the wall clock's where two cores worked. Modules are compiled beforehand, as they are where installed.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from memory import PERIOD, write

GOAL_S, REPEATS = 2.0, 7
WAYS = {"report": (), "report --json": ("--json",)}


def measure(arguments: list[str], compiled: Path) -> tuple[float, float, float]:
    """(seconds, the processor's seconds, peak MiB) of one command in a process of its own."""
    program = [sys.executable, "-c", "from benchlab_otel.cli import main; main()", *arguments]
    without = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    begin = time.perf_counter()
    process = subprocess.Popen(
        program, stdout=subprocess.DEVNULL, env={**without, "PYTHONPYCACHEPREFIX": str(compiled)}
    )
    _, status, used = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - begin
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0, arguments
    return seconds, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024


def main() -> None:
    """Writes the session, then reports it by turns."""
    hours = float(sys.argv[1]) if len(sys.argv) > 1 else 1.0
    frames = round(hours * 3600e9 / PERIOD)
    with tempfile.TemporaryDirectory() as folder:
        session = write(Path(folder), frames)
        found: dict[str, list[tuple[float, float, float]]] = {name: [] for name in WAYS}
        for repeat in range(REPEATS + 1):
            for name, options in WAYS.items():
                figures = measure(["report", str(session), *options], Path(folder) / "compiled")
                if repeat:  # the first one compiles
                    found[name].append(figures)
    print(f"{frames:,} frames of 3 stages, a meter at 20 Hz; min, median, max of {REPEATS}\n")
    for name, runs in found.items():
        wall, processor, peak = (sorted(column) for column in zip(*runs, strict=True))
        middle = REPEATS // 2
        verdict = "" if hours != 1.0 else "  goal kept" if wall[middle] <= GOAL_S else "  goal missed"
        print(
            f"  {name:14} {wall[0]:5.2f} {wall[middle]:5.2f} {wall[-1]:5.2f} s,"
            f" processor {processor[0]:5.2f} {processor[middle]:5.2f} {processor[-1]:5.2f} s,"
            f" {peak[-1]:4.0f} MiB{verdict}"
        )


if __name__ == "__main__":
    main()
