"""A pipeline whose power is known at every instant, and meters that read it as real ones do.

The truth is a step function of time, so the energy of any window is exact by prefix sums. Meters
turn it into `model.Readings`; `requests` turns both into ordinary trace-contract OTLP requests,
marked as simulated. Times inside are seconds from `ORIGIN_NS`, powers watts, energies joules.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from benchlab_otel import contract
from benchlab_otel.model import OUTCOMES, STATUS_ERROR, Float, Frames, Int, Readings, Uint
from benchlab_otel.otlp.encode import Optional, SpanBatch, Strings, encode_request
from benchlab_otel.otlp.ids import mix64, nonzero

ORIGIN_NS = 1_760_000_000_000_000_000
_SECOND = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Stage:
    """Length varies uniformly by ± `length_spread`, watts normally with sd `spread` from frame to frame.

    `unseen` is the relative amplitude of a slow influence on the power that no mark shows.
    """

    name: str
    watts: float
    length_s: float
    length_spread: float = 0.35
    spread: float = 0.0
    unseen: float = 0.0


@dataclass(frozen=True, slots=True)
class Background:
    """Load that belongs to no frame: a constant, plus one that switches, plus one that drifts."""

    watts: float = 95.0
    switch_w: float = 0.0
    switch_every_s: float = 2.0  # mean of the exponentially distributed time between switches
    drift_w: float = 0.0  # sd of the drift after one second; the drift is a random walk


@dataclass(frozen=True, slots=True)
class Load:
    """A pipeline: frames start every 1/fps (± `start_spread` of it) and run their stages in turn."""

    stages: tuple[Stage, ...]
    fps: float = 60.0
    duration_s: float = 60.0
    background: Background = Background()
    start_spread: float = 0.0
    drop: float = 0.0  # share of the frames that end after a random stage but the last
    name: str = "simulated"


@dataclass(slots=True)
class Truth:
    """What really happened: `frames`, and the power `level` (k,) W between `edges` (k + 1,) s.

    `watts` (m,) is the power of each row of the frames' stage table; `background` is the step
    function (edges, levels) of the rest.
    """

    frames: Frames
    watts: Float
    edges: Float
    level: Float
    background: tuple[Float, Float]

    def energy(self, begin: Float, end: Float) -> Float:
        """Joules between two times (s), exact."""
        return integral(self.edges, self.level, begin, end)


@dataclass(frozen=True, slots=True)
class Meter:
    """A meter and the poller that reads it.

    `width_s` None is one period of the poller; `refresh_hz` 0 means a fresh value at each poll;
    `phase` is the share of the period over which the polls are spread at random. Noise is Gaussian,
    or Student's t with `tails` degrees of freedom, of sd `noise` (W, or J for a counter). The value
    is taken at a uniformly random instant between request and response. `known` tells whether the
    readings declare lag and width. A meter with a clock of its own, `clock_offset_s` ahead, knows it to
    ± `clock_known_s`.
    """

    rate_hz: float = 20.0
    kind: Literal["power", "energy"] = "power"
    kernel: Literal["instantaneous", "boxcar", "lowpass"] = "boxcar"
    width_s: float | None = None
    lag_s: float = 0.0
    noise: float = 0.0
    tails: float = 0.0
    quantum: float = 0.0
    wrap_j: float = 0.0
    refresh_hz: float = 0.0
    phase: float = 1.0
    round_trip_s: float = 0.0
    round_trip_jitter_s: float = 0.0
    late: float = 0.0
    late_s: float = 0.02
    missed: float = 0.0
    clock_offset_s: float = 0.0
    clock_known_s: float | None = None
    known: bool = True
    name: str = "meter0"
    domain: str = "system"

    @property
    def window_s(self) -> float:
        """The averaging width in seconds (the time constant of a low-pass)."""
        if self.kernel == "instantaneous":
            return 0.0
        return 1.0 / self.rate_hz if self.width_s is None else self.width_s


# -- truth --------------------------------------------------------------------------------------


def simulate(load: Load, rng: np.random.Generator) -> Truth:
    """Runs the load once: every stage of every frame with its own length and power."""
    n = int(load.duration_s * load.fps)
    start = (np.arange(n) + load.start_spread * rng.uniform(-0.5, 0.5, n)) / load.fps + 0.01
    lengths = np.column_stack(
        [s.length_s * (1 + s.length_spread * rng.uniform(-1, 1, n)) for s in load.stages]
    )
    watts = np.column_stack([_stage_watts(s, n, load.fps, rng) for s in load.stages])
    ends = np.round((start[:, None] + np.cumsum(lengths, axis=1)) * 1e9) / 1e9
    begins = np.column_stack([np.round(start * 1e9) / 1e9, ends[:, :-1]])
    count = len(load.stages)
    dropped = rng.random(n) < load.drop if count > 1 else np.zeros(n, bool)
    last = np.where(dropped, rng.integers(1, max(count, 2), n), count)
    order = np.argsort(ends[np.arange(n), last - 1], kind="stable")
    begins, ends, watts = begins[order], ends[order], watts[order]
    dropped, last = dropped[order], last[order]
    kept = np.arange(count) < last[:, None]
    frames = _frames(load, order, begins, ends, kept, dropped, rng)
    background = _background(load.background, load.duration_s, rng)
    edges, level = _sum_of_steps(begins[kept], ends[kept], watts[kept], background)
    return Truth(frames, watts[kept], edges, level, background)


def _stage_watts(stage: Stage, n: int, fps: float, rng: np.random.Generator) -> Float:
    hidden = np.sin(2 * np.pi * (np.arange(n) / fps / 7.0 + rng.random()))
    return stage.watts * (1 + stage.spread * rng.standard_normal(n) + stage.unseen * hidden)


def _background(background: Background, duration: float, rng: np.random.Generator) -> tuple[Float, Float]:
    """The background as steps (edges (k + 1,), levels (k,)) from 2 s before to 2 s after the run."""
    first, last = -2.0, duration + 2.0
    edges, levels = np.array([first, last]), np.array([background.watts])
    if background.switch_w:
        gaps = rng.exponential(
            background.switch_every_s, int(3 * (last - first) / background.switch_every_s) + 10
        )
        inner = first + np.cumsum(gaps)
        inner = inner[inner < last]
        edges = np.concatenate([[first], inner, [last]])
        levels = background.watts + background.switch_w * (np.arange(len(edges) - 1) % 2)
    if background.drift_w:
        step = 0.01
        grid = np.arange(first, last, step)
        walk = np.cumsum(rng.standard_normal(len(grid))) * background.drift_w * np.sqrt(step)
        both = np.union1d(edges, grid)
        at = both[:-1]
        levels = (
            levels[np.searchsorted(edges, at, "right") - 1] + walk[np.searchsorted(grid, at, "right") - 1]
        )
        edges = both
    return edges, levels


def _sum_of_steps(
    begin: Float, end: Float, watts: Float, background: tuple[Float, Float]
) -> tuple[Float, Float]:
    edges, levels = background
    times = np.concatenate([edges[:-1], begin, end])
    jumps = np.concatenate([np.diff(levels, prepend=0.0), watts, -watts])
    order = np.argsort(times, kind="stable")
    return np.append(times[order], edges[-1]), np.cumsum(jumps[order])


def _frames(
    load: Load,
    number: Int,
    begins: Float,
    ends: Float,
    kept: Any,
    dropped: Any,
    rng: np.random.Generator,
) -> Frames:
    n = len(number)
    seed = np.uint64(rng.integers(1, 1 << 62))
    ids = mix64(seed + np.arange(3 * n, dtype=np.uint64))
    stage_frame, stage = np.nonzero(kept)
    return Frames(
        pipeline=load.name,
        trace=nonzero(ids[: 2 * n].reshape(n, 2)),
        span=nonzero(ids[2 * n :]),
        begin=to_ns(begins[:, 0]),
        end=to_ns(np.where(kept, ends, -np.inf).max(axis=1)) if n else np.zeros(0, np.int64),
        number=number.astype(np.int64),
        outcome=dropped.astype(np.uint8),
        stage_frame=stage_frame.astype(np.int64),
        stage=stage.astype(np.int32),
        stage_begin=to_ns(begins[kept]),
        stage_end=to_ns(ends[kept]),
        stage_names=[s.name for s in load.stages],
        simulated=True,
        service="simulate",
    )


def merged(truths: list[Truth]) -> Truth:
    """Several pipelines on one machine: powers added, the first one's background and frames kept.

    The caller keeps the frames of each; only the power is summed here.
    """
    first = truths[0]
    begin, end, watts = (
        np.concatenate(parts)
        for parts in zip(
            *((seconds(t.frames.stage_begin), seconds(t.frames.stage_end), t.watts) for t in truths),
            strict=True,
        )
    )
    edges, level = _sum_of_steps(begin, end, watts, first.background)
    return Truth(first.frames, first.watts, edges, level, first.background)


def seconds(time_ns: Int) -> Float:
    """Unix ns to seconds from the origin."""
    return (time_ns - ORIGIN_NS) / 1e9


def to_ns(time_s: Float) -> Int:
    """Seconds from the origin to Unix ns."""
    return ORIGIN_NS + np.round(time_s * 1e9).astype(np.int64)


def integral(edges: Float, level: Float, begin: Float, end: Float) -> Float:
    """Integrals of a step function between two times, by prefix sums."""
    sums = np.append(0.0, np.cumsum(level * np.diff(edges)))
    result: Float = np.interp(end, edges, sums) - np.interp(begin, edges, sums)
    return result


@dataclass(slots=True)
class FrameTruth:
    """Joules of each frame (n,): `own` above background, `shared` own + even split of the
    background, `energy` all that the machine used while the frame was in flight; `idle` (J) is
    the background while no frame was in flight between the given times."""

    own: Float
    shared: Float
    energy: Float
    idle: float


def frame_truth(truth: Truth, begin_s: float, end_s: float) -> FrameTruth:
    """The exact energies of the truth's frames, `idle` between `begin_s` and `end_s`."""
    frames = truth.frames
    begin, end = seconds(frames.begin), seconds(frames.end)
    length = seconds(frames.stage_end) - seconds(frames.stage_begin)
    own: Float = np.bincount(frames.stage_frame, truth.watts * length, len(frames)).astype(np.float64)
    edges, level = truth.background
    times = np.unique(np.concatenate([edges, begin, end, [begin_s, end_s]]))
    background = level[np.clip(np.searchsorted(edges, times[:-1], "right") - 1, 0, len(level) - 1)]
    active = np.searchsorted(np.sort(begin), times[:-1], "right") - np.searchsorted(
        np.sort(end), times[:-1], "right"
    )
    split = np.where(active > 0, background / np.maximum(active, 1), 0.0)
    idle = np.where(active > 0, 0.0, background)
    return FrameTruth(
        own=own,
        shared=own + integral(times, split, begin, end),
        energy=truth.energy(begin, end),
        idle=float(integral(times, idle, np.array([begin_s]), np.array([end_s]))[0]),
    )


