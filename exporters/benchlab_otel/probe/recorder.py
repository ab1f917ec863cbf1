"""The probe inside a pipeline: frames, stages and marks, recorded in well under a microsecond.

    from benchlab_otel import Probe

    probe = Probe("cam0")
    with probe.frame() as frame:
        with frame.stage("decode"):
            ...

The pipeline's threads only append tuples to a list; a flush thread makes spans of them and hands
their bytes to a sink. It is not a daemon: it ends after the main thread and all others have, so a
program that just returns loses nothing. The default action of SIGTERM ends a process at once, with
up to one flush interval unsent: install a handler that raises SystemExit.
"""

from __future__ import annotations

import itertools
import os
import socket
import threading
import time
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple, TypeVar
from urllib.parse import unquote
from uuid import NAMESPACE_DNS, uuid5

import numpy as np

from benchlab_otel import contract, timebase
from benchlab_otel.model import COMPLETED, DROPPED, FAILED, OUTCOMES, Point, Scalar, Uint
from benchlab_otel.otlp.client import OtlpClient
from benchlab_otel.otlp.encode import SpanBatch, encode_request, resource_of
from benchlab_otel.otlp.encode_metrics import encode_metrics
from benchlab_otel.otlp.ids import mix64, mix64_int, nonzero, parse_traceparent, random64, traceparent
from benchlab_otel.otlp.sink import Sink
from benchlab_otel.probe import assemble
from benchlab_otel.probe.assemble import BEGIN, END, MARK, STAGE, BareMark, Event, Identity, Names

SESSION_VARIABLE = "BENCHLAB_OTEL_SESSION"
_COMPLETED, _DROPPED, _FAILED = (OUTCOMES.index(o) for o in (COMPLETED, DROPPED, FAILED))
_SETTLE_NS = 5_000_000  # another thread's mark may be appended a moment after it was timed
_LOOK_S = 0.1  # how soon the flush thread sees that the program has ended
_MASK = (1 << 64) - 1
_T = TypeVar("_T")

Mark = Callable[[int, str], None]
"""`mark(number, name)`: frame `number` has reached the instant `name`."""


class Remote(NamedTuple):
    """A stage of a frame that another process (or another probe) began."""

    hi: int
    lo: int
    parent: int
    begin: int
    end: int
    name: str


class Frame:
    """A frame of this probe while it is in flight; any thread may mark it."""

    __slots__ = ("_append", "_identity", "_key")

    def __init__(self, append: Callable[[Event], None], identity: Identity, key: int) -> None:
        self._append, self._identity, self._key = append, identity, key

    def mark(self, name: str) -> None:
        """The frame has reached the instant `name`; the stage from the mark before gets this name."""
        self._append((self._key, MARK, 0, time.monotonic_ns(), name))

    def stage(self, name: str) -> Stage:
        """Times a `with` block as the stage `name`."""
        return Stage(self, name)

    def record(self, name: str, begin_ns: int, end_ns: int) -> None:
        """A stage that the caller timed (CLOCK_MONOTONIC, ns)."""
        self._append((self._key, STAGE, begin_ns, end_ns, name))

    def end(self) -> None:
        """The frame is complete."""
        self._append((self._key, END, _COMPLETED, time.monotonic_ns(), ""))

    def drop(self) -> None:
        """The pipeline gave the frame up on purpose."""
        self._append((self._key, END, _DROPPED, time.monotonic_ns(), ""))

    def fail(self, reason: str) -> None:
        """The frame failed; `reason` is a class of errors, not a message (attribute `error.type`)."""
        self._append((self._key, END, _FAILED, time.monotonic_ns(), reason))

    @property
    def traceparent(self) -> str:
        """The frame's W3C traceparent, for `Probe.join` in another process."""
        hi = self._identity.hi
        lo = max(1, mix64_int((self._key + self._identity.seed) & _MASK))
        return traceparent(hi, lo, max(1, mix64_int(hi ^ lo)))


