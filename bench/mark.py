"""The cost of a mark in the pipeline's thread, beside an OpenTelemetry span, in the same run.

    python bench/mark.py

The span is the SDK's: started and ended with two attributes and handed to a BatchSpanProcessor whose
exporter sends nothing. Both sides flush in the background while they are measured. Prints min,
median and max over the repeats, and the ratio of the medians.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence

from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult

from benchlab_otel import Probe

FRAMES, SPANS, REPEATS = 20_000, 5_000, 9


class Nowhere:
    """A sink that sends nothing."""

    def traces(self, body: bytes) -> None:
        """Takes the request."""

    def metrics(self, body: bytes) -> None:
        """Takes the request."""


class NowhereExporter(SpanExporter):
    """An SDK exporter that sends nothing."""

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Takes the spans."""
        return SpanExportResult.SUCCESS


def costs(action: Callable[[], None], count: int) -> list[float]:
    """Nanoseconds per operation of each repeat, after one to warm up."""
    action()
    result = []
    for _ in range(REPEATS):
        before = time.perf_counter_ns()
        action()
        result.append((time.perf_counter_ns() - before) / count)
        time.sleep(0.3)  # let both sides' threads catch up
    return result


def main() -> None:
    """Prints the comparison."""
    probe = Probe("bench", sink=Nowhere())
    mark = probe.marker("ingress", "display")

    def marks() -> None:
        for number in range(FRAMES):
            mark(number, "ingress")
            mark(number, "decoded")
            mark(number, "encoded")
            mark(number, "display")

    def stages() -> None:
        for _ in range(FRAMES // 4):
            with probe.frame() as frame:
                for name in ("decode", "infer", "encode"):
                    with frame.stage(name):
                        pass

    provider = TracerProvider()
    provider.add_span_processor(BatchSpanProcessor(NowhereExporter()))
    tracer = provider.get_tracer("bench")

    def spans() -> None:
        for number in range(SPANS):
            attributes = {"pipeline.stage": "decode", "frame.number": number}
            tracer.start_span("decode", attributes=attributes).end()

    results = {
        "mark": costs(marks, FRAMES * 4),
        "with stage": costs(stages, FRAMES // 4 * 3),
        "SDK span": costs(spans, SPANS),
    }
    probe.close()
    provider.shutdown()
    for name, values in results.items():
        low, middle, high = min(values), statistics.median(values), max(values)
        print(f"{name:12}{middle:10,.0f} ns  (min {low:,.0f}, max {high:,.0f}, {REPEATS} repeats)")
    ratio = statistics.median(results["SDK span"]) / statistics.median(results["mark"])
    print(f"{'ratio':12}{ratio:10,.1f}  (SDK span to mark)")


if __name__ == "__main__":
    main()
