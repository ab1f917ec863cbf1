"""PresentMon's CSV, of 1.x and 2.x, and the same columns as CapFrameX writes them.

A row is a present. It becomes a frame that begins where the one before was presented (1.x) or where
the CPU began with it (2.x), and ends where it was displayed; where it was not, where the GPU was done
with it; where even that is not known, where Present() returned (1.x) or the CPU was done (2.x).
A frame that was not displayed is `dropped`: `Dropped` in 1.x, DisplayLatency NA in 2.x.

| Stage | 1.x | 2.x |
|---|---|---|
| `presented` | TimeInSeconds - MsBetweenPresents to TimeInSeconds | CPUStartTime, for CPUBusy |
| `wait` | - | from there on, for CPUWait |
| `present` | TimeInSeconds, for MsInPresentAPI | - |
| `gpu` | start of rendering to MsUntilRenderComplete | GPULatency, for GPUTime |
| `display` | MsUntilRenderComplete to MsUntilDisplayed | end of `gpu` to DisplayLatency |

`presented` (2.x: with `wait`) lasts the frame time. In 1.x rendering starts at MsUntilRenderStart, else
at MsUntilRenderComplete - msGPUActive, else at TimeInSeconds.

Captures made of these frames, and `report --capframex`, count frame times between the marks `presented`,
as CapFrameX does. Each application and swap chain is a pipeline of its own. Columns are found by name; 2.x
has had them with and without `Ms`. CPUStartTime is in ms, in some releases in s: told apart by FrameTime.
Source: README-ConsoleApplication.md of PresentMon 2.3, README.md of 1.9.2.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, fields, replace

import numpy as np

from benchlab_otel.contract import PRESENTED
from benchlab_otel.imports import table
from benchlab_otel.imports.capture import Block, Capture, Stage, ns, ns_of_seconds, stage
from benchlab_otel.imports.table import MILLISECONDS, SECONDS, Rows
from benchlab_otel.model import COMPLETED, DROPPED, OUTCOMES, Bool, Float, Int

HINT = "a CSV of PresentMon, whose header begins with Application"
_LONGEST_MS = 3.6e6
SIMULATED = "(SIMULATED)"  # what our own export writes behind the application's name


def detect(head: bytes) -> bool:
    """Whether a file with these first bytes is one."""
    wide = head[:2] in (b"\xff\xfe", b"\xfe\xff")  # what PowerShell redirects into a file
    lines = head[: 1 << 14].decode("utf-16" if wide else "utf-8", "replace").splitlines()
    return any(is_header(line.removeprefix("\ufeff")) for line in lines[:50])


def is_header(line: str) -> bool:
    """Whether a line is the header of the table."""
    names = {column_name(cell) for cell in line.split(",")}
    timed = "timeinseconds" in names or any(name.startswith("cpustart") for name in names)
    return "application" in names and timed


def column_name(cell: str) -> str:
    """The name that a column goes by here: without case and without the `Ms` that some releases have."""
    return cell.strip().lower().removeprefix("ms")


def read(capture: Capture) -> Iterator[Block]:
    """The frames of a capture; its times are relative. Raises FormatError, OSError."""
    found = table.open_table(capture, is_header, HINT, column_name)
    check_columns(capture, found)
    yield from frames_of(capture, table.read_rows(capture, found))


def check_columns(capture: Capture, found: table.Table) -> None:
    """Raises FormatError where a table lacks columns that frames need."""
    needed = _NEEDED_1X if "timeinseconds" in found.columns else _NEEDED_2X
    if missing := [name for name in needed if name not in found.columns]:
        hint = " (record without --qpc_time and --date_time)" if missing[0] == "cpustarttime" else ""
        problem = f"expected the columns {', '.join(needed)}; no {missing[0]}{hint}"
        raise capture.error(found.header_line, problem)


def frames_of(capture: Capture, blocks: Iterable[Rows]) -> Iterator[Block]:
    """The frames of a table's rows, each swap chain's by itself."""
    chains = _SwapChains()
    scale: float | None = None
    for rows in blocks:
        is_1x = "timeinseconds" in rows
        if not is_1x and scale is None:
            scale = _start_in_ms(capture, rows)
        for name, part in chains.split(rows):
            block = _of_1x(capture, part) if is_1x else _of_2x(capture, part, scale or 1.0)
            if block is not None:
                application = part.cells["application"][0].strip()
                capture.name = capture.name or application
                capture.simulated |= SIMULATED in application
                yield chains.numbered(replace(block, pipeline=name))


_NEEDED_1X, _NEEDED_2X = ("timeinseconds", "betweenpresents"), ("cpustarttime",)


@dataclass(slots=True)
class _SwapChains:
    """The pipelines' names by (application, process, swap chain), and how many frames each has."""

    names: dict[tuple[str, ...], str] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)

    def split(self, rows: Rows) -> Iterator[tuple[str, Rows]]:
        """The rows of each pipeline."""
        columns = [rows.cells[c] for c in ("application", "processid", "swapchainaddress") if c in rows]
        if all(column.count(column[0]) == len(rows) for column in columns):
            yield self._name(tuple(column[0] for column in columns)), rows
            return
        keys = list(zip(*columns, strict=True))
        for key in dict.fromkeys(keys):
            yield self._name(key), table.taken(rows, np.array([k == key for k in keys]))

    def _name(self, key: tuple[str, ...]) -> str:
        """ "" for the first; then the application, of a further swap chain of it with that one's address."""
        if key not in self.names:
            known = {application for application, *_ in self.names}
            self.names[key] = "/".join(key) if key[0] in known else key[0] if self.names else ""
        return self.names[key]

    def numbered(self, block: Block) -> Block:
        first = self.counts.get(block.pipeline, 0)
        self.counts[block.pipeline] = first + len(block.begin)
        return replace(block, number=np.arange(first, first + len(block.begin)))


