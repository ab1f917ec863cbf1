"""Archive files to arrays: `read_spans` beside what one would write, for each format on disk.

    python bench/archive.py

200,000 spans of frames with three stages, as the Collector's file exporter writes them (batches of 8,000),
and as our own sessions are (requests of 48). Goals: 800 k spans/s of protobuf, 1 M of JSON read narrow
(ids, names and times only). The usual ways give less: orjson and a dict a span (ids, name, times and
attributes, the texts as they stand), and DuckDB or polars reading the JSON lines where these are
installed. All ways take turns in the same run; prints min, median and max over the repeats.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import zstandard
from google.protobuf.json_format import MessageToDict
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from benchlab_otel.archive.reader import read_spans
from benchlab_otel.archive.records import compressor, frame
from benchlab_otel.otlp.encode import SpanBatch, encode_request
from turns import rates, show

FRAMES, REPEATS = 50_000, 5
SPANS = 4 * FRAMES
START = 1_795_000_000_000_000_000


def requests(frames_each: int) -> list[bytes]:
    """Frames with three stages each, in requests of so many frames."""
    rng = np.random.default_rng(1)
    out = []
    for first in range(0, FRAMES, frames_each):
        number = np.arange(first, min(first + frames_each, FRAMES))
        ids = rng.integers(1, 1 << 63, (len(number), 6), dtype=np.uint64)
        begin = START + number * 16_666_667
        about = {"pipeline.name": "cam0", "frame.number": number, "frame.outcome": "completed"}
        batches = [SpanBatch("frame", ids[:, :2], ids[:, 2], begin, begin + 12_000_000, attributes=about)]
        for k, name in enumerate(("decode", "infer", "display")):
            at, stage = begin + k * 4_000_000, {"pipeline.stage": name}
            batches.append(
                SpanBatch(name, ids[:, :2], ids[:, 3 + k], at, at + 4_000_000, ids[:, 2], attributes=stage)
            )
        out.append(encode_request({"service.name": "bench"}, batches))
    return out


def as_json(body: bytes) -> bytes:
    """As the Collector writes it: ids in hexadecimal."""
    tree = MessageToDict(ExportTraceServiceRequest.FromString(body), use_integers_for_enums=True)
    message = ExportTraceServiceRequest.FromString(body)
    for group, source in zip(tree["resourceSpans"], message.resource_spans, strict=True):
        for scope, from_ in zip(group["scopeSpans"], source.scope_spans, strict=True):
            for span, original in zip(scope["spans"], from_.spans, strict=True):
                span["traceId"], span["spanId"] = original.trace_id.hex(), original.span_id.hex()
                if original.parent_span_id:
                    span["parentSpanId"] = original.parent_span_id.hex()
    return json.dumps(tree, separators=(",", ":")).encode()


def ours(path: Path, **how: Any) -> int:
    return sum(len(spans) for spans in read_spans([path], [], as_arrived=True, **how))


def dicts(path: Path) -> int:
    """A dict a span, each handed on and forgotten."""
    count = 0
    with path.open("rb") as file:
        for line in file:
            for group in orjson.loads(line)["resourceSpans"]:
                for scope in group["scopeSpans"]:
                    for span in scope["spans"]:
                        row = {
                            "trace": span["traceId"],
                            "span": span["spanId"],
                            "parent": span.get("parentSpanId", ""),
                            "name": span["name"],
                            "start": int(span["startTimeUnixNano"]),
                            "end": int(span["endTimeUnixNano"]),
                            **{a["key"]: next(iter(a["value"].values())) for a in span.get("attributes", ())},
                        }
                        count += bool(row)
    return count


def protobuf_loop(path: Path) -> int:
    """The protobuf library, four fields of each span."""
    count = 0
    unpack = zstandard.ZstdDecompressor()
    data = path.read_bytes()
    at = 0
    while at < len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        message = ExportTraceServiceRequest.FromString(unpack.decompress(data[at + 4 : at + 4 + size]))
        at += 4 + size
        for group in message.resource_spans:
            for scope in group.scope_spans:
                for s in scope.spans:
                    count += bool((s.trace_id, s.span_id, s.start_time_unix_nano, s.end_time_unix_nano))
    return count


UNNEST = (
    "SELECT count(s.traceId), sum(s.endTimeUnixNano::BIGINT - s.startTimeUnixNano::BIGINT) FROM (SELECT"
    " unnest(c.spans) AS s FROM (SELECT unnest(r.scopeSpans) AS c FROM (SELECT unnest(resourceSpans) AS r"
    " FROM read_json('{}', format='newline_delimited', maximum_object_size=100000000))))"
)


def duckdb_query(path: Path) -> int:
    """SQL over the file."""
    import duckdb

    duckdb.execute("SET threads = 1")
    return int(duckdb.execute(UNNEST.format(path)).fetchone()[0])


def polars_frame(path: Path) -> int:
    """A data frame with a row a span."""
    import polars

    found = polars.read_ndjson(path).explode("resourceSpans").unnest("resourceSpans").explode("scopeSpans")
    return len(found.unnest("scopeSpans").explode("spans").select("spans").unnest("spans"))


def main() -> None:
    """Writes the files, then runs all ways over them in turns."""
    with tempfile.TemporaryDirectory() as name:
        large, small = requests(2000), requests(12)
        pack = compressor()
        files = {
            "collector.otlp": b"".join(frame(body, pack) for body in large),
            "session.otlp": b"".join(frame(body, pack) for body in small),
            "collector.jsonl": b"".join(as_json(body) + b"\n" for body in large),
        }
        folder = Path(name)
        for file, content in files.items():
            (folder / file).write_bytes(content)
        proto, session, lines = (folder / file for file in files)
        ways: dict[str, Callable[[], int]] = {
            "proto, zstd: protobuf and loop": lambda: protobuf_loop(proto),
            "proto, zstd: read_spans": lambda: ours(proto),
            "proto, zstd, requests of 48: read_spans": lambda: ours(session),
            "JSON: orjson and dicts": lambda: dicts(lines),
            "JSON: read_spans": lambda: ours(lines),
            "JSON: read_spans, narrow": lambda: ours(lines, attributes=False),
        }
        extras = {"duckdb": lambda: duckdb_query(lines), "polars": lambda: polars_frame(lines)}
        ways |= {f"JSON: {tool}": way for tool, way in extras.items() if find_spec(tool)}
        compare(ways)


def compare(ways: dict[str, Callable[[], int]]) -> None:
    """Runs all in turns and prints how they did."""
    for name, way in ways.items():
        assert (count := way()) == SPANS, (name, count)
    show(rates(ways, SPANS, REPEATS, time.process_time), plain="JSON: orjson and dicts")


if __name__ == "__main__":
    main()
