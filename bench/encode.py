"""Spans to OTLP bytes: this package's encoder beside the SDK's, on the same frames in the same run.

    python bench/encode.py

Frames carry a name, a number of their own and an outcome (1 % dropped, status ERROR). Prints
min, median and max over the repeats, and the ratio of the medians.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import numpy as np
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans as sdk_encode_spans
from opentelemetry.sdk.resources import Resource as SdkResource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import SpanContext, TraceFlags
from opentelemetry.trace.status import Status, StatusCode

from benchlab_otel.model import OUTCOMES
from benchlab_otel.otlp.encode import SpanBatch, Strings, encode_request

SPANS, SDK_SPANS, REPEATS = 200_000, 5_000, 7
RESOURCE = {"service.name": "bench"}


def frames(count: int) -> SpanBatch:
    """Frames of a camera at 60 fps, numbered from 1."""
    rng = np.random.default_rng(1)
    begin = 1_795_000_000_000_000_000 + np.arange(count, dtype=np.int64) * 16_666_667
    dropped = rng.random(count) < 0.01
    return SpanBatch(
        name="frame",
        trace=rng.integers(1, 2**63, (count, 2), dtype=np.uint64),
        span=rng.integers(1, 2**63, count, dtype=np.uint64),
        start=begin,
        end=begin + rng.integers(5_000_000, 40_000_000, count),
        status=np.where(dropped, 2, 0).astype(np.uint8),
        attributes={
            "pipeline.name": "cam0",
            "frame.number": np.arange(1, count + 1, dtype=np.int64),
            "frame.outcome": Strings(dropped.astype(np.int32), list(OUTCOMES)),
        },
    )


def sdk_spans(batch: SpanBatch) -> list[ReadableSpan]:
    """The same frames as the SDK holds them."""
    resource = SdkResource(RESOURCE)
    numbers, outcomes = batch.attributes["frame.number"], batch.attributes["frame.outcome"]
    assert isinstance(numbers, np.ndarray)
    assert isinstance(outcomes, Strings)
    return [
        ReadableSpan(
            name=batch.name,
            context=SpanContext(
                int(batch.trace[i, 0]) << 64 | int(batch.trace[i, 1]),
                int(batch.span[i]),
                is_remote=False,
                trace_flags=TraceFlags(1),
            ),
            resource=resource,
            attributes={
                "pipeline.name": "cam0",
                "frame.number": int(numbers[i]),
                "frame.outcome": outcomes.table[outcomes.codes[i]],
            },
            status=Status(StatusCode.ERROR if outcomes.codes[i] else StatusCode.UNSET),
            start_time=int(batch.start[i]),
            end_time=int(batch.end[i]),
        )
        for i in range(len(batch))
    ]


def rates(action: Callable[[], object], spans: int) -> list[float]:
    """Spans a second of each repeat, after one to warm up."""
    action()
    result = []
    for _ in range(REPEATS):
        before = time.perf_counter()
        action()
        result.append(spans / (time.perf_counter() - before))
    return result


def main() -> None:
    """Prints the comparison."""
    batch, small = frames(SPANS), sdk_spans(frames(SDK_SPANS))
    ours = rates(lambda: encode_request(RESOURCE, [batch]), SPANS)
    theirs = rates(lambda: sdk_encode_spans(small).SerializeToString(), SDK_SPANS)
    for name, values in (("encode_request", ours), ("SDK encode_spans", theirs)):
        low, middle, high = min(values), statistics.median(values), max(values)
        print(f"{name:18}{middle:12,.0f} spans/s  (min {low:,.0f}, max {high:,.0f}, {REPEATS} repeats)")
    ratio = statistics.median(ours) / statistics.median(theirs)
    print(f"{'ratio':18}{ratio:12,.1f}")


if __name__ == "__main__":
    main()
