"""A foreign file as an OTLP file beside a session: its format found, its times put on the session's clock."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from types import ModuleType

import numpy as np

from benchlab_otel import contract, imports
from benchlab_otel.archive.reader import read_spans
from benchlab_otel.archive.records import Fault, compressor, frame
from benchlab_otel.archive.session import Session
from benchlab_otel.cli.errors import UserError
from benchlab_otel.cli.progress import progress
from benchlab_otel.imports.capture import HEAD, Block, Capture, FormatError, Samples, Zero
from benchlab_otel.imports.encode import Encoder, ids_of
from benchlab_otel.model import Int, Scalar
from benchlab_otel.otlp.decode import decode_traces
from benchlab_otel.probe import tracerlog
from benchlab_otel.timebase import CLOCK_ATTRIBUTE

GSTREAMER = "gstreamer"
FORMATS = (GSTREAMER, *imports.NAMES)
GSTREAMER_HINT = (
    "the log of GStreamer's latency tracer, as made with "
    'GST_TRACERS="latency(flags=pipeline+element)" GST_DEBUG=GST_TRACER:7 GST_DEBUG_FILE=FILE'
)


@dataclass(frozen=True, slots=True)
class Source:
    """A file to be imported: its format, and what the user says of it."""

    path: Path
    format: str
    name: str | None
    start: datetime | None


@dataclass(frozen=True, slots=True)
class TimeBase:
    """The clock of the session that a file is put into.

    `offset_ns` (k,): the wall clock's distance from the time base since `time_ns` (k,), as recorded;
    `attribute` is the resource's `benchlab.clock.offset_ns`, None where spans are in wall time. `first_ns`
    and `last_ns` are when the session's spans begin and end.
    """

    time_ns: Int = field(default_factory=lambda: np.zeros(0, np.int64))
    offset_ns: Int = field(default_factory=lambda: np.zeros(0, np.int64))
    attribute: int | None = None
    first_ns: int = 0
    last_ns: int = 1 << 62

    def shift(self, unix_ns: Int) -> Int:
        """What is to be added to wall times (n,), ns."""
        if not len(self.time_ns):
            return np.zeros(len(unix_ns), np.int64)
        at = np.searchsorted(self.time_ns, unix_ns - self.offset_ns[0], side="right") - 1
        return -self.offset_ns[np.maximum(at, 0)]


WALL = TimeBase()
CHANGED = "the file's time of change, taken for that of its last frame (--start TIME is surer)"


def time_base(session: Session, faults: list[Fault], advance: Callable[[int], None]) -> TimeBase:
    """The clock of a session, as its spans tell it; `faults` gets what can't be read. Raises OSError."""
    times, offsets = [], []
    first, last = 1 << 62, 0
    for spans in read_spans(session.traces, faults, progress=advance):
        valid = (spans.start > 0) & (spans.end >= spans.start)
        if valid.any():
            first, last = min(first, int(spans.start[valid].min())), max(last, int(spans.end[valid].max()))
        column = spans.attributes.get(contract.CLOCK_WALL_OFFSET)
        if column is not None:
            times += spans.end[column.rows].tolist()
            offsets += [int(value) for value in column.values]
    order = np.argsort(np.array(times, np.int64), kind="stable")
    known = session.manifest.clock_offset_ns if session.manifest and len(times) else None
    return TimeBase(np.array(times, np.int64)[order], np.array(offsets, np.int64)[order], known, first, last)


@dataclass(slots=True)
class Converted:
    """What came of a file; times Unix ns."""

    notes: list[str]
    first_ns: int
    last_ns: int
    simulated: bool = False


def detect(path: Path) -> str:
    """The format of a file. UserError where it is none of them, or can't be read."""
    try:
        with path.open("rb") as file:
            head = file.read(HEAD)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    found = imports.detect(head)
    if found is None and b"GST_TRACER" in head:
        found = GSTREAMER
    if found is None and any(len(spans) for spans in read_spans([path], [])):
        raise UserError(
            f"{path}: OTLP already, nothing to import: `benchlab-otel report {path}` takes it as it is"
        )
    if found is None:
        start = head.lstrip()[:40].decode("utf-8", "replace").split("\n")[0]
        known = ", ".join(FORMATS)
        raise UserError(
            f"{path}: line 1: {start!r} is the begin of no format that can be imported ({known}; see"
            " docs/import.md); --format takes a file for one of them and says what is wrong with it"
        )
    return found


def convert(source: Source, out: Path, base: TimeBase, session_id: str) -> Converted:
    """Writes what the file holds as OTLP records to `out`. UserError where it can't be used."""
    try:
        size = source.path.stat().st_size
        with progress(source.path.name, size) as advance:
            work = _tracer_log if source.format == GSTREAMER else _foreign
            done = work(source, out, base, session_id, advance)
    except FormatError as error:
        raise UserError(str(error)) from None
    except OSError as error:
        if error.filename is not None and Path(error.filename) == source.path:
            raise UserError(f"{source.path}: {error.strerror}") from None
        raise
    _check_extent(source, done, base)
    return done


