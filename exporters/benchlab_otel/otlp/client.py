"""A sink that sends OTLP requests over HTTP or gRPC from its own thread, and never blocks the caller.

Endpoints, headers, time limits, compression and certificates come from the variables of the
OpenTelemetry specification (protocol/exporter.md) where the caller does not give them. What cannot
be sent waits in memory, then on disk (`spill`), and is counted in `lost` when there is no room.
Delivery is at least once: a request whose answer got lost is sent again. Requests of a signal that wait
together are sent as one, as protobuf messages with only repeated fields may be put one after another; when
the server refuses that, each is sent alone, so that only what it objects to is lost.
"""

from __future__ import annotations

import contextlib
import gzip
import http.client
import logging
import os
import random
import ssl
import threading
import time
import weakref
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from itertools import islice
from pathlib import Path
from typing import Any, Literal, Protocol
from urllib.parse import unquote, urlsplit

from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
    ExportMetricsServiceResponse,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

from benchlab_otel import __version__
from benchlab_otel.otlp.spill import Spill

log = logging.getLogger(__name__)

Signal = Literal["traces", "metrics"]
SIGNALS: tuple[Signal, ...] = ("traces", "metrics")
RETRYABLE_HTTP = {429, 502, 503, 504}
RETRYABLE_GRPC = {
    "CANCELLED", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED", "ABORTED", "OUT_OF_RANGE", "UNAVAILABLE",
    "DATA_LOSS",
}  # fmt: skip
_GRPC_METHODS = {
    "traces": "/opentelemetry.proto.collector.trace.v1.TraceService/Export",
    "metrics": "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export",
}
_SPILL_VARIABLE = "BENCHLAB_OTEL_SPILL_DIR"
LINGER_S = 0.005  # for what comes with it: all sources tell in one wake, which takes 2 to 3 ms
JOINED_BYTES = 1 << 20  # servers take 4 MiB, some less
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.25, 10.0


@dataclass(frozen=True, slots=True)
class Target:
    """Where and how one signal is sent. `headers` may hold secrets: they are not part of the repr."""

    url: str
    protocol: str  # http/protobuf or grpc
    compression: str  # gzip or none
    timeout_s: float
    headers: dict[str, str] = field(repr=False)
    certificate: str | None = None
    client_certificate: str | None = None
    client_key: str | None = None


def target(
    signal: Signal,
    environ: Mapping[str, str],
    endpoint: str | None = None,
    headers: Mapping[str, str] | None = None,
    protocol: str | None = None,
    compression: str | None = None,
    timeout_s: float | None = None,
) -> Target:
    """What was given, completed from the environment; ValueError names a variable that is wrong."""

    def variable(name: str) -> str | None:
        own = environ.get(f"OTEL_EXPORTER_OTLP_{signal.upper()}_{name}", "").strip()
        return own or environ.get(f"OTEL_EXPORTER_OTLP_{name}", "").strip() or None

    protocol = protocol or variable("PROTOCOL") or "http/protobuf"
    if protocol not in ("http/protobuf", "grpc"):
        raise ValueError(f"OTEL_EXPORTER_OTLP_PROTOCOL: expected http/protobuf or grpc, found {protocol!r}")
    compression = compression or variable("COMPRESSION") or "none"
    if compression not in ("gzip", "none"):
        raise ValueError(f"OTEL_EXPORTER_OTLP_COMPRESSION: expected gzip or none, found {compression!r}")
    if timeout_s is None:
        timeout_s = _seconds(variable("TIMEOUT") or "10000")
    return Target(
        url=_url(signal, protocol, endpoint, environ),
        protocol=protocol,
        compression=compression,
        timeout_s=timeout_s,
        headers=dict(headers) if headers is not None else _headers(variable("HEADERS") or ""),
        certificate=variable("CERTIFICATE"),
        client_certificate=variable("CLIENT_CERTIFICATE"),
        client_key=variable("CLIENT_KEY"),
    )


