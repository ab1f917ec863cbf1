"""`run`: the embedded session, until ctrl-C."""

from __future__ import annotations

import signal
import sys
import threading
from typing import Annotated

import typer

from benchlab_otel.cli import options
from benchlab_otel.cli.embedded import Embedded, set_up_logging


def command(
    source: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Only these sources (default: sources.enabled).")
    ] = None,
    for_seconds: Annotated[
        float | None, typer.Option("--for", metavar="SECONDS", help="End after this long.")
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
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    with Embedded(settings, sys.argv, source or settings.sources.enabled) as running:
        print(f"session   {running.archive.path}")
        print(f"OTLP      {running.grpc_endpoint} (gRPC), {running.http_endpoint} (HTTP)")
        print(f"metrics   {running.metrics_url}")
        print("Recording; end with ctrl-C.", flush=True)
        stop.wait(for_seconds)
        print("Finishing.", flush=True)
    print(f"Now: benchlab-otel report {running.session_id}")
