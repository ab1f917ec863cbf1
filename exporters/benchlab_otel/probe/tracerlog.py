"""The log of GStreamer's `latency` tracer (plugins/tracers/gstlatency.c): parsed, and made into frames.

The tracer takes the time of each push of a buffer over a pad. An `element-latency` record tells when
an element was handed a buffer (`ts - time`) and when it pushed one on (`ts`); a `latency` record when
a source pushed and when the push into a sink began. One push is one clock reading, so the record of
the element before has *exactly* the `ts` at which the next one begins. A frame is a `latency` record,
and its stages are the chain of element records found by these equal times backwards from the sink:
queues, threads, tees and dropped buffers cannot mix it up.

What the log does not tell:

- Buffers that reach a sink without a `latency` record (all but one of those that came of the same
  source buffer, as behind a parser) are no frames; `unframed` counts them.
- Behind an element that makes new buffers (videorate, a muxer) the chain may end early; the time
  before that belongs to no stage of the frame.
- An element that holds several buffers (a decoder with reordering) is measured as the tracer does:
  from the latest buffer whose mark came through to the buffer that left.
- Where two pushes fall on the same clock tick, the one logged last before is taken; `ambiguous`
  counts these records.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from benchlab_otel.model import COMPLETED, OUTCOMES, Bool, Int, Resource
from benchlab_otel.otlp.encode import encode_request
from benchlab_otel.otlp.ids import mix64, nonzero
from benchlab_otel.probe.assemble import Assembled, Identity, Names, batches

# Every release ends these records with time and ts; which fields come before them differs.
_LINE = re.compile(
    rb"^\d+:\d\d:\d\d\.\d{9} +(\d{1,9}) +\S+ +TRACE +GST_TRACER [^\n]*?:: "
    rb"(element-latency|latency), ([^\n]*?)time=\(guint64\)(\d{1,19}), ts=\(guint64\)(\d{1,19});\r?$",
    re.MULTILINE,
)
_RECORD = re.compile(rb":: (?:element-)?latency, ")
_COLUMN = re.compile(rb"^(\d{1,9}):(\d\d):(\d\d)\.(\d{9}) +(\d{1,9}) ", re.MULTILINE)
_FIELD = re.compile(rb'([a-z-]+)=\(\w+\)("(?:[^"\\]|\\.)*"|[^,;]*)')
_COLOUR = re.compile(rb"\x1b\[[0-9;]*m")
_LONGEST_LINE = 1 << 20
_CHUNK = 4 << 20
_LIMIT_NS = 1 << 62  # GST_CLOCK_TIME_NONE and other nonsense lies above
FRAMES_PER_REQUEST = 5000

ELEMENT, SINK = 0, 1


@dataclass(slots=True)
class Records:
    """n records in the order of the log; times ns since the start of process `process`.

    `kind` (n,) ELEMENT or SINK; `who` (n,) the element, or the sink, `source` (n,) the source of a
    SINK record, both into the parser's names; `process` (n,) pid; `begin`, `end` (n,) int64.
    """

    kind: NDArray[np.int8]
    who: Int
    source: Int
    process: Int
    begin: Int
    end: Int

    def __len__(self) -> int:
        return len(self.who)

    def take(self, rows: Int | Bool | slice) -> Records:
        return Records(
            self.kind[rows],
            self.who[rows],
            self.source[rows],
            self.process[rows],
            self.begin[rows],
            self.end[rows],
        )


def joined(parts: Sequence[Records]) -> Records:
    """All in one, in this order."""
    names = ("kind", "who", "source", "process", "begin", "end")
    return Records(*(np.concatenate([getattr(part, n) for part in parts]) for n in names))


@dataclass(slots=True)
class Parser:
    """Takes a log in pieces of any size. `garbled` counts records that could not be read.

    `names` are the elements' names by number (the same name twice in a pipeline gets `#2`);
    `latest` is the log time (ns since its start) of each process's last line.
    """

    names: Names = field(default_factory=Names)
    garbled: int = 0
    latest: dict[int, int] = field(default_factory=dict)
    _rest: bytes = b""
    _heads: dict[tuple[bytes, bytes, bytes], tuple[int, int, int]] = field(default_factory=dict)
    _ids: dict[tuple[int, bytes], int] = field(default_factory=dict)
    _uses: Counter[tuple[int, str]] = field(default_factory=Counter)

    def feed(self, data: bytes, last: bool = False) -> Records:
        """The records of the lines that are complete; `last` takes an unfinished line as one."""
        data = self._rest + data
        cut = len(data) if last else data.rfind(b"\n") + 1
        if len(data) - cut > _LONGEST_LINE:
            cut = len(data)
        self._rest, data = data[cut:], data[:cut]
        if b"\x1b" in data:
            data = _COLOUR.sub(b"", data)
        rows = [row for match in _LINE.finditer(data) if (row := self._row(match)) is not None]
        self.garbled += len(_RECORD.findall(data)) - len(rows)
        self.latest |= _latest(data)
        table = np.array(rows, np.int64).reshape(-1, 6)
        return Records(table[:, 0].astype(np.int8), *(table[:, i] for i in range(1, 6)))

    def _row(self, match: re.Match[bytes]) -> tuple[int, int, int, int, int, int] | None:
        pid, kind, head, time, ts = match.groups()
        key = (pid, kind, head)
        known = self._heads.get(key)
        if known is None:
            known = self._heads[key] = self._head(int(pid), kind, dict(_FIELD.findall(head)))
        end = int(ts)
        begin = end - int(time)
        if known[1] < 0 or known[2] < 0 or begin < 0 or end >= _LIMIT_NS:
            return None
        return (*known, int(pid), begin, end)

    def _head(self, process: int, kind: bytes, fields: dict[bytes, bytes]) -> tuple[int, int, int]:
        """(kind, who, source) of the records with these fields; -1 where a name is missing."""
        if kind == b"latency":
            sink = self._code(process, fields, b"sink-element-id", b"sink-element", b"sink")
            return SINK, sink, self._code(process, fields, b"src-element-id", b"src-element", b"src")
        return ELEMENT, self._code(process, fields, b"element-id", b"element", b"src"), 0

    def _code(self, process: int, fields: dict[bytes, bytes], id_key: bytes, key: bytes, pad: bytes) -> int:
        """The number of an element by its id, in old releases by its name or its pad's; -1 = unknown."""
        name = fields.get(key) or fields.get(pad) or b""
        if not name:
            return -1
        identity = (process, fields.get(id_key) or name)
        if identity not in self._ids:
            text = name.strip(b'"').decode("utf-8", "replace")
            self._uses[process, text] += 1
            if (use := self._uses[process, text]) > 1:
                text = f"{text}#{use}"
            self._ids[identity] = self.names.code(text)
        return self._ids[identity]


