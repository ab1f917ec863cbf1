"""`import FILE …`: frame logs of other programs into the archive format."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer

from benchlab_otel import timebase
from benchlab_otel.archive import session
from benchlab_otel.archive.manifest import MANIFEST, read_manifest, write_manifest
from benchlab_otel.cli.errors import UserError
from benchlab_otel.cli.finding import find, reading
from benchlab_otel.cli.importing import FORMATS, WALL, Converted, Source, TimeBase, convert, detect, time_base
from benchlab_otel.cli.options import ConfigFile, settings

_TIMES = ["%Y-%m-%dT%H:%M:%S", "%Y-%m-%dT%H:%M:%S.%f", "%Y-%m-%dT%H:%M:%S%z", "%Y-%m-%dT%H:%M:%S.%f%z"]


def command(
    files: Annotated[
        list[Path],
        typer.Argument(
            metavar="FILE",
            help="Captures and logs; docs/import.md has a table of the formats.",
        ),
    ],
    format_: Annotated[
        str | None,
        typer.Option(
            "--format", metavar="FORMAT", help=f"Instead of what it looks like: {', '.join(FORMATS)}."
        ),
    ] = None,
    name: Annotated[
        str | None, typer.Option("--name", metavar="NAME", help="Name of the pipeline instead of the file's.")
    ] = None,
    start: Annotated[
        datetime | None,
        typer.Option(
            "--start",
            metavar="TIME",
            formats=_TIMES,
            help="Time (local, or with +00:00) of the file's time 0, when recording started. Without it: what"
            " the file says, else its time of change for its last line.",
        ),
    ] = None,
    session_id: Annotated[
        str | None, typer.Option("--session", metavar="ID", help="Id of the session to make.")
    ] = None,
    into: Annotated[
        str | None,
        typer.Option("--into", metavar="SESSION", help="Add to this session, which measured meanwhile."),
    ] = None,
    config: ConfigFile = None,
) -> None:
    """Import captures and logs as a session, or into one, to be reported, compared and converted.

    \b
    Examples:
      benchlab-otel import game.csv && benchlab-otel report latest
      benchlab-otel import game.csv --into latest --start 2026-10-01T12:00:00.250
    """
    if into is not None and session_id is not None:
        raise UserError("--session makes a session and --into adds to one: choose one of them")
    if format_ is not None and format_ not in FORMATS:
        raise UserError(f"--format {format_}: expected one of {', '.join(FORMATS)}")
    sources = [Source(path, format_ or detect(path), name, start) for path in files]
    data_dir = settings(config).session.data_dir
    if into is not None:
        _add(sources, find(into, data_dir))
    else:
        _make(sources, data_dir, session_id)


def _make(sources: Sequence[Source], data_dir: Path, session_id: str | None) -> None:
    """A new session of the files, or none if one of them can't be used."""
    chosen = session_id or session.new_id()
    if (data_dir / "sessions" / chosen).exists():
        raise UserError(
            f"session {chosen} is there already; choose another --session, or --into to add to it"
        )
    data_dir.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=".import-", dir=data_dir) as scratch:
        drafts = _convert(sources, Path(scratch), WALL, chosen)
        command_line = ["import", *(str(source.path) for source in sources)]
        try:
            writer = session.create(data_dir, timebase.anchor(), command_line, chosen)
        except ValueError as error:
            raise UserError(str(error)) from None
        writer.manifest.live = False  # a file after the other: read by time
        writer.manifest.simulated = any(done.simulated for _, done in drafts)
        writer.manifest.notes += [note for _, done in drafts for note in done.notes]
        _place(drafts, writer.path)
        writer.close()
        (writer.path / session.TRACES).unlink()  # nothing was recorded
    print(f"session {chosen} in {writer.path}")


def _add(sources: Sequence[Source], found: session.Session) -> None:
    """The files into a session, all or none of them."""
    if found.manifest is None:
        raise UserError(f"{found.path}: not a session's folder, so nothing can be added")
    with session.hold(found.path) as held:
        if not held:
            raise UserError(f"{found.path.name}: being recorded; end that first")
        with reading([found]) as (faults, advance):
            base = time_base(found, faults, advance)
        with TemporaryDirectory(prefix=".import-", dir=found.path) as scratch:
            drafts = _convert(sources, Path(scratch), base, found.manifest.id)
            manifest = read_manifest(found.path / MANIFEST) or found.manifest
            manifest.notes += [note for _, done in drafts for note in done.notes]
            manifest.simulated |= any(done.simulated for _, done in drafts)
            _place(drafts, found.path)
            write_manifest(found.path, manifest)
    print(f"added to session {found.path.name} in {found.path}")


def _convert(
    sources: Sequence[Source], scratch: Path, base: TimeBase, session_id: str
) -> list[tuple[Path, Converted]]:
    drafts = []
    for number, source in enumerate(sources):
        draft = scratch / str(number)
        done = convert(source, draft, base, session_id)
        print(*done.notes, sep="\n")
        drafts.append((draft, done))
    return drafts


def _place(drafts: Sequence[tuple[Path, Converted]], folder: Path) -> None:
    """Moves the drafts into the session's folder under names that are free."""
    number = 1
    for draft, _ in drafts:
        while (target := folder / session.IMPORTED.format(number)).exists():
            number += 1
        draft.replace(target)
