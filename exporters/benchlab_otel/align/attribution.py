"""Joules of each frame and stage from the readings of one domain of one meter.

    result = attribute([frames_of_cam0, frames_of_cam1], readings)
    result.pipelines[0].shared            # J a frame, with .shared_uncertainty (95 % half width)
    result.stages, result.base_watts, result.check, result.ledger

All pipelines whose work the meter sees must be given together: what is left out counts as
background. The method is in `docs/measurement.md`, its parts in `windows`, `design`, `fit`,
`condition`, `resolve`, `identify` and `selfcheck`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
from scipy import sparse

from benchlab_otel.align import counters, selfcheck
from benchlab_otel.align.condition import (
    Posterior,
    Wanted,
    Weight,
    base_integral,
    condition,
    energies,
    mean_of,
)
from benchlab_otel.align.design import Design, Pieces, build
from benchlab_otel.align.fit import Fit, Variances, fit, solve
from benchlab_otel.align.identify import Identification, identify
from benchlab_otel.align.overlap import Sparse, overlap, seconds_in
from benchlab_otel.align.resolve import BASE, Resolution, regrouped, resolve
from benchlab_otel.align.selfcheck import SelfCheck
from benchlab_otel.align.tails import with_shocks
from benchlab_otel.align.windows import Kernel, Windows, rows_between, tile, windows
from benchlab_otel.model import Bool, Float, Frames, Int, Readings

NORMAL_95 = 1.959964
_GAP = 3.0  # periods without a reading that make a gap
_LONG_PIECE = 16.0  # periods; a longer piece is cut into parts with powers of their own
_SHOCK_ROUNDS = 8
WHOLE_FRAME = "(frame)"


@dataclass(frozen=True, slots=True)
class Settings:
    """`kernel` None takes the window that the readings declare; with `find_kernel` lag and width are
    found from the pipeline's activity where they can be. `wrap_j` (J): where a counter starts again.
    Variances are fitted on at most `fit_rows` rows, and the run is taken in blocks of `block_rows`."""

    kernel: Kernel | None = None
    find_kernel: bool = False
    wrap_j: float = 0.0
    fit_rows: int = 8192
    block_rows: int = 65536


@dataclass(slots=True)
class PipelineEnergy:
    """Energies (J) of n frames and m stage rows of one pipeline in the order of its `Frames`, each
    with its 95 % half width; NaN where the meter did not cover the frame.

    `own` (n,): its stages above base; `shared` (n,): own + the base split evenly, at each instant,
    over the frames in flight; `energy` (n,): all that the domain used while it was in flight;
    `stage` (m,): a stage's own, NaN also where the stage is not resolvable. `first`, `last` (n,):
    rows of the readings that the figures came from, −1 where none.
    """

    pipeline: str
    own: Float
    own_uncertainty: Float
    shared: Float
    shared_uncertainty: Float
    energy: Float
    energy_uncertainty: Float
    stage: Float
    stage_uncertainty: Float
    first: Int
    last: Int


@dataclass(slots=True)
class StageFigure:
    """A stage's `watts` above base and `joules` a frame with 95 % half widths, `spread` W of its power
    from frame to frame; NaN with a `reason` where it can't be resolved. `group` names all stages that
    the figure stands for (more than one: never seen apart)."""

    pipeline: str
    group: list[str]
    watts: float
    watts_uncertainty: float
    spread: float
    joules: float
    joules_uncertainty: float
    frames: int
    reason: str


@dataclass(slots=True)
class Ledger:
    """Where the energy (J) went: measured = shares + idle + residual.

    `measured` is Σ value · window for a meter that covers all time (`exact`), else the plain
    integral of the readings; `residual` is what the model puts down to the meter, expected within
    ± `residual_uncertainty` (95 %).
    """

    measured: float
    shares: float
    idle: float
    residual: float
    residual_uncertainty: float
    exact: bool


@dataclass(slots=True)
class Attribution:
    """All that one meter's domain tells of the pipelines; `reason` says why when it tells nothing."""

    meter: str
    domain: str
    pipelines: list[PipelineEnergy]
    stages: list[StageFigure]
    base_watts: float
    base_uncertainty: float
    kernel: Kernel
    identification: Identification | None
    check: SelfCheck | None
    ledger: Ledger | None
    coverage: float
    frames_covered: int
    readings_used: int
    repeats: int
    wraps: int
    resets: int
    variances: Variances | None = None
    reason: str = ""
    simulated: bool = False


