"""Where the host's clocks stand, once a second, as spans."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

import numpy as np

from benchlab_otel.config import Settings
from benchlab_otel.contract import CLOCK, CLOCK_SUSPENDED, CLOCK_WALL_OFFSET
from benchlab_otel.model import Resource
from benchlab_otel.otlp.encode import SpanBatch, encode_request
from benchlab_otel.otlp.ids import random64
from benchlab_otel.timebase import Anchor, ClockState, clock_event, clock_state

log = logging.getLogger(__name__)

CLOCK_CHECK_SECONDS = 1.0


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
