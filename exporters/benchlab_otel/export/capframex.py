"""Runs to CapFrameX captures: JSON (all it can show) and CSV (frame times and one latency).

What a pipeline becomes, a row for each frame after the first (whose end is second 0):

| CapFrameX | Pipeline |
|---|---|
| MsBetweenPresents | time from the previous frame's end to this one's |
| MsBetweenDisplayChange | the same over completed frames; 0 where dropped |
| PcLatency | the first `--pair`, else the frame's duration; 0 where absent |
| GpuActive, CpuActive | time in the stages called accelerator stages, and in all others |
| MsInPresentAPI, MsUntilDisplayed | the last stage, and its begin to the frame's end |
| Dropped | frames that did not complete |
| TimeSpan sensors (s) | the frame, each stage and each pair: side by side in the Sensor tab |
| Power (W), Energy (mWh) sensors | each domain while the frame was in flight |
| Pmd*Power | the meter's own readings on a grid of SampleTime, NaN where it was silent for longer |

Energies are the conditioned ones where there are any (`align.attribution`), else the interpolated. Stages'
joules are no sensors: a stage of some milliwatt-seconds reads 0.0 in mWh, the one unit there is.
CapFrameX demands the other members; a pipeline has nothing to say there and they are 0. A sensor is
left out, and the comment says so, where fewer than half of the completed frames have it.
Format: CapFrameX 1.8.4, `CapFrameX.Data.Session` and its loader.
"""

from __future__ import annotations

import hashlib
import re
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np

from benchlab_otel import __version__
from benchlab_otel.align.marks import latency, stage_time
from benchlab_otel.export.output import BLOCK, Array, Lazy, dump_json, replacing
from benchlab_otel.model import COMPLETED, OUTCOMES, Bool, Float, FrameEnergy, Frames, Readings, Run

CSV_MINIMUM = 40  # lines that CapFrameX wants before it lists a CSV with metadata
JOULES_PER_MWH = 3.6


@dataclass(frozen=True, slots=True)
class Options:
    """`pairs` of marks (`from:to`), the first one as PcLatency; `accelerators`: stages not on the CPU."""

    pairs: tuple[str, ...] = ()
    accelerators: tuple[str, ...] = ()


def write_json(path: Path, runs: Sequence[Run], options: Options = Options()) -> None:
    """Writes the runs of one pipeline as one capture; nothing is left at `path` when it fails.

    Raises ValueError for runs of fewer than two frames and unknown marks, OSError for the disk.
    """
    document = _document(runs, options)
    with replacing(path) as out:
        dump_json(out, document)


def write_csv(path: Path, runs: Sequence[Run], options: Options = Options()) -> None:
    """Writes the frames of the runs as CSV, which carries one pair and neither sensors nor power.

    Raises ValueError like `write_json`, and where CapFrameX would not list a file so short.
    """
    lines = _csv_head(runs, options)
    frames = sum(len(run.frames) - 1 for run in runs)
    if len(lines) + frames <= CSV_MINIMUM:
        raise ValueError(
            f"CapFrameX lists a CSV only with more than {CSV_MINIMUM} lines and this one would have"
            f" {len(lines) + frames}; convert to capframex-json, which has no minimum"
        )
    with replacing(path) as out:
        out.write("".join(f"{line}\n" for line in lines).encode())
        for capture in _captures(runs, options):
            _csv_rows(out, capture, runs[0].frames.pipeline)


# -- one run as CapFrameX's columns -----------------------------------------------------------


@dataclass(slots=True)
class _Capture:
    """A run as CapFrameX sees it: rows are the frames but the first, `start` its TimeInSeconds."""

    run: Run
    start: float
    columns: dict[str, Lazy] = field(default_factory=dict)


def _captures(runs: Sequence[Run], options: Options) -> Iterator[_Capture]:
    """The runs in turn; TimeInSeconds goes on from one to the next."""
    start = 0.0
    for run in runs:
        frames = run.frames
        if len(frames) < 2:
            raise ValueError(
                f"pipeline {frames.pipeline!r} has {len(frames)} frame(s) here; a capture needs two or more,"
                " since a frame time is the time between two of them"
            )
        yield _Capture(run, start, _columns(frames, start, options))
        start += (int(frames.end[-1]) - int(frames.end[0])) / 1e9


