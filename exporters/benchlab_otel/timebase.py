"""One time base per boot: CLOCK_MONOTONIC plus one offset to Unix time, shared by all processes.

A step of the wall clock never bends a duration: times are `monotonic + offset`, and the offset is
fixed when the first process of the boot asks for it. Every resource of ours carries it
(`benchlab.clock.offset_ns`), so spans of two processes that could not share the file (containers,
say) can still be put on one clock exactly. So can those of processes that began before and after the
machine slept or its clock was set: who begins then finds the offset far off and fixes another one.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import time
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

CLOCK_ATTRIBUTE = "benchlab.clock.offset_ns"
_DIRECTORY = Path("/dev/shm")  # noqa: S108 - lives exactly as long as the boot; names are per boot
_FAR_NS = 1_000_000_000  # only a suspend or a set clock moves it so far: NTP slews CLOCK_MONOTONIC, too


@dataclass(frozen=True, slots=True)
class Anchor:
    """Unix time = CLOCK_MONOTONIC + `offset_ns`, for the boot `boot_id`."""

    boot_id: str
    offset_ns: int

    def now_ns(self) -> int:
        """This moment in Unix nanoseconds on the shared time base."""
        return time.monotonic_ns() + self.offset_ns


@dataclass(frozen=True, slots=True)
class ClockState:
    """How the host's other clocks stand to the time base at `time_ns` (Unix ns on the time base).

    `wall_offset_ns` is wall clock minus time base: it moves when the wall clock is stepped or
    slewed. `suspended_ns` is how long the machine has been suspended since boot.
    """

    time_ns: int
    wall_offset_ns: int
    suspended_ns: int


def anchor(directory: Path | None = None) -> Anchor:
    """The boot's anchor: read from the file that an earlier process made, or made now.

    Raises OSError when the file can be neither read nor made (the message names it).
    """
    return _anchor(directory or Path(os.environ.get("BENCHLAB_OTEL_RUNTIME_DIR", _DIRECTORY)))


@cache
def _anchor(directory: Path) -> Anchor:
    boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    path = directory / f"benchlab-otel-{boot_id}.anchor"
    try:
        known = _read(path, boot_id)
    except FileNotFoundError:
        directory.mkdir(parents=True, exist_ok=True)
        _make(path)
        return _read(path, boot_id)
    now = Anchor(boot_id, measure_offset_ns())
    if abs(now.offset_ns - known.offset_ns) <= _FAR_NS:
        return known
    with suppress(OSError):  # another user's file: later processes then do the same
        _draft(path, now.offset_ns).replace(path)
    return now


def _make(path: Path) -> None:
    draft = _draft(path, measure_offset_ns())
    try:
        os.link(draft, path)  # atomic: exactly one process of the boot wins
    except FileExistsError:
        pass
    finally:
        draft.unlink()


def _draft(path: Path, offset_ns: int) -> Path:
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    draft.write_text(f"{offset_ns}\n")
    draft.chmod(0o644)
    return draft


def _read(path: Path, boot_id: str) -> Anchor:
    text = path.read_text(errors="replace").strip()
    if not re.fullmatch(r"-?[0-9]{1,19}", text) or abs(int(text)) >= 1 << 62:
        problem = f"expected one number (ns), found {text[:40]!r}; remove the file"
        raise OSError(errno.EINVAL, problem, str(path))
    return Anchor(boot_id, int(text))


def measure_offset_ns() -> int:
    """Wall clock minus CLOCK_MONOTONIC in ns, the tightest of several bracketed readings."""
    best_width, best = 1 << 62, 0
    for _ in range(15):
        before = time.monotonic_ns()
        wall = time.time_ns()
        after = time.monotonic_ns()
        if after - before < best_width:
            best_width, best = after - before, wall - (before + after) // 2
    return best


def clock_state(base: Anchor) -> ClockState:
    """Measures wall clock and suspend time against the time base."""
    return ClockState(
        time_ns=base.now_ns(),
        wall_offset_ns=measure_offset_ns() - base.offset_ns,
        suspended_ns=max(0, time.clock_gettime_ns(time.CLOCK_BOOTTIME) - time.monotonic_ns()),
    )


def clock_event(before: ClockState, after: ClockState, tolerance_ns: int = 10_000_000) -> str | None:
    """Tells in words what happened to the clocks between two states, None when nothing did.

    NTP slews at most 500 ppm, so a wall offset that moved by more than that plus the tolerance
    was stepped. While suspended CLOCK_MONOTONIC stands still and the wall clock does not, so a
    suspend moves both.
    """
    suspended = after.suspended_ns - before.suspended_ns
    moved = after.wall_offset_ns - before.wall_offset_ns - suspended
    slew = (after.time_ns - before.time_ns) // 2000
    parts = []
    if suspended > tolerance_ns:
        parts.append(f"the machine was suspended for {suspended / 1e9:.3f} s")
    if abs(moved) > slew + tolerance_ns:
        parts.append(f"the wall clock was stepped by {moved / 1e9:+.3f} s")
    return " and ".join(parts) or None
