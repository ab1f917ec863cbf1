"""The aligner at work on what arrives: fed by a hub's thread, asked by /metrics."""

from __future__ import annotations

import math
import platform
import threading
import time
from collections.abc import Callable

from benchlab_otel.align.aligner import Aligned, Aligner, align, close
from benchlab_otel.align.attribution.attribute import Attribution
from benchlab_otel.align.columns import is_simulated
from benchlab_otel.align.conditioner import Conditioner, close_conditioner, condition_live, learn_live
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
from benchlab_otel.config import Settings
from benchlab_otel.contract import SESSION_ID, SIMULATED
from benchlab_otel.model import COMPLETED, OUTCOMES, Frames, HistogramPoint, Point, Resource, Spans
from benchlab_otel.otlp.encode import resource_of
from benchlab_otel.otlp.encode_metrics import Told
from benchlab_otel.timebase import CLOCK_ATTRIBUTE, Anchor, clock_state

LATELY_SECONDS = 2.0  # frames done longer ago say nothing of the latency now


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
        self._shown, self._showing = Told(), threading.Lock()
        self._summaries: list[Attribution] = []
        self._latest = (0.0, -math.inf)  # mean duration (s) of the frames done last, and when (monotonic)
        self.simulated = False  # whether any span said so

    def take(self, spans: Spans) -> None:
        """Aligns a block of spans and gives out the energy of the frames that are done."""
        self.simulated |= any(map(is_simulated, spans.resources))
        self._pass_on(align(self._aligner, spans))
        learn_live(self._conditioner, self._aligner)

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
        """Mean seconds of the frames that were done last, None where none was done lately.

        Never waits: samplers ask.
        """
        seconds, when = self._latest  # replaced as one
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

    def show(self, take: Callable[[bytes], object]) -> None:
        """Hands requests with the aligner's metrics as they are now to the one who shows them."""
        now_ns = self._base.now_ns()
        with self._showing:
            for body in self._shown.requests(self.resource(), self.points(now_ns), now_ns):
                take(body)

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
