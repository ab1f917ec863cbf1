"""The stack's speed: spans into a Collector, by our Probe and by the OpenTelemetry SDK.

    python bench/collector.py

Frames of three stages go into one Collector (all-in-one.yaml), in turns from our Probe and from the SDK with
its BatchSpanProcessor (default batches), both by OTLP/HTTP and with a queue that is large enough to drop
nothing, as either outruns a busy Collector, which has memory enough to refuse nobody: the SDK gives refused
spans up after 10 s. Wall time runs from the first frame until the Collector has taken all, so a sender is
never faster than what it delivers; CPU is that of the sending process and of the Collector, each per span.
What a host costs in the stack is measured by bench/hosts.py.

Needs the Collector that tests/stack.sh builds.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

from benchlab_otel import Probe
from benchlab_otel.otlp.client import OtlpClient

sys.path.append(str(Path(__file__).parents[1] / "tests"))
from collector_stack import BINARY, Collector, running

STAGES = ("decode", "infer", "encode")
PROBE_FRAMES, SDK_FRAMES, REPEATS = 100_000, 10_000, 5
DEADLINE_S = 120.0


@dataclass(frozen=True)
class Cost:
    """What it took to get spans into the Collector."""

    spans: int
    wall_s: float
    sender_cpu_s: float
    collector_cpu_s: float

    @property
    def rate(self) -> float:
        """Spans a second."""
        return self.spans / self.wall_s


def by_probe(url: str) -> int:
    """Spans that our probe sent."""
    client = OtlpClient(url, queue_bytes=1 << 30)
    probe = Probe("bench", sink=client)
    for _ in range(PROBE_FRAMES):
        with probe.frame() as frame:
            for stage in STAGES:
                with frame.stage(stage):
                    pass
    probe.close()
    client.close(DEADLINE_S)
    assert not client.lost, client.lost
    return PROBE_FRAMES * (1 + len(STAGES))


def by_sdk(url: str) -> int:
    """Spans that the SDK sent, with the attributes that the probe's have."""
    provider = TracerProvider(resource=Resource.create({"service.name": "bench"}))
    exporter = OTLPSpanExporter(f"{url}/v1/traces")
    provider.add_span_processor(BatchSpanProcessor(exporter, max_queue_size=1 << 20))
    tracer = provider.get_tracer("bench")
    for number in range(SDK_FRAMES):
        attributes = {"pipeline.name": "bench", "frame.number": number, "frame.outcome": "completed"}
        with tracer.start_as_current_span("frame", trace.Context(), attributes=attributes):
            for stage in STAGES:
                with tracer.start_as_current_span(stage, attributes={"pipeline.stage": stage}):
                    pass
    provider.shutdown()
    return SDK_FRAMES * (1 + len(STAGES))


def measured(send: Callable[[str], int], collector: Collector) -> Cost:
    """One turn of one way; fails where the Collector has not taken all."""
    before = accepted(collector)
    process = psutil.Process(collector.pid)
    cpu, ours, begin = busy(process), time.process_time(), time.perf_counter()
    spans = send(collector.http)
    while accepted(collector) - before < spans:
        assert time.perf_counter() - begin < DEADLINE_S, "the Collector did not take all spans"
        time.sleep(0.01)
    wall = time.perf_counter() - begin
    return Cost(spans, wall, time.process_time() - ours, busy(process) - cpu)


def accepted(collector: Collector) -> float:
    """Spans that the Collector has taken."""
    return collector.own("otelcol_receiver_accepted_spans_total")


def busy(process: psutil.Process) -> float:
    """CPU seconds of a process."""
    times = process.cpu_times()
    return float(times.user + times.system)


def compare(folder: Path) -> None:
    """Prints spans/s and CPU of both ways."""
    costs: dict[str, list[Cost]] = {"Probe": [], "SDK": []}
    with running(Collector(folder, "all-in-one", COLLECTOR_MEMORY_MIB="2048")) as collector:
        for repeat in range(REPEATS + 1):
            for name, send in (("Probe", by_probe), ("SDK", by_sdk)):
                cost = measured(send, collector)
                if repeat:  # the first is to warm up
                    costs[name].append(cost)
    print("Into the Collector (all-in-one.yaml) by OTLP/HTTP: a frame and three stages")
    for name, found in costs.items():
        rates = sorted(cost.rate / 1e3 for cost in found)
        sender, receiver = (
            statistics.median(1e6 * seconds / cost.spans for cost, seconds in pairs)
            for pairs in ([(c, c.sender_cpu_s) for c in found], [(c, c.collector_cpu_s) for c in found])
        )
        print(
            f"  {name:6} {rates[0]:7,.0f} {statistics.median(rates):7,.0f} {rates[-1]:7,.0f} k spans/s"
            f" (min, median, max of {REPEATS});"
            f" CPU a span: sender {sender:5.2f} µs, Collector {receiver:5.2f} µs"
        )
    ratios = sorted(ours.rate / theirs.rate for ours, theirs in zip(*costs.values(), strict=True))
    low, high, middle = ratios[0], ratios[-1], statistics.median(ratios)
    print(f"  {middle:.1f} times the SDK's spans/s ({low:.1f} to {high:.1f}, turn by turn)")


def main() -> None:
    """Compares them, where there is a Collector."""
    if not BINARY.is_file():
        print(f"no {BINARY}: tests/stack.sh builds it, where go is")
        return
    with tempfile.TemporaryDirectory() as folder:
        compare(Path(folder))


if __name__ == "__main__":
    main()
