"""CapFrameX captures: JSON with its sensors and power meter, and CSV.

Presents become frames as in `presentmon`. Captures that this project wrote (runtime `OTel`) have the
ends of frames in TimeInSeconds and their duration, or the first pair's, in PcLatency; they come back so.

| Of the JSON | Becomes |
|---|---|
| Info.CreationDate | the time of the last frame: CapFrameX saves then (ours: of the first); whole seconds |
| Pmd{Gpu,Cpu,System}Power | domains `gpu`, `cpu`, `system` of the meter `capframex-pmd` every SampleTime ms |
| SensorData2, of the type Power: `GPU Power` | domain `gpu` of the meter `capframex` |
| and `CPU Package` | its domain `cpu` |
| other sensors | its readings that are no domain |

`GPU Total`, `GPU TBP` and `GPU TDP` are `GPU Power`, too; of two sensors of a domain neither is it.
Sensors in our own captures are figures about frames and no readings: they are left out.
Format: CapFrameX 1.8, `CapFrameX.Data.Session`; FileRecordInfo.cs for the CSV's `//` lines.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from itertools import chain
from typing import Any

import msgspec
import numpy as np

from benchlab_otel.contract import POWER_PREFIX
from benchlab_otel.imports import presentmon, table
from benchlab_otel.imports.capture import (
    Block,
    Capture,
    Samples,
    Zero,
    ns,
    ns_of_seconds,
)
from benchlab_otel.imports.table import SECONDS, Rows
from benchlab_otel.model import COMPLETED, DROPPED, OUTCOMES, Bool, Float

HINT = "a CapFrameX capture: JSON with Info and Runs, or CSV with // lines above the header"
OURS = "OTel"
_BLOCK = 20_000  # frames
_LONGEST_MS = 3.6e6
_NOT_JSON = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
_NOT_FINITE = re.compile(rb"(?<=[\[,:\s])-?(?:NaN|Infinity)(?=[\],}\s])")


def detect(head: bytes) -> bool:
    """Whether a file with these first bytes is one."""
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n")
    if start.startswith(b"{"):
        return any(key in head for key in (b'"CaptureData"', b'"AppVersion"', b'"PresentMonRuntime"'))
    return start.startswith(b"//") and b"=" in start[:200]


def read(capture: Capture) -> Iterator[Block | Samples]:
    """The frames and readings of a capture. Raises FormatError, OSError."""
    with capture.path.open("rb") as file:
        head = file.read(64).lstrip(b"\xef\xbb\xbf \t\r\n")
    return _read_json(capture) if head.startswith(b"{") else _read_csv(capture)


# -- CSV ----------------------------------------------------------------------------------------


def _read_csv(capture: Capture) -> Iterator[Block]:
    found = table.open_table(capture, presentmon.is_header, HINT, presentmon.column_name)
    presentmon.check_columns(capture, found)
    told = dict(line[2:].split("=", 1) for line in found.above if line.startswith("//") and "=" in line)
    capture.simulated = _is_simulated(told.get("Comment", ""))
    capture.name = told.get("GameName", "").strip()
    blocks = table.read_rows(capture, found)
    first = next(blocks, None)
    if first is None:
        return
    ours = first.cells.get("runtime", ("",))[0] == OURS
    moment = _moment(f"{told.get('CreationDate', '').strip()}T{told.get('CreationTime', '').strip()}")
    if moment is not None:  # written without a zone: ours is UTC, CapFrameX's the machine's own
        _date(capture, moment.replace(tzinfo=UTC) if ours else moment.astimezone(), ours)
    if not ours:
        yield from presentmon.frames_of(capture, chain([first], blocks))
        return
    _note_ours(capture, told.get("Comment", ""))
    count = 0
    for rows in chain([first], blocks):
        block = _completions_of_rows(capture, rows, count)
        if block is not None:
            count += len(block.begin)
            yield block


def _completions_of_rows(capture: Capture, rows: Rows, count: int) -> Block | None:
    time, latency = (table.numbers(capture, rows, name) for name in ("timeinseconds", "pclatency"))
    if "pclatency" not in rows:
        latency = np.zeros(len(rows))
    limits = {"timeinseconds": (time, SECONDS), "pclatency": (latency, _LONGEST_MS)}
    good = table.usable(capture, rows, limits)
    if not good.any():
        return None
    return _completions(time[good], latency[good], presentmon.dropped(capture, rows)[good], count)


# -- JSON ---------------------------------------------------------------------------------------


class _Run(msgspec.Struct):
    """What is wanted of a run; arrays stay text until each is read, so that one at a time is in memory."""

    CaptureData: dict[str, msgspec.Raw]
    PresentMonRuntime: str | None = None
    SensorData2: dict[str, msgspec.Raw] | None = None
    SampleTime: float | None = None
    PmdGpuPower: msgspec.Raw = msgspec.Raw(b"null")
    PmdCpuPower: msgspec.Raw = msgspec.Raw(b"null")
    PmdSystemPower: msgspec.Raw = msgspec.Raw(b"null")


class _Session(msgspec.Struct):
    Runs: list[_Run]
    Info: dict[str, Any] = {}


class _Sensor(msgspec.Struct):
    Name: str
    Type: str
    Values: list[float | None]


def _read_json(capture: Capture) -> Iterator[Block | Samples]:
    text = capture.path.read_bytes().removeprefix(b"\xef\xbb\xbf")
    capture.advance(len(text))
    if b"NaN" in text or b"Infinity" in text:
        text = _NOT_FINITE.sub(b"null", text)  # CapFrameX reads and writes them; JSON has none
    try:
        session = msgspec.json.decode(text, type=_Session)
    except _NOT_JSON as error:
        raise capture.error(_line_of(text, str(error)), f"{error}; expected {HINT}") from None
    comment = str(session.Info.get("Comment") or "")
    ours = any(run.PresentMonRuntime == OURS for run in session.Runs)
    capture.name = str(session.Info.get("GameName") or session.Info.get("ProcessName") or "").strip()
    capture.simulated = _is_simulated(comment)
    moment = _moment(str(session.Info.get("CreationDate") or ""))
    if moment is not None:
        _date(capture, moment if moment.tzinfo else moment.replace(tzinfo=UTC), ours)
    if ours:
        _note_ours(capture, comment)
    start = 0.0
    count = 0
    for i, run in enumerate(session.Runs):
        presents = _presents(capture, run, f"Runs[{i}].CaptureData")
        if not len(presents.time):
            continue
        again = start if presents.time[0] < start else 0.0  # a run may count from 0 or go on
        presents.time += again
        yield from _blocks(presents, ours, count)
        yield from _pmd(capture, run, start, f"Runs[{i}]")
        if run.SensorData2 and not ours:
            yield from _sensors(capture, run.SensorData2, again, f"Runs[{i}].SensorData2")
        start, count = float(presents.time[-1]), count + len(presents.time)


def _presents(capture: Capture, run: _Run, where: str) -> presentmon.Presents:
    """A run's arrays, without the rows that can't be."""
    data = {
        name: _array(capture, run.CaptureData.get(key), f"{where}.{key}") for key, name in _ARRAYS.items()
    }
    time, between = data["time"], data["between"]
    if time is None or between is None:
        raise capture.error(0, f"{where}: expected the arrays TimeInSeconds and MsBetweenPresents")
    n = len(time)
    for key, name in _ARRAYS.items():
        values = data[name]
        if values is not None and len(values) != n:
            raise capture.error(
                0, f"{where}.{key}: expected {n} values, as in TimeInSeconds, found {len(values)}"
            )
    good = (time >= 0) & (time <= SECONDS) & (between >= 0) & (between <= _LONGEST_MS)
    for row in np.flatnonzero(~good).tolist():
        found = f"{time[row]:g} and {between[row]:g}"
        capture.faults.add(f"{where}[{row}]", f"expected TimeInSeconds and MsBetweenPresents, found {found}")
    kept = {name: (np.full(n, np.nan) if v is None else v)[good] for name, v in data.items()}
    is_dropped = _dropped(capture, run.CaptureData.get("Dropped"), n, where)[good]
    return presentmon.Presents(**kept, dropped=is_dropped, render_start=np.full(len(is_dropped), np.nan))


_ARRAYS = {
    "TimeInSeconds": "time",
    "MsBetweenPresents": "between",
    "MsInPresentAPI": "in_present",
    "MsUntilRenderComplete": "render_complete",
    "MsUntilDisplayed": "displayed",
    "GpuActive": "gpu_active",
    "PcLatency": "pc_latency",
}


def _array(capture: Capture, raw: msgspec.Raw | None, where: str) -> Float | None:
    """An array of numbers, NaN for null; None where there is none."""
    return _decoded(capture, raw, list[float | None] | None, np.float64, where)


def _dropped(capture: Capture, raw: msgspec.Raw | None, n: int, where: str) -> Bool:
    values = _decoded(capture, raw, list[bool | float] | None, np.float64, f"{where}.Dropped")
    if values is None:
        return np.zeros(n, np.bool_)
    if len(values) != n:
        raise capture.error(0, f"{where}.Dropped: expected {n} values, found {len(values)}")
    return values != 0


def _decoded(capture: Capture, raw: msgspec.Raw | None, type_: Any, dtype: Any, where: str) -> Any:
    if raw is None:
        return None
    try:
        values = msgspec.json.decode(raw, type=type_)
        return None if values is None else np.array(values, dtype)
    except (*_NOT_JSON, OverflowError) as error:
        raise capture.error(0, f"{where}: expected an array of numbers: {error}") from None


def _blocks(p: presentmon.Presents, ours: bool, count: int) -> Iterator[Block]:
    for at in range(0, len(p.time), _BLOCK):
        part = presentmon.part(p, slice(at, at + _BLOCK))
        if ours:
            yield _completions(part.time, _zero_if_absent(part.pc_latency), part.dropped, count + at)
        else:
            block = presentmon.frames_of_presents(part)
            yield replace(block, number=block.number + count + at)


def _zero_if_absent(values: Float) -> Float:
    return np.where((values > 0) & (values <= _LONGEST_MS), values, 0.0)


def _completions(time: Float, latency: Float, dropped: Bool, first: int) -> Block:
    """Frames of our own captures: `time` s is their end, `latency` ms their duration, 0 where unknown."""
    end = ns_of_seconds(time)
    outcome = np.where(dropped, OUTCOMES.index(DROPPED), OUTCOMES.index(COMPLETED))
    return Block(np.arange(first, first + len(end)), end - ns(latency), end, outcome, [])


# -- sensors ------------------------------------------------------------------------------------


def _pmd(capture: Capture, run: _Run, offset: float, where: str) -> Iterator[Samples]:
    """The readings of the power meter beside the capture, one every SampleTime ms from its begin."""
    slots = {"gpu": run.PmdGpuPower, "cpu": run.PmdCpuPower, "system": run.PmdSystemPower}
    found = {d: _array(capture, raw, f"{where}: power of {d}") for d, raw in slots.items()}
    arrays = {domain: values for domain, values in found.items() if values is not None and len(values)}
    if not arrays:
        return
    if not run.SampleTime or not 0 < run.SampleTime <= _LONGEST_MS:
        capture.notes.append(f"{where}: the meter's readings have no SampleTime, so no times: left out")
        return
    n = max(map(len, arrays.values()))
    values = np.full((n, len(arrays)), np.nan)
    for column, array in enumerate(arrays.values()):
        values[: len(array), column] = array
    time = ns_of_seconds(offset + np.arange(n, dtype=np.float64) * (run.SampleTime / 1e3))
    keys = tuple(f"{POWER_PREFIX}{domain}" for domain in arrays)
    yield from _samples("capframex-pmd", "power_meter", time, keys, values)


def _sensors(capture: Capture, raw: dict[str, msgspec.Raw], offset: float, where: str) -> Iterator[Samples]:
    """The sensors that CapFrameX read beside the capture."""
    sensors = [s for key, text in raw.items() if (s := _sensor(capture, text, f"{where}.{key}")) is not None]
    times = next((s.Values for s in sensors if s.Name == "MeasureTime"), None)
    if times is None:
        return
    time: Float = np.array(times, np.float64)
    chosen = [s for s in sensors if s.Type in _QUANTITIES and len(s.Values) == len(time)]
    if not chosen or not len(time):
        return
    keys = _sensor_keys(chosen)
    values = np.array([s.Values for s in chosen], np.float64).T
    known = (time >= 0) & (time <= SECONDS)
    yield from _samples("capframex", "other", ns_of_seconds(time[known] + offset), keys, values[known])


def _sensor(capture: Capture, text: msgspec.Raw, where: str) -> _Sensor | None:
    try:
        return msgspec.json.decode(text, type=_Sensor)
    except _NOT_JSON as error:
        capture.faults.add(where, f"expected a sensor with Name, Type and Values: {error}")
        return None


_QUANTITIES = {
    "Power": "power",
    "Temperature": "temperature",
    "Voltage": "voltage",
    "Load": "utilization",
    "Clock": "frequency",
    "Fan": "fan.speed",
}
_GPU_POWER = ("GPU Power", "GPU Total", "GPU TBP", "GPU TDP")


def _sensor_keys(sensors: list[_Sensor]) -> tuple[str, ...]:
    """The sensors' attributes: a domain where a name says so and is the only one to."""
    domains = [_domain(sensor) for sensor in sensors]
    keys: list[str] = []
    for sensor, domain in zip(sensors, domains, strict=True):
        if domain and domains.count(domain) == 1:
            key = f"{POWER_PREFIX}{domain}"
        else:
            key = f"hw.{_QUANTITIES[sensor.Type]}.sensor.{sensor.Name}"
        while key in keys:
            key += "'"
        keys.append(key)
    return tuple(keys)


