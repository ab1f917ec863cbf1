"""A run's Sensor tab and the slots of an external meter, as CapFrameX takes them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from benchlab_otel.align.marks import frame_moments, latency, stage_time
from benchlab_otel.export.capframex_columns import Options
from benchlab_otel.export.output import Array
from benchlab_otel.model import Bool, Float, FrameEnergy, Frames, Readings, Run

JOULES_PER_MWH = 3.6


@dataclass(frozen=True, slots=True)
class Sensor:
    """One line of the Sensor tab: `values` gives (n,) values and which frames have one."""

    key: str
    name: str
    type: str
    values: Callable[[], tuple[Float, Bool]]


def sensors_of(run: Run, options: Options) -> list[Sensor]:
    """All lines that the run has for the Sensor tab."""
    frames = run.frames
    duration = (frames.end - frames.begin) / 1e9
    sensors = [Sensor("/pipeline/frame", "frame", "TimeSpan", lambda: (duration, duration >= 0))]
    for stage in frames.stage_names:
        values = partial(stage_time, frames, stage)
        sensors.append(Sensor(f"/pipeline/stage/{stage}", stage, "TimeSpan", values))
    for pair in options.pairs:
        sensors.append(Sensor(f"/pipeline/pair/{pair}", pair, "TimeSpan", partial(latency, frames, pair)))
    best = _best(run.energy)
    domains = [e.domain for e in best]
    for energy in best:
        label = energy.domain if domains.count(energy.domain) == 1 else f"{energy.domain} of {energy.meter}"
        sensors += _energy_sensors(energy, label, duration)
    for name, readings in _known_powers(run.readings):
        values = partial(_mean_power, frames, readings)
        sensors.append(Sensor(f"/{readings.meter}/power/{readings.domain}", name, "Power", values))
    return sensors


def _energy_sensors(energy: FrameEnergy, label: str, duration: Float) -> list[Sensor]:
    """A domain's mean power while the frame was in flight, and its energy."""
    known = np.isfinite(energy.energy) & (duration > 0)

    def watts() -> tuple[Float, Bool]:
        return np.divide(energy.energy, duration, out=np.zeros(len(known)), where=known), known

    def milliwatt_hours() -> tuple[Float, Bool]:
        return np.where(known, energy.energy / JOULES_PER_MWH, 0), known

    key = f"/{energy.meter}/{{}}/{energy.domain}"
    return [
        Sensor(key.format("power in flight"), f"{label} power in flight", "Power", watts),
        Sensor(key.format("energy"), f"{label} energy per frame", "Energy", milliwatt_hours),
    ]


def _best(energies: Sequence[FrameEnergy]) -> list[FrameEnergy]:
    """One entry a meter and domain: conditioned where there is one."""
    by_domain: dict[tuple[str, str], FrameEnergy] = {}
    for energy in energies:
        if energy.method == "conditioned" or (energy.meter, energy.domain) not in by_domain:
            by_domain[energy.meter, energy.domain] = energy
    return list(by_domain.values())


def _known_powers(readings: Sequence[Readings]) -> Iterator[tuple[str, Readings]]:
    """The readings of the CPU and of the GPU, by the names under which CapFrameX averages them and divides
    frame rates by them; not where there are several, since it takes every sensor of the name."""
    domains = [r.domain for r in readings]
    packages = {domain for domain in domains if domain.startswith("package-")}
    cpu = "cpu" if "cpu" in domains else "".join(packages) if len(packages) == 1 else None
    for name, domain in (("CPU Package", cpu), ("GPU Power", "gpu")):
        found = [r for r in readings if r.domain == domain and len(r) > 2]
        if len(found) == 1:
            yield name, found[0]


def _mean_power(frames: Frames, readings: Readings) -> tuple[Float, Bool]:
    """What the meter read from the frame before to this one, in flight or not: (watts (n,), where known).

    A mean and not the reading of a moment: at its end a frame draws more than between frames.
    """
    moments = frame_moments(frames)
    order = np.argsort(moments, kind="stable")
    since = frames.begin.copy()  # of the first frame
    since[order[1:]] = moments[order[:-1]]
    origin = int(moments[order[0]])
    seconds, watts = _power(readings, origin)
    begin, end = (since - origin) / 1e9, (moments - origin) / 1e9
    energy = np.append(0.0, np.cumsum(np.diff(seconds) * (watts[1:] + watts[:-1]) / 2))
    period = float(np.median(np.diff(seconds)))
    known = (end > begin) & (begin >= seconds[0]) & (end <= seconds[-1])
    known &= (_distance(begin, seconds) <= period) & (_distance(end, seconds) <= period)
    gained = np.interp(end, seconds, energy) - np.interp(begin, seconds, energy)
    return np.divide(gained, end - begin, out=np.zeros(len(known)), where=known), known


def sensor_rows(sensors: Sequence[Sensor], completed: Bool) -> tuple[Array, list[Sensor]]:
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


def sensor_data(run: Run, start: float, rows: Array, kept: Sequence[Sensor]) -> dict[str, Any]:
    """SensorData2: the kept sensors at the frames `rows`, whose times begin at `start` s."""
    moments = frame_moments(run.frames)
    times = np.round((moments[rows] - moments[0]) / 1e9 + start, 7)
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


def meter(run: Run) -> dict[str, Any]:
    """SampleTime (ms) and the Pmd arrays: the readings as straight lines on one grid.

    A grid point further than one sample time from any reading is NaN: a gap in the chart.
    """
    packages = {r.domain for r in run.readings if r.domain.startswith("package-")}
    cpu = ["cpu", *packages] if len(packages) == 1 else ["cpu"]
    slots = {"PmdGpuPower": ["gpu"], "PmdCpuPower": cpu, "PmdSystemPower": ["system"]}
    moments = frame_moments(run.frames)
    chosen: dict[str, tuple[Float, Float]] = {}
    for slot, domains in slots.items():
        found = [r for d in domains for r in run.readings if r.domain == d and len(r) > 2]
        if found:
            chosen[slot] = _power(found[0], int(moments[0]))
    if not chosen:
        return {"SampleTime": 0, **dict.fromkeys(slots)}
    step = max(1, round(min(float(np.median(np.diff(t))) for t, _ in chosen.values()) * 1e3))
    length = (int(moments[-1]) - int(moments[0])) / 1e9
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
    near = _distance(grid, seconds) <= float(np.median(np.diff(seconds)))
    return np.where(near, np.round(np.interp(grid, seconds, watts), 4), np.nan)


def _distance(at: Float, seconds: Float) -> Float:
    """How far it is from each time to the nearest reading."""
    right = np.clip(np.searchsorted(seconds, at), 0, len(seconds) - 1)
    left = np.maximum(right - 1, 0)
    return np.minimum(np.abs(seconds[left] - at), np.abs(seconds[right] - at))
