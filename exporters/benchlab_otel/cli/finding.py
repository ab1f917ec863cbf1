"""Sessions as commands take them: found by name, read with a progress bar, their faults told on stderr.

The command `sessions` is `sessions.py`; what a session holds is read by `loading.py`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from benchlab_otel.archive.records import Fault
from benchlab_otel.archive.session import Session, SessionNotFound, open_session
from benchlab_otel.cli.errors import UserError, plain
from benchlab_otel.cli.memory import keep_freed_memory
from benchlab_otel.cli.progress import progress

Reference = Annotated[
    str,
    typer.Argument(
        metavar="SESSION", help="Id or its beginning, a session's folder, an OTLP file, or latest."
    ),
]


def find(reference: str, data_dir: Path) -> Session:
    """The session that a person named; UserError where there is none."""
    try:
        return open_session(reference, data_dir)
    except SessionNotFound as error:
        raise UserError(str(error)) from None


@contextmanager
def reading(sessions: Sequence[Session]) -> Iterator[tuple[list[Fault], Callable[[int], None]]]:
    """A progress bar over the sessions' traces; afterwards what could not be read is told on stderr."""
    keep_freed_memory()
    faults: list[Fault] = []
    size = sum(path.stat().st_size for session in sessions for path in _paths(session))
    with progress("Reading", size) as advance:
        yield faults, advance
    for session in sessions:
        if session.running:
            _tell(f"{session.path.name} is still being recorded; this is what is there so far")
        if session.manifest is not None and session.manifest.raw_removed:
            told = "joules are as they were recorded" if session.recorded else "there are no joules"
            _tell(
                f"{session.path.name}: retention took its samples ({session.manifest.raw_removed}), so {told}"
            )
    for fault in faults:
        if not (fault.at_end and any(session.running for session in sessions)):
            _tell(str(fault))


def _paths(session: Session) -> list[Path]:
    """What is read of a session."""
    return [*session.traces, *(session.energy if session.recorded else ())]


def _tell(line: str) -> None:
    print(f"benchlab-otel: {plain(line)}", file=sys.stderr)
