"""The cost of reading meters, and how late it reads, beside the loop that a user would write.

    python bench/sampling.py [SECONDS]

RAPL at 1 kHz on a powercap tree of three zones, and on one of one zone, encoded into a sink that
counts; the loop opens and reads the three files, sleeps for a millisecond and keeps nothing; "sleep"
only wakes up a thousand times a second: what this machine's kernel (and hypervisor) takes for that
alone, and "sleep, read" reads the three files besides. Then every source at 20 Hz (host at 1 Hz), BENCHLAB
as an emulator in another process and NVML as the tests' stub library, the kernel's drivers as the /sys of
real machines (tests/sysfs): so without the time that a driver takes. "sent by OTLP": not into a sink that
counts, but to a server in another process. "sleep" is again the wakes alone, "sleep, read" makes the same
reads by bare calls in one loop (as many files, the BENCHLAB's port, NVIDIA's bindings, and psutil each
second), and nothing is kept or sent. Each of these has a process of its own.
Each for SECONDS (default 10) and three repeats, in turn; prints the share of one core as median, min
and max over the repeats. Opening devices is not counted: three seconds pass before the clock starts.

Lateness is the instant of a reading (its span's start) minus the instant that was planned for it.
"""

from __future__ import annotations

import ctypes
import os
import select
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing, contextmanager
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import psutil
import pynvml
import serial

sys.path.append(str(Path(__file__).parents[1] / "tests"))  # its fixtures of real machines

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from benchlab_otel import sources, wire
from benchlab_otel.config import Benchlab, Drm, Hwmon, Nvml, PowerSupply, Rapl, Sources
from benchlab_otel.otlp.client import OtlpClient
from benchlab_otel.sources import rapl
from benchlab_otel.sources.runner import Runner
from benchlab_otel.sources.schedule import Schedule
from benchlab_otel.timebase import anchor
from machines import unpack

RATE_HZ, REPEATS = 1000.0, 3
SETTLED_S = 3.0  # devices come together when they first tell
ONE_ZONE = {"0": "package-0"}
ZONES = ONE_ZONE | {"0:0": "core", "0:1": "dram"}
EDGES_US = [0, 50, 100, 150, 200, 300, 500, 1_000, 2_000, 5_000, 10_000]
Read = Callable[[], object]


class Counting:
    """A sink that counts bytes."""

    bytes = 0

    def traces(self, body: bytes) -> None:
        """Takes the request."""
        self.bytes += len(body)

    def metrics(self, body: bytes) -> None:
        """Takes the request."""
        self.bytes += len(body)


