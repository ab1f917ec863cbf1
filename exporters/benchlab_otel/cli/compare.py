"""`compare A B [C …]`: what changed between sessions, and whether by more than chance."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import typer

from benchlab_otel.cli import options
from benchlab_otel.cli.errors import UserError, needing
from benchlab_otel.cli.finding import find
from benchlab_otel.cli.loading import load
from benchlab_otel.cli.terminal import console
from benchlab_otel.config import Settings
from benchlab_otel.export.compare import Comparison, Missing, compare, missing
from benchlab_otel.export.compare_text import markdown, render
from benchlab_otel.export.gate import Judged, judge, parse
from benchlab_otel.export.recording import Recording
from benchlab_otel.export.report import dump_json
from benchlab_otel.export.tables import name_of

SCHEMA = 1  # of the JSON; a new number where a field's name or meaning changes
EXCEEDED, UNKNOWN = 3, 1  # exit codes


def command(
    session: Annotated[
        list[str],
        typer.Argument(metavar="SESSION", help="Two or more; the others are compared with the first."),
    ],
    fail_if: Annotated[
        list[str] | None,
        typer.Option(metavar="LIMIT", help="Exit code 3 beyond it, such as 'energy.frame > +5%'."),
    ] = None,
    pair: Annotated[
        list[str] | None, typer.Option(metavar="FROM:TO", help="Also the latency between two marks.")
    ] = None,
    pipeline: Annotated[str | None, typer.Option(metavar="NAME", help="Only this pipeline.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The same figures for scripts.")] = False,
    as_markdown: Annotated[bool, typer.Option("--markdown", help="For a pull request's comment.")] = False,
    plot: Annotated[Path | None, typer.Option(metavar="FILE", help="A picture too: .png or .svg.")] = None,
    config: options.ConfigFile = None,
) -> None:
    """What changed between sessions beyond chance: latency and joules, stage by stage.

    LIMIT is FIGURE > +NUMBER UNIT or FIGURE < -NUMBER UNIT with the unit %, s, ms, us, J, mJ, uJ, fps
    or pp (percentage points); FIGURE is a name of the table, and energy.frame short for
    energy.system.frame, latency.STAGE for latency.STAGE.mean. A limit fails only where the change is
    beyond chance. Exit codes: 3 a limit is exceeded, 1 a limit can't be told, or not for a pipeline
    of the first session, as another lacks it.

    \b
    Examples:
      benchlab-otel compare 20261001T12 latest
      benchlab-otel compare 20261001T12 latest --fail-if 'energy.frame > +5%'
      benchlab-otel compare a b c --markdown --plot change.svg
    """
    if len(session) < 2:
        raise UserError("compare needs two sessions or more: benchlab-otel compare BEFORE AFTER")
    if as_json and as_markdown:
        raise UserError("--json or --markdown, not both")
    write_plot = _plotter(plot)
    try:
        limits = [parse(text) for text in fail_if or ()]
        loaded = _loaded(session, options.settings(config))
        comparisons, left_out = compare(loaded, pair or (), pipeline), missing(loaded, pipeline)
        judged = judge(limits, comparisons)
        if write_plot and plot:
            write_plot(plot, comparisons)
    except ValueError as error:
        raise UserError(str(error)) from None
    _show(comparisons, judged, left_out, as_json, as_markdown)
    verdicts = {one.verdict for one in judged}
    if "failed" in verdicts:
        raise typer.Exit(EXCEEDED)
    gone = any(one.present == loaded[0][0] for one in left_out)
    if "can't be told" in verdicts or (limits and gone):
        raise typer.Exit(UNKNOWN)


def _loaded(references: Sequence[str], settings: Settings) -> list[tuple[str, Recording]]:
    """Each session by its name; a session that is named twice is read twice."""
    sessions = [find(reference, settings.session.data_dir) for reference in references]
    return [(name_of(session), load(session)[0]) for session in sessions]


def _plotter(plot: Path | None) -> Callable[[Path, Sequence[Comparison]], None] | None:
    """What draws the picture, where one is wanted."""
    if plot is None:
        return None
    with needing("matplotlib>=3.10"):
        from benchlab_otel.export import compare_plot
    if plot.suffix not in compare_plot.SUFFIXES:
        raise UserError(f"--plot {plot}: expected a name that ends with {' or '.join(compare_plot.SUFFIXES)}")
    return compare_plot.write


def _show(
    comparisons: Sequence[Comparison],
    judged: Sequence[Judged],
    left_out: Sequence[Missing],
    as_json: bool,
    as_markdown: bool,
) -> None:
    if as_json:
        shown = {"schema": SCHEMA, "comparisons": comparisons, "missing": left_out, "limits": judged}
        print(dump_json(shown))
    elif as_markdown:
        print(markdown(comparisons, judged, left_out), end="")
    else:
        console().print(render(comparisons, judged, left_out))