def _latest(data: bytes) -> dict[int, int]:
    """The log time (ns) of the last line of each process."""
    last = {match[5]: match for match in _COLUMN.finditer(data)}
    return {int(process): column_ns(match) for process, match in last.items()}


def column_ns(match: re.Match[bytes]) -> int:
    """The log time `H:MM:SS.nnnnnnnnn` in ns."""
    hours, minutes, seconds, nanos = (int(match[i]) for i in range(1, 5))
    return ((hours * 60 + minutes) * 60 + seconds) * 1_000_000_000 + nanos


# -- records to frames ------------------------------------------------------------------------


@dataclass(slots=True)
class Chains:
    """n frames and their m stages: `sink` (n,) rows of their SINK records; `stage_frame` (m,) into
    the frames, `stage` (m,) rows of the ELEMENT records. `unframed`, `ambiguous`: see above."""

    sink: Int
    stage_frame: Int
    stage: Int
    unframed: int
    ambiguous: int


def chains(records: Records, bins: set[int]) -> Chains:
    """Finds each frame's element records by equal clock readings, backwards from the sink.

    `bins` are the sinks known to be bins around another sink, which are no frames of their own;
    those found here are added.
    """
    sinks = np.flatnonzero(records.kind == SINK)
    elements = np.flatnonzero(records.kind == ELEMENT)
    index = _EndIndex(records, elements)
    before, ambiguous = index.latest_before(records.begin[elements], elements, records.process[elements])
    previous = np.full(len(records), -1, np.int64)
    previous[elements] = before

    # The element record of the push into the sink is logged right after the sink's own.
    current, _ = index.latest_before(
        records.end[sinks], np.full(len(sinks), len(records)), records.process[sinks]
    )
    direct, _ = index.first_after(records.end[sinks], sinks, records.process[sinks])
    current = np.where(direct >= 0, direct, current)
    last = current.copy()
    frame = np.arange(len(sinks))
    found_frames, found_rows = [], []
    while len(frame):
        keep = current >= 0
        keep[keep] = records.begin[current[keep]] >= records.begin[sinks[frame[keep]]]
        frame, current = frame[keep], current[keep]
        found_frames.append(frame)
        found_rows.append(current)
        at_source = records.begin[current] == records.begin[sinks[frame]]
        current = np.where(at_source, -1, previous[current])
    none = np.zeros(0, np.int64)
    stage_frame, stage = np.concatenate([none, *found_frames]), np.concatenate([none, *found_rows])
    order = np.argsort(stage_frame[::-1], kind="stable")  # upstream first
    frame, stage = stage_frame[::-1][order], stage[::-1][order]
    inner = stage != last[frame]
    bins.update(_bins(records, sinks, records.who[sinks[frame[inner]]], records.end[stage[inner]]))

    keep = ~np.isin(records.who[sinks], list(bins))
    kept = keep[frame]
    last = last[keep & (last >= 0)]
    into_sink = np.isin(records.who[elements], records.who[last])
    return Chains(
        sink=sinks[keep],
        stage_frame=(np.cumsum(keep) - 1)[frame[kept]],
        stage=stage[kept],
        unframed=int(into_sink.sum()) - len(np.unique(last)),
        ambiguous=ambiguous,
    )


