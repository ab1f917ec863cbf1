"""Frames that a log tells one by one, gathered into blocks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

from benchlab_otel.imports.capture import Block, Stage
from benchlab_otel.model import COMPLETED, OUTCOMES
from benchlab_otel.otlp.encode import Optional

Interval = tuple[str, int, int]  # a stage's name, begin and end (ns)
FRAMES = 10_000  # of a block


@dataclass(slots=True)
class Gathering:
    """The frames of one pipeline that were not given out yet."""

    pipeline: str = ""
    _frames: list[tuple[int, int, int, int]] = field(default_factory=list)
    _stages: dict[str, list[tuple[int, int, int]]] = field(default_factory=dict)
    _figures: dict[str, dict[int, float]] = field(default_factory=dict)

    def add(
        self,
        number: int,
        begin: int,
        end: int,
        stages: Iterable[Interval] = (),
        outcome: str = COMPLETED,
        figures: Mapping[str, float] | None = None,
    ) -> None:
        """One frame; times ns. `figures` become attributes of its span."""
        row = len(self._frames)
        self._frames.append((number, begin, end, OUTCOMES.index(outcome)))
        for name, stage_begin, stage_end in stages:
            self._stages.setdefault(name, []).append((row, stage_begin, stage_end))
        for name, value in (figures or {}).items():
            self._figures.setdefault(name, {})[row] = value

    def full(self) -> Iterator[Block]:
        """A block where there are enough frames for one."""
        return self.rest() if len(self._frames) >= FRAMES else iter(())

    def rest(self) -> Iterator[Block]:
        """What there is, if anything."""
        if not self._frames:
            return
        n = len(self._frames)
        number, begin, end, outcome = np.array(self._frames, np.int64).T
        stages = [Stage(name, *np.array(rows, np.int64).T) for name, rows in self._stages.items()]
        attributes = {name: _optional(values, n) for name, values in self._figures.items()}
        yield Block(number, begin, end, outcome, stages, self.pipeline, {**attributes})
        self._frames, self._stages, self._figures = [], {}, {}


def _optional(values: Mapping[int, float], n: int) -> Optional:
    column = np.full(n, np.nan)
    column[list(values)] = list(values.values())
    return Optional(column, ~np.isnan(column))
