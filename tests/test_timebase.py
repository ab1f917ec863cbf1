"""One time base per boot, whichever process asks first, and what happened to the clocks since."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from benchlab_otel.timebase import Anchor, ClockState, anchor, clock_event, clock_state, measure_offset_ns
from conftest import wait_for

SECOND = 1_000_000_000
ASK = textwrap.dedent("""
    import sys, time
    from pathlib import Path
    from benchlab_otel.timebase import anchor
    folder = Path(sys.argv[1])
    (folder / f"ready.{sys.argv[2]}").touch()
    while not (folder / "go").exists():
        pass
    print(anchor(folder / "run").offset_ns)
""")


def test_all_processes_get_the_same_anchor(tmp_path: Path) -> None:
    """They start together, so several find no anchor and make one: one of them wins."""
    count = 8
    arguments = [[sys.executable, "-c", ASK, str(tmp_path), str(i)] for i in range(count)]
    processes = [subprocess.Popen(a, stdout=subprocess.PIPE, text=True) for a in arguments]
    wait_for(lambda: len(list(tmp_path.glob("ready.*"))) == count)
    (tmp_path / "go").touch()
    offsets = {process.communicate(timeout=60)[0] for process in processes}
    assert len(offsets) == 1
    assert int(offsets.pop()) == anchor(tmp_path / "run").offset_ns
    assert [p.name.startswith("benchlab-otel-") for p in (tmp_path / "run").iterdir()] == [True]  # no drafts


def test_threads_too(tmp_path: Path) -> None:
    for i in range(20):
        with ThreadPoolExecutor(8) as pool:
            found = set(pool.map(lambda _, i=i: anchor(tmp_path / str(i)).offset_ns, range(16)))
        assert len(found) == 1


def test_the_anchor_is_unix_time(tmp_path: Path) -> None:
    base = anchor(tmp_path)
    assert abs(base.now_ns() - time.time_ns()) < SECOND
    state = clock_state(base)
    assert abs(state.wall_offset_ns) < SECOND
    assert state.suspended_ns >= 0
    assert abs(measure_offset_ns() - base.offset_ns) < SECOND


@pytest.mark.parametrize("content", [b"", b"soon\n", b"1.5", b"\xff\xfe\0", b"9" * 30, b"9" * 19, b"1_000"])
def test_a_garbled_anchor_names_the_file_and_the_fix(content: bytes, tmp_path: Path) -> None:
    anchor(tmp_path / "made")
    (made,) = (tmp_path / "made").iterdir()
    path = tmp_path / "bad" / made.name
    path.parent.mkdir()
    path.write_bytes(content)
    with pytest.raises(OSError, match=r"expected one number .* remove the file") as caught:
        anchor(path.parent)
    assert caught.value.filename == str(path)
    path.unlink()
    assert anchor(path.parent).offset_ns  # the error was not remembered


@pytest.mark.parametrize("seconds", [3600, -3600, 2])
def test_a_process_that_begins_after_a_suspend_is_on_the_wall_clock(seconds: int, tmp_path: Path) -> None:
    made = anchor(tmp_path / "made")
    file = tmp_path / f"benchlab-otel-{made.boot_id}.anchor"
    file.write_text(f"{made.offset_ns - seconds * SECOND}\n")
    renewed = anchor(tmp_path)
    assert abs(renewed.now_ns() - time.time_ns()) < SECOND
    assert int(file.read_text()) == renewed.offset_ns  # for those that begin later
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == [file.name]


def test_an_anchor_that_is_a_little_off_is_everybodys(tmp_path: Path) -> None:
    made = anchor(tmp_path / "made")
    (tmp_path / f"benchlab-otel-{made.boot_id}.anchor").write_text(f"{made.offset_ns - SECOND // 2}\n")
    assert anchor(tmp_path).offset_ns == made.offset_ns - SECOND // 2


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"):
        anchor(tmp_path / "file")


def test_the_command_line_says_it_in_one_line(tmp_path: Path) -> None:
    anchor(tmp_path / "made")
    (made,) = (tmp_path / "made").iterdir()
    (tmp_path / made.name).write_text("soon")
    program = [sys.executable, "-c", "from benchlab_otel.cli import main; main()", "run", "--for", "1"]
    variables = {"BENCHLAB_OTEL_RUNTIME_DIR": str(tmp_path), "XDG_STATE_HOME": str(tmp_path / "state")}
    done = subprocess.run(program, env=os.environ | variables, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stderr.startswith(
        f"benchlab-otel: {tmp_path / made.name}: expected one number (ns), found 'soon'"
    )
    assert done.stderr.count("\n") == 1


# -- what happened to the clocks ------------------------------------------------------------------

BEFORE = ClockState(time_ns=1_790_000_000 * SECOND, wall_offset_ns=5_000_000, suspended_ns=7 * SECOND)


def after(seconds: float, wall: int = 0, suspended: int = 0) -> ClockState:
    return replace(
        BEFORE,
        time_ns=BEFORE.time_ns + int(seconds * SECOND),
        wall_offset_ns=BEFORE.wall_offset_ns + wall,
        suspended_ns=BEFORE.suspended_ns + suspended,
    )


@pytest.mark.parametrize(
    ("state", "event"),
    [
        (after(1), None),
        (after(1, wall=9_000_000), None),  # within what measuring may be off
        (after(3600, wall=1_700_000_000), None),  # NTP slews 500 ppm at most: 1.8 s in an hour
        (after(1, wall=2 * SECOND), "the wall clock was stepped by +2.000 s"),
        (after(1, wall=-3600 * SECOND), "the wall clock was stepped by -3600.000 s"),
        (after(1, wall=90 * SECOND, suspended=90 * SECOND), "the machine was suspended for 90.000 s"),
        (
            after(1, wall=91 * SECOND, suspended=90 * SECOND),
            "the machine was suspended for 90.000 s and the wall clock was stepped by +1.000 s",
        ),
    ],
)
def test_suspend_and_step_are_told_apart(state: ClockState, event: str | None) -> None:
    assert clock_event(BEFORE, state) == event


def test_an_anchor_keeps_durations_whatever_the_wall_clock_does() -> None:
    base = Anchor("boot", 123)
    begin, monotonic = base.now_ns(), time.monotonic_ns()
    assert 0 <= base.now_ns() - begin <= time.monotonic_ns() - monotonic + SECOND
