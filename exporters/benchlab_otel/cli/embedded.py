"""Everything in one process: sources and receivers into the hub, archive, aligner and /metrics."""

from __future__ import annotations

import logging
import math
import os
import platform
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Self

import numpy as np

from benchlab_otel import sources
from benchlab_otel.align.aligner import Aligned, Aligner, align, close
from benchlab_otel.align.attribution.attribute import Attribution
from benchlab_otel.align.columns import is_simulated
from benchlab_otel.align.conditioner import Conditioner, close_conditioner, condition_live
from benchlab_otel.align.energy_spans import encode_energy
from benchlab_otel.align.metrics import (
    FrameMetrics,
    attribution_points,
    late_points,
    points,
    progress_points,
    take_in,
    take_in_conditioned,
)
from benchlab_otel.archive import session
from benchlab_otel.archive.manifest import settings_without_secrets
from benchlab_otel.cli.errors import Failure, UserError
from benchlab_otel.config import Settings, flat
from benchlab_otel.contract import CLOCK, CLOCK_SUSPENDED, CLOCK_WALL_OFFSET, SESSION_ID, SIMULATED
from benchlab_otel.hub.grpc import GrpcServer
from benchlab_otel.hub.http import HttpServer, otlp_app
from benchlab_otel.hub.hub import Hub
from benchlab_otel.hub.metrics import MetricStore, metrics_app
from benchlab_otel.model import COMPLETED, OUTCOMES, Frames, HistogramPoint, Point, Resource, Spans
from benchlab_otel.otlp.encode import SpanBatch, encode_request, resource_of
from benchlab_otel.otlp.ids import random64
from benchlab_otel.otlp.metrics import encode_metrics
from benchlab_otel.sources.reading import Device
from benchlab_otel.timebase import CLOCK_ATTRIBUTE, Anchor, ClockState, anchor, clock_event, clock_state

log = logging.getLogger(__name__)

CLOCK_CHECK_SECONDS = 1.0
LATELY_SECONDS = 2.0  # frames done longer ago say nothing of the latency now


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
                settings=settings_without_secrets(flat(settings)),
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
        self.store.ingest(self._live.metrics(self.base.now_ns()))

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


class LiveAligner:
    """The aligner between the hub's thread, which feeds it, and /metrics, which reads its figures.

    `give_out` takes each trace request of energy spans.
    """

    def __init__(
        self, settings: Settings, resource: Resource, base: Anchor, give_out: Callable[[bytes], None]
    ) -> None:
        self._aligner = Aligner(lateness_ns=int(settings.align.lateness_s * 1e9))
        self._conditioner = Conditioner()
        self._metrics = FrameMetrics(base.now_ns(), settings.align.pairs)
        self._resource, self._base = resource, base
        self._energy = give_out
        self._lock = threading.Lock()
        self._summaries: list[Attribution] = []
        self._latest = (0.0, -math.inf)  # mean duration (s) of the frames done last, and when (monotonic)
        self.simulated = False  # whether any span said so

    def take(self, spans: Spans) -> None:
        """Aligns a block of spans and gives out the energy of the frames that are done."""
        self.simulated |= any(map(is_simulated, spans.resources))
        self._pass_on(align(self._aligner, spans))

    def close(self) -> None:
        """Gives out what still waits."""
        self._pass_on(close(self._aligner))
        self._give_out(close_conditioner(self._conditioner))

    def _pass_on(self, blocks: list[Aligned]) -> None:
        """Latencies are told at once, energy spans when their frames are conditioned."""
        with self._lock:
            for aligned in blocks:
                take_in(self._metrics, aligned)
                self._note_latency(aligned.frames)
        self._give_out(condition_live(self._conditioner, self._aligner, blocks))

    def _note_latency(self, frames: Frames) -> None:
        durations = (frames.end - frames.begin)[frames.outcome == OUTCOMES.index(COMPLETED)]
        if len(durations):
            self._latest = (float(durations.mean()) * 1e-9, time.monotonic())

    def latency(self) -> float | None:
        """Mean seconds of the frames that were done last, None where none was done lately."""
        with self._lock:
            seconds, when = self._latest
        return seconds if time.monotonic() - when < LATELY_SECONDS else None

    def _give_out(self, blocks: list[Aligned]) -> None:
        for aligned in blocks:
            body = encode_energy(aligned, self._resource)
            if body:
                self._energy(body)
        with self._lock:
            for aligned in blocks:
                take_in_conditioned(self._metrics, aligned)
            self._summaries = self._conditioner.summaries

    def metrics(self, now_ns: int) -> bytes:
        """The aligner's metrics as they stand, as one request."""
        return encode_metrics(self.resource(), self.points(now_ns))

    def resource(self) -> Resource:
        """The resource of what it tells; marked if anything was simulated."""
        return resource_of({**self._resource, SIMULATED: True}) if self.simulated else self._resource

    def points(self, now_ns: int) -> list[Point | HistogramPoint]:
        """The aligner's metrics as they stand."""
        with self._lock:
            found = [p for summary in self._summaries for p in attribution_points(summary, now_ns)]
            late = late_points(self._aligner, self._metrics.start_ns, now_ns)
            progress = progress_points(self._metrics, clock_state(self._base).wall_offset_ns, now_ns)
            return [*points(self._metrics, now_ns), *found, *late, *progress]


