"""Spans to frames: a root span with `pipeline.name` and its children, joined by trace and parent id.

Spans arrive in any order, from several threads and processes. A frame is given out when event
time is `lateness_ns` past its end, so what comes out depends on what came in and not on when it was
read: a live run and its archive give the same frames.

Event time is the latest end of any span seen. As soon as one span is on the host's own time base,
only such spans count: a foreign sender whose clock is wrong must not end everybody's frames.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from benchlab_otel.align.columns import coded, integers, is_simulated, words
from benchlab_otel.contract import (
    ENERGY,
    FIRST_MARK,
    FRAME_NUMBER,
    FRAME_OUTCOME,
    PIPELINE_NAME,
    PIPELINE_STAGE,
    SAMPLE,
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
_STRETCH = 64  # stages of which the first one's frame is looked up
REMEMBER_NS = 60_000_000_000  # frames given out are remembered this long, to know repeats


@dataclass(slots=True)
class Assembly:
    """What is waiting: spans whose frame is not complete yet, and what was given out lately."""

    lateness_ns: int
    waiting: Spans | None = None
    watermark: int = 0
    trusted: bool = False  # event time comes from spans on the host's own time base
    done: Uint = field(default_factory=lambda: np.empty(0, np.uint64))
    done_end: Int = field(default_factory=lambda: np.empty(0, np.int64))
    late: int = 0  # stages that came after their frame was given out
    repeated: int = 0  # spans that came twice
    orphaned: int = 0  # stages whose frame never came
    invalid: int = 0  # spans without a begin or that end before it


def assemble(state: Assembly, spans: Spans, ours: Bool | None = None) -> list[Frames]:
    """Takes in a block of spans; returns the frames that are now complete, by pipeline and service.

    `ours` (n,) tells which spans are on the host's own time base.
    """
    valid = (spans.start > 0) & (spans.end >= spans.start)
    state.invalid += int(len(spans) - valid.sum())
    _advance(state, spans, valid, ours)
    wanted = valid & _of_pipelines(spans)
    together = spans
    if state.waiting is not None:
        together = concatenate([state.waiting, spans])
        wanted = np.append(np.ones(len(state.waiting), np.bool_), wanted)
    return _give_out(state, together, wanted, state.watermark - state.lateness_ns, spans)


def _advance(state: Assembly, spans: Spans, valid: Bool, ours: Bool | None) -> None:
    """Moves event time on."""
    if ours is not None and ours.any():
        if not state.trusted:
            state.trusted, state.watermark = True, 0
        valid = valid & ours
    elif state.trusted:
        return
    state.watermark = max(state.watermark, int(spans.end[valid].max(initial=0)))


def finish(state: Assembly) -> list[Frames]:
    """The frames that are left, at the end of the data."""
    waiting, state.waiting = state.waiting, None
    if waiting is None:
        return []
    wanted = np.ones(len(waiting), np.bool_)
    out = _give_out(state, waiting, wanted, np.iinfo(np.int64).max, take(waiting, np.empty(0, np.int64)))
    if state.waiting is not None:
        state.orphaned += len(state.waiting)
        state.waiting = None
    return out


def _of_pipelines(spans: Spans) -> Bool:
    """Rows (n,) that may be frames or stages: roots with a pipeline's name, and children but for our own."""
    others = [i for i, name in enumerate(spans.names) if name in (SAMPLE, ENERGY)]
    child: Bool = (spans.parent != 0) & ~np.isin(spans.name, others)
    return child | _roots(spans)


def _keys_of_others(spans: Spans) -> Uint:
    """Keys of the spans that are no frame: their children are no stages, and need not be waited with."""
    rows = np.flatnonzero(~_roots(spans) & (spans.name != _code(spans, SAMPLE)))
    return frame_key(spans.trace[rows], spans.span[rows])


def _code(spans: Spans, name: str) -> int:
    return spans.names.index(name) if name in spans.names else -1


def _roots(spans: Spans) -> Bool:
    named = np.zeros(len(spans), np.bool_)
    column = spans.attributes.get(PIPELINE_NAME)
    if column is not None:
        named[column.rows] = True
    return named & (spans.parent == 0)


def frame_key(trace: Uint, span: Uint) -> Uint:
    """One 64-bit key (n,) for the pair of trace id (n, 2) and span id (n,)."""
    return mix64(trace[:, 0] ^ mix64(trace[:, 1] ^ mix64(span)))


