"""The hub behind real sockets: OpenTelemetry SDK exporters, plain HTTP and gRPC, good and hostile."""

from __future__ import annotations

import gzip
import http.client
import json
import socket
import threading
import time
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import zstandard
from google.rpc.status_pb2 import Status
from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter as GrpcMetrics
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as GrpcSpans
from opentelemetry.exporter.otlp.proto.http import Compression
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter as HttpMetrics
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as HttpSpans
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceResponse
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

from benchlab_otel.archive.reader import read_spans
from benchlab_otel.archive.records import read_records
from benchlab_otel.archive.session import METRICS, TRACES, Manifest, SessionWriter
from benchlab_otel.hub.grpc import METRICS_SERVICE, TRACE_SERVICE, GrpcServer
from benchlab_otel.hub.http import JSON, PROTOBUF, HttpServer, otlp_app
from benchlab_otel.hub.hub import Hub
from benchlab_otel.hub.metrics import MetricStore, metrics_page
from benchlab_otel.model import Spans
from benchlab_otel.otlp.encode import SpanBatch, encode_request
from benchlab_otel.timebase import Anchor

LIMIT = 1 << 20
BASE = Anchor("test", 0)


@dataclass
class Running:
    """A hub with both receivers on free ports, a real session on disk, and what the live view got."""

    path: Path
    hub: Hub
    archive: SessionWriter
    http: HttpServer
    grpc: GrpcServer
    live: list[Spans] = field(default_factory=list)

    def live_spans(self) -> int:
        return sum(len(spans) for spans in self.live)

    def archived(self) -> list[Spans]:
        self.archive.flush()
        faults: list[Any] = []
        blocks = list(read_spans([self.path / TRACES], faults))
        assert all("without a valid trace and span id" in fault.reason for fault in faults)
        return blocks

    def archived_spans(self) -> int:
        return sum(len(spans) for spans in self.archived())

    def page(self) -> str:
        self.hub.publish()
        return metrics_page(self.hub.store, "")[0].decode()

    def post(
        self, path: str, body: bytes, content_type: str = PROTOBUF, encoding: str | None = None
    ) -> tuple[int, str, bytes]:
        """(status, content type, body) of the answer."""
        headers = {"Content-Type": content_type} | ({"Content-Encoding": encoding} if encoding else {})
        connection = http.client.HTTPConnection("127.0.0.1", self.http.port, timeout=30)
        try:
            connection.request("POST", path, body, headers)
            answer = connection.getresponse()
            return answer.status, answer.getheader("content-type", ""), answer.read()
        finally:
            connection.close()

    def call(self, service: str, body: bytes, **options: Any) -> bytes:
        with grpc.insecure_channel(f"127.0.0.1:{self.grpc.port}") as channel:
            return bytes(channel.unary_unary(f"/{service}/Export")(body, timeout=30, **options))


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Running]:
    archive = SessionWriter(tmp_path / "session", Manifest("test", ""))
    live: list[Spans] = []
    identity = {"service.name": "hub", "service.instance.id": "1"}
    hub = Hub(archive, live.append, MetricStore(), identity, BASE)
    with (
        HttpServer(otlp_app(hub, LIMIT), "127.0.0.1", 0, "hub.http_port") as web,
        GrpcServer(hub, "127.0.0.1", 0, "hub.grpc_port", LIMIT) as rpc,
    ):
        yield Running(tmp_path / "session", hub, archive, web, rpc, live)
    hub.close()
    archive.close()


def request_of(n: int, first: int = 1, name: str = "decode") -> bytes:
    ids = np.arange(first, first + n, dtype=np.uint64)
    trace = np.stack([ids, ids], axis=1)
    times = np.full(n, 1_700_000_000_000_000_000, np.int64)
    batch = SpanBatch(name, trace, ids, times, times + 5, attributes={"pipeline.stage": name})
    return encode_request({"service.name": "app"}, [batch])


def eventually(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.01)


# -- real exporters ---------------------------------------------------------------------------


def span_exporter(running: Running, protocol: str, compressed: bool) -> GrpcSpans | HttpSpans:
    if protocol == "grpc":
        compression = grpc.Compression.Gzip if compressed else grpc.Compression.NoCompression
        return GrpcSpans(f"127.0.0.1:{running.grpc.port}", insecure=True, compression=compression)
    return HttpSpans(
        f"http://127.0.0.1:{running.http.port}/v1/traces",
        compression=Compression.Gzip if compressed else Compression.NoCompression,
    )


