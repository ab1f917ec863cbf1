"""Sessions as commands take them: found by name, read with a progress bar, faults told on stderr."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from benchlab_otel.archive.records import Fault
from benchlab_otel.archive.session import Session, SessionNotFound, open_session
from benchlab_otel.cli.errors import UserError
from benchlab_otel.cli.progress import progress
from benchlab_otel.export.recording import Recording, attributed, load_runs

Reference = Annotated[
    str,
    typer.Argument(
        metavar="[SESSION]", help="Id or its beginning, a session's folder, an OTLP file, or latest."
    ),
]


def find(reference: str, data_dir: Path) -> Session:
    """The session that a person named; UserError where there is none."""
    try:
        return open_session(reference, data_dir)
    except SessionNotFound as error:
        raise UserError(str(error)) from None


def load(session: Session) -> tuple[Recording, list[Fault]]:
    """All of the session and what of it could not be read; the faults are told on stderr too."""
    faults: list[Fault] = []
    size = sum(path.stat().st_size for path in session.traces)
    with progress("Reading", size) as advance:
        runs = load_runs(session, faults, advance)
    if session.running:
        _tell(f"{session.path.name} is still being recorded; this is what is there so far")
    for fault in faults:
        if not (fault.at_end and session.running):
            _tell(str(fault))
    with progress("Attributing"):
        return attributed(runs), faults


def _tell(line: str) -> None:
    print(f"benchlab-otel: {line}", file=sys.stderr)