def _give_out(state: Assembly, spans: Spans, wanted: Bool, before: int, new: Spans) -> list[Frames]:
    """Frames among the `wanted` (n,) spans that ended before `before`; the rest is kept in the state.

    `new` are those of the spans that came last.
    """
    is_root = _roots(spans)
    roots, children = np.flatnonzero(wanted & is_root), np.flatnonzero(wanted & ~is_root)
    root_key = frame_key(spans.trace[roots], spans.span[roots])
    roots, root_key = _first_of_each(state, roots, root_key)
    child_frame = frame_key(spans.trace[children], spans.parent[children])
    owner = _owners(child_frame, root_key)
    owned = owner >= 0
    owner = owner[owned]

    end = spans.end[roots].copy()
    np.maximum.at(end, owner, spans.end[children[owned]])
    ready = end <= before
    leaving = owned.copy()
    leaving[owned] = ready[owner]
    out = _frames(spans, roots[ready], children[leaving], (np.cumsum(ready) - 1)[owner[ready[owner]]])
    _remember(state, root_key[ready], end[ready])
    staying = ~leaving
    lost = np.flatnonzero(~owned)
    if len(lost):
        staying[lost[_among(child_frame[lost], _keys_of_others(new))]] = False
    _keep(state, spans, roots[~ready], children[staying], child_frame[staying])
    return out


def _found(keys: Uint, ascending: Uint) -> tuple[Int, Bool]:
    """Where (n,) each of the n keys stands among the ascending ones, and which of them do."""
    place = np.searchsorted(ascending, keys)
    inside = place < len(ascending)
    inside[inside] = ascending[place[inside]] == keys[inside]
    return place, inside


def _owners(keys: Uint, roots: Uint) -> Int:
    """(n,) which of the m root keys, all different, each of the n keys is; -1 where none is it."""
    owner = np.full(len(keys), -1)
    if not (len(keys) and len(roots)):
        return owner
    order = np.argsort(roots)
    # a stage's spans mostly come in the order of their frames: each stretch goes on as it begins
    place, found = _found(keys[::_STRETCH], roots[order])
    begins = np.where(found, order[np.minimum(place, len(roots) - 1)], 0)
    guess = np.repeat(begins, _STRETCH)[: len(keys)] + np.arange(len(keys)) % _STRETCH
    np.minimum(guess, len(roots) - 1, out=guess)
    right = roots[guess] == keys
    owner[right] = guess[right]
    others = np.flatnonzero(~right)
    place, found = _found(keys[others], roots[order])
    owner[others[found]] = order[place[found]]
    return owner


def _among(keys: Uint, others: Uint) -> Bool:
    """Which (n,) of the n keys are among the others; faster than np.isin, which looks for repeats first."""
    return _found(keys, np.sort(others))[1]


def _repeat(values: Uint) -> bool:
    """Whether any value comes twice."""
    ascending = np.sort(values)
    return bool((ascending[1:] == ascending[:-1]).any())


def _first_of_each(state: Assembly, roots: Int, key: Uint) -> tuple[Int, Uint]:
    """Leaves out frames that were given out before, and repeats within the block."""
    fresh = ~_among(key, state.done)
    if _repeat(key):
        first = np.zeros(len(roots), np.bool_)
        first[np.unique(key, return_index=True)[1]] = True
        fresh &= first
    state.repeated += int(len(roots) - fresh.sum())
    return roots[fresh], key[fresh]


def _remember(state: Assembly, key: Uint, end: Int) -> None:
    done, done_end = np.concatenate([state.done, key]), np.concatenate([state.done_end, end])
    if len(done) > 4096:
        recent = done_end > state.watermark - REMEMBER_NS
        done, done_end = done[recent], done_end[recent]
    state.done, state.done_end = done, done_end


def _keep(state: Assembly, spans: Spans, roots: Int, children: Int, child_frame: Uint) -> None:
    """Keeps what may still become part of a frame; counts what can't any more."""
    late = _among(child_frame, state.done)
    old = (spans.end[children] < state.watermark - ORPHAN_NS) & ~late
    state.late += int(late.sum())
    state.orphaned += int(old.sum())
    rows = np.sort(np.concatenate([roots, children[~(late | old)]]))
    state.waiting = _compact(take(spans, rows)) if len(rows) else None


def _compact(spans: Spans) -> Spans:
    """Without the names and resources that no span has any more, so that they don't pile up."""
    if len(spans.names) < 256 and len(spans.resources) < 64:
        return spans
    names, name = np.unique(spans.name, return_inverse=True)
    resources, resource = np.unique(spans.resource, return_inverse=True)
    return replace(
        spans,
        name=name.astype(np.int32),
        names=[spans.names[i] for i in names],
        resource=resource.astype(np.int32),
        resources=[spans.resources[i] for i in resources],
    )


