"""One stretch of readings: fitted, conditioned, and added to the sums by frame and stage."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from benchlab_otel.align.attribution import selfcheck
from benchlab_otel.align.attribution.condition import Posterior, Wanted, condition, energies, sums_of
from benchlab_otel.align.attribution.conserve import Entry, Shares, entry
from benchlab_otel.align.attribution.design import Design, Pieces, build, part_of
from benchlab_otel.align.attribution.fit import fit
from benchlab_otel.align.attribution.gls import Fit, Variances
from benchlab_otel.align.attribution.matrix import of_entries, of_rows
from benchlab_otel.align.attribution.misfit import Misfit, Moved, misfit
from benchlab_otel.align.attribution.overlap import Weight, seconds_in
from benchlab_otel.align.attribution.resolve import BASE, TOO_LITTLE, Resolution, regrouped, resolve
from benchlab_otel.align.attribution.selfcheck import SelfCheck
from benchlab_otel.align.attribution.tails import SHOCK_ROUNDS, with_shocks
from benchlab_otel.align.attribution.windows import Windows
from benchlab_otel.align.attribution.work import Work
from benchlab_otel.model import Bool, Float, Int

_LONG_PIECE = 16.0  # periods; a longer piece is cut into parts with powers of their own
_PLAIN_ROWS = 4096  # rows that the model without stages is tried on

Core = tuple[float, float]


@dataclass(slots=True)
class StageSum:
    """What the blocks say of one stage or group: Σ seconds · W and its variance, Σ joules of covered
    frames and theirs."""

    seconds: float = 0.0
    watts: float = 0.0
    variance: float = 0.0
    spread: float = 0.0
    joules: float = 0.0
    joules_variance: float = 0.0
    reason: str = ""


@dataclass(slots=True)
class Sums:
    """Energies (J) and their standard deviations by frame (own, shared, in flight: (3, n)) and by stage
    row (m,); `covered` (n,) tells which frames the meter saw whole, `usable` (m,) is False where a stage
    can't be resolved, `known` (n,) where what a frame did is not known (`forget_lost`)."""

    work: Work
    shares: Shares
    covered: Bool
    frame: Float = field(init=False)
    frame_sd: Float = field(init=False)
    stage: Float = field(init=False)
    stage_sd: Float = field(init=False)
    usable: Bool = field(init=False)
    known: Bool = field(init=False)
    first: Int = field(init=False)
    last: Int = field(init=False)
    stages: dict[tuple[int, ...], StageSum] = field(default_factory=dict)
    base: list[tuple[float, float, float]] = field(default_factory=list)
    checks: list[tuple[int, SelfCheck]] = field(default_factory=list)
    entries: list[Entry] = field(default_factory=list)

    def __post_init__(self) -> None:
        n, m = len(self.work.begin), len(self.work.frame)
        self.frame, self.frame_sd = np.zeros((3, n)), np.zeros((3, n))
        self.stage, self.stage_sd = np.zeros(m), np.zeros(m)
        self.usable, self.known = np.ones(m, bool), np.ones(n, bool)
        self.first, self.last = np.full(n, -1, np.int64), np.full(n, -1, np.int64)


@dataclass(slots=True)
class Block:
    """A fitted block: its posterior, `owner` (pieces,) the stage row of each piece, and what was found;
    `misfit` where the readings contradict the model."""

    posterior: Posterior
    owner: Int
    fit: Fit
    resolution: Resolution
    check: SelfCheck
    misfit: Misfit | None


def fitted_block(work: Work, rows: Windows, start: Variances | None, fit_rows: int) -> Block:
    """Fits the rows with all the work that they see, sets shocks free, and checks itself."""
    full, owner = design_of(work, rows)
    names = [stage for _, stage in work.names]
    design, found, resolution = resolve(full, names, start, fit_rows)
    span = usual_span(work, rows)
    posterior = condition(design, found, span)
    if selfcheck.heavy_tails(posterior.solved, design):
        for _ in range(SHOCK_ROUNDS):
            freed = with_shocks(posterior)
            if freed is None:
                break
            found = fit(freed, found.variances, fit_rows)
            posterior = condition(freed, found, span)
        if any(resolution.reason):  # the shocks may have been why
            calm = posterior.design
            full = replace(full, step_extra=calm.step_extra, error_extra=calm.error_extra)
            design, found, resolution = resolve(full, names, start, fit_rows)
            posterior = condition(design, found, span)
    kept = resolution.column[work.stage[owner]] != BASE
    owner, check = owner[kept], _check(posterior)
    wrong = _misfit(work, posterior, owner, resolution)
    if wrong is not None:
        check.findings.append(wrong.finding)
    return Block(posterior, owner, found, resolution, check, wrong)


