"""What a host costs in the stack at default settings, and how soon its frames' joules are known.

    python bench/hosts.py

An emulated meter at its 20 Hz and the host's metrics, alone and with a pipeline of three stages at 60 fps,
which draw nothing or each their own. Of each such host: series on the Collector's /metrics, spans and
archive bytes a second, how long the aligner's queue of 4 GiB would take it without an aligner, and the time
from a frame's end until the page (polled) has its joules. Four minutes in all.

Needs the Collector that tests/stack.sh builds.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from pathlib import Path

import numpy as np

from benchlab_otel import Probe
from benchlab_otel.archive.records import read_records
from benchlab_otel.model import Float
from benchlab_otel.otlp.client import OtlpClient
from benchlab_otel.otlp.decode import decode_traces
from benchlab_otel.simulate.device import Emulator
from benchlab_otel.simulate.truth import Load, Truth
from benchlab_otel.simulate.workload import STAGES, run_numpy, telling

sys.path.append(str(Path(__file__).parents[1] / "tests"))
from collector_stack import BINARY, PROGRAM, Collector, clean_environment, page, stack, total

FPS, WARM_UP_S, SECONDS = 60, 15.0, 30.0
QUEUE_BYTES = 4 << 30  # of all-in-one.yaml's otlp_grpc/aligner
COUNT = re.compile(r'^pipeline_frame_energy_joules_count\{domain="system",.*method="(\w+)".*\} (\S+)$', re.M)
Seen = list[tuple[float, dict[str, int]]]  # when (monotonic), and the frames told until then by each method
BASE = {"EPS1": 35.0, "ATX12V": 40.0, "PCIE1": 20.0}
SAME = Load(BASE, {stage: {} for stage in STAGES})
OWN = Load(
    BASE,
    dict(zip(STAGES, [{"EPS1": 60.0}, {"PCIE1": 180.0}, {"EPS1": 110.0, "ATX12V": 30.0}], strict=True)),
)


@dataclass(frozen=True)
class Host:
    """A kind of host, with or without a pipeline."""

    name: str
    product: str
    load: Load
    pipeline: bool = True


HOSTS = (
    Host("BENCHLAB 2, no pipeline", "benchlab2", SAME, pipeline=False),
    Host("ORIGINAL, a pipeline whose stages are not told apart", "original", SAME),
    Host("ORIGINAL, a pipeline whose stages are", "original", OWN),
    Host("BENCHLAB 2, a pipeline whose stages are", "benchlab2", OWN),
)


@dataclass(frozen=True)
class Taken:
    """What a Collector has taken from the aligner (energy) and from all others."""

    energy_spans: float
    spans: float
    energy_bytes: float  # of the archive, as are
    others_bytes: float  # these
    request_bytes: float  # of all others, not compressed


def measure(host: Host, folder: Path) -> None:
    """Runs a host's parts and prints what they cost."""
    truth = Truth(host.load)
    with (
        Emulator(truth, host.product, seed=1) as emulator,
        stack(folder) as (collector, _),
        exporting(emulator, collector, folder),
        watching(collector) as seen,
    ):
        client = OtlpClient(collector.http)
        probe = Probe("bench", sink=client)
        ends: list[float] = []

        def work(seconds: float) -> None:
            if not host.pipeline:
                time.sleep(seconds)
                return
            frames = round(seconds * FPS)
            run_numpy(probe.frame, tell, frames, FPS, lambda _: ends.append(time.monotonic()))

        tell = telling(truth.activity)
        work(WARM_UP_S)
        before, begin, first = taken(collector), time.monotonic(), len(ends)
        work(SECONDS)
        after, seconds = taken(collector), time.monotonic() - begin
        print(f"{host.name}: {cost(collector, before, after, seconds)}", flush=True)
        probe.close()
        client.close()
        assert not client.lost, client.lost
        time.sleep(4.0 if ends else 0.0)  # for the last frames' joules
    for method in sorted(seen[-1][1]):
        p50, p99 = np.percentile(delays(np.array(ends), seen, method)[first:], [50, 99])
        print(f"  from a frame's end to its joules, {method}: p50 {p50:.2f} s, p99 {p99:.2f} s", flush=True)


