"""What docker-compose.yml declares, run without Docker: the same commands, settings and files."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from benchlab_otel import Probe
from benchlab_otel.otlp.client import OtlpClient
from collector_stack import CONFIGS, Collector, clean_environment, need_collector, running, total
from compose import own, services
from conftest import free_ports, wait_for

PROGRAM = [sys.executable, "-m", "benchlab_otel"]
QUICK = {"600": "20"}  # the demo's seconds


@contextmanager
def native(name: str, places: dict[str, str], folder: Path) -> Iterator[subprocess.Popen[str]]:
    """A service of ours as a process; `places` says what stands here for the container's addresses."""

    def here(text: str) -> str:
        for there, place in places.items():
            text = text.replace(there, place)
        return text

    service = own()[name]
    environment = {k: here(str(v)) for k, v in service["environment"].items()}
    command = [here(QUICK.get(word, word)) for word in service["command"]]
    process = subprocess.Popen(
        [*PROGRAM, *command],
        env=clean_environment(folder) | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        yield process
    finally:
        process.terminate()
        out, _ = process.communicate(timeout=60)
        assert "Traceback" not in out, out


def test_the_stack_without_docker(tmp_path: Path) -> None:
    """All of it: the absent meter is told, the simulated one measured, frames get their joules."""
    aligner = free_ports(1)[0]
    collector = Collector(tmp_path / "collector", "all-in-one", ALIGNER_ENDPOINT=f"127.0.0.1:{aligner}")
    places = {
        "0.0.0.0:4317": f"127.0.0.1:{aligner}",
        "127.0.0.1:9109": "127.0.0.1:0",
        "127.0.0.1:9110": "127.0.0.1:0",
        "http://collector:4318": collector.http,
        "http://127.0.0.1:4318": collector.http,
        "http://collector:4328": collector.aligned,
        "/host/": f"{tmp_path}/host/",
        "/var/lib/benchlab-otel": str(tmp_path),
    }
    (tmp_path / "host").mkdir()
    (tmp_path / "host/proc").symlink_to("/proc")
    (tmp_path / "host/sys").symlink_to("/sys")
    with running(collector), ExitStack() as stack:
        for name in ("aligner", "benchlab", "host", "demo"):
            environment = {**places, **({"127.0.0.1:4318": collector.http[7:]} if name == "aligner" else {})}
            stack.enter_context(native(name, environment, tmp_path))

        wait_for(lambda: told(collector), 60)
        # what the alert CollectorQueueFilling asks for
        assert collector.own(
            "otelcol_exporter_queue_capacity", exporter="otlp_grpc/aligner", data_type="traces"
        )
        simulated = [s for s in collector.metrics() if s.labels.get("benchlab_simulated")]
        assert {s.labels["instance"].split("/")[1] for s in simulated} == {"benchlab", "aligner"}


def told(collector: Collector) -> bool:
    """Whether it shows that the meter is absent, and the metrics of host, demo and aligner."""
    time.sleep(0.2)  # asking without a pause would take the processor from the services
    shown = collector.metrics()
    health = [s for s in shown if s.name == "exporter_collect_success_ratio"]
    absent = {s.labels["source"] for s in health if s.value == 0}
    names = ("hw_host_power_watts", "system_cpu_time_seconds_total", "pipeline_frame_energy_joules_count")
    return "benchlab" in absent and all(total(shown, name) > 0 for name in names)


def test_the_health_check_tells_a_service_that_is_up_from_one_that_is_not(tmp_path: Path) -> None:
    places = {"127.0.0.1:9110": "127.0.0.1:0", "/host/": "/", "/var/lib/benchlab-otel": str(tmp_path)}
    with native("host", places, tmp_path) as process:
        assert process.stdout is not None
        shown = process.stdout.readline().split()[1]
        check = own()["host"]["healthcheck"]["test"]
        assert check[0] == "CMD"
        check = [sys.executable, "-c", check[3].replace("http://127.0.0.1:9110/metrics", shown)]
        assert subprocess.run(check).returncode == 0
    assert subprocess.run(check, stderr=subprocess.DEVNULL).returncode != 0


def test_the_collector_takes_its_files_and_variables(tmp_path: Path) -> None:
    service = services()["collector"]
    for overlay in (None, "forward.yaml"):
        configs = [word.replace("/etc/otelcol", str(CONFIGS)) for word in service["command"]]
        if overlay:
            configs[1] = f"--config={CONFIGS / overlay}"
        environment = {k: str(v) for k, v in service["environment"].items()} | {
            "FORWARD_ENDPOINT": "https://otlp.example.com",
            "FORWARD_TOKEN": f"${{file:{_token(tmp_path)}}}",
            "PATH": os.environ["PATH"],
        }
        done = subprocess.run(
            [need_collector(), "validate", *configs], env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr


def _token(folder: Path, after: str = "") -> Path:
    """A secret as deploy/example.env says: the token, and nothing after it but what an editor leaves."""
    file = folder / "forward_token"
    file.write_bytes(b"s3cret" + after.encode())
    return file


@contextmanager
def backend(received: list[str]) -> Iterator[str]:
    """An OTLP/HTTP backend that notes path and authorization of what it is sent."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            received.append(f"{self.path} {self.headers['Authorization']}")
            self.send_response(200)
            self.send_header("Content-Type", "application/x-protobuf")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()


@pytest.mark.parametrize("after", ["", "\n", "\r\n"], ids=repr)
def test_the_token_for_forwarding_comes_from_the_secrets_file(after: str, tmp_path: Path) -> None:
    declared = services()["collector"]["environment"]["FORWARD_TOKEN"]
    token = declared.replace("/run/secrets/forward_token", str(_token(tmp_path, after)))
    received: list[str] = []
    with backend(received) as endpoint:
        collector = Collector(
            tmp_path, "all-in-one", "forward", FORWARD_ENDPOINT=endpoint, FORWARD_TOKEN=token
        )
        with running(collector):
            client = OtlpClient(collector.http)
            probe = Probe("cam", sink=client)
            with probe.frame() as frame:
                frame.mark("shown")
            probe.close()
            client.close()
            wait_for(lambda: received, 30)
    assert set(received) <= {f"/v1/{signal} Bearer s3cret" for signal in ("traces", "metrics")}