class ClockWatch:
    """Records once a second where the time base and the wall clock stand, as `clock` spans to `give_out`.

    So event time goes on where nothing else is sent, and foreign spans find their place. `note` is told
    of suspends and clock steps.
    """

    def __init__(
        self,
        base: Anchor,
        resource: Resource,
        settings: Settings,
        give_out: Callable[[bytes], None],
        note: Callable[[str], None] = lambda event: None,
    ) -> None:
        self._base, self._resource, self._give_out, self._note = base, resource, give_out, note
        self._interval_ns = int(settings.align.calibration_interval_sec * 1e9)
        self._trace = np.array([[random64(), random64()]], np.uint64)
        self._last = self._calibrated = clock_state(base)
        self._record(self._last)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="clock-watch", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._closed.wait(CLOCK_CHECK_SECONDS):
            state = clock_state(self._base)
            event = clock_event(self._last, state)
            if event:
                log.warning("%s; times on the session's own clock are not affected", event)
                self._note(f"{state.time_ns}: {event}")
            if event or state.time_ns - self._calibrated.time_ns >= self._interval_ns:
                self._calibrated = state
            self._record(state)
            self._last = state

    def _record(self, now: ClockState) -> None:
        moment = np.array([now.time_ns], np.int64)
        known = self._calibrated
        span = SpanBatch(
            name=CLOCK,
            trace=self._trace,
            span=np.array([random64()], np.uint64),
            start=moment,
            end=moment,
            attributes={CLOCK_WALL_OFFSET: known.wall_offset_ns, CLOCK_SUSPENDED: known.suspended_ns},
        )
        self._give_out(encode_request(self._resource, [span]))

    def close(self) -> None:
        """Stops watching."""
        self._closed.set()
        self._thread.join()


def own_resource(session_id: str, base: Anchor) -> Resource:
    """The resource of what the embedded process itself sends."""
    host = platform.node()
    return resource_of(
        {
            "service.name": "benchlab-otel",
            "service.instance.id": f"{host}/aligner",
            "host.name": host,
            SESSION_ID: session_id,
            CLOCK_ATTRIBUTE: base.offset_ns,
        }
    )


def describe(device: Device) -> dict[str, Any]:
    """What is known of a device, by attribute name."""
    known = {"hw.id": device.hw_id, "hw.type": device.hw_type, "description": device.description}
    return {**known, "simulated": device.simulated, **device.attributes}


def host_port(address: str) -> tuple[str, int]:
    """("127.0.0.1", 4317) of "127.0.0.1:4317"; the port was checked by the configuration."""
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


def set_up_logging() -> None:
    """Warnings of this process on stderr, one line each."""
    logging.basicConfig(
        level=os.environ.get("BENCHLAB_OTEL_LOG", "WARNING").upper(), format="benchlab-otel: %(message)s"
    )
