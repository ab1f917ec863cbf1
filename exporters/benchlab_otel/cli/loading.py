"""What a session holds, for commands that show it: its runs with their energies.

Apart from `finding`, since aligning and attributing take long to import.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from benchlab_otel.archive.records import Fault
from benchlab_otel.archive.session import Session
from benchlab_otel.cli.finding import reading
from benchlab_otel.cli.progress import progress
from benchlab_otel.export.recorded import load_recorded, load_recorded_runs
from benchlab_otel.export.recording import Recording, attributed, load_conditioned_runs, load_runs
from benchlab_otel.model import Run

T = TypeVar("T")
Reader = Callable[[Session, list[Fault], Callable[[int], None]], T]


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
