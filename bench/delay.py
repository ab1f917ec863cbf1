"""How long after a frame's end its joules are out, and what takes how much of that.

    python bench/delay.py [--seconds 40] [--rate 20] [--meters 1] [--fps 60]

The embedded path for real: emulated BENCHLABs on ptys, and a pipeline of three stages with the probe, in a
process of their own; sources, OTLP receiver, archive, hub and live aligner here. What counts is from the
frame's end (its own span's) to the moment when its energy span is given out, with conditioned figures of
all domains, for frames that ended 2 s or more after the first such one was out: so while fits are renewed
more often than later on. "Interpolated" is when the frame's interpolated joules are told on /metrics.

A frame waits for several things at once. Each line says how much longer it waited for this one than for
those above it, so they add up to the whole; "alone" is how long it waited for this one in any case.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from benchlab_otel import Probe, sources
from benchlab_otel.align.columns import words
from benchlab_otel.align.frames import frame_key
from benchlab_otel.archive.session import create
from benchlab_otel.cli.live import LiveAligner, own_resource
from benchlab_otel.config import Align, Benchlab, Settings, Sources
from benchlab_otel.contract import PIPELINE_NAME, SAMPLE
from benchlab_otel.hub.http import HttpServer, otlp_app
from benchlab_otel.hub.hub import Hub
from benchlab_otel.hub.metrics import MetricStore
from benchlab_otel.model import Float, Int, Resource, Spans
from benchlab_otel.otlp.client import OtlpClient
from benchlab_otel.otlp.decode import decode_traces
from benchlab_otel.simulate.device import Emulator, Meter
from benchlab_otel.simulate.truth import Load, Truth
from benchlab_otel.simulate.workload import STAGES, run_numpy, telling
from benchlab_otel.timebase import anchor

GOAL_S, SLOW_HZ = 1.0, 5.0
SETTLED_NS, PATIENCE_S = 2_000_000_000, 60.0
LAG_S, WIDTH_S = 0.004, 0.05
LOAD = Load(
    {"EPS1": 35.0, "ATX12V": 40.0, "PCIE1": 20.0},
    dict(zip(STAGES, [{"EPS1": 60.0}, {"PCIE1": 180.0, "EPS1": 40.0}, {"EPS1": 110.0}], strict=True)),
)


@dataclass
class Seen:
    """What the live path took in and gave out, each with when (Unix ns on the time base).

    `taken` is for each block that the aligner took: when, the latest end of any span, and of each meter's
    readings the latest time.
    """

    frames: list[tuple[int, Spans]] = field(default_factory=list)
    taken: list[tuple[int, int, dict[str, int]]] = field(default_factory=list)
    given: list[tuple[int, bytes]] = field(default_factory=list)
    cpu_s: float = 0.0  # of the aligner, and how many times it was called
    conditioned: bool = False
    until_ns: int = 0  # frames that end later don't count: what gives out the last ones is the end

    def note(self, spans: Spans) -> None:
        """Before the aligner takes them, and changes them."""
        now = anchor().now_ns()
        samples = spans.name == (spans.names.index(SAMPLE) if SAMPLE in spans.names else -1)
        meter, meters = words(spans, "hw.id", np.flatnonzero(samples))
        middle = ((spans.start + spans.end) // 2)[samples]
        newest = {name: int(middle[meter == i].max()) for i, name in enumerate(meters)}
        self.taken.append((now, int(spans.end.max()), newest))
        if not samples.all():
            self.frames.append((now, spans))


class Watched:
    """A live aligner that notes what goes in and out."""

    def __init__(self, resource: Resource, seen: Seen) -> None:
        self._seen = seen
        self._live = LiveAligner(Settings(), resource, anchor(), self._give_out)
        self.latency = self._live.latency

    def take(self, spans: Spans) -> None:
        """As the hub calls it."""
        self._seen.note(spans)
        begin = time.thread_time()
        self._live.take(spans)
        self._seen.cpu_s += time.thread_time() - begin

    def _give_out(self, body: bytes) -> None:
        self._seen.given.append((anchor().now_ns(), body))
        self._seen.conditioned |= b"conditioned" in body


@contextmanager
def embedded(ports: list[str], rate_hz: float, folder: Path, seen: Seen) -> Iterator[str]:
    """What `run` runs, but for the page; its OTLP endpoint."""
    window_ms = WIDTH_S * 1e3 if rate_hz < SLOW_HZ else None  # not to be found from so few readings
    lag_ms = LAG_S * 1e3 if window_ms else None
    resource = own_resource("bench", anchor())
    with ExitStack() as closing:
        archive = create(folder, anchor(), ["bench"])
        closing.callback(archive.close)
        live = Watched(resource, seen)
        hub = Hub(archive, live.take, MetricStore(), resource, anchor())
        closing.callback(hub.close)
        server = HttpServer(otlp_app(hub), "127.0.0.1", 0, "bench")
        closing.callback(server.close)
        meter = Benchlab(rate_hz, tuple(ports), lag_ms=lag_ms, window_ms=window_ms)
        running = sources.start(["benchlab"], Sources(benchlab=meter), hub, "bench", latency=live.latency)
        closing.callback(running.stop)
        yield f"http://127.0.0.1:{server.port}"


def work(meters: int, fps: float) -> None:
    """The other process: tells the ports of its meters, is told the endpoint, works until its input ends."""
    truth = Truth(LOAD)
    made = Meter(LAG_S, WIDTH_S, noise=0.2, delay=0.0005, jitter=0.0005)
    with ExitStack() as closing:
        emulators = [closing.enter_context(Emulator(truth, meter=made, seed=i)) for i in range(meters)]
        print(*(emulator.path for emulator in emulators), flush=True)
        client = OtlpClient(sys.stdin.readline().strip())
        probe = Probe("bench", sink=client)
        run_numpy(probe.frame, telling(truth.activity), 1 << 30, fps, lambda _: None)


# -- what was seen --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Waits:
    """For n frames, s from each one's end: `given` and the waits by name, each (n,)."""

    given: Float
    conditioned: int  # how many of the n are
    waits: dict[str, Float]