@contextmanager
def exporting(emulator: Emulator, collector: Collector, folder: Path) -> Iterator[None]:
    """The exporters of meter and host, at work in a process of their own."""
    port = {"BENCHLAB_OTEL_SOURCES__BENCHLAB__PORTS": str(emulator.path)}
    command = [*PROGRAM, "export", "benchlab", "host", "--otlp", collector.http]
    exporter = subprocess.Popen(command, env=clean_environment(folder) | port, stdout=subprocess.DEVNULL)
    try:
        yield
    finally:
        exporter.terminate()
        exporter.wait(30)


@contextmanager
def watching(collector: Collector) -> Iterator[Seen]:
    """What the page tells of how many frames have energies, and when."""
    seen: Seen = []
    stop = threading.Event()
    url = f"http://{collector.address['COLLECTOR_METRICS']}/metrics"

    def watch() -> None:
        while not stop.wait(0.05):
            found = {method: int(float(count)) for method, count in COUNT.findall(page(url))}
            seen.append((time.monotonic(), found))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield seen
    finally:
        stop.set()
        thread.join()


def delays(ends: Float, seen: Seen, method: str) -> Float:
    """Seconds (n,) from each frame's end (n,) until the page told of it.

    Frames that never got an energy by this method are taken to be the first ones: there was no reading, or
    too few to tell stages apart.
    """
    counts = np.array([found.get(method, 0) for _, found in seen])
    number = np.arange(1, len(ends) + 1) - (len(ends) - counts[-1])
    times = np.array([when for when, _ in seen])
    return times[np.searchsorted(counts, number)] - ends


def taken(collector: Collector) -> Taken:
    """What the Collector has taken until now."""
    name = "otelcol_receiver_accepted_spans_total"
    energy, others = collector.own(name, receiver="otlp/aligned"), collector.own(name, receiver="otlp")
    energy_bytes = others_bytes = request_bytes = 0
    for path in (collector.folder / "archive").glob("*"):
        for record in read_records(path, []):  # the last may be cut off
            if "energy" in decode_traces(record.body).names:
                energy_bytes += record.size
            else:
                others_bytes += record.size
                request_bytes += len(record.body)
    return Taken(energy, others, energy_bytes, others_bytes, request_bytes)


def cost(collector: Collector, before: Taken, after: Taken, seconds: float) -> str:
    """In words: series now, and what was taken between two moments."""
    series = [s for s in collector.metrics() if s.name != "target_info"]
    assert total(series, "hw_host_power_watts"), "the meter is not on the page"
    then, now = astuple(before), astuple(after)
    rates = Taken(*((b - a) / seconds for a, b in zip(then, now, strict=True)))
    energy_gb, others_gb = (rate * 86400 / 1e9 for rate in (rates.energy_bytes, rates.others_bytes))
    return (
        f"{len(series)} series, {rates.spans:.0f} spans/s and {rates.energy_spans:.0f} from the aligner,"
        f" archive {energy_gb + others_gb:.2f} GB a day, {energy_gb:.2f} of it energy;"
        f" {QUEUE_BYTES >> 30} GiB hold what comes in {QUEUE_BYTES / rates.request_bytes / 3600:.0f} h"
    )


def main() -> None:
    """Measures every kind of host."""
    if not BINARY.is_file():
        print(f"no {BINARY}: tests/stack.sh builds it, where go is")
        return
    with tempfile.TemporaryDirectory() as folder:
        for number, host in enumerate(HOSTS):
            measure(host, Path(folder) / str(number))


if __name__ == "__main__":
    main()
