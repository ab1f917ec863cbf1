"""`run`: the embedded session, until ctrl-C."""

from __future__ import annotations

import sys
import threading
import time
from typing import Annotated

import typer

from benchlab_otel.cli import options
from benchlab_otel.cli.embedded import Embedded
from benchlab_otel.cli.errors import Failure
from benchlab_otel.cli.options import set_up_logging


def command(
    source: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Only these sources (default: sources.enabled).")
    ] = None,
    for_seconds: Annotated[
        float | None, typer.Option("--for", metavar="SECONDS", min=0, max=1e9, help="End after this long.")
    ] = None,
    config: options.ConfigFile = None,
) -> None:
    """Read the sources and receive OTLP on localhost until ctrl-C; every frame gets its joules.

    \b
    Examples:
      benchlab-otel run
      benchlab-otel run --source benchlab --source rapl --for 60
    """
    settings = options.settings(config)
    set_up_logging()
    stop = options.told_to_end()
    with Embedded(settings, sys.argv, source or settings.sources.enabled) as running:
        print(f"session   {running.archive.path}")
        print(f"OTLP      {running.grpc_endpoint} (gRPC), {running.http_endpoint} (HTTP)")
        print(f"metrics   {running.metrics_url}")
        print("Recording; end with ctrl-C.", flush=True)
        _wait(stop, running.archive.stopped, for_seconds)
        print("Finishing.", flush=True)
    print(f"Now: benchlab-otel report {running.session_id}")
    if running.archive.stopped.is_set():
        raise Failure(str(running.archive.error))


def _wait(stop: threading.Event, stopped: threading.Event, seconds: float | None) -> None:
    """Until somebody ends it, the time is over, or the disk is nearly full."""
    end = float("inf") if seconds is None else time.monotonic() + seconds
    while not stopped.is_set() and (left := end - time.monotonic()) > 0:
        if stop.wait(min(left, 0.5)):
            return
