"""What a source hands over: a device, its readings, and the error that says why there are none.

Reading is done in two steps, as a sampler that wakes a thousand times a second can do little each
time: `Reader.read` only asks, and `Reader.decode` makes values of many replies at once.

A source is one module of this package with two functions:

- `addresses(settings) -> list[str]`: what can be read here, each by a reader of its own; asked again
  every few seconds, so cheap, and it never raises;
- `open_reader(settings, address) -> Reader`: opens one and makes sure that it is what it should be,
  else SourceError.

It may have `WHERE_NOTHING_IS`, what to do where `addresses` finds nothing and something should be there, and
`OVER_NETWORK = True`: its devices are read apart from others.
A reader of what a server reads may have `paced`: whether readings come no faster however often one asks.

`settings` is the source's own section of `config.Sources`. A further source is a module, a section
there, and its name in `sources.NAMES`. One that writes to its devices has `controlled` too:

- `controlled(settings, latency) -> Callable[[str], Opening]`: how each address is opened by one start, with
  what its devices share. ValueError for a control that can't be. `latency` is that of the latest frames (s).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np

from benchlab_otel.contract import Metric
from benchlab_otel.model import Float, Int, Scalar

Reason = Literal[
    "absent",  # nothing there
    "busy",  # somebody else has it
    "unreadable",  # no permission
    "asleep",  # switched off by its power management, and not woken to be read
    "unknown",  # there, but not what this source can read
    "lost",  # was there, and went away
    "late",  # no answer in time
    "short",  # a part of an answer
    "garbled",  # an answer that is not one
    "implausible",  # an answer with values that can't be
    "reset",  # its counters began again
    "refused",  # a setting that the device did not take
    "defect",  # an error in this program
]


class SourceError(Exception):
    """Why there is no reading: a word for the metrics, a sentence, and the fix where there is one.

    Where the fix is a command, that is all of its first line, and words about it are on the next. `risk`
    says what the fix opens up, or why it is safe.
    """

    def __init__(self, reason: Reason, message: str, fix: str = "", risk: str = "") -> None:
        super().__init__(message)
        self.reason: Reason = reason
        self.fix = fix
        self.risk = risk


def refused(error: OSError) -> SourceError:
    """What it means that a device can't be opened: no permission, or it went just then."""
    what = f"{error.filename}: {error.strerror}" if error.filename else str(error)
    if isinstance(error, PermissionError):
        return SourceError("unreadable", what, "let the user that runs this program read it")
    return SourceError("lost", what)


@dataclass(frozen=True, slots=True)
class Device:
    """What is read: `hw_id` is stable across restarts; `attributes` go on each of its samples.

    `counting_since_ns` is when its counters began to count (Unix ns), 0 where there are none.
    """

    hw_id: str
    hw_type: str
    description: str
    simulated: bool = False
    attributes: Mapping[str, Scalar] = field(default_factory=dict)
    counting_since_ns: int = 0


@dataclass(frozen=True, slots=True)
class Field:
    """One value of a reading: its attribute of the sample span ("" = none) and its metric series, if any."""

    key: str
    metric: Metric | None
    labels: dict[str, str]


Reply = tuple[int, int, Any]
"""(start, end, raw): what came between request and response (Unix ns), in the reader's own form.

A plain tuple, as to make one with names costs a tenth of a sampler's time.
"""


@dataclass(frozen=True, slots=True)
class Batch:
    """n readings of the same fields: `start_ns`, `end_ns` (n,); `values` (n, len(fields)), NaN is absent."""

    start_ns: Int
    end_ns: Int
    fields: Sequence[Field]
    values: Float


class Reader(Protocol):
    """An open device. Used by several threads, one at a time."""

    device: Device

    def read(self) -> Reply:
        """One reading, undecoded; SourceError when there is none, after which the reader is to be closed."""

    def decode(self, replies: Sequence[Reply]) -> Iterator[Batch]:
        """The readings of all replies since the last call (at least one), also when closed.

        At the first reply that can't be, SourceError after all readings before it.
        """

    def close(self) -> None:
        """Lets go of the device; never raises."""


@dataclass(frozen=True, slots=True)
class Opening:
    """How a device is opened, each time; what to do when it is not opened any more.

    `alone`: its readings take long now and then, as it is written to or a network is between, so they are to
    hold up no others.
    """

    open_reader: Callable[[], Reader]
    finish: Callable[[], None] = lambda: None
    alone: bool = False


def columns(replies: Sequence[Reply]) -> tuple[Int, Int, tuple[Any, ...]]:
    """(start, end, raw) of replies, at least one; times in Unix ns."""
    start, end, raw = zip(*replies, strict=True)
    times = np.array((start, end), np.int64)
    return times[0], times[1], raw
