"""The aligner as a service of the stack: a Collector's traces in, energy spans and metrics back out."""

from __future__ import annotations

import signal
import threading
from contextlib import ExitStack

from benchlab_otel.cli.embedded import ClockWatch, LiveAligner, host_port, own_resource, set_up_logging
from benchlab_otel.cli.errors import Failure
from benchlab_otel.config import Settings
from benchlab_otel.hub.grpc import GrpcServer
from benchlab_otel.hub.http import HttpServer, otlp_app
from benchlab_otel.hub.hub import Hub
from benchlab_otel.hub.metrics import MetricStore, metrics_app
from benchlab_otel.otlp.client import OtlpClient
from benchlab_otel.timebase import anchor

PUBLISH_SECONDS = 1.0


class NoArchive:
    """The hub's archive where the Collector writes it."""

    error: str | None = None
    lost: dict[str, int] = {}  # noqa: RUF012 - always empty

    def traces(self, body: bytes) -> None:
        """Nothing to do."""

    def metrics(self, body: bytes) -> None:
        """Nothing to do."""


def serve(settings: Settings) -> None:
    """Aligns what arrives until ctrl-C; results go to OTEL_EXPORTER_OTLP_ENDPOINT.

    Raises Failure where a port can't be taken.
    """
    set_up_logging()
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    base = anchor()
    resource = own_resource("", base)
    with ExitStack() as stack:
        client = OtlpClient()
        stack.callback(client.close)
        live = LiveAligner(settings, resource, base, client.traces)
        store = MetricStore()
        hub = Hub(NoArchive(), live.take, store, resource, base)

        def finish() -> None:
            hub.close()
            live.close()
            client.metrics(live.metrics(base.now_ns()))

        stack.callback(finish)

        def both(body: bytes) -> None:
            """To the aligner, and to the Collector so that its archive can be aligned again."""
            hub.traces(body)
            client.traces(body)

        def refresh() -> None:
            hub.publish()
            store.ingest(live.metrics(base.now_ns()))

        limit = int(settings.hub.max_request_mib * (1 << 20))
        try:
            grpc = GrpcServer(hub, *host_port(settings.hub.grpc), setting="hub.grpc", max_bytes=limit)
            stack.callback(grpc.close)
            http = HttpServer(otlp_app(hub, limit), *host_port(settings.hub.http), setting="hub.http")
            stack.callback(http.close)
            page = HttpServer(
                metrics_app(store, refresh), *host_port(settings.hub.metrics), setting="hub.metrics"
            )
            stack.callback(page.close)
        except OSError as error:
            raise Failure(str(error.strerror or error)) from None
        watch = ClockWatch(base, resource, settings, both)
        stack.callback(watch.close)
        print(f"aligner: OTLP on ports {grpc.port} (gRPC) and {http.port} (HTTP)", flush=True)
        while not stop.wait(PUBLISH_SECONDS):
            client.metrics(live.metrics(base.now_ns()))
