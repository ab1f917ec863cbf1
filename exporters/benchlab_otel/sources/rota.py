"""Devices of one rate that answer quickly are read one after another, at one moment of each period.

A thread that wakes finds the processor's caches cold: that alone costs more than most readings do, and
the second reading after it costs a fraction of the first. So one wake is to do for all devices.

A device comes in when it has proved quick, and leaves when a reading fails, takes long or is to end: its own
thread, which sleeps in `take` for so long, opens it again, reads it alone or closes it.

Two threads take turns: each takes the next period that nobody has taken. Where a device hangs, the other
thread finds it in use, ends its turn, and starts a thread in the place of the one that hangs. So a device
that hangs costs the others a reading or two, once, and any number of them can hang.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from threading import Event, Lock, Thread, current_thread
from typing import Any

from benchlab_otel.sources.schedule import Schedule, multiple_after

QUICK = 1 / 8  # of the period: how long a reading may take (Python may let it wait 5 ms for other threads)
HANGS_S = 0.1
_THREADS = 2


class Turn:
    """A device while it is in the rota.

    `read` reads it once and gives how long that took (s); `tell` hands on what was read, given the time
    (CLOCK_MONOTONIC in seconds). Only who holds `lock` may call them, and only until `ended` is set.
    """

    def __init__(self, read: Callable[[], float], tell: Callable[[float], None]) -> None:
        self.read, self.tell = read, tell
        self.lock = Lock()
        self.ended = Event()
        self.error: Exception | None = None  # that ended it
        self.thread: Thread | None = None  # that holds the lock, or did so last


class Rota:
    """The devices of one rate, which tell each `tell_s`."""

    def __init__(self, schedule: Schedule, tell_s: float) -> None:
        self._schedule, self._tell_s = schedule, tell_s
        self._tell_due = 0.0
        self._lock = Lock()  # of all below
        self._quick: set[object] = set()
        self._turns: list[Turn] = []  # replaced by another list, never changed
        self._threads: set[Thread] = set()

    # -- for the devices' own threads ---------------------------------------------------------

    def has_room(self, device: object, longest_s: float) -> bool:
        """Whether a device whose readings took up to `longest_s` can be read together with another."""
        with self._lock:
            if longest_s > QUICK * self._schedule.period:
                self._quick.discard(device)
                return False
            self._quick.add(device)
            return len(self._quick) > 1

    def forget(self, device: object) -> None:
        """The device is closed."""
        with self._lock:
            self._quick.discard(device)

    def take(self, turn: Turn) -> None:
        """Has a device read until its turn has ended; raises what ended it."""
        with self._lock:
            self._turns = [*self._turns, turn]
            while len(self._threads) < _THREADS:
                self._start_thread()
        turn.ended.wait()
        with self._lock:
            self._turns = [t for t in self._turns if t is not turn]
        with turn.lock:  # after the reading that is going on
            if turn.error:
                raise turn.error

    # -- the two threads ----------------------------------------------------------------------

    def _start_thread(self) -> None:
        thread = Thread(target=self._work, name="benchlab-otel-rota", daemon=True)
        self._threads.add(thread)
        thread.start()

    def _work(self) -> None:
        me = current_thread()
        while (deadline := self._next_deadline(me)) is not None:
            time.sleep(max(0.0, deadline - time.monotonic()))
            turns = self._turns
            for turn in turns:
                self._do(me, turn, self._read, turn)
            if deadline >= self._tell_due:
                self._tell_due = multiple_after(deadline, self._tell_s)
                for turn in turns:
                    self._do(me, turn, turn.tell, deadline)

    def _next_deadline(self, me: Thread) -> float | None:
        """The next one that nobody has taken; None for a thread that is not needed any more."""
        with self._lock:
            if self._turns and me in self._threads:
                return self._schedule.next(time.monotonic())
            self._threads.discard(me)
            return None

    def _do(self, me: Thread, turn: Turn, what: Callable[[Any], None], argument: Any) -> None:
        """Does something with a device, unless its turn has ended or this thread was given up."""
        if not turn.lock.acquire(timeout=HANGS_S):
            self._give_up(turn)
            return
        try:
            turn.thread = me
            if me in self._threads and not turn.ended.is_set():
                what(argument)
        except Exception as error:  # raised in `take`
            turn.error = error
            turn.ended.set()
        finally:
            turn.lock.release()

    def _read(self, turn: Turn) -> None:
        if turn.read() > QUICK * self._schedule.period:
            turn.ended.set()

    def _give_up(self, turn: Turn) -> None:
        """Ends the turn of a device that hangs, and replaces the thread that it holds up."""
        with self._lock:
            if turn.thread in self._threads:
                self._threads.remove(turn.thread)
                self._start_thread()
        turn.ended.set()
