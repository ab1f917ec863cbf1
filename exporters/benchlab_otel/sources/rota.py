"""Devices that answer quickly are read one after another, at one moment of each period.

A thread that wakes finds the processor's caches cold: that alone costs more than most readings do, and
the second reading after it costs a fraction of the first. So one wake is to do for all devices. Those of a
lower rate are guests: read in one of several periods, drawn at random like the moment in it, as long as
there is a device of the rota's own rate.

A device comes in when it has proved quick, and leaves when a reading fails, takes long or is to end: its own
thread, which sleeps in `take` for so long, opens it again, reads it alone or closes it.

Two threads take turns: each takes the next period that nobody has taken. Where a device hangs, the other
thread finds it in use, ends its turn, and starts a thread in the place of the one that hangs. So a device
that hangs costs the others a reading or two, once, and any number of them can hang.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from random import randrange
from threading import Event, Lock, Thread, current_thread

from benchlab_otel.sources.reading import Reply
from benchlab_otel.sources.schedule import Schedule, multiple_after

QUICK = 1 / 8  # of the period: how long a reading may take (Python may let it wait 5 ms for other threads)
HANGS_S = 0.1
MOST_HZ = 100.0  # of a rota with guests: a wake is cheap where the last one was a moment ago
_THREADS = 2


class Turn:
    """A device while it is in the rota, read once in each `every` periods.

    `read` reads it, `replies` takes what it says, `tell` hands that on, given the time (CLOCK_MONOTONIC in
    seconds). Only who holds `lock` may call them, and only until `ended` is set.
    """

    def __init__(
        self, read: Callable[[], Reply], replies: list[Reply], tell: Callable[[float], None], every: int = 1
    ) -> None:
        self.read, self.replies, self.tell, self.every = read, replies, tell, every
        self.due = 0  # a guest: number of the period of the next reading
        self.lock = Lock()
        self.ended = Event()
        self.error: Exception | None = None  # that ended it
        self.lasted = 0.0  # the last reading, s
        self.thread: Thread | None = None  # that holds the lock, or did so last

    def end(self, error: Exception) -> None:
        """Ends it by what is raised in `take`."""
        self.error = error
        self.ended.set()


class Rota:
    """The devices that are read by one schedule, and tell each `tell_s()` seconds.

    A reading may take `quick` of its period.
    """

    def __init__(self, schedule: Schedule, tell_s: Callable[[], float], quick: float = QUICK) -> None:
        self._schedule, self._tell_s = schedule, tell_s
        self._longest_s = quick * schedule.period
        self._tell_due = 0.0
        self._lock = Lock()  # of all below
        self._quick: set[object] = set()
        self._turns: list[Turn] = []  # replaced by another list, never changed
        self._threads: set[Thread] = set()
        self._draws: dict[int, tuple[int, int]] = {}  # the last block of each `every`, and what was drawn

    # -- for the devices' own threads ---------------------------------------------------------

    def has_room(self, device: object, longest_s: float, every: int = 1) -> bool:
        """Whether a device whose readings took up to `longest_s` can be read together with another.

        A guest needs one of the rota's own rate that is being read here already.
        """
        with self._lock:
            if longest_s > self._longest_s:
                self._quick.discard(device)
                return False
            self._quick.add(device)
            return len(self._quick) > 1 if every == 1 else not _only_guests(self._turns)

    def forget(self, device: object) -> None:
        """The device is closed, or read elsewhere."""
        with self._lock:
            self._quick.discard(device)

    def take(self, turn: Turn) -> None:
        """Has a device read until its turn has ended; raises what ended it."""
        with self._lock:
            if turn.every > 1:
                turn.due = self._due_after(self._schedule.number, turn.every)
            self._turns = sorted([*self._turns, turn], key=lambda t: t.every)  # guests come last
            self._see_guests_off()
            while len(self._threads) < _THREADS:
                self._start_thread()
        turn.ended.wait()
        with self._lock:
            self._turns = [t for t in self._turns if t is not turn]
            self._see_guests_off()
        with turn.lock:  # after the reading that is going on
            if turn.error:
                raise turn.error

    def _see_guests_off(self) -> None:
        """Without a device of the rota's own rate its threads would sleep too long for one that comes."""
        if _only_guests(self._turns):
            for turn in self._turns:
                turn.ended.set()

    # -- the two threads ----------------------------------------------------------------------

    def _start_thread(self) -> None:
        thread = Thread(target=self._work, name="benchlab-otel-rota", daemon=True)
        self._threads.add(thread)
        thread.start()

    def _work(self) -> None:
        me = current_thread()
        while (period := self._next_period(me)) is not None:
            deadline, due = period
            time.sleep(max(0.0, deadline - time.monotonic()))
            self._read_all(me, due)
            if deadline >= self._tell_due:
                self._tell_due = multiple_after(deadline, self._tell_s())
                for turn in self._turns:
                    if self._has(me, turn):
                        self._tell(turn, deadline)

    def _read_all(self, me: Thread, due: list[Turn]) -> None:
        """Reads devices one after another, with few calls of functions: they cost most just after a sleep."""
        for turn in due:
            if self._has(me, turn):
                begin = time.monotonic()
                try:
                    turn.replies.append(turn.read())
                except Exception as error:  # raised in `take`
                    turn.end(error)
                turn.lasted = lasted = time.monotonic() - begin
                if lasted > self._longest_s:
                    turn.ended.set()
                turn.lock.release()

    def _next_period(self, me: Thread) -> tuple[float, list[Turn]] | None:
        """Deadline and devices of the next period; None for a thread that is not needed."""
        with self._lock:
            if not self._turns or me not in self._threads:
                self._threads.discard(me)
                return None
            deadline = self._schedule.next(time.monotonic())
            number, due = self._schedule.number, []
            for turn in self._turns:
                if turn.due <= number:
                    due.append(turn)
                    if turn.every > 1:
                        turn.due = self._drawn(number // turn.every + 1, turn.every)
            return deadline, due

    def _has(self, me: Thread, turn: Turn) -> bool:
        """Takes the lock of a device, unless its turn has ended or this thread was given up."""
        if not turn.lock.acquire(timeout=HANGS_S):
            self._give_up(turn)
            return False
        turn.thread = me
        if me in self._threads and not turn.ended.is_set():
            return True
        turn.lock.release()
        return False

    def _tell(self, turn: Turn, deadline: float) -> None:
        """Hands on what a device has said, and lets go of it."""
        try:
            turn.tell(deadline)
        except Exception as error:  # raised in `take`
            turn.end(error)
        turn.lock.release()

    def _due_after(self, number: int, every: int) -> int:
        """The first period after `number` that was drawn for readings in one of `every`."""
        block = (number + 1) // every
        due = self._drawn(block, every)
        return due if due > number else self._drawn(block + 1, every)

    def _drawn(self, block: int, every: int) -> int:
        """A random one of the `every` periods of a block: the same for all devices, for one wake."""
        if self._draws.get(every, (-1, 0))[0] != block:
            self._draws[every] = block, block * every + randrange(every)
        return self._draws[every][1]

    def _give_up(self, turn: Turn) -> None:
        """Ends the turn of a device that hangs, and replaces the thread that it holds up."""
        with self._lock:
            if turn.thread in self._threads:
                self._threads.remove(turn.thread)
                self._start_thread()
        turn.ended.set()


def _only_guests(turns: list[Turn]) -> bool:
    return all(turn.every > 1 for turn in turns)


@dataclass(frozen=True, slots=True)
class Seat:
    """Where a device may be read with others: in one of `every` periods of a rota."""

    rota: Rota
    every: int
