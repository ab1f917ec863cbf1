"""`note TEXT`: a note or bookmark at this moment of the session that is being recorded."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Annotated

import typer

from benchlab_otel.archive.notes import Note, add_note, read_notes
from benchlab_otel.archive.session import Session, is_running, session_ids
from benchlab_otel.cli import options
from benchlab_otel.cli.errors import UserError
from benchlab_otel.cli.finding import find
from benchlab_otel.timebase import anchor


def command(
    text: Annotated[
        str | None, typer.Argument(metavar="TEXT", help="What to note (default: bookmark N).")
    ] = None,
    session: Annotated[
        str | None, typer.Option(metavar="SESSION", help="Instead of the newest that is being recorded.")
    ] = None,
    config: options.ConfigFile = None,
) -> None:
    """Note what happens at this moment; `sessions show` and replays have it at its time.

    \b
    Examples:
      benchlab-otel note "second camera plugged in"
      benchlab-otel note                               # a bookmark
      benchlab-otel note --session latest "fan was off all along"
    """
    age_ns = _process_age_ns()  # the note is about the moment when the command was typed
    moment = anchor().now_ns() - age_ns
    data_dir = options.settings(config).session.data_dir
    found = find(session, data_dir) if session else find(_running(data_dir), data_dir)
    if found.manifest is None:
        raise UserError(f"{session}: not a session's folder, so there is no place for a note")
    if not _same_boot(found):
        moment = time.time_ns() - age_ns
    told = text or f"bookmark {len(read_notes(found.path, [])) + 1}"
    add_note(found.path, Note(moment, told), found.manifest.id)
    print(f"{found.path.name}: {told}")


def _process_age_ns() -> int:
    """How long this process has been running (proc(5): field 22 of stat, in clock ticks since boot)."""
    started = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    boottime = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    return max(0, boottime - started * 1_000_000_000 // os.sysconf("SC_CLK_TCK"))


def _same_boot(session: Session) -> bool:
    return session.manifest is not None and session.manifest.boot_id == anchor().boot_id


def _running(data_dir: Path) -> str:
    running = [name for name in session_ids(data_dir) if is_running(data_dir / "sessions" / name)]
    if not running:
        raise UserError("nothing is being recorded; --session SESSION adds a note to what was")
    return running[-1]
