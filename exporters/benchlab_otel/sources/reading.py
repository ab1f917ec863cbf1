"""What a source hands over: a device, its readings, and the error that says why there are none.

A source is one module of this package with two functions:

- `addresses(settings) -> list[str]`: what can be read here, each in a thread of its own;
- `open_reader(settings, address) -> Reader`: opens one and makes sure that it is what it should be.

`settings` is the source's own section of `config.Sources`. Both raise SourceError. A further
source is a module, a section there, and its name in `sources.NAMES`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from benchlab_otel.contract import Metric
from benchlab_otel.model import Scalar

Reason = Literal[
    "absent",  # nothing there
    "busy",  # somebody else has it
    "unreadable",  # no permission
    "unknown",  # there, but not what this source can read
    "lost",  # was there, and went away
    "late",  # no answer in time
    "short",  # a part of an answer
    "garbled",  # an answer that is not one
    "implausible",  # an answer with values that can't be
]


class SourceError(Exception):
    """Why there is no reading: a word for the metrics, a sentence, and the fix where there is one."""

    def __init__(self, reason: Reason, message: str, fix: str = "") -> None:
        super().__init__(message)
        self.reason: Reason = reason
        self.fix = fix


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
    """One value of a reading: its attribute of the sample span ("" = none) and its metric series."""

    key: str
    metric: Metric
    labels: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Reading:
    """Values between request and response (Unix ns); NaN is absent. Same layout = same `fields`."""

    start_ns: int
    end_ns: int
    fields: Sequence[Field]
    values: Sequence[float]


class Reader(Protocol):
    """An open device."""

    device: Device

    def read(self) -> Reading:
        """One reading; SourceError when there is none, after which the reader is to be closed."""

    def close(self) -> None:
        """Lets go of the device; never raises."""
