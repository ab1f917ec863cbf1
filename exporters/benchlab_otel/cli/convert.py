"""`convert SESSION --to FORMAT`: captures and tables for other programs."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from itertools import chain, count
from pathlib import Path
from typing import Annotated, Literal

import typer

from benchlab_otel.archive.session import Session
from benchlab_otel.cli import options
from benchlab_otel.cli.errors import UserError, needing
from benchlab_otel.cli.finding import find, reading
from benchlab_otel.cli.loading import load_energies
from benchlab_otel.export import capframex, capframex_csv
from benchlab_otel.export.capframex_columns import NO_OPTIONS, Options
from benchlab_otel.export.capframex_statistics import shown
from benchlab_otel.export.csv import write_csv
from benchlab_otel.export.otlp_json import write_otlp_json
from benchlab_otel.export.output import folder_at
from benchlab_otel.export.perfetto import write_perfetto
from benchlab_otel.export.stream import stream
from benchlab_otel.export.tables import Block, name_of, table_blocks
from benchlab_otel.model import Run

Format = Literal[
    "capframex-json", "capframex-csv", "presentmon-csv", "parquet", "csv", "perfetto", "otlp-json"
]  # those of CAPTURES and WHOLE
Writer = Callable[[Path, Sequence[Run], Options], None]
CAPTURES: dict[Format, tuple[str, Writer]] = {  # name: (suffix, writer of the runs of one pipeline)
    "capframex-json": (".json", capframex.write_json),
    "capframex-csv": (".csv", capframex_csv.write_csv),
    "presentmon-csv": (".presentmon.csv", capframex_csv.write_presentmon),
}

Pairs = Annotated[
    list[str] | None,
    typer.Option(
        "--pair", metavar="FROM:TO", help="Latency between two marks; the first one is the PC latency."
    ),
]
Accelerators = Annotated[
    list[str] | None,
    typer.Option("--accelerator", metavar="STAGE", help="A stage that runs on a GPU or NPU."),
]


def command(
    session: Annotated[
        list[str], typer.Argument(metavar="SESSION", help="Each becomes a run of the capture.")
    ],
    to: Annotated[Format, typer.Option("--to", metavar="FORMAT", help="One of those above.")],
    out: Annotated[
        Path | None, typer.Option(metavar="PATH", help="A file, or a folder; default: below this one.")
    ] = None,
    pair: Pairs = None,
    accelerator: Accelerators = None,
    pipeline: Annotated[str | None, typer.Option(metavar="NAME", help="Only this pipeline.")] = None,
    recorded: Annotated[
        bool,
        typer.Option("--recorded", help="Joules as they were recorded: not aligned again, so much faster."),
    ] = False,
    config: options.ConfigFile = None,
) -> None:
    """Write what was recorded in another format: frame times, stages, power and joules.

    \b
    capframex-json  for CapFrameX: frame times, latencies, stages and power
    capframex-csv   for CapFrameX 1.8: frame times and one latency
    presentmon-csv  frame times, as PresentMon 1.x writes them
    parquet, csv    tidy tables: frames, stages, samples, energy
    perfetto        for ui.perfetto.dev: stages as slices, power as counters
    otlp-json       the requests as they came, one line each

    \b
    Examples:
      benchlab-otel convert latest --to capframex-json
      benchlab-otel convert latest --to capframex-json --pair ingress:display
      benchlab-otel convert latest --to parquet --out tables --recorded
    """
    data_dir = options.settings(config).session.data_dir
    sessions = [find(name, data_dir) for name in session]
    if recorded:
        sessions = [_as_recorded(session) for session in sessions]
    for line in convert(sessions, to, out, Options(tuple(pair or ()), tuple(accelerator or ())), pipeline):
        print(line)


def convert(
    sessions: Sequence[Session],
    to: Format,
    out: Path | None = None,
    chosen: Options = NO_OPTIONS,
    pipeline: str | None = None,
    prefix: str = "",
) -> Iterator[str]:
    """Writes the sessions in the format `to` and tells of each file in a line.

    Captures in a folder are named after their pipeline, with `prefix` before it. Raises UserError for
    what can't be converted so, OSError for the disk.
    """
    try:
        if to in CAPTURES:
            yield from _captures(sessions, to, out or Path(), chosen, pipeline, prefix)
            return
        check(to, chosen)
        yield WHOLE[to](sessions, out, pipeline)
    except ValueError as error:
        raise UserError(str(error)) from None


def _as_recorded(session: Session) -> Session:
    if not session.energy:
        raise UserError(f"{session.path}: no energy.otlp in it; without --recorded its frames are aligned")
    return replace(session, recorded=True)


def check(to: Format, chosen: Options) -> None:
    """Raises UserError where the format has no use for the options."""
    if to not in CAPTURES and chosen != NO_OPTIONS:
        raise UserError(f"--pair and --accelerator are for {', '.join(CAPTURES)}; {to} has every stage")


# -- captures, one a pipeline -----------------------------------------------------------------


def _captures(
    sessions: Sequence[Session],
    to: Format,
    out: Path,
    chosen: Options,
    pipeline: str | None,
    prefix: str,
) -> Iterator[str]:
    """Writes a capture for each pipeline; one that can't be written keeps no other from it."""
    runs = [run for session in sessions for run in load_energies(session)]
    suffix, write = CAPTURES[to]
    problems = []
    targets = _targets(_by_pipeline(runs, pipeline), out, suffix, prefix)
    with nullcontext() if targets[0][0] == out else folder_at(out):
        for path, group in targets:
            try:
                write(path, group, chosen)
            except ValueError as error:
                problems.append(str(error))
            else:
                yield f"{path}  {shown(group)}"
        if problems:
            raise UserError("; ".join(problems))


