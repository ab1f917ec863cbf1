"""Comma-separated text in blocks of rows, by the names in its header; memory does not grow with the file."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from operator import methodcaller
from pathlib import Path

import numpy as np

from benchlab_otel.imports.capture import LIMIT_S, Capture
from benchlab_otel.model import Bool, Float, Int

Lines = tuple[int, list[str]]  # number of the first line (from 1), and the lines

_CHUNK = 1 << 20  # characters
_LONGEST_LINE = 1 << 16
_HEADER_WITHIN = 200  # lines
ABSENT = frozenset(("", "NA", "NaN", "nan", "N/A"))


def read_lines(path: Path, advance: Callable[[int], object] = lambda size: None) -> Iterator[Lines]:
    """The lines of a text file in blocks. UTF-8 or, by its byte order mark, UTF-16; what is neither
    stands there as U+FFFD. Raises OSError."""
    with path.open("rb") as file:
        mark = file.read(2)
    encoding = "utf-16" if mark in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    with path.open(encoding=encoding, errors="replace") as file:
        number, rest = 1, ""
        while text := file.read(_CHUNK):
            advance(len(text))
            lines = (rest + text).split("\n")
            rest = lines.pop()
            if len(rest) > _LONGEST_LINE:  # nobody's line: it must not fill the memory
                rest = rest[:_LONGEST_LINE]
            if lines:
                yield number, lines
                number += len(lines)
        if rest:
            yield number, [rest]


@dataclass(slots=True)
class Rows:
    """n rows: `line` (n,) where they stand, `cells` by column's name."""

    line: Sequence[int]
    cells: dict[str, Sequence[str]]

    def __len__(self) -> int:
        return len(self.line)

    def __contains__(self, column: str) -> bool:
        return column in self.cells


@dataclass(slots=True)
class Table:
    """A table whose header was found: what stood above it, its columns, and the lines that follow."""

    above: list[str]
    header_line: int
    columns: list[str]
    lines: Iterator[Lines]


def open_table(
    capture: Capture, is_header: Callable[[str], bool], expected: str, named: Callable[[str], str] = str.strip
) -> Table:
    """Looks for the header; `named` makes a column's name of its cell. Raises FormatError, OSError."""
    lines = read_lines(capture.path, capture.advance)
    above: list[str] = []
    for number, block in lines:
        for i, line in enumerate(block[: _HEADER_WITHIN - len(above)]):
            if is_header(line):
                cells = [named(cell) for cell in _split(line)]
                rest = _chained((number + i + 1, block[i + 1 :]), lines)
                return Table(above, number + i, cells, rest)
            above.append(line)
        if len(above) >= _HEADER_WITHIN:
            break
    found = above[0][:60] if above else "nothing"
    raise capture.error(1, f"no header: expected {expected}, found {found!r}")


def _chained(first: Lines, rest: Iterator[Lines]) -> Iterator[Lines]:
    yield first
    yield from rest


def read_rows(capture: Capture, table: Table) -> Iterator[Rows]:
    """The rows in blocks; lines with another number of cells go to the capture's faults."""
    width = len(table.columns)
    commas = methodcaller("count", ",")
    places: Sequence[int]
    for first, lines in table.lines:
        text = ",".join(lines)
        if '"' not in text and set(map(commas, lines)) == {width - 1}:
            places, flat = range(first, first + len(lines)), text.split(",")  # much faster than line by line
        else:
            places, flat = _whole_rows(capture, first, lines, width)
        if places:
            cells: dict[str, Sequence[str]] = {}
            for i, name in enumerate(table.columns):
                cells.setdefault(name, flat[i::width])  # of two columns of one name the first
            yield Rows(places, cells)


def _split(line: str) -> list[str]:
    """The cells of a line; a quote that is never closed ends with its line."""
    try:
        return next(csv.reader([line]), [""])
    except csv.Error:
        return line.split(",")


def _whole_rows(
    capture: Capture, first: int, lines: Sequence[str], width: int
) -> tuple[list[int], list[str]]:
    """The numbers of the lines that are rows of `width` cells, and the cells of one after the other."""
    places: list[int] = []
    flat: list[str] = []
    for number, line in enumerate(lines, first):
        row = _split(line)
        if len(row) == width:
            places.append(number)
            flat += row
        elif line.strip():
            capture.faults.add(number, f"expected {width} values, found {len(row)}")
    return places, flat


def numbers(capture: Capture, rows: Rows, column: str) -> Float:
    """A column (n,) as numbers; NaN where it is absent. What is no number goes to the capture's faults."""
    cells = rows.cells.get(column)
    if cells is None:
        return np.full(len(rows), np.nan)
    try:
        return np.array(list(map(float, cells)))
    except ValueError:
        return np.array([_number(capture, n, column, c) for n, c in zip(rows.line, cells, strict=True)])


def _number(capture: Capture, line: int, column: str, cell: str) -> float:
    try:
        return float(cell)
    except ValueError:
        if cell.strip() not in ABSENT:
            capture.faults.add(line, f"expected a number in {column}, found {cell[:40]!r}")
        return math.nan


def usable(capture: Capture, rows: Rows, limits: dict[str, tuple[Float, float]]) -> Bool:
    """Which rows (n,) have all these columns within 0 and their limit; the others go to the faults."""
    good = np.ones(len(rows), np.bool_)
    for column, (values, limit) in limits.items():
        bad = good & ~((values >= 0) & (values <= limit))
        for row in np.flatnonzero(bad).tolist():
            found = f"found {rows.cells[column][row][:40]!r}" if column in rows else "absent"
            capture.faults.add(rows.line[row], f"expected {column} from 0 to {limit:g}, {found}")
        good &= ~bad
    return good


def believable(capture: Capture, rows: Rows, column: str, limit: float) -> Float:
    """As `numbers`; what is beyond the limit is absent and goes to the faults: the row is good without it."""
    values = numbers(capture, rows, column)
    for row in np.flatnonzero(np.abs(values) > limit).tolist():
        found = rows.cells[column][row][:40]
        capture.faults.add(rows.line[row], f"expected {column} up to {limit:g}, found {found!r}")
        values[row] = math.nan
    return values


def taken(rows: Rows, which: Bool) -> Rows:
    """The rows that are wanted."""
    if which.all():
        return rows
    chosen: Int = np.flatnonzero(which)
    places = chosen.tolist()
    cells: dict[str, Sequence[str]] = {k: [v[i] for i in places] for k, v in rows.cells.items()}
    return Rows([rows.line[i] for i in places], cells)


SECONDS, MILLISECONDS = LIMIT_S, LIMIT_S * 1e3
