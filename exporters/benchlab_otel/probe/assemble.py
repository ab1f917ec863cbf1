"""Marks and stages to frames and spans, as arrays: what a probe's flush thread does.

Rules, for the events of one frame in order of time:

- A frame begins with its first mark; where a stage began before that (or there is no mark), with
  the call that began it. The first mark, if the frame begins with it, makes no span: its name is
  the frame span's `frame.first_mark`.
- Every other mark ends a stage span of its own name that runs from the mark before it (from the
  frame's begin, for the first).
- A frame ends when it is told to. One that is not told so within the time limit was dropped; it
  ends with the last thing that is known of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from benchlab_otel import contract
from benchlab_otel.model import (
    COMPLETED,
    DROPPED,
    OUTCOMES,
    STATUS_ERROR,
    STATUS_UNSET,
    Bool,
    Int,
    Scalar,
    Uint,
)
from benchlab_otel.otlp.encode import Attribute, SpanBatch, Strings
from benchlab_otel.otlp.ids import mix64, nonzero

BEGIN, MARK, STAGE, END = 0, 1, 2, 3
ERROR_TYPE = "error.type"  # of a failed frame: what failed

Event = tuple[int, int, int, int, str]
"""(frame key, kind, extra, time ns, name): `extra` is the frame number of a BEGIN, the begin of a
STAGE and the outcome (index into OUTCOMES) of an END; `name` that of mark or stage, or the reason."""

BareMark = tuple[int, int, str]
"""(frame number, time ns, name)."""


@dataclass(slots=True)
class Events:
    """m events as columns, ordered by frame and time; `name` (m,) int64 into the names table."""

    key: Int
    kind: Int
    extra: Int
    time: Int
    name: Int

    def __len__(self) -> int:
        return len(self.key)

    def take(self, rows: Int | Bool) -> Events:
        return Events(self.key[rows], self.kind[rows], self.extra[rows], self.time[rows], self.name[rows])


class Names:
    """Strings by number; a probe uses few."""

    def __init__(self) -> None:
        self.table: list[str] = []
        self._codes: dict[str, int] = {}

    def code(self, name: str) -> int:
        """The number of `name`, new if it has not been seen."""
        if name not in self._codes:
            self._codes[name] = len(self.table)
            self.table.append(name)
        return self._codes[name]


def columns(events: Sequence[Event], names: Names) -> Events:
    """The events as columns, in the order given."""
    key, kind, extra, time, name = zip(*events, strict=True) if events else ((), (), (), (), ())
    codes = {text: names.code(text) for text in set(name)}
    return Events(
        key=np.array(key, np.int64),
        kind=np.array(kind, np.int64),
        extra=np.array(extra, np.int64),
        time=np.array(time, np.int64),
        name=np.array([codes[text] for text in name], np.int64),
    )


def ordered(parts: Sequence[Events]) -> Events:
    """The parts in one, by frame, then time; at one time BEGIN comes first and END last."""
    whole = Events(
        *(np.concatenate([getattr(p, c) for p in parts]) for c in ("key", "kind", "extra", "time", "name"))
    )
    return whole.take(np.lexsort((whole.kind, whole.time, whole.key)))


def frames_of_marks(
    marks: Sequence[tuple[int, int, str]],
    first: str,
    last: str,
    still_open: Events,
    next_key: int,
    names: Names,
) -> tuple[Events, int]:
    """Bare marks as events with frame keys, and the number of strays.

    A mark `first` begins a frame of that number with the next (negative) key; a frame of the same
    number that was open, also in `still_open`, is dropped by that. A mark `last` completes it.
    """
    rows = columns([(number, MARK, number, time, name) for number, time, name in marks], names)
    rows = rows.take(np.lexsort((rows.time, rows.key)))
    begins, ends = rows.name == names.code(first), rows.name == names.code(last)
    new_number = np.diff(rows.key, prepend=rows.key[0] - 1) != 0
    part = np.cumsum(begins | new_number) - 1  # rows of one frame, or ahead of a number's first one
    opening = np.flatnonzero(begins | new_number)

    open_keys = _open_numbers(still_open)
    earlier = np.array([open_keys.get(n, 0) for n in rows.key[new_number].tolist()], np.int64)
    earlier = earlier[np.cumsum(new_number) - 1]
    key_of_part = np.where(begins, next_key + 1 - np.cumsum(begins), earlier)[opening]

    ended_before = np.cumsum(ends) - ends
    ended_before = ended_before - ended_before[opening][part]
    keys = np.where(ended_before > 0, 0, key_of_part[part])

    ended_part = np.bincount(part, weights=ends) > 0
    left = np.where(new_number, earlier, np.roll(np.where(ended_part, 0, key_of_part)[part], 1))
    dropped = begins & (left != 0)

    known = keys != 0
    return (
        ordered(
            [
                Events(keys, rows.kind, rows.extra, rows.time, rows.name).take(known),
                _events(BEGIN, keys, rows.extra, rows.time, names).take(begins),
                _events(END, keys, _outcome(COMPLETED, keys), rows.time, names).take(ends & known),
                _events(END, left, _outcome(DROPPED, left), rows.time, names).take(dropped),
            ]
        ),
        int((~known).sum()),
    )


def _open_numbers(still_open: Events) -> dict[int, int]:
    """The keys of the bare frames that have not ended, by their number."""
    bare = still_open.take(still_open.key < 0)
    running = bare.take((bare.kind == BEGIN) & ~np.isin(bare.key, bare.key[bare.kind == END]))
    return dict(zip(running.extra.tolist(), running.key.tolist(), strict=True))


def _events(kind: int, key: Int, extra: Int, time: Int, names: Names) -> Events:
    return Events(key, np.full(len(key), kind), extra, time, np.full(len(key), names.code("")))


def _outcome(outcome: str, key: Int) -> Int:
    return np.full(len(key), OUTCOMES.index(outcome))


@dataclass(slots=True)
class Split:
    """What a flush does with its events: frames to be sent, those still open, and strays."""

    ready: Events
    open: Events
    strays: int


def split(events: Events, settled_ns: int, timed_out_ns: int) -> Split:
    """Sorts out the frames that ended before `settled_ns` or began before `timed_out_ns`."""
    if not len(events):
        return Split(events, events, 0)
    first = np.flatnonzero(np.diff(events.key, prepend=events.key[0] - 1))
    frame = np.cumsum(np.diff(events.key, prepend=events.key[0] - 1) != 0) - 1
    begin = np.full(len(first), -1, np.int64)
    is_begin = events.kind == BEGIN
    begin[frame[is_begin]] = events.time[is_begin]
    ended = np.zeros(len(first), np.bool_)
    ended[frame[(events.kind == END) & (events.time <= settled_ns)]] = True
    known = begin >= 0
    done = known & (ended | (begin <= timed_out_ns))
    return Split(
        ready=events.take(done[frame]),
        open=events.take((known & ~done)[frame]),
        strays=int((~known)[frame].sum()),
    )


@dataclass(slots=True)
class Assembled:
    """n frames and their m stage spans: times ns of the events' clock, `stage_frame` (m,) rows."""

    key: Int
    number: Int
    begin: Int
    end: Int
    outcome: Int
    reason: Int  # name code, -1 = none
    first_mark: Int  # name code, -1 = none
    stage_frame: Int
    stage_name: Int
    stage_begin: Int
    stage_end: Int

    def __len__(self) -> int:
        return len(self.key)


