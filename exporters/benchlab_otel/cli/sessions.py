"""`sessions`: what was recorded: listed, shown, removed, exported, imported, pruned."""

from __future__ import annotations

import shlex
import shutil
import textwrap
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer
from rich.console import Group, RenderableType
from rich.table import Column, Table
from rich.text import Text

from benchlab_otel.archive import bundle, retention
from benchlab_otel.archive.manifest import MANIFEST, read_manifest
from benchlab_otel.archive.notes import Note, read_notes
from benchlab_otel.archive.reader import read_spans
from benchlab_otel.archive.records import Fault
from benchlab_otel.archive.retention import Policy, size_of, stored
from benchlab_otel.archive.session import Session, is_running, session_ids
from benchlab_otel.cli import options
from benchlab_otel.cli.errors import Failure, UserError
from benchlab_otel.cli.finding import Reference, find
from benchlab_otel.cli.terminal import console
from benchlab_otel.config import Settings
from benchlab_otel.export.output import replacing

_FIGURES, _LEAST_WHAT = 41, 16  # columns that `list` takes for date, length and size, and for what was run

command = typer.Typer(no_args_is_help=True)

AsJson = Annotated[bool, typer.Option("--json", help="The same for scripts.")]


@command.callback()
def _sessions() -> None:
    """The sessions that were recorded here."""


# -- what there is ----------------------------------------------------------------------------


@command.command("list")
def list_(as_json: AsJson = False, config: options.ConfigFile = None) -> None:
    """All sessions, oldest first, with their size.

    \b
    Example:
      benchlab-otel sessions list --json | jq '.[] | select(.running) | .id'
    """
    data_dir = options.settings(config).session.data_dir
    rows = [_summary(data_dir / "sessions" / name) for name in session_ids(data_dir)]
    if as_json:
        _print_json(rows)
        return
    screen = console()
    names = max([len(row["id"]) for row in rows], default=0)
    screen.print(_listed(rows) if names + _FIGURES + _LEAST_WHAT <= screen.width else _listed_below(rows))
    total = sum(row["bytes"] for row in rows)
    free = shutil.disk_usage(data_dir).free if data_dir.is_dir() else 0
    screen.print(f"{len(rows)} sessions, {_size(total)} in {data_dir}; {_size(free)} free")


def _listed(rows: Sequence[dict[str, Any]]) -> Table:
    """A line for each session."""
    table = Table(box=None, pad_edge=False)
    for column in ("Session", "Began", "Length", "Size", "What"):
        table.add_column(column, overflow="fold", no_wrap=column != "What", justify=_side(column))
    for row in rows:
        table.add_row(row["id"], _local(row["created"]), _length(row), _size(row["bytes"]), _what(row))
    return table


def _listed_below(rows: Sequence[dict[str, Any]]) -> Group:
    """Ids that leave no room beside them on lines of their own, whole, so that they can be copied."""
    lines: list[RenderableType] = []
    for row in rows:
        figures = f"{_local(row['created']):16}  {_length(row):>8}  {_size(row['bytes']):>9}"
        told = Table.grid(padding=(0, 2, 0, 0))
        told.add_row("", Text(figures, no_wrap=True), _what(row))
        lines += [Text(row["id"], overflow="fold"), told]
    return Group(*lines)


def _side(column: str) -> Any:
    return "right" if column in ("Length", "Size") else "left"


def _summary(folder: Path) -> dict[str, Any]:
    manifest = read_manifest(folder / MANIFEST)
    return {
        "id": folder.name,
        "path": str(folder),
        "created": manifest.created if manifest else None,
        "ended": manifest.ended if manifest else None,
        "running": is_running(folder),
        "simulated": manifest.simulated if manifest else None,
        "raw_removed": manifest.raw_removed if manifest else None,
        "command": manifest.command if manifest else [],
        "devices": [d.get("hw.id") for d in manifest.devices] if manifest else [],
        "bytes": size_of(folder),
        "notes": len(read_notes(folder, [])),
    }


def _what(row: dict[str, Any]) -> str:
    marks = {
        "recording": row["running"],
        "SIMULATED": row["simulated"],
        "raw data removed": row["raw_removed"],
        f"{row['notes']} note{'s' * (row['notes'] != 1)}": row["notes"],
        "manifest unreadable": row["created"] is None,
    }
    return ", ".join([*(mark for mark, given in marks.items() if given), _ran(row["command"])])


def _ran(command: list[str]) -> str:
    """The command's begin, the program without its folder."""
    program, *arguments = command or [""]
    return textwrap.shorten(shlex.join([Path(program).name, *arguments]), 60, placeholder=" …")


def _local(moment: str | None) -> str:
    parsed = _parsed(moment)
    return f"{parsed.astimezone():%Y-%m-%d %H:%M}" if parsed else "?"


