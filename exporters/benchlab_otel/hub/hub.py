"""The way in for telemetry: check, archive as it came, hand on to the aligner and to /metrics.

Receiving never waits for the aligner: spans go through a bounded queue, and what does not fit is
skipped (and counted) for the live view only, because the archive has it already.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from benchlab_otel import contract
from benchlab_otel.hub.metrics import MetricStore
from benchlab_otel.model import Bool, HistogramPoint, Point, Resource, Spans
from benchlab_otel.otlp.decode import concatenate, decode_traces, take
from benchlab_otel.otlp.encode_metrics import encode_metrics
from benchlab_otel.timebase import Anchor

log = logging.getLogger(__name__)

QUEUED_SPANS = 1_000_000  # about 100 MB in arrays
GATHER_S = 0.05  # half of what lies between two flushes of probes, which all flush at one moment


@dataclass(frozen=True, slots=True)
class Rejected:
    """What of an accepted request was not taken (`count` spans or points), or a warning (count 0)."""

    count: int
    message: str


class Archive(Protocol):
    """Where requests are written as they came; never raises for a full disk but counts in `lost`."""

    error: str | None

    @property
    def lost(self) -> dict[str, int]:
        """Records that could not be written, by file."""

    def traces(self, body: bytes) -> None:
        """Appends one trace request."""

    def metrics(self, body: bytes) -> None:
        """Appends one metrics request."""


class Hub:
    """The ingest path, shared by the receivers and, as a `Sink`, by sources in the same process.

    `on_spans` is called by one thread of the hub, in the order of arrival. Safe to call from
    several threads.
    """

    def __init__(
        self,
        archive: Archive,
        on_spans: Callable[[Spans], None],
        store: MetricStore,
        resource: Resource,
        base: Anchor,
        queued_spans: int = QUEUED_SPANS,
    ) -> None:
        self.store = store
        self._archive = archive
        self._on_spans = on_spans
        self._resource = resource
        self._base = base
        self._started_ns = base.now_ns()
        self._queue: queue.SimpleQueue[Spans | None] = queue.SimpleQueue()
        self._room = queued_spans
        self._counts: Counter[tuple[contract.Metric, tuple[str, ...]]] = Counter()
        self._lock = threading.Lock()
        self._order = threading.Lock()  # live and archived order are one, so both align to the same figures
        self._ended = False  # known to the worker alone
        self._worker = threading.Thread(target=self._hand_on, name="hub-live", daemon=True)
        self._worker.start()

    # -- from receivers: what is wrong is said ------------------------------------------------

    def ingest_traces(self, body: bytes) -> Rejected | None:
        """Takes one trace request. Raises ValueError, and keeps nothing, where it is garbled."""
        self._arrived("traces", body)
        try:
            spans = decode_traces(body)
        except ValueError:
            self._count(contract.HUB_REJECTED, "traces", "garbled")
            raise
        valid = _valid(spans)
        invalid = len(spans) - int(valid.sum())
        if invalid:
            spans = take(spans, np.flatnonzero(valid))
            self._count(contract.HUB_REJECTED, "traces", "invalid_id", by=invalid)
        self._count(contract.HUB_SPANS, by=len(spans))
        with self._order:
            self._archive.traces(body)
            self._queue_up(spans)
        if invalid:
            return Rejected(invalid, f"{invalid} spans without a valid trace and span id")
        return self._archive_warning()

    def ingest_metrics(self, body: bytes) -> Rejected | None:
        """Takes one metrics request. Raises ValueError, and keeps nothing, where it is garbled."""
        self._arrived("metrics", body)
        try:
            dropped = self.store.ingest(body)
        except ValueError:
            self._count(contract.HUB_REJECTED, "metrics", "garbled")
            raise
        self._archive.metrics(body)
        for reason, points in dropped.items():
            self._count(contract.HUB_REJECTED, "metrics", reason, by=points)
        if dropped:
            reasons = ", ".join(f"{points} {reason}" for reason, points in sorted(dropped.items()))
            return Rejected(sum(dropped.values()), f"points that /metrics cannot show: {reasons}")
        return self._archive_warning()

    def refused(self, signal: str, reason: str) -> None:
        """Counts a request that a receiver had to refuse before its bytes were known."""
        self._count(contract.HUB_REQUESTS, signal)
        self._count(contract.HUB_REJECTED, signal, reason)

    # -- from sources in this process (a Sink): nobody to tell, so it is logged ---------------

    def traces(self, body: bytes) -> None:
        """Takes one trace request; see `Sink`."""
        self._quietly(self.ingest_traces, body)

    def metrics(self, body: bytes) -> None:
        """Takes one metrics request; see `Sink`."""
        self._quietly(self.ingest_metrics, body)

    def _quietly(self, ingest: Callable[[bytes], Rejected | None], body: bytes) -> None:
        try:
            rejected = ingest(body)
        except ValueError as error:
            log.error("a source in this process sent a garbled request: %s", error)
            return
        if rejected is not None and rejected.count:
            log.warning("a source in this process: %s", rejected.message)

    # -- counts -------------------------------------------------------------------------------

    def publish(self) -> None:
        """Puts the hub's own counts into the store."""
        self.store.ingest(encode_metrics(self._resource, self.points()))

    def points(self) -> list[Point | HistogramPoint]:
        """The hub's own counts as they stand."""
        now = self._base.now_ns()
        with self._lock:
            counts = dict(self._counts)
        counts |= {(contract.ARCHIVE_LOST, (file,)): n for file, n in self._archive.lost.items()}
        return [
            Point(metric, dict(zip(metric.labels, values, strict=True)), float(n), now, self._started_ns)
            for (metric, values), n in counts.items()
        ]

    def _arrived(self, signal: str, body: bytes) -> None:
        self._count(contract.HUB_REQUESTS, signal)
        self._count(contract.HUB_RECEIVED, signal, by=len(body))

    def _count(self, metric: contract.Metric, *labels: str, by: int = 1) -> None:
        with self._lock:
            self._counts[metric, labels] += by

    def _archive_warning(self) -> Rejected | None:
        return Rejected(0, self._archive.error) if self._archive.error else None

    # -- to the aligner -----------------------------------------------------------------------

    def _queue_up(self, spans: Spans) -> None:
        with self._lock:
            fits = len(spans) <= self._room
            if fits:
                self._room -= len(spans)
        if fits:
            self._queue.put(spans)
        else:
            self._count(contract.HUB_LIVE_SKIPPED, by=len(spans))

    def _hand_on(self) -> None:
        while (gathered := self._gather()) is not None:
            spans = concatenate(gathered)
            try:
                self._on_spans(spans)
            except Exception:  # a defect of the live view must not end it, nor what is received and archived
                self._count(contract.HUB_LIVE_SKIPPED, by=len(spans))
                log.exception("the live aligner failed on %d spans; the archive has them", len(spans))
            with self._lock:
                self._room += len(spans)

    def _gather(self) -> list[Spans] | None:
        """What arrives within a moment, as most of the aligner's work is by block; None at the end."""
        if self._ended or (first := self._queue.get()) is None:
            return None
        gathered = [first]
        time.sleep(GATHER_S)
        with suppress(queue.Empty):
            while (more := self._queue.get_nowait()) is not None:
                gathered.append(more)
            self._ended = True
        return gathered

    def close(self) -> None:
        """Returns when the aligner has taken everything that was queued."""
        self._queue.put(None)
        self._worker.join()


def _valid(spans: Spans) -> Bool:
    """Rows with a trace id and a span id; ids of a wrong length are decoded as 0."""
    return spans.trace.any(axis=1) & (spans.span != 0)
