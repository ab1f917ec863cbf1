"""Sample spans to one series of readings for each domain of each meter."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from benchlab_otel.contract import (
    ENERGY_PREFIX,
    HW_ID,
    METER_LAG,
    METER_WINDOW,
    POWER_PREFIX,
    SAMPLE,
    SIMULATED,
)
from benchlab_otel.model import Bool, Int, Readings, Spans

Key = tuple[str, str]  # (meter, domain)


def extract(spans: Spans) -> list[Readings]:
    """The readings in a block of spans, one entry for each (meter, domain), ascending in time.

    A domain that a meter gives both as power and as energy counter is read from the counter.
    """
    if SAMPLE not in spans.names:
        return []
    is_sample = spans.name == spans.names.index(SAMPLE)
    meters = spans.attributes.get(HW_ID)
    if meters is None:
        return []
    meter = np.full(len(spans), "", object)
    meter[meters.rows] = meters.values
    lag, window = _per_row(spans, METER_LAG), _per_row(spans, METER_WINDOW)
    found: dict[Key, Readings] = {}
    for key, column in spans.attributes.items():
        kind, domain = _domain(key)
        if kind is None or column.values.dtype.kind not in "fiu":
            continue
        usable = is_sample[column.rows] & np.isfinite(column.values.astype(np.float64))
        rows, values = column.rows[usable], column.values[usable].astype(np.float64)
        for name in dict.fromkeys(meter[rows].tolist()):
            mine = meter[rows] == name
            series = _series(spans, str(name), domain, kind, rows[mine], values[mine], lag, window)
            if kind == "energy" or (str(name), domain) not in found:
                found[str(name), domain] = series
    return list(found.values())


def _domain(attribute: str) -> tuple[Literal["power", "energy"] | None, str]:
    for prefix, kind in ((POWER_PREFIX, "power"), (ENERGY_PREFIX, "energy")):
        rest = attribute.removeprefix(prefix)
        if rest != attribute and rest and "." not in rest:
            return ("power" if kind == "power" else "energy"), rest
    return None, ""


def _per_row(spans: Spans, attribute: str) -> Int:
    values = np.zeros(len(spans), np.int64)
    column = spans.attributes.get(attribute)
    if column is not None and column.values.dtype.kind in "iuf":
        values[column.rows] = column.values
    return values


def _series(
    spans: Spans,
    meter: str,
    domain: str,
    kind: Literal["power", "energy"],
    rows: Int,
    values: NDArray[np.float64],
    lag: Int,
    window: Int,
) -> Readings:
    start, end = spans.start[rows], spans.end[rows]
    time = start + (end - start) // 2 - lag[rows]
    order = np.argsort(time, kind="stable")
    rows = rows[order]
    return Readings(
        meter=meter,
        domain=domain,
        kind=kind,
        time=time[order],
        uncertainty=np.maximum((spans.end[rows] - spans.start[rows]) // 2, 0),
        value=values[order],
        trace=spans.trace[rows],
        span=spans.span[rows],
        window_ns=int(window[rows[-1]]) if len(rows) else 0,
        simulated=any(bool(spans.resources[i].get(SIMULATED)) for i in set(spans.resource[rows].tolist())),
    )


def append(before: Readings | None, new: Readings) -> tuple[Readings, int]:
    """The series with the new readings sorted in, repeats (same span) left out; and how many were late.

    A reading of the same instant as a known one is a repeat too. Late means before the end of what
    was known: such a reading is taken in all the same.
    """
    if before is None or not len(before):
        return _unique(new), 0
    if len(new) and new.time[0] > before.time[-1]:
        return _merged(before, _unique(new), None), 0
    both = _merged(before, new, np.argsort(np.concatenate([before.time, new.time]), kind="stable"))
    late = int((new.time < before.time[-1]).sum())
    return _unique(both), late


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


def _merged(a: Readings, b: Readings, order: Int | None) -> Readings:
    def join(x: NDArray[Any], y: NDArray[Any]) -> NDArray[Any]:
        both = np.concatenate([x, y])
        return both if order is None else both[order]

    return Readings(
        meter=b.meter,
        domain=b.domain,
        kind=b.kind,
        time=join(a.time, b.time),
        uncertainty=join(a.uncertainty, b.uncertainty),
        value=join(a.value, b.value),
        trace=join(a.trace, b.trace),
        span=join(a.span, b.span),
        window_ns=b.window_ns,
        simulated=a.simulated or b.simulated,
    )


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
        simulated=readings.simulated,
    )