def _frames(spans: Spans, roots: Int, children: Int, owner: Int) -> list[Frames]:
    """Frames from complete rows, one entry for each pipeline of each resource; `owner` indexes `roots`."""
    if not len(roots):
        return []
    pipeline, names = words(spans, PIPELINE_NAME, roots)
    resource = spans.resource[roots]
    out = []
    for i, name in enumerate(names):
        for code in np.unique(resource[pipeline == i]).tolist():
            mine = (pipeline == i) & (resource == code)
            out.append(_one_pipeline(spans, name, code, roots, mine, children, owner))
    return out


def _one_pipeline(
    spans: Spans, pipeline: str, resource: int, roots: Int, mine: Bool, children: Int, owner: Int
) -> Frames:
    own = mine[owner]
    children, place = children[own], (np.cumsum(mine) - 1)[owner[own]]
    children, place = _without_repeats(spans, children, place)
    rows = roots[mine]
    first = rows[:1]
    begin, end = spans.start[rows].copy(), spans.end[rows].copy()
    np.minimum.at(begin, place, spans.start[children])
    np.maximum.at(end, place, spans.end[children])
    if not (end[1:] > end[:-1]).all():
        order = np.lexsort((begin, end))
        rank = np.empty(len(order), np.int64)
        rank[order] = np.arange(len(order))
        rows, begin, end, place = rows[order], begin[order], end[order], rank[place]
    by_time = _by_time(spans, children, place)
    children, place = children[by_time], place[by_time]
    stage, names = _stages(spans, children)
    return Frames(
        pipeline=pipeline,
        trace=spans.trace[rows],
        span=spans.span[rows],
        begin=begin,
        end=end,
        number=integers(spans, FRAME_NUMBER, absent=-1)[rows],
        outcome=_outcomes(spans, rows),
        stage_frame=place,
        stage=stage,
        stage_begin=spans.start[children],
        stage_end=spans.end[children],
        stage_names=names,
        simulated=is_simulated(spans.resources[resource]),
        service=str(spans.resources[resource].get("service.name", "")),
        first_mark=words(spans, FIRST_MARK, first)[1][0],
    )


def _by_time(spans: Spans, children: Int, place: Int) -> Int:
    """Which of the children (m,) come in turn: by their frames, then by their begins, then by their ends."""
    order = np.argsort(place, kind="stable")
    frame, rows = place[order], children[order]
    start, end = spans.start[rows], spans.end[rows]
    later = (frame[1:] > frame[:-1]) | (start[1:] > start[:-1])
    if (later | ((start[1:] == start[:-1]) & (end[1:] >= end[:-1]))).all():
        return order  # as nearly always: a frame's stages arrive in their order
    return np.lexsort((spans.end[children], spans.start[children], place))


def _without_repeats(spans: Spans, children: Int, place: Int) -> tuple[Int, Int]:
    """Leaves out stages that arrived twice (same frame, same span id)."""
    if not _repeat(spans.span[children]):
        return children, place
    order = np.lexsort((children, spans.span[children], place))
    a, b = place[order], spans.span[children][order]
    if not ((a[1:] == a[:-1]) & (b[1:] == b[:-1])).any():
        return children, place
    first = np.sort(order[np.append(True, (a[1:] != a[:-1]) | (b[1:] != b[:-1]))])
    return children[first], place[first]


def _stages(spans: Spans, children: Int) -> tuple[NDArray[np.int32], list[str]]:
    """(codes, names): the attribute `pipeline.stage`, else the span's name."""
    stage, names = words(spans, PIPELINE_STAGE, children)
    if "" not in names:
        return stage, names
    labels = np.array(names, object)[stage]
    unnamed = labels == ""
    labels[unnamed] = np.array(spans.names, object)[spans.name[children[unnamed]]]
    return coded(labels)


def _outcomes(spans: Spans, rows: Int) -> NDArray[np.uint8]:
    """`frame.outcome`; where a span has none, its status tells."""
    outcome, names = words(spans, FRAME_OUTCOME, rows)
    known = [OUTCOMES.index(name) if name in OUTCOMES else -1 for name in names]
    by_status = np.where(
        spans.status[rows] == STATUS_ERROR, OUTCOMES.index(FAILED), OUTCOMES.index(COMPLETED)
    )
    codes = np.array(known, np.int64)[outcome]
    return np.where(codes >= 0, codes, by_status).astype(np.uint8)
