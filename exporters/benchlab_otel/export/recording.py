"""A session read back: its runs, aligned by the same code as live, and what its meters tell of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import product
from mmap import MAP_ANONYMOUS, MAP_PRIVATE, PAGESIZE, mmap
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from benchlab_otel.align.aligner import Aligned, Aligner, align, close
from benchlab_otel.align.attribution.attribute import Attribution, PipelineEnergy
from benchlab_otel.align.attribution.meters import attribute_all
from benchlab_otel.align.segments import Segment, add_to_segment, finish_segment, forget_readings
from benchlab_otel.archive.ahead import read_ahead
from benchlab_otel.archive.reader import read_spans
from benchlab_otel.archive.records import Fault
from benchlab_otel.archive.session import Session
from benchlab_otel.model import FrameEnergy, Frames, Int, Readings, Run, Spans

Array = NDArray[Any]
Columns = TypeVar("Columns", Frames, FrameEnergy)

FOREVER_NS = 1 << 62
METHODS = ("interpolated", "conditioned")


@dataclass(slots=True)
class Recording:
    """The runs of a session, and one attribution a meter and domain; its `pipelines[i]` is of `runs[i]`."""

    runs: list[Run]
    attributions: list[Attribution]


def load(session: Session, faults: list[Fault], progress: Callable[[int], None] | None = None) -> Recording:
    """All that a session holds; each run's energies are there interpolated and conditioned.

    What could not be read is noted in `faults`. Raises OSError where a file can't be opened.
    """
    return attributed(load_runs(session, faults, progress))


def attributed(runs: list[Run]) -> Recording:
    """Attributes the readings of the runs' session to their frames and stages; adds to the runs' energies."""
    readings = runs[0].readings if runs else []
    recording = Recording(runs, attribute_all([run.frames for run in runs], readings))
    for i, run in enumerate(runs):
        told = zip(readings, of_run(recording, i), strict=True)
        energies = [_conditioned(series, energy) for series, (_, energy) in told]
        run.energy += [energy for energy in energies if np.isfinite(energy.energy).any()]
    return recording


def of_run(recording: Recording, i: int) -> list[tuple[Attribution, PipelineEnergy]]:
    """What each meter's domain tells of one run."""
    return [(a, a.pipelines[i]) for a in recording.attributions]


def conditioned_of(block: Aligned) -> Iterator[FrameEnergy]:
    """The conditioned energies of the block's domains that have any."""
    for series, energy in zip(block.readings, block.conditioned, strict=False):  # [] where there is none
        if energy is not None:
            yield _conditioned(series, energy)


def _conditioned(readings: Readings, energy: PipelineEnergy) -> FrameEnergy:
    return FrameEnergy(
        meter=readings.meter,
        domain=readings.domain,
        method="conditioned",
        energy=energy.energy,
        uncertainty=energy.energy_uncertainty,
        first=energy.first,
        last=energy.last,
        simulated=readings.simulated,
    )


def load_runs(
    session: Session, faults: list[Fault], progress: Callable[[int], None] | None = None
) -> list[Run]:
    """One run for each pipeline of each service, in order of appearance; [] for an empty session.

    What could not be read is noted in `faults`. Raises OSError where a file can't be opened.
    """
    state = Aligner(keep_ns=FOREVER_NS)
    return collected(state, align_session(state, session, faults, progress))


def load_conditioned_runs(
    session: Session, faults: list[Fault], progress: Callable[[int], None] | None = None
) -> list[Run]:
    """`load_runs` with the conditioned energies too, found a segment at a time as `align` does.

    For those who need no attribution: beside the runs only a segment is in memory. The energies of a
    session of one segment are those of `load`.
    """
    state = Aligner(keep_ns=FOREVER_NS)
    return collected(state, conditioned_session(state, session, faults, progress))


def collected(state: Aligner, blocks: Iterator[Aligned]) -> list[Run]:
    """The blocks by pipeline, with all the readings that the aligner then has."""
    growing: dict[tuple[str, str], _Growing] = {}
    told: dict[tuple[str, str], Readings] = {}  # what was measured by samples that are gone
    for block in blocks:
        key = (block.frames.service, block.frames.pipeline)
        growing.setdefault(key, _Growing(block.frames)).add(block)
        told |= {(r.meter, r.domain): r for r in block.readings if not len(r)}
    readings = list((told | state.readings).values())
    runs = [run.finish(readings) for run in growing.values()]
    return [in_order(run, run.frames.end) for run in runs]  # one that arrived very late is in a later block


def session_spans(
    session: Session, faults: list[Fault], progress: Callable[[int], None] | None = None
) -> Iterator[Spans]:
    """The session's spans, in blocks: as they arrived where it was recorded live, so that the figures are
    the same again."""
    live = session.manifest is not None and session.manifest.live
    return read_ahead(
        lambda found: read_spans(session.traces, found, as_arrived=live, progress=progress), faults
    )


def align_session(
    state: Aligner, session: Session, faults: list[Fault], progress: Callable[[int], None] | None = None
) -> Iterator[Aligned]:
    """The session's frames with their energy, block by block; memory does not grow with its length."""
    for spans in session_spans(session, faults, progress):
        yield from align(state, spans)
    yield from close(state)


