"""Recording a program that knows nothing of it: its environment, and the tracer log it then writes.

GStreamer's tracer times count from when the library was initialised, on CLOCK_MONOTONIC
(gst_util_get_timestamp), but that moment is logged nowhere. It is measured: a line read at T with
log time t says that the start was at T - t or before, and the earliest such moment over the first
half second is taken. It is late by the shortest time that any of those lines took from being logged
to being read: through a FIFO well under a millisecond, for a file polled every 10 ms a little more.
"""

from __future__ import annotations

import logging
import os
import select
import stat
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from benchlab_otel import timebase
from benchlab_otel.otlp.ids import random64
from benchlab_otel.otlp.sink import Sink
from benchlab_otel.probe.assemble import Identity
from benchlab_otel.probe.recorder import SESSION_VARIABLE, resource
from benchlab_otel.probe.tracerlog import Converter, Parser

log = logging.getLogger(__name__)

TRACER = "latency(flags=pipeline+element)"
_MEASURE_NS = 500_000_000
_POLL_S, _BATCH_S = 0.01, 0.1
_CHUNK = 1 << 20


def environment(
    endpoint: str,
    session_id: str,
    fifo: Path | None = None,
    protocol: str = "http/protobuf",
    base: Mapping[str, str] = os.environ,
) -> dict[str, str]:
    """The variables to add to a command's environment so that it reports to `endpoint`.

    With `fifo` a GStreamer program also logs its latency tracer there; tracers and debug levels that
    the user has set in `base` stay.
    """
    variables = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint,
        "OTEL_EXPORTER_OTLP_PROTOCOL": protocol,
        SESSION_VARIABLE: session_id,
    }
    if fifo is not None:
        tracers, levels = base.get("GST_TRACERS"), base.get("GST_DEBUG")
        variables |= {
            "GST_TRACERS": f"{tracers};{TRACER}" if tracers else TRACER,
            "GST_DEBUG": f"{levels},GST_TRACER:7" if levels else "GST_TRACER:7",
            "GST_DEBUG_FILE": str(fifo),
            "GST_DEBUG_COLOR_MODE": "off",
        }
    return variables


@dataclass(slots=True)
class Starts:
    """When each process's log began (Unix ns on the time base), as well as is known yet."""

    offset_ns: int
    _earliest: dict[int, int] = field(default_factory=dict)
    _since: dict[int, int] = field(default_factory=dict)

    def line_read(self, process: int, log_ns: int, monotonic_ns: int) -> None:
        """A line of log time `log_ns` had been read at `monotonic_ns`."""
        since = self._since.setdefault(process, monotonic_ns)
        start = monotonic_ns - log_ns
        if monotonic_ns - since <= _MEASURE_NS or process not in self._earliest:
            self._earliest[process] = min(start, self._earliest.get(process, start))

    def measuring(self, monotonic_ns: int) -> bool:
        """Whether some process's start is still being measured, so that prompt reading pays."""
        return any(monotonic_ns - since <= _MEASURE_NS for since in self._since.values())

    def known(self, monotonic_ns: int, last: bool = False) -> dict[int, int]:
        """The starts that are measured and will not change any more (`last`: all)."""
        return {
            process: start + self.offset_ns
            for process, start in self._earliest.items()
            if last or monotonic_ns - self._since[process] > _MEASURE_NS
        }


class Follower:
    """Reads a tracer log while it is being written, from a FIFO or a growing file, into a sink."""

    def __init__(self, path: Path, name: str, sink: Sink) -> None:
        """OSError where `path` cannot be opened. Frames go to `sink` as the pipeline `name`."""
        self.path = path
        self._sink = sink
        self._is_fifo = stat.S_ISFIFO(path.stat().st_mode)
        # Open for writing too: a FIFO then neither blocks here nor ends with its first writer.
        self._file = os.open(path, (os.O_RDWR if self._is_fifo else os.O_RDONLY) | os.O_NONBLOCK)
        offset_ns = timebase.anchor().offset_ns
        self._starts = Starts(offset_ns)
        self._parser = Parser()
        self._converter = Converter(
            name,
            resource(name, offset_ns, None, False, {}),
            self._parser.names,
            Identity(random64(), random64()),
        )
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="tracer-log", daemon=True)
        self._thread.start()

    @property
    def frames(self) -> int:
        """Frames sent so far."""
        return self._converter.frames

    @property
    def garbled(self) -> int:
        """Records that could not be read so far."""
        return self._parser.garbled

    def close(self) -> None:
        """Takes in what has been written, sends the last frames and stops."""
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.is_set():
            self._take(self._read())
            now = time.monotonic_ns()
            self._stop.wait(0 if self._is_fifo and self._starts.measuring(now) else self._pause_s())
            if self._is_fifo:
                select.select([self._file], [], [], _BATCH_S)
        while data := self._read():
            self._take(data)
        self._take(b"", last=True)
        os.close(self._file)
        if self.garbled:
            log.warning("%s: %d records of the tracer log could not be read", self.path, self.garbled)

    def _pause_s(self) -> float:
        return _BATCH_S if self._is_fifo else _POLL_S

    def _read(self) -> bytes:
        try:
            return os.read(self._file, _CHUNK)
        except BlockingIOError:
            return b""

    def _take(self, data: bytes, last: bool = False) -> None:
        now = time.monotonic_ns()
        self._parser.latest.clear()
        records = self._parser.feed(data, last)
        for process, log_ns in self._parser.latest.items():
            self._starts.line_read(process, log_ns, now)
        for body in self._converter.convert(records, self._starts.known(now, last), last):
            self._sink.traces(body)


def follow(path: Path, name: str, sink: Sink) -> Follower:
    """Starts to follow the tracer log `path`; `close()` what comes back when the program has ended."""
    return Follower(path, name, sink)