def _columns(frames: Frames, start: float, options: Options) -> dict[str, Lazy]:
    """The arrays of CaptureData by name, each computed when it is written: they are large."""
    unknown = [s for s in options.accelerators if s not in frames.stage_names]
    if unknown:
        raise ValueError(
            f"pipeline {frames.pipeline!r} has no stage {unknown[0]!r};"
            f" it has {', '.join(frames.stage_names) or 'none'}"
        )
    for pair in options.pairs:
        latency(frames, pair)  # an unknown mark is found before anything is written
    rows = len(frames) - 1
    host = [s for s in frames.stage_names if s not in options.accelerators]

    def zeros() -> Array:
        return np.zeros(rows)

    def no_mode() -> Array:
        return np.zeros(rows, np.int64)

    return {
        "TimeInSeconds": lambda: np.round((frames.end[1:] - frames.end[0]) / 1e9 + start, 7),
        "MsBetweenPresents": lambda: np.round(np.diff(frames.end) / 1e6, 4),
        "MsInPresentAPI": lambda: _ms(_last_stage(frames)[0]),
        "MsBetweenDisplayChange": lambda: np.round(_between_completed(frames) / 1e6, 4),
        "MsUntilRenderComplete": zeros,
        "MsUntilDisplayed": lambda: _ms(_last_stage(frames)[1]),
        "QPCTime": zeros,
        "PresentMode": no_mode,
        "AllowsTearing": no_mode,
        "SyncInterval": no_mode,
        "Dropped": lambda: ~_completed(frames)[1:],
        "PcLatency": lambda: _ms(np.where(_completed(frames), _pc_latency(frames, options), 0)),
        "AnimationError": zeros,
        "GpuActive": lambda: _ms(_time_in(frames, options.accelerators)),
        "CpuActive": lambda: _ms(_time_in(frames, host)),
    }


def _ms(seconds: Float) -> Float:
    """Seconds of all frames to milliseconds of the rows."""
    return np.round(seconds[1:] * 1e3, 4)


def _completed(frames: Frames) -> Bool:
    return frames.outcome == OUTCOMES.index(COMPLETED)


def _between_completed(frames: Frames) -> Float:
    """Nanoseconds since the previous completed frame; 0 for those not completed, (n − 1,)."""
    out = np.zeros(len(frames))
    done = np.flatnonzero(_completed(frames))
    if len(done):
        out[done] = np.diff(frames.end[done], prepend=frames.end[0])
    return out[1:]


def _pc_latency(frames: Frames, options: Options) -> Float:
    if not options.pairs:
        return (frames.end - frames.begin) / 1e9
    seconds, present = latency(frames, options.pairs[0])
    return np.where(present, seconds, 0)


def _time_in(frames: Frames, stages: Sequence[str]) -> Float:
    """Seconds that each frame spent in the stages together."""
    total = np.zeros(len(frames))
    for stage in stages:
        total += stage_time(frames, stage)[0]
    return total


def _last_stage(frames: Frames) -> tuple[Float, Float]:
    """Seconds (in the frame's last stage, from that stage's begin to the frame's end)."""
    inside, until_end = np.zeros(len(frames)), np.zeros(len(frames))
    if len(frames.stage_frame):
        starts = np.flatnonzero(np.diff(frames.stage_frame, prepend=-1))
        last_end = np.zeros(len(frames), np.int64)
        last_end[frames.stage_frame[starts]] = np.maximum.reduceat(frames.stage_end, starts)
        row = np.flatnonzero(frames.stage_end == last_end[frames.stage_frame])
        frame = frames.stage_frame[row]
        inside[frame] = (frames.stage_end[row] - frames.stage_begin[row]) / 1e9
        until_end[frame] = (frames.end[frame] - frames.stage_begin[row]) / 1e9
    done = _completed(frames)
    return np.where(done, inside, 0), np.where(done, until_end, 0)