def assemble(events: Events, no_reason: int) -> Assembled:
    """Frames and stage spans of complete frames (`ready` of a Split); `no_reason` codes the name ""."""
    starts = (
        np.flatnonzero(np.diff(events.key, prepend=events.key[0] - 1)) if len(events) else np.zeros(0, int)
    )
    n = len(starts)
    frame = np.repeat(np.arange(n), np.diff(np.append(starts, len(events))))
    kind, time, extra = events.kind, events.time, events.extra
    is_begin, is_mark, is_stage, is_end = (kind == k for k in (BEGIN, MARK, STAGE, END))

    number, begin = np.zeros(n, np.int64), np.zeros(n, np.int64)
    number[frame[is_begin]], begin[frame[is_begin]] = extra[is_begin], time[is_begin]

    earliest_stage = np.full(n, np.iinfo(np.int64).max)
    np.minimum.at(earliest_stage, frame[is_stage], extra[is_stage])
    marks = np.flatnonzero(is_mark)
    is_first = np.diff(frame[marks], prepend=-1) != 0
    opening = marks[is_first]
    opening = opening[time[opening] <= earliest_stage[frame[opening]]]
    first_mark = np.full(n, -1, np.int64)
    first_mark[frame[opening]] = events.name[opening]
    begin[frame[opening]] = time[opening]

    mark_frame = frame[marks]
    before = np.where(is_first, begin[mark_frame], time[np.roll(marks, 1)] if len(marks) else 0)
    spans_mark = ~np.isin(marks, opening, assume_unique=True)

    end = begin.copy()
    np.maximum.at(end, frame, time)
    ends = np.flatnonzero(is_end)[::-1]  # the first END of a frame counts
    outcome = np.full(n, OUTCOMES.index(DROPPED), np.int64)
    reason = np.full(n, -1, np.int64)
    end[frame[ends]], outcome[frame[ends]] = time[ends], extra[ends]
    reason[frame[ends]] = np.where(events.name[ends] == no_reason, -1, events.name[ends])
    return Assembled(
        key=events.key[starts],
        number=number,
        begin=begin,
        end=end,
        outcome=outcome,
        reason=reason,
        first_mark=first_mark,
        stage_frame=np.concatenate([mark_frame[spans_mark], frame[is_stage]]),
        stage_name=np.concatenate([events.name[marks][spans_mark], events.name[is_stage]]),
        stage_begin=np.concatenate([before[spans_mark], extra[is_stage]]),
        stage_end=np.concatenate([time[marks][spans_mark], time[is_stage]]),
    )