def _bins(records: Records, sinks: Int, sink: Int, passed: Int) -> list[int]:
    """The sinks that are bins around another: most pushes into them are within the other's chains.

    `passed` (k,) are the times of the pushes within the chains of the sinks `sink` (k,).
    """
    who, end = records.who[sinks], records.end[sinks]
    return [w for w in np.unique(who).tolist() if np.isin(end[who == w], passed[sink != w]).mean() > 0.5]


class _EndIndex:
    """Looks up records by (process, end time) and place in the log."""

    def __init__(self, records: Records, rows: Int) -> None:
        self._span = len(records) + 1
        self._processes = np.unique(records.process)
        moments = self._moment(records.end[rows], records.process[rows])
        self._moments, codes = np.unique(moments, return_inverse=True)
        combined = codes * self._span + rows
        self._rows = rows[np.argsort(combined, kind="stable")]
        self._combined = np.sort(combined)
        self._counts = np.bincount(codes, minlength=len(self._moments))

    def _moment(self, end: Int, process: Int) -> NDArray[np.void]:
        moments = np.empty(len(end), [("process", np.int64), ("end", np.int64)])
        moments["process"], moments["end"] = process, end
        return moments

    def latest_before(self, end: Int, row: Int, process: Int) -> tuple[Int, int]:
        """The last record ahead of `row` that ends then, -1 = none; and how many had a choice."""
        code, known = self._codes(end, process)
        at = np.searchsorted(self._combined, code * self._span + row) - 1
        return self._checked(at, code, known)

    def first_after(self, end: Int, row: Int, process: Int) -> tuple[Int, int]:
        """The first record behind `row` that ends then, -1 = none; and how many had a choice."""
        code, known = self._codes(end, process)
        at = np.searchsorted(self._combined, code * self._span + row, side="right")
        return self._checked(at, code, known)

    def _codes(self, end: Int, process: Int) -> tuple[Int, Bool]:
        if not len(self._moments):
            return np.zeros(len(end), np.int64), np.zeros(len(end), np.bool_)
        wanted = self._moment(end, process)
        code = np.minimum(np.searchsorted(self._moments, wanted), len(self._moments) - 1)
        return code, self._moments[code] == wanted

    def _checked(self, at: Int, code: Int, known: Bool) -> tuple[Int, int]:
        inside = known & (at >= 0) & (at < len(self._combined))
        inside[inside] = self._combined[at[inside]] // self._span == code[inside]
        found = np.full(len(at), -1, np.int64)
        found[inside] = self._rows[at[inside]]
        return found, int((self._counts[code[inside]] > 1).sum())