def _parsed(moment: str | None) -> datetime | None:
    try:
        found = datetime.fromisoformat(moment or "")
    except ValueError:
        return None
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def _length(row: dict[str, Any]) -> str:
    begin, end = _parsed(row["created"]), _parsed(row["ended"])
    if row["running"]:
        end = datetime.now(UTC)
    if begin is None or end is None:
        return "cut off" if begin else "?"
    return str(end - begin).partition(".")[0]


def _size(size: int) -> str:
    for unit, bits in (("GiB", 30), ("MiB", 20)):
        if size >> bits:
            return f"{size / (1 << bits):,.1f} {unit}"
    return f"{size / (1 << 10):,.1f} KiB"


def _print_json(value: Any) -> None:
    print(msgspec.json.format(msgspec.json.encode(value), indent=2).decode())


@command.command()
def show(
    session: Reference = "latest",
    check: Annotated[bool, typer.Option("--check", help="Read all of it; count spans and damage.")] = False,
    as_json: AsJson = False,
    config: options.ConfigFile = None,
) -> None:
    """What is known of a session: devices, settings, notes, files.

    \b
    Examples:
      benchlab-otel sessions show
      benchlab-otel sessions show 20261001T12 --check
    """
    found = _recorded(session, options.settings(config))
    faults: list[Fault] = []
    notes = read_notes(found.path, faults)
    shown: dict[str, Any] = {"id": found.path.name, "path": str(found.path), "running": found.running}
    if found.manifest is not None:
        shown |= msgspec.to_builtins(found.manifest)
    shown["bytes"] = size_of(found.path)
    shown["files"] = {p.name: p.stat().st_size for p in bundle.members(found.path)}
    shown["marks"] = [{"time_ns": note.time_ns, "text": note.text} for note in notes]
    if check:
        shown["spans"] = _count_spans(found, faults)
        shown["damage"] = [str(fault) for fault in faults if not (fault.at_end and found.running)]
    if as_json:
        _print_json(shown)
    else:
        _print_details(shown, notes)
    if check and shown["damage"]:
        raise typer.Exit(1)


def _recorded(session: str, settings: Settings) -> Session:
    """A session's folder; UserError for bare files, which have no manifest."""
    found = find(session, settings.session.data_dir)
    if not (found.path / MANIFEST).is_file():
        raise UserError(f"{session}: OTLP files, not a session's folder")
    return found


def _count_spans(session: Session, faults: list[Fault]) -> dict[str, int]:
    counts: Counter[str] = Counter()
    for path in [*session.traces, *session.energy]:
        for spans in read_spans([path], faults, as_arrived=True, attributes=False):
            for code, name in enumerate(spans.names):
                counts[name] += int((spans.name == code).sum())
    return {name: count for name, count in counts.most_common() if count}


def _print_details(shown: dict[str, Any], notes: list[Note]) -> None:
    screen = console()
    table = Table("key", Column("value", overflow="fold"), box=None, pad_edge=False, show_header=False)
    for key, value in shown.items():
        if key in ("settings", "marks", "devices") or value in (None, [], {}, ""):
            continue
        table.add_row(key, shlex.join(value) if key == "command" else _text(value))
    screen.print(table)
    for title, lines in (
        (
            "Devices",
            [", ".join(f"{k}={v}" for k, v in device.items()) for device in shown.get("devices", [])],
        ),
        ("Settings", [f"{key} = {_text(value)}" for key, value in shown.get("settings", {}).items()]),
        ("Notes", [f"{_since(shown.get('created'), note)}  {note.text}" for note in notes]),
    ):
        if lines:
            screen.print(f"\n{title}", *(f"  {line}" for line in lines), sep="\n")


