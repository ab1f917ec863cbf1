"""Spans to frames: a root span with `pipeline.name` and its children, joined by trace and parent id.

Spans arrive in any order, from several threads and processes. A frame is given out when event
time (the latest end of any span seen) is `lateness_ns` past its end, so what comes out depends on
what came in and not on when it was read: a live run and its archive give the same frames.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from benchlab_otel.contract import (
    ENERGY,
    FIRST_MARK,
    FRAME_NUMBER,
    FRAME_OUTCOME,
    PIPELINE_NAME,
    PIPELINE_STAGE,
    SAMPLE,
    SIMULATED,
)
from benchlab_otel.model import (
    COMPLETED,
    FAILED,
    OUTCOMES,
    STATUS_ERROR,
    Bool,
    Frames,
    Int,
    Spans,
    Uint,
)
from benchlab_otel.otlp.decode import concatenate, take
from benchlab_otel.otlp.ids import mix64

ORPHAN_NS = 30_000_000_000  # a stage whose frame has not come after this long belongs to none
REMEMBER_NS = 60_000_000_000  # frames given out are remembered this long, to know repeats


@dataclass(slots=True)
class Assembly:
    """What is waiting: spans whose frame is not complete yet, and what was given out lately."""

    lateness_ns: int
    waiting: Spans | None = None
    watermark: int = 0
    done: Uint = field(default_factory=lambda: np.empty(0, np.uint64))
    done_end: Int = field(default_factory=lambda: np.empty(0, np.int64))
    late: int = 0  # stages that came after their frame was given out
    repeated: int = 0  # spans that came twice
    orphaned: int = 0  # stages whose frame never came


def assemble(state: Assembly, spans: Spans) -> list[Frames]:
    """Takes in a block of spans; returns the frames that are now complete, by pipeline and service."""
    wanted = _of_pipelines(spans)
    if len(spans):
        state.watermark = max(state.watermark, int(spans.end.max()))
    parts = [s for s in (state.waiting, take(spans, wanted) if len(wanted) < len(spans) else spans) if s]
    return _give_out(state, concatenate(parts), state.watermark - state.lateness_ns) if parts else []


def finish(state: Assembly) -> list[Frames]:
    """The frames that are left, at the end of the data."""
    waiting, state.waiting = state.waiting, None
    if waiting is None:
        return []
    out = _give_out(state, waiting, np.iinfo(np.int64).max)
    if state.waiting is not None:
        state.orphaned += len(state.waiting)
        state.waiting = None
    return out


def _of_pipelines(spans: Spans) -> Int:
    """Rows that may be frames or stages: roots with a pipeline's name, and children but for our own."""
    others = [i for i, name in enumerate(spans.names) if name in (SAMPLE, ENERGY)]
    child: Bool = (spans.parent != 0) & ~np.isin(spans.name, others)
    return np.flatnonzero(child | _roots(spans))


def _roots(spans: Spans) -> Bool:
    named = np.zeros(len(spans), np.bool_)
    column = spans.attributes.get(PIPELINE_NAME)
    if column is not None:
        named[column.rows] = True
    return named & (spans.parent == 0)


def frame_key(trace: Uint, span: Uint) -> Uint:
    """One 64-bit key (n,) for the pair of trace id (n, 2) and span id (n,)."""
    return mix64(trace[:, 0] ^ mix64(trace[:, 1] ^ mix64(span)))


def _give_out(state: Assembly, spans: Spans, before: int) -> list[Frames]:
    """Frames among `spans` that ended before `before`; the rest is kept in the state."""
    is_root = _roots(spans)
    roots, children = np.flatnonzero(is_root), np.flatnonzero(~is_root)
    root_key = frame_key(spans.trace[roots], spans.span[roots])
    roots, root_key = _first_of_each(state, roots, root_key)
    child_frame = frame_key(spans.trace[children], spans.parent[children])
    order = np.argsort(root_key)
    place = np.clip(np.searchsorted(root_key[order], child_frame), 0, max(len(order) - 1, 0))
    owner = order[place] if len(order) else np.zeros(len(children), np.int64)
    owned = root_key[owner] == child_frame if len(order) else np.zeros(len(children), np.bool_)

    end = spans.end[roots].copy()
    np.maximum.at(end, owner[owned], spans.end[children[owned]])
    ready = end <= before
    leaving = owned & ready[owner] if len(order) else owned
    out = _frames(spans, roots[ready], children[leaving], (np.cumsum(ready) - 1)[owner[leaving]])
    _remember(state, root_key[ready], end[ready])
    _keep(state, spans, roots[~ready], children[~leaving], child_frame[~leaving], before)
    return out


def _first_of_each(state: Assembly, roots: Int, key: Uint) -> tuple[Int, Uint]:
    """Leaves out frames that were given out before, and repeats within the block."""
    _, first = np.unique(key, return_index=True)
    fresh = np.zeros(len(roots), np.bool_)
    fresh[first] = True
    fresh &= ~np.isin(key, state.done)
    state.repeated += int(len(roots) - fresh.sum())
    return roots[fresh], key[fresh]


