"""Joules of each frame and stage from the readings of one domain of one meter.

    result = attribute([frames_of_cam0, frames_of_cam1], readings)
    result.pipelines[0].shared            # J a frame, with .shared_uncertainty (95 % half width)
    result.stages, result.base_watts, result.check, result.ledger

All pipelines whose work the meter sees must be given together: what is left out counts as
background. The method is in `docs/measurement.md`, its parts in `windows`, `design`, `fit`,
`condition`, `resolve`, `identify` and `selfcheck`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from benchlab_otel.align.attribution import counters
from benchlab_otel.align.attribution.block import Block, Sums, add_block, fitted_block
from benchlab_otel.align.attribution.conserve import Ledger, is_covered, ledger, shares_of
from benchlab_otel.align.attribution.gls import Variances
from benchlab_otel.align.attribution.identify import (
    Identification,
    Search,
    beside_round_trips,
    finished,
    search,
)
from benchlab_otel.align.attribution.kernel_map import Activity
from benchlab_otel.align.attribution.selfcheck import NORMAL_95, SelfCheck
from benchlab_otel.align.attribution.windows import Kernel, Windows, rows_between, tile, windows
from benchlab_otel.align.attribution.work import WHOLE_FRAME, Work, stages_of, work_of
from benchlab_otel.model import Float, Frames, Int, Readings

_AT_ONCE = 2  # blocks; more would take more memory


@dataclass(frozen=True, slots=True)
class Settings:
    """`kernel` None takes the window that the readings declare; with `find_kernel` lag, width and shape
    are found from the pipeline's activity where they can be, else that kernel is used, and where there
    is none nothing is attributed: a wrong window gives wrong figures. Variances are fitted on at most
    `fit_rows` rows, and the run is taken in blocks of at most `block_rows`.
    """

    kernel: Kernel | None = None
    find_kernel: bool = False
    fit_rows: int = 8192
    block_rows: int = 1 << 17


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
    from frame to frame; NaN with a `reason` where it can't be resolved. `joules` is the mean over
    `frames`, those with the stage that the meter covered (NaN without any). `group` names all stages
    that the figure stands for (more than one: never seen apart)."""

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
class Attribution:
    """All that one meter's domain tells of the pipelines (in the order given); `reason` says why when
    it tells nothing. `kernel` is the one used, `identification` what was found out about it.

    `base_watts` W ± `base_uncertainty` (95 %); `coverage` is the covered share of the frames' time.
    """

    meter: str
    domain: str
    kernel: Kernel
    identification: Identification | None = None
    readings_used: int = 0
    repeats: int = 0
    wraps: int = 0
    resets: int = 0
    simulated: bool = False
    pipelines: list[PipelineEnergy] = field(default_factory=list)
    stages: list[StageFigure] = field(default_factory=list)
    base_watts: float = float("nan")
    base_uncertainty: float = float("nan")
    check: SelfCheck | None = None
    ledger: Ledger | None = None
    coverage: float = 0.0
    frames_covered: int = 0
    variances: Variances | None = None
    reason: str = ""


def attribute(frames: Sequence[Frames], readings: Readings, settings: Settings | None = None) -> Attribution:
    """Conditions every frame and stage on the readings (see the module's docstring).

    Never raises for data that say too little: the figures are then NaN, with a reason.
    """
    return attribute_and_fit(frames, readings, settings or Settings())[0]


def looking_for_kernel(frames: Sequence[Frames], readings: Readings, settings: Settings) -> Search:
    """Looks for the meter's lag, width and kernel, in parts."""
    origin = _origin(frames, readings)
    clean, work = counters.clean(readings, origin), work_of(frames, origin)
    used = stages_of(work)
    activity = Activity(work.piece_begin, work.piece_end, np.searchsorted(used, work.stage), len(used))
    kernel = _configured(settings, readings)
    found = yield from search(clean, activity, kernel)
    if readings.clock_ns is not None and len(readings):
        allowed_s = (readings.clock_ns + float(np.median(readings.uncertainty))) * 1e-9
        found = beside_round_trips(found, kernel, allowed_s)
    return found


