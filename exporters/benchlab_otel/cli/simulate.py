"""`simulate`: the demo's emulated meter and workload for a Collector, as the stack's demo runs them."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from typing import Annotated

import typer

from benchlab_otel import Probe, sources
from benchlab_otel.cli import options
from benchlab_otel.cli.demo import FPS, LOAD, METER, PIPELINE
from benchlab_otel.cli.errors import Failure, UserError
from benchlab_otel.cli.options import set_up_logging
from benchlab_otel.config import Settings
from benchlab_otel.otlp.client import OtlpClient
from benchlab_otel.simulate.device import Emulator
from benchlab_otel.simulate.truth import Truth
from benchlab_otel.simulate.workload import run_numpy, telling

SEED = 1  # the same device each time, so the same series


def command(
    otlp: Annotated[
        str | None, typer.Option(metavar="URL", help="OTLP endpoint (default: as OTEL_EXPORTER_OTLP_* say).")
    ] = None,
    seconds: Annotated[
        float, typer.Option("--for", metavar="SECONDS", min=1, help="End after this long.")
    ] = 600.0,
    config: options.ConfigFile = None,
) -> None:
    """Send an emulated power meter and a real workload to a Collector.

    \b
    Example:
      benchlab-otel simulate --otlp http://localhost:4318 --for 60
    """
    set_up_logging()
    settings = options.settings(config)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        client = OtlpClient(otlp)
    except ValueError as error:
        raise UserError(str(error)) from None
    truth = Truth(LOAD)
    with closing(client), _metered(truth, settings, client), closing(Probe(PIPELINE, sink=client)) as probe:
        print(f"{PIPELINE}: {FPS} frames a second beside an emulated meter; end with ctrl-C", flush=True)
        try:
            run_numpy(probe.frame, telling(truth.activity), round(seconds * FPS), FPS, lambda _: None)
        except KeyboardInterrupt:
            print()
    if client.lost:
        raise Failure(options.lost_words(client.lost))


@contextmanager
def _metered(truth: Truth, settings: Settings, client: OtlpClient) -> Iterator[None]:
    """An emulated meter that sees the truth, read into the client."""
    with ExitStack() as stack:
        emulator = stack.enter_context(Emulator(truth, meter=METER, seed=SEED))
        meter = replace(settings.sources.benchlab, ports=(str(emulator.path),), lag_ms=None, window_ms=None)
        chosen = replace(settings.sources, benchlab=meter)
        running = sources.start(["benchlab"], chosen, client, os.urandom(8).hex())
        stack.callback(running.stop)
        yield