class JoinedFrame:
    """A frame that was begun elsewhere. Joining counts as the mark before the first one made here."""

    __slots__ = ("_append", "_before", "_hi", "_lo", "_parent")

    def __init__(self, append: Callable[[Remote], None], text: str) -> None:
        self._append = append
        self._hi, self._lo, self._parent = parse_traceparent(text)
        self._before = time.monotonic_ns()

    def mark(self, name: str) -> None:
        """The frame has reached the instant `name`; the stage from the mark before gets this name."""
        now = time.monotonic_ns()
        begin, self._before = self._before, now
        self.record(name, begin, now)

    def stage(self, name: str) -> Stage:
        """Times a `with` block as the stage `name`."""
        return Stage(self, name)

    def record(self, name: str, begin_ns: int, end_ns: int) -> None:
        """A stage that the caller timed (CLOCK_MONOTONIC, ns)."""
        self._append(Remote(self._hi, self._lo, self._parent, begin_ns, end_ns, name))


class Stage:
    """A `with` block that is timed as a stage, also when an exception leaves it."""

    __slots__ = ("_begin", "_frame", "_name")

    def __init__(self, frame: Frame | JoinedFrame, name: str) -> None:
        self._frame, self._name = frame, name

    def __enter__(self) -> None:
        self._begin = time.monotonic_ns()

    def __exit__(self, *_: object) -> None:
        self._frame.record(self._name, self._begin, time.monotonic_ns())