def attribute_and_fit(
    frames: Sequence[Frames], readings: Readings, settings: Settings, found: Identification | None = None
) -> tuple[Attribution, Block | None]:
    """`attribute`, and the last block's fit for those who go on from there; None without any. What has been
    `found` is not looked for again."""
    if settings.find_kernel and found is None:
        found = finished(looking_for_kernel(frames, readings, settings))
    kernel = found.kernel if found is not None else _configured(settings, readings)
    origin = _origin(frames, readings)
    clean, work = counters.clean(readings, origin), work_of(frames, origin)
    rows = windows(clean, kernel)
    out = Attribution(
        meter=readings.meter,
        domain=readings.domain,
        kernel=kernel,
        identification=found,
        readings_used=len(rows),
        repeats=clean.repeats,
        wraps=clean.wraps,
        resets=clean.resets,
        simulated=readings.simulated or any(f.simulated for f in frames),
    )
    least = least_rows(work)
    if len(rows) < least:
        out.reason = f"too little data: {len(rows)} readings for {_count(work)}, {least} are needed"
        out.pipelines = [nothing(f) for f in frames]
        return out, None
    if found is not None and not found.found and not _declared(settings, readings):
        out.reason = (
            f"the meter's lag and window are not known and can't be found: {found.reason}; "
            "set them for the meter, or record a load that varies"
        )
        out.pipelines = [nothing(f) for f in frames]
        return out, None
    sums = Sums(work, shares_of(work.begin, work.end, rows), is_covered(rows, work.begin, work.end))
    edges = _edges(len(rows), settings.block_rows)
    try:
        for block, (first, last) in zip(_fitted_blocks(work, rows, edges, settings), edges, strict=True):
            add_block(sums, block, (rows.hi[first - 1] if first else rows.lo[0], rows.hi[last - 1]))
    except np.linalg.LinAlgError as e:
        out.reason = f"the stages' powers can't be computed from these readings, more frames may help ({e})"
        out.pipelines = [nothing(f) for f in frames]
        return out, None
    out.variances = block.fit.variances
    out.pipelines = pipeline_energies(sums, frames)
    _summarise(out, sums, rows)
    return out, block


def _origin(frames: Sequence[Frames], readings: Readings) -> int:
    """The first time (Unix ns) of all."""
    return min((int(t.min()) for t in (readings.time, *(f.begin for f in frames)) if len(t)), default=0)


def _configured(settings: Settings, readings: Readings) -> Kernel:
    return settings.kernel or Kernel("boxcar", 0.0, (readings.window_ns or 0) / 1e9)


def _declared(settings: Settings, readings: Readings) -> bool:
    """Whether it is known how the meter averages, without finding it out."""
    return settings.kernel is not None or readings.window_ns is not None or readings.kind == "energy"


def least_rows(work: Work) -> int:
    """How many readings a fit needs to have any meaning."""
    return 3 * len(stages_of(work)) + 8


def _count(work: Work) -> str:
    """How many stages there are, in words; the one that stands for frames without stages has no name."""
    stages = sum(work.names[s][1] != WHOLE_FRAME for s in stages_of(work))
    return f"{stages} stage{'s'[: stages != 1]}" if stages else "frames without stages"


def _fitted_blocks(
    work: Work, rows: Windows, edges: list[tuple[int, int]], settings: Settings
) -> Iterator[Block]:
    """The blocks in order, some fitted at once, as NumPy lets other threads run; the searches for their
    variances begin at those of the first."""
    begun: Variances | None = None

    def fitted(first: int, last: int) -> Block:
        return fitted_block(work, rows_between(rows, first, last), begun, settings.fit_rows)

    block = fitted(*edges[0])
    begun = block.fit.variances
    yield block
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        coming: deque[Future[Block]] = deque()
        for first, last in edges[1:]:
            coming.append(pool.submit(fitted, first, last))
            if len(coming) == _AT_ONCE:
                yield coming.popleft().result()
        while coming:
            yield coming.popleft().result()


