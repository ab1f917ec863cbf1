"""The OTLP client against servers that answer as real ones do: well, badly, late, or not at all."""

from __future__ import annotations

import gzip
import logging
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

from benchlab_otel.otlp.client import JOINED_BYTES, OtlpClient, Target, target
from benchlab_otel.otlp.encode import SpanBatch, encode_request
from conftest import free_ports, wait_for

NO_SETTINGS: dict[str, str] = {}


def request(name: str, spans: int = 1) -> bytes:
    ids = np.arange(1, spans + 1, dtype=np.uint64)
    times = np.ones(spans, np.int64)
    return encode_request({}, [SpanBatch(name, np.ones((spans, 2), np.uint64), ids, times, times)])


@dataclass
class Server:
    """What arrived, and the (status, headers, body) to answer with next; 200 when there is none left."""

    bodies: list[bytes] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    answers: list[tuple[int, dict[str, str], bytes]] = field(default_factory=list)
    refuses: bytes | None = None  # what has this in it
    answering: threading.Event = field(default_factory=threading.Event)  # it waits for that
    endpoint: str = ""

    def received(self, path: str = "/v1/traces") -> bytes:
        """All bodies of a path: how requests are joined depends on when they came."""
        return b"".join(body for body, at in zip(self.bodies, self.paths, strict=True) if at == path)


def handler_of(server: Server) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            status, headers, content = server.answers.pop(0) if server.answers else (200, {}, b"")
            if server.refuses and server.refuses in body:
                status, content = 400, b"\x08\x03\x12\x0ctrace id bad"  # google.rpc.Status
            if status == 200:
                server.bodies.append(body)
                server.paths.append(self.path)
                server.headers.append({k.lower(): v for k, v in self.headers.items()})
            server.answering.wait()
            self.send_response(status)
            for key, value in {"content-length": str(len(content)), **headers}.items():
                self.send_header(key, value)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    return Handler


@contextmanager
def serving(port: int = 0) -> Iterator[Server]:
    server = Server()
    server.answering.set()
    with ThreadingHTTPServer(("127.0.0.1", port), handler_of(server)) as http:
        server.endpoint = f"http://127.0.0.1:{http.server_port}"
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield server
        http.shutdown()
        thread.join()


def test_both_signals_in_order_over_one_connection() -> None:
    with serving() as server:
        client = OtlpClient(server.endpoint, headers={"x-team": "video"}, environ=NO_SETTINGS)
        for number in range(20):
            client.traces(request(f"span-{number}"))
        client.metrics(b"")
        client.close()
        assert server.received() == b"".join(request(f"span-{n}") for n in range(20))
        assert server.received("/v1/metrics") == b""
        assert set(server.paths) == {"/v1/traces", "/v1/metrics"}
        assert {h["content-type"] for h in server.headers} == {"application/x-protobuf"}
        assert {h["x-team"] for h in server.headers} == {"video"}
        assert client.sent == 21
        assert not client.lost


