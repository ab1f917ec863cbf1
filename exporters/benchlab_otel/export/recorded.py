"""Frames with the energies that were recorded: the energy spans read back and joined by trace, not aligned.

For sessions whose samples are gone, and where a capture of a long session is wanted fast. What the spans
don't hold is absent: base, self-check, ledger, window, and how certain a mean over frames is (the frames'
figures share their errors, and how much is not recorded). The spans: docs/trace-schema.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from benchlab_otel.align.aligner import Aligned, Aligner, take_in
from benchlab_otel.align.attribution.attribute import Attribution, PipelineEnergy, StageFigure, nothing
from benchlab_otel.align.attribution.windows import Kernel
from benchlab_otel.align.columns import coded, floats, is_simulated
from benchlab_otel.align.energy_spans import METHODS
from benchlab_otel.align.frames import finish, frame_key
from benchlab_otel.archive.ahead import read_ahead
from benchlab_otel.archive.reader import read_spans
from benchlab_otel.archive.records import Fault
from benchlab_otel.archive.session import Session
from benchlab_otel.contract import SIMULATED
from benchlab_otel.export.recording import (
    FOREVER_NS,
    Recording,
    collected,
    conditioned_of,
    session_spans,
)
from benchlab_otel.model import Column, Float, FrameEnergy, Frames, Readings, Run, Spans, Uint

AHEAD = 200_000  # energy spans that are read before their frames come: so far apart may repeats stand
MARGIN_NS = 1_000_000_000  # that a span's time may be off its frame's
BEHIND_NS = 60_000_000_000  # spans so much older than the frames belong to none that comes
UNNAMED = "(meter not recorded)"
NO_FIGURE = "no figure of its own was recorded"
Progress = Callable[[int], None] | None
_PREFIX, _METHOD, _METER = "energy.", ".method", ".meter"


@dataclass(slots=True)
class _Block:
    """n energy spans that ended from `first` to `last` (Unix ns), by the `key` (n,) of their frame.

    The keys ascend; of a frame's spans the one read last stands last. `columns` (n,) are NaN where a span
    has no such attribute.
    """

    key: Uint
    first: int
    last: int
    columns: dict[str, Float]


@dataclass(slots=True)
class Energies:
    """A session's energy spans as they are read: `blocks` are those around the frames asked for last, or,
    if `whole`, all. `meters` names the meter of each domain; `late` spans came when their frames had gone.
    Without `stages` only what is of whole frames is read.
    """

    source: Iterator[Spans]
    whole: bool = False
    stages: bool = True
    blocks: list[_Block] = field(default_factory=list)
    meters: dict[str, str] = field(default_factory=dict)
    late: int = 0


def energies_of(
    session: Session,
    faults: list[Fault],
    progress: Progress = None,
    *,
    whole: bool = False,
    stages: bool = True,
) -> Energies:
    """The session's energy spans, not yet read. What can't be read will be noted in `faults`."""

    def read(found: list[Fault]) -> Iterator[Spans]:
        for path in session.energy:
            if stages:
                yield from read_spans([path], found, as_arrived=True, progress=progress)
            else:
                yield from _without_stages(path, found, progress)

    return Energies(read_ahead(read, faults), whole, stages)


def _without_stages(path: Path, faults: list[Fault], progress: Progress) -> Iterator[Spans]:
    """A file's spans with what is of whole frames.

    Domains have no dot. In another program's file they may: what is of such a domain looks as if it were of
    a stage, so from the block that names one on, nothing is left out.
    """
    count = 0
    for spans in read_spans([path], faults, as_arrived=True, wanted=_of_frame, progress=progress):
        if any(map(_has_dotted_domain, spans.attributes)):
            break
        yield spans
        count += 1
    else:
        return
    again: list[Fault] = []
    for number, spans in enumerate(read_spans([path], again, as_arrived=True)):
        if number > count:
            faults += again  # those before were told
        again.clear()
        if number >= count:
            yield spans
    faults += again


def _of_frame(attribute: str) -> bool:
    """Whether it is of a frame, not of a stage: energy.<domain>_j, not energy.<domain>.<stage>_j.

    Domains have no dot before an @ and the meter; what may be either is taken.
    """
    rest = attribute.removeprefix(_PREFIX)
    return rest != attribute and ("." not in rest.partition("@")[0] or rest.endswith((_METHOD, _METER)))


def _has_dotted_domain(attribute: str) -> bool:
    """Whether it is the method of a domain with a dot in its name."""
    domain = attribute.removeprefix(_PREFIX).removesuffix(_METHOD).partition("@")[0]
    return attribute.startswith(_PREFIX) and attribute.endswith(_METHOD) and "." in domain


def recorded_session(
    state: Aligner, session: Session, faults: list[Fault], progress: Progress = None, stages: bool = True
) -> Iterator[Aligned]:
    """The session's frames with their recorded energies, block by block; memory does not grow with it.

    `state` takes in the readings that are there. Without `stages` these have no figures.
    """
    energies = energies_of(session, faults, progress, stages=stages)
    for frames in session_frames(state, session, faults, progress):
        yield with_recorded(frames, energies, state.readings)
    if energies.late:
        reason = f"{energies.late} energy spans stand too far from their frames, and are left out"
        faults.append(Fault(", ".join(map(str, session.energy)), 0, reason, 0))


def session_frames(
    state: Aligner, session: Session, faults: list[Fault], progress: Progress = None
) -> Iterator[Frames]:
    """The session's frames, block by block; `state` takes in the readings that are there."""
    for spans in session_spans(session, faults, progress):
        yield from take_in(state, spans)
    yield from finish(state.assembly)