# -- sensors and the external meter -----------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Sensor:
    """One line of the Sensor tab: `values` gives (n,) values and which frames have one."""

    key: str
    name: str
    type: str
    values: Callable[[], tuple[Float, Bool]]


def _sensors(run: Run, options: Options) -> list[_Sensor]:
    frames = run.frames
    duration = (frames.end - frames.begin) / 1e9
    sensors = [_Sensor("/pipeline/frame", "frame", "TimeSpan", lambda: (duration, duration >= 0))]
    for stage in frames.stage_names:
        values = partial(stage_time, frames, stage)
        sensors.append(_Sensor(f"/pipeline/stage/{stage}", stage, "TimeSpan", values))
    for pair in options.pairs:
        sensors.append(_Sensor(f"/pipeline/pair/{pair}", pair, "TimeSpan", partial(latency, frames, pair)))
    best = _best(run.energy)
    domains = [e.domain for e in best]
    for energy in best:
        label = energy.domain if domains.count(energy.domain) == 1 else f"{energy.domain} of {energy.meter}"
        sensors += _energy_sensors(energy, label, _power_name(energy, domains), duration)
    return sensors


def _energy_sensors(energy: FrameEnergy, label: str, power: str | None, duration: Float) -> list[_Sensor]:
    """A domain's mean power while the frame was in flight, and its energy."""
    known = np.isfinite(energy.energy) & (duration > 0)

    def watts() -> tuple[Float, Bool]:
        return np.divide(energy.energy, duration, out=np.zeros(len(known)), where=known), known

    def milliwatt_hours() -> tuple[Float, Bool]:
        return np.where(known, energy.energy / JOULES_PER_MWH, 0), known

    key = f"/{energy.meter}/{{}}/{energy.domain}"
    return [
        _Sensor(key.format("power"), power or f"{label} power", "Power", watts),
        _Sensor(key.format("energy"), f"{label} energy per frame", "Energy", milliwatt_hours),
    ]


def _best(energies: Sequence[FrameEnergy]) -> list[FrameEnergy]:
    """One entry a meter and domain: conditioned where there is one."""
    by_domain: dict[tuple[str, str], FrameEnergy] = {}
    for energy in energies:
        if energy.method == "conditioned" or (energy.meter, energy.domain) not in by_domain:
            by_domain[energy.meter, energy.domain] = energy
    return list(by_domain.values())


def _power_name(energy: FrameEnergy, domains: Sequence[str]) -> str | None:
    """The name by which CapFrameX knows the power of the GPU and of the CPU.

    None where it would be wrong or not the only one: CapFrameX takes every sensor of the name.
    """
    names = {"gpu": "GPU Power", "cpu": "CPU Package"}
    if "cpu" not in domains and "package-1" not in domains:
        names["package-0"] = "CPU Package"
    return names.get(energy.domain) if domains.count(energy.domain) == 1 else None


def _sensor_rows(sensors: Sequence[_Sensor], completed: Bool) -> tuple[Array, list[_Sensor]]:
    """(rows of the frames that have every sensor, the sensors that at least half of them have).

    The format has one time axis for all sensors and no way to say that a value is absent.
    """
    rows, kept = completed, []
    present = {sensor.key: sensor.values()[1] & completed for sensor in sensors}
    for sensor in sorted(sensors, key=lambda s: -int(present[s.key].sum())):
        both = rows & present[sensor.key]
        if both.any() and 2 * both.sum() >= completed.sum():
            rows = both
            kept.append(sensor)
    return np.flatnonzero(rows), [s for s in sensors if s in kept]


def _sensor_data(run: Run, start: float, rows: Array, kept: Sequence[_Sensor]) -> dict[str, Any]:
    times = np.round((run.frames.end[rows] - run.frames.end[0]) / 1e9 + start, 7)
    between = np.round(np.diff(times, prepend=start), 7)
    data: dict[str, Any] = {
        name: {"Name": name, "Type": "Time", "Values": values}
        for name, values in (("MeasureTime", times), ("BetweenMeasureTime", between))
    }
    for sensor in kept:
        data[sensor.key] = {
            "Name": sensor.name,
            "Type": sensor.type,
            "StableIdentifier": sensor.key,
            "Values": lambda s=sensor: np.round(s.values()[0][rows], 7),
        }
    return data


