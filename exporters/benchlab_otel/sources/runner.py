"""One thread that owns one device: reads on schedule, hands spans and metrics to the sink.

While the device answers quickly, and another one does too, the readings are left to the threads of the
rota. A device that fails publishes nothing: its samples have a gap, its values vanish from
the metrics, and its health says why. The runner closes it and opens it again until it is back.
"""

from __future__ import annotations

import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from threading import Event, Thread

import numpy as np

from benchlab_otel import contract
from benchlab_otel.model import Point, Resource
from benchlab_otel.otlp.encode import SpanBatch, encode_request
from benchlab_otel.otlp.ids import random64
from benchlab_otel.otlp.sink import Sink
from benchlab_otel.sources.metrics import Metrics
from benchlab_otel.sources.reading import Batch, Device, Reader, Reply, SourceError, refused
from benchlab_otel.sources.rota import Seat, Turn
from benchlab_otel.sources.samples import Samples
from benchlab_otel.sources.schedule import Schedule, multiple_after
from benchlab_otel.timebase import anchor

log = logging.getLogger(__name__)

_SHORT_WAIT_S = 0.1
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.05, 1.0
_FOREIGN_PAUSE_S = 30.0  # what was never a device of the source's is asked seldom


@dataclass(slots=True)
class Health:
    """How a source is doing. `message` and `fix` belong to the last failure, "" while all is well."""

    source: str
    address: str
    device: Device | None = None
    ok: bool = False
    message: str = "not read yet"
    fix: str = ""
    duration_s: float = 0.0  # of the last attempt
    last_ns: int = 0  # time of the last good reading
    uncertainty_s: float = 0.0  # of the times of readings: half of the longest round trip since last told
    readings: int = 0
    failures: Counter[str] = field(default_factory=Counter)


