"""The stack's speed: spans into a Collector, from a frame's end to its joules on /metrics, and a host's cost.

    python bench/collector.py

1. Frames of three stages go into one Collector (all-in-one.yaml), in turns from our Probe and from the
   OpenTelemetry SDK with its BatchSpanProcessor (default batches), both by OTLP/HTTP and with a queue
   that is large enough to drop nothing, as either outruns a busy Collector, which has memory enough to
   refuse nobody: the SDK gives refused spans up after 10 s. Wall time runs from the first frame until
   the Collector has taken all, so a sender is never faster than what it delivers; CPU is that of the
   sending process and of the Collector, each per span.
2. An emulated meter at its default 20 Hz, the host's metrics and a pipeline at 60 fps, all
   at default settings: how long after its end a frame's joules are on the Collector's /metrics (polled), and
   how many series, spans and archive bytes such a host makes.

Needs the Collector that tests/stack.sh builds.
"""

from __future__ import annotations

import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

from benchlab_otel import Probe
from benchlab_otel.otlp.client import OtlpClient

sys.path.append(str(Path(__file__).parents[1] / "tests"))
from collector_stack import BINARY, PROGRAM, Collector, clean_environment, running, stack, total

STAGES = ("decode", "infer", "encode")
PROBE_FRAMES, SDK_FRAMES, REPEATS = 100_000, 10_000, 5
DEADLINE_S = 120.0
FPS, SECONDS = 60, 30.0


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


# -- a host at default settings ---------------------------------------------------------------------------

COUNT = re.compile(r'^pipeline_frame_energy_joules_count\{domain="system",.*\} (\S+)$', re.M)


def frames_told(url: str) -> int:
    """Frames whose energy is on the page."""
    with urllib.request.urlopen(url, timeout=30) as page:
        return int(sum(map(float, COUNT.findall(page.read().decode()))))


def watch(url: str, seen: list[tuple[float, int]], stop: threading.Event) -> None:
    """Notes when (monotonic) the page told of how many frames."""
    while not stop.wait(0.02):
        count = frames_told(url)
        seen.append((time.monotonic(), count))


def work(url: str) -> list[float]:
    """Frames at a steady rate; when each ended (monotonic)."""
    client = OtlpClient(url)
    probe = Probe("bench", sink=client)
    ends = []
    start = time.monotonic()
    for number in range(round(FPS * SECONDS)):
        time.sleep(max(0.0, start + number / FPS - time.monotonic()))
        with probe.frame() as frame:
            for stage in STAGES:
                with frame.stage(stage):
                    time.sleep(0.002)
        ends.append(time.monotonic())
    probe.close()
    client.close()
    return ends


def a_host(folder: Path) -> None:
    """Prints latency and cost of a host at default settings."""
    environment = clean_environment(folder)
    with stack(folder) as (collector, _):
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        emulator = subprocess.Popen([*PROGRAM, "emulate", "--seed", "1"], **pipes, text=True)
        assert emulator.stdout is not None
        port = {"BENCHLAB_OTEL_SOURCES__BENCHLAB__PORTS": emulator.stdout.readline().strip()}
        command = [*PROGRAM, "export", "benchlab", "host", "--otlp", collector.http]
        exporter = subprocess.Popen(command, env=environment | port, stdout=subprocess.DEVNULL)
        try:
            time.sleep(3.0)
            measure_host(collector)
        finally:
            for process in (exporter, emulator):
                process.terminate()
                process.wait(30)


def measure_host(collector: Collector) -> None:
    """Runs the pipeline and prints what came of it."""
    url = f"http://{collector.address['COLLECTOR_METRICS']}/metrics"
    seen: list[tuple[float, int]] = []
    stop = threading.Event()
    watcher = threading.Thread(target=watch, args=(url, seen, stop))
    spans, size, begin = accepted(collector), archive_bytes(collector), time.monotonic()
    watcher.start()
    ends = work(collector.http)
    spans, size = accepted(collector) - spans, archive_bytes(collector) - size
    seconds = time.monotonic() - begin
    time.sleep(4.0)
    stop.set()
    watcher.join()
    latencies = after(ends, seen)
    p50, p99 = np.percentile(latencies, [50, 99])
    print(
        f"From a frame's end to its joules on /metrics: p50 {p50:.2f} s, p99 {p99:.2f} s"
        f" ({len(latencies)} of {len(ends)} frames)"
    )
    series = [s for s in collector.metrics() if s.name != "target_info"]
    pipeline = sum(s.name.startswith("pipeline_") for s in series)
    assert total(series, "hw_host_power_watts"), "the meter is not on the page"
    print(
        f"A host (meter at 20 Hz, host, one pipeline of {len(STAGES)} stages at {FPS} fps):"
        f" {len(series)} series ({pipeline} of the pipeline), {spans / seconds:,.0f} spans/s,"
        f" {size / seconds / 1e3:.1f} kB/s = {size / seconds * 86400 / 1e9:.2f} GB a day in the archive"
        f" ({size / spans:.0f} bytes a span)"
    )


def after(ends: list[float], seen: list[tuple[float, int]]) -> list[float]:
    """Seconds from each frame's end until the page told of so many frames; without those it never told of."""
    counts = np.array([count for _, count in seen])
    first = np.searchsorted(np.maximum.accumulate(counts), np.arange(1, len(ends) + 1))
    return [seen[at][0] - end for at, end in zip(first, ends, strict=True) if at < len(seen)]


def archive_bytes(collector: Collector) -> int:
    """Bytes of the archive's files."""
    return sum(path.stat().st_size for path in (collector.folder / "archive").glob("*"))


def main() -> None:
    """Runs both."""
    if not BINARY.is_file():
        print(f"no {BINARY}: tests/stack.sh builds it, where go is")
        return
    with tempfile.TemporaryDirectory() as folder:
        compare(Path(folder) / "compare")
        a_host(Path(folder) / "host")


if __name__ == "__main__":
    main()