@pytest.mark.parametrize("protocol", ["grpc", "http"])
@pytest.mark.parametrize("compressed", [False, True])
def test_sdk_spans_arrive_live_and_archived(running: Running, protocol: str, compressed: bool) -> None:
    provider = TracerProvider(resource=Resource({"service.name": "camera", "service.instance.id": "7"}))
    provider.add_span_processor(BatchSpanProcessor(span_exporter(running, protocol, compressed)))
    tracer = provider.get_tracer("test")
    ids = set()
    for i in range(50):
        with tracer.start_as_current_span(
            "frame", attributes={"pipeline.name": "cam0", "frame.number": i}
        ) as s:
            ids.add(s.get_span_context().span_id)
    provider.shutdown()

    eventually(lambda: running.live_spans() == 50, "spans did not reach the live view")
    assert {int(i) for spans in running.live for i in spans.span} == ids
    (block,) = running.archived()
    assert {int(i) for i in block.span} == ids
    assert {block.names[i] for i in block.name} == {"frame"}
    assert sorted(block.attributes["frame.number"].values) == list(range(50))
    assert block.resources[0]["service.name"] == "camera"


@pytest.mark.parametrize("protocol", ["grpc", "http"])
@pytest.mark.parametrize("compressed", [False, True])
def test_sdk_metrics_arrive_on_the_page_and_archived(
    running: Running, protocol: str, compressed: bool
) -> None:
    exporter: GrpcMetrics | HttpMetrics
    if protocol == "grpc":
        compression = grpc.Compression.Gzip if compressed else grpc.Compression.NoCompression
        exporter = GrpcMetrics(f"127.0.0.1:{running.grpc.port}", insecure=True, compression=compression)
    else:
        exporter = HttpMetrics(
            f"http://127.0.0.1:{running.http.port}/v1/metrics",
            compression=Compression.Gzip if compressed else Compression.NoCompression,
        )
    reader = PeriodicExportingMetricReader(exporter, export_interval_millis=float("inf"))
    provider = MeterProvider([reader], Resource({"service.name": "app", "service.instance.id": "7"}))
    meter = provider.get_meter("test")
    meter.create_counter("jobs.done", "{job}").add(3, {"queue": "a"})
    meter.create_gauge("hw.power", "W").set(12.5)
    assert provider.force_flush()
    provider.shutdown()

    page = running.page()
    assert 'jobs_done_total{instance="7",job="app",queue="a"} 3.0' in page
    assert 'hw_power_watts{instance="7",job="app"} 12.5' in page
    running.archive.flush()
    assert len(list(read_records(running.path / METRICS, []))) == 1


# -- the protocol by hand ---------------------------------------------------------------------


def test_what_arrives_is_archived_byte_for_byte(running: Running) -> None:
    bodies = [request_of(3), request_of(2, first=10)]
    assert running.post("/v1/traces", bodies[0])[0] == 200
    assert ExportTraceServiceResponse.FromString(running.call(TRACE_SERVICE, bodies[1])) == (
        ExportTraceServiceResponse()
    )
    running.archive.flush()
    assert [record.body for record in read_records(running.path / TRACES, [])] == bodies


def test_json_request_and_answer(running: Running) -> None:
    span = {"traceId": "5B8EFFF798038103D269B633813FC60C", "spanId": "eee19b7ec3c1b174", "name": "f"}
    body = {"resourceSpans": [{"scopeSpans": [{"spans": [span, span | {"spanId": "00"}]}]}]}
    status, kind, answer = running.post("/v1/traces", json.dumps(body).encode(), f"{JSON}; charset=utf-8")
    assert (status, kind) == (200, JSON)
    assert json.loads(answer)["partialSuccess"]["rejectedSpans"] == "1"
    (block,) = running.archived()
    assert int(block.span[0]) == 0xEEE19B7EC3C1B174


@pytest.mark.parametrize(
    ("encoding", "pack"),
    [
        ("gzip", gzip.compress),
        ("gzip", lambda body: gzip.compress(body[:40]) + gzip.compress(body[40:])),
        ("deflate", zlib.compress),
        ("zstd", zstandard.ZstdCompressor(write_content_size=False).compress),
        ("identity", bytes),
    ],
)
def test_content_encodings(running: Running, encoding: str, pack: Callable[[bytes], bytes]) -> None:
    assert running.post("/v1/traces", pack(request_of(100)), encoding=encoding)[0] == 200
    assert running.archived_spans() == 100


