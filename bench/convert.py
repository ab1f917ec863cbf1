"""Conversions of a long session, beside what a user would write with pandas, DuckDB and orjson.

    python bench/convert.py [frames]

1 M frames of three stages at 60 fps (4.6 hours) and a meter at 20 Hz. Every line is a process of its own:
how long its reading took (decoding the archive, joining frames with readings, conditioning; orjson:
parsing), its writing (making the file from that) and the whole process, interpreter and imports included,
and its peak resident memory. Those "recorded" take the joules from the energy spans, which the aligner
wrote before, instead of aligning again. Goals: 5 s for the whole of these, 5 s for the writing of the
others, 500 MiB for all. Tables are read and written at the same time, so reading is there what writing had
to wait for. Figures are of one run each, and of a machine that should have nothing else to do.

The usual way starts from a JSON-lines export of spans, one object a span, as a user has it from a
logging backend; it knows no joules, and its files have frames and stages only.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import orjson

from benchlab_otel.archive.session import ENERGY, Session, open_session
from benchlab_otel.cli.memory import keep_freed_memory
from benchlab_otel.export.capframex import write_json
from benchlab_otel.export.csv import write_csv
from benchlab_otel.export.perfetto import write_perfetto
from benchlab_otel.export.recorded import load_recorded_runs
from benchlab_otel.export.recording import load_conditioned_runs
from benchlab_otel.export.stream import stream
from benchlab_otel.export.tables import table_blocks
from memory import FRAMES, write

GOAL_S, GOAL_MIB = 5.0, 500
RECORDED = ", recorded"  # ends the names of the ways that do not align again
WITH_GOAL = ("CapFrameX JSON", "Parquet", f"CapFrameX JSON{RECORDED}", f"Parquet{RECORDED}")


class Timed:
    """An iterator that knows how long its items took to come."""

    def __init__(self, items: Iterable[Any]) -> None:
        self.items, self.seconds = iter(items), 0.0

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        begin = time.perf_counter()
        try:
            return next(self.items)
        finally:
            self.seconds += time.perf_counter() - begin


def capframex(session: Session, _: Path, out: Path) -> float:
    """Returns the seconds that reading took, as all of these."""
    begin = time.perf_counter()
    runs = (load_recorded_runs if session.recorded else load_conditioned_runs)(session, [])
    read = time.perf_counter() - begin
    write_json(out / "a.json", runs)
    return read


def parquet(session: Session, _: Path, out: Path) -> float:
    from benchlab_otel.export.parquet import write_parquet  # imports pyarrow, which is large

    blocks = Timed(table_blocks([session], []))
    write_parquet(out / "parquet", blocks)
    return blocks.seconds


def csv(session: Session, _: Path, out: Path) -> float:
    blocks = Timed(table_blocks([session], []))
    write_csv(out / "csv", blocks)
    return blocks.seconds


def perfetto(session: Session, _: Path, out: Path) -> float:
    parts = Timed(stream(session, []))
    write_perfetto(out / "a.pftrace", parts)
    return parts.seconds


def by_orjson(_: Session, spans: Path, out: Path) -> float:
    """Dicts in, CapFrameX's main columns out."""
    begin = time.perf_counter()
    with spans.open("rb") as file:
        frames = [s for s in map(orjson.loads, file) if "stage" not in s]
    read = time.perf_counter() - begin
    ends = [f["end"] for f in frames]
    columns = {
        "TimeInSeconds": [(e - ends[0]) / 1e9 for e in ends[1:]],
        "MsBetweenPresents": [(b - a) / 1e6 for a, b in pairwise(ends)],
        "PcLatency": [(f["end"] - f["begin"]) / 1e6 for f in frames[1:]],
        "Dropped": [False] * (len(frames) - 1),
    }
    (out / "orjson.json").write_bytes(orjson.dumps({"Runs": [{"CaptureData": columns}]}))
    return read


def by_pandas(_: Session, spans: Path, out: Path) -> float:
    """The same spans to Parquet with pandas."""
    import pandas as pd

    begin = time.perf_counter()
    table = pd.read_json(spans, lines=True, dtype=False)
    read = time.perf_counter() - begin
    table["duration_s"] = (table["end"] - table["begin"]) / 1e9
    table[table["stage"].isna()].to_parquet(out / "frames.pandas.parquet")
    table[table["stage"].notna()].to_parquet(out / "stages.pandas.parquet")
    return read


