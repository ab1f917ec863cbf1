"""Perfetto: frames and stages as slices, flows from stage to stage, meters and attributed watts as counters.

Each pipeline is a group of tracks: its frames, and a track for each stage, which stands for the thread
that works there (spans carry no thread); what overlaps gets a further track of the same name. A flow
joins a frame's stages in turn. A stage's counter is what its frames in flight draw above base, by the
conditioned energies; pieces without a figure add nothing to it. A meter's counter is its readings in
watts, of a cumulative counter the mean power until the next reading.

Format: protos/perfetto/trace/trace_packet.proto and track_event/*.proto, as of Perfetto v50. Packets of
one kind have one length, so they are made by NumPy: numbers that vary are varints padded to nine bytes,
which every protobuf reader takes. Packets are not in order of time; trace_processor sorts.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from benchlab_otel.align.aligner import Aligned
from benchlab_otel.export.output import replacing
from benchlab_otel.model import COMPLETED, OUTCOMES, Float, Frames, Int, Readings, Uint

Part = bytes | NDArray[np.uint8]  # the same in all n packets, or (n, k) bytes

# field numbers
PACKET = 1
CLOCK_SNAPSHOT, TIMESTAMP, SEQUENCE, TRACK_EVENT, INTERNED, FLAGS, DESCRIPTOR = 6, 8, 10, 11, 12, 13, 60
ANNOTATION, TYPE, NAME_IID, TRACK_UUID, DOUBLE_COUNTER, FLOW_IDS = 4, 9, 10, 11, 44, 47
SLICE_BEGIN, SLICE_END, COUNTER = 1, 2, 4
REALTIME, BOOTTIME = 1, 6
CLEARED, NEEDS_STATE = 1, 2
HOLD_NS = 5_000_000_000  # how late a stage may come and still be counted in order


def write_perfetto(path: Path, parts: Iterable[Aligned | Readings]) -> int:
    """Writes a trace of what `export.stream` gives and returns its number of slices."""
    with replacing(path) as out:
        trace = _Trace(out)
        for part in parts:
            if isinstance(part, Readings):
                _meter(trace, part)
            else:
                _frames(trace, part)
        for key in trace.watts:
            _counted(trace, key, np.iinfo(np.int64).max)
    return trace.slices


Events = tuple[Int, Float]  # times and by how much the power changes


@dataclass(slots=True)
class _Trace:
    """The file, and what later packets refer to."""

    out: IO[bytes]
    slices: int = 0
    tracks: dict[tuple[str, ...], int] = field(default_factory=dict)
    names: dict[tuple[int, str], int] = field(default_factory=dict)
    lanes: dict[tuple[str, ...], list[tuple[int, int]]] = field(default_factory=dict)  # (end, lane), a heap
    watts: dict[tuple[str, ...], tuple[Events, float]] = field(default_factory=dict)
    last: dict[tuple[str, str], Readings] = field(default_factory=dict)
    started: bool = False  # the sequence of packets
    clock: bool = False  # whether it was said that times are Unix time


# -- what becomes what ------------------------------------------------------------------------


def _frames(trace: _Trace, block: Aligned) -> None:
    f = block.frames
    group = (f.pipeline + " (simulated)" * f.simulated,)
    name = np.full(len(f), _name(trace, EVENT, f.pipeline), np.int64)
    for code, outcome in enumerate(OUTCOMES):
        if outcome != COMPLETED:
            name[f.outcome == code] = _name(trace, EVENT, f"{f.pipeline} {outcome}")
    notes = {"frame number": np.where(f.number < 0, np.nan, f.number)}
    for domain, joules, half in _frame_joules(block):
        notes |= {f"{domain} J": joules, f"{domain} ± J": half}
    _slices(trace, (*group, "frame"), f.begin, f.end, name, notes)
    second = np.zeros(len(f), np.bool_)
    second[f.stage_frame[1:][np.diff(f.stage_frame) == 0]] = True  # frames of two stages or more
    for code, stage in enumerate(f.stage_names):
        rows = np.flatnonzero(f.stage == code)
        owner = f.stage_frame[rows]
        about = {"frame number": notes["frame number"][owner]}
        for domain, figures in zip(block.domains, block.conditioned, strict=False):
            if figures is not None and np.isfinite(figures.stage[rows]).any():
                joules, half = figures.stage[rows], figures.stage_uncertainty[rows]
                about |= {f"{domain} J": joules, f"{domain} ± J": half}
                _count(trace, (*group, f"{stage}: {domain} W"), f, rows, joules)
        name = np.full(len(rows), _name(trace, EVENT, stage), np.int64)
        flow = np.where(second[owner], f.span[owner], 0).astype(np.uint64)
        _slices(trace, (*group, stage), f.stage_begin[rows], f.stage_end[rows], name, about, flow)


def _frame_joules(block: Aligned) -> Iterator[tuple[str, Float, Float]]:
    """(domain, joules, half widths) of the frames, conditioned where there is such a figure."""
    figures = block.conditioned or [None] * len(block.energy)
    for domain, energy, found in zip(block.domains, block.energy, figures, strict=True):
        joules, half = energy.energy, energy.uncertainty
        if found is not None:
            better = np.isfinite(found.energy)
            joules = np.where(better, found.energy, joules)
            half = np.where(better, found.energy_uncertainty, half)
        yield domain, joules, half


def _slices(
    trace: _Trace,
    track: tuple[str, ...],
    begin: Int,
    end: Int,
    name: Int,
    notes: dict[str, Float],
    flow: Uint | None = None,
) -> None:
    """Slices with their annotations (NaN: none); those with a `flow` other than 0 are joined by it.

    In order of time, and where one begins as another ends on its lane, the end comes first.
    """
    if not len(begin):
        return
    order = np.argsort(begin, kind="stable")
    lanes = np.empty(len(order), np.int64)
    lanes[order] = _lanes(trace.lanes.setdefault(track, []), begin[order], end[order])
    uuids = {lane: _track(trace, (*track, str(lane))) for lane in np.unique(lanes).tolist()}
    uuid = np.array([uuids[lane] for lane in lanes.tolist()], np.int64)
    flow = np.zeros(len(order), np.uint64) if flow is None else flow
    present = np.stack([flow != 0, *(np.isfinite(values) for values in notes.values())])
    packets = []
    for pattern in np.unique(present, axis=1).T:  # packets with the same fields have the same layout
        rows = np.flatnonzero((present == pattern[:, None]).all(axis=0))
        parts: list[Part] = []
        for there, (label, values) in zip(pattern[1:], notes.items(), strict=True):
            if there:
                iid = _tagged(1, _name(trace, NOTE, label))
                parts += _nested(ANNOTATION, [iid, _tag(5, 1), _fixed(values[rows])])
        if pattern[0]:
            parts += [_tag(FLOW_IDS, 1), _fixed(flow[rows])]
        parts += [_tagged(TYPE, SLICE_BEGIN), _tag(NAME_IID, 0), _varying(name[rows])]
        parts += [_tag(TRACK_UUID, 0), _varying(uuid[rows])]
        packets.append((2 * rows, _packets(trace, begin[rows], parts)))
    closing: list[Part] = [_tagged(TYPE, SLICE_END), _tag(TRACK_UUID, 0), _varying(uuid)]
    packets.append((2 * np.arange(len(end)) + 1, _packets(trace, end, closing)))
    pairs = np.stack([2 * order, 2 * order + 1], axis=1).ravel()
    by_time = np.argsort(np.stack([begin[order], end[order]], axis=1).ravel(), kind="stable")
    trace.out.write(_in_order(packets, pairs[by_time]).tobytes())
    trace.slices += len(order)


def _lanes(free: list[tuple[int, int]], begin: Int, end: Int) -> Int:
    """(n,) the lane of each slice, so that none overlap; `free` is when each lane ends, a heap."""
    out = np.zeros(len(begin), np.int64)
    alone = len(free) <= 1 and len(begin) > 0 and (begin[1:] >= end[:-1]).all()
    if alone and (not free or free[0][0] <= begin[0]):
        free[:] = [(int(end[-1]), 0)]
        return out
    for i, (b, e) in enumerate(zip(begin.tolist(), end.tolist(), strict=True)):
        if free and free[0][0] <= b:
            out[i] = free[0][1]
            heapq.heapreplace(free, (e, int(out[i])))
        else:
            out[i] = len(free)
            heapq.heappush(free, (e, len(free)))
    return out


def _count(trace: _Trace, key: tuple[str, ...], frames: Frames, rows: Int, joules: Float) -> None:
    """Adds a stage's pieces to its counter of watts."""
    length = (frames.stage_end[rows] - frames.stage_begin[rows]) / 1e9
    good = np.isfinite(joules) & (length > 0)
    rows, watts = rows[good], joules[good] / length[good]
    (times, steps), level = trace.watts.get(key, ((np.empty(0, np.int64), np.empty(0)), 0.0))
    times = np.concatenate([times, frames.stage_begin[rows], frames.stage_end[rows]])
    trace.watts[key] = (times, np.concatenate([steps, watts, -watts])), level
    if len(times):
        _counted(trace, key, int(times.max()) - HOLD_NS)


