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
    """The texts of some rows (n,) as codes (n,) into the words that there are, in order of their first
    appearance; "" where a row has none."""
    column = spans.attributes.get(attribute)
    if column is None or not len(rows):
        return np.zeros(len(rows), np.int32), [""] * bool(len(rows))
    codes, texts = coded(column.values)
    if np.array_equal(column.rows, rows):
        return codes, texts
    absent = texts.index("") if "" in texts else len(texts)
    of_row = np.full(len(spans), absent, np.int32)
    of_row[column.rows] = codes
    return _by_appearance(of_row[rows], [*texts, ""])


def _by_appearance(codes: NDArray[np.int32], texts: list[str]) -> tuple[NDArray[np.int32], list[str]]:
    """The codes (n,) anew, into those of the texts that appear, in order of their first appearance."""
    first = np.full(len(texts), len(codes))
    first[codes[::-1]] = np.arange(len(codes))[::-1]  # of repeated places the last one assigned stays
    order = np.argsort(first)[: int((first < len(codes)).sum())]
    anew = np.zeros(len(texts), np.int32)
    anew[order] = np.arange(len(order))
    return anew[codes], [texts[i] for i in order.tolist()]


def coded(values: NDArray[Any]) -> tuple[NDArray[np.int32], list[str]]:
    """n values as codes (n,) into their texts, in order of their first appearance."""
    if values.dtype == object and len(values):
        # senders repeat their texts: only the first of each run is looked at, equal by being the same object
        begins = np.append(0, np.flatnonzero(values[1:] != values[:-1]) + 1)
        heads = values[begins].tolist()
        if set(map(type, heads)) == {str}:  # 1 and True, which are equal, have different texts
            codes, texts = _coded(heads)
            return np.repeat(codes, np.diff(begins, append=len(values))), texts
    return _coded(list(map(str, values.tolist())))


def _coded(texts: list[str]) -> tuple[NDArray[np.int32], list[str]]:
    codes = {text: code for code, text in enumerate(dict.fromkeys(texts))}
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