@pytest.mark.parametrize(
    ("encoding", "body"),
    [
        (None, request_of(3)[:-5]),
        (None, b"\xff" * 100),
        (None, b"<html>hello</html>"),
        ("gzip", gzip.compress(request_of(3))[:-12]),
        ("gzip", b"no gzip at all"),
        ("zstd", zstandard.compress(request_of(3))[:-3]),
        ("zstd", b"no zstd at all"),
        ("gzip", b""),
        ("zstd", b""),
    ],
)
def test_garbled_http_request_is_refused_and_not_kept(
    running: Running, encoding: str | None, body: bytes
) -> None:
    status, kind, answer = running.post("/v1/traces", body, encoding=encoding)
    assert (status, kind) == (400, PROTOBUF)
    error = Status.FromString(answer)
    assert error.code == grpc.StatusCode.INVALID_ARGUMENT.value[0]
    assert error.message
    assert running.archived_spans() == 0
    assert 'hub_rejected_total{instance="1",job="hub",reason="garbled",signal="traces"} 1.0' in running.page()


def test_garbled_json_names_the_field(running: Running) -> None:
    body = b'{"resourceSpans":[{"scopeSpans":[{"spans":[{"traceId":"xyz"}]}]}]}'
    status, kind, answer = running.post("/v1/traces", body, JSON)
    assert (status, kind) == (400, JSON)
    assert "resourceSpans[0].scopeSpans[0].spans[0].traceId" in json.loads(answer)["message"]


@pytest.mark.parametrize(
    ("service", "body"),
    [(TRACE_SERVICE, request_of(3)[:-5]), (TRACE_SERVICE, b"\xff" * 9), (METRICS_SERVICE, b"\xff" * 9)],
)
def test_garbled_grpc_request_is_refused_and_not_kept(running: Running, service: str, body: bytes) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        running.call(service, body)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert running.archived_spans() == 0


def test_oversized_requests_are_refused(running: Running) -> None:
    body = request_of(LIMIT // 50)
    assert len(body) > LIMIT
    for encoding, packed in ((None, body), ("gzip", gzip.compress(body)), ("zstd", zstandard.compress(body))):
        status, _, answer = running.post("/v1/traces", packed, encoding=encoding)
        assert status == 413
        assert Status.FromString(answer).code == grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]
    for options in ({}, {"compression": grpc.Compression.Gzip}):
        with pytest.raises(grpc.RpcError) as caught:
            running.call(TRACE_SERVICE, body, **options)
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert running.archived_spans() == 0
    assert running.post("/v1/traces", request_of(5))[0] == 200


def bomb(wbits: int, megabytes: int = 512) -> bytes:
    packer = zlib.compressobj(1, wbits=wbits)
    zeros = bytes(1 << 20)
    return b"".join(packer.compress(zeros) for _ in range(megabytes)) + packer.flush()


def test_decompression_bombs_stop_at_the_limit(running: Running) -> None:
    zeros = zstandard.ZstdCompressor().compressobj()
    zstd = b"".join(zeros.compress(bytes(1 << 20)) for _ in range(512)) + zeros.flush()
    bombs = {"gzip": bomb(31, 128), "deflate": bomb(15, 128), "zstd": zstd}
    tracemalloc.start()
    try:
        for encoding, body in bombs.items():
            assert len(body) < LIMIT
            assert running.post("/v1/traces", body, encoding=encoding)[0] == 413
        assert tracemalloc.get_traced_memory()[1] < 64 << 20
    finally:
        tracemalloc.stop()


def test_wrong_content_types_paths_and_methods(running: Running) -> None:
    assert running.post("/v1/traces", b"x", "text/plain")[0] == 415
    assert running.post("/v1/traces", b"x", "")[0] == 415
    assert running.post("/v1/traces", b"x", encoding="br")[0] == 415
    assert running.post("/v1/logs", b"")[0] == 404
    assert running.post("/", b"")[0] == 404
    connection = http.client.HTTPConnection("127.0.0.1", running.http.port, timeout=30)
    connection.request("GET", "/v1/traces")
    assert connection.getresponse().status == 405
    connection.close()
    with pytest.raises(grpc.RpcError) as caught:
        running.call("opentelemetry.proto.collector.logs.v1.LogsService", b"")
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_spans_with_invalid_ids_are_a_partial_success(running: Running) -> None:
    request = ExportTraceServiceRequest.FromString(request_of(4))
    spans = request.resource_spans[0].scope_spans[0].spans
    spans[0].trace_id = bytes(16)
    spans[1].span_id = b"\x01\x02"
    body = request.SerializeToString()
    by_http = ExportTraceServiceResponse.FromString(running.post("/v1/traces", body)[2])
    by_grpc = ExportTraceServiceResponse.FromString(running.call(TRACE_SERVICE, body))
    for answer in (by_http, by_grpc):
        assert answer.partial_success.rejected_spans == 2
        assert "id" in answer.partial_success.error_message
    eventually(lambda: running.live_spans() == 4, "the valid spans did not arrive")


