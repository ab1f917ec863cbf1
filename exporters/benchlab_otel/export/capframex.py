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
| CPU Package, GPU Power (W) | the meter's mean since the frame before: CapFrameX's FPS/10 W is by these |
| Pmd*Power | the meter's own readings on a grid of SampleTime, NaN where it was silent for longer |

Energies are the conditioned ones where there are any (`align.attribution`), else the interpolated. Stages'
joules are no sensors: a stage of some milliwatt-seconds reads 0.0 in mWh, the one unit there is.
CapFrameX demands the other members; a pipeline has nothing to say there and they are 0. A sensor is
left out, and the comment says so, where fewer than half of the completed frames have it.
Format: CapFrameX 1.8.4, `CapFrameX.Data.Session` and its loader.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from benchlab_otel import __version__
from benchlab_otel.export.capframex_columns import NO_OPTIONS, Options, captures, completed
from benchlab_otel.export.capframex_sensors import meter, sensor_data, sensor_rows, sensors_of
from benchlab_otel.export.output import dump_json, replacing
from benchlab_otel.model import Frames, Run


def write_json(path: Path, runs: Sequence[Run], options: Options = NO_OPTIONS) -> None:
    """Writes the runs of one pipeline as one capture; nothing is left at `path` when it fails.

    Raises ValueError for runs of fewer than two frames and unknown marks, OSError for the disk.
    """
    document = _document(runs, options)
    with replacing(path) as out:
        dump_json(out, document)


def _document(runs: Sequence[Run], options: Options) -> dict[str, Any]:
    """The Session; large arrays stand in it as functions that compute them."""
    run_nodes, left_out = [], []
    for capture in captures(runs, options):
        sensors = sensors_of(capture.run, options)
        rows, kept = sensor_rows(sensors, completed(capture.run.frames))
        left_out += [s.name for s in sensors if s not in kept]
        run_nodes.append(
            {
                "Hash": _hash([capture.run], options),
                "PresentMonRuntime": "OTel",
                "CaptureData": capture.columns,
                "SensorData2": sensor_data(capture.run, capture.start, rows, kept),
                **meter(capture.run),
            }
        )
    return {"Hash": _hash(runs, options), "Info": _info(runs, options, left_out), "Runs": run_nodes}


def _info(runs: Sequence[Run], options: Options, left_out: Sequence[str]) -> dict[str, str]:
    frames = runs[0].frames
    info = dict.fromkeys(("Processor", "OS", "SystemRam", "GPU", "Motherboard"), "")
    return info | {
        "AppVersion": "1.8.4",  # the version whose format this is
        "Id": str(guid(runs, options)),
        "GameName": frames.pipeline,
        "ProcessName": frames.service or frames.pipeline,
        "CreationDate": f"{created(frames):%Y-%m-%dT%H:%M:%SZ}",
        "Comment": comment(runs, options, left_out),
    }


def comment(runs: Sequence[Run], options: Options, left_out: Sequence[str] = ()) -> str:
    """What a reader should know: simulated or not, which latency is shown, what is missing."""
    parts = [f"benchlab-otel {__version__}"]
    if found := simulated(runs):
        parts.insert(0, f"SIMULATED: {', '.join(found)}")
    if options.pairs:
        parts.append(f"PC latency is {options.pairs[0]}")
    if left_out:
        parts.append(f"left out, for want of values: {', '.join(dict.fromkeys(left_out))}")
    return "; ".join(parts)


def simulated(runs: Sequence[Run]) -> list[str]:
    """What of the runs was simulated, in words."""
    found = [run.frames.pipeline for run in runs if run.frames.simulated]
    found += [readings.meter for run in runs for readings in run.readings if readings.simulated]
    found += [energy.meter for run in runs for energy in run.energy if energy.simulated]
    return list(dict.fromkeys(found))


def created(frames: Frames) -> datetime:
    """When the first frame began."""
    return datetime.fromtimestamp(int(frames.begin[0]) / 1e9, UTC)


def _hash(runs: Sequence[Run], options: Options) -> str:
    """The same for the same frames and options, different for any others."""
    digest = hashlib.sha1(repr(options).encode(), usedforsecurity=False)
    for run in runs:
        digest.update(run.frames.pipeline.encode())
        digest.update(np.ascontiguousarray(run.frames.span).tobytes())
        digest.update(np.ascontiguousarray(run.frames.end).tobytes())
    return digest.hexdigest()


def guid(runs: Sequence[Run], options: Options) -> uuid.UUID:
    """An id that is the same for the same frames and options."""
    return uuid.UUID(bytes=bytes.fromhex(_hash(runs, options))[:16], version=5)