def _counted(trace: _Trace, key: tuple[str, ...], until: int) -> None:
    """Writes a counter's values up to a time."""
    (times, steps), level = trace.watts[key]
    ready = times <= until
    order = np.argsort(times[ready], kind="stable")
    at, values = times[ready][order], level + np.cumsum(steps[ready][order])
    last = np.flatnonzero(np.diff(at, append=np.iinfo(np.int64).max))
    _counter(trace, key, at[last], np.round(values[last], 6) + 0.0)  # never −0
    trace.watts[key] = (times[~ready], steps[~ready]), float(values[-1]) if len(values) else level


def _meter(trace: _Trace, readings: Readings) -> None:
    """A meter's readings in watts."""
    key = (readings.meter, readings.domain)
    time, value = readings.time, readings.value
    if readings.kind == "energy":
        before, trace.last[key] = trace.last.get(key), readings
        if before is not None:
            time, value = np.append(before.time[-1:], time), np.append(before.value[-1:], value)
        gained, seconds = np.diff(value), np.diff(time) / 1e9
        good = (gained >= 0) & (seconds > 0)  # not where the counter began again
        time, value = time[:-1][good], gained[good] / seconds[good]
    meter = f"meter {readings.meter}" + " (simulated)" * readings.simulated
    _counter(trace, (meter, f"{readings.domain} W"), time, value)


