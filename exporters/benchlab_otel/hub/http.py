"""OTLP/HTTP receiver: POST /v1/traces and /v1/metrics, protobuf or JSON, compressed or not.

Answers as the specification asks (opentelemetry.io/docs/specs/otlp, "OTLP/HTTP"): errors carry a
google.rpc.Status in the request's own encoding; what was not taken of an accepted request is a
partial success.
"""

from __future__ import annotations

import json
import socket
import threading
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import uvicorn
import zstandard
from google.rpc.status_pb2 import Status
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceResponse
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from benchlab_otel.hub.hub import Hub, Rejected
from benchlab_otel.hub.listen import listen
from benchlab_otel.otlp.json import metrics_to_protobuf, traces_to_protobuf

MAX_BYTES = 64 << 20
PROTOBUF, JSON = "application/x-protobuf", "application/json"
_INVALID_ARGUMENT, _RESOURCE_EXHAUSTED = 3, 8  # google.rpc.Code
_GZIP_OR_ZLIB = 32 + zlib.MAX_WBITS  # told apart by zlib from the header


class TooLarge(ValueError):
    """A request above the limit; the message says so."""


@dataclass(frozen=True, slots=True)
class _Signal:
    """What differs between traces and metrics."""

    name: str
    ingest: Callable[[bytes], Rejected | None]
    from_json: Callable[[bytes], bytes]
    response: type[ExportTraceServiceResponse] | type[ExportMetricsServiceResponse]
    rejected: tuple[str, str]  # the count's field in protobuf and in JSON


def otlp_app(hub: Hub, max_bytes: int = MAX_BYTES) -> Starlette:
    """The receiver as an ASGI app; requests above `max_bytes` (decompressed) are refused."""
    signals = (
        _Signal(
            "traces",
            hub.ingest_traces,
            traces_to_protobuf,
            ExportTraceServiceResponse,
            ("rejected_spans", "rejectedSpans"),
        ),
        _Signal(
            "metrics",
            hub.ingest_metrics,
            metrics_to_protobuf,
            ExportMetricsServiceResponse,
            ("rejected_data_points", "rejectedDataPoints"),
        ),
    )
    routes = [
        Route(f"/v1/{signal.name}", _endpoint(hub, signal, max_bytes), methods=["POST"]) for signal in signals
    ]
    return Starlette(routes=routes)


def _endpoint(hub: Hub, signal: _Signal, max_bytes: int) -> Callable[[Request], object]:
    async def export(request: Request) -> Response:
        encoding = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if encoding not in (PROTOBUF, JSON):
            hub.refused(signal.name, "content_type")
            return Response(f"expected Content-Type {PROTOBUF} or {JSON}, not {encoding!r}\n", 415)
        compression = request.headers.get("content-encoding", "identity").strip().lower()
        if compression not in _DECOMPRESS:
            hub.refused(signal.name, "content_encoding")
            return Response(f"expected Content-Encoding {', '.join(_DECOMPRESS)}, not {compression!r}\n", 415)
        try:
            packed = await _body(request, max_bytes)
            return await run_in_threadpool(_take, hub, signal, encoding, compression, packed, max_bytes)
        except TooLarge as error:
            hub.refused(signal.name, "too_large")
            return _error(413, _RESOURCE_EXHAUSTED, str(error), encoding)
        except ClientDisconnect:
            hub.refused(signal.name, "cut_off")
            return Response(status_code=400)  # nobody reads it

    return export