@dataclass(slots=True)
class Work:
    """The frames of all pipelines as one table, times in s: frames (n,), stage rows (m,) with their
    frame and stage, `names` (pipeline, stage) of the stages; `splits` where each pipeline begins."""

    begin: Float
    end: Float
    frame: Int
    stage: Int
    piece_begin: Float
    piece_end: Float
    names: list[tuple[str, str]]
    frame_splits: Int
    row_splits: Int
    implicit: Bool  # (m,) rows that stand for a frame without stages


def attribute(frames: Sequence[Frames], readings: Readings, settings: Settings | None = None) -> Attribution:
    """Conditions every frame and stage on the readings (see the module's docstring).

    Never raises for data that say too little: the figures are then NaN, with a reason.
    """
    settings = settings or Settings()
    starts = [int(f.begin.min()) for f in frames if len(f)] + [int(readings.time.min())] * bool(len(readings))
    origin = min(starts, default=0)
    clean = counters.clean(readings, origin, settings.wrap_j)
    work = work_of(frames, origin)
    kernel = settings.kernel or Kernel("boxcar", 0.0, readings.window_ns / 1e9)
    found = None
    if settings.find_kernel and settings.kernel is None:
        found = identify(clean, work.piece_begin, work.piece_end, work.stage, len(work.names), kernel)
        kernel = found.kernel
    rows = windows(clean, kernel)
    result = _Result(work)
    simulated = readings.simulated or any(f.simulated for f in frames)
    out = Attribution(
        meter=readings.meter, domain=readings.domain, pipelines=[], stages=[], base_watts=np.nan,
        base_uncertainty=np.nan, kernel=kernel, identification=found, check=None, ledger=None, coverage=0.0,
        frames_covered=0, readings_used=len(rows), repeats=clean.repeats, wraps=clean.wraps,
        resets=clean.resets, simulated=simulated,
    )  # fmt: skip
    if len(rows) < 2 * len(work.names) + 6:
        out.reason = (
            f"too little data: {len(rows)} readings for {len(work.names)} stages, "
            f"at least {2 * len(work.names) + 6} are needed"
        )
    else:
        covered = _covered(rows)
        blocks = _blocks(rows, settings.block_rows)
        start = None
        for first, last in blocks:
            start = _attribute_block(result, rows, first, last, covered, settings, start)
        out.variances = start
        _finish(out, result, rows, covered)
    out.pipelines = result.pipelines(frames)
    return out


def work_of(frames: Sequence[Frames], origin_ns: int) -> Work:
    """All pipelines' frames and stage rows in one table; a frame without stages is its own stage."""
    names: list[tuple[str, str]] = []
    begin, end, frame, stage, piece_begin, piece_end, implicit = ([] for _ in range(7))
    offset, rows, frame_splits, row_splits = 0, 0, [0], [0]
    for f in frames:
        bare = np.setdiff1d(np.arange(len(f)), f.stage_frame)
        begin.append((f.begin - origin_ns) / 1e9)
        end.append((f.end - origin_ns) / 1e9)
        frame.append(np.concatenate([f.stage_frame, bare]) + offset)
        stage.append(np.concatenate([f.stage, np.full(len(bare), len(f.stage_names))]) + len(names))
        piece_begin.append((np.concatenate([f.stage_begin, f.begin[bare]]) - origin_ns) / 1e9)
        piece_end.append((np.concatenate([f.stage_end, f.end[bare]]) - origin_ns) / 1e9)
        implicit.append(np.arange(len(f.stage_frame) + len(bare)) >= len(f.stage_frame))
        names += [(f.pipeline, name) for name in f.stage_names]
        if len(bare):
            names.append((f.pipeline, WHOLE_FRAME))
        offset, rows = offset + len(f), rows + len(f.stage_frame) + len(bare)
        frame_splits.append(offset)
        row_splits.append(rows)

    def joined(parts: list[Float]) -> Float:
        return np.concatenate(parts) if parts else np.zeros(0)

    return Work(
        joined(begin), joined(end), joined(frame).astype(np.int64), joined(stage).astype(np.int64),
        joined(piece_begin), joined(piece_end), names, np.array(frame_splits), np.array(row_splits),
        joined(implicit).astype(bool),
    )  # fmt: skip


