"""`benchlab-otel import`: foreign logs into the archive format."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer

from benchlab_otel import contract, timebase
from benchlab_otel.archive import session
from benchlab_otel.cli.errors import UserError
from benchlab_otel.cli.options import ConfigFile, settings
from benchlab_otel.cli.progress import progress
from benchlab_otel.probe.tracerlog import SINK, Converter, Log, read_log

EXPECTED = (
    "expected the log of GStreamer's latency tracer, as made with "
    'GST_TRACERS="latency(flags=pipeline+element)" GST_DEBUG=GST_TRACER:7 GST_DEBUG_FILE=FILE'
)


@dataclass(frozen=True, slots=True)
class Input:
    """A log that was read, the pipeline's name and the Unix time (ns) of the log's time 0."""

    path: Path
    name: str
    log: Log
    start_ns: int
    start_known_from: str


def command(
    files: Annotated[
        list[Path], typer.Argument(metavar="FILE...", help="Logs of GStreamer's latency tracer.")
    ],
    name: Annotated[
        str | None, typer.Option("--name", help="Name of the pipeline instead of the file's.")
    ] = None,
    start: Annotated[
        datetime | None,
        typer.Option(
            "--start",
            formats=["%Y-%m-%dT%H:%M:%S", "%Y-%m-%dT%H:%M:%S.%f"],
            help="Local time at which the program started. Without it the file's time of change is "
            "taken for that of its last line.",
        ),
    ] = None,
    session_id: Annotated[str | None, typer.Option("--session", help="Id of the session to make.")] = None,
    config: ConfigFile = None,
) -> None:
    """Import logs as a session, to be reported and converted like any other.

    benchlab-otel import latency-traces.log && benchlab-otel report latest
    """
    inputs = [_read(path, name or path.stem, start) for path in files]
    data_dir = settings(config).session.data_dir
    try:
        writer = session.create(data_dir, timebase.anchor(), ["import", *map(str, files)], session_id)
    except ValueError as error:
        raise UserError(str(error)) from None
    except FileExistsError:
        raise UserError(f"session {session_id} is there already; choose another --session") from None
    writer.manifest.live = False  # a file after the other: read by time
    for given in inputs:
        notes = _convert(given, writer)
        writer.manifest.notes += notes
        print(*notes, sep="\n")
    writer.close()
    print(f"session {writer.manifest.id} in {writer.path}")


def _read(path: Path, name: str, start: datetime | None) -> Input:
    """UserError where the file is no such log, so that nothing has been made by then."""
    try:
        state = path.stat()
        with path.open("rb") as file, progress(path.name, state.st_size) as advance:
            log = read_log(file, advance)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    if not (log.records.kind == SINK).any():
        found = f"{len(log.records)} element-latency records but no latency record of a sink"
        raise UserError(f"{path}: {found if len(log.records) else 'no latency record'}: {EXPECTED}")
    if start is not None:
        return Input(path, name, log, int(start.timestamp() * 1e6) * 1000, "--start")
    return Input(path, name, log, state.st_mtime_ns - log.end_ns, "the file's time of change")


def _convert(given: Input, writer: session.SessionWriter) -> list[str]:
    """Writes the log's frames; returns what is to be known of them."""
    resource = {"service.name": given.name, contract.SESSION_ID: writer.manifest.id}
    converter = Converter(given.name, resource, given.log.names, given.log.identity())
    starts = dict.fromkeys(given.log.processes, given.start_ns)
    for body in converter.convert(given.log.records, starts, last=True):
        writer.traces(body)
    counts = {
        "records could not be read": given.log.garbled,
        "buffers reached a sink without a latency record, so they are no frames": converter.unframed,
        "records had a choice of predecessors (clock too coarse); the one logged last was taken": (
            converter.ambiguous
        ),
    }
    return [
        f"{given.path}: {converter.frames} frames; times by {given.start_known_from}",
        *(f"{given.path}: {count} {what}" for what, count in counts.items() if count),
    ]