def test_what_comes_together_goes_together_within_bounds() -> None:
    meters = [request(f"meter-{n}") for n in range(10)]
    large = [request(f"frame-{n}", JOINED_BYTES // 100) for n in range(3)]
    assert JOINED_BYTES // 2 < len(large[0]) < JOINED_BYTES
    with serving() as server:
        client = OtlpClient(server.endpoint, environ=NO_SETTINGS)
        server.answering.clear()
        client.traces(request("first"))
        wait_for(lambda: server.bodies)
        for body in (*meters, *large):
            client.traces(body)
            client.metrics(b"")
        server.answering.set()
        client.close()
        assert server.received() == b"".join((request("first"), *meters, *large))
        assert server.paths.count("/v1/metrics") == 1
        names = [
            [
                r.scope_spans[0].spans[0].name
                for r in ExportTraceServiceRequest.FromString(body).resource_spans
            ]
            for body, path in zip(server.bodies, server.paths, strict=True)
            if path == "/v1/traces"
        ]
        together = [f"meter-{n}" for n in range(10)] + ["frame-0"]
        assert names == [["first"], together, ["frame-1"], ["frame-2"]]


def test_gzip() -> None:
    with serving() as server:
        client = OtlpClient(server.endpoint, compression="gzip", environ=NO_SETTINGS)
        client.traces(request("frame", 100))
        client.close()
        assert server.headers[0]["content-encoding"] == "gzip"
        assert gzip.decompress(server.bodies[0]) == request("frame", 100)


@pytest.mark.parametrize("status", [429, 502, 503, 504])
def test_a_busy_server_is_asked_again(status: int) -> None:
    with serving() as server:
        server.answers = [(status, {"retry-after": "0"}, b""), (status, {}, b"")]
        client = OtlpClient(server.endpoint, environ=NO_SETTINGS)
        client.traces(request("a"))
        client.traces(request("b"))
        wait_for(lambda: client.sent == 2)
        client.close()
        assert server.received() == request("a") + request("b")
        assert not client.lost


def test_a_refused_request_is_counted_and_told_once(caplog: pytest.LogCaptureFixture) -> None:
    with serving() as server, caplog.at_level(logging.WARNING):
        server.refuses = b"bad"
        client = OtlpClient(server.endpoint, headers={"authorization": "secret"}, environ=NO_SETTINGS)
        for name in ("bad 1", "good 1", "bad 2", "good 2"):
            client.traces(request(name, 5))
        wait_for(lambda: client.sent == 2 and client.lost.total() == 10)
        client.traces(request("good 3"))
        client.close()
        assert client.lost == {"rejected": 10}
        assert client.sent == 3
        assert server.received() == request("good 1", 5) + request("good 2", 5) + request("good 3")
    assert [r.getMessage().partition(": ")[2] for r in caplog.records] == ["HTTP 400: trace id bad"]
    assert "secret" not in caplog.text


def test_partial_success_is_counted(caplog: pytest.LogCaptureFixture) -> None:
    answer = ExportTraceServiceResponse()
    answer.partial_success.rejected_spans = 2
    answer.partial_success.error_message = "too old"
    with serving() as server, caplog.at_level(logging.WARNING):
        server.answers = []
        client = OtlpClient(server.endpoint, environ=NO_SETTINGS)
        server.answers = [(200, {}, answer.SerializeToString())]
        client.traces(request("frame", 5))
        client.close()
    assert client.lost == {"rejected": 2}
    assert "2 rejected: too old" in caplog.text


def test_a_dead_endpoint_never_blocks_and_is_counted() -> None:
    client = OtlpClient(f"http://127.0.0.1:{free_ports(1)[0]}", queue_bytes=1000, environ=NO_SETTINGS)
    big = request("frame", 10)
    for _ in range(50):
        client.traces(big)
    kept = 1000 // len(big)
    assert client.lost == {"queue full": (50 - kept) * 10}
    client.close(timeout_s=0.1)
    client.traces(big)
    assert client.lost == {"queue full": (50 - kept) * 10, "closed": kept * 10 + 10}


def test_spilled_while_down_and_sent_in_order_when_back(tmp_path: Path) -> None:
    port = free_ports(1)[0]
    bodies = [request(f"span-{n}") for n in range(30)]
    client = OtlpClient(f"http://127.0.0.1:{port}", spill=tmp_path, environ=NO_SETTINGS)
    for body in bodies[:20]:
        client.traces(body)
    wait_for(lambda: len(list(tmp_path.glob("*/*.traces"))) == 20)
    with serving(port) as server:
        for body in bodies[20:]:
            client.traces(body)
        wait_for(lambda: client.sent == 30)
        client.close()
        assert server.received() == b"".join(bodies)
    assert not client.lost
    assert not list(tmp_path.glob("*/*.traces"))


def test_the_spill_survives_the_process_and_is_bounded(tmp_path: Path) -> None:
    port = free_ports(1)[0]
    bodies = [request(f"span-{n}") for n in range(30)]
    first = OtlpClient(f"http://127.0.0.1:{port}", spill=tmp_path, spill_bytes=1500, environ=NO_SETTINGS)
    for body in bodies:
        first.traces(body)
    first.close(timeout_s=0.1)
    kept = sorted(tmp_path.glob("0/*.traces"))
    assert 0 < sum(f.stat().st_size for f in kept) <= 1500
    assert first.lost == {"spill full": 30 - len(kept)}
    with serving(port) as server:
        second = OtlpClient(server.endpoint, spill=tmp_path, environ=NO_SETTINGS)
        second.traces(request("new"))
        wait_for(lambda: second.sent == len(kept) + 1)
        second.close()
        assert server.received() == b"".join([*bodies[: len(kept)], request("new")])


def test_two_clients_keep_their_spills_apart(tmp_path: Path) -> None:
    endpoint = f"http://127.0.0.1:{free_ports(1)[0]}"
    clients = [OtlpClient(endpoint, spill=tmp_path, environ=NO_SETTINGS) for _ in range(2)]
    for client in clients:
        client.traces(request("frame"))
        client.close(timeout_s=0.05)
    assert [len(list(tmp_path.glob(f"{slot}/*.traces"))) for slot in (0, 1)] == [1, 1]


def test_a_damaged_spill_file_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "0").mkdir()
    (tmp_path / "0" / "000000000001.traces").write_bytes(b"garbage")
    with serving() as server:
        client = OtlpClient(server.endpoint, spill=tmp_path, environ=NO_SETTINGS)
        client.traces(request("frame"))
        wait_for(lambda: client.sent == 1)
        client.close()
    assert (tmp_path / "0" / "000000000001.traces").exists()


# -- gRPC -------------------------------------------------------------------------------------


@contextmanager
def serving_grpc(answer: Callable[[bytes, Any], bytes]) -> Iterator[str]:
    """A gRPC server that hands the trace service's raw requests to `answer`; yields its endpoint."""
    method = grpc.unary_unary_rpc_method_handler(answer)
    service = "opentelemetry.proto.collector.trace.v1.TraceService"
    server = grpc.server(ThreadPoolExecutor(2))
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(service, {"Export": method})])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"http://127.0.0.1:{port}"
    server.stop(None).wait()


