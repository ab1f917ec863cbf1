"""OTLP gRPC receiver: the trace and metrics services' Export, on raw bytes (no parsing in gRPC).

Services: opentelemetry/proto/collector/{trace,metrics}/v1. Other services and methods answer
UNIMPLEMENTED by gRPC itself.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Self

import grpc
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceResponse
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

from benchlab_otel.hub.http import MAX_BYTES
from benchlab_otel.hub.hub import Hub, Rejected
from benchlab_otel.hub.listen import listen

TRACE_SERVICE = "opentelemetry.proto.collector.trace.v1.TraceService"
METRICS_SERVICE = "opentelemetry.proto.collector.metrics.v1.MetricsService"
SHUTDOWN_SECONDS = 10.0


class GrpcServer:
    """Receives until `close`, which answers what is in flight."""

    def __init__(self, hub: Hub, host: str, port: int, setting: str, max_bytes: int = MAX_BYTES) -> None:
        """Raises OSError, naming `setting`, where the port cannot be taken."""
        probe = listen(host, port, setting)  # gRPC itself would not say why a port cannot be taken
        free_port = probe.getsockname()[1]
        probe.close()
        options = [("grpc.max_receive_message_length", max_bytes), ("grpc.so_reuseport", 0)]
        self._server = grpc.server(ThreadPoolExecutor(4, "otlp-grpc"), options=options)
        self._server.add_generic_rpc_handlers(
            (
                _service(TRACE_SERVICE, hub.ingest_traces, _trace_response),
                _service(METRICS_SERVICE, hub.ingest_metrics, _metrics_response),
            )
        )
        address = f"[{host}]:{free_port}" if ":" in host else f"{host}:{free_port}"
        try:
            self.port: int = self._server.add_insecure_port(address)
        except RuntimeError as error:
            raise OSError(f"cannot listen on {address}: {error}; check {setting}") from None
        self._server.start()

    def close(self) -> None:
        """Stops listening, answers what is in flight, and returns."""
        self._server.stop(SHUTDOWN_SECONDS).wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _service(
    name: str, ingest: Callable[[bytes], Rejected | None], respond: Callable[[Rejected | None], bytes]
) -> grpc.GenericRpcHandler:
    def export(body: bytes, context: grpc.ServicerContext) -> bytes:
        try:
            return respond(ingest(body))
        except ValueError as error:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))

    handler: grpc.RpcMethodHandler[bytes, bytes] = grpc.unary_unary_rpc_method_handler(
        export, request_deserializer=None, response_serializer=None
    )
    return grpc.method_handlers_generic_handler(name, {"Export": handler})


def _trace_response(rejected: Rejected | None) -> bytes:
    message = ExportTraceServiceResponse()
    if rejected is not None:
        message.partial_success.rejected_spans = rejected.count
        message.partial_success.error_message = rejected.message
    return message.SerializeToString()


def _metrics_response(rejected: Rejected | None) -> bytes:
    message = ExportMetricsServiceResponse()
    if rejected is not None:
        message.partial_success.rejected_data_points = rejected.count
        message.partial_success.error_message = rejected.message
    return message.SerializeToString()