def _meter(run: Run) -> dict[str, Any]:
    """SampleTime (ms) and the Pmd arrays: the readings as straight lines on one grid.

    A grid point further than one sample time from any reading is NaN: a gap in the chart.
    """
    packages = {r.domain for r in run.readings if r.domain.startswith("package-")}
    cpu = ["cpu", *packages] if len(packages) == 1 else ["cpu"]
    slots = {"PmdGpuPower": ["gpu"], "PmdCpuPower": cpu, "PmdSystemPower": ["system"]}
    chosen: dict[str, tuple[Float, Float]] = {}
    for slot, domains in slots.items():
        found = [r for d in domains for r in run.readings if r.domain == d and len(r) > 2]
        if found:
            chosen[slot] = _power(found[0], int(run.frames.end[0]))
    if not chosen:
        return {"SampleTime": 0, **dict.fromkeys(slots)}
    step = max(1, round(min(float(np.median(np.diff(t))) for t, _ in chosen.values()) * 1e3))
    length = (int(run.frames.end[-1]) - int(run.frames.end[0])) / 1e9
    grid = np.arange(0, length, step / 1e3)
    arrays = {slot: _on_grid(grid, *chosen[slot]) if slot in chosen else None for slot in slots}
    return {"SampleTime": step, **arrays}


def _power(readings: Readings, origin: int) -> tuple[Float, Float]:
    """(seconds since the origin, watts): readings of power, or the slope of a counter."""
    seconds = (readings.time - origin) / 1e9
    if readings.kind == "power":
        return seconds, readings.value
    gained, elapsed = np.diff(readings.value), np.diff(seconds)
    good = (gained >= 0) & (elapsed > 0)
    return ((seconds[1:] + seconds[:-1]) / 2)[good], (gained / np.where(good, elapsed, 1))[good]


def _on_grid(grid: Float, seconds: Float, watts: Float) -> Float:
    period = float(np.median(np.diff(seconds)))
    right = np.clip(np.searchsorted(seconds, grid), 0, len(seconds) - 1)
    left = np.maximum(right - 1, 0)
    nearest = np.minimum(np.abs(seconds[left] - grid), np.abs(seconds[right] - grid))
    return np.where(nearest <= period, np.round(np.interp(grid, seconds, watts), 4), np.nan)


# -- JSON -------------------------------------------------------------------------------------


def _document(runs: Sequence[Run], options: Options) -> dict[str, Any]:
    """The Session; large arrays stand in it as functions that compute them."""
    run_nodes, left_out = [], []
    for capture in _captures(runs, options):
        sensors = _sensors(capture.run, options)
        rows, kept = _sensor_rows(sensors, _completed(capture.run.frames))
        left_out += [s.name for s in sensors if s not in kept]
        run_nodes.append(
            {
                "Hash": _hash([capture.run], options),
                "PresentMonRuntime": "OTel",
                "CaptureData": capture.columns,
                "SensorData2": _sensor_data(capture.run, capture.start, rows, kept),
                **_meter(capture.run),
            }
        )
    return {"Hash": _hash(runs, options), "Info": _info(runs, options, left_out), "Runs": run_nodes}


def _info(runs: Sequence[Run], options: Options, left_out: Sequence[str]) -> dict[str, str]:
    frames = runs[0].frames
    info = dict.fromkeys(("Processor", "OS", "SystemRam", "GPU", "Motherboard"), "")
    return info | {
        "AppVersion": "1.8.4",  # the version whose format this is
        "Id": str(_guid(runs, options)),
        "GameName": frames.pipeline,
        "ProcessName": frames.service or frames.pipeline,
        "CreationDate": f"{_created(frames):%Y-%m-%dT%H:%M:%SZ}",
        "Comment": _comment(runs, options, left_out),
    }