@pytest.mark.parametrize("compression", ["none", "gzip"])
def test_grpc(compression: str) -> None:
    received: list[tuple[bytes, dict[str, str]]] = []

    def answer(body: bytes, context: Any) -> bytes:
        received.append((body, dict(context.invocation_metadata())))
        return b""

    with serving_grpc(answer) as endpoint:
        client = OtlpClient(
            endpoint, protocol="grpc", compression=compression, headers={"x-team": "video"}, environ={}
        )
        client.traces(request("a"))
        client.traces(request("b", 1000))
        client.close()
    assert b"".join(body for body, _ in received) == request("a") + request("b", 1000)
    assert {metadata["x-team"] for _, metadata in received} == {"video"}
    assert client.sent == 2


def test_grpc_unavailable_is_retried_and_invalid_is_not(caplog: pytest.LogCaptureFixture) -> None:
    codes = [grpc.StatusCode.UNAVAILABLE]
    received: list[bytes] = []

    def answer(body: bytes, context: Any) -> bytes:
        if codes:
            context.abort(codes.pop(0), "not now")
        if b"bad" in body:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "not so")
        received.append(body)
        return b""

    with serving_grpc(answer) as endpoint, caplog.at_level(logging.WARNING):
        client = OtlpClient(endpoint, protocol="grpc", environ=NO_SETTINGS)
        client.traces(request("bad", 3))
        client.traces(request("b"))
        wait_for(lambda: client.sent == 1)
        client.close()
    assert received == [request("b")]
    assert client.lost == {"rejected": 3}
    assert "gRPC INVALID_ARGUMENT: not so" in caplog.text


# -- settings ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("environ", "url"),
    [
        ({}, "http://localhost:4318/v1/traces"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:1/base/"}, "http://c:1/base/v1/traces"),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://c:2/x"}, "http://c:2/x"),
        ({"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, "http://localhost:4317"),
        ({"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc", "OTEL_EXPORTER_OTLP_ENDPOINT": "c:3"}, "http://c:3"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": " "}, "http://localhost:4318/v1/traces"),
    ],
)
def test_endpoints_of_the_specification(environ: dict[str, str], url: str) -> None:
    assert target("traces", environ).url == url


def test_settings_of_one_signal_come_first() -> None:
    found: Target = target(
        "traces",
        {
            "OTEL_EXPORTER_OTLP_HEADERS": "a=1",
            "OTEL_EXPORTER_OTLP_TRACES_HEADERS": "Authorization=Bearer%20x, b=2",
            "OTEL_EXPORTER_OTLP_TIMEOUT": "2500",
            "OTEL_EXPORTER_OTLP_TRACES_COMPRESSION": "gzip",
        },
    )
    assert found.headers == {"authorization": "Bearer x", "b": "2"}
    assert found.timeout_s == 2.5
    assert found.compression == "gzip"
    assert "Bearer" not in repr(found)


@pytest.mark.parametrize(
    ("environ", "named"),
    [
        ({"OTEL_EXPORTER_OTLP_PROTOCOL": "http/json"}, "OTEL_EXPORTER_OTLP_PROTOCOL: expected"),
        ({"OTEL_EXPORTER_OTLP_COMPRESSION": "zip"}, "OTEL_EXPORTER_OTLP_COMPRESSION: expected"),
        ({"OTEL_EXPORTER_OTLP_TIMEOUT": "10s"}, "OTEL_EXPORTER_OTLP_TIMEOUT: expected milliseconds"),
        ({"OTEL_EXPORTER_OTLP_HEADERS": "token"}, "OTEL_EXPORTER_OTLP_HEADERS: expected"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "localhost:4318"}, "OTLP endpoint: expected"),
    ],
)
def test_wrong_settings_are_named(environ: dict[str, str], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        OtlpClient(environ=environ)