def waits_of(seen: Seen) -> Waits:
    """The waits of all frames that ended long enough after the first conditioned one."""
    key, given, conditioned = given_out(seen)
    arrived, frames, end = arrivals(seen)
    order = np.argsort(frames)
    at = order[np.minimum(np.searchsorted(frames, key, sorter=order), len(order) - 1)]
    settled = int(given[conditioned].min()) + SETTLED_NS
    mine = (frames[at] == key) & (end[at] >= settled) & (end[at] < seen.until_ns)
    at, given, conditioned = at[mine], given[mine], conditioned[mine]
    end = end[at]
    when, watermark, covered = milestones(seen)
    lateness = round(Align().lateness_s * 1e9)
    lag = round(LAG_S * 1e9)
    waits = {
        "its span (probe, hub)": arrived[at],
        "late spans (0.3 s)": first_past(when, watermark, end + lateness),
        "readings past it": first_past(when, covered, end + lag),
        "look-ahead, a step": when[np.searchsorted(when, given, side="right") - 1],
        "work": given,
    }
    return Waits(since(given, end), int(conditioned.sum()), {k: since(v, end) for k, v in waits.items()})


def given_out(seen: Seen) -> tuple[np.ndarray, Int, np.ndarray]:
    """Of each frame's energy span: its frame's key, when it was given out, and whether all is conditioned."""
    keys, times, full = [], [], []
    for now, body in seen.given:
        spans = decode_traces(body)
        rows = np.arange(len(spans))
        methods = [words(spans, name, rows) for name in spans.attributes if name.endswith(".method")]
        done = [np.array([n == "conditioned" for n in names])[codes] for codes, names in methods]
        keys.append(frame_key(spans.trace, spans.parent))
        times.append(np.full(len(spans), now))
        full.append(np.all(done, axis=0) if done else np.zeros(len(spans), bool))
    return np.concatenate(keys), np.concatenate(times), np.concatenate(full)


def arrivals(seen: Seen) -> tuple[Int, np.ndarray, Int]:
    """When each frame's own span came to the aligner, its key, and its end."""
    times, keys, ends = [], [], []
    for now, spans in seen.frames:
        rows = spans.attributes[PIPELINE_NAME].rows if PIPELINE_NAME in spans.attributes else []
        rows = np.array(rows, np.int64)
        rows = rows[spans.parent[rows] == 0]
        times.append(np.full(len(rows), now))
        keys.append(frame_key(spans.trace[rows], spans.span[rows]))
        ends.append(spans.end[rows])
    return np.concatenate(times), np.concatenate(keys), np.concatenate(ends)


