"""Spans to arrays: `decode_traces` beside a loop over the protobuf library's spans, and its bare parse.

    python bench/decode.py

Three kinds of request: frames as our probe sends them, spans as the OpenTelemetry SDK sends them
(texts and numbers of many lengths), and samples of a meter with many values. All take turns in the
same run. Prints min, median and max spans/s over the repeats, and the ratio of the medians.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from benchlab_otel.otlp.decode import decode_traces
from benchlab_otel.otlp.encode import SpanBatch, encode_request
from turns import rates, show

SPANS, REPEATS = 40_000, 9
START = 1_795_000_000_000_000_000


def frames() -> bytes:
    """Frames with three stages each."""
    n = SPANS // 4
    rng = np.random.default_rng(1)
    ids = rng.integers(1, 1 << 63, (n, 6), dtype=np.uint64)
    begin = START + np.arange(n) * 16_666_667
    about = {"pipeline.name": "cam0", "frame.number": np.arange(n), "frame.outcome": "completed"}
    batches = [SpanBatch("frame", ids[:, :2], ids[:, 2], begin, begin + 12_000_000, attributes=about)]
    for k, name in enumerate(("decode", "infer", "display")):
        stage = {"pipeline.stage": name}
        at = begin + k * 4_000_000
        batches.append(
            SpanBatch(name, ids[:, :2], ids[:, 3 + k], at, at + 4_000_000, ids[:, 2], attributes=stage)
        )
    return encode_request({"service.name": "bench"}, batches)


def samples() -> bytes:
    """Readings of a meter with 24 values each."""
    rng = np.random.default_rng(2)
    ids = rng.integers(1, 1 << 63, (SPANS, 3), dtype=np.uint64)
    times = START + np.arange(SPANS) * 50_000_000
    values: dict[str, Any] = {f"hw.power.rail.R{k}": rng.normal(50, 5, SPANS) for k in range(24)}
    batch = SpanBatch("sample", ids[:, :2], ids[:, 2], times, times + 500_000, attributes=values)
    return encode_request({"service.name": "meter"}, [batch])


def mixed() -> bytes:
    """What an instrumented web service sends: paths and numbers of many lengths, some errors and events."""
    chance = random.Random(3)
    request = ExportTraceServiceRequest()
    scope = request.resource_spans.add().scope_spans.add()
    for i in range(SPANS):
        path = "/".join(["", *("x" * chance.randrange(1, 12) for _ in range(chance.randrange(1, 4)))])
        span = scope.spans.add(
            trace_id=chance.randbytes(16),
            span_id=chance.randbytes(8),
            parent_span_id=chance.randbytes(8) if i % 3 else b"",
            name=f"GET {path}" if i % 2 else "query",
            kind=chance.choice([1, 2, 3]),
            start_time_unix_nano=START + i * 1000,
            end_time_unix_nano=START + i * 1000 + chance.randrange(10**6),
        )
        for key, value in (("http.route", path), ("http.request.method", chance.choice(["GET", "POST"]))):
            span.attributes.add(key=key).value.string_value = value
        span.attributes.add(key="http.response.status_code").value.int_value = chance.choice([200, 404])
        span.attributes.add(key="size").value.int_value = chance.randrange(100_000)
        if chance.random() < 0.05:
            span.status.code = 2
            span.events.add(name="exception", time_unix_nano=START)
    return request.SerializeToString()


def loop(body: bytes) -> list[dict[str, Any]]:
    """The plain way: protobuf parse, then a dict for each span."""
    return [
        {
            "trace": span.trace_id,
            "span": span.span_id,
            "parent": span.parent_span_id,
            "name": span.name,
            "start": span.start_time_unix_nano,
            "end": span.end_time_unix_nano,
            "attributes": {
                a.key: getattr(a.value, str(a.value.WhichOneof("value"))) for a in span.attributes
            },
        }
        for group in ExportTraceServiceRequest.FromString(body).resource_spans
        for scope in group.scope_spans
        for span in scope.spans
    ]


WAYS: dict[str, Callable[[bytes], object]] = {
    "protobuf and loop": loop,
    "protobuf parse only": ExportTraceServiceRequest.FromString,
    "decode_traces": decode_traces,
}


def main() -> None:
    """Runs all ways in turns for each kind of request."""
    for kind in (frames, samples, mixed):
        body = kind()
        print(f"{kind.__name__}: {SPANS:,} spans in {len(body) / (1 << 20):.1f} MiB")
        ways = {name: partial(way, body) for name, way in WAYS.items()}
        show(rates(ways, SPANS, REPEATS), plain="protobuf and loop")


if __name__ == "__main__":
    main()