class Runner:
    """Reads one device until `stop`, then calls `finish`.

    `resource_of` gives the resource of what a device sends; of the `seats` among others the first is best.
    Samples are told each `flush_s()` seconds, metrics each `metrics_s`.
    """

    def __init__(
        self,
        source: str,
        address: str,
        open_reader: Callable[[], Reader],
        schedule: Schedule,
        seats: Sequence[Seat],
        sink: Sink,
        resource_of: Callable[[Device | None], Resource],
        flush_s: Callable[[], float],
        metrics_s: float,
        finish: Callable[[], None] = lambda: None,
    ) -> None:
        self.health = Health(source, address)
        self._open_reader, self._finish = open_reader, finish
        self._schedule = schedule  # of readings alone
        self._seats = seats
        self._turn: Turn | None = None  # in the rota
        self._sink = sink
        self._resource_of = resource_of
        self._resource = resource_of(None)
        self._flush_s, self._metrics_s = flush_s, metrics_s
        self._trace = np.array([[random64(), random64()]], np.uint64)
        self._root = np.array([random64()], np.uint64)
        self._samples: Samples | None = None  # of a device that was opened
        self._replies: list[Reply] = []  # not yet decoded
        self._latest: Batch | None = None  # not yet told as metrics
        self._metrics = Metrics()
        self._started_ns = anchor().now_ns()
        self._flush_due = self._metrics_due = 0.0
        self._stop = Event()
        self._thread = Thread(target=self._run, name=f"benchlab-otel-{source}", daemon=True)

    def start(self) -> None:
        """Starts reading."""
        self._thread.start()

    def request_stop(self) -> None:
        """Lets reading end, without waiting for it."""
        self._stop.set()
        if self._turn:
            self._turn.ended.set()

    def stop(self, deadline: float) -> None:
        """Ends reading and hands over what is left, with the session's root span.

        A thread that has not ended by then (CLOCK_MONOTONIC, s), as a call into its driver hangs, is left
        behind: it may hand over nothing any more.
        """
        self.request_stop()
        self._thread.join(max(0.0, deadline - time.monotonic()))
        if self._thread.is_alive():
            sink, self._sink = self._sink, _Nowhere()
            health = self.health
            what = health.device.hw_id if health.device else health.address or "the device"
            log.error(
                "%s: %s does not answer any more: its thread is left behind, without its last readings",
                *(health.source, what),
            )
            sink.traces(encode_request(self._resource, [self._session_span()]))

    # -- reading ----------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            self._read_until_stopped()
        except BaseException as error:  # a defect: told, then raised on to threading.excepthook
            self._failed(SourceError("defect", f"reading ended: {type(error).__name__}: {error}"))
            raise
        finally:
            self._finish()

    def _read_until_stopped(self) -> None:
        pause, longest = 0.0, _LONGEST_PAUSE_S
        while not self._stop.wait(pause):
            readings = self.health.readings
            try:
                with closing(self._open()) as reader:
                    self._read_on(reader)
            except SourceError as error:
                self._failed(error)
                foreign = error.reason == "unknown" and self.health.device is None
                longest = _FOREIGN_PAUSE_S if foreign else _LONGEST_PAUSE_S
            came = self.health.readings > readings
            pause = _FIRST_PAUSE_S if came else min(longest, max(_FIRST_PAUSE_S, pause * 2))
        self._end_series()
        self._sink.traces(encode_request(self._resource, [self._session_span()]))

    def _open(self) -> Reader:
        begin = time.monotonic()
        try:
            reader = self._open_reader()
        except OSError as error:
            raise refused(error) from error
        finally:
            self.health.duration_s = time.monotonic() - begin
        if reader.device != self.health.device:
            self._end_series()  # of the device before
            self.health.device = reader.device
            self._resource = self._resource_of(reader.device)
            self._samples = Samples(self._resource, reader.device, self._trace, self._root)
        return reader

    def _read_on(self, reader: Reader) -> None:
        """Reads until `stop`, with others while it is quick; raises the SourceError that ended it."""
        try:
            while not self._stop.is_set():
                if seat := self._read_alone(reader):
                    self._read_with_others(reader, seat)
        finally:
            self._leave_seats()
        self._flush(reader)

    def _read_alone(self, reader: Reader) -> Seat | None:
        """Reads until `stop`, or until it can be read with others: then where.

        Little is done per reading, and without calls of functions: they cost most just after a sleep. Short
        waits sleep, too: an Event costs more.
        """
        next_deadline, read, replies, stop = self._schedule.next, reader.read, self._replies, self._stop
        deadline, longest = -math.inf, 0.0
        while True:
            now = time.monotonic()
            if now - deadline > longest:
                longest = now - deadline
            deadline = next_deadline(now)
            if deadline >= self._flush_due:
                self._tell_what_is_due(reader, deadline)
                if seat := self._free_seat(longest):
                    return seat
                longest = 0.0
            left = deadline - time.monotonic()
            if left > _SHORT_WAIT_S:
                stop.wait(left)
            elif left > 0.0:
                time.sleep(left)
            if stop.is_set():
                return None
            try:
                replies.append(read())
            except SourceError:
                self._broke_off(reader, time.monotonic() - deadline)
                raise

    def _free_seat(self, longest_s: float) -> Seat | None:
        """Where there is room for a device whose readings took up to `longest_s`."""
        return next((s for s in self._seats if s.rota.has_room(self, longest_s, s.every)), None)

    def _leave_seats(self, but: Seat | None = None) -> None:
        for seat in self._seats:
            if seat is not but:
                seat.rota.forget(self)

    def _read_with_others(self, reader: Reader, seat: Seat) -> None:
        """Lets the rota's threads read until `stop`, or until a reading takes long."""
        tell = partial(self._tell_what_is_due, reader)
        turn = self._turn = Turn(reader.read, self._replies, tell, seat.every)
        if self._stop.is_set():  # before request_stop could end the turn
            return
        try:
            self._leave_seats(but=seat)
            seat.rota.take(turn)
        except SourceError:
            self._broke_off(reader, turn.lasted)
            raise

    def _broke_off(self, reader: Reader, lasted: float) -> None:
        """A reading failed that lasted so long (s): what came before it is good."""
        self._flush(reader)
        self.health.duration_s = lasted

    def _failed(self, error: SourceError) -> None:
        health = self.health
        if health.ok or health.message != str(error):
            log.warning(
                "%s: %s: %s%s", health.source, error.reason, error, f"; {error.fix}" if error.fix else ""
            )
        health.ok, health.message, health.fix = False, str(error), error.fix
        health.failures[error.reason] += 1
        self._latest = None
        self._publish_metrics()

    # -- telling ----------------------------------------------------------------------------

    def _tell_what_is_due(self, reader: Reader, moment: float) -> None:
        """Samples, and metrics less often, at a time of CLOCK_MONOTONIC in seconds."""
        if moment < self._flush_due:
            return
        self._flush(reader)
        self._flush_due = multiple_after(moment, self._flush_s())
        if moment >= self._metrics_due and self._latest is not None:
            self._publish_metrics()
            self._metrics_due = multiple_after(moment, self._metrics_s)

    def _flush(self, reader: Reader) -> None:
        """Decodes and hands over the replies that are waiting; raises SourceError like `decode`."""
        replies = self._replies.copy()
        self._replies.clear()
        if replies:
            for batch in reader.decode(replies):
                self._succeeded(reader.device, batch)

    def _succeeded(self, device: Device, batch: Batch) -> None:
        health = self.health
        if not health.ok and health.failures:
            log.warning("%s: back: %s", health.source, device.description)
        health.ok, health.message, health.fix = True, "", ""
        health.readings += len(batch.start_ns)
        round_trips = batch.end_ns - batch.start_ns
        health.duration_s = round_trips.item(-1) * 1e-9
        health.uncertainty_s = max(health.uncertainty_s, round_trips.max().item() * 1e-9 / 2)
        health.last_ns = batch.end_ns.item(-1)
        self._latest = batch
        if self._samples and (request := self._samples.request(batch)):
            self._sink.traces(request)

    def _session_span(self) -> SpanBatch:
        return SpanBatch(
            contract.SESSION,
            trace=self._trace,
            span=self._root,
            start=np.array([self._started_ns], np.int64),
            end=np.array([anchor().now_ns()], np.int64),
        )

    def _publish_metrics(self) -> None:
        """Health, and the values of the latest reading unless they have been told already."""
        device, latest, now = self.health.device, self._latest, anchor().now_ns()
        if latest is None or device is None:
            bodies = self._metrics.health(self._resource, self._health_points(now), now)
        else:
            health = self._health_points(now)
            bodies = self._metrics.reading(self._resource, health, latest, device.counting_since_ns, now)
            self._latest = None
        self._hand_over(bodies)

    def _end_series(self) -> None:
        self._hand_over(self._metrics.health(self._resource, [], anchor().now_ns()))

    def _hand_over(self, bodies: list[bytes]) -> None:
        for body in bodies:
            self._sink.metrics(body)

    def _health_points(self, now: int) -> list[Point]:
        health = self.health
        labels = {"source": health.source, "hw.id": health.device.hw_id if health.device else health.address}
        points = [
            Point(contract.COLLECT_SUCCESS, labels, float(health.ok), now),
            Point(contract.COLLECT_DURATION, labels, health.duration_s, now),
        ]
        if health.last_ns:  # by the wall clock, as who asks for its age takes that of now
            last = time.time() - (now - health.last_ns) * 1e-9
            points.append(Point(contract.COLLECT_LAST, labels, last, now))
        if health.ok:
            points.append(Point(contract.COLLECT_UNCERTAINTY, labels, health.uncertainty_s, now))
            health.uncertainty_s = 0.0
        for reason, count in sorted(health.failures.items()):
            by_reason = labels | {"reason": reason}
            points.append(Point(contract.COLLECT_FAILURES, by_reason, count, now, self._started_ns))
        return points


class _Nowhere:
    """The sink of a runner that was left behind."""

    def traces(self, body: bytes) -> None:
        """Forgets it."""

    def metrics(self, body: bytes) -> None:
        """Forgets it."""
