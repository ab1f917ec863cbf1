"""A real Collector (built by tests/stack.sh) with the project's own configurations, and what it wrote."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from benchlab_otel.archive.records import Fault, read_records
from conftest import absent, free_ports, wait_for
from receiving import Receiver

PROGRAM = [sys.executable, "-c", "from benchlab_otel.cli import main; main()"]
ROOT = Path(__file__).parents[1]
CONFIGS = ROOT / "collector-config"
BINARY = ROOT / ".build" / "collector" / "otelcol"
_ADDRESSES = (
    "COLLECTOR_OTLP_GRPC",
    "COLLECTOR_OTLP_HTTP",
    "COLLECTOR_ALIGNED_GRPC",
    "COLLECTOR_ALIGNED_HTTP",
    "COLLECTOR_METRICS",
    "COLLECTOR_HEALTH",
)


def need_collector() -> Path:
    """The Collector's binary; where it is absent the test skips, or fails on CI."""
    return BINARY if BINARY.is_file() else absent("no Collector here: tests/stack.sh builds it, where go is")


class Collector:
    """A Collector that keeps its ports and folders when it is started again.

    `configs` are names of files in collector-config/ or URIs of the Collector (yaml:…); `environment` is
    what they are given besides ports.
    """

    def __init__(self, folder: Path, *configs: str, **environment: str) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._command = [str(need_collector())]
        for name in configs:
            self._command += ["--config", name if ":" in name else str(CONFIGS / f"{name}.yaml")]
        *ports, telemetry = free_ports(len(_ADDRESSES) + 1)
        self.address = {name: f"127.0.0.1:{port}" for name, port in zip(_ADDRESSES, ports, strict=True)}
        self.telemetry = f"127.0.0.1:{telemetry}"
        self._environment = {
            "PATH": os.environ["PATH"],
            **self.address,
            "COLLECTOR_TELEMETRY_PORT": str(telemetry),
            "COLLECTOR_QUEUE_DIR": str(folder / "queues"),
            "COLLECTOR_ARCHIVE_DIR": str(folder / "archive"),
            "ALIGNER_ENDPOINT": "127.0.0.1:1",
            "TRACES_ENDPOINT": "127.0.0.1:1",
            **environment,
        }
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def http(self) -> str:
        """The OTLP/HTTP endpoint."""
        return f"http://{self.address['COLLECTOR_OTLP_HTTP']}"

    @property
    def aligned(self) -> str:
        """The OTLP/HTTP endpoint for the aligner."""
        return f"http://{self.address['COLLECTOR_ALIGNED_HTTP']}"

    @property
    def pid(self) -> int:
        """The process id."""
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Returns when the health check says that it is ready."""
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(self._command, env=self._environment, stdout=log, stderr=log)
        wait_for(self._is_ready, 60)

    def _is_ready(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, self.log()
        try:
            with urllib.request.urlopen(f"http://{self.address['COLLECTOR_HEALTH']}/", timeout=10) as answer:
                return answer.status == 200
        except OSError:
            return False

    def end(self, how: signal.Signals = signal.SIGTERM) -> None:
        """Ends the process, if it runs, and waits for its end."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(how)
            self._process.wait(60)

    def log(self) -> str:
        """Everything that it said."""
        return (self.folder / "log").read_text()

    def metrics(self) -> list[Sample]:
        """The samples of everybody's /metrics, as Prometheus' own parser reads them."""
        return _samples(f"http://{self.address['COLLECTOR_METRICS']}/metrics")

    def openmetrics(self) -> str:
        """The same page as OpenMetrics, with exemplars."""
        return page(
            f"http://{self.address['COLLECTOR_METRICS']}/metrics",
            "application/openmetrics-text;version=1.0.0",
        )

    def own(self, name: str, **labels: str) -> float:
        """A value of the Collector's own telemetry; 0 where it isn't there yet."""
        return total(_samples(f"http://{self.telemetry}/metrics"), name, **labels)

    def archived(self) -> Receiver:
        """What is in the archive's files, decoded with the protobuf library; damage fails the test."""
        received = Receiver()
        faults: list[Fault] = []
        for path in sorted((self.folder / "archive").glob("*")):
            for record in read_records(path, faults):
                received.traces(record.body)
        assert not faults, faults
        return received


@contextmanager
def running(collector: Collector) -> Iterator[Collector]:
    """The Collector, started, and ended afterwards."""
    try:
        collector.start()
        yield collector
    finally:
        collector.end()


class Aligner:
    """`benchlab-otel align` between a Collector's two sides; keeps its port when it is started again."""

    def __init__(self, folder: Path) -> None:
        self.port = free_ports(1)[0]
        self.endpoint = f"127.0.0.1:{self.port}"
        self._folder = folder
        self._process: subprocess.Popen[str] | None = None

    def start(self, collector: Collector) -> None:
        ports = {"GRPC": self.endpoint, "HTTP": "127.0.0.1:0", "METRICS": "127.0.0.1:0"}
        environment = clean_environment(self._folder) | {
            **{f"BENCHLAB_OTEL_HUB__{name}": address for name, address in ports.items()},
            "OTEL_EXPORTER_OTLP_ENDPOINT": collector.aligned,
            "BENCHLAB_OTEL_SPILL_DIR": str(self._folder / "spill"),
        }
        self._process = subprocess.Popen(
            [*PROGRAM, "align"],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert self._process.stdout is not None
        assert "aligner:" in self._process.stdout.readline()

    def end(self, how: signal.Signals = signal.SIGTERM) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(how)
            out, _ = self._process.communicate(timeout=60)
            assert "Traceback" not in out, out


def clean_environment(folder: Path) -> dict[str, str]:
    """The environment without our settings, and with a place of its own for files."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("BENCHLAB_OTEL_", "OTEL_"))}
    return kept | {"XDG_STATE_HOME": str(folder / "state"), "XDG_CONFIG_HOME": str(folder)}


@contextmanager
def stack(folder: Path, *configs: str, **environment: str) -> Iterator[tuple[Collector, Aligner]]:
    """A Collector and its aligner, both running."""
    aligner = Aligner(folder)
    collector = Collector(
        folder / "collector", "all-in-one", *configs, ALIGNER_ENDPOINT=aligner.endpoint, **environment
    )
    with running(collector):
        aligner.start(collector)
        try:
            yield collector, aligner
        finally:
            aligner.end()


def page(url: str, accept: str = "text/plain") -> str:
    """The text of a page."""
    request = urllib.request.Request(url, headers={"Accept": accept})
    with urllib.request.urlopen(request, timeout=30) as answer:
        return str(answer.read().decode())


def _samples(url: str) -> list[Sample]:
    return [s for family in text_string_to_metric_families(page(url)) for s in family.samples]


def total(samples: list[Sample], name: str, **labels: str) -> float:
    """The sum of all samples of that name with these labels."""
    return sum(s.value for s in samples if s.name == name and labels.items() <= s.labels.items())
