"""`convert SESSION --to FORMAT`: captures for other programs."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from benchlab_otel.cli import options
from benchlab_otel.cli.errors import UserError
from benchlab_otel.cli.session import find, load_energies
from benchlab_otel.export import capframex
from benchlab_otel.export.capframex_statistics import statistics
from benchlab_otel.model import Run

Writer = Callable[[Path, Sequence[Run], capframex.Options], None]
FORMATS: dict[str, tuple[str, Writer]] = {  # name: (suffix, writer of the runs of one pipeline)
    "capframex-json": (".json", capframex.write_json),
    "capframex-csv": (".csv", capframex.write_csv),
}
Format = StrEnum("Format", {name: name for name in FORMATS})  # type: ignore[misc]  # made from the table


def command(
    session: Annotated[
        list[str], typer.Argument(metavar="SESSION...", help="Sessions; each becomes a run of the capture.")
    ],
    to: Annotated[Format, typer.Option("--to", help="The format.")],
    out: Annotated[
        Path, typer.Option(metavar="PATH", help="A file, or a folder that gets one file a pipeline.")
    ] = Path(),
    pair: Annotated[
        list[str] | None,
        typer.Option(metavar="FROM:TO", help="Latency between two marks; the first one is the PC latency."),
    ] = None,
    accelerator: Annotated[
        list[str] | None, typer.Option(metavar="STAGE", help="A stage that runs on a GPU or NPU.")
    ] = None,
    pipeline: Annotated[str | None, typer.Option(metavar="NAME", help="Only this pipeline.")] = None,
    config: options.ConfigFile = None,
) -> None:
    """Write what was recorded as a capture: frame times, stages, power and joules.

    \b
    Examples:
      benchlab-otel convert latest --to capframex-json
      benchlab-otel convert latest --to capframex-json --out cam0.json --pair ingress:display
    """
    settings = options.settings(config)
    runs = [run for name in session for run in load_energies(find(name, settings.session.data_dir))]
    wanted = _by_pipeline(runs, pipeline)
    suffix, write = FORMATS[to.value]
    chosen = capframex.Options(tuple(pair or ()), tuple(accelerator or ()))
    for path, group in _targets(wanted, out, suffix):
        try:
            write(path, group, chosen)
        except ValueError as error:
            raise UserError(str(error)) from None
        print(f"{path}  {_shown(group)}")


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


def _targets(groups: dict[str, list[Run]], out: Path, suffix: str) -> list[tuple[Path, list[Run]]]:
    """Which file each pipeline goes to."""
    if out.suffix == suffix and not out.is_dir():
        if len(groups) > 1:
            raise UserError(
                f"{len(groups)} pipelines do not go into one file: name a folder with --out, or one of"
                f" {', '.join(groups)} with --pipeline"
            )
        return [(out, next(iter(groups.values())))]
    if out.suffix and not out.is_dir():
        raise UserError(f"--out {out}: expected a name that ends with {suffix}, or a folder")
    out.mkdir(parents=True, exist_ok=True)
    unsafe = re.compile(r"[^\w.-]")
    return [(out / f"{unsafe.sub('_', name)}{suffix}", runs) for name, runs in groups.items()]


def _shown(runs: Sequence[Run]) -> str:
    """The figures that CapFrameX will show, to recognise the capture by."""
    times = np.concatenate([np.diff(run.frames.end) / 1e6 for run in runs])
    times = times[times > 0]  # frames that end together have no rate
    if not len(times):
        return f"{len(runs)} run(s) whose frames all end together"
    figures = statistics(times)
    return (
        f"{len(times):,} frame times; CapFrameX shows {figures.average:.1f} fps on average,"
        f" P1 {figures.p1:.1f}, 1 % low {figures.low1_average:.1f}"
    )
