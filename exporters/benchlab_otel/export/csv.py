"""Tidy CSV: frames.csv, stages.csv, samples.csv and energy.csv in one folder (columns: `tables.TABLES`).

RFC 4180 with a header, UTF-8, decimal points; an absent value is an empty cell. Times are integers,
nanoseconds of Unix time, and their columns end in `_ns`, since no program's floats hold them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from benchlab_otel.export.output import BLOCK, folder_at, replacing
from benchlab_otel.export.tables import TABLES, Block, Column, Field, Words


def write_csv(folder: Path, blocks: Iterable[tuple[str, Block]]) -> dict[str, int]:
    """Writes the tables and returns the rows of each; files take their names when all are whole."""
    rows = dict.fromkeys(TABLES, 0)
    with folder_at(folder), ExitStack() as stack:
        files = {name: stack.enter_context(replacing(folder / f"{name}.csv")) for name in TABLES}
        for name, fields in TABLES.items():
            files[name].write((",".join(map(_heading, fields)) + "\n").encode())
        for name, block in blocks:
            columns = list(zip(TABLES[name], block.values(), strict=True))
            count = len(columns[0][1])
            rows[name] += count
            for at in range(0, count, BLOCK):
                part = slice(at, at + BLOCK)
                cells = zip(*(_cells(field, column, part) for field, column in columns), strict=True)
                files[name].write("".join([",".join(row) + "\n" for row in cells]).encode())
    return rows


def _heading(field: Field) -> str:
    return f"{field.name}_ns" if field.kind == "time" else field.name


def _cells(field: Field, column: Column, rows: slice) -> Sequence[str]:
    """The texts of one column's rows."""
    if isinstance(column, Words):
        words = [*map(_quoted, column.words), ""]  # −1 is the last one
        return [words[code] for code in column.codes[rows].tolist()]
    values = column[rows]
    if field.kind == "number":
        return ["" if value != value else repr(value) for value in np.round(values, 12).tolist()]
    if field.kind == "integer":
        return ["" if value < 0 else str(value) for value in values.tolist()]
    if field.kind == "boolean":
        return ["true" if value else "false" for value in values.tolist()]
    return [value.decode() if field.kind == "id" else str(value) for value in values.tolist()]


def _quoted(word: str) -> str:
    return '"' + word.replace('"', '""') + '"' if re.search(r'[,"\r\n]', word) else word