def load_recorded_runs(session: Session, faults: list[Fault], progress: Progress = None) -> list[Run]:
    """`load_conditioned_runs` with the energies as recorded."""
    state = Aligner(keep_ns=FOREVER_NS)
    return collected(state, recorded_session(state, session, faults, progress, stages=False))


def load_recorded(session: Session, faults: list[Fault], progress: Progress = None) -> Recording:
    """`load` with all that was recorded of frames and stages."""
    state = Aligner(keep_ns=FOREVER_NS)
    frames = session_frames(state, session, faults, progress)
    runs = collected(state, (Aligned(block, [], [], []) for block in frames))
    energies = energies_of(session, faults, progress, whole=True)
    told = [with_recorded(run.frames, energies, state.readings) for run in runs]
    series = {(r.meter, r.domain): r for one in told for r in one.readings}
    readings = [*series.values(), *(r for key, r in state.readings.items() if key not in series)]
    return Recording(
        [Run(one.frames, readings, [*one.energy, *conditioned_of(one)]) for one in told],
        [_attribution(r, told) for r in series.values()],
    )


# -- frames and their spans -------------------------------------------------------------------


def with_recorded(
    frames: Frames, energies: Energies, readings: Mapping[tuple[str, str], Readings]
) -> Aligned:
    """The frames with what was recorded of them; `readings` are those that are there, by meter and domain.

    A domain without readings gets an empty series, which tells what is measured.
    """
    found = _gathered(frames, _around(frames, energies))
    out = Aligned(frames, [], [], [])
    for domain in _domains(found):
        if np.isfinite(found.get(f"{_PREFIX}{domain}_j", np.nan)).any():
            simulated = bool((found[SIMULATED] == 1).any())
            series = _series(domain, energies.meters.get(domain, ""), readings, simulated)
            energy, figures = _figures(frames, found, domain, series, energies.stages)
            out.domains.append(domain)
            out.readings.append(series)
            out.energy.append(energy)
            out.conditioned.append(figures)
    return out


def _domains(found: dict[str, Float]) -> list[str]:
    """The domains of which anything is told; of several meters' the first one's, which has no @, first."""
    told = [name[len(_PREFIX) : -len(_METHOD)] for name in found if name.endswith(_METHOD)]
    names = [domain.partition("@")[0] for domain in told]
    return sorted(told, key=lambda domain: (names.index(domain.partition("@")[0]), "@" in domain))