# -- time that the meter covers -------------------------------------------------------------------


def _covered(rows: Windows) -> Weight:
    """Covered seconds up to any time: windows that tile count as they are, others with the time
    between them unless that is a gap."""
    reach = np.maximum.accumulate(rows.hi)
    longest = 1e-9 if tile(rows) else _GAP * rows.period
    new = np.append(True, rows.lo[1:] - reach[:-1] > longest)
    begin, end = rows.lo[new], reach[np.append(np.flatnonzero(new)[1:] - 1, len(rows) - 1)]
    upto = np.cumsum(end - begin)
    return Weight(
        np.column_stack([begin, end]).ravel(), np.column_stack([np.append(0, upto[:-1]), upto]).ravel()
    )


def _is_covered(rows: Windows, begin: Float, end: Float) -> Bool:
    """Whether each frame lies between the first and the last window and touches no gap."""
    reach = np.maximum.accumulate(rows.hi)
    gap = np.flatnonzero(rows.lo[1:] - reach[:-1] > _GAP * rows.period)
    inside = (begin >= rows.lo[0] - 1e-9) & (end <= reach[-1] + 1e-9)
    if len(gap):
        inside &= ~(
            np.searchsorted(reach[gap], end, "left") > np.searchsorted(rows.lo[gap + 1], begin, "right")
        )
    return inside


def _even_split(work: Work) -> Weight:
    """The weight of the base for a frame: seconds divided by the number of frames in flight."""
    times = np.concatenate([work.begin, work.end])
    order = np.argsort(times, kind="stable")
    sign = np.repeat([1, -1], len(work.begin))[order]
    times = times[order]
    active = np.cumsum(sign)[:-1]
    share = np.where(active > 0, 1.0 / np.maximum(active, 1), 0.0)
    return Weight(times, np.append(0.0, np.cumsum(share * np.diff(times))))


def _in_flight(work: Work) -> Weight:
    """Seconds in which any frame was in flight."""
    split = _even_split(work)
    assert split.times is not None
    assert split.upto is not None
    gap = np.diff(split.times)
    return Weight(split.times, np.append(0.0, np.cumsum(np.where(np.diff(split.upto) > 0, gap, 0.0))))


def _both(a: Weight, b: Weight) -> Weight:
    """Seconds that count in both (weights that are 0 or 1 at each instant)."""
    assert a.times is not None
    assert b.times is not None
    times = np.union1d(a.times, b.times)
    gap = np.diff(times)
    share = (np.diff(a(times)) > 0.5 * gap) & (np.diff(b(times)) > 0.5 * gap)
    return Weight(times, np.append(0.0, np.cumsum(np.where(share, gap, 0.0))))


# -- blocks ---------------------------------------------------------------------------------------


