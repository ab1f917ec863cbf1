"""Parquet: frames, stages, samples and energy, a file each in one folder (columns: `tables.TABLES`).

Each column carries `unit` and `description` in its field's metadata, and each file what it is in the
schema's (`benchlab_otel.*`). Times are timestamps in ns, UTC. Needs pyarrow, the extra `parquet`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow.parquet import ParquetWriter

from benchlab_otel import __version__
from benchlab_otel.export.output import folder_at, replacing
from benchlab_otel.export.tables import TABLES, Block, Column, Field, Words

GROUP_ROWS = 1 << 17  # rows of a row group
GROUPS_WAITING = 1  # row groups that may wait to be written; more would only take memory
_TYPES = {
    "text": pa.string(),
    "id": pa.string(),
    "integer": pa.int64(),
    "number": pa.float64(),
    "time": pa.timestamp("ns", "UTC"),
    "boolean": pa.bool_(),
}


def write_parquet(folder: Path, blocks: Iterable[tuple[str, Block]]) -> dict[str, int]:
    """Writes the tables and returns the rows of each; files take their names when all are whole."""
    rows = dict.fromkeys(TABLES, 0)
    waiting: dict[str, list[pa.RecordBatch]] = {name: [] for name in TABLES}
    with folder_at(folder), ExitStack() as stack:
        writers = {name: stack.enter_context(_writer(stack, folder, name)) for name in TABLES}
        # pyarrow lets other threads run: a row group is compressed while the next one is read
        thread = stack.enter_context(ThreadPoolExecutor(1, "parquet"))
        writing: deque[Future[None]] = deque()
        for name, block in blocks:
            batch = _batch(TABLES[name], block)
            rows[name] += len(batch)
            waiting[name].append(batch)
            if sum(map(len, waiting[name])) >= GROUP_ROWS:
                writing.append(thread.submit(_write, writers[name], waiting[name]))
                waiting[name] = []
                while len(writing) > GROUPS_WAITING:
                    writing.popleft().result()
        writing += [thread.submit(_write, writers[name], batches) for name, batches in waiting.items()]
        for group in writing:
            group.result()
    return rows


def schema(table: str) -> pa.Schema:
    """The columns of a table with their units and meanings."""
    fields = [
        pa.field(
            f.name,
            _TYPES[f.kind],
            metadata={"description": f.description, **({"unit": f.unit} if f.unit else {})},
        )
        for f in TABLES[table]
    ]
    about = {"benchlab_otel.table": table, "benchlab_otel.version": __version__}
    return pa.schema(fields, about)


def _writer(stack: ExitStack, folder: Path, table: str) -> ParquetWriter:
    out = stack.enter_context(replacing(folder / f"{table}.parquet"))
    repeating = [f.name for f in TABLES[table] if f.kind == "text"]
    return ParquetWriter(
        out, schema(table), compression="zstd", compression_level=1, use_dictionary=repeating
    )


def _write(writer: ParquetWriter, batches: list[pa.RecordBatch]) -> None:
    if batches:
        writer.write_table(pa.Table.from_batches(batches).combine_chunks(), GROUP_ROWS)


def _batch(fields: Sequence[Field], block: Block) -> pa.RecordBatch:
    arrays = [_array(field, column) for field, column in zip(fields, block.values(), strict=True)]
    return pa.RecordBatch.from_arrays(arrays, names=[field.name for field in fields])


def _array(field: Field, column: Column) -> pa.Array:
    if isinstance(column, Words):
        return pa.array(column.words, pa.string()).take(_present(column.codes))
    if field.kind == "id":
        offsets = np.arange(len(column) + 1, dtype=np.int32) * column.itemsize
        return pa.StringArray.from_buffers(len(column), pa.py_buffer(offsets), pa.py_buffer(column.tobytes()))
    if field.kind == "number":
        return pa.array(column, from_pandas=True)  # NaN is null
    if field.kind == "integer":
        return _present(column)
    return pa.array(column, _TYPES[field.kind])


def _present(values: NDArray[np.signedinteger]) -> pa.Array:
    """The values, null where negative; without a copy where none is."""
    absent = values < 0
    return pa.array(values, mask=absent) if absent.any() else pa.array(values)
