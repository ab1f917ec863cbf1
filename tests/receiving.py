"""A sink that keeps what it is handed, decoded with the protobuf library."""

import json
from dataclasses import dataclass, field
from typing import Any

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from benchlab_otel.sources.reading import Reader


def plain(attributes: Any) -> dict[str, Any]:
    return {a.key: getattr(a.value, a.value.WhichOneof("value")) for a in attributes}


def read_one(reader: Reader) -> dict[str, float]:
    """One reading: the attribute of each value, and the value."""
    (batch,) = reader.decode([reader.read()])
    return dict(zip([f.key for f in batch.fields], batch.values[0].tolist(), strict=True))


@dataclass
class Receiver:
    """`spans`: (resource, span, attributes) in order; `points`: (resource, metric, labels, point)."""

    spans: list[tuple[dict[str, Any], Any, dict[str, Any]]] = field(default_factory=list)
    points: list[tuple[dict[str, Any], Any, dict[str, Any], Any]] = field(default_factory=list)

    def traces(self, body: bytes) -> None:
        for group in ExportTraceServiceRequest.FromString(body).resource_spans:
            resource = plain(group.resource.attributes)
            for scope in group.scope_spans:
                self.spans += [(resource, span, plain(span.attributes)) for span in scope.spans]

    def metrics(self, body: bytes) -> None:
        for group in ExportMetricsServiceRequest.FromString(body).resource_metrics:
            resource = plain(group.resource.attributes)
            for metric in group.scope_metrics[0].metrics:
                for point in getattr(metric, metric.WhichOneof("data")).data_points:
                    self.points.append((resource, metric, plain(point.attributes), point))

    def samples(self) -> list[tuple[Any, dict[str, Any]]]:
        return [(span, attributes) for _, span, attributes in self.spans if span.name == "sample"]

    def values(self, metric: str, labels: dict[str, str] | None = None) -> list[float | None]:
        """Values of the metric's points that have all these labels, in order; None = the series ended."""
        wanted = (labels or {}).items()
        points = [(found, point) for _, m, found, point in self.points if m.name == metric]
        return [
            None if point.flags & 1 else point.as_double for found, point in points if wanted <= found.items()
        ]

    def outline(self) -> str:
        """Everything of the first sample and of the metrics that is the same each time, as text."""
        samples = [attributes for _, attributes in self.samples()[:1]]
        series = {json.dumps([m.name, m.unit, m.description, labels]) for _, m, labels, _ in self.points}
        shown = {
            "resource": sorted(self.spans[-1][0]),
            "samples": [
                {k: round(v, 4) if isinstance(v, float) else v for k, v in s.items()} for s in samples
            ],
            "metrics": [json.loads(text) for text in sorted(series)],
        }
        return json.dumps(shown, indent=1, ensure_ascii=False) + "\n"