def _domain(sensor: _Sensor) -> str:
    if sensor.Type != "Power":
        return ""
    if any(name in sensor.Name for name in _GPU_POWER):
        return "gpu"
    return "cpu" if "CPU Package" in sensor.Name else ""


def _samples(hw_id: str, hw_type: str, time: Any, keys: tuple[str, ...], values: Float) -> Iterator[Samples]:
    for at in range(0, len(time), _BLOCK):
        some = ~np.isnan(values[at : at + _BLOCK]).all(axis=1)
        moments = time[at : at + _BLOCK][some]
        if len(moments):
            yield Samples(hw_id, hw_type, moments, moments, keys, values[at : at + _BLOCK][some])


# -- what the file says of itself ---------------------------------------------------------------


def _is_simulated(comment: str) -> bool:
    return comment.startswith("SIMULATED:")


def _moment(text: str) -> datetime | None:
    """A date and time; None where it is none. Years that no clock shows are not believed."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return None
    return moment if 1990 < moment.year < 2200 else None


def _date(capture: Capture, moment: datetime, ours: bool) -> None:
    """The capture's time base: CapFrameX writes the moment when it saved, we that of the first frame."""
    when = "of its first frame" if ours else "when it was saved, after the last frame"
    source = f"the file's CreationDate, {when}, to the second"
    capture.zero = Zero(int(moment.timestamp() * 1e6) * 1000, source, at_end=not ours)


def _note_ours(capture: Capture, comment: str) -> None:
    capture.notes.append(
        "frames end at TimeInSeconds and are as long as PcLatency; stages have no times here"
    )
    for part in comment.split("; "):
        if part.startswith("PC latency is "):
            capture.notes.append(f"{part}: so that is what the frames' length is")


def _line_of(text: bytes, message: str) -> int:
    """The line that a decoder's message is about, 0 where it does not say."""
    if "truncated" in message:
        return text.count(b"\n") + 1
    found = re.search(r"\(byte (\d+)\)", message)
    return text.count(b"\n", 0, int(found[1])) + 1 if found else 0