async def _body(request: Request, max_bytes: int) -> bytes:
    """The body as sent; reads no further than the limit."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > max_bytes:
            raise _too_large(max_bytes)
    return bytes(body)


def _take(
    hub: Hub, signal: _Signal, encoding: str, compression: str, packed: bytes, max_bytes: int
) -> Response:
    try:
        body = _DECOMPRESS[compression](packed, max_bytes)
        if encoding == JSON:
            body = signal.from_json(body)
    except TooLarge:
        raise
    except ValueError as error:
        hub.refused(signal.name, "garbled")
        return _error(400, _INVALID_ARGUMENT, str(error), encoding)
    try:
        return _success(signal, signal.ingest(body), encoding)
    except ValueError as error:
        return _error(400, _INVALID_ARGUMENT, str(error), encoding)


def _success(signal: _Signal, rejected: Rejected | None, encoding: str) -> Response:
    if encoding == JSON:
        partial: dict[str, object] = {}
        if rejected is not None:
            # 64-bit numbers are strings in protobuf's JSON
            partial = {
                "partialSuccess": {
                    signal.rejected[1]: str(rejected.count),
                    "errorMessage": rejected.message,
                }
            }
        return Response(json.dumps(partial), media_type=JSON)
    message = signal.response()
    if rejected is not None:
        setattr(message.partial_success, signal.rejected[0], rejected.count)
        message.partial_success.error_message = rejected.message
    return Response(message.SerializeToString(), media_type=PROTOBUF)


def _error(status: int, code: int, message: str, encoding: str) -> Response:
    if encoding == JSON:
        return Response(json.dumps({"code": code, "message": message}), status, media_type=JSON)
    return Response(Status(code=code, message=message).SerializeToString(), status, media_type=PROTOBUF)


# -- decompression, never beyond the limit ----------------------------------------------------


def _identity(body: bytes, max_bytes: int) -> bytes:
    return body


def _inflate(body: bytes, max_bytes: int) -> bytes:
    """gzip (of one or more members) or zlib."""
    parts: list[bytes] = []
    size = 0
    while body or not parts:
        inflater = zlib.decompressobj(_GZIP_OR_ZLIB)
        try:
            parts.append(inflater.decompress(body, max_bytes + 1 - size))
        except zlib.error as error:
            raise ValueError(f"the compressed body is garbled: {error}") from None
        size += len(parts[-1])
        if size > max_bytes:
            raise _too_large(max_bytes)
        if not inflater.eof:
            raise ValueError(f"the compressed body is cut off after {len(body)} bytes")
        body = inflater.unused_data
    return b"".join(parts)


def _unzstd(body: bytes, max_bytes: int) -> bytes:
    """One zstd frame, in small steps: a few bytes can stand for 128 KiB each."""
    inflater = zstandard.ZstdDecompressor().decompressobj()
    parts, size, step = [], 0, 1024
    try:
        for at in range(0, len(body), step):
            parts.append(inflater.decompress(body[at : at + step]))
            size += len(parts[-1])
            if size > max_bytes:
                raise _too_large(max_bytes)
            if inflater.eof:
                break
    except zstandard.ZstdError as error:
        raise ValueError(f"the compressed body is garbled: {error}") from None
    if not inflater.eof:
        raise ValueError(f"the compressed body is cut off after {len(body)} bytes")
    return b"".join(parts)


_DECOMPRESS = {"identity": _identity, "gzip": _inflate, "deflate": _inflate, "zstd": _unzstd}


def _too_large(max_bytes: int) -> TooLarge:
    return TooLarge(f"the request is larger than {max_bytes} bytes; send smaller batches")


# -- serving ----------------------------------------------------------------------------------


class HttpServer:
    """An ASGI app served by a thread of its own until `close`, which answers what is in flight."""

    def __init__(self, app: ASGIApp, host: str, port: int, setting: str) -> None:
        """Raises OSError, naming `setting`, where the port cannot be taken."""
        self._socket: socket.socket = listen(host, port, setting)
        self.port: int = self._socket.getsockname()[1]
        config = uvicorn.Config(
            app, log_config=None, access_log=False, lifespan="off", timeout_graceful_shutdown=10
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(
            target=self._server.run, args=([self._socket],), name=f"http-{self.port}", daemon=True
        )
        self._thread.start()  # the socket listens already: connections wait for the thread

    def close(self) -> None:
        """Stops listening, answers what is in flight, and returns."""
        self._server.should_exit = True
        self._thread.join()
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