def _around(frames: Frames, energies: Energies) -> list[_Block]:
    """The blocks that may have spans of these frames, in the order that they were read."""
    oldest, newest = int(frames.end[0]) - BEHIND_NS, int(frames.end[-1])
    if not energies.whole:
        energies.blocks = [b for b in energies.blocks if b.last >= oldest]
    coming = sum(len(b.key) for b in energies.blocks if b.first > newest)
    while energies.whole or coming < AHEAD:
        spans = next(energies.source, None)
        if spans is None:
            break
        block = _block(spans, energies.meters)
        if energies.whole or block.last >= oldest:
            energies.blocks.append(block)
            coming += len(block.key) * (block.first > newest)
        else:
            energies.late += len(block.key)
    return energies.blocks


def _block(spans: Spans, meters: dict[str, str]) -> _Block:
    """The spans by their frames; `meters` gets the names that they tell."""
    key = frame_key(spans.trace, spans.parent)
    order = np.argsort(key, kind="stable")
    simulated = np.array([is_simulated(resource) for resource in spans.resources], np.float64)
    columns = {SIMULATED: simulated[spans.resource][order]}
    for name, column in spans.attributes.items():
        if name.endswith(_METER):
            meters[name[len(_PREFIX) : -len(_METER)]] = str(column.values[0])
        elif name.startswith(_PREFIX):
            values = np.full(len(spans), np.nan)
            values[column.rows] = _numbers(column)
            columns[name] = values[order]
    return _Block(key[order], int(spans.end.min()), int(spans.end.max()), columns)


def _numbers(column: Column) -> Float:
    """An attribute's values: truth as 1 and 0, methods as their place in METHODS, NaN for what is neither."""
    if column.values.dtype.kind == "b":
        return column.values.astype(np.float64)
    if column.values.dtype.kind == "O":
        codes, names = coded(column.values)
        return np.array([METHODS.index(name) if name in METHODS else np.nan for name in names])[codes]
    return floats(column.values)


def _gathered(frames: Frames, blocks: list[_Block]) -> dict[str, Float]:
    """The columns (n,) of the frames' spans; of a frame that has several the one that was read last."""
    out: dict[str, Float] = {}
    for block in blocks:
        first, last = np.searchsorted(frames.end, [block.first - MARGIN_NS, block.last + MARGIN_NS + 1])
        wanted = frame_key(frames.trace[first:last], frames.span[first:last])
        at = np.searchsorted(block.key, wanted, side="right") - 1
        hit = np.flatnonzero(block.key[at] == wanted)
        if not len(hit):
            continue
        rows, at = hit + first, at[hit]
        for values in out.values():
            values[rows] = np.nan  # an older span of the frame counts no more
        for name, values in block.columns.items():
            if name not in out:
                out[name] = np.full(len(frames), np.nan)
            out[name][rows] = values[at]
    return out


def _series(
    domain: str, meter: str, readings: Mapping[tuple[str, str], Readings], simulated: bool
) -> Readings:
    """The readings of a domain as energy spans name it, an empty series where there are none."""
    name, _, later = domain.partition("@")
    known = meter or later or next((m for m, d in readings if d == name), UNNAMED)
    if (known, name) in readings:
        return readings[known, name]
    none = np.empty(0, np.int64)
    trace, span = np.empty((0, 2), np.uint64), np.empty(0, np.uint64)
    return Readings(known, name, "power", none, none, np.empty(0), trace, span, simulated=simulated)