def _edges(count: int, most: int) -> list[tuple[int, int]]:
    """Ranges of about equal length that cover `count` rows."""
    edges = np.linspace(0, count, -(-count // most) + 1).astype(int)
    return list(pairwise(edges.tolist()))


def pipeline_energies(sums: Sums, frames: Sequence[Frames]) -> list[PipelineEnergy]:
    """The sums by pipeline, NaN where the meter did not cover a frame or does not show what it did."""
    work, covered = sums.work, sums.covered & sums.known
    value, half = sums.frame.copy(), NORMAL_95 * sums.frame_sd
    stage, stage_half = sums.stage.copy(), NORMAL_95 * sums.stage_sd
    value[:, ~covered] = half[:, ~covered] = np.nan
    lost = ~covered[work.frame] | ~sums.usable
    stage[lost] = stage_half[lost] = np.nan
    first, last = np.where(covered, sums.first, -1), np.where(covered, sums.last, -1)
    out = []
    for p, f in enumerate(frames):
        mine = slice(*work.frame_splits[p : p + 2])
        rows = slice(work.row_splits[p], work.row_splits[p] + len(f.stage_frame))
        out.append(
            PipelineEnergy(
                pipeline=f.pipeline,
                own=value[0, mine],
                own_uncertainty=half[0, mine],
                shared=value[1, mine],
                shared_uncertainty=half[1, mine],
                energy=value[2, mine],
                energy_uncertainty=half[2, mine],
                stage=stage[rows],
                stage_uncertainty=stage_half[rows],
                first=first[mine],
                last=last[mine],
            )
        )
    return out


def nothing(frames: Frames) -> PipelineEnergy:
    """No figure for any of the frames."""
    n, m = np.full(len(frames), np.nan), np.full(len(frames.stage_frame), np.nan)
    none = np.full(len(frames), -1, np.int64)
    return PipelineEnergy(frames.pipeline, n, n, n, n, n, n, m, m, none, none)


def _summarise(out: Attribution, sums: Sums, rows: Windows) -> None:
    """Figures of the whole run from the sums over blocks."""
    work, covered = sums.work, sums.covered
    length = work.end - work.begin
    total = float(length.sum())
    out.frames_covered = int(covered.sum())
    out.coverage = float(length[covered].sum()) / total if total else 1.0
    weight, value, variance = (np.array(column) for column in zip(*sums.base, strict=True))
    out.base_watts = float(weight @ value / weight.sum())
    out.base_uncertainty = NORMAL_95 * float(np.sqrt(weight**2 @ variance)) / float(weight.sum())
    out.ledger = ledger(sums.entries, tile(rows))
    out.check = _mean_check(sums.checks)
    figures = [_stage_figure(sums, group) for group in sorted(sums.stages)]
    out.stages = [f for f in figures if f.frames or f.group != [WHOLE_FRAME]]


def _mean_check(checks: list[tuple[int, SelfCheck]]) -> SelfCheck:
    """The blocks' self-checks, weighted by their rows."""
    weights = np.array([n for n, _ in checks]) / sum(n for n, _ in checks)
    names = ("error", "error_no_stages", "coverage", "tails", "correlation", "widened")
    mean = {name: float(weights @ [getattr(c, name) for _, c in checks]) for name in names}
    findings = list(dict.fromkeys(f for _, c in checks for f in c.findings))
    return SelfCheck(
        mean["error"],
        mean["error_no_stages"],
        mean["coverage"],
        mean["tails"],
        mean["correlation"],
        mean["widened"],
        findings,
    )


def _stage_figure(sums: Sums, group: tuple[int, ...]) -> StageFigure:
    work, s = sums.work, sums.stages[group]
    pipeline, names = work.names[group[0]][0], [work.names[k][1] for k in group]
    member, having = np.zeros(len(work.names), bool), np.zeros(len(sums.covered), bool)
    member[list(group)] = True
    having[work.frame[member[work.stage]]] = True
    frames = int(np.count_nonzero(sums.covered & having))
    if s.seconds == 0.0 or (s.reason and len(group) == 1):
        nan = float("nan")
        return StageFigure(pipeline, names, nan, nan, nan, nan, nan, frames, s.reason)
    return StageFigure(
        pipeline=pipeline,
        group=names,
        watts=s.watts / s.seconds,
        watts_uncertainty=NORMAL_95 * float(np.sqrt(s.variance)) / s.seconds,
        spread=s.spread / s.seconds,
        joules=s.joules / frames if frames else float("nan"),
        joules_uncertainty=NORMAL_95 * float(np.sqrt(s.joules_variance)) / frames if frames else float("nan"),
        frames=frames,
        reason=s.reason,
    )