# -- meters ---------------------------------------------------------------------------------------


def measure(truth: Truth, meter: Meter, rng: np.random.Generator) -> Readings:
    """Polls the meter over the whole run: what arrives, as the sampler would have recorded it."""
    first, last = max(truth.edges[0] + 1.0, -0.5), truth.edges[-1] - 1.5
    n = int((last - first) * meter.rate_hz)
    request = first + (np.arange(n) + meter.phase * rng.uniform(-0.5, 0.5, n)) / meter.rate_hz
    late = np.where(rng.random(n) < meter.late, meter.late_s, 0.0)
    trip = meter.round_trip_s + meter.round_trip_jitter_s * rng.exponential(1.0, n) + late
    instant = request + trip * rng.random(n)
    shown = instant
    if meter.refresh_hz:
        phase = rng.random() / meter.refresh_hz
        shown = np.floor((instant - phase) * meter.refresh_hz) / meter.refresh_hz + phase
    fresh, which = np.unique(shown, return_inverse=True)
    value = _with_noise(respond(truth, meter, fresh), meter, rng)[which]
    kept = rng.random(n) >= meter.missed
    known_lag = meter.lag_s if meter.known else 0.0
    middle = request + trip / 2 - known_lag + meter.clock_offset_s
    ids = mix64(np.uint64(rng.integers(1, 1 << 62)) + np.arange(3 * n, dtype=np.uint64)).reshape(n, 3)
    return Readings(
        meter=meter.name,
        domain=meter.domain,
        kind=meter.kind,
        time=to_ns(middle)[kept],
        uncertainty=np.round(trip / 2 * 1e9).astype(np.int64)[kept],
        value=value[kept],
        trace=nonzero(ids[kept, :2]),
        span=nonzero(ids[kept, 2]),
        window_ns=round(meter.window_s * 1e9) if meter.known and meter.kind == "power" else None,
        wrap_j=meter.wrap_j if meter.known else 0.0,
        clock_ns=None if meter.clock_known_s is None else round(meter.clock_known_s * 1e9),
        simulated=True,
    )