def _text(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return "not set" if value is None else str(value).lower()
    if isinstance(value, dict):
        return ", ".join(f"{k} {v:,}" if isinstance(v, int) else f"{k} {v}" for k, v in value.items())
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return str(value)


def _since(created: str | None, note: Note) -> str:
    begin = _parsed(created)
    return f"{note.time_ns / 1e9 - begin.timestamp():+10.3f} s" if begin else f"{note.time_ns} ns"


# -- removing, moving -------------------------------------------------------------------------


@command.command()
def rm(
    sessions: Annotated[list[str], typer.Argument(metavar="SESSION", help="Ids or their beginnings.")],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    config: options.ConfigFile = None,
) -> None:
    """Remove sessions for good; one that is being recorded stays.

    \b
    Example:
      benchlab-otel sessions rm 20261001T12 20261002
    """
    settings = options.settings(config)
    found = list({s.path: s for s in (_recorded(name, settings) for name in sessions)}.values())
    busy = [s.path.name for s in found if s.running]
    if busy:
        raise UserError(f"{', '.join(busy)}: being recorded; end that first")
    names = ", ".join(s.path.name for s in found)
    if not yes:
        typer.confirm(f"Remove {names} ({_size(sum(size_of(s.path) for s in found))})?", abort=True)
    for s in found:
        if not retention.remove(s.path):
            raise Failure(f"{s.path.name}: being recorded by now; it stays")
        print(f"removed {s.path.name}")


@command.command("export")
def export_(
    session: Reference = "latest",
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Where to (default: ID.benchlab.tar here).")
    ] = None,
    config: options.ConfigFile = None,
) -> None:
    """Write a session into one checksummed file, for elsewhere.

    \b
    Example:
      benchlab-otel sessions export latest --out /mnt/backup/monday.tar
    """
    found = _recorded(session, options.settings(config))
    if found.running:
        raise UserError(f"{found.path.name}: being recorded; end that first")
    session_id = found.manifest.id if found.manifest else found.path.name
    path = out or Path(f"{session_id}.benchlab.tar")
    try:
        with replacing(path) as file:
            size = bundle.pack(found.path, session_id, file)
    except bundle.BundleError as error:
        raise UserError(str(error)) from None
    print(f"{path}: {session_id}, {_size(size)}")


@command.command("import")
def import_(
    files: Annotated[list[Path], typer.Argument(metavar="FILE", help="What `sessions export` wrote.")],
    config: options.ConfigFile = None,
) -> None:
    """Take in exported sessions, each whole under its own id.

    \b
    Example:
      benchlab-otel sessions import monday.tar && benchlab-otel report 20261001T12
    """
    settings = options.settings(config)
    for path in files:
        try:
            min_free = int(settings.session.min_free_mib * (1 << 20))
            session_id = bundle.unpack(path, settings.session.data_dir, min_free)
        except bundle.BundleError as error:
            raise UserError(str(error)) from None
        except FileExistsError as error:
            raise UserError(f"{path}: {error.filename}: {error.strerror}") from None
        print(f"session {session_id} in {settings.session.data_dir / 'sessions' / session_id}")


# -- retention --------------------------------------------------------------------------------


@command.command()
def prune(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
    raw_days: Annotated[
        float | None, typer.Option(metavar="DAYS", min=0, help="Instead of retention.raw_days.")
    ] = None,
    aligned_days: Annotated[
        float | None, typer.Option(metavar="DAYS", min=0, help="Instead of retention.aligned_days.")
    ] = None,
    max_gib: Annotated[
        float | None, typer.Option(metavar="GIB", min=0, help="Instead of retention.max_gib (0: no limit).")
    ] = None,
    as_json: AsJson = False,
    config: options.ConfigFile = None,
) -> None:
    """Remove what retention does not keep; never what is being recorded.

    Without its raw data (samples, metrics) a session keeps frames, stages, energy of each frame and notes.

    \b
    Examples:
      benchlab-otel sessions prune --dry-run
      benchlab-otel sessions prune --raw-days 1 --max-gib 50
    """
    settings = options.settings(config)
    kept = settings.retention
    limit = kept.max_gib if max_gib is None else max_gib
    policy = Policy(
        raw_days=kept.raw_days if raw_days is None else raw_days,
        aligned_days=kept.aligned_days if aligned_days is None else aligned_days,
        max_bytes=int(limit * (1 << 30)) if limit else None,
    )
    faults: list[Fault] = []
    removals = retention.plan(stored(settings.session.data_dir), policy)
    before = sum(size_of(removal.path) for removal in removals)
    done = [removal for removal in removals if dry_run or _remove(removal, faults)]
    after = sum(size_of(removal.path) for removal in removals if removal.path.is_dir())
    if as_json:
        _print_json([{"id": r.path.name, "what": r.what, "reason": r.reason, "bytes": r.size} for r in done])
    else:
        for removal in done:
            what = "raw data of " if removal.what == "raw" else ""
            print(f"{'would remove' if dry_run else 'removed'} {what}{removal.path.name}: {removal.reason}")
        freed = sum(r.size for r in removals) if dry_run else before - after
        print(f"{'up to ' if dry_run else ''}{_size(freed)} {'would be freed' if dry_run else 'freed'}")
    if faults:
        raise Failure("\n".join(map(str, faults)))


def _remove(removal: retention.Removal, faults: list[Fault]) -> bool:
    """Whether it is gone: not if it is being recorded by now, nor raw data that can't be told apart."""
    if removal.what == "all":
        return retention.remove(removal.path)
    problems: list[Fault] = []
    held = retention.remove_raw(removal.path, problems)
    damage = [fault for fault in problems if not fault.at_end]
    faults += damage
    return held and not damage
