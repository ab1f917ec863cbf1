"""The aligner as a service of the stack: a Collector's traces in, energy spans and metrics back out."""

from __future__ import annotations

import threading
from contextlib import ExitStack

from benchlab_otel.cli.clock_watch import ClockWatch
from benchlab_otel.cli.errors import Failure, UserError
from benchlab_otel.cli.live import LiveAligner, own_resource
from benchlab_otel.cli.options import host_port, lost_words, set_up_logging, told_to_end
from benchlab_otel.config import Settings
from benchlab_otel.hub.grpc import GrpcServer
from benchlab_otel.hub.http import HttpServer, otlp_app
from benchlab_otel.hub.hub import Hub
from benchlab_otel.hub.metrics import MetricStore, metrics_app
from benchlab_otel.otlp.client import OtlpClient
from benchlab_otel.otlp.encode_metrics import Told
from benchlab_otel.timebase import anchor

PUBLISH_SECONDS = 1.0


class NoArchive:
    """The hub's archive where the Collector writes it."""

    def __init__(self) -> None:
        self.error: str | None = None
        self.lost: dict[str, int] = {}

    def traces(self, body: bytes) -> None:
        """Nothing to do."""

    def metrics(self, body: bytes) -> None:
        """Nothing to do."""


def serve(settings: Settings) -> None:
    """Aligns what arrives until ctrl-C; results go to OTEL_EXPORTER_OTLP_ENDPOINT.

    Raises UserError for an endpoint that makes no sense, Failure where a port can't be taken or
    results could not be delivered.
    """
    set_up_logging()
    stop = told_to_end()
    client = _client()
    try:
        _align_until(stop, settings, client)
    finally:
        client.close()
    if client.lost:
        raise Failure(lost_words(client.lost))


def _client() -> OtlpClient:
    try:
        return OtlpClient()
    except ValueError as error:
        raise UserError(str(error)) from None


def _align_until(stop: threading.Event, settings: Settings, client: OtlpClient) -> None:
    base = anchor()
    resource = own_resource("", base)
    live = LiveAligner(settings, resource, base, client.traces)
    store = MetricStore()
    hub = Hub(NoArchive(), live.take, store, resource, base)
    told = Told()

    def publish() -> None:
        points = [*hub.points(), *live.points(base.now_ns())]
        for body in told.requests(live.resource(), points, base.now_ns()):
            client.metrics(body)

    def finish() -> None:
        hub.close()
        live.close()
        publish()

    def both(body: bytes) -> None:
        """To the aligner, and to the Collector so that its archive can be aligned again."""
        hub.traces(body)
        client.traces(body)

    def refresh() -> None:
        hub.publish()
        live.show(store.ingest)

    limit = int(settings.hub.max_request_mib * (1 << 20))
    with ExitStack() as stack:
        stack.callback(finish)
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
            publish()