def _misfit(work: Work, posterior: Posterior, owner: Int, resolution: Resolution) -> Misfit | None:
    """What the readings say against the marks and steady powers of the stage rows that the block sees."""
    names = [
        " and ".join(work.names[s][1] for s in np.flatnonzero(resolution.column == c))
        for c in range(posterior.design.pieces.stages)
    ]
    rows = owner[np.diff(owner, prepend=-1) != 0]  # parts of one row are neighbours
    return misfit(
        posterior, work.piece_begin[rows], work.piece_end[rows], resolution.column[work.stage[rows]], names
    )


def usual_span(work: Work, rows: Windows) -> int:
    """Rows that all but the longest frames reach over."""
    if not len(work.begin):
        return 1
    length = np.sort(work.end - work.begin)[int(0.99 * len(work.begin))] + np.median(rows.hi - rows.lo)
    return int(length / rows.period) + 3


def design_of(work: Work, rows: Windows) -> tuple[Design, Int]:
    """The model of the rows with all pieces that they see, and the stage row (pieces,) of each."""
    span = (float(rows.lo.min()), float(rows.hi.max()))
    near = np.flatnonzero((work.piece_begin < span[1]) & (work.piece_end > span[0]))
    owner, begin, end = _cut(work.piece_begin[near], work.piece_end[near], _LONG_PIECE * rows.period, span)
    owner = near[owner]
    return build(rows, Pieces(begin, end, work.stage[owner], len(work.names))), owner


def _cut(begin: Float, end: Float, longest: float, span: Core) -> tuple[Int, Float, Float]:
    """Pieces clipped to the span and cut into equal parts of at most `longest` s: (owner, begin, end)."""
    begin, end = np.clip(begin, *span), np.clip(end, *span)
    if len(begin) == 0 or float((end - begin).max()) <= longest:
        return np.arange(len(begin)), begin, end
    parts = np.maximum(np.ceil((end - begin) / longest), 1).astype(np.int64)
    owner = np.repeat(np.arange(len(begin)), parts)
    k = np.arange(len(owner)) - (np.cumsum(parts) - parts)[owner]
    step = ((end - begin) / parts)[owner]
    final = np.where(k == parts[owner] - 1, end[owner], begin[owner] + (k + 1) * step)
    return owner, begin[owner] + k * step, final


