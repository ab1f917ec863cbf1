"""Sample spans to one series of readings for each domain of each meter."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from benchlab_otel.align.columns import floats, integers, is_simulated, numbers, texts
from benchlab_otel.contract import (
    CLOCK_UNCERTAINTY,
    ENERGY_PREFIX,
    HW_ID,
    METER_LAG,
    METER_WINDOW,
    METER_WRAP,
    POWER_PREFIX,
    SAMPLE,
)
from benchlab_otel.model import Bool, Int, Readings, Spans

Kind = Literal["power", "energy"]
Key = tuple[str, str, Kind]  # meter, domain, what its values are
_LONGEST_NS = 3_600_000_000_000  # no meter lags or averages by more than an hour
_BEYOND: dict[Kind, float] = {"power": 1e9, "energy": 1e15}  # W, J: read of no machine, and drown all others


@dataclass(frozen=True, slots=True)
class _Declared:
    """What each span (n,) says of its meter: ns, ns, J and ns; -1 (of `wrap` 0) where it says nothing."""

    lag: Int
    window: Int
    wrap: NDArray[np.float64]
    clock: Int


def extract(spans: Spans) -> list[Readings]:
    """The readings in a block of spans, one entry for each meter, domain and kind, ascending in time."""
    if SAMPLE not in spans.names:
        return []
    is_sample = (spans.name == spans.names.index(SAMPLE)) & (spans.start > 0) & (spans.end >= spans.start)
    meter = texts(spans, HW_ID)
    declared = _Declared(
        lag=integers(spans, METER_LAG, absent=0, limit=_LONGEST_NS),
        window=integers(spans, METER_WINDOW, absent=-1, limit=_LONGEST_NS),
        wrap=numbers(spans, METER_WRAP, absent=0.0),
        clock=integers(spans, CLOCK_UNCERTAINTY, absent=-1, limit=_LONGEST_NS),
    )
    found = []
    for key, column in spans.attributes.items():
        kind, domain = _domain(key)
        if kind is None:
            continue
        values = floats(column.values)
        usable = is_sample[column.rows] & (np.abs(values) < _BEYOND[kind]) & (meter[column.rows] != "")
        rows, values = column.rows[usable], values[usable]
        for name in dict.fromkeys(meter[rows].tolist()):
            mine = meter[rows] == name
            found.append(_series(spans, name, domain, kind, rows[mine], values[mine], declared))
    return found


def _domain(attribute: str) -> tuple[Kind | None, str]:
    prefixes: tuple[tuple[str, Kind], ...] = ((POWER_PREFIX, "power"), (ENERGY_PREFIX, "energy"))
    for prefix, kind in prefixes:
        rest = attribute.removeprefix(prefix)
        if rest != attribute and rest and "." not in rest:
            return kind, rest
    return None, ""


def _series(
    spans: Spans,
    meter: str,
    domain: str,
    kind: Kind,
    rows: Int,
    values: NDArray[np.float64],
    declared: _Declared,
) -> Readings:
    start, end = spans.start[rows], spans.end[rows]
    time = start + (end - start) // 2 - declared.lag[rows]
    order = np.argsort(time, kind="stable")
    rows = rows[order]
    return Readings(
        meter=meter,
        domain=domain,
        kind=kind,
        time=time[order],
        uncertainty=(spans.end[rows] - spans.start[rows]) // 2,
        value=values[order],
        trace=spans.trace[rows],
        span=spans.span[rows],
        window_ns=_known(declared.window[rows[-1]]),
        wrap_j=max(0.0, float(declared.wrap[rows[-1]])),
        clock_ns=_known(declared.clock[rows[-1]]),
        simulated=any(is_simulated(spans.resources[i]) for i in set(spans.resource[rows].tolist())),
    )


def _known(value: int) -> int | None:
    return int(value) if value >= 0 else None


_COLUMNS = ("time", "uncertainty", "value", "trace", "span")


@dataclass(slots=True)
class Series:
    """A series that grows at its end without copying what it has; `readings` are views of `_room`."""

    readings: Readings
    late: int = 0  # readings that came after a later one
    _room: Readings = field(init=False)

    def __post_init__(self) -> None:
        self.readings = self._room = _unique(self.readings)

    def append(self, new: Readings) -> None:
        """Takes in readings; those out of order are sorted in, repeats (of the same instant) left out."""
        known = self.readings
        if len(known) and new.time[0] <= known.time[-1]:
            self.late += int((new.time < known.time[-1]).sum())
            self._sort_in(new)
            return
        new = _unique(new)
        size = len(known) + len(new)
        if size > len(self._room.time):
            self._room = _with_room(known, size + size // 2)
        for name in _COLUMNS:
            getattr(self._room, name)[len(known) : size] = getattr(new, name)
        self._room = replace(
            self._room,
            window_ns=new.window_ns,
            wrap_j=new.wrap_j,
            clock_ns=new.clock_ns,
            simulated=known.simulated or new.simulated,
        )
        self.readings = slice_of(self._room, 0, size)

    def _sort_in(self, new: Readings) -> None:
        """Into arrays of their own: who holds the earlier views keeps what they show."""
        first = int(np.searchsorted(self.readings.time, new.time[0]))
        tail = slice_of(self.readings, first, len(self.readings))
        order = np.argsort(np.concatenate([tail.time, new.time]), kind="stable")
        both: dict[str, Any] = {
            c: np.concatenate([getattr(tail, c), getattr(new, c)])[order] for c in _COLUMNS
        }
        sorted_in = _unique(replace(new, **both, simulated=tail.simulated or new.simulated))
        self._room = _with_room(slice_of(self.readings, 0, first), first + len(sorted_in))
        self.readings = slice_of(self._room, 0, first)
        self.append(sorted_in)

    def forget(self, time_ns: int, keep_before: int) -> None:
        """Drops what is before `time_ns` but for the last `keep_before`."""
        kept = since(self.readings, time_ns, keep_before)
        self._room = _with_room(kept, len(kept))
        self.readings = self._room


def _with_room(readings: Readings, size: int) -> Readings:
    """A copy in arrays of `size` rows, of which the first are filled."""
    columns: dict[str, Any] = {}
    for name in _COLUMNS:
        old = getattr(readings, name)
        columns[name] = np.empty((size, *old.shape[1:]), old.dtype)
        columns[name][: len(old)] = old
    return replace(readings, **columns)


def since(readings: Readings, time_ns: int, keep_before: int) -> Readings:
    """The readings from `time_ns` on, and `keep_before` earlier ones."""
    first = max(0, int(np.searchsorted(readings.time, time_ns)) - keep_before)
    return slice_of(readings, first, len(readings))


def slice_of(readings: Readings, first: int, last: int) -> Readings:
    """Readings `first` to `last` (exclusive), as views."""
    return _take(readings, slice(first, last))


def _unique(readings: Readings) -> Readings:
    if len(readings) < 2:
        return readings
    first: Bool = np.append(True, np.diff(readings.time) > 0)
    return readings if first.all() else _take(readings, first)


def _take(readings: Readings, rows: slice | Bool) -> Readings:
    return Readings(
        meter=readings.meter,
        domain=readings.domain,
        kind=readings.kind,
        time=readings.time[rows],
        uncertainty=readings.uncertainty[rows],
        value=readings.value[rows],
        trace=readings.trace[rows],
        span=readings.span[rows],
        window_ns=readings.window_ns,
        wrap_j=readings.wrap_j,
        clock_ns=readings.clock_ns,
        simulated=readings.simulated,
    )