def _check_extent(source: Source, done: Converted, base: TimeBase) -> None:
    if done.first_ns <= 0:
        raise UserError(f"{source.path}: its times are before 1970; give --start")
    if done.last_ns < base.first_ns or done.first_ns > base.last_ns:
        raise UserError(
            f"{source.path}: is of {_clock(done.first_ns)} to {_clock(done.last_ns)}, the session of"
            f" {_clock(base.first_ns)} to {_clock(base.last_ns)} (UTC): nothing in common. If the file's"
            " time is wrong, give --start"
        )


def _clock(unix_ns: int) -> str:
    return f"{datetime.fromtimestamp(unix_ns / 1e9, UTC):%Y-%m-%d %H:%M:%S}"


def _resource(name: str, session_id: str, base: TimeBase, simulated: bool) -> dict[str, Scalar]:
    resource: dict[str, Scalar] = {"service.name": name, contract.SESSION_ID: session_id}
    if base.attribute is not None:
        resource[CLOCK_ATTRIBUTE] = base.attribute
    if simulated:
        resource[contract.SIMULATED] = True
    return resource


# -- the formats of imports/ ----------------------------------------------------------------------


def _foreign(
    source: Source, out: Path, base: TimeBase, session_id: str, advance: Callable[[int], object]
) -> Converted:
    module = imports.reader(source.format)
    capture = Capture(source.path, advance=advance)
    items: Iterator[Block | Samples] = module.read(capture)
    first = next(items, None)
    if first is None:
        raise capture.error(0, f"no frame in it: {_why_none(capture, module)}")
    zero = _zero(source, capture, module)
    name = source.name or capture.name or source.path.stem
    encoder = Encoder(name, _resource(name, session_id, base, capture.simulated), ids_of(source.path))
    pack = compressor()
    with out.open("wb") as file:
        for item in chain([first], items):
            if len(item.begin):
                shift = zero.ns + base.shift(item.begin + zero.ns)
                file.write(frame(encoder.encode(item, shift), pack))
    if not encoder.frames:
        raise capture.error(0, f"no frame in it: {_why_none(capture, module)}")
    notes = [f"{source.path}: {source.format}, {encoder.frames} frames; times by {zero.source}"]
    notes += [f"{source.path}: {encoder.samples} readings"] * bool(encoder.samples)
    notes += [f"{source.path}: {note}" for note in capture.notes]
    if capture.faults.count:
        notes.append(
            f"{source.path}: {capture.faults.count} could not be read: {'; '.join(capture.faults.examples)}"
        )
    return Converted(notes, encoder.first_ns, encoder.last_ns, capture.simulated)


def _why_none(capture: Capture, module: ModuleType) -> str:
    return "; ".join(capture.faults.examples) or f"expected {module.HINT}"


def _zero(source: Source, capture: Capture, module: ModuleType) -> Zero:
    """The Unix time of the file's time 0."""
    if source.start is not None and (capture.zero is None or capture.zero.ns):
        return Zero(_unix_ns(source.start), "--start")
    if source.start is not None:
        raise UserError(f"{source.path}: its times are Unix time already; leave --start out")
    if capture.zero is not None and not capture.zero.at_end:
        return capture.zero
    ends = (
        int(b.end.max()) for b in module.read(Capture(source.path)) if isinstance(b, Block) and len(b.end)
    )
    last = max(ends, default=0)
    if capture.zero is not None:
        return Zero(capture.zero.ns - last, capture.zero.source)
    changed = source.path.stat().st_mtime_ns
    return Zero(changed - last, CHANGED)


def _unix_ns(moment: datetime) -> int:
    """Of a time without a zone: local time."""
    return int(moment.timestamp() * 1e6) * 1000


# -- GStreamer's tracer log -----------------------------------------------------------------------


def _tracer_log(
    source: Source, out: Path, base: TimeBase, session_id: str, advance: Callable[[int], object]
) -> Converted:
    path = source.path
    with path.open("rb") as file:
        log = tracerlog.read_log(file, advance)
    if not (log.records.kind == tracerlog.SINK).any():
        found = f"{len(log.records)} element-latency records but no latency record of a sink"
        raise UserError(
            f"{path}: {found if len(log.records) else 'no latency record'}: expected {GSTREAMER_HINT}"
        )
    if source.start is not None:
        zero = Zero(_unix_ns(source.start), "--start")
    else:
        zero = Zero(path.stat().st_mtime_ns - log.end_ns, "the file's time of change")
    name = source.name or path.stem
    converter = tracerlog.Converter(name, _resource(name, session_id, base, False), log.names, log.identity())
    start = zero.ns + int(base.shift(np.array([zero.ns], np.int64))[0])
    pack = compressor()
    first, last = 1 << 62, 0
    with out.open("wb") as file:
        for body in converter.convert(log.records, dict.fromkeys(log.processes, start), last=True):
            spans = decode_traces(body)
            first, last = min(first, int(spans.start.min())), max(last, int(spans.end.max()))
            file.write(frame(body, pack))
    counts = {
        "records could not be read": log.garbled,
        "buffers reached a sink without a latency record, so they are no frames": converter.unframed,
        "records had a choice of predecessors (clock too coarse); the one logged last was taken": (
            converter.ambiguous
        ),
    }
    notes = [
        f"{path}: {converter.frames} frames; times by {zero.source}",
        *(f"{path}: {count} {what}" for what, count in counts.items() if count),
    ]
    return Converted(notes, first, last)