def milestones(seen: Seen) -> tuple[Int, Int, Int]:
    """When each block came (b,), the event time then, and the time up to which all meters had read."""
    when = np.array([now for now, _, _ in seen.taken])
    watermark = np.maximum.accumulate(np.array([latest for _, latest, _ in seen.taken]))
    meters = {meter for _, _, newest in seen.taken for meter in newest}
    each = [np.maximum.accumulate([n.get(meter, 0) for _, _, n in seen.taken]) for meter in meters]
    return when, watermark, np.min(each, axis=0)


def first_past(when: Int, reached: Int, wanted: Int) -> Int:
    """When (n,) what is `reached` (b,) was first at or past what is `wanted` (n,)."""
    return when[np.minimum(np.searchsorted(reached, wanted), len(when) - 1)]


def since(times: Int, ends: Int) -> Float:
    """Seconds."""
    return (times - ends) / 1e9


# -- in words -------------------------------------------------------------------------------------


def show(found: Waits, slow: bool) -> None:
    """The whole, and what each part adds to it; a `slow` meter may cover a frame later than the goal."""
    print(f"{'':26}{'p50':>8} {'p90':>8} {'p99':>8}")
    said = "reached" if np.percentile(found.given, 99) <= GOAL_S else "MISSED"
    goal = "goal: once the meter has covered it" if slow else f"goal p99 ≤{GOAL_S:g} s: {said}"
    line("joules out, conditioned", found.given, goal)
    line("  since it was covered", found.given - found.waits["readings past it"])
    *others, _, _ = found.waits.values()
    line("interpolated", np.max(others, axis=0))
    print(f"{'  of it, waiting for':26}{'':26} {'alone p50':>12} {'p99':>6}")
    before = np.zeros(len(found.given))
    for name, wait in found.waits.items():
        now = np.maximum(before, wait)
        alone = [*np.percentile(wait, [50, 99])]
        line("  " + name, now - before, f"{alone[0]:10.3f} {alone[1]:8.3f}")
        before = now
    n = len(found.given)
    print(f"{n:,} frames; {n - found.conditioned:,} of them without conditioned figures of all domains")


def line(name: str, values: Float, more: str = "") -> None:
    """Percentiles in seconds."""
    p50, p90, p99 = np.percentile(values, [50, 90, 99])
    print(f"{name:26}{p50:8.3f} {p90:8.3f} {p99:8.3f}   {more}")


def measure(seconds: float, rate_hz: float, meters: int, fps: float) -> None:
    """One run, in words."""
    seen = Seen()
    command = [sys.executable, __file__, "--work", "--meters", str(meters), "--fps", str(fps)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with tempfile.TemporaryDirectory() as folder, subprocess.Popen(command, **pipes) as worker:
        assert worker.stdin
        assert worker.stdout
        try:
            ports = worker.stdout.readline().split()
            with embedded(ports, rate_hz, Path(folder), seen) as endpoint:
                print(endpoint, file=worker.stdin, flush=True)
                begin = time.monotonic()
                while not seen.conditioned and time.monotonic() < begin + PATIENCE_S:
                    time.sleep(0.1)
                time.sleep(SETTLED_NS / 1e9)
                cpu, ours, calls, wall = time.process_time(), seen.cpu_s, len(seen.taken), time.monotonic()
                time.sleep(seconds)
                wall = time.monotonic() - wall
                cpu, ours = (time.process_time() - cpu) / wall, (seen.cpu_s - ours) / wall
                calls = len(seen.taken) - calls
                seen.until_ns = anchor().now_ns() - SETTLED_NS
                worker.terminate()
        finally:
            worker.terminate()
    print(f"{fps:g} fps of {len(STAGES)} stages, {meters} meter(s) at {rate_hz:g} Hz, {seconds:g} s")
    if not seen.conditioned:
        print(f"no conditioned figures within {PATIENCE_S:g} s")
        return
    show(waits_of(seen), rate_hz < SLOW_HZ)
    print(f"{cpu:.1%} of a core in all, {ours:.1%} aligning ({calls / wall:.1f} blocks/s)")


def main() -> None:
    """One run, or the process beside it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=40.0)
    parser.add_argument("--rate", type=float, default=20.0, help="Hz of each meter")
    parser.add_argument("--meters", type=int, default=1)
    parser.add_argument("--fps", type=float, default=60.0)
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.work:
        work(given.meters, given.fps)
    else:
        measure(given.seconds, given.rate, given.meters, given.fps)


if __name__ == "__main__":
    main()