def _figures(
    frames: Frames, found: dict[str, Float], domain: str, series: Readings, stages: bool
) -> tuple[FrameEnergy, PipelineEnergy | None]:
    """A domain's energies of the frames, interpolated and, where any is, conditioned."""
    n = len(frames)

    def column(name: str) -> Float:
        return found.get(f"{_PREFIX}{domain}{name}", np.full(n, np.nan))

    def by_method(plain: str, beside: str) -> tuple[Float, Float]:
        return np.where(conditioned, column(beside), column(plain)), np.where(
            conditioned, column(plain), np.nan
        )

    conditioned = column(_METHOD) == METHODS.index("conditioned")
    interpolated, joules = by_method("_j", "_interpolated_j")
    interpolated_half, half = by_method("_uncertainty_j", "_interpolated_uncertainty_j")
    none = np.full(n, -1, np.int64)
    energy = FrameEnergy(
        series.meter,
        series.domain,
        "interpolated",
        interpolated,
        interpolated_half,
        none,
        none,
        series.simulated,
    )
    if not conditioned.any():
        return energy, None
    stage, stage_half = (
        _of_stages(frames, column) if stages else np.full((2, len(frames.stage_frame)), np.nan)
    )
    return energy, PipelineEnergy(
        pipeline=frames.pipeline,
        own=_sums(frames, stage),
        own_uncertainty=np.full(n, np.nan),
        shared=column("_shared_j"),
        shared_uncertainty=column("_shared_uncertainty_j"),
        energy=joules,
        energy_uncertainty=half,
        stage=stage,
        stage_uncertainty=stage_half,
        first=none,
        last=none,
    )


def _of_stages(frames: Frames, column: Callable[[str], Float]) -> tuple[Float, Float]:
    """The joules (m,) of each visit of a stage, and their half widths."""
    part = _part_of_stage(frames)
    stage, half = np.full((2, len(frames.stage_frame)), np.nan)
    for code, name in enumerate(frames.stage_names):
        rows = np.flatnonzero(frames.stage == code)
        owner = frames.stage_frame[rows]
        stage[rows] = column(f".{name}_j")[owner] * part[rows]
        half[rows] = column(f".{name}_uncertainty_j")[owner] * part[rows]
    return stage, half


def _sums(frames: Frames, stage: Float) -> Float:
    """(n,) of each frame's stages, NaN where it has none or one has no figure."""
    sums = np.bincount(frames.stage_frame, stage, len(frames)).astype(np.float64)
    sums[np.bincount(frames.stage_frame, minlength=len(frames)) == 0] = np.nan
    return sums


def _part_of_stage(frames: Frames) -> Float:
    """(m,) what a visit is of all the time that its frame spent in the stage: only their sum is recorded."""
    pair = frames.stage_frame * len(frames.stage_names) + frames.stage
    visits = np.bincount(pair)[pair]
    length = (frames.stage_end - frames.stage_begin).astype(np.float64)
    whole = np.bincount(pair, length)[pair]
    return np.where(visits == 1, 1.0, np.divide(length, whole, out=1.0 / visits, where=whole > 0))


# -- what a session's figures say together ----------------------------------------------------


def _attribution(series: Readings, told: list[Aligned]) -> Attribution:
    """One domain's figures of all pipelines, with the means of their stages."""
    key = (series.meter, series.domain)
    pipelines, stages = [], []
    for one in told:
        own = next(
            (e for r, e in zip(one.readings, one.conditioned, strict=True) if (r.meter, r.domain) == key),
            None,
        )
        pipelines.append(own or nothing(one.frames))
        stages += [_stage_mean(one.frames, code, own) for code in range(len(one.frames.stage_names)) if own]
    return Attribution(
        meter=series.meter,
        domain=series.domain,
        kernel=Kernel(),
        simulated=series.simulated,
        pipelines=pipelines,
        stages=stages,
        frames_covered=sum(int(np.isfinite(one.energy).sum()) for one in pipelines),
        reason="" if stages else "nothing of stages was recorded",
    )


def _stage_mean(frames: Frames, code: int, energy: PipelineEnergy) -> StageFigure:
    """A stage's mean watts and joules a frame, without the ± of a mean, which is not recorded."""
    nan, name = float("nan"), frames.stage_names[code]
    rows = np.flatnonzero((frames.stage == code) & np.isfinite(energy.stage))
    count = len(np.unique(frames.stage_frame[rows]))
    seconds = float((frames.stage_end - frames.stage_begin)[rows].sum()) / 1e9
    joules = float(energy.stage[rows].sum())
    return StageFigure(
        pipeline=frames.pipeline,
        group=[name],
        watts=joules / seconds if seconds > 0 else nan,
        watts_uncertainty=nan,
        spread=nan,
        joules=joules / count if count else nan,
        joules_uncertainty=nan,
        frames=count,
        reason="" if count else NO_FIGURE,
    )
