"""`record -- CMD`: any command with sources on; ends with the report."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

from benchlab_otel.cli import options, report
from benchlab_otel.cli.embedded import Embedded
from benchlab_otel.cli.errors import UserError
from benchlab_otel.cli.options import set_up_logging
from benchlab_otel.probe.environment import environment, follow

context_settings = {"ignore_unknown_options": True}


def command(
    argument: Annotated[list[str], typer.Argument(metavar="CMD", help="The command, after --.")],
    source: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Only these sources (default: sources.enabled).")
    ] = None,
    name: Annotated[
        str | None, typer.Option(metavar="PIPELINE", help="The pipeline's name (default: the command's).")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The report as JSON.")] = False,
    config: options.ConfigFile = None,
) -> None:
    """Run a command unchanged and record it: OTLP by environment, GStreamer by its latency tracer.

    \b
    Examples:
      benchlab-otel record -- gst-launch-1.0 videotestsrc num-buffers=9 ! fakesink
      benchlab-otel record --name cam0 -- python pipeline.py

    The exit code is the command's own.
    """
    settings = options.settings(config)
    set_up_logging()
    if shutil.which(argument[0]) is None:  # before anything is recorded
        raise UserError(f"{argument[0]}: no such command, or not executable")
    pipeline = name or Path(argument[0]).name
    with Embedded(settings, ["record", "--", *argument], source or settings.sources.enabled) as running:
        print(f"benchlab-otel: recording {running.archive.path}", file=sys.stderr)
        code = _run(argument, pipeline, running)
    report.show(running.session_id, settings, as_json=as_json)
    raise typer.Exit(code)


def _run(argument: list[str], pipeline: str, running: Embedded) -> int:
    """Runs the command to its end and takes in what its tracer logged; returns its exit code."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="benchlab-otel-")))
        fifo = folder / "gst.log"
        os.mkfifo(fifo)
        tracer = follow(fifo, pipeline, running.hub)
        stack.callback(tracer.close)
        variables = environment(running.http_endpoint, running.session_id, fifo)
        # ctrl-C reaches the command too (same terminal): it ends as it likes, and the recording with it
        stack.callback(signal.signal, signal.SIGINT, signal.signal(signal.SIGINT, lambda *_: None))
        try:
            child = subprocess.Popen(argument, env={**os.environ, **variables})
        except OSError as error:
            raise UserError(f"{argument[0]}: {error.strerror}") from None
        for number, before in options.on_termination(child.terminate):
            stack.callback(signal.signal, number, before)
        code = child.wait()
    return 128 - code if code < 0 else code