@dataclass(slots=True)
class Converter:
    """Records to OTLP requests, in pieces: frames of the pipeline `name` under `resource`.

    With several sinks each is a pipeline of its own, `name/sink`. A frame waits `settle_ns` of log
    time for records that belong to it; records older than `window_ns` are forgotten.
    """

    name: str
    resource: Resource
    names: Names
    identity: Identity
    settle_ns: int = 250_000_000
    window_ns: int = 10_000_000_000
    frames: int = 0
    unframed: int = 0
    ambiguous: int = 0
    _held: Records | None = None
    _bins: set[int] = field(default_factory=set)
    _numbers: dict[int, int] = field(default_factory=dict)
    _stages: int = 0

    def convert(self, records: Records, start_ns: dict[int, int], last: bool = False) -> Iterator[bytes]:
        """The requests of the frames that are settled (`last`: of all).

        `start_ns` says at what Unix time (ns) the log of each process starts; frames of a process
        without wait.
        """
        whole = records if self._held is None else joined([self._held, records])
        found = chains(whole, self._bins)
        newest = {p: int(whole.end[whole.process == p].max()) for p in np.unique(whole.process).tolist()}
        row_newest = np.array([newest[p] for p in whole.process.tolist()], np.int64)
        anchored = np.isin(whole.process, list(start_ns))
        settled = anchored & (last | (whole.end < row_newest - self.settle_ns))
        is_bin = (whole.kind == SINK) & np.isin(whole.who, list(self._bins))
        done = (whole.kind == SINK) & (settled | is_bin)
        if last:
            self.unframed, self.ambiguous = found.unframed, found.ambiguous
        yield from self._requests(whole, found, settled, start_ns)
        self._held = whole.take(~done & (whole.end >= row_newest - self.window_ns))

    def _requests(
        self, whole: Records, found: Chains, settled: Bool, start_ns: dict[int, int]
    ) -> Iterator[bytes]:
        sinks = np.unique(whole.who[whole.kind == SINK])
        several = len(set(sinks.tolist()) - self._bins) > 1
        for sink in np.unique(whole.who[found.sink]).tolist():
            name = f"{self.name}/{self.names.table[sink]}" if several else self.name
            chosen = np.flatnonzero((whole.who[found.sink] == sink) & settled[found.sink])
            for at in range(0, len(chosen), FRAMES_PER_REQUEST):
                yield self._request(name, whole, found, chosen[at : at + FRAMES_PER_REQUEST], start_ns)

    def _request(
        self, name: str, whole: Records, found: Chains, chosen: Int, start_ns: dict[int, int]
    ) -> bytes:
        sink = found.sink[chosen]
        start = np.array([start_ns[p] for p in whole.process[sink].tolist()], np.int64)
        place = np.full(len(found.sink), -1, np.int64)
        place[chosen] = np.arange(len(chosen))
        mine = place[found.stage_frame] >= 0
        stage, frame = found.stage[mine], place[found.stage_frame[mine]]
        number = self._numbers.get(int(whole.who[sink[0]]), 0)
        self._numbers[int(whole.who[sink[0]])] = number + len(chosen)
        frames = Assembled(
            key=np.arange(self.frames, self.frames + len(chosen)),
            number=np.arange(number, number + len(chosen)),
            begin=whole.begin[sink] + start,
            end=whole.end[sink] + start,
            outcome=np.full(len(chosen), OUTCOMES.index(COMPLETED)),
            reason=np.full(len(chosen), -1),
            first_mark=whole.source[sink],
            stage_frame=frame,
            stage_name=whole.who[stage],
            stage_begin=whole.begin[stage] + start[frame],
            stage_end=whole.end[stage] + start[frame],
        )
        ids = nonzero(mix64(np.arange(self._stages, self._stages + len(stage), dtype=np.uint64)
                            + np.uint64(self.identity.seed)))  # fmt: skip
        self.frames += len(chosen)
        self._stages += len(stage)
        return encode_request(self.resource, batches(frames, self.identity, self.names, name, 0, ids))


@dataclass(slots=True)
class Log:
    """A finished log: its records, and its time (ns since its start) at the last line."""

    records: Records
    names: Names
    garbled: int
    processes: list[int]
    end_ns: int
    digest: bytes

    def identity(self) -> Identity:
        """Ids that follow from the content, so that importing a log again makes the same spans."""
        return Identity(*(int.from_bytes(self.digest[i : i + 8], "big") | 1 for i in (0, 8)))


def read_log(file: BinaryIO, advance: Callable[[int], object] = lambda _: None) -> Log:
    """Reads a whole log in pieces; `advance` is told how many bytes each had."""
    parser, digest, parts = Parser(), hashlib.sha256(), []
    while data := file.read(_CHUNK):
        digest.update(data)
        parts.append(parser.feed(data))
        advance(len(data))
    parts.append(parser.feed(b"", last=True))
    return Log(
        records=joined(parts),
        names=parser.names,
        garbled=parser.garbled,
        processes=list(parser.latest),
        end_ns=max(parser.latest.values(), default=0),
        digest=digest.digest(),
    )