@dataclass(slots=True)
class Presents:
    """n presents in the terms of PresentMon 1.x: `time` s, all else ms; NaN or 0 is absent."""

    time: Float
    between: Float
    dropped: Bool
    in_present: Float
    render_start: Float
    render_complete: Float
    displayed: Float
    gpu_active: Float
    pc_latency: Float


def part(p: Presents, rows: slice) -> Presents:
    """Some of the presents."""
    return Presents(*(getattr(p, f.name)[rows] for f in fields(Presents)))


def frames_of_presents(p: Presents) -> Block:
    """Presents as frames, see above."""
    at = ns_of_seconds(p.time)
    begin = at - ns(p.between)
    returned, done, shown = (at + ns(_known(v)) for v in (p.in_present, p.render_complete, p.displayed))
    has_gpu, has_display = _known(p.render_complete) > 0, (_known(p.displayed) > 0) & ~p.dropped
    active = np.where(_known(p.gpu_active) > 0, p.render_complete - _known(p.gpu_active), 0.0)
    gpu_start = at + ns(_known(np.where(_known(p.render_start) > 0, p.render_start, active)))
    end = np.where(has_display, shown, np.where(has_gpu, done, returned))
    stages = [
        *stage(PRESENTED, p.between >= 0, begin, at),
        *stage("present", _known(p.in_present) > 0, at, np.minimum(returned, end)),
        *stage("gpu", has_gpu, np.maximum(gpu_start, begin), done),
        *stage("display", has_gpu & has_display, done, shown),
    ]
    return Block(np.arange(len(at)), begin, np.maximum(end, at), _outcome(p.dropped), stages)


def _known(values: Float) -> Float:
    """With 0 where a value is absent, negative or beyond reason."""
    return np.where((values > 0) & (values < _LONGEST_MS), values, 0.0)


def _outcome(dropped: Bool) -> Int:
    return np.where(dropped, OUTCOMES.index(DROPPED), OUTCOMES.index(COMPLETED))