def _remember(state: Assembly, key: Uint, end: Int) -> None:
    done, done_end = np.concatenate([state.done, key]), np.concatenate([state.done_end, end])
    if len(done) > 4096:
        recent = done_end > state.watermark - REMEMBER_NS
        done, done_end = done[recent], done_end[recent]
    state.done, state.done_end = done, done_end


def _keep(state: Assembly, spans: Spans, roots: Int, children: Int, child_frame: Uint, before: int) -> None:
    """Keeps what may still become part of a frame; counts what can't any more."""
    late = np.isin(child_frame, state.done)
    old = (spans.end[children] < state.watermark - ORPHAN_NS) & ~late
    state.late += int(late.sum())
    state.orphaned += int(old.sum())
    rows = np.sort(np.concatenate([roots, children[~(late | old)]]))
    state.waiting = take(spans, rows) if len(rows) else None


def _frames(spans: Spans, roots: Int, children: Int, owner: Int) -> list[Frames]:
    """Frames from complete rows, one entry for each pipeline of each resource; `owner` indexes `roots`."""
    if not len(roots):
        return []
    pipeline = _text(spans, PIPELINE_NAME, roots)
    resource = spans.resource[roots]
    out = []
    for name in dict.fromkeys(pipeline.tolist()):
        for code in np.unique(resource[pipeline == name]).tolist():
            mine = (pipeline == name) & (resource == code)
            out.append(_one_pipeline(spans, str(name), code, roots, mine, children, owner))
    return out


def _one_pipeline(
    spans: Spans, pipeline: str, resource: int, roots: Int, mine: Bool, children: Int, owner: Int
) -> Frames:
    own = mine[owner]
    children, place = children[own], (np.cumsum(mine) - 1)[owner[own]]
    children, place = _without_repeats(spans, children, place)
    rows = roots[mine]
    begin, end = spans.start[rows].copy(), spans.end[rows].copy()
    np.minimum.at(begin, place, spans.start[children])
    np.maximum.at(end, place, spans.end[children])
    order = np.lexsort((begin, end))
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    by_time = np.lexsort((spans.end[children], spans.start[children], rank[place]))
    children, place = children[by_time], rank[place][by_time]
    stage, names = _stages(spans, children)
    first_mark = _text(spans, FIRST_MARK, rows)
    return Frames(
        pipeline=pipeline,
        trace=spans.trace[rows][order],
        span=spans.span[rows][order],
        begin=begin[order],
        end=end[order],
        number=_numbers(spans, rows)[order],
        outcome=_outcomes(spans, rows)[order],
        stage_frame=place,
        stage=stage,
        stage_begin=spans.start[children],
        stage_end=spans.end[children],
        stage_names=names,
        simulated=bool(spans.resources[resource].get(SIMULATED)),
        service=str(spans.resources[resource].get("service.name", "")),
        first_mark=str(first_mark[0]),
    )


def _without_repeats(spans: Spans, children: Int, place: Int) -> tuple[Int, Int]:
    """Leaves out stages that arrived twice (same frame, same span id)."""
    order = np.lexsort((children, spans.span[children], place))
    a, b = place[order], spans.span[children][order]
    if not ((a[1:] == a[:-1]) & (b[1:] == b[:-1])).any():
        return children, place
    first = np.sort(order[np.append(True, (a[1:] != a[:-1]) | (b[1:] != b[:-1]))])
    return children[first], place[first]


def _stages(spans: Spans, children: Int) -> tuple[NDArray[np.int32], list[str]]:
    """(codes, names): the attribute `pipeline.stage`, else the span's name."""
    labels = np.array(spans.names, object)[spans.name]
    column = spans.attributes.get(PIPELINE_STAGE)
    if column is not None:
        labels[column.rows] = column.values
    names: dict[str, int] = {}
    codes = [names.setdefault(str(label), len(names)) for label in labels[children]]
    return np.array(codes, np.int32), list(names)


def _text(spans: Spans, attribute: str, rows: Int) -> NDArray[np.object_]:
    values = np.full(len(spans), "", object)
    column = spans.attributes.get(attribute)
    if column is not None:
        values[column.rows] = column.values
    return values[rows]


def _numbers(spans: Spans, rows: Int) -> Int:
    """`frame.number`, -1 where the span has none."""
    values = np.full(len(spans), -1, np.int64)
    column = spans.attributes.get(FRAME_NUMBER)
    if column is not None and column.values.dtype.kind == "i":
        values[column.rows] = column.values
    return values[rows]


def _outcomes(spans: Spans, rows: Int) -> NDArray[np.uint8]:
    """`frame.outcome`; where a span has none, its status tells."""
    text = _text(spans, FRAME_OUTCOME, rows)
    known = {name: i for i, name in enumerate(OUTCOMES)}
    by_status = np.where(
        spans.status[rows] == STATUS_ERROR, OUTCOMES.index(FAILED), OUTCOMES.index(COMPLETED)
    )
    codes = np.array([known.get(t, -1) for t in text], np.int64)
    return np.where(codes >= 0, codes, by_status).astype(np.uint8)