def _by_pipeline(runs: Sequence[Run], only: str | None) -> dict[str, list[Run]]:
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(run.frames.pipeline, []).append(run)
    if not groups:
        raise UserError("no frame in it: no root span has the attribute pipeline.name")
    if only is None:
        return groups
    if only not in groups:
        raise UserError(f"no pipeline {only!r} in it; there is {', '.join(groups)}")
    return {only: groups[only]}


def _targets(
    groups: dict[str, list[Run]], out: Path, suffix: str, prefix: str
) -> list[tuple[Path, list[Run]]]:
    """Which file each pipeline goes to."""
    ending = Path(f"x{suffix}").suffix
    if out.suffix == ending and not out.is_dir():
        if len(groups) > 1:
            raise UserError(
                f"{len(groups)} pipelines do not go into one file: name a folder with --out, or one of"
                f" {', '.join(groups)} with --pipeline"
            )
        return [(out, next(iter(groups.values())))]
    if out.suffix and not out.is_dir():
        raise UserError(f"--out {out}: expected a name that ends with {ending}, or a folder")
    names = _file_names(groups)
    return [
        (out / f"{prefix}{name}{suffix}", runs) for name, runs in zip(names, groups.values(), strict=True)
    ]


def _file_names(pipelines: Iterable[str]) -> list[str]:
    """A name for the file of each pipeline: below the folder, not hidden, no two alike on any file system,
    and short enough for all of them with a session's id before it."""
    names: list[str] = []
    taken: set[str] = set()
    for pipeline in pipelines:
        plain = re.sub(r"[^\w.-]", "_", pipeline).lstrip(".") or "_"
        stem = plain.encode()[:_LONGEST_NAME].decode(errors="ignore")
        further = (f"{stem}-{number}" for number in count(2))
        names.append(next(name for name in chain([stem], further) if name.casefold() not in taken))
        taken.add(names[-1].casefold())
    return names


_LONGEST_NAME = 120  # bytes of 255


# -- whole sessions ---------------------------------------------------------------------------


def _parquet(sessions: Sequence[Session], out: Path | None, pipeline: str | None) -> str:
    with needing("pyarrow>=20"):
        from benchlab_otel.export.parquet import write_parquet
    return _tables(write_parquet, "parquet", sessions, out, pipeline)


def _csv(sessions: Sequence[Session], out: Path | None, pipeline: str | None) -> str:
    return _tables(write_csv, "csv", sessions, out, pipeline)


def _tables(
    write: Callable[[Path, Iterator[tuple[str, Block]]], dict[str, int]],
    to: str,
    sessions: Sequence[Session],
    out: Path | None,
    pipeline: str | None,
) -> str:
    folder = out or Path(f"{name_of(sessions[0])}.{to}")
    with reading(sessions) as (faults, advance):
        rows = write(folder, table_blocks(sessions, faults, advance, pipeline))
    return f"{folder}  " + ", ".join(f"{n:,} {table}" for table, n in rows.items())


def _perfetto(sessions: Sequence[Session], out: Path | None, pipeline: str | None) -> str:
    path = Path(f"{name_of(sessions[0])}.pftrace")
    if out is not None:
        path = out / path if out.is_dir() else out
    with reading(sessions) as (faults, advance):
        parts = chain.from_iterable(stream(session, faults, advance, pipeline) for session in sessions)
        slices = write_perfetto(path, parts)
    return f"{path}  {slices:,} slices"


def _otlp_json(sessions: Sequence[Session], out: Path | None, pipeline: str | None) -> str:
    if len(sessions) > 1 or pipeline is not None:
        raise UserError("otlp-json writes one session's requests as they came: name one, without --pipeline")
    folder = out or Path(f"{name_of(sessions[0])}.otlp-json")
    with reading(sessions) as (faults, advance):
        counts = write_otlp_json(folder, sessions[0], faults, advance)
    return f"{folder}  " + ", ".join(f"{n:,} requests of {name}" for name, n in counts.items())


WHOLE: dict[Format, Callable[[Sequence[Session], Path | None, str | None], str]] = {
    "parquet": _parquet,
    "csv": _csv,
    "perfetto": _perfetto,
    "otlp-json": _otlp_json,
}