def _comment(runs: Sequence[Run], options: Options, left_out: Sequence[str] = ()) -> str:
    parts = [f"benchlab-otel {__version__}"]
    if simulated := _simulated(runs):
        parts.insert(0, f"SIMULATED: {', '.join(simulated)}")
    if options.pairs:
        parts.append(f"PC latency is {options.pairs[0]}")
    if left_out:
        parts.append(f"left out, for want of values: {', '.join(dict.fromkeys(left_out))}")
    return "; ".join(parts)


def _simulated(runs: Sequence[Run]) -> list[str]:
    """What of the runs was simulated, in words."""
    found = [run.frames.pipeline for run in runs if run.frames.simulated]
    found += [readings.meter for run in runs for readings in run.readings if readings.simulated]
    found += [energy.meter for run in runs for energy in run.energy if energy.simulated]
    return list(dict.fromkeys(found))


def _created(frames: Frames) -> datetime:
    return datetime.fromtimestamp(int(frames.begin[0]) / 1e9, UTC)


def _hash(runs: Sequence[Run], options: Options) -> str:
    """The same for the same frames and options, different for any others."""
    digest = hashlib.sha1(repr(options).encode(), usedforsecurity=False)
    for run in runs:
        digest.update(run.frames.pipeline.encode())
        digest.update(np.ascontiguousarray(run.frames.span).tobytes())
        digest.update(np.ascontiguousarray(run.frames.end).tobytes())
    return digest.hexdigest()


def _guid(runs: Sequence[Run], options: Options) -> uuid.UUID:
    return uuid.UUID(bytes=bytes.fromhex(_hash(runs, options))[:16], version=5)


# -- CSV --------------------------------------------------------------------------------------

_CSV = {  # CSV column: column of CaptureData, or a constant
    "Application": "", "ProcessID": "0", "SwapChainAddress": "0x0", "Runtime": "OTel",
    "SyncInterval": "0", "PresentFlags": "0", "AllowsTearing": "0", "PresentMode": "0",
    "Dropped": "Dropped", "TimeInSeconds": "TimeInSeconds", "MsBetweenPresents": "MsBetweenPresents",
    "MsBetweenDisplayChange": "MsBetweenDisplayChange", "MsInPresentAPI": "MsInPresentAPI",
    "MsUntilRenderComplete": "0", "MsUntilDisplayed": "MsUntilDisplayed", "msGPUActive": "GpuActive",
    "MsCPUBusy": "CpuActive", "MsPCLatency": "PcLatency", "MsAnimationError": "0",
}  # fmt: skip


def _csv_head(runs: Sequence[Run], options: Options) -> list[str]:
    frames = runs[0].frames
    created = _created(frames)
    metadata = {
        "Id": str(_guid(runs, options)),
        "GameName": frames.pipeline,
        "ProcessName": frames.service or frames.pipeline,
        "CreationDate": f"{created:%Y-%m-%d}",
        "CreationTime": f"{created:%H:%M:%S}",
        "Comment": _comment(runs, options),
    }
    one_line = re.compile(r"[=\r\n]+")  # a value ends at its line and at the next `=`
    return [f"//{key}={one_line.sub(' ', value)}" for key, value in metadata.items()] + [",".join(_CSV)]


def _csv_rows(out: IO[bytes], capture: _Capture, pipeline: str) -> None:
    formats, columns = [], []
    for name, source in _CSV.items():
        if name == "Application":
            formats.append(re.sub(r'[,"%\r\n]', "_", pipeline))
        elif source in capture.columns:
            column = capture.columns[source]()
            columns.append(column)
            digits = 7 if name == "TimeInSeconds" else 4
            formats.append("%d" if column.dtype == np.bool_ else f"%.{digits}f")
        else:
            formats.append(source)
    line = ",".join(formats) + "\n"
    for at in range(0, len(columns[0]), BLOCK):
        rows = zip(*(column[at : at + BLOCK].tolist() for column in columns), strict=True)
        out.write("".join([line % row for row in rows]).encode())