class Probe:
    """Records the frames of one pipeline and sends them as OTLP spans.

    `sink` is where the bytes go (default: an OTLP client set up by the environment). `timeout_s` is
    how long a frame may take before it counts as dropped; `capacity` bounds the events that wait for
    the flush thread: what does not fit is counted in `pipeline.probe.lost`, nothing ever blocks.
    `instance` tells apart several processes of one service that run at the same time.
    """

    def __init__(
        self,
        name: str,
        *,
        sink: Sink | None = None,
        timeout_s: float = 2.0,
        interval_s: float = 0.1,
        capacity: int = 1_000_000,
        instance: str | None = None,
        simulated: bool = False,
        attributes: Mapping[str, Scalar] | None = None,
    ) -> None:
        self.name = name
        self.lost: Counter[str] = Counter()
        self._own_client: OtlpClient | None = None
        if sink is None:
            sink = self._own_client = OtlpClient()
        self._sink = sink
        self._timeout_ns = int(timeout_s * 1e9)
        self._interval_s = interval_s
        self._capacity = capacity
        self._offset_ns = timebase.anchor().offset_ns
        self._resource = resource(name, self._offset_ns, instance, simulated, attributes or {})
        self._closed = False
        self._marker: tuple[str, str, Mark] | None = None
        self._marks: list[BareMark] = []
        self._events: list[Event] = []
        self._remote: list[Remote] = []
        self._begin_recording()
        restart = weakref.WeakMethod(self._restart_in_child)
        os.register_at_fork(after_in_child=lambda: (method := restart()) and method())

    # -- what the pipeline calls

    def begin(self, number: int | None = None) -> Frame:
        """A new frame, with the app's number for it or the next one."""
        key = next(self._keys)
        frame = Frame(self._append_event, self._identity, key)
        self._append_event((key, BEGIN, key if number is None else number, time.monotonic_ns(), ""))
        return frame

    @contextmanager
    def frame(self, number: int | None = None) -> Iterator[Frame]:
        """A frame that is complete at the end of the block, or failed if an exception leaves it."""
        frame = self.begin(number)
        try:
            yield frame
        except BaseException as error:
            frame.fail(type(error).__name__)
            raise
        frame.end()

    def join(self, traceparent: str) -> JoinedFrame:
        """Takes part in a frame begun elsewhere; ValueError if this is no W3C traceparent."""
        return JoinedFrame(self._append_remote, traceparent)

    def marker(self, first: str, last: str) -> Mark:
        """The cheapest form, for hot loops: `mark(number, name)` from any thread.

        A frame begins with its mark `first` and is complete with its mark `last`; if its number is
        begun again before that, it was dropped. A probe has one marker; asking again gives the same.
        """
        if self._marker is None:
            self._marker = (first, last, self._make_marker())
        if self._marker[:2] != (first, last):
            raise ValueError(
                f"probe {self.name!r} has a marker from {self._marker[0]!r} to {self._marker[1]!r}"
            )
        return self._marker[2]

    def flush(self) -> None:
        """Sends now what has ended, without waiting for the flush thread."""
        self._flush(settle_ns=0)

    def close(self) -> None:
        """Sends everything; frames still open count as dropped. The probe records no more."""
        if self._closed:
            return
        self._stop.set()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    # -- recording: list.append is atomic, the lists stay the same objects for ever

    def _make_marker(self) -> Mark:
        marks, clock, capacity = self._marks, time.monotonic_ns, self._capacity
        append, lose = marks.append, self._lose

        def mark(number: int, name: str) -> None:
            if len(marks) < capacity:
                append((number, clock(), name))
            else:
                lose("buffer full", 1)

        return mark

    def _append_event(self, event: Event) -> None:
        if len(self._events) < self._capacity:
            self._events.append(event)
        else:
            self._lose("buffer full", 1)

    def _append_remote(self, stage: Remote) -> None:
        if len(self._remote) < self._capacity:
            self._remote.append(stage)
        else:
            self._lose("buffer full", 1)

    def _lose(self, reason: str, count: int) -> None:
        if count:
            with self._lost_lock:
                self.lost[reason] += count

    # -- flush thread

    def _begin_recording(self) -> None:
        """New ids and an own flush thread, with nothing recorded yet."""
        self._identity = Identity(random64(), random64())
        self._keys = itertools.count(1)
        self._next_bare_key = -1
        self._span_seed = random64()
        self._names = Names()
        self._no_name = self._names.code("")
        self._open = assemble.columns([], self._names)
        self._started_ns = time.monotonic_ns() + self._offset_ns
        self._told_lost: dict[str, int] = {}
        self._lost_lock = threading.Lock()
        self._flush_lock = threading.Lock()
        self._stop = threading.Event()
        self._thread = _FlushThread(self._run, f"probe-{self.name}")
        self._thread.start()

    def _restart_in_child(self) -> None:
        """A forked child records its own frames; its parent sends what was recorded before."""
        for buffer in (self._marks, self._events, self._remote):
            buffer.clear()
        self.lost.clear()
        if not self._closed:
            self._begin_recording()

    def _run(self) -> None:
        due = self._next_due()
        while not self._stop.wait(min(max(0.0, due - time.monotonic()), _LOOK_S)) and _others_alive():
            if time.monotonic() >= due:
                self._flush(_SETTLE_NS)
                due = self._next_due()
        self._closed = True
        self._flush(settle_ns=0, timeout_ns=0)
        if self._own_client is not None:
            self._own_client.close()

    def _next_due(self) -> float:
        """At a multiple of the interval, when all probes send, so that who takes it in is woken once."""
        return (time.monotonic() // self._interval_s + 1) * self._interval_s

    def _flush(self, settle_ns: int, timeout_ns: int | None = None) -> None:
        with self._flush_lock:
            now = time.monotonic_ns()
            timed_out = now - (self._timeout_ns if timeout_ns is None else timeout_ns)
            batches = self._frame_batches(now - settle_ns, timed_out) + self._remote_batches()
            if batches:
                self._sink.traces(encode_request(self._resource, batches))
            lost = self._all_lost()
            if lost != self._told_lost:
                self._told_lost = lost
                self._sink.metrics(encode_metrics(self._resource, self._lost_points(lost)))

    def _all_lost(self) -> dict[str, int]:
        """What was lost here and, of this probe's own client, on the way, by reason."""
        with self._lost_lock:
            lost = self.lost.copy()
        if self._own_client is not None:
            lost.update(dict(self._own_client.lost))
        return lost

    def _frame_batches(self, settled_ns: int, timed_out_ns: int) -> list[SpanBatch]:
        parts = [self._open, assemble.columns(_take(self._events), self._names)]
        if self._marker is not None and (marks := _take(self._marks)):
            first, last, _ = self._marker
            bare, strays = assemble.frames_of_marks(
                marks, first, last, self._open, self._next_bare_key, self._names
            )
            self._next_bare_key = min(self._next_bare_key, int(bare.key.min(initial=0)) - 1)
            self._lose("mark outside a frame", strays)
            parts.append(bare)
        parted = assemble.split(assemble.ordered(parts), settled_ns, timed_out_ns)
        self._open = parted.open
        self._lose("frame not open", parted.strays)
        if not len(parted.ready):
            return []
        frames = assemble.assemble(parted.ready, self._no_name)
        ids = self._span_ids(len(frames.stage_name))
        return assemble.batches(frames, self._identity, self._names, self.name, self._offset_ns, ids)

    def _remote_batches(self) -> list[SpanBatch]:
        stages = _take(self._remote)
        if not stages:
            return []
        ids = np.array([s[:3] for s in stages], np.uint64)
        times = np.array([s[3:5] for s in stages], np.int64) + self._offset_ns
        return assemble.stage_batches(
            trace=ids[:, :2],
            parent=ids[:, 2],
            span=self._span_ids(len(stages)),
            name=np.array([self._names.code(s.name) for s in stages]),
            begin=times[:, 0],
            end=times[:, 1],
            table=self._names.table,
        )

    def _span_ids(self, count: int) -> Uint:
        seed, self._span_seed = self._span_seed, (self._span_seed + count) & _MASK
        return nonzero(mix64(np.arange(count, dtype=np.uint64) + np.uint64(seed)))

    def _lost_points(self, lost: Mapping[str, int]) -> list[Point]:
        now = time.monotonic_ns() + self._offset_ns
        return [
            Point(
                metric=contract.PROBE_LOST,
                labels={contract.PIPELINE_NAME: self.name, "reason": reason},
                value=count,
                time_ns=now,
                start_ns=self._started_ns,
            )
            for reason, count in lost.items()
        ]


class _FlushThread(threading.Thread):
    """Known by its class, so that flush threads don't wait for each other."""

    def __init__(self, run: Callable[[], None], name: str) -> None:
        super().__init__(target=run, name=name, daemon=False)


def _others_alive() -> bool:
    """Whether any thread is left that keeps the process alive, other than flush threads."""
    return any(
        t.is_alive() and not t.daemon and not isinstance(t, _FlushThread) for t in threading.enumerate()
    )


def _take(buffer: list[_T]) -> list[_T]:
    """Removes and returns what is in the buffer now, while others append to it."""
    taken = buffer[:]
    del buffer[: len(taken)]
    return taken


def resource(
    pipeline: str, offset_ns: int, instance: str | None, simulated: bool, attributes: Mapping[str, Scalar]
) -> dict[str, Scalar]:
    """A probe's resource attributes; the environment's (OTEL_*) come before the defaults."""
    host = socket.gethostname()
    given = dict(_given_attributes(os.environ.get("OTEL_RESOURCE_ATTRIBUTES", "")))
    service = os.environ.get("OTEL_SERVICE_NAME") or given.get("service.name") or pipeline
    own: dict[str, Scalar] = {
        "host.name": host,
        "service.instance.id": instance or str(uuid5(NAMESPACE_DNS, f"{pipeline}.{service}.{host}")),
        **given,
        "service.name": service,
        timebase.CLOCK_ATTRIBUTE: offset_ns,
        **attributes,
    }
    if session := os.environ.get(SESSION_VARIABLE):
        own[contract.SESSION_ID] = session
    if simulated:
        own[contract.SIMULATED] = True
    return dict(resource_of(own))


def _given_attributes(text: str) -> Iterator[tuple[str, str]]:
    """OTEL_RESOURCE_ATTRIBUTES: `key=value,key=value`, percent-encoded; no pair, no attribute."""
    for pair in text.split(","):
        key, equals, value = pair.partition("=")
        if equals and key.strip():
            yield key.strip(), unquote(value.strip())