def test_metric_points_that_the_page_cannot_show_are_a_partial_success(running: Running) -> None:
    point = {"timeUnixNano": "1", "asInt": "1", "attributes": []}
    metrics = [
        {"name": "x", "gauge": {"dataPoints": [point]}},
        {"name": "x", "summary": {"dataPoints": [{}]}},
    ]
    body = json.dumps({"resourceMetrics": [{"scopeMetrics": [{"metrics": metrics}]}]}).encode()
    status, _, answer = running.post("/v1/metrics", body, JSON)
    assert status == 200
    assert json.loads(answer)["partialSuccess"]["rejectedDataPoints"] == "1"
    assert "type_conflict" in json.loads(answer)["partialSuccess"]["errorMessage"]


def test_empty_requests_are_fine(running: Running) -> None:
    assert running.post("/v1/traces", b"")[0] == 200
    assert running.post("/v1/traces", b"{}", JSON)[2] == b"{}"
    assert ExportMetricsServiceResponse.FromString(running.call(METRICS_SERVICE, b"")) == (
        ExportMetricsServiceResponse()
    )


def test_many_clients_at_once(running: Running) -> None:
    def send(client: int) -> None:
        for i in range(10):
            body = request_of(20, first=1 + 1000 * client + 20 * i)
            if client % 2:
                assert running.post("/v1/traces", body)[0] == 200
            else:
                running.call(TRACE_SERVICE, body)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(send, range(8)))
    eventually(lambda: running.live_spans() == 1600, "not all spans reached the live view")
    assert len({int(i) for spans in running.archived() for i in spans.span}) == 1600
    assert 'hub_spans_total{instance="1",job="hub"} 1600.0' in running.page()


# -- life cycle -------------------------------------------------------------------------------


def test_a_taken_port_is_named_with_its_holder_and_setting(running: Running) -> None:
    for taken in (running.http.port, running.grpc.port):
        with pytest.raises(OSError, match=rf"127.0.0.1:{taken} is in use by .*hub\.http_port"):
            HttpServer(otlp_app(running.hub), "127.0.0.1", taken, "hub.http_port")
        with pytest.raises(OSError, match=rf"127.0.0.1:{taken} is in use by .*hub\.grpc_port"):
            GrpcServer(running.hub, "127.0.0.1", taken, "hub.grpc_port")


def test_shutdown_answers_what_is_in_flight(running: Running) -> None:
    body = request_of(10)
    head = "POST /v1/traces HTTP/1.1\r\nHost: x\r\n"
    head += f"Content-Type: {PROTOBUF}\r\nContent-Length: {len(body)}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", running.http.port), timeout=30) as client:
        client.sendall(head.encode() + body[:100])
        # an answer to a second client shows that the server has read the first one's head
        assert running.post("/v1/traces", request_of(1, first=100))[0] == 200
        closing = threading.Thread(target=running.http.close)
        closing.start()
        client.sendall(body[100:])
        assert client.recv(100).startswith(b"HTTP/1.1 200")
        closing.join(30)
        assert not closing.is_alive()
    assert running.archived_spans() == 11
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.1", running.http.port), timeout=30)


def test_a_slow_aligner_costs_live_spans_but_no_archived_ones(tmp_path: Path) -> None:
    archive = SessionWriter(tmp_path / "session", Manifest("test", ""))
    release, live = threading.Event(), list[int]()

    def slow(spans: Spans) -> None:
        release.wait(30)
        live.append(len(spans))

    store = MetricStore()
    hub = Hub(archive, slow, store, {"service.name": "hub"}, BASE, queued_spans=25)
    for i in range(10):
        hub.traces(request_of(10, first=1 + 10 * i))
    release.set()
    hub.close()
    archive.close()
    hub.publish()
    page = metrics_page(store, "")[0].decode()
    assert sum(live) == 20
    assert 'hub_live_skipped_total{job="hub"} 80.0' in page
    faults: list[Any] = []
    assert sum(len(spans) for spans in read_spans([tmp_path / "session" / TRACES], faults)) == 100


def test_garbled_bytes_from_a_source_in_the_process_do_not_raise(
    running: Running, caplog: pytest.LogCaptureFixture
) -> None:
    running.hub.traces(b"\xff" * 9)
    running.hub.metrics(b"\xff" * 9)
    assert [record.levelname for record in caplog.records] == ["ERROR", "ERROR"]
    assert running.archived_spans() == 0