def _counter(trace: _Trace, key: tuple[str, ...], time: Int, value: Float) -> None:
    uuid = _track(trace, key, counter=True)
    if len(time):
        event: list[Part] = [
            _tagged(TYPE, COUNTER),
            _tagged(TRACK_UUID, uuid),
            _tag(DOUBLE_COUNTER, 1),
            _fixed(value),
        ]
        trace.out.write(_packets(trace, time, event).tobytes())


# -- packets that others refer to -------------------------------------------------------------

EVENT, NOTE = 2, 3  # fields of InternedData


def _name(trace: _Trace, kind: int, text: str) -> int:
    """The number that stands for a name; 1 and up."""
    if (kind, text) not in trace.names:
        iid = trace.names[kind, text] = len(trace.names) + 1
        _start(trace)
        entry = _nested(kind, [_tagged(1, iid), *_text(2, text)])
        _packet(trace, [_tagged(SEQUENCE, 1), _tagged(FLAGS, NEEDS_STATE), *_nested(INTERNED, entry)])
    return trace.names[kind, text]


def _track(trace: _Trace, path: tuple[str, ...], counter: bool = False) -> int:
    """The track at the end of the path; lanes of a slice track carry its name."""
    if path not in trace.tracks:
        parent = _track(trace, path[:1]) if len(path) > 1 else 0
        uuid = trace.tracks[path] = len(trace.tracks) + 1
        name = path[0] if len(path) == 1 else path[1]
        about: list[Part] = [_tagged(1, uuid), *_text(2, name)]
        about += [_tagged(5, parent)] if parent else []
        about += _nested(8, _text(6, "W")) if counter else []
        _start(trace)
        _packet(trace, [_tagged(SEQUENCE, 1), *_nested(DESCRIPTOR, about)])
    return trace.tracks[path]


