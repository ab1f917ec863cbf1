"""`export SOURCE …`: the exporter of one or more sources alone."""

from __future__ import annotations

import os
from contextlib import ExitStack
from typing import Annotated

import typer

from benchlab_otel import sources
from benchlab_otel.cli import options
from benchlab_otel.cli.errors import Failure, UserError
from benchlab_otel.cli.options import host_port, set_up_logging
from benchlab_otel.hub.http import HttpServer
from benchlab_otel.hub.metrics import MetricStore, metrics_app
from benchlab_otel.otlp.client import OtlpClient

_ENDPOINTS = ("", "TRACES_", "METRICS_")


class Outputs:
    """A sink: what the sources give goes to the OTLP client and the metrics page, where they are."""

    def __init__(self, client: OtlpClient | None, store: MetricStore | None) -> None:
        self._client = client
        self._store = store

    def traces(self, body: bytes) -> None:
        """Sends one ExportTraceServiceRequest."""
        if self._client:
            self._client.traces(body)

    def metrics(self, body: bytes) -> None:
        """Sends one ExportMetricsServiceRequest and shows it."""
        if self._client:
            self._client.metrics(body)
        if self._store:
            self._store.ingest(body)


def command(
    source: Annotated[
        list[str], typer.Argument(metavar="SOURCE", help=f"Any of {', '.join(sources.NAMES)}.")
    ],
    otlp: Annotated[
        str | None,
        typer.Option(
            metavar="URL", help="OTLP endpoint (default: as OTEL_EXPORTER_OTLP_* say, else localhost)."
        ),
    ] = None,
    metrics: Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT", help="Show /metrics here; OTLP then only if it is asked for."),
    ] = None,
    session: Annotated[
        str | None, typer.Option(metavar="ID", help="session.id (default: a random one).")
    ] = None,
    for_seconds: Annotated[
        float | None, typer.Option("--for", metavar="SECONDS", min=0, max=1e9, help="End after this long.")
    ] = None,
    config: options.ConfigFile = None,
) -> None:
    """Read sources and send samples and metrics by OTLP, and/or show /metrics, until ctrl-C.

    \b
    Examples:
      benchlab-otel export benchlab rapl --otlp http://localhost:4318
      benchlab-otel export host --metrics 127.0.0.1:9110
    """
    settings = options.settings(config)
    set_up_logging()
    stop = options.told_to_end()
    by_environment = any(os.environ.get(f"OTEL_EXPORTER_OTLP_{which}ENDPOINT") for which in _ENDPOINTS)
    with ExitStack() as closing:
        client = _client(otlp) if otlp or by_environment or not metrics else None
        if client:
            closing.callback(client.close)
        store = MetricStore() if metrics else None
        if store and metrics:
            page = _page(store, metrics)
            closing.callback(page.close)
            print(f"metrics   http://{host_port(metrics)[0]}:{page.port}/metrics", flush=True)
        try:
            session_id = session or os.urandom(8).hex()
            running = sources.start(source, settings.sources, Outputs(client, store), session_id)
        except ValueError as error:
            raise UserError(str(error)) from None
        closing.callback(running.stop)
        print(f"Exporting {', '.join(source)}; end with ctrl-C.", flush=True)
        stop.wait(for_seconds)
    for health in running.health():
        failed = f", {health.failures.total()} failed" if health.failures else ""
        print(
            f"{health.source}: {health.readings} readings{failed}"
            + (health.message and f": {health.message}")
        )
    if client and client.lost:
        raise Failure(options.lost_words(client.lost))


def _client(endpoint: str | None) -> OtlpClient:
    try:
        return OtlpClient(endpoint)
    except ValueError as error:
        raise UserError(str(error)) from None


def _page(store: MetricStore, address: str) -> HttpServer:
    try:
        host, port = host_port(address)
    except ValueError:
        raise UserError(f"--metrics {address}: expected HOST:PORT, such as 127.0.0.1:9110") from None
    try:
        return HttpServer(metrics_app(store), host, port, "--metrics")
    except OSError as error:
        raise Failure(str(error.strerror or error)) from None