class Keeping(Counting):
    """A sink that keeps the trace requests."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []

    def traces(self, body: bytes) -> None:
        """Takes the request."""
        self.bodies.append(body)


class NotedSchedule(Schedule):
    """A schedule that notes what it planned."""

    def __init__(self, period: float, begin: float) -> None:
        super().__init__(period, begin, seed=1)
        self.planned: list[float] = []

    def next(self, now: float) -> float:
        """The next deadline."""
        deadline = super().next(now)
        self.planned.append(deadline)
        return deadline


def fixture(root: Path, zones: dict[str, str] = ZONES) -> list[Path]:
    """A powercap tree; the files that hold its counters."""
    for number, name in zones.items():
        folder = root / "class/powercap" / f"intel-rapl:{number}"
        folder.mkdir(parents=True)
        (folder / "name").write_text(f"{name}\n")
        (folder / "max_energy_range_uj").write_text("262143328850\n")
        (folder / "energy_uj").write_text("123456789012\n")
    return sorted(root.glob("class/powercap/*/energy_uj"))


# -- what is compared: each runs for some seconds ---------------------------------------------


def sampled(names: list[str], settings: Sources, seconds: float, endpoint: str = "") -> float:
    """Our sources, into a sink that counts, or sent to an endpoint."""
    sink = OtlpClient(endpoint, environ={}) if endpoint else Counting()
    running = sources.start(names, settings, sink, "bench")
    time.sleep(SETTLED_S)
    share = measured(lambda: time.sleep(seconds))
    running.stop()
    for health in running.health():
        assert health.ok, health.message
        expected = seconds * getattr(settings, health.source).rate_hz
        assert health.readings > 0.9 * expected - 1, f"{health.source}: {health.readings} readings"
    if isinstance(sink, OtlpClient):
        sink.close()
        assert sink.sent
        assert not sink.lost
    else:
        assert sink.bytes
    return share


def fresh(way: Callable[[], float], library: str) -> float:
    """What a way takes in a new process, as an exporter is one, whatever ran here before."""
    loading = (ctypes.CDLL, (library,)) if library else (None, ())
    with ProcessPoolExecutor(1, get_context("spawn"), *loading) as pool:
        return pool.submit(way).result()


def measured(way: Callable[[], None]) -> float:
    """CPU time of this process as a share of a core while it runs."""
    cpu, wall = time.process_time(), time.monotonic()
    way()
    return (time.process_time() - cpu) / (time.monotonic() - wall)


def loop(files: list[Path], seconds: float) -> None:
    """Opens, reads and sleeps."""
    end = time.monotonic() + seconds
    values = []
    while time.monotonic() < end:
        values = [int(open(file).read()) for file in files]  # noqa: PTH123, SIM115 - as a user writes it
        time.sleep(1 / RATE_HZ)
    assert values


def only_wake(rate: float, seconds: float, reads: Sequence[Read] = (), each_second: Read = time.time) -> None:
    """Wakes up as often as a sampler, reads, and does nothing else."""
    begin = time.monotonic()
    schedule, end, second = Schedule(1 / rate, begin, seed=1), begin + seconds, begin
    while (due := schedule.next(time.monotonic())) < end:
        time.sleep(max(0.0, due - time.monotonic()))
        for read in reads:
            read()
        if due >= second:
            second += 1.0
            each_second()


def pread_all(files: Sequence[int]) -> None:
    """Reads open files from their beginning."""
    for file in files:
        os.pread(file, 32, 0)


@contextmanager
def opened(files: Sequence[Path]) -> Iterator[list[int]]:
    """The files, open."""
    numbers = [os.open(file, os.O_RDONLY) for file in files]
    yield numbers
    for number in numbers:
        os.close(number)


@contextmanager
def bare_reads(settings: Sources, with_nvml: bool) -> Iterator[list[Read]]:
    """What the sources read each time, by bare calls: as many files, an exchange with the BENCHLAB, NVML."""
    count = sum(sum(sizes(name, settings)) for name in ("rapl", "drm", "hwmon", "power_supply"))
    files = sorted(file for file in settings.drm.sysfs.rglob("*") if file.is_file())[:count]
    (size,), (port,) = sizes("benchlab", settings), settings.benchlab.ports
    with opened(files) as numbers, serial.Serial(port, wire.BAUD_RATE) as line:
        readable = select.poll()
        readable.register(line, select.POLLIN)
        exchange = partial(ask, line.fileno(), readable, size)
        yield [partial(pread_all, numbers), exchange, *(gpu_reads() if with_nvml else [])]


def bare(settings: Sources, with_nvml: bool, seconds: float) -> float:
    """All of that, and the host."""
    with bare_reads(settings, with_nvml) as reads:
        return measured(partial(only_wake, 20.0, seconds, reads, host_read))


def gpu_reads() -> list[Read]:
    """Energy and powers of the GPU, by NVIDIA's bindings."""
    pynvml.nvmlInit()
    gpu = pynvml.nvmlDeviceGetHandleByIndex(0)
    powers = [pynvml.NVML_FI_DEV_POWER_INSTANT, pynvml.NVML_FI_DEV_POWER_AVERAGE]
    return [
        partial(pynvml.nvmlDeviceGetTotalEnergyConsumption, gpu),
        partial(pynvml.nvmlDeviceGetFieldValues, gpu, powers),
    ]


def host_read() -> None:
    """The host, by psutil."""
    psutil.cpu_times()
    psutil.virtual_memory()
    psutil.swap_memory()
    psutil.disk_io_counters(perdisk=True)
    psutil.net_io_counters(pernic=True)


def ask(line: int, readable: select.poll, size: int) -> None:
    """One reading of a BENCHLAB."""
    os.write(line, bytes([wire.READ_SENSORS]))
    while size and readable.poll(1e3):
        size -= len(os.read(line, size))
    assert not size


def sizes(name: str, settings: Sources) -> list[int]:
    """How much a source reads each time: texts, or bytes; for each device."""
    source, section, found = sources.load(name), getattr(settings, name), []
    for address in source.addresses(section):
        with closing(source.open_reader(section, address)) as reader:
            found.append(len(reader.read()[2]))
    return found


def shares(ways: dict[str, Callable[[], float]]) -> dict[str, list[float]]:
    """The share of a core, for each way and repeat, in turn."""
    result: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(REPEATS):
        for name, way in ways.items():
            result[name].append(way())
    return result


def tell(result: dict[str, list[float]]) -> None:
    """One line a way."""
    for name, values in result.items():
        low, middle, high = min(values), statistics.median(values), max(values)
        print(f"{name:28}{middle:8.2%} of a core  (min {low:.2%}, max {high:.2%}, {len(values)} repeats)")


# -- lateness ---------------------------------------------------------------------------------


def lateness(tree: Path, seconds: float) -> np.ndarray:
    """Actual minus planned instants of RAPL at 1 kHz, µs."""
    sink, schedule = Keeping(), NotedSchedule(1 / RATE_HZ, time.monotonic())
    settings = Rapl(sysfs=tree)
    (address,) = rapl.addresses(settings)
    runner = Runner(
        "rapl",
        address,
        lambda: rapl.open_reader(settings, address),
        schedule,
        [],
        sink,
        lambda device: {},
        flush_s=lambda: 1.0,
        metrics_s=1.0,
    )
    runner.start()
    time.sleep(seconds)
    runner.stop(time.monotonic() + seconds)
    requests = (ExportTraceServiceRequest.FromString(body) for body in sink.bodies)
    spans = (span for request in requests for span in request.resource_spans[0].scope_spans[0].spans)
    actual = np.array([span.start_time_unix_nano for span in spans if span.name == "sample"])
    planned = np.array(schedule.planned[: len(actual)]) * 1e9 + anchor().offset_ns
    return (actual - planned) / 1e3


