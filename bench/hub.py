"""Hub ingest of spans to arrays, with archive, beside a receiver that loops over protobuf spans.

    python bench/hub.py

The same requests (a frame and three stages, as the probe encodes them) go to our hub in process,
over gRPC and over HTTP on localhost, and to what one would write with the protobuf library: parse,
then a dict for each span. All take turns in the same run. Prints min, median and max spans/s over
the repeats, and the ratio of the medians. Sender and receiver share the machine's cores.
"""

from __future__ import annotations

import http.client
import tempfile
from collections.abc import Callable
from pathlib import Path

import grpc
import numpy as np
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from benchlab_otel.archive.session import Manifest, SessionWriter
from benchlab_otel.hub.grpc import TRACE_SERVICE, GrpcServer
from benchlab_otel.hub.http import PROTOBUF, HttpServer, otlp_app
from benchlab_otel.hub.hub import Hub
from benchlab_otel.hub.metrics import MetricStore
from benchlab_otel.model import Spans
from benchlab_otel.otlp.encode import SpanBatch, encode_request
from benchlab_otel.timebase import anchor
from turns import rates, show

SPANS, REPEATS = 400_000, 7
REQUEST_SPANS = (512, 8_000)  # what the SDK's BatchSpanProcessor sends, and what our probe sends
STAGES = ("decode", "infer", "encode")


def request(frames: int, seed: int) -> bytes:
    """`frames` frames of a pipeline with three stages each."""
    rng = np.random.default_rng(seed)
    trace = rng.integers(1, 2**63, (frames, 2), dtype=np.uint64)
    frame = rng.integers(1, 2**63, frames, dtype=np.uint64)
    begin = 1_795_000_000_000_000_000 + np.arange(frames, dtype=np.int64) * 16_666_667
    numbers = np.arange(frames, dtype=np.int64)
    batches = [
        SpanBatch(
            "frame",
            trace,
            frame,
            begin,
            begin + 12_000_000,
            attributes={
                "pipeline.name": "cam0", "frame.number": numbers, "frame.outcome": "completed",
            },
        )
    ]  # fmt: skip
    for i, stage in enumerate(STAGES):
        ids = rng.integers(1, 2**63, frames, dtype=np.uint64)
        at = begin + i * 4_000_000
        batches.append(
            SpanBatch(stage, trace, ids, at, at + 4_000_000, frame, attributes={"pipeline.stage": stage})
        )
    return encode_request({"service.name": "bench", "host.name": "bench"}, batches)


def parse_and_loop(bodies: list[bytes]) -> int:
    """The plain way: protobuf parse, then a Python dict for each span."""
    total = 0
    for body in bodies:
        spans = []
        for resource_spans in ExportTraceServiceRequest.FromString(body).resource_spans:
            for scope_spans in resource_spans.scope_spans:
                for span in scope_spans.spans:
                    attributes = {}
                    for item in span.attributes:
                        attributes[item.key] = getattr(item.value, str(item.value.WhichOneof("value")))
                    spans.append(
                        {
                            "trace_id": span.trace_id,
                            "span_id": span.span_id,
                            "parent_id": span.parent_span_id,
                            "name": span.name,
                            "start": span.start_time_unix_nano,
                            "end": span.end_time_unix_nano,
                            "attributes": attributes,
                        }
                    )
        total += len(spans)
    return total


def main() -> None:
    """Runs all ways in turns for both request sizes."""
    for size in REQUEST_SPANS:
        bodies = [request(size // 4, seed) for seed in range(SPANS // size)]
        spans = len(bodies) * size
        print(f"{len(bodies)} requests of {size} spans ({len(bodies[0]) / 1024:.0f} KiB)")
        with tempfile.TemporaryDirectory() as folder:
            compare(bodies, spans, Path(folder))


def compare(bodies: list[bytes], spans: int, folder: Path) -> None:
    """Prints spans/s of each way for these requests."""
    archive = SessionWriter(folder / "session", Manifest("bench", ""))
    seen = [0]

    def count(block: Spans) -> None:
        seen[0] += len(block)

    hub = Hub(archive, count, MetricStore(), {"service.name": "hub"}, anchor())
    app = otlp_app(hub)
    with (
        HttpServer(app, "127.0.0.1", 0, "bench") as web,
        GrpcServer(hub, "127.0.0.1", 0, "bench") as rpc,
        grpc.insecure_channel(f"127.0.0.1:{rpc.port}") as channel,
    ):
        connection = http.client.HTTPConnection("127.0.0.1", web.port)
        export = channel.unary_unary(f"/{TRACE_SERVICE}/Export")

        def in_process() -> None:
            for body in bodies:
                hub.traces(body)
            archive.flush()  # what is archived is written within the time

        def over_grpc() -> None:
            for body in bodies:
                export(body, timeout=60)
            archive.flush()

        def over_http() -> None:
            for body in bodies:
                connection.request("POST", "/v1/traces", body, {"Content-Type": PROTOBUF})
                answer = connection.getresponse()
                answer.read()
                assert answer.status == 200
            archive.flush()

        ways: dict[str, Callable[[], object]] = {
            "parse and loop": lambda: parse_and_loop(bodies),
            "hub in process": in_process,
            "hub over gRPC": over_grpc,
            "hub over HTTP": over_http,
        }
        found = rates(ways, spans, REPEATS)
        connection.close()
    hub.close()
    archive.close()
    assert seen[0] == 3 * (REPEATS + 1) * spans, "the live view lost spans"
    show(found, plain="parse and loop")


if __name__ == "__main__":
    main()