def conditioned_session(
    state: Aligner,
    session: Session,
    faults: list[Fault],
    progress: Callable[[int], None] | None = None,
    forget: bool = False,
) -> Iterator[Aligned]:
    """`align_session` with conditioned figures; `state` must not forget readings by itself (FOREVER_NS).

    With `forget` those go that no later frame needs, so that memory does not grow with the session.
    """
    segment = Segment()
    for spans in session_spans(session, faults, progress):
        yield from add_to_segment(segment, state, align(state, spans))
        if forget:
            forget_readings(state, segment)
    yield from add_to_segment(segment, state, close(state))
    yield from finish_segment(segment, state)


class _Column:
    """An array that grows in place, in pages of its own.

    A long session is never in memory twice, and leaves no holes in the heap as it grows.
    """

    def __init__(self, like: Array, absent: float = 0) -> None:
        self._like = like[:0]
        self._row_bytes = like.itemsize * math.prod(like.shape[1:])
        self._absent = absent
        self._size = 0
        self._pages = mmap(-1, PAGESIZE, MAP_PRIVATE | MAP_ANONYMOUS)

    def add(self, values: Array, at: int | None = None) -> None:
        """Appends values, at a row further on if the rows before it have none."""
        self.reach(self._size if at is None else at)
        start = self._size
        self._grow(start + len(values))
        self.array()[start:] = values

    def reach(self, size: int) -> None:
        """Grows to `size` rows; the new ones are absent."""
        start = self._size
        if size > start:
            self._grow(size)
            self.array()[start:] = self._absent

    def _grow(self, size: int) -> None:
        self._size = size
        needed = size * self._row_bytes
        if needed > len(self._pages):
            self._pages.resize(needed + needed // 8)

    def array(self) -> Array:
        """The rows; while anyone has them the column can't grow."""
        shape = (self._size, *self._like.shape[1:])
        return np.ndarray(shape, self._like.dtype, self._pages)


_OF_FRAMES = ("trace", "span", "begin", "end", "number", "outcome")
_OF_STAGES = ("stage_frame", "stage", "stage_begin", "stage_end")
_OF_ENERGY = {"energy": np.nan, "uncertainty": np.nan, "first": -1, "last": -1}  # and what is absent


class _Growing:
    """A run to which blocks are added."""

    def __init__(self, first: Frames) -> None:
        self._first = first
        self._count = 0
        self._stages: dict[str, int] = {}
        self._frames = {name: _Column(getattr(first, name)) for name in (*_OF_FRAMES, *_OF_STAGES)}
        self._energy: dict[tuple[str, str, str], tuple[FrameEnergy, dict[str, _Column]]] = {}
        self._simulated = False

    def add(self, block: Aligned) -> None:
        frames = block.frames
        codes = [self._stages.setdefault(name, len(self._stages)) for name in frames.stage_names]
        for name in (*_OF_FRAMES, "stage_begin", "stage_end"):
            self._frames[name].add(getattr(frames, name))
        self._frames["stage"].add(np.array(codes, np.int32)[frames.stage])
        self._frames["stage_frame"].add(frames.stage_frame + self._count)
        for energy in (*block.energy, *conditioned_of(block)):
            self._add_energy(energy)
        self._count += len(frames)
        self._simulated |= frames.simulated

    def _add_energy(self, energy: FrameEnergy) -> None:
        if not np.isfinite(energy.energy).any():
            return
        key = (energy.meter, energy.domain, energy.method)
        if key not in self._energy:
            columns = {name: _Column(getattr(energy, name), absent) for name, absent in _OF_ENERGY.items()}
            self._energy[key] = energy, columns
        for name, column in self._energy[key][1].items():
            column.add(getattr(energy, name), at=self._count)

    def finish(self, readings: list[Readings]) -> Run:
        """The run, with all readings of the session and the energies that any frame has."""
        arrays: dict[str, Any] = {name: column.array() for name, column in self._frames.items()}
        frames = replace(self._first, **arrays, stage_names=list(self._stages), simulated=self._simulated)
        energies = []
        for method, series in product(METHODS, readings):
            if (series.meter, series.domain, method) in self._energy:
                one, columns = self._energy[series.meter, series.domain, method]
                for column in columns.values():
                    column.reach(self._count)
                values: dict[str, Any] = {name: column.array() for name, column in columns.items()}
                energies.append(replace(one, **values, simulated=series.simulated))
        return Run(frames, readings, energies)


def in_order(run: Run, time: Int) -> Run:
    """The frames by a time (n,) of each."""
    frames = run.frames
    if (np.diff(time) >= 0).all():
        return run
    order = np.argsort(time, kind="stable")
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    owner = rank[frames.stage_frame]
    by_frame = np.argsort(owner, kind="stable")
    ordered = _taken(replace(frames, stage_frame=owner), _OF_STAGES, by_frame)
    energy = [_taken(e, _OF_ENERGY, order) for e in run.energy]
    return Run(_taken(ordered, _OF_FRAMES, order), run.readings, energy)


def _taken(columns: Columns, names: Iterable[str], rows: Int) -> Columns:
    """The same with these columns in another order, or of some rows."""
    some: dict[str, Any] = {name: getattr(columns, name)[rows] for name in names}
    return replace(columns, **some)
