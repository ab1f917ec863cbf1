"""Runs to CSV captures, which carry frame times and one latency, but neither sensors nor power.

`write_csv` writes what CapFrameX 1.8.4 reads most of, `write_presentmon` what PresentMon 1.x writes.
Values as in `capframex`; what a pipeline has nothing to say of is 0 or Other.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

import numpy as np

from benchlab_otel.export.capframex import comment, created, guid, simulated
from benchlab_otel.export.capframex_columns import NO_OPTIONS, Capture, Options, captures
from benchlab_otel.export.output import BLOCK, replacing
from benchlab_otel.model import Run

CSV_MINIMUM = 40  # lines that CapFrameX wants before it lists a CSV with metadata
PLAIN_MINIMUM = 20  # and one without


def write_csv(path: Path, runs: Sequence[Run], options: Options = NO_OPTIONS) -> None:
    """Writes the frames of the runs as CSV for CapFrameX.

    Raises ValueError like `capframex.write_json`, and where CapFrameX would not list a file so short.
    """
    head = [*_metadata(runs, options), ",".join(CAPFRAMEX)]
    _check_length(len(head), runs, CSV_MINIMUM)
    _write(path, head, CAPFRAMEX, runs, options)


def write_presentmon(path: Path, runs: Sequence[Run], options: Options = NO_OPTIONS) -> None:
    """Writes the frames of the runs as PresentMon 1.x would; raises like `write_csv`.

    The format has no place for a comment, so the application's name says what is simulated.
    """
    _check_length(1, runs, PLAIN_MINIMUM)
    _write(path, [",".join(PRESENTMON)], PRESENTMON, runs, options)


_START = {"Application": "", "ProcessID": "0", "SwapChainAddress": "0x0"}
_TIMES = {
    "Dropped": "Dropped", "TimeInSeconds": "TimeInSeconds", "MsBetweenPresents": "MsBetweenPresents",
    "MsBetweenDisplayChange": "MsBetweenDisplayChange", "MsInPresentAPI": "MsInPresentAPI",
    "MsUntilRenderComplete": "MsUntilRenderComplete", "MsUntilDisplayed": "MsUntilDisplayed",
}  # fmt: skip
# header: column of CaptureData, or a constant
CAPFRAMEX = {
    **_START, "Runtime": "OTel", "SyncInterval": "0", "PresentFlags": "0", "AllowsTearing": "0",
    "PresentMode": "0", **_TIMES,
    "msGPUActive": "GpuActive", "MsCPUBusy": "CpuActive", "MsPCLatency": "PcLatency", "MsAnimationError": "0",
}  # fmt: skip
PRESENTMON = {
    **_START, "Runtime": "Other", "SyncInterval": "0", "PresentFlags": "0", "AllowsTearing": "0",
    "PresentMode": "Other", **_TIMES,
}  # fmt: skip


def _check_length(head: int, runs: Sequence[Run], minimum: int) -> None:
    lines = head + sum(max(len(run.frames) - 1, 0) for run in runs)
    if all(len(run.frames) > 1 for run in runs) and lines <= minimum:
        raise ValueError(
            f"CapFrameX lists such a CSV only with more than {minimum} lines and this one would have {lines};"
            " convert to capframex-json, which has no minimum"
        )


def _metadata(runs: Sequence[Run], options: Options) -> list[str]:
    """The lines above the header."""
    frames = runs[0].frames
    moment = created(frames)
    values = {
        "Id": str(guid(runs, options)),
        "GameName": frames.pipeline,
        "ProcessName": frames.service or frames.pipeline,
        "CreationDate": f"{moment:%Y-%m-%d}",
        "CreationTime": f"{moment:%H:%M:%S}",
        "Comment": comment(runs, options),
    }
    one_line = re.compile(r"[=\r\n]+")  # a value ends at its line and at the next `=`
    return [f"//{key}={one_line.sub(' ', value)}" for key, value in values.items()]


def _write(
    path: Path, head: Sequence[str], header: Mapping[str, str], runs: Sequence[Run], options: Options
) -> None:
    all_captures = list(captures(runs, options))  # what can't be written is found before there is a file
    name = runs[0].frames.pipeline
    if header is PRESENTMON and simulated(runs):
        name = f"{name} (SIMULATED)"
    with replacing(path) as out:
        out.write("".join(f"{line}\n" for line in head).encode())
        for capture in all_captures:
            _rows(out, capture, header, re.sub(r'[,"%\r\n]', "_", name))


def _rows(out: IO[bytes], capture: Capture, header: Mapping[str, str], application: str) -> None:
    formats, columns = [], []
    for name, source in header.items():
        if name == "Application":
            formats.append(application)
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