def _url(signal: Signal, protocol: str, endpoint: str | None, environ: Mapping[str, str]) -> str:
    """A signal's own endpoint is taken as it is; the general one gets the signal's path (HTTP)."""
    own = environ.get(f"OTEL_EXPORTER_OTLP_{signal.upper()}_ENDPOINT", "").strip()
    base = endpoint or environ.get("OTEL_EXPORTER_OTLP_ENDPOINT", "").strip()
    if endpoint is None and own:
        url = own
    elif protocol == "grpc":
        url = base or "http://localhost:4317"
    else:
        url = (base or "http://localhost:4318").rstrip("/") + f"/v1/{signal}"
    if protocol == "grpc" and "://" not in url:
        url = f"http://{url}"
    if not _is_server(url):
        raise ValueError(f"OTLP endpoint: expected http(s)://host:port, found {url!r}")
    return url


def _is_server(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is none
        return False


def _seconds(text: str) -> float:
    try:
        return int(text) / 1000
    except ValueError:
        raise ValueError(f"OTEL_EXPORTER_OTLP_TIMEOUT: expected milliseconds, found {text!r}") from None


def _headers(text: str) -> dict[str, str]:
    """`key=value,key=value`, percent-encoded; the error does not repeat the text (it holds secrets)."""
    pairs = [part.partition("=") for part in text.split(",") if part.strip()]
    if any(not equals or not key.strip() for key, equals, _ in pairs):
        raise ValueError("OTEL_EXPORTER_OTLP_HEADERS: expected key=value,key=value")
    return {unquote(key.strip()).lower(): unquote(value.strip()) for key, _, value in pairs}


# -- one request ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of a request. `retry`: worth sending again, after `wait_s` if the server said so."""

    ok: bool
    retry: bool = False
    kind: str = ""
    message: str = ""
    body: bytes = b""
    wait_s: float | None = None


class Transport(Protocol):
    """Sends one request body and says what became of it; raises nothing."""

    def send(self, body: bytes) -> Answer: ...

    def close(self) -> None: ...


class HttpTransport:
    """OTLP/HTTP with protobuf over one kept-alive connection."""

    def __init__(self, to: Target) -> None:
        self._to = to
        parts = urlsplit(to.url)
        self._path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        self._headers = {
            **to.headers,
            "content-type": "application/x-protobuf",
            "user-agent": f"benchlab-otel/{__version__}",
        }
        if to.compression == "gzip":
            self._headers["content-encoding"] = "gzip"
        assert parts.hostname is not None
        self._connection: http.client.HTTPConnection
        if parts.scheme == "https":
            self._connection = http.client.HTTPSConnection(
                parts.hostname, parts.port, timeout=to.timeout_s, context=_tls(to)
            )
        else:
            self._connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=to.timeout_s)

    def send(self, body: bytes) -> Answer:
        if self._to.compression == "gzip":
            body = gzip.compress(body, compresslevel=1)
        fresh = self._connection.sock is None
        try:
            return self._exchange(body)
        except (ConnectionError, http.client.BadStatusLine) as error:
            self.close()
            if fresh:
                return Answer(False, retry=True, kind="unreachable", message=str(error))
        except (OSError, http.client.HTTPException) as error:
            self.close()
            return Answer(False, retry=True, kind="unreachable", message=str(error))
        # The server may close a kept-alive connection at any time: once more on a new one.
        try:
            return self._exchange(body)
        except (OSError, http.client.HTTPException) as error:
            self.close()
            return Answer(False, retry=True, kind="unreachable", message=str(error))

    def _exchange(self, body: bytes) -> Answer:
        self._connection.request("POST", self._path, body, self._headers)
        response = self._connection.getresponse()
        content = response.read()
        if 200 <= response.status < 300:
            return Answer(True, body=content)
        wait = response.headers.get("retry-after", "")
        return Answer(
            False,
            retry=response.status in RETRYABLE_HTTP,
            kind=f"HTTP {response.status}",
            message=_status_message(content),
            wait_s=float(wait) if wait.isdigit() else None,
        )

    def close(self) -> None:
        self._connection.close()