def _of_1x(capture: Capture, rows: Rows) -> Block | None:
    time, between = (table.numbers(capture, rows, name) for name in _NEEDED_1X)
    limits = {"timeinseconds": (time, SECONDS), "betweenpresents": (between, _LONGEST_MS)}
    good = table.usable(capture, rows, limits)
    if not good.any():
        return None
    other = {n: table.believable(capture, rows, n, _LONGEST_MS)[good] for n in _OTHERS_1X}
    return frames_of_presents(
        Presents(
            time[good],
            between[good],
            dropped(capture, rows)[good],
            in_present=other["inpresentapi"],
            render_start=other["untilrenderstart"],
            render_complete=np.where(
                np.isnan(other["untilrendercomplete"]),
                other["renderpresentlatency"],
                other["untilrendercomplete"],
            ),
            displayed=other["untildisplayed"],
            gpu_active=other["gpuactive"],
            pc_latency=other["pclatency"],
        )
    )


_OTHERS_1X = (
    *("inpresentapi", "untilrenderstart", "untilrendercomplete", "renderpresentlatency"),
    *("untildisplayed", "gpuactive", "pclatency"),
)


def dropped(capture: Capture, rows: Rows) -> Bool:
    """Which rows (n,) have a Dropped that is not 0, as CapFrameX takes it."""
    return np.nan_to_num(table.numbers(capture, rows, "dropped"), nan=0.0) != 0


def _start_in_ms(capture: Capture, rows: Rows) -> float:
    """What CPUStartTime is to be multiplied with to be ms, by the frame times beside it."""
    quiet = Capture(capture.path)  # what can't be read is told when the rows are
    start, length = table.numbers(quiet, rows, "cpustarttime"), _frame_time(quiet, rows)
    steps = np.diff(start)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = (steps / length[:-1])[(steps > 0) & (length[:-1] > 0)]
    return 1000.0 if len(ratios) and np.median(ratios) < 0.03 else 1.0


def _frame_time(capture: Capture, rows: Rows) -> Float:
    """The frame time (n,) ms: as it is written, or the sum that it is."""
    for name in ("frametime", "betweenappstart"):
        if name in rows:
            return table.numbers(capture, rows, name)
    return table.numbers(capture, rows, "cpubusy") + table.numbers(capture, rows, "cpuwait")


def _of_2x(capture: Capture, rows: Rows, scale: float) -> Block | None:
    start = table.numbers(capture, rows, "cpustarttime") * scale
    good = table.usable(capture, rows, {"cpustarttime": (start, MILLISECONDS)})
    if not good.any():
        return None
    names = ("cpubusy", "cpuwait", "gpulatency", "gputime", "displaylatency")
    busy, wait, latency, gpu, display = (table.believable(capture, rows, n, _LONGEST_MS)[good] for n in names)
    if "gputime" not in rows:
        gpu = table.believable(capture, rows, "gpubusy", _LONGEST_MS)[good]
    begin = ns_of_seconds(start[good] / 1e3)
    cpu_done, gpu_start = begin + ns(_known(busy)), begin + ns(_known(latency))
    gpu_done, shown = gpu_start + ns(_known(gpu)), begin + ns(_known(display))
    waited = cpu_done + ns(_known(wait))
    has_gpu, has_display = _known(gpu) > 0, _known(display) > 0
    not_shown = ~has_display if "displaylatency" in rows else np.zeros(len(begin), np.bool_)
    end = np.where(has_display, shown, np.where(has_gpu, np.maximum(gpu_done, cpu_done), waited))
    stages: list[Stage] = [
        *stage(PRESENTED, busy >= 0, begin, cpu_done),
        *stage("wait", (_known(wait) > 0) & (waited <= end), cpu_done, waited),
        *stage("gpu", has_gpu, gpu_start, gpu_done),
        *stage("display", has_gpu & has_display, gpu_done, shown),
    ]
    return Block(np.arange(len(begin)), begin, end, _outcome(not_shown), stages)
