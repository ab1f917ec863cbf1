"""All domains of all meters attributed to the same frames, each meter's window looked for once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from benchlab_otel.align.attribution.attribute import Attribution, Settings, attribute
from benchlab_otel.align.attribution.identify import Identification
from benchlab_otel.model import Frames, Readings

Windows = dict[tuple[str, str], Identification]  # of a meter's power readings, or of its counters


def attribute_all(
    frames: Sequence[Frames], readings: Sequence[Readings], found: Windows | None = None
) -> list[Attribution]:
    """One attribution for each series of readings, in their order.

    Where a meter's samples declare no window, it is found on the domain that tells most and used for
    the others. `found` holds the windows of earlier calls, and gets those of this one.
    """
    found = {} if found is None else found
    out: dict[tuple[str, str], Attribution] = {}
    for meter, kind in {(r.meter, r.kind): None for r in readings}:
        mine = sorted(
            (r for r in readings if (r.meter, r.kind) == (meter, kind)), key=_tells_most, reverse=True
        )
        known = found.get((meter, kind))
        if known is None and (mine[0].window_ns is None or mine[0].clock_ns is not None):
            lead = attribute(frames, mine[0], Settings(find_kernel=True))
            out[lead.meter, lead.domain] = lead
            mine, known = mine[1:], lead.identification
            if known is not None and known.found:
                found[meter, kind] = known
        for r in mine:
            out[r.meter, r.domain] = _with_window(frames, r, known)
    return [out[r.meter, r.domain] for r in readings]


def _with_window(frames: Sequence[Frames], readings: Readings, known: Identification | None) -> Attribution:
    if known is None:
        return attribute(frames, readings)
    settings = Settings(kernel=known.kernel) if known.found else Settings(find_kernel=True)
    return replace(attribute(frames, readings, settings), identification=known)


def _tells_most(readings: Readings) -> tuple[bool, float]:
    """`system` first, then by the variance of power."""
    watts = readings.value
    if readings.kind == "energy":
        watts = np.diff(readings.value) * 1e9 / np.maximum(np.diff(readings.time), 1)
    return readings.domain == "system", float(np.var(watts)) if len(watts) else 0.0
