"""What CapFrameX 1.8.4 refuses or misreads, written from its importer's rules and not from our writer.

Each function returns the problems of a file in words; an empty list means it opens and shows well.
"""

from __future__ import annotations

import json
import math
import re
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

INTEGERS = ("PresentMode", "AllowsTearing", "SyncInterval")
SENSOR_TYPES = {"Time", "Power", "Temperature", "Load", "Clock", "Energy", "TimeSpan", "Timing", "Voltage"}
PMD = ("PmdGpuPower", "PmdCpuPower", "PmdSystemPower")
CSV_COLUMNS = ("Application", "Dropped", "TimeInSeconds", "MsBetweenPresents", "MsBetweenDisplayChange")
CSV_TEXT = {"Application", "SwapChainAddress", "Runtime", "PresentMode"}


def json_problems(path: Path) -> list[str]:
    """Problems of a JSON capture."""
    try:
        session = json.loads(path.read_bytes())
    except ValueError as error:
        return [f"not JSON: {error}"]
    if not isinstance(session, dict):
        return ["not an object"]
    return [*_info(session), *_hashes(session), *_runs(session)]


def shared_hashes(paths: Sequence[Path]) -> list[str]:
    """Captures that would collapse into one record of the list."""
    counts = Counter(json.loads(path.read_bytes()).get("Hash") for path in paths)
    return [f"Hash {h} in {n} files" for h, n in counts.items() if n > 1]


def pc_latency_shows(run: dict[str, Any]) -> bool:
    """Whether the PC latency is shown: at least 40 % of the values above 0."""
    values = run["CaptureData"]["PcLatency"]
    return sum(v > 0 for v in values) >= 0.4 * len(values)


def _info(session: dict[str, Any]) -> Iterator[str]:
    info = session.get("Info")
    if not isinstance(info, dict):
        yield "no Info: the file is not listed"
        return
    version = info.get("AppVersion")
    if not isinstance(version, str) or not re.fullmatch(r"\d+(\.\d+){1,3}", version):
        yield f"Info.AppVersion {version!r} has not 2 to 4 parts"
    if not _is_guid(info.get("Id")):
        yield f"Info.Id {info.get('Id')!r} is no GUID"
    yield from (f"Info.{k} is not text" for k, v in info.items() if not isinstance(v, str))


def _is_guid(value: object) -> bool:
    try:
        return str(uuid.UUID(str(value))) == str(value).lower()
    except ValueError:
        return False


def _hashes(session: dict[str, Any]) -> Iterator[str]:
    if not re.fullmatch(r"[0-9a-fA-F]{40}", str(session.get("Hash"))):
        yield f"Hash {session.get('Hash')!r} is no SHA1"


def _runs(session: dict[str, Any]) -> Iterator[str]:
    runs = session.get("Runs")
    if not isinstance(runs, list) or not runs:
        yield "no Runs"
        return
    last = -math.inf
    for i, run in enumerate(runs):
        if not isinstance(run.get("CaptureData"), dict):
            yield f"run {i}: no CaptureData"
            continue
        yield from (f"run {i}: {problem}" for problem in (*_capture(run), *_sensors(run), *_pmd(run)))
        times = run["CaptureData"].get("TimeInSeconds") or []
        if times and times[0] is not None and times[0] < last:
            yield f"run {i}: TimeInSeconds does not continue"
        last = times[-1] if times and times[-1] is not None else last


def _capture(run: dict[str, Any]) -> Iterator[str]:
    data = run["CaptureData"]
    for name in ("TimeInSeconds", "MsBetweenPresents", *INTEGERS, "Dropped"):
        if name not in data:
            yield f"no {name}"
    lengths = {name: len(values) for name, values in data.items() if isinstance(values, list)}
    if len(set(lengths.values())) > 1:
        yield f"arrays of different lengths: {lengths}"
    for name, values in data.items():
        expected = (int,) if name in INTEGERS else (bool,) if name == "Dropped" else (int, float)
        yield from _numbers(name, values, expected)


def _numbers(name: str, values: object, expected: tuple[type, ...]) -> Iterator[str]:
    if not isinstance(values, list):
        yield f"{name} is no array"
    elif bad := next((repr(v) for v in values if type(v) not in expected), None):
        yield f"{name} has {bad} where {expected[-1].__name__} is wanted"


def _sensors(run: dict[str, Any]) -> Iterator[str]:
    sensors = run.get("SensorData2")
    if not isinstance(sensors, dict):
        yield "no SensorData2: the Sensor tab is empty for all runs"
        return
    if "MeasureTime" not in sensors:
        yield "no MeasureTime"
        return
    for key, sensor in sensors.items():
        if not sensor.get("Name") or not sensor.get("Type"):
            yield f"sensor {key} has no Name or Type"
        elif sensor["Type"] not in SENSOR_TYPES:
            yield f"sensor {key} has the unknown Type {sensor['Type']}"
        yield from _numbers(f"sensor {key}", sensor.get("Values"), (int, float))
        if len(sensor.get("Values") or []) != len(sensors["MeasureTime"].get("Values") or []):
            yield f"sensor {key} has not MeasureTime's length"


