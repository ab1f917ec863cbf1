"""Everything in one process: sources and receivers into the hub, archive, aligner and /metrics."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Self

from benchlab_otel import sources
from benchlab_otel.archive import session
from benchlab_otel.archive.manifest import settings_without_secrets
from benchlab_otel.cli.clock_watch import ClockWatch
from benchlab_otel.cli.errors import Failure, UserError
from benchlab_otel.cli.live import LiveAligner, own_resource
from benchlab_otel.cli.options import host_port
from benchlab_otel.config import Settings, flat
from benchlab_otel.hub.grpc import GrpcServer
from benchlab_otel.hub.http import HttpServer, otlp_app
from benchlab_otel.hub.hub import Hub
from benchlab_otel.hub.metrics import MetricStore, metrics_app
from benchlab_otel.sources.reading import Device
from benchlab_otel.timebase import anchor


class Embedded:
    """A running session. Use it as a context; what was recorded is whole when it ends.

    Raises Failure where a port, the data folder or a source's name can't be used.
    """

    def __init__(self, settings: Settings, command: Sequence[str], source_names: Sequence[str]) -> None:
        self.base = anchor()
        self._settings = settings
        self._closing = ExitStack()
        try:
            self.archive = session.create(
                settings.session.data_dir,
                self.base,
                list(command),
                min_free_bytes=int(settings.session.min_free_mib * (1 << 20)),
                settings=settings_without_secrets([*flat(settings)]),
            )
        except OSError as error:
            raise Failure(
                f"{error.filename or settings.session.data_dir}: {error.strerror}: no session can be"
                " recorded there; set session.data_dir to a folder that can be written"
            ) from None
        self.session_id = self.archive.manifest.id
        self.resource = own_resource(self.session_id, self.base)
        self._live = LiveAligner(settings, self.resource, self.base, self.archive.energy)
        self.store = MetricStore()
        self.hub = Hub(self.archive, self._live.take, self.store, self.resource, self.base)
        try:
            self._open(source_names)
        except BaseException:
            self.close()
            self.archive.discard()  # nothing was recorded, so `latest` stays what it was
            raise

    def _open(self, source_names: Sequence[str]) -> None:
        hub = self._settings.hub
        limit = int(hub.max_request_mib * (1 << 20))
        try:
            grpc = GrpcServer(self.hub, *host_port(hub.grpc), setting="hub.grpc", max_bytes=limit)
            self._closing.callback(grpc.close)
            http = HttpServer(otlp_app(self.hub, limit), *host_port(hub.http), setting="hub.http")
            self._closing.callback(http.close)
            page = HttpServer(
                metrics_app(self.store, self.refresh), *host_port(hub.metrics), setting="hub.metrics"
            )
            self._closing.callback(page.close)
        except OSError as error:
            raise Failure(str(error.strerror or error)) from None
        self.grpc_endpoint = f"http://{host_port(hub.grpc)[0]}:{grpc.port}"
        self.http_endpoint = f"http://{host_port(hub.http)[0]}:{http.port}"
        self.metrics_url = f"http://{host_port(hub.metrics)[0]}:{page.port}/metrics"
        clock = ClockWatch(self.base, self.resource, self._settings, self.hub.traces, self._note)
        self._closing.callback(clock.close)
        try:
            self.sources = sources.start(
                source_names, self._settings.sources, self.hub, self.session_id, latency=self._live.latency
            )
        except ValueError as error:
            raise UserError(f"sources: {error}") from None
        self._closing.callback(self.sources.stop)
        self.archive.devices = self._devices

    def _devices(self) -> list[dict[str, Any]]:
        """The devices found until now, for the manifest, which then also says if anything is simulated."""
        self.archive.manifest.simulated = self._live.simulated
        return [
            {"source": health.source, "address": health.address} | describe(health.device)
            for health in self.sources.health()
            if health.device is not None
        ]

    def _note(self, event: str) -> None:
        self.archive.manifest.events.append(event)

    def refresh(self) -> None:
        """Brings what /metrics shows up to this moment."""
        self.hub.publish()
        self._live.show(self.store.ingest)

    def close(self) -> None:
        """Stops reading and receiving, aligns what waits, and finishes the session."""
        self._closing.close()
        self.hub.close()
        self._live.close()
        self.archive.manifest.simulated = self._live.simulated
        self.archive.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def describe(device: Device) -> dict[str, Any]:
    """What is known of a device, by attribute name."""
    known = {"hw.id": device.hw_id, "hw.type": device.hw_type, "description": device.description}
    return {**known, "simulated": device.simulated, **device.attributes}
