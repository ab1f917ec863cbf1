"""What every reader of a foreign file gives: frames and readings in blocks, and what could not be read.

A reader is a module with `HINT` (how such a file comes to be), `detect(head) -> bool` (the file's first
`HEAD` bytes) and `read(capture) -> Iterator[Block | Samples]`. It sets `capture.zero` before it gives
the first block, notes what it passes over in `capture.faults`, and raises FormatError for a file that
it can make nothing of.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from benchlab_otel.model import Bool, Float, Int
from benchlab_otel.otlp.encode import Attribute

HEAD = 1 << 20
LIMIT_S = 1e10  # no time in seconds, relative or of an epoch, is beyond this
_EXAMPLES = 3


class FormatError(ValueError):
    """A file that is not of its format; the message says where, and what was expected."""


@dataclass(slots=True)
class Stage:
    """m intervals of one stage: `frame` (m,) rows of the block's frames; `begin`, `end` (m,) ns."""

    name: str
    frame: Int
    begin: Int
    end: Int
    attributes: dict[str, Attribute] = field(default_factory=dict)


@dataclass(slots=True)
class Block:
    """n frames of one pipeline, `pipeline` "" for the capture's first; times (n,) ns since `Capture.zero`.

    `outcome` (n,) into `model.OUTCOMES`; `number` (n,) as the file counts, or in its order.
    """

    number: Int
    begin: Int
    end: Int
    outcome: Int
    stages: list[Stage]
    pipeline: str = ""
    attributes: dict[str, Attribute] = field(default_factory=dict)


@dataclass(slots=True)
class Samples:
    """n readings of one meter: taken between `begin` and `end` (n,) ns since `Capture.zero`.

    `keys` are attributes of sample spans, `values` (n, len(keys)), NaN is absent.
    """

    hw_id: str
    hw_type: str
    begin: Int
    end: Int
    keys: tuple[str, ...]
    values: Float


@dataclass(frozen=True, slots=True)
class Zero:
    """Unix time (ns) of the file's time 0 or, where `at_end`, of its last time; `source`: who says so."""

    ns: int
    source: str
    at_end: bool = False


UNIX = Zero(0, "the file itself")


@dataclass(slots=True)
class Faults:
    """What of a file could not be read: how much, and where the first few are."""

    count: int = 0
    examples: list[str] = field(default_factory=list)

    def add(self, where: int | str, reason: str) -> None:
        """One more that could not be read, in a line (from 1) or at a place with a name."""
        self.count += 1
        if len(self.examples) < _EXAMPLES:
            self.examples.append(
                f"line {where}: {reason}" if isinstance(where, int) else f"{where}: {reason}"
            )


@dataclass(slots=True)
class Capture:
    """A file that is being read, and what its reader finds out about it."""

    path: Path
    name: str = ""  # of what was recorded, as the file has it
    zero: Zero | None = None  # None: the file has only relative times
    simulated: bool = False
    notes: list[str] = field(default_factory=list)
    faults: Faults = field(default_factory=Faults)
    advance: Callable[[int], object] = lambda size: None  # is told how much was read

    def error(self, line: int, problem: str) -> FormatError:
        """The error of this file at this line (from 1; 0: the file as a whole)."""
        return FormatError(f"{self.path}: line {line}: {problem}" if line else f"{self.path}: {problem}")


def ns(milliseconds: Float) -> Int:
    """Milliseconds as whole nanoseconds."""
    return np.rint(milliseconds * 1e6).astype(np.int64)


def ns_of_seconds(seconds: Float) -> Int:
    """Seconds as nanoseconds; whole seconds and fraction apart, so that an epoch keeps its digits."""
    whole = np.floor(seconds)
    return whole.astype(np.int64) * 1_000_000_000 + np.rint((seconds - whole) * 1e9).astype(np.int64)


def stage(name: str, present: Bool, begin: Int, end: Int) -> list[Stage]:
    """The stage in the rows (n,) that have it; none where no row has."""
    rows = np.flatnonzero(present & (end >= begin))
    return [Stage(name, rows, begin[rows], end[rows])] if len(rows) else []