@dataclass(frozen=True, slots=True)
class Identity:
    """What the ids of a probe's spans follow from: trace (hi, mix64(seed + key)), frame span mix64 of it."""

    hi: int
    seed: int

    def traces(self, key: Int) -> Uint:
        """(n, 2) trace ids of the frames with these keys."""
        lo = nonzero(mix64(key.astype(np.uint64) + np.uint64(self.seed)))
        return np.stack([np.full(len(key), self.hi, np.uint64), lo], axis=1)


def frame_spans(trace: Uint) -> Uint:
    """The frame spans' ids (n,), which follow from the trace ids (n, 2)."""
    return nonzero(mix64(trace[:, 0] ^ trace[:, 1]))


def batches(
    frames: Assembled, identity: Identity, names: Names, pipeline: str, offset_ns: int, stage_ids: Uint
) -> list[SpanBatch]:
    """The frames' spans and, by stage, their children; `stage_ids` (m,) are the stage spans' ids."""
    trace = identity.traces(frames.key)
    span = frame_spans(trace)
    attributes: dict[str, Attribute] = {
        contract.PIPELINE_NAME: pipeline,
        contract.FRAME_NUMBER: frames.number,
        contract.FRAME_OUTCOME: Strings(frames.outcome.astype(np.int32), list(OUTCOMES)),
    }
    for key, codes in ((contract.FIRST_MARK, frames.first_mark), (ERROR_TYPE, frames.reason)):
        if (codes >= 0).any():
            attributes[key] = Strings(codes.astype(np.int32), names.table)
    completed = frames.outcome == OUTCOMES.index(COMPLETED)
    result = [
        SpanBatch(
            name=contract.FRAME,
            trace=trace,
            span=span,
            start=frames.begin + offset_ns,
            end=frames.end + offset_ns,
            status=np.where(completed, STATUS_UNSET, STATUS_ERROR).astype(np.uint8),
            attributes=attributes,
        )
    ]
    row = frames.stage_frame
    return result + stage_batches(
        trace=trace[row],
        parent=span[row],
        span=stage_ids,
        name=frames.stage_name,
        begin=frames.stage_begin + offset_ns,
        end=frames.stage_end + offset_ns,
        table=names.table,
    )


def stage_batches(
    trace: Uint, parent: Uint, span: Uint, name: Int, begin: Int, end: Int, table: Sequence[str]
) -> list[SpanBatch]:
    """Stage spans, one batch for each stage name; `name` (m,) into `table`, times Unix ns."""
    result = []
    for code in np.flatnonzero(np.bincount(name)).tolist():
        rows: NDArray[np.int64] = np.flatnonzero(name == code)
        constant: dict[str, Scalar] = {contract.PIPELINE_STAGE: table[code]}
        result.append(
            SpanBatch(
                name=table[code],
                trace=trace[rows],
                span=span[rows],
                parent=parent[rows],
                start=begin[rows],
                end=end[rows],
                attributes={**constant},
            )
        )
    return result
