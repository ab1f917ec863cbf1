"""`report SESSION`: latency and joules of a session."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import typer

from benchlab_otel.align.marks import UnknownMark
from benchlab_otel.cli import options
from benchlab_otel.cli.errors import UserError
from benchlab_otel.cli.finding import Reference, find
from benchlab_otel.cli.loading import load, load_energies
from benchlab_otel.cli.terminal import console
from benchlab_otel.config import Settings
from benchlab_otel.export import capframex_report, explain
from benchlab_otel.export.capframex_report import make_capframex_report
from benchlab_otel.export.recording import of_run
from benchlab_otel.export.report import SCHEMA, dump_json, make_report, to_json
from benchlab_otel.export.report_text import render


def command(
    session: Reference = "latest",
    pair: Annotated[
        list[str] | None, typer.Option(metavar="FROM:TO", help="Also the latency between two marks.")
    ] = None,
    frame: Annotated[
        str | None,
        typer.Option("--explain", metavar="FRAME", help="One frame, by its number or its trace id's begin."),
    ] = None,
    as_capframex: Annotated[
        bool, typer.Option("--capframex", help="The figures that CapFrameX will show of the capture.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="The same figures for scripts.")] = False,
    config: options.ConfigFile = None,
) -> None:
    """Latency, watts and joules by stage with their uncertainty, drops, and what could not be resolved.

    \b
    Examples:
      benchlab-otel report
      benchlab-otel report 20261001T12 --pair ingress:display
      benchlab-otel report latest --json | jq .runs[0].energy
      benchlab-otel report latest --explain 512
      benchlab-otel report latest --capframex
    """
    if frame is not None:
        show_frame(session, options.settings(config), frame, as_json)
        return
    if as_capframex:
        show_capframex(session, options.settings(config), as_json)
        return
    show(session, options.settings(config), pair or (), as_json)


def show_capframex(session: str, settings: Settings, as_json: bool) -> None:
    """Prints what CapFrameX will show. Raises UserError where there is no such session or no frame time."""
    runs = load_energies(find(session, settings.session.data_dir))
    reports = [report for report in map(make_capframex_report, runs) if report]
    if not reports:
        raise UserError("no frame times in it: they need two frames that end one after the other")
    if as_json:
        print(dump_json({"schema": SCHEMA, "capframex": reports}))
        return
    screen = console()
    for n, report in enumerate(reports):
        screen.print(*[""] * bool(n), capframex_report.render(report), sep="\n")


def show(session: str, settings: Settings, pairs: Sequence[str] = (), as_json: bool = False) -> None:
    """Prints the report of a session. Raises UserError where there is none or a mark is unknown."""
    found = find(session, settings.session.data_dir)
    recording, faults = load(found)
    try:
        reports = [make_report(run, of_run(recording, i), pairs) for i, run in enumerate(recording.runs)]
    except (UnknownMark, ValueError) as error:
        raise UserError(str(error)) from None
    name = found.manifest.id if found.manifest else str(found.path)
    if as_json:
        print(to_json(reports, name, [str(fault) for fault in faults]))
        return
    screen = console()
    screen.print(f"Session {name}")
    if not reports:
        screen.print("No frame in it: no root span has the attribute pipeline.name.")
        if found.manifest is None:
            screen.print("Captures and logs of other programs: benchlab-otel import FILE")
    else:
        screen.print("", render(reports), sep="\n")


def show_frame(session: str, settings: Settings, name: str, as_json: bool) -> None:
    """Prints what a frame's figures came from. Raises UserError where there is no such frame."""
    recording, _ = load(find(session, settings.session.data_dir))
    try:
        found = [explain.explain(recording, i, row) for i, row in explain.find_frames(recording, name)]
    except explain.FrameNotFound as error:
        raise UserError(str(error)) from None
    if as_json:
        print(dump_json({"schema": SCHEMA, "frames": found}))
        return
    screen = console()
    for n, frame in enumerate(found):
        screen.print(*[""] * bool(n), explain.render(frame), sep="\n")