def _pmd(run: dict[str, Any]) -> Iterator[str]:
    present = [name for name in PMD if run.get(name) is not None]
    for name in present:
        yield from _numbers(name, run[name], (int, float))
    if present and not (type(run.get("SampleTime")) is int and run["SampleTime"] > 0):
        yield "Pmd power without a SampleTime in ms"


def csv_problems(path: Path) -> list[str]:
    """Problems of a CSV capture."""
    if path.suffix != ".csv" or path.name.endswith("-stats.csv"):
        return ["the name is not picked up"]
    lines = path.read_text("utf-8").splitlines()
    head = next((i for i, line in enumerate(lines) if "//" not in line), len(lines))
    problems = list(_metadata(lines[:head]))
    if len(lines) <= (40 if head else 20):
        problems.append(f"{len(lines)} lines are too few")
    if head == len(lines) or not ("frametime" in lines[head] or lines[head].startswith("Application")):
        return [*problems, "no header is recognised: one frame of 0 ms"]
    return [*problems, *_table(lines[head].split(","), [line.split(",") for line in lines[head + 1 :]])]


def _metadata(lines: Sequence[str]) -> Iterator[str]:
    if lines and lines[0] == "//Ignore=true":
        yield "ignored"
    keys: set[str] = set()
    for line in lines:
        key, equals, value = line.removeprefix("//").partition("=")
        if not equals:
            yield f"a // line without =: {line}"
        if key in keys:
            yield f"{key} twice"
        keys.add(key)
        if "=" in value:
            yield f"{key} is cut at its second ="
        if key == "Id" and not _is_guid(value):
            yield f"Id {value!r} is no GUID"
        for name, form in (("CreationDate", "%Y-%m-%d"), ("CreationTime", "%H:%M:%S")):
            if key == name and not _is_time(value, form):
                yield f"{key} {value!r} has not the form {form}"


def _is_time(value: str, form: str) -> bool:
    try:
        return datetime.strptime(value, form).strftime(form) == value
    except ValueError:
        return False


def _table(header: list[str], rows: list[list[str]]) -> Iterator[str]:
    yield from (f"no column {name}" for name in CSV_COLUMNS if name not in header)
    for number, row in enumerate(rows, 1):
        if len(row) != len(header):
            yield f"row {number} has {len(row)} cells under {len(header)} columns"
            continue
        cells = dict(zip(header, row, strict=True))
        if not re.fullmatch(r"-?\d+", cells.get("Dropped", "0")):
            yield f"row {number}: Dropped {cells['Dropped']!r} counts as dropped"
        for name, cell in cells.items():
            if name not in CSV_TEXT and not re.fullmatch(r"-?\d+(\.\d+)?", cell):
                yield f"row {number}: {name} {cell!r} is no plain decimal number"
    groups = {tuple(row[header.index(c)] for c in ("Application", "SwapChainAddress") if c in header)
              for row in rows if len(row) == len(header)}  # fmt: skip
    if len(groups) > 1:
        yield f"{len(groups)} groups, of which only the largest survives"


# header of PresentMon 1.x, default columns
PRESENTMON = (
    "Application,ProcessID,SwapChainAddress,Runtime,SyncInterval,PresentFlags,AllowsTearing,PresentMode,Dropped,"
    "TimeInSeconds,MsBetweenPresents,MsBetweenDisplayChange,MsInPresentAPI,MsUntilRenderComplete,MsUntilDisplayed"
)
PRESENT_MODES = {
    "Hardware: Legacy Flip", "Hardware: Legacy Copy to front buffer", "Hardware: Independent Flip",
    "Composed: Flip", "Composed: Copy with GPU GDI", "Composed: Copy with CPU GDI",
    "Hardware Composed: Independent Flip", "Other",
}  # fmt: skip


def presentmon_problems(path: Path) -> list[str]:
    """Problems of a CSV that should look as if PresentMon 1.x had written it (and CapFrameX reads)."""
    header, *rows = path.read_text("utf-8").splitlines()
    if header != PRESENTMON:
        return [f"not PresentMon's header: {header}"]
    problems = csv_problems(path)
    modes = {row.split(",")[7] for row in rows}
    problems += [f"no PresentMode {mode!r}" for mode in sorted(modes - PRESENT_MODES)]
    runtimes = {row.split(",")[3] for row in rows} - {"DXGI", "D3D9", "Other"}
    return problems + [f"no Runtime {name!r}" for name in sorted(runtimes)]
