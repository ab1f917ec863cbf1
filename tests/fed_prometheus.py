"""A Prometheus that scrapes a whole run: an emulated BENCHLAB 2, a stubbed GPU, two /sys, a pipeline."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager, nullcontext
from functools import partial
from pathlib import Path

import pytest

from benchlab_otel import Probe
from benchlab_otel.otlp.client import OtlpClient
from benchlab_otel.simulate.device import Board, Emulator, Meter
from benchlab_otel.simulate.truth import Load, Truth
from benchlab_otel.simulate.workload import STAGES, run_numpy, telling
from conftest import need, wait_for
from machines import unpack
from prometheus_server import Prometheus, prometheus

NVML = Path(__file__).parent / "nvml"
FPS = 20
LOAD = Load(
    base={"EPS1": 35.0, "ATX12V": 40.0, "HPWR1": 20.0},
    stages=dict(zip(STAGES, [{"EPS1": 60.0}, {"HPWR1": 180.0, "EPS1": 40.0}, {"EPS1": 110.0}], strict=True)),
)
METER = Meter(lag=0.004, width=0.05, noise=0.2, delay=0.0005, jitter=0.0005)
BOARD = Board(temperatures=[31.0, None, 45.5, None, 52.0, 54.5], faults={"otp_ts1"})
SETTINGS = """
[session]
data_dir = "{folder}/sessions"
[hub]
grpc = "127.0.0.1:0"
http = "127.0.0.1:0"
metrics = "127.0.0.1:0"
[align]
pairs = ["decode.begin:encode"]
[sources]
enabled = ["benchlab", "rapl", "hwmon", "nvml", "host"]
[sources.benchlab]
ports = ["{port}", "{folder}/none"]
[sources.rapl]
sysfs = "{folder}/laptop"
[sources.hwmon]
sysfs = "{folder}/desktop"
[sources.host]
pids = [{pid}]
"""


@contextmanager
def fed_prometheus(folder: Path) -> Iterator[Prometheus]:
    """Prometheus beside `benchlab-otel run`, for as long as the context lasts."""
    truth = Truth(LOAD)
    unpack("thinkpad-x1-i7-8550u", folder / "laptop")
    unpack("ryzen-5950x-rx6800xt", folder / "desktop")
    with Emulator(truth, "benchlab2", meter=METER, board=BOARD) as meter:
        config = folder / "config.toml"
        config.write_text(SETTINGS.format(folder=folder, port=meter.path, pid=os.getpid()))
        with running(folder, config) as (otlp, page), at_work(truth, otlp):
            target = page.removeprefix("http://").removesuffix("/metrics")
            with prometheus(folder, {"benchlab-otel": target}) as server:
                yield server


@contextmanager
def running(folder: Path, config: Path) -> Iterator[tuple[str, str]]:
    """`benchlab-otel run` with the NVML stub; gives the address of OTLP over HTTP and that of /metrics."""
    environment = os.environ | {
        "LD_LIBRARY_PATH": str(nvml_stub(folder)),
        "NVML_STUB": str(NVML / "full.txt"),
        "BENCHLAB_OTEL_CONFIG": str(config),
    }
    out = folder / "run.txt"
    with out.open("w") as stream:
        process = subprocess.Popen(
            [sys.executable, "-m", "benchlab_otel", "run"], env=environment, stdout=stream, stderr=stream
        )
    try:
        wait_for(lambda: "Recording" in out.read_text() or process.poll() is not None)
        addresses = re.findall(r"http://[\d.:]+(?:/metrics)?", out.read_text())
        assert len(addresses) == 3, out.read_text()
        yield addresses[1], addresses[2]
    finally:
        process.terminate()
        process.wait(60)


def nvml_stub(folder: Path) -> Path:
    """The folder with a libnvidia-ml.so.1 that plays a script."""
    library = folder / "libnvidia-ml.so.1"
    subprocess.run([need("cc"), "-shared", "-fPIC", "-o", library, NVML / "stub.c"], check=True)
    return folder


@contextmanager
def at_work(truth: Truth, otlp: str) -> Iterator[None]:
    """A pipeline in a thread: most frames complete, some fail; one request that no receiver can take."""
    refuse(f"{otlp}/v1/traces")
    stopped = threading.Event()
    worker = threading.Thread(target=work, args=(truth, otlp, stopped))
    worker.start()
    try:
        yield
    finally:
        stopped.set()
        worker.join()


def refuse(url: str) -> None:
    """Sends what no receiver can take, so that there is something to count."""
    headers = {"Content-Type": "application/x-protobuf"}
    with pytest.raises(urllib.error.HTTPError, match="400"):
        urllib.request.urlopen(urllib.request.Request(url, b"no protobuf", headers), timeout=10)


def work(truth: Truth, otlp: str, stopped: threading.Event) -> None:
    with (
        closing(OtlpClient(otlp, protocol="http/protobuf")) as client,
        closing(Probe("demo", sink=client)) as probe,
    ):
        told = telling(truth.activity)
        while not stopped.is_set():
            run_numpy(probe.frame, told, FPS, FPS, lambda frames: None)
            frame = probe.begin()
            run_numpy(partial(nullcontext, frame), told, 1, FPS, lambda frames: None)
            frame.fail("no_signal")