def show_histogram(late: np.ndarray) -> None:
    """Counts by lateness, with percentiles."""
    counts, _ = np.histogram(late, [*EDGES_US, np.inf])
    for low, high, count in zip(EDGES_US, [*EDGES_US[1:], np.inf], counts, strict=True):
        if count:
            bar = "#" * max(1, round(60 * count / counts.max()))
            print(f"  {low:6,} to {high:6,.0f} us {count:7,} {bar}")
    p50, p99 = np.percentile(late, [50, 99])
    print(f"  p50 {p50:,.0f} us, p99 {p99:,.0f} us, max {late.max():,.0f} us, {len(late):,} readings")


@contextmanager
def emulator() -> Iterator[str]:
    """The port of an emulated device in another process."""
    program = "from benchlab_otel.cli import main; main()"
    options = ["--seed", "1", "--watts", "EPS1=80"]
    with in_background([sys.executable, "-c", program, "emulate", *options]) as port:
        yield port


_TAKES_ALL = """
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_POST(self):
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()
    def log_message(self, *_):
        pass
server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
print(server.server_port, flush=True)
server.serve_forever()
"""


@contextmanager
def backend() -> Iterator[str]:
    """The endpoint of a server that takes all, in another process."""
    with in_background([sys.executable, "-c", _TAKES_ALL]) as port:
        yield f"http://127.0.0.1:{port}"


@contextmanager
def in_background(command: Sequence[str]) -> Iterator[str]:
    """The first line that a command says while it runs."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout
        try:
            yield process.stdout.readline().strip()
        finally:
            process.terminate()


def nvml(folder: Path) -> str:
    """The stub: the bindings get it by its name where it is loaded already; "" without a compiler."""
    if not shutil.which("gcc"):
        print("nvml is left out: no gcc to build the stub with")
        return ""
    tests, library = Path(__file__).parents[1] / "tests/nvml", folder / "libnvidia-ml.so.1"
    options = ["-shared", "-fPIC", "-O2", "-pthread", f"-Wl,-soname,{library.name}"]
    subprocess.run(["gcc", *options, "-o", library, tests / "stub.c"], check=True)
    os.environ["NVML_STUB"] = str(tests / "full.txt")
    return str(library)


def main() -> None:
    """Prints the comparison."""
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 10.0
    with tempfile.TemporaryDirectory() as folder, emulator() as port, backend() as endpoint:
        tree = Path(folder)
        files = fixture(tree)
        fixture(tree / "one", ONE_ZONE)
        fast = Sources(rapl=Rapl(rate_hz=RATE_HZ, sysfs=tree))
        fast_one = Sources(rapl=Rapl(rate_hz=RATE_HZ, sysfs=tree / "one"))
        laptop = unpack("thinkpad-x1-i7-8550u", tree / "laptop")
        desktop = unpack("ryzen-5950x-rx6800xt", tree / "desktop")
        slow = Sources(
            benchlab=Benchlab(ports=(port,)),
            rapl=Rapl(rate_hz=20.0, sysfs=laptop),
            nvml=Nvml(rate_hz=20.0),
            drm=Drm(rate_hz=20.0, sysfs=desktop),
            hwmon=Hwmon(rate_hz=20.0, sysfs=desktop),
            power_supply=PowerSupply(rate_hz=20.0, sysfs=laptop),
        )
        print("RAPL at 1 kHz")
        with opened(files) as numbers:
            reading = partial(pread_all, numbers)
            result = shares(
                {
                    "rapl": partial(sampled, ["rapl"], fast, seconds),
                    "open, read, sleep": partial(measured, partial(loop, files, seconds)),
                    "sleep": partial(measured, partial(only_wake, RATE_HZ, seconds)),
                    "sleep, read": partial(measured, partial(only_wake, RATE_HZ, seconds, [reading])),
                    "rapl, one zone": partial(sampled, ["rapl"], fast_one, seconds),
                }
            )
        tell(result)
        ours, theirs, asleep, *_ = map(statistics.median, result.values())
        above = (theirs - asleep) / (ours - asleep)
        print(f"{'ratio':28}{theirs / ours:8.1f}  (loop to ours; {above:.1f} without the sleep of both)")
        print("lateness")
        show_histogram(lateness(tree, seconds))
        print("every source at 20 Hz, host at 1 Hz")
        library = nvml(tree)
        each = ["benchlab", "rapl", "nvml", "drm", "hwmon", "power_supply", "host"]
        if not library:
            each.remove("nvml")
        names_of = {"all": each} | {name: [name] for name in each}
        ways = {way: partial(sampled, names, slow, seconds) for way, names in names_of.items()}
        ways["all, sent by OTLP"] = partial(sampled, each, slow, seconds, endpoint)
        ways["sleep"] = partial(measured, partial(only_wake, 20.0, seconds))
        ways["sleep, read"] = partial(bare, slow, "nvml" in each, seconds)
        tell(shares({name: partial(fresh, way, library) for name, way in ways.items()}))


if __name__ == "__main__":
    main()
