"""`plot SESSION --out FILE`: power, stages and frames' joules over a stretch of time."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from benchlab_otel.cli import options
from benchlab_otel.cli.errors import UserError, needing
from benchlab_otel.cli.finding import Reference, find
from benchlab_otel.cli.loading import load


def command(
    session: Reference = "latest",
    out: Annotated[Path, typer.Option(metavar="FILE", help="A .png or .svg file.")] = Path("plot.png"),
    begin: Annotated[
        float | None,
        typer.Option("--from", metavar="SECONDS", help="From the first frame on (default: the middle)."),
    ] = None,
    end: Annotated[
        float | None, typer.Option("--to", metavar="SECONDS", help="Default: a second after --from.")
    ] = None,
    domain: Annotated[
        str | None, typer.Option(metavar="NAME", help="What of the machine (default: system).")
    ] = None,
    config: options.ConfigFile = None,
) -> None:
    """Draw what the meter read, what it was attributed to, the stages, and each frame's joules.

    \b
    Examples:
      benchlab-otel plot latest --out power.png
      benchlab-otel plot latest --from 12 --to 12.5 --domain gpu --out gpu.svg
    """
    with needing("matplotlib>=3.10"):
        from benchlab_otel.export import plot
    if out.suffix not in plot.SUFFIXES:
        raise UserError(f"--out {out}: expected a name that ends with {' or '.join(plot.SUFFIXES)}")
    recording, _ = load(find(session, options.settings(config).session.data_dir))
    try:
        data = plot.stretch(recording, domain, begin, end)
    except plot.NothingToDraw as error:
        raise UserError(str(error)) from None
    plot.write(out, data)
    print(f"{out}  {data.title}, {data.begin:g} to {data.end:g} s")
