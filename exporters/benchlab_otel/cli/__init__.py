"""The command line. Each command is one module with `command`, imported only when it is used."""

from __future__ import annotations

import os
import sys
from errno import EDQUOT, ENOSPC
from importlib import import_module
from types import TracebackType
from typing import Annotated

import typer

from benchlab_otel import __version__
from benchlab_otel.cli.errors import Failure, UserError, plain

COMMANDS = {  # name: (module, help in one line)
    "run": ("run", "Sources, hub, aligner, archive and /metrics in one process."),
    "record": ("record", "Record any command with sources on; ends with the report."),
    "report": ("report", "Latency and joules of a session, as a table or as JSON."),
    "export": ("export", "One or more sources alone, to OTLP and/or a /metrics port."),
    "align": ("align", "The aligner as a service, or over archive files (again)."),
    "compare": ("compare", "What changed between sessions beyond chance; a gate for CI."),
    "convert": ("convert", "Sessions for CapFrameX, Perfetto, Parquet, CSV and others."),
    "watch": ("watch", "Converts each session by itself as soon as it is finished."),
    "plot": ("plot", "Power, stages and frames' joules over time, as PNG or SVG."),
    "sessions": ("sessions", "What was recorded: list, show, rm, export, import, prune."),
    "note": ("note", "A note at this moment of what is being recorded."),
    "replay": ("replay", "A session sent once more, so that dashboards show an old run."),
    "import": ("import_", "Captures and logs of other programs, as a session."),
    "emulate": ("emulate", "A BENCHLAB device on a pty, for trying and for tests."),
    "devices": ("devices", "The devices and counters that can be read here."),
    "device": ("device", "A BENCHLAB's name, fans, lights and calibration."),
    "doctor": ("doctor", "What is not readable here, and the exact fix."),
    "simulate": ("simulate", "The demo's emulated meter and workload, for a Collector."),
    "demo": ("demo", "All of it in 20 s, without hardware, beside the known truth."),
    "config": ("config", "The configuration in force, and where each value comes from."),
}
EXIT_CODES = (
    "Exit codes: 0 done; 1 something failed while running; 2 wrong options, configuration or input; "
    "3 compare: a limit is exceeded; 130 ended by ctrl-C."
)
REPORT_BUGS = "Please report it with the output of the same command with --debug (benchlab-otel --debug …)."


def main() -> None:
    """Entry point of `benchlab-otel`."""
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # small matrices: threads cost more than they bring
    if "--debug" not in sys.argv:
        sys.excepthook = _unexpected
    try:
        # not the Typer object itself, which would put its own excepthook in place of ours
        typer.main.get_command(_app(_named_command(sys.argv[1:])))(prog_name="benchlab-otel")
    except (UserError, Failure) as error:
        _end(str(error), error.exit_code)
    except OSError as error:
        if error.filename is None and error.errno not in (ENOSPC, EDQUOT):
            raise
        where = "" if error.filename is None else f"{error.filename}: "  # writing has no name by itself
        _end(f"{where}{error.strerror or error}", Failure.exit_code)


def _app(chosen: str | None) -> typer.Typer:
    """The app with all commands; only the chosen one is imported, so that --help is fast."""
    app = typer.Typer(
        add_completion=False,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
        epilog=EXIT_CODES,
    )
    app.callback()(_global_options)
    for name, (module, summary) in COMMANDS.items():
        loaded = import_module(f"{__name__}.{module}") if name == chosen else None
        command = loaded.command if loaded else _not_loaded
        if isinstance(command, typer.Typer):
            app.add_typer(command, name=name)
            continue
        settings = getattr(loaded, "context_settings", None)
        app.command(name, help=None if loaded else summary, context_settings=settings)(command)
    return app


def _named_command(arguments: list[str]) -> str | None:
    """The first argument that is no option; global options take no values."""
    name = next((a for a in arguments if not a.startswith("-")), None)
    return name if name in COMMANDS else None


def _not_loaded() -> None:
    """Stands in --help for a command that was not asked for."""


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"benchlab-otel {__version__}")
        raise typer.Exit


def _global_options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
    _debug: Annotated[
        bool, typer.Option("--debug", help="Show the stack trace of an unexpected error.")
    ] = False,
) -> None:
    """Every frame of a pipeline gets its latency and its joules.

    Try it without hardware:  benchlab-otel demo
    """


def _end(message: str, code: int) -> None:
    print(f"benchlab-otel: {plain(message)}", file=sys.stderr)
    sys.exit(code)


def _unexpected(kind: type[BaseException], error: BaseException, _trace: TracebackType | None) -> None:
    """The hook for errors that nobody foresaw: a line that says what to do, no stack trace."""
    print(f"benchlab-otel: unexpected {kind.__name__}: {error}\n{REPORT_BUGS}", file=sys.stderr)
