"""What NVIDIA DeepStream prints with NVDS_ENABLE_LATENCY_MEASUREMENT=1, alone or within other output.

After each `BATCH-NUM` come the components that the batch went through, with the Unix time (ms) at
which they took and gave it, and a line for each of its frames. A frame begins with its first component
and ends with its last, or where its `Frame latency` reaches further. A latency as large as an epoch
means that the time of input was not found: it is discarded. Components with a `source_id` belong to
that source's frame, others to all frames of the batch or, where one is there as often as there are
frames, each to its own. Two spellings: `Src id=0 Frame_no=8`, `Source id = 0 Frame_num = 8`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from benchlab_otel.imports.capture import LIMIT_S, UNIX, Block, Capture
from benchlab_otel.imports.gather import Gathering, Interval
from benchlab_otel.imports.table import read_lines

HINT = "the output of a DeepStream program run with NVDS_ENABLE_LATENCY_MEASUREMENT=1"
_NUMBER = r"(-?\d{1,18}(?:\.\d{1,12})?)"
_COMPONENT = re.compile(
    rf"Comp name = (.*?)(?: source_id = (\d{{1,9}}))?(?: pad_index = \S+)?(?: frame_num = \S+)?\s+"
    rf"in_system_timestamp = {_NUMBER} out_system_timestamp = {_NUMBER}"
)
_FRAME = re.compile(
    r"(?:Src|Source) id\s*=\s*(\d{1,9})\s+Frame_n(?:o|um)\s*=\s*(\d{1,15})\s+"
    rf"Frame latency\s*=\s*{_NUMBER}"
)
_LONGEST_NS = 3_600_000_000_000  # a frame's latency beyond this is an epoch


@dataclass(slots=True)
class _Batch:
    """What was printed since the last BATCH-NUM: components (source or None, interval), frames."""

    components: list[tuple[int | None, Interval]] = field(default_factory=list)
    frames: list[tuple[int, int, int, int]] = field(default_factory=list)  # source, number, latency ns, line


def detect(head: bytes) -> bool:
    """Whether a file with these first bytes is one."""
    return b"in_system_timestamp" in head or (b"BATCH-NUM" in head and b"Frame latency" in head)


def read(capture: Capture) -> Iterator[Block]:
    """The frames of a log; its times are Unix time. Raises FormatError, OSError."""
    capture.zero, capture.name = UNIX, capture.path.stem
    gatherings: dict[int, Gathering] = {}
    discarded = 0
    for batch in _batches(capture):
        for i, (source, number, latency, line) in enumerate(batch.frames):
            stages = _stages_of(batch, i)
            if not stages:
                capture.faults.add(line, "expected the frame's components in the lines before it")
                continue
            begin, end = min(s[1] for s in stages), max(s[2] for s in stages)
            discarded += latency > _LONGEST_NS
            if latency <= _LONGEST_NS:
                end = max(end, begin + latency)
            gathering = gatherings.setdefault(source, Gathering(f"source-{source}" if gatherings else ""))
            gathering.add(number, begin, end, stages)
            yield from gathering.full()
    for gathering in gatherings.values():
        yield from gathering.rest()
    if discarded:
        capture.notes.append(
            f"{discarded} frame latencies as large as an epoch are discarded; the components' times count"
        )


def _batches(capture: Capture) -> Iterator[_Batch]:
    batch = _Batch()
    for first, lines in read_lines(capture.path, capture.advance):
        for number, line in enumerate(lines, first):
            if "BATCH-NUM" in line:
                yield batch
                batch = _Batch()
            elif "Comp name" in line:
                _add_component(capture, batch, number, line)
            elif "Frame latency" in line:
                _add_frame(capture, batch, number, line)
    yield batch


def _add_component(capture: Capture, batch: _Batch, number: int, line: str) -> None:
    match = _COMPONENT.search(line)
    begin, end = (_epoch_ns(match[i]) for i in (3, 4)) if match else (None, None)
    if match is None or begin is None or end is None or end < begin:
        capture.faults.add(number, "expected a component's name, its in_ and a later out_system_timestamp")
        return
    source = int(match[2]) if match[2] else None
    batch.components.append((source, (match[1].strip() or "unnamed", begin, end)))


def _add_frame(capture: Capture, batch: _Batch, number: int, line: str) -> None:
    match = _FRAME.search(line)
    if match is None or float(match[3]) < 0:
        capture.faults.add(number, "expected a source's id, a frame's number and its latency")
        return
    batch.frames.append((int(match[1]), int(match[2]), round(float(match[3]) * 1e6), number))


def _epoch_ns(milliseconds: str) -> int | None:
    """Exactly, from the digits: a double has too few for an epoch in ns."""
    whole, _, fraction = milliseconds.partition(".")
    value = int(whole) * 1_000_000 + int((fraction + "000000")[:6])
    return value if 0 < value < LIMIT_S * 1e9 / 2 else None


def _stages_of(batch: _Batch, i: int) -> list[Interval]:
    """The components of the batch's frame `i`."""
    source = batch.frames[i][0]
    often = Counter(interval[0] for owner, interval in batch.components if owner is None)
    seen: Counter[str] = Counter()
    stages = []
    for owner, interval in batch.components:
        if owner is not None:
            mine = owner == source
        elif often[interval[0]] == len(batch.frames):
            mine = seen[interval[0]] == i
            seen[interval[0]] += 1
        else:
            mine = often[interval[0]] == 1
        if mine:
            stages.append(interval)
    return stages