def _check(posterior: Posterior) -> SelfCheck:
    """The self-check, against the same model without stages."""
    design = posterior.design
    first = max((len(design.rows) - _PLAIN_ROWS) // 2, 0)
    part = part_of(design, first, min(first + _PLAIN_ROWS, len(design.rows)))
    plain = fit(regrouped(part, np.full(design.pieces.stages, BASE), 0))
    assert plain.solved is not None
    return selfcheck.check(
        posterior.solved,
        posterior.solved.factor.inverse_band(1) if design.dense else posterior.inverse,
        (plain.solved, plain.solved.factor.inverse_band(1)),
        design.rows.value,
        selfcheck.whitened_residuals(posterior.solved, design),
    )


def add_block(sums: Sums, block: Block, core: Core) -> None:
    """Adds all that the block says of the time `core`."""
    widened = block.check.widened
    moved = moved_by(block.misfit, sums.work, block.posterior, block.owner)
    add_energies(sums, block.posterior, block.owner, core, widened, moved)
    _add_stages(sums, block, core, moved)
    sums.entries.append(entry(block.posterior, sums.shares, core, widened, moved))
    sums.checks.append((len(block.posterior.design.rows), block.check))
    (value,), (variance,) = sums_of(block.posterior, np.zeros((len(block.owner), 1)), 1.0)
    more = float(np.sum(block.misfit.base**2)) if block.misfit is not None else 0.0
    sums.base.append((core[1] - core[0], float(value), float(variance) * widened**2 + more))


def add_energies(
    sums: Sums,
    posterior: Posterior,
    owner: Int,
    core: Core,
    widened: float = 1.0,
    moved: Moved | None = None,
) -> None:
    """Adds the part of each frame's and stage row's energy that lies within the core."""
    work, pieces = sums.work, posterior.design.pieces

    def energy_and_sd(want: Wanted) -> tuple[Float, Float]:
        mean, variance = energies(posterior, want)
        more = moved.variance(want) if moved is not None else 0.0
        return mean, np.sqrt(widened**2 * variance + more)

    frames = np.flatnonzero((work.end >= core[0]) & (work.begin < core[1]))
    lo, hi = np.clip(work.begin[frames], *core), np.clip(work.end[frames], *core)
    position = np.full(len(work.begin), -1)
    position[frames] = np.arange(len(frames))
    inside = np.clip(pieces.end, *core) - np.clip(pieces.begin, *core)
    columns = np.flatnonzero(position[work.frame[owner]] >= 0)
    rows, dense = position[work.frame[owner[columns]]], posterior.design.dense
    own = of_entries(inside[columns], rows, columns, (len(frames), len(owner)), dense)
    wanted = [Wanted(own), Wanted(own, lo, hi, sums.shares.split)]
    if not sums.shares.alone:
        wanted.append(Wanted(seconds_in(lo, hi, pieces.begin, pieces.end, dense), lo, hi, Weight()))
    for k, want in enumerate(wanted):
        mean, sd = energy_and_sd(want)
        sums.frame[k, frames] += mean
        sums.frame_sd[k, frames] += sd
    if sums.shares.alone:  # then nothing else is in flight with a frame
        sums.frame[2, frames], sums.frame_sd[2, frames] = sums.frame[1, frames], sums.frame_sd[1, frames]

    first = np.flatnonzero(np.diff(owner, prepend=-1))  # parts of one row are neighbours
    touched = owner[first]
    each = of_rows(inside, np.arange(len(owner)), np.diff(first, append=len(owner)), len(owner), dense)
    mean, sd = energy_and_sd(Wanted(each))
    sums.stage[touched] += mean
    sums.stage_sd[touched] += sd
    _note_rows(sums, posterior.design.rows, frames)


def moved_by(wrong: Misfit | None, work: Work, posterior: Posterior, owner: Int) -> Moved | None:
    """What a model that is wrong so would move of the posterior."""
    return wrong.moves(posterior, (work.piece_end - work.piece_begin)[owner]) if wrong is not None else None


def _note_rows(sums: Sums, rows: Windows, frames: Int) -> None:
    """Which readings each frame's figures came from: those whose windows touch it, or the nearest."""
    last = len(rows) - 1
    first = np.minimum(np.searchsorted(rows.hi, sums.work.begin[frames], "right"), last)
    final = np.clip(np.searchsorted(rows.hi, sums.work.end[frames], "left"), first, last)
    old = sums.first[frames]
    sums.first[frames] = np.where(old < 0, rows.row[first], old)
    sums.last[frames] = rows.row[final]


def forget_lost(sums: Sums, resolution: Resolution, within: Bool) -> None:
    """Frames that spent a part of their time in stages which the readings hardly saw are not known; `within`
    (m,) are the stage rows that the readings cover."""
    work = sums.work
    lost = within & resolution.lost[work.stage]
    length = (work.end - work.begin)[work.frame]
    sums.known[work.frame[lost & (work.piece_end - work.piece_begin > TOO_LITTLE * length)]] = False


def _add_stages(sums: Sums, block: Block, core: Core, moved: Moved | None) -> None:
    """Adds the block's watts and joules of each stage, and why some have none."""
    work, posterior, column = sums.work, block.posterior, block.resolution.column
    pieces, reason, widened = posterior.design.pieces, block.resolution.reason, block.check.widened
    inside = np.clip(pieces.end, *core) - np.clip(pieces.begin, *core)
    active = np.bincount(pieces.stage, inside, pieces.stages)
    seen = np.zeros((len(pieces), pieces.stages))
    seen[np.arange(len(pieces)), pieces.stage] = inside * sums.covered[work.frame[block.owner]]
    joules, variance = sums_of(posterior, seen)
    joules_variance, off_watts = variance * widened**2, np.zeros(pieces.stages)
    if block.misfit is not None and moved is not None:
        joules_variance = joules_variance + np.sum((seen.T @ moved.pieces) ** 2, axis=1)
        off_watts = np.sum((active[:, None] * block.misfit.power) ** 2, axis=1)
    for c in range(pieces.stages):
        group = tuple(np.flatnonzero(column == c).tolist())
        s = sums.stages.setdefault(group, StageSum())
        s.seconds += float(active[c])
        s.watts += float(active[c] * block.fit.watts[c])
        s.variance += float(active[c] ** 2 * block.fit.covariance[c, c] * widened**2 + off_watts[c])
        s.spread += float(active[c] * np.sqrt(block.fit.variances.stage[c]))
        s.joules += float(joules[c])
        s.joules_variance += float(joules_variance[c])
        s.reason = s.reason or reason[group[0]]
    for stage in np.flatnonzero(column == BASE):
        sums.stages.setdefault((int(stage),), StageSum()).reason = reason[stage]
    blind = np.array([bool(r) for r in reason], bool)
    within = (work.piece_end > core[0]) & (work.piece_begin < core[1])
    sums.usable[within] &= ~blind[work.stage[within]]
    forget_lost(sums, block.resolution, within)