def by_duckdb(_: Session, spans: Path, out: Path) -> float:
    """And with DuckDB, which reads and writes in one go."""
    import duckdb

    for name, kept in (("frames", "stage is null"), ("stages", "stage is not null")):
        duckdb.sql(
            f'copy (select *, ("end" - "begin") / 1e9 as duration_s from read_json(\'{spans}\','
            f" format = 'newline_delimited') where {kept}) to '{out}/{name}.duckdb.parquet'"
        )
    return 0.0


WAYS: dict[str, Callable[[Session, Path, Path], float]] = {
    "CapFrameX JSON": capframex,
    f"CapFrameX JSON{RECORDED}": capframex,
    "  orjson, dicts": by_orjson,
    "Parquet": parquet,
    f"Parquet{RECORDED}": parquet,
    "  pandas": by_pandas,
    "  DuckDB": by_duckdb,
    "CSV": csv,
    "Perfetto": perfetto,
}


def as_json_lines(session: Session, path: Path) -> None:
    """What a user would have: an object for each span."""
    with path.open("wb") as out:
        for part in stream(session, []):
            if not hasattr(part, "frames"):
                continue
            f = part.frames
            traces = [f"{a:016x}{b:016x}" for a, b in f.trace.tolist()]
            for trace, begin, end in zip(traces, f.begin.tolist(), f.end.tolist(), strict=True):
                out.write(orjson.dumps({"trace": trace, "begin": begin, "end": end}) + b"\n")
            rows = zip(
                f.stage_frame.tolist(),
                f.stage.tolist(),
                f.stage_begin.tolist(),
                f.stage_end.tolist(),
                strict=True,
            )
            for frame, stage, begin, end in rows:
                about = {"trace": traces[frame], "stage": f.stage_names[stage], "begin": begin, "end": end}
                out.write(orjson.dumps(about) + b"\n")


def one(name: str, session: str, spans: str, out: str) -> None:
    """Converts one way, in this process, and prints the figures as JSON."""
    keep_freed_memory()  # as the command does
    found = replace(open_session(session, Path(session).parent), recorded=name.endswith(RECORDED))
    begin = time.perf_counter()
    read = WAYS[name](found, Path(spans), Path(out))
    total = time.perf_counter() - begin
    print(json.dumps({"read": read, "total": total, "peak": peak_mib()}))


def peak_mib() -> float:
    """Of this program alone: ru_maxrss would begin with what its parent had."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def main() -> None:
    """Writes the session, then converts it every way."""
    if len(sys.argv) > 2:
        one(*sys.argv[1:])
        return
    frames = int(sys.argv[1]) if len(sys.argv) > 1 else FRAMES
    with tempfile.TemporaryDirectory() as folder:
        session, spans = write(Path(folder), frames), Path(folder) / "spans.jsonl"
        aligner = "from benchlab_otel.cli import main; main()"
        told = [sys.executable, "-c", aligner, "align", str(session), "--out", str(session / ENERGY)]
        subprocess.run(told, check=True, stdout=subprocess.DEVNULL)
        as_json_lines(open_session(str(session), Path(folder)), spans)
        print(f"{frames:,} frames of 3 stages, a meter at 20 Hz\n")
        print(f"{'':24} {'reading':>9} {'writing':>9} {'whole':>9} {'memory':>9}")
        for name in WAYS:
            arguments = [sys.executable, __file__, name, str(session), str(spans), folder]
            begin = time.perf_counter()
            told = subprocess.run(arguments, check=True, capture_output=True, text=True).stdout
            show(name, json.loads(told), time.perf_counter() - begin)


def show(name: str, r: dict[str, float], whole: float) -> None:
    """Prints a line: what one way took, and whether that is within its goals."""
    writing = r["total"] - r["read"]
    kept = (whole if name.endswith(RECORDED) else writing) <= GOAL_S and r["peak"] <= GOAL_MIB
    verdict = "" if name not in WITH_GOAL else "  goal kept" if kept else "  goal missed"
    reading = f"{r['read']:7.1f} s" if r["read"] else " " * 9
    print(f"{name:24} {reading} {writing:7.1f} s {whole:7.1f} s {r['peak']:5.0f} MiB{verdict}", flush=True)


if __name__ == "__main__":
    main()
