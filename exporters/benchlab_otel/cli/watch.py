"""`watch --to FORMAT --out FOLDER`: converts each session by itself as soon as it is finished."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from benchlab_otel.archive.session import Session, SessionNotFound, open_session, session_ids
from benchlab_otel.cli import options
from benchlab_otel.cli.convert import WHOLE, Accelerators, Format, Pairs, check, convert
from benchlab_otel.cli.errors import UserError
from benchlab_otel.export.capframex_columns import Options
from benchlab_otel.export.output import replacing

LEDGER = ".benchlab-otel-converted"  # in the folder: a line `FORMAT SESSION` for each that is done


def command(
    to: Annotated[Format, typer.Option("--to", metavar="FORMAT", help="The format, as for convert.")],
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Where captures go; made if need be.")],
    pair: Pairs = None,
    accelerator: Accelerators = None,
    once: Annotated[
        bool, typer.Option("--once", help="Convert what is finished now, then end: for a timer's job.")
    ] = False,
    every: Annotated[
        float, typer.Option(metavar="SECONDS", min=0.1, help="How often to look for finished sessions.")
    ] = 2.0,
    config: options.ConfigFile = None,
) -> None:
    """Convert each finished session once, also those that finished before or while this did not run.

    Which ones are done stands in FOLDER, so a capture that was moved or deleted does not come back.

    \b
    Examples:
      benchlab-otel watch --to capframex-json --out ~/captures
      benchlab-otel watch --to parquet --out /data/tables --once
    """
    chosen = Options(tuple(pair or ()), tuple(accelerator or ()))
    check(to, chosen)
    data_dir = options.settings(config).session.data_dir
    stop = options.told_to_end()
    while not stop.is_set():
        for line in convert_finished(data_dir, to, out, chosen, stop):
            print(line, flush=True)
        if once:
            return
        stop.wait(every)


def convert_finished(
    data_dir: Path, to: Format, out: Path, chosen: Options, stop: threading.Event
) -> Iterator[str]:
    """Converts the finished sessions below `data_dir` that are not yet in the folder's ledger.

    Tells of each file, and of each session that can't be converted, which is not tried again. Raises
    OSError where the folder can't be written; what was not written is tried the next time.
    """
    out.mkdir(parents=True, exist_ok=True)
    done = _done(out)
    for name in session_ids(data_dir):
        if stop.is_set():
            return
        if f"{to} {name}" in done:
            continue
        session = _finished(data_dir, name)
        if session is None:
            continue
        try:
            yield from _converted(session, to, out, chosen)
        except UserError as error:
            yield f"{name}: not converted: {error}"
        done.append(f"{to} {name}")
        _note(out, done)


def _converted(session: Session, to: Format, out: Path, chosen: Options) -> Iterator[str]:
    """The session's files, named after it."""
    name = session.path.name
    if to == "perfetto":
        return convert([session], to, out / f"{name}.pftrace")
    if to in WHOLE:
        return convert([session], to, out / name)
    return convert([session], to, out, chosen, prefix=f"{name}_")


def _finished(data_dir: Path, name: str) -> Session | None:
    """The session, unless it is still being recorded or was removed meanwhile."""
    try:
        session = open_session(str(data_dir / "sessions" / name), data_dir)
    except SessionNotFound:
        return None
    return None if session.running else session


def _done(out: Path) -> list[str]:
    try:
        return (out / LEDGER).read_text().splitlines()
    except FileNotFoundError:
        return []


def _note(out: Path, done: list[str]) -> None:
    """Written whole, so that a crash can't leave half a line."""
    with replacing(out / LEDGER) as file:
        file.write("".join(f"{line}\n" for line in done).encode())
