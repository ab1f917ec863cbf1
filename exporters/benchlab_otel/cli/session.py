"""Sessions as commands take them: found by name, read with a progress bar, faults told on stderr."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, TypeVar

import typer

from benchlab_otel.archive.records import Fault
from benchlab_otel.archive.session import Session, SessionNotFound, open_session
from benchlab_otel.cli.errors import UserError
from benchlab_otel.cli.progress import progress
from benchlab_otel.export.recorded import load_recorded, load_recorded_runs
from benchlab_otel.export.recording import Recording, attributed, load_conditioned_runs, load_runs
from benchlab_otel.model import Run

Reference = Annotated[
    str,
    typer.Argument(
        metavar="SESSION", help="Id or its beginning, a session's folder, an OTLP file, or latest."
    ),
]

T = TypeVar("T")
Reader = Callable[[Session, list[Fault], Callable[[int], None]], T]


def find(reference: str, data_dir: Path) -> Session:
    """The session that a person named; UserError where there is none."""
    try:
        return open_session(reference, data_dir)
    except SessionNotFound as error:
        raise UserError(str(error)) from None


def load(session: Session) -> tuple[Recording, list[Fault]]:
    """All of the session and what of it could not be read; the faults are told on stderr too."""
    if session.recorded:
        return _read(session, load_recorded)
    runs, faults = _read(session, load_runs)
    with progress("Attributing"):
        return attributed(runs), faults


def load_energies(session: Session) -> list[Run]:
    """The session's runs with all their energies; what could not be read is told on stderr."""
    return _read(session, load_recorded_runs if session.recorded else load_conditioned_runs)[0]


def _read(session: Session, reader: Reader[T]) -> tuple[T, list[Fault]]:
    with reading([session]) as (faults, advance):
        found = reader(session, faults, advance)
    return found, faults


@contextmanager
def reading(sessions: Sequence[Session]) -> Iterator[tuple[list[Fault], Callable[[int], None]]]:
    """A progress bar over the sessions' traces; afterwards what could not be read is told on stderr."""
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
    print(f"benchlab-otel: {line}", file=sys.stderr)
