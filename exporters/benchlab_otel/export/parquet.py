"""Parquet: frames, stages, samples and energy, a file each in one folder (columns: `tables.TABLES`).

Each column carries `unit` and `description` in its field's metadata, and each file what it is in the
schema's (`benchlab_otel.*`). Times are timestamps in ns, UTC. Needs pyarrow, the extra `parquet`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pyarrow as pa
from pyarrow.parquet import ParquetWriter

from benchlab_otel import __version__
from benchlab_otel.export.output import replacing
from benchlab_otel.export.tables import TABLES, Block, Column, Field, Words

GROUP_ROWS = 1 << 17  # rows of a row group
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
    folder.mkdir(parents=True, exist_ok=True)
    rows = dict.fromkeys(TABLES, 0)
    waiting: dict[str, list[pa.RecordBatch]] = {name: [] for name in TABLES}
    with ExitStack() as stack:
        writers = {name: stack.enter_context(_writer(stack, folder, name)) for name in TABLES}
        for name, block in blocks:
            batch = _batch(TABLES[name], block)
            rows[name] += len(batch)
            waiting[name].append(batch)
            if sum(map(len, waiting[name])) >= GROUP_ROWS:
                _write(writers[name], waiting[name])
        for name, batches in waiting.items():
            _write(writers[name], batches)
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
        batches.clear()


def _batch(fields: Sequence[Field], block: Block) -> pa.RecordBatch:
    arrays = [_array(field, column) for field, column in zip(fields, block.values(), strict=True)]
    return pa.RecordBatch.from_arrays(arrays, names=[field.name for field in fields])


def _array(field: Field, column: Column) -> pa.Array:
    if isinstance(column, Words):
        codes = pa.array(column.codes, mask=column.codes < 0)
        return pa.array(column.words, pa.string()).take(codes)
    if field.kind == "id":
        offsets = np.arange(len(column) + 1, dtype=np.int32) * column.itemsize
        return pa.StringArray.from_buffers(len(column), pa.py_buffer(offsets), pa.py_buffer(column.tobytes()))
    if field.kind == "number":
        return pa.array(column, from_pandas=True)  # NaN is null
    if field.kind == "integer":
        return pa.array(column, mask=column < 0)
    return pa.array(column, _TYPES[field.kind])
