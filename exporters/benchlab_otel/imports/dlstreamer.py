"""The log of Intel DL Streamer's `latency_tracer`.

A `latency_tracer_pipeline` record is a frame that reached the sink: it ends when it was logged and took
`frame_latency` (ms; `latency` beside it is 1000/fps). The `latency_tracer_element` records of the same
`frame_num` that lie within it are its stages. Bins are left out, as their elements are there; so are
the `_interval` records, which sum up. Where a log has several pipelines nothing says to which an
element belongs: then frames have no stages. Fields are found by name: newer releases have more.
Times are since the program's start.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from benchlab_otel.imports.capture import Block, Capture
from benchlab_otel.imports.gather import Gathering, Interval
from benchlab_otel.imports.table import read_lines

HINT = (
    "the log of DL Streamer's latency_tracer, as made with"
    ' GST_TRACERS="latency_tracer(flags=pipeline+element)" GST_DEBUG=GST_TRACER:7'
)
_LINE = re.compile(
    r"(\d{1,6}):(\d\d):(\d\d)\.(\d{9}) +(\d{1,9}) .*:: latency_tracer_(pipeline|element), (.*);\s*$",
    re.DOTALL,
)
_RECORD = re.compile(r":: latency_tracer_(?:pipeline|element), ")
_FIELD = re.compile(r"([a-z_]+)=\(\w+\)([^,;]*)")
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_LONGEST_MS = 3.6e6
_SLACK_NS = 1_000_000  # between an element's record and the clock readings of the frame's
_PENDING = 100_000

_Record = tuple[bool, int, int, int, int, dict[str, str]]  # is frame, process, frame_num, begin, end, fields


def detect(head: bytes) -> bool:
    """Whether a file with these first bytes is one."""
    return b"latency_tracer_" in head and b"GST_TRACER" in head


def read(capture: Capture) -> Iterator[Block]:
    """The frames of a log. Raises FormatError, OSError."""
    capture.name = capture.path.stem
    pipelines = _pipelines(capture)
    if not pipelines:
        raise capture.error(0, f"no latency_tracer_pipeline record: expected {HINT}")
    if len(pipelines) > 1:
        capture.notes.append(
            "several pipelines in one log, which does not say whose an element is: no stages"
        )
    gatherings = {key: Gathering(_pipeline_name(key, len(pipelines))) for key in pipelines}
    pending: dict[tuple[int, int], list[Interval]] = {}
    alone = 0  # records of elements that no frame has
    for is_frame, process, number, begin, end, told in _records(capture):
        if not is_frame:
            stage = (told.get("name", ""), begin, end)
            alone += _keep(pending, (process, number), stage, told.get("is_bin", "0"))
            continue
        gathering = gatherings[_key(process, told)]
        stages = pending.pop((process, number), []) if len(pipelines) == 1 else []
        inside = [s for s in stages if s[1] >= begin - _SLACK_NS and s[2] <= end + _SLACK_NS]
        alone += len(stages) - len(inside)
        gathering.add(number, begin, end, [(n, max(b, begin), min(e, end)) for n, b, e in inside])
        yield from gathering.full()
    for gathering in gatherings.values():
        yield from gathering.rest()
    alone += sum(map(len, pending.values()))
    if alone and len(pipelines) == 1:
        capture.notes.append(f"{alone} records of elements belong to no frame of the log")


def _keep(
    pending: dict[tuple[int, int], list[Interval]], key: tuple[int, int], stage: Interval, bin_: str
) -> int:
    """Keeps an element's record until its frame comes; the oldest go when there are too many: how many."""
    if not stage[0] or bin_ not in ("0", "false"):
        return 0
    pending.setdefault(key, []).append(stage)
    return len(pending.pop(next(iter(pending)))) if len(pending) > _PENDING else 0


def _pipelines(capture: Capture) -> dict[tuple[str, ...], None]:
    """The pipelines in the log, in order of appearance."""
    found: dict[tuple[str, ...], None] = {}
    for _, lines in read_lines(capture.path):
        for line in lines:
            if ":: latency_tracer_pipeline, " in line and (match := _LINE.match(_COLOUR.sub("", line))):
                found.setdefault(_key(int(match[5]), dict(_FIELD.findall(match[7]))))
    return found


def _key(process: int, told: dict[str, str]) -> tuple[str, ...]:
    return (str(process), *(told.get(n, "") for n in ("pipeline_name", "source_name", "sink_name")))


def _pipeline_name(key: tuple[str, ...], count: int) -> str:
    return "/".join(filter(None, key)) if count > 1 else ""


def _records(capture: Capture) -> Iterator[_Record]:
    for first, lines in read_lines(capture.path, capture.advance):
        for number, line in enumerate(lines, first):
            if "latency_tracer_" not in line:
                continue
            text = _COLOUR.sub("", line)
            if not _RECORD.search(text):
                continue
            record = _record(text)
            if record is None:
                capture.faults.add(number, "expected a time, a process, frame_latency and frame_num")
            else:
                yield record


def _record(text: str) -> _Record | None:
    match = _LINE.match(text)
    if match is None:
        return None
    hours, minutes, seconds, fraction = (int(match[i]) for i in range(1, 5))
    end = ((hours * 60 + minutes) * 60 + seconds) * 1_000_000_000 + fraction
    told = dict(_FIELD.findall(match[7]))
    try:
        latency, number = float(told["frame_latency"]), int(told["frame_num"])
    except (KeyError, ValueError):
        return None
    if not 0 <= latency <= _LONGEST_MS or not 0 <= number < 1 << 62:
        return None
    return match[6] == "pipeline", int(match[5]), number, end - round(latency * 1e6), end, told