class GrpcTransport:
    """OTLP/gRPC with the bytes as they are."""

    def __init__(self, to: Target, signal: Signal) -> None:
        grpc: Any = import_module("grpc")  # slow to import, needed only here; it has no types
        self._error: Any = grpc.RpcError
        parts = urlsplit(to.url)
        address = parts.netloc or parts.path
        options = [("grpc.max_send_message_length", -1)]
        compression = grpc.Compression.Gzip if to.compression == "gzip" else grpc.Compression.NoCompression
        if parts.scheme == "https":
            files = (to.certificate, to.client_key, to.client_certificate)
            credentials = grpc.ssl_channel_credentials(*(Path(f).read_bytes() if f else None for f in files))
            self._channel = grpc.secure_channel(address, credentials, options, compression)
        else:
            self._channel = grpc.insecure_channel(address, options, compression)
        self._call = self._channel.unary_unary(_GRPC_METHODS[signal])
        self._metadata = tuple(to.headers.items())
        self._timeout_s = to.timeout_s

    def send(self, body: bytes) -> Answer:
        try:
            return Answer(True, body=self._call(body, timeout=self._timeout_s, metadata=self._metadata))
        except self._error as error:
            code = error.code().name
            return Answer(False, retry=code in RETRYABLE_GRPC, kind=f"gRPC {code}", message=error.details())

    def close(self) -> None:
        self._channel.close()


def transport(signal: Signal, to: Target) -> Transport:
    """What sends to a target. Raises OSError for a certificate that can't be read."""
    return GrpcTransport(to, signal) if to.protocol == "grpc" else HttpTransport(to)


def _tls(to: Target) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=to.certificate)
    if to.client_certificate:
        context.load_cert_chain(to.client_certificate, to.client_key)
    return context


def _status_message(content: bytes) -> str:
    """The text of a google.rpc.Status (field 2), or the content itself where it is text."""
    at = 0
    while at < len(content) - 1 and content[at] == 0x08:  # field 1, the code: a varint
        at += 1
        while at < len(content) and content[at] & 0x80:
            at += 1
        at += 1
    if at + 1 < len(content) and content[at] == 0x12 and content[at + 1] < 0x80:
        content = content[at + 2 : at + 2 + content[at + 1]]
    return content[:300].decode("utf-8", "replace").strip()


# -- the client -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Waiting:
    """What goes next: `count` requests in one, and what to do when that is dealt with, or must wait."""

    signal: Signal
    body: bytes
    count: int
    done: Callable[[], object]
    keep: Callable[[], None]