def respond(truth: Truth, meter: Meter, instant: Float) -> Float:
    """What the meter shows at the instants, without noise and quantum: W, or J for a counter."""
    at = instant - meter.lag_s
    if meter.kind == "energy":
        return truth.energy(np.full(len(at), truth.edges[0]), at)
    if meter.kernel == "lowpass":
        return _lowpass(truth, meter.window_s, at)
    if meter.window_s == 0.0:
        inside = np.clip(np.searchsorted(truth.edges, at, "right") - 1, 0, len(truth.level) - 1)
        return truth.level[inside]
    return truth.energy(at - meter.window_s, at) / meter.window_s


def _lowpass(truth: Truth, tau: float, at: Float) -> Float:
    """The response of a first-order low-pass with time constant `tau`, exact for steps."""
    decay = np.exp(-np.diff(truth.edges) / tau)
    state = np.empty(len(truth.edges))
    state[0] = truth.level[0]
    for i, (level, d) in enumerate(zip(truth.level, decay, strict=True)):
        state[i + 1] = level + (state[i] - level) * d
    k = np.clip(np.searchsorted(truth.edges, at, "right") - 1, 0, len(truth.level) - 1)
    settled: Float = truth.level[k] + (state[k] - truth.level[k]) * np.exp(-(at - truth.edges[k]) / tau)
    return settled


