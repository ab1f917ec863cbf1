"""OpenTelemetry exporters that give every frame of a pipeline its latency and its joules."""

__version__ = "0.1.0"