class OtlpClient:
    """A `Sink` with a bounded queue, a sender thread, retries and, if asked for, a spill directory.

    `lost` counts spans and metric points given up, by reason; `sent` counts requests delivered.
    """

    def __init__(
        self,
        endpoint: str | None = None,
        *,
        headers: Mapping[str, str] | None = None,
        protocol: str | None = None,
        compression: str | None = None,
        timeout_s: float | None = None,
        spill: Path | None = None,
        spill_bytes: int = 256 << 20,
        queue_bytes: int = 32 << 20,
        environ: Mapping[str, str] = os.environ,
    ) -> None:
        """Raises ValueError for settings that make no sense, OSError for an unusable spill directory."""
        self._targets = {
            signal: target(signal, environ, endpoint, headers, protocol, compression, timeout_s)
            for signal in SIGNALS
        }
        if spill is None and (named := environ.get(_SPILL_VARIABLE)):
            spill = Path(named)
        self._spill_at, self._spill_bytes, self._queue_bytes = spill, spill_bytes, queue_bytes
        self.lost: Counter[str] = Counter()
        self.sent = 0
        self._spill: Spill | None = None
        self._closing_at: float | None = None
        self._start()
        restart = weakref.WeakMethod(self._restart_in_child)
        os.register_at_fork(after_in_child=lambda: (method := restart()) and method())

    def _restart_in_child(self) -> None:
        """A forked child sends its own; its parent sends what was queued."""
        if self._spill is not None:
            self._spill.close()  # the slot stays the parent's
        self.lost.clear()
        self.sent = 0
        if self._closing_at is not None:
            return
        try:
            self._start()
        except OSError as error:
            log.warning("OTLP client: no spill directory after a fork: %s", error)
            self._spill_at = self._spill = None
            self._start()

    def _start(self) -> None:
        self._spill = Spill(self._spill_at, self._spill_bytes) if self._spill_at else None
        self._queues: dict[Signal, deque[bytes]] = {signal: deque() for signal in SIGNALS}
        self._queued = 0  # bytes
        self._alone: Counter[Signal] = Counter()  # requests that go one by one
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._told: set[str] = set()
        self._signal: Signal = "metrics"  # sent last
        self._transports: dict[Signal, Transport] = {}
        self._thread = threading.Thread(target=self._run, name="otlp-client", daemon=True)
        self._thread.start()

    def traces(self, body: bytes) -> None:
        """Queues one ExportTraceServiceRequest; returns at once."""
        self._put("traces", body)

    def metrics(self, body: bytes) -> None:
        """Queues one ExportMetricsServiceRequest; returns at once."""
        self._put("metrics", body)

    def close(self, timeout_s: float = 5.0) -> None:
        """Sends what is queued within `timeout_s`; the rest is spilled or counted as lost."""
        with self._changed:
            self._closing_at = time.monotonic() + timeout_s
            self._changed.notify_all()
        self._thread.join(timeout_s + max(t.timeout_s for t in self._targets.values()))

    def _put(self, signal: Signal, body: bytes) -> None:
        with self._changed:
            if self._closing_at is not None:
                self._give_up(signal, body, "closed")
            elif self._queued + len(body) <= self._queue_bytes:
                if not any(self._queues.values()):
                    self._changed.notify()
                self._queues[signal].append(body)
                self._queued += len(body)
            else:
                self._give_up(signal, body, "queue full")

    def _give_up(self, signal: Signal, body: bytes, reason: str) -> None:
        self.lost[reason] += count_items(signal, body)
        self._tell(reason, "OTLP client: %s, telemetry is lost (counted)", reason)

    # -- sender thread: only it touches the spill and the transports

    def _run(self) -> None:
        pause_s = _FIRST_PAUSE_S
        while (waiting := self._next()) is not None:
            signal, body = waiting.signal, waiting.body
            answer = self._send(signal, body)
            if answer.ok or not answer.retry:
                pause_s = _FIRST_PAUSE_S
                if not answer.ok and waiting.count > 1:
                    self._alone[signal] = waiting.count  # one of them may be what the server refuses
                    continue
                waiting.done()
                self._settle(waiting, answer)
                continue
            self._tell(
                answer.kind, "OTLP %s: %s: %s; retrying", self._url(signal), answer.kind, answer.message
            )
            waiting.keep()
            if not self._wait(answer.wait_s or pause_s * random.uniform(0.8, 1.2)):
                break
            pause_s = min(pause_s * 2, _LONGEST_PAUSE_S)
        self._keep_rest()
        for transport in self._transports.values():
            transport.close()

    def _next(self) -> _Waiting | None:
        """The oldest requests; None = closed."""
        if self._spill is not None and (oldest := self._spill.first()) is not None:
            spill, (spilled, body) = self._spill, oldest
            self._move_to_spill()
            signal: Signal = "traces" if spilled.signal == "traces" else "metrics"
            remove = partial(spill.remove, spilled)
            return None if self._late() else _Waiting(signal, body, 1, remove, lambda: None)
        with self._changed:
            while not any(self._queues.values()):
                if self._closing_at is not None:
                    return None
                self._changed.wait()
        if self._closing_at is None:
            time.sleep(LINGER_S)
        return None if self._late() else self._joined()

    def _joined(self) -> _Waiting:
        """As many requests of one signal as may go together; the signals take turns where both have some."""
        with self._lock:
            signal = max(SIGNALS, key=lambda s: (bool(self._queues[s]), s != self._signal))
            queue = self._queues[signal]
            count, size = 1, len(queue[0])
            while not self._alone[signal] and count < len(queue) and size + len(queue[count]) <= JOINED_BYTES:
                size += len(queue[count])
                count += 1
            body = b"".join(islice(queue, count))
        self._signal = signal
        return _Waiting(signal, body, count, partial(self._dealt_with, signal, count), self._move_to_spill)

    def _dealt_with(self, signal: Signal, count: int) -> None:
        for _ in range(count):
            self._pop(signal)
        self._alone[signal] = max(0, self._alone[signal] - count)

    def _late(self) -> bool:
        return self._closing_at is not None and time.monotonic() >= self._closing_at

    def _pop(self, signal: Signal) -> bytes:
        with self._lock:
            body = self._queues[signal].popleft()
            self._queued -= len(body)
            return body

    def _move_to_spill(self) -> None:
        """Everything queued goes behind what is on disk already, so that order is kept."""
        if self._spill is not None:
            for signal, body in self._take_all():
                if not self._spill.append(signal, body):
                    self._give_up(signal, body, "spill full")

    def _take_all(self) -> Iterator[tuple[Signal, bytes]]:
        for signal, queue in self._queues.items():
            while queue:
                yield signal, self._pop(signal)

    def _keep_rest(self) -> None:
        self._move_to_spill()
        for signal, body in self._take_all():
            self._give_up(signal, body, "closed")
        if self._spill is not None:
            self._spill.close()

    def _wait(self, seconds: float) -> bool:
        """Sleeps until the next try, moving what arrives to disk; False when closing and out of time."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0 and not self._late():
            with self._changed:
                limit = left if self._closing_at is None else min(left, 0.1)
                self._changed.wait(limit)
            self._move_to_spill()
        return not self._late()

    def _send(self, signal: Signal, body: bytes) -> Answer:
        if signal not in self._transports:
            try:
                self._transports[signal] = transport(signal, self._targets[signal])
            except OSError as error:  # a certificate that cannot be read
                return Answer(False, retry=True, kind="certificate", message=str(error))
        return self._transports[signal].send(body)

    def _settle(self, waiting: _Waiting, answer: Answer) -> None:
        """Counts delivered or refused requests, and what the server refused of delivered ones."""
        signal = waiting.signal
        if not answer.ok:
            self.lost["rejected"] += count_items(signal, waiting.body)
            self._tell(answer.kind, "OTLP %s: %s: %s", self._url(signal), answer.kind, answer.message)
            return
        self.sent += waiting.count
        rejected, message = partial_success(signal, answer.body)
        if rejected:
            self.lost["rejected"] += rejected
            self._tell("partial", "OTLP %s: %d rejected: %s", self._url(signal), rejected, message)

    def _url(self, signal: Signal) -> str:
        parts = urlsplit(self._targets[signal].url)
        return f"{parts.scheme}://{parts.hostname}:{parts.port or ''}{parts.path}"  # no user:password

    def _tell(self, kind: str, message: str, *arguments: object) -> None:
        """Logs each kind of trouble once."""
        if kind not in self._told:
            self._told.add(kind)
            log.warning(message, *arguments)


def partial_success(signal: Signal, content: bytes) -> tuple[int, str]:
    """How many spans or points of a delivered request were refused, and why, as its answer says."""
    with contextlib.suppress(DecodeError):
        if signal == "traces":
            traces = ExportTraceServiceResponse.FromString(content).partial_success
            return traces.rejected_spans, traces.error_message
        metrics = ExportMetricsServiceResponse.FromString(content).partial_success
        return metrics.rejected_data_points, metrics.error_message
    return 0, ""


def count_items(signal: Signal, body: bytes) -> int:
    """Spans or metrics in a request, at least 1 (a garbled request is one loss)."""
    with contextlib.suppress(DecodeError):
        if signal == "traces":
            traces = ExportTraceServiceRequest.FromString(body)
            return max(1, sum(len(s.spans) for r in traces.resource_spans for s in r.scope_spans))
        metrics = ExportMetricsServiceRequest.FromString(body)
        return max(1, sum(len(s.metrics) for r in metrics.resource_metrics for s in r.scope_metrics))
    return 1