def _with_noise(value: Float, meter: Meter, rng: np.random.Generator) -> Float:
    n = len(value)
    if meter.tails:
        unit = rng.standard_t(meter.tails, n)
        unit /= np.sqrt(meter.tails / (meter.tails - 2)) if meter.tails > 2 else 1.0
    else:
        unit = rng.standard_normal(n)
    value = value + meter.noise * unit
    if meter.quantum:
        value = np.floor(value / meter.quantum) * meter.quantum
    if meter.wrap_j:
        value = np.mod(value, meter.wrap_j)
    return value


# -- as telemetry ---------------------------------------------------------------------------------


def requests(
    frames: list[Frames], readings: list[Readings], meters: list[Meter], chunk_s: float = 1.0
) -> Iterator[bytes]:
    """The run as OTLP trace requests in order of time, one per second and kind of span.

    Frames end up in the request of the second in which they ended, as an exporter would send them.
    """
    ends = [f.end for f in frames] + [r.time for r in readings]
    first = min(int(e.min()) for e in ends if len(e))
    last = max(int(e.max()) for e in ends if len(e))
    step = round(chunk_s * _SECOND)
    for begin in range(first, last + 1, step):
        for f in frames:
            rows = np.flatnonzero((f.end >= begin) & (f.end < begin + step))
            if len(rows):
                yield encode_request(_resource(f.service), _frame_batches(f, rows))
        for r, meter in zip(readings, meters, strict=True):
            rows = np.flatnonzero((r.time >= begin) & (r.time < begin + step))
            if len(rows):
                yield encode_request(_resource("simulate-meter"), [_sample_batch(r, meter, rows)])


def _resource(service: str) -> dict[str, str | bool]:
    return {contract.SIMULATED: True, "host.name": "simulated", "service.name": service}


def _frame_batches(frames: Frames, rows: Int) -> list[SpanBatch]:
    outcome = frames.outcome[rows]
    batches = [
        SpanBatch(
            name=contract.FRAME,
            trace=frames.trace[rows],
            span=frames.span[rows],
            start=frames.begin[rows],
            end=frames.end[rows],
            status=np.where(outcome == 0, 0, STATUS_ERROR).astype(np.uint8),
            attributes={
                contract.PIPELINE_NAME: frames.pipeline,
                contract.FRAME_NUMBER: frames.number[rows],
                contract.FRAME_OUTCOME: Strings(outcome.astype(np.int32), list(OUTCOMES)),
            },
        )
    ]
    for code, name in enumerate(frames.stage_names):
        mine = np.flatnonzero((frames.stage == code) & np.isin(frames.stage_frame, rows))
        owner = frames.stage_frame[mine]
        batches.append(
            SpanBatch(
                name=name,
                trace=frames.trace[owner],
                span=_stage_ids(frames.span[owner], code),
                parent=frames.span[owner],
                start=frames.stage_begin[mine],
                end=frames.stage_end[mine],
                attributes={contract.PIPELINE_STAGE: name},
            )
        )
    return batches


def _stage_ids(span: Uint, stage: int) -> Uint:
    return nonzero(mix64(span + np.uint64(stage + 1)))


def _sample_batch(readings: Readings, meter: Meter, rows: Int) -> SpanBatch:
    """The samples as the sampler sent them: request to response, the known lag and window beside."""
    lag = round(meter.lag_s * 1e9) if meter.known else 0
    middle, half = readings.time[rows] + lag, readings.uncertainty[rows]
    prefix = contract.POWER_PREFIX if readings.kind == "power" else contract.ENERGY_PREFIX
    attributes: dict[str, Any] = {
        contract.HW_ID: readings.meter,
        contract.HW_TYPE: "power_supply",
        prefix + readings.domain: Optional(readings.value[rows], np.isfinite(readings.value[rows])),
    }
    if meter.known:
        attributes[contract.METER_LAG] = lag
        if readings.window_ns is not None:
            attributes[contract.METER_WINDOW] = readings.window_ns
        if readings.wrap_j:
            attributes[contract.METER_WRAP] = readings.wrap_j
    if readings.clock_ns is not None:
        attributes[contract.CLOCK_UNCERTAINTY] = readings.clock_ns
    return SpanBatch(
        name=contract.SAMPLE,
        trace=readings.trace[rows],
        span=readings.span[rows],
        start=middle - half,
        end=middle + half,
        attributes=attributes,
    )
