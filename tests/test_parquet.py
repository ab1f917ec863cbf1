"""Parquet and tidy CSV: what pandas, polars and DuckDB read is what the session says."""

from __future__ import annotations

import csv
from pathlib import Path

import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pyarrow.parquet as pq
import pytest

from benchlab_otel.archive.records import Fault
from benchlab_otel.archive.session import Session
from benchlab_otel.export.csv import write_csv
from benchlab_otel.export.parquet import write_parquet
from benchlab_otel.export.recording import Recording, load
from benchlab_otel.export.tables import TABLES, table_blocks
from sessions_of import recorded


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Session:
    return recorded(tmp_path_factory.mktemp("data"), "s1")


@pytest.fixture(scope="module")
def known(session: Session) -> Recording:
    return load(session, [])


@pytest.fixture(scope="module")
def folder(session: Session, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("tables")
    faults: list[Fault] = []
    write_parquet(out, table_blocks([session], faults))
    write_csv(out, table_blocks([session], faults))
    assert faults == []
    assert sorted(p.name for p in out.iterdir()) == sorted(
        f"{t}.{s}" for t in TABLES for s in ("csv", "parquet")
    )
    return out


def test_frames_and_stages(folder: Path, known: Recording) -> None:
    f = known.runs[0].frames
    frames, stages = (pd.read_parquet(folder / f"{name}.parquet") for name in ("frames", "stages"))
    assert (frames["begin"].dt.tz_convert(None).to_numpy("datetime64[ns]").view(np.int64) == f.begin).all()
    assert frames["duration_s"].to_numpy() == pytest.approx((f.end - f.begin) / 1e9, abs=1e-12)
    assert (frames["number"] == f.number).all()
    assert [int(t, 16) for t in frames["trace_id"][:5]] == [(int(a) << 64) + int(b) for a, b in f.trace[:5]]
    assert set(frames["outcome"]) == {"completed"}
    assert frames["simulated"].all()
    assert (stages["frame"] == f.stage_frame).all()
    assert list(stages["stage"]) == [f.stage_names[s] for s in f.stage]


def test_energy_is_what_the_report_says(folder: Path, known: Recording) -> None:
    """Frames by both methods, and each stage's joules; asked of DuckDB."""
    energies = {e.method: e for e in known.runs[0].energy}
    figures = known.attributions[0].pipelines[0]
    table = f"'{folder}/energy.parquet'"
    for method, energy in energies.items():
        rows = duckdb.sql(
            f"select frame, energy_j, uncertainty_j from {table} where stage is null and method = '{method}'"
        ).fetchnumpy()
        assert rows["energy_j"] == pytest.approx(energy.energy[rows["frame"]], rel=1e-9)
        assert rows["uncertainty_j"] == pytest.approx(energy.uncertainty[rows["frame"]], rel=1e-9)
        assert len(rows["frame"]) == np.isfinite(energy.energy).sum()
    f = known.runs[0].frames
    per_stage = dict(
        duckdb.sql(f"select stage, sum(energy_j) from {table} where stage is not null group by 1").fetchall()
    )
    for code, name in enumerate(f.stage_names):
        assert per_stage[name] == pytest.approx(np.nansum(figures.stage[f.stage == code]), rel=1e-9)
    ((shared,),) = duckdb.sql(f"select sum(shared_j) from {table}").fetchall()
    assert shared == pytest.approx(np.nansum(figures.shared), rel=1e-9)


def test_samples(folder: Path, known: Recording) -> None:
    """All readings, also those without a frame near; asked of polars."""
    readings = known.runs[0].readings[0]
    samples = pl.read_parquet(folder / "samples.parquet")
    assert (samples["time"].dt.epoch("ns").to_numpy() == readings.time).all()
    assert samples["power_w"].to_numpy() == pytest.approx(readings.value)
    assert samples["energy_j"].null_count() == len(samples)  # absent is null, never zero or NaN
    assert samples["simulated"].all()


def test_the_three_readers_agree_with_each_other(folder: Path) -> None:
    for name, fields in TABLES.items():
        path = folder / f"{name}.parquet"
        by_pandas, by_polars = pd.read_parquet(path), pl.read_parquet(path)
        by_duckdb = duckdb.sql(f"select * from '{path}'")
        columns = [field.name for field in fields]
        assert list(by_pandas.columns) == by_polars.columns == by_duckdb.columns == columns
        assert len(by_pandas) == len(by_polars) == len(by_duckdb) > 0


def test_columns_carry_units_and_meanings(folder: Path) -> None:
    for name, fields in TABLES.items():
        schema = pq.read_schema(folder / f"{name}.parquet")
        for field in fields:
            metadata = schema.field(field.name).metadata
            assert metadata[b"description"].decode() == field.description
            assert metadata.get(b"unit", b"").decode() == field.unit
            assert field.unit or not field.name.endswith(("_s", "_j", "_w"))
        assert schema.metadata[b"benchlab_otel.table"] == name.encode()


def test_the_documentation_has_every_column() -> None:
    page = (Path(__file__).parent.parent / "docs" / "exports.md").read_text()
    for name, fields in TABLES.items():
        section = page.split(f"### {name}\n")[1].split("\n#")[0]
        rows = [f"| `{f.name}` | {f.unit or '–'} | {f.description} |" for f in fields]
        assert [line for line in section.splitlines() if line.startswith("| `")] == rows


def test_csv_says_the_same(folder: Path) -> None:
    for name, fields in TABLES.items():
        with (folder / f"{name}.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        table = pl.read_parquet(folder / f"{name}.parquet")
        assert len(rows) == len(table)
        for field in fields:
            cells = [row[f"{field.name}_ns" if field.kind == "time" else field.name] for row in rows]
            values = table[field.name].dt.epoch("ns") if field.kind == "time" else table[field.name]
            for cell, value in zip(cells, values.to_list(), strict=True):
                if value is None:
                    assert cell == ""
                elif isinstance(value, bool):
                    assert cell == str(value).lower()
                elif isinstance(value, float):
                    assert float(cell) == pytest.approx(value, abs=1e-12)
                else:
                    assert cell == str(value)


def test_sessions_follow_each_other_with_keys_of_their_own(session: Session, tmp_path: Path) -> None:
    second = recorded(tmp_path / "data", "s2", seed=2, seconds=12)
    rows = write_parquet(tmp_path, table_blocks([session, second], []))
    frames = pl.read_parquet(tmp_path / "frames.parquet")
    assert frames["frame"].to_list() == list(range(rows["frames"]))
    assert frames["session"].unique(maintain_order=True).to_list() == ["s1", "s2"]
    last = pl.read_parquet(tmp_path / "stages.parquet")["frame"].max()
    assert last == rows["frames"] - 1


def test_an_unknown_pipeline_leaves_nothing_behind(session: Session, tmp_path: Path) -> None:
    for write in (write_parquet, write_csv):
        with pytest.raises(ValueError, match="no pipeline 'x' in it; there is cam0"):
            write(tmp_path, table_blocks([session], [], pipeline="x"))
    assert list(tmp_path.iterdir()) == []