def _blocks(rows: Windows, most: int) -> list[tuple[int, int]]:
    count = -(-len(rows) // most)
    edges = np.linspace(0, len(rows), count + 1).astype(int)
    return list(pairwise(edges.tolist()))


@dataclass(slots=True)
class _StageSum:
    seconds: float = 0.0
    watts: float = 0.0  # Σ seconds · W
    variance: float = 0.0
    spread: float = 0.0
    joules: float = 0.0
    joules_variance: float = 0.0
    reason: str = ""
    group: tuple[int, ...] = ()


@dataclass(slots=True)
class _Result:
    """Sums over blocks, by frame, stage row and stage."""

    work: Work
    means: Float = field(init=False)
    deviations: Float = field(init=False)
    stage_mean: Float = field(init=False)
    stage_deviation: Float = field(init=False)
    usable: Bool = field(init=False)
    first: Int = field(init=False)
    last: Int = field(init=False)
    covered: Bool = field(init=False)
    sums: dict[tuple[int, ...], _StageSum] = field(default_factory=dict)
    base: list[tuple[float, float, float]] = field(default_factory=list)
    checks: list[tuple[int, SelfCheck]] = field(default_factory=list)
    ledger: Float = field(default_factory=lambda: np.zeros(5))

    def __post_init__(self) -> None:
        n, m = len(self.work.begin), len(self.work.frame)
        self.means, self.deviations = np.zeros((3, n)), np.zeros((3, n))
        self.stage_mean, self.stage_deviation = np.zeros(m), np.zeros(m)
        self.usable, self.covered = np.ones(m, bool), np.zeros(n, bool)
        self.first, self.last = np.full(n, -1, np.int64), np.full(n, -1, np.int64)

    def pipelines(self, frames: Sequence[Frames]) -> list[PipelineEnergy]:
        hidden = ~self.covered
        self.means[:, hidden] = self.deviations[:, hidden] = np.nan
        lost = hidden[self.work.frame] | ~self.usable
        self.stage_mean[lost] = self.stage_deviation[lost] = np.nan
        self.first[hidden] = self.last[hidden] = -1
        half = NORMAL_95 * self.deviations
        out = []
        for p, f in enumerate(frames):
            mine = slice(*self.work.frame_splits[p : p + 2])
            rows = slice(self.work.row_splits[p], self.work.row_splits[p] + len(f.stage_frame))
            out.append(
                PipelineEnergy(
                    f.pipeline,
                    self.means[0, mine],
                    half[0, mine],
                    self.means[1, mine],
                    half[1, mine],
                    self.means[2, mine],
                    half[2, mine],
                    self.stage_mean[rows],
                    NORMAL_95 * self.stage_deviation[rows],
                    self.first[mine],
                    self.last[mine],
                )  # fmt: skip
            )
        return out


def _attribute_block(
    result: _Result,
    rows: Windows,
    first: int,
    last: int,
    covered: Weight,
    settings: Settings,
    start: Variances | None,
) -> Variances:
    """Fits and conditions rows first … last − 1 and adds what falls between their edges to `result`."""
    work = result.work
    mine = rows_between(rows, first, last)
    core = (rows.hi[first - 1] if first else rows.lo[0], rows.hi[last - 1])
    span = (float(mine.lo.min()), float(mine.hi.max()))
    near = np.flatnonzero((work.piece_begin < span[1]) & (work.piece_end > span[0]))
    owner, begin, end = _cut(work.piece_begin[near], work.piece_end[near], _LONG_PIECE * rows.period, span)
    owner = near[owner]
    full = build(mine, Pieces(begin, end, work.stage[owner], len(work.names)))
    names = [stage for _, stage in work.names]
    design, found, resolution = resolve(full, names, start, settings.fit_rows)
    posterior, found = _fitted(design, found, settings)
    design = posterior.design
    check = _check(design, posterior)
    kept = np.flatnonzero(resolution.column[work.stage[owner]] >= 0)
    _add_energies(result, posterior, owner[kept], core, check.widened)
    _add_stages(result, posterior, found, resolution, owner[kept], core, check.widened)
    _add_ledger(result, posterior, covered, core, first == 0)
    result.checks.append((last - first, check))
    value, variance = mean_of(posterior, np.zeros(len(design.pieces)), 1.0)
    result.base.append((core[1] - core[0], value, variance * check.widened**2))
    return found.variances


def _cut(begin: Float, end: Float, longest: float, span: tuple[float, float]) -> tuple[Int, Float, Float]:
    """Pieces clipped to the span and cut into equal parts of at most `longest` s: (owner, begin, end)."""
    begin, end = np.clip(begin, *span), np.clip(end, *span)
    parts = np.maximum(np.ceil((end - begin) / longest), 1).astype(np.int64)
    owner = np.repeat(np.arange(len(begin)), parts)
    k = np.arange(len(owner)) - (np.cumsum(parts) - parts)[owner]
    step = ((end - begin) / parts)[owner]
    return (
        owner,
        begin[owner] + k * step,
        np.where(k == parts[owner] - 1, end[owner], begin[owner] + (k + 1) * step),
    )


def _fitted(design: Design, found: Fit, settings: Settings) -> tuple[Posterior, Fit]:
    """The posterior, with the shocks of `tails` where the residuals are not normal."""
    posterior = condition(design, found.variances, found.watts)
    if not selfcheck.heavy_tails(posterior.solved, design):
        return posterior, found
    for _ in range(_SHOCK_ROUNDS):
        freed = with_shocks(posterior)
        if freed is None:
            break
        found = fit(freed, found.variances, settings.fit_rows)
        posterior = condition(freed, found.variances, found.watts)
    return posterior, found


def _check(design: Design, posterior: Posterior) -> SelfCheck:
    bare = regrouped(design, np.full(design.pieces.stages, BASE), 0)
    plain = fit(bare, None, 2048)
    without = solve(bare, plain.variances, plain.watts)
    whitened = selfcheck.whitened_residuals(posterior.solved, design)
    return selfcheck.check(
        posterior.solved,
        posterior.inverse,
        (without, selfcheck.narrow_inverse(without)),
        design.rows.value,
        whitened,
    )


def _add_energies(
    result: _Result, posterior: Posterior, owner: Int, core: tuple[float, float], widened: float
) -> None:
    """Adds the part of each frame's and stage row's energy that lies within the core."""
    work, pieces = result.work, posterior.design.pieces
    lo, hi = np.clip(work.begin, *core), np.clip(work.end, *core)
    frames = np.flatnonzero((work.end >= core[0]) & (work.begin < core[1]))
    position = np.full(len(work.begin), -1)
    position[frames] = np.arange(len(frames))
    lo, hi = lo[frames], hi[frames]
    inside = np.clip(pieces.end, *core) - np.clip(pieces.begin, *core)
    columns = np.arange(len(owner))

    frame_of = position[work.frame[owner]]
    shown = frame_of >= 0
    own = sparse.csr_array(
        (inside[shown], (frame_of[shown], columns[shown])), shape=(len(frames), len(owner))
    )
    split = _even_split(work)
    alone = bool(
        np.all(np.diff(np.sort(work.begin)) >= 0)
        and np.all(np.sort(work.begin)[1:] >= np.sort(work.end)[:-1])
    )
    wanted = [Wanted(own), Wanted(own, lo, hi, split)]
    if not alone:
        wanted.append(Wanted(seconds_in(lo, hi, pieces.begin, pieces.end), lo, hi, Weight()))
    for k, want in enumerate(wanted):
        mean, variance = energies(posterior, want)
        result.means[k, frames] += mean
        result.deviations[k, frames] += widened * np.sqrt(variance)
    if alone:
        result.means[2, frames], result.deviations[2, frames] = (
            result.means[1, frames],
            result.deviations[1, frames],
        )

    touched = np.unique(owner)
    row = np.searchsorted(touched, owner)
    each = sparse.csr_array((inside, (row, columns)), shape=(len(touched), len(owner)))
    mean, variance = energies(posterior, Wanted(each))
    result.stage_mean[touched] += mean
    result.stage_deviation[touched] += widened * np.sqrt(variance)
    _note_rows(result, posterior.design.rows, frames)


def _note_rows(result: _Result, rows: Windows, frames: Int) -> None:
    """Which readings each frame's figures came from: those whose windows touch it, or the nearest."""
    work = result.work
    last = len(rows) - 1
    first = np.minimum(np.searchsorted(rows.hi, work.begin[frames], "right"), last)
    final = np.maximum(np.minimum(np.searchsorted(rows.hi, work.end[frames], "left"), last), first)
    old = result.first[frames]
    result.first[frames] = np.where(old < 0, rows.row[first], old)
    result.last[frames] = rows.row[final]


def _add_stages(
    result: _Result,
    posterior: Posterior,
    found: Fit,
    resolution: Resolution,
    owner: Int,
    core: tuple[float, float],
    widened: float,
) -> None:
    work, pieces = result.work, posterior.design.pieces
    inside = np.clip(pieces.end, *core) - np.clip(pieces.begin, *core)
    for c in range(pieces.stages):
        group = tuple(np.flatnonzero(resolution.column == c).tolist())
        seconds = np.where(pieces.stage == c, inside, 0.0)
        active = float(seconds.sum())
        joules, variance = mean_of(posterior, seconds)
        s = result.sums.setdefault(group, _StageSum(group=group))
        s.seconds += active
        s.watts += active * float(found.watts[c])
        s.variance += active**2 * float(found.covariance[c, c]) * widened**2
        s.spread += active * float(np.sqrt(found.variances.stage[c]))
        s.joules += joules
        s.joules_variance += variance * widened**2
        s.reason = s.reason or resolution.reason[group[0]]
    for stage in np.flatnonzero(resolution.column == BASE):
        s = result.sums.setdefault((int(stage),), _StageSum(group=(int(stage),)))
        s.reason = resolution.reason[stage]
    blind = np.array([bool(r) for r in resolution.reason])
    in_core = (work.piece_end > core[0]) & (work.piece_begin < core[1])
    result.usable &= ~(in_core & blind[work.stage]) if len(blind) else True


def _add_ledger(
    result: _Result, posterior: Posterior, covered: Weight, core: tuple[float, float], first: bool
) -> None:
    """Adds the block's measured energy, shares, idle and the variance of what the meter may be off by."""
    work, design = result.work, posterior.design
    rows, pieces = design.rows, design.pieces
    shares = float(
        posterior.watts @ (covered(np.clip(pieces.end, *core)) - covered(np.clip(pieces.begin, *core)))
    )
    lo, hi = np.array([core[0]]), np.array([core[1]])
    busy = _both(_in_flight(work), covered) if len(work.begin) else Weight(np.zeros(1), np.zeros(1))
    in_flight = float(base_integral(posterior, lo, hi, busy)[0])
    base = float(base_integral(posterior, lo, hi, covered)[0])
    width = rows.hi - rows.lo
    if tile(rows):
        measured = float(rows.value @ width)
        spread = float((rows.noise.T @ width) ** 2 @ posterior.priors[2])
    else:
        middle = (rows.lo + rows.hi) / 2
        plain = np.append(0.0, np.cumsum(np.diff(middle) * (rows.value[1:] + rows.value[:-1]) / 2))
        ends = (middle[0] - core[0]) * rows.value[0] + (core[1] - middle[-1]) * rows.value[-1]
        measured = float(plain[-1] + ends)
        inside = np.clip(pieces.end, *core) - np.clip(pieces.begin, *core)
        spread = mean_of(posterior, inside, core[1] - core[0])[1]
    result.ledger += [measured, shares + in_flight, base - in_flight, spread, 0.0]


def _finish(out: Attribution, result: _Result, rows: Windows, covered: Weight) -> None:
    """Figures of the whole run from the sums over blocks."""
    work = result.work
    result.covered = _is_covered(rows, work.begin, work.end)
    out.frames_covered = int(result.covered.sum())
    length = np.maximum(work.end - work.begin, 0.0)
    total = float(length.sum())
    out.coverage = float(length[result.covered].sum()) / total if total else 1.0
    weights = np.array([w for w, _, _ in result.base])
    out.base_watts = float(weights @ [v for _, v, _ in result.base] / weights.sum())
    variance = weights**2 @ [v for _, _, v in result.base] / weights.sum() ** 2
    out.base_uncertainty = NORMAL_95 * float(np.sqrt(variance))
    measured, shares, idle, spread, _ = (float(x) for x in result.ledger)
    out.ledger = Ledger(
        measured, shares, idle, measured - shares - idle, NORMAL_95 * float(np.sqrt(spread)), tile(rows)
    )
    out.check = _mean_check(result.checks)
    out.stages = [_stage_figure(work, s) for s in sorted(result.sums.values(), key=lambda s: s.group)]


def _mean_check(checks: list[tuple[int, SelfCheck]]) -> SelfCheck:
    if len(checks) == 1:
        return checks[0][1]
    weights = np.array([n for n, _ in checks]) / sum(n for n, _ in checks)
    findings = list(dict.fromkeys(f for _, c in checks for f in c.findings))

    def mean(name: str) -> float:
        return float(weights @ [getattr(c, name) for _, c in checks])

    return SelfCheck(
        *(mean(n) for n in ("error", "error_no_stages", "coverage", "tails", "correlation", "widened")),
        findings,
    )


def _stage_figure(work: Work, s: _StageSum) -> StageFigure:
    pipeline, group = work.names[s.group[0]][0], [work.names[k][1] for k in s.group]
    frames = len(np.unique(work.frame[np.isin(work.stage, s.group)]))
    grouped = len(s.group) > 1
    if s.seconds == 0.0 or (s.reason and not grouped):
        nan = float("nan")
        return StageFigure(pipeline, group, nan, nan, nan, nan, nan, frames, s.reason)
    return StageFigure(
        pipeline,
        group,
        s.watts / s.seconds,
        NORMAL_95 * float(np.sqrt(s.variance)) / s.seconds,
        s.spread / s.seconds,
        s.joules / frames,
        NORMAL_95 * float(np.sqrt(s.joules_variance)) / frames,
        frames,
        s.reason,
    )
