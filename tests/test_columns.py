"""Texts of attributes as codes: the same as looking at each value by itself."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from benchlab_otel.align.columns import coded, words
from benchlab_otel.model import Column, Spans

VALUES = st.one_of(
    st.sampled_from(["", "decode", "infer", "1", "True"]),
    st.sampled_from([1, 1.0, True, 0, False, None]),
    st.lists(st.integers(0, 1), max_size=2),
)


@st.composite
def columns(draw: st.DrawFn) -> Column:
    """Runs of equal values at some rows of 40, mostly only texts."""
    values = draw(st.sampled_from([VALUES, st.sampled_from(["", "decode", "infer"])]))
    given_values = [v for v in draw(st.lists(values, min_size=1, max_size=8)) for _ in range(draw(RUN))]
    rows = sorted(draw(st.sets(st.integers(0, 39), min_size=len(given_values), max_size=len(given_values))))
    array = np.empty(len(given_values), object)
    array[:] = given_values
    return Column(np.array(rows, np.int64), array)


RUN = st.integers(1, 4)


def spans_with(column: Column) -> Spans:
    ids, none = np.arange(1, 41, dtype=np.uint64), np.zeros(40, np.int64)
    zero = np.zeros(40, np.int32)
    return Spans(
        np.stack([ids, ids], 1),
        ids,
        ids,
        zero,
        none,
        none,
        zero.astype(np.uint8),
        zero,
        ["s"],
        [{}],
        {"a": column},
    )


def texts_of(codes: Any, names: list[str]) -> list[str]:
    return [names[code] for code in codes.tolist()]


@given(columns())
def test_codes_stand_for_the_texts_in_order_of_appearance(column: Column) -> None:
    expected = [str(value) for value in column.values.tolist()]
    codes, names = coded(column.values)
    assert texts_of(codes, names) == expected
    assert names == list(dict.fromkeys(expected))


@given(columns(), st.lists(st.integers(0, 39), unique=True))
def test_words_of_some_rows_in_any_order(column: Column, rows: list[int]) -> None:
    by_row = dict(zip(column.rows.tolist(), map(str, column.values.tolist()), strict=True))
    expected = [by_row.get(row, "") for row in rows]
    codes, names = words(spans_with(column), "a", np.array(rows, np.int64))
    assert texts_of(codes, names) == expected
    assert names == list(dict.fromkeys(expected))


@given(st.lists(st.integers(-2, 2)))
def test_numbers_are_texts_too(values: list[int]) -> None:
    codes, names = coded(np.array(values, np.int64))
    assert texts_of(codes, names) == list(map(str, values))
