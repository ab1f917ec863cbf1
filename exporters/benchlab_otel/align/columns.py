"""Attributes of spans as columns of one type, whatever types their senders gave them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchlab_otel.contract import SIMULATED
from benchlab_otel.model import Float, Int, Spans


def texts(spans: Spans, attribute: str, absent: str = "") -> NDArray[np.object_]:
    """(n,) str of each span's attribute."""
    out = np.full(len(spans), absent, object)
    column = spans.attributes.get(attribute)
    if column is not None:
        values = column.values.tolist()
        only_texts = set(map(type, values)) == {str}  # as nearly always: then no word is looked at
        out[column.rows] = column.values if only_texts else list(map(str, values))
    return out


def words(spans: Spans, attribute: str, rows: Int) -> tuple[NDArray[np.int32], list[str]]:
    """The texts of some rows (n,) as codes (n,) into the words that there are; "" where a row has none."""
    column = spans.attributes.get(attribute)
    if column is None or not len(rows):
        return np.zeros(len(rows), np.int32), [""] * bool(len(rows))
    values = column.values
    if not np.array_equal(column.rows, rows):
        place = np.full(len(spans), len(values), np.int64)
        place[column.rows] = np.arange(len(values))
        values = np.append(values.astype(object), "")[place[rows]]
    return coded(values.tolist())


def coded(values: list[Any]) -> tuple[NDArray[np.int32], list[str]]:
    """n values as codes (n,) into their texts, in order of their first appearance."""
    texts = values if set(map(type, values)) <= {str} else list(map(str, values))
    codes = {text: code for code, text in enumerate(dict.fromkeys(texts))}
    if len(codes) == 1:
        return np.zeros(len(texts), np.int32), list(codes)
    return np.fromiter(map(codes.__getitem__, texts), np.int32, len(texts)), list(codes)


def floats(values: NDArray[Any]) -> Float:
    """The numbers among an attribute's values, NaN for the others."""
    if values.dtype.kind in "iuf":
        return values.astype(np.float64)
    numbers = [v if isinstance(v, int | float) and not isinstance(v, bool) else np.nan for v in values]
    return np.array(numbers, np.float64)


def integers(spans: Spans, attribute: str, absent: int, limit: int = 1 << 62) -> Int:
    """(n,) int64 of each span's attribute, rounded; `absent` where it is no number within ± `limit`."""
    out = np.full(len(spans), absent, np.int64)
    column = spans.attributes.get(attribute)
    if column is not None:
        values = column.values if column.values.dtype.kind == "i" else np.rint(floats(column.values))
        usable = np.abs(values) <= limit
        out[column.rows[usable]] = values[usable]
    return out


def numbers(spans: Spans, attribute: str, absent: float) -> Float:
    """(n,) of each span's attribute; `absent` where it is no finite number."""
    out = np.full(len(spans), absent)
    column = spans.attributes.get(attribute)
    if column is not None:
        values = floats(column.values)
        usable = np.isfinite(values)
        out[column.rows[usable]] = values[usable]
    return out


def is_simulated(resource: Mapping[str, Any]) -> bool:
    """Whether a sender says that its data are simulated (environment variables make it a text)."""
    return str(resource.get(SIMULATED, "")).lower() == "true"