def _start(trace: _Trace) -> None:
    if not trace.started:
        trace.started = True
        _packet(trace, [_tagged(SEQUENCE, 1), _tagged(FLAGS, CLEARED)])


# -- bytes ------------------------------------------------------------------------------------


def _packets(trace: _Trace, time: Int, event: Sequence[Part]) -> NDArray[np.uint8]:
    """(n, bytes of a packet): an event at each time."""
    if not trace.clock:
        trace.clock = True
        clocks = [_nested(1, [_tagged(1, clock), _tagged(2, int(time[0]))]) for clock in (BOOTTIME, REALTIME)]
        _packet(trace, _nested(CLOCK_SNAPSHOT, [part for clock in clocks for part in clock]))
    head: list[Part] = [_tag(TIMESTAMP, 0), _varying(time), _tagged(SEQUENCE, 1), _tagged(FLAGS, NEEDS_STATE)]
    return _joined(_nested(PACKET, [*head, *_nested(TRACK_EVENT, event)]), len(time))


def _packet(trace: _Trace, parts: Sequence[Part]) -> None:
    trace.out.write(b"".join(bytes(part) for part in _nested(PACKET, parts)))


def _joined(parts: Sequence[Part], n: int) -> NDArray[np.uint8]:
    """(n, bytes of a packet)."""
    out = np.empty((n, _size(parts)), np.uint8)
    at = 0
    for part in parts:
        end = at + _size([part])
        out[:, at:end] = np.frombuffer(part, np.uint8) if isinstance(part, bytes) else part
        at = end
    return out


def _in_order(groups: Sequence[tuple[Int, NDArray[np.uint8]]], order: Int) -> NDArray[np.uint8]:
    """The bytes of packets of several layouts: each group has (their numbers, the packets)."""
    size = np.zeros(len(order), np.int64)
    for numbers, packets in groups:
        size[numbers] = packets.shape[1]
    place = np.empty(len(order), np.int64)
    place[order] = np.cumsum(size[order]) - size[order]
    out = np.empty(int(size.sum()), np.uint8)
    for numbers, packets in groups:
        out[place[numbers][:, None] + np.arange(packets.shape[1])] = packets
    return out


def _size(parts: Sequence[Part]) -> int:
    return sum(len(part) if isinstance(part, bytes) else part.shape[1] for part in parts)


def _nested(number: int, parts: Sequence[Part]) -> list[Part]:
    return [_tag(number, 2) + _varint(_size(parts)), *parts]


def _text(number: int, text: str) -> list[Part]:
    return _nested(number, [text.encode()])


def _tagged(number: int, value: int) -> bytes:
    return _tag(number, 0) + _varint(value)


def _tag(number: int, wire: int) -> bytes:
    return _varint(number << 3 | wire)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def _varying(values: Int) -> NDArray[np.uint8]:
    """(n, 9): numbers below 2⁶³ as varints that are all of one length."""
    out = (values.astype(np.uint64)[:, None] >> np.arange(0, 63, 7, dtype=np.uint64)) & np.uint64(0x7F)
    out[:, :-1] |= np.uint64(0x80)
    return out.astype(np.uint8)


def _fixed(values: Float | Uint) -> NDArray[np.uint8]:
    """(n, 8) little-endian."""
    wide = values.astype("<u8" if values.dtype.kind == "u" else "<f8")
    return wide.view(np.uint8).reshape(-1, 8)
