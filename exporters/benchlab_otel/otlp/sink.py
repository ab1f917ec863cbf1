"""Where telemetry goes: the hub in the same process, or a client that sends it over a socket."""

from __future__ import annotations

from typing import Protocol


class Sink(Protocol):
    """Takes serialized OTLP requests; never blocks for long and never raises for what is sent."""

    def traces(self, body: bytes) -> None:
        """Takes one ExportTraceServiceRequest."""

    def metrics(self, body: bytes) -> None:
        """Takes one ExportMetricsServiceRequest."""
