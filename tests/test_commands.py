"""`run`, `record`, `align` and `demo` as a user runs them: real processes, devices and pipelines."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import textwrap
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from benchlab_otel.archive.reader import read_spans
from benchlab_otel.archive.records import Fault
from benchlab_otel.archive.session import open_session
from benchlab_otel.export.recording import load_runs
from conftest import need, wait_for

PROGRAM = [sys.executable, "-c", "from benchlab_otel.cli import main; main()"]
WATTS = {"EPS1": 45.0, "ATX12V": 15.0, "PCIE1": 35.0}


@dataclass
class Place:
    """A state folder of its own, free ports, and the environment that says so."""

    state: Path
    environment: dict[str, str]

    def run(self, *arguments: str | Path, code: int = 0, **extra: str) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [*PROGRAM, *arguments], capture_output=True, text=True, timeout=120, env=self.environment | extra
        )
        assert done.returncode == code, done.stdout + done.stderr
        assert "Traceback" not in done.stdout + done.stderr
        return done

    @contextmanager
    def started(self, *arguments: str | Path, **extra: str) -> Iterator[subprocess.Popen[str]]:
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        process = subprocess.Popen([*PROGRAM, *arguments], env=self.environment | extra, **pipes)
        try:
            yield process
        finally:
            process.kill()
            process.wait()

    def sessions(self) -> list[str]:
        folder = self.state / "benchlab-otel" / "sessions"
        return sorted(p.name for p in folder.iterdir()) if folder.is_dir() else []

    def report(self) -> dict[str, Any]:
        return json.loads(self.run("report", "--json").stdout)

    def manifest(self) -> dict[str, Any]:
        return json.loads(
            (self.state / "benchlab-otel" / "sessions" / self.sessions()[-1] / "manifest.json").read_text()
        )


@pytest.fixture
def place(tmp_path: Path) -> Place:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("BENCHLAB_OTEL_", "OTEL_", "GST_"))}
    ports = {f"BENCHLAB_OTEL_HUB__{name}": "127.0.0.1:0" for name in ("GRPC", "HTTP", "METRICS")}
    mine = {"XDG_STATE_HOME": str(tmp_path / "state"), "XDG_CONFIG_HOME": str(tmp_path), "COLUMNS": "200"}
    return Place(tmp_path / "state", kept | ports | mine)


@pytest.fixture(scope="module")
def device() -> Iterator[str]:
    """The port of an emulated device that draws WATTS."""
    watts = [part for rail, power in WATTS.items() for part in ("--watts", f"{rail}={power}")]
    process = subprocess.Popen(
        [*PROGRAM, "emulate", "--seed", "5", *watts], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    try:
        yield process.stdout.readline().strip()
    finally:
        process.terminate()
        process.wait()


def lines_until(process: subprocess.Popen[str], text: str) -> list[str]:
    """The lines that the process prints, up to the one that has `text`."""
    assert process.stdout is not None
    lines: list[str] = []
    while not lines or text not in lines[-1]:
        line = process.stdout.readline()
        assert line, f"ended before {text!r}: {lines}"
        lines.append(line)
    return lines


def page(url: str) -> str:
    with urllib.request.urlopen(url, timeout=30) as answer:
        return str(answer.read().decode())


def ended(process: subprocess.Popen[str]) -> tuple[str, str]:
    """(stdout, stderr) of a process that has been told to end."""
    rest = process.communicate(timeout=120)
    assert "Traceback" not in rest[0] + rest[1]
    return rest


# -- run ------------------------------------------------------------------------------------------

APP = textwrap.dedent("""
    # A plain OpenTelemetry app; it knows nothing of meters.
    import sys, time
    from opentelemetry import trace
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor
    provider = TracerProvider(resource=Resource({"service.name": "plain-app"}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(), schedule_delay_millis=200))
    tracer = provider.get_tracer("app")
    time.sleep(0.5)
    for i in range(40):
        with tracer.start_as_current_span("job", attributes={"pipeline.name": "jobs"}):
            with tracer.start_as_current_span("load"):
                time.sleep(0.01)
            with tracer.start_as_current_span("compute"):
                with tracer.start_as_current_span("inner"):
                    time.sleep(0.02)
    time.sleep(0.5)
    provider.shutdown()
    sys.exit(int(sys.argv[1]))
""")


def test_run_until_ctrl_c(place: Place, device: str) -> None:
    """Sources and an app that comes and goes; the session is whole and says how much was drawn."""
    ports = {"BENCHLAB_OTEL_SOURCES__BENCHLAB__PORTS": device}
    with place.started("run", "--source", "benchlab", "--source", "host", **ports) as process:
        told = "".join(lines_until(process, "end with ctrl-C"))
        http = re.search(r"(http://\S+) \(HTTP\)", told)
        url = re.search(r"metrics +(http\S+)", told)
        assert http
        assert url
        wait_for(lambda: re.search(r"^hw_host_power_watts\{.*\} 95\.0$", page(url[1]), re.MULTILINE))
        app = [sys.executable, "-c", APP, "0"]
        subprocess.run(
            app, env=place.environment | {"OTEL_EXPORTER_OTLP_ENDPOINT": http[1]}, timeout=60, check=True
        )
        wait_for(lambda: "pipeline_frames_total{" in page(url[1]))
        assert place.run("report", "--json").stderr.count("is still being recorded") == 1
        process.send_signal(signal.SIGINT)
        out, err = ended(process)
        assert process.returncode == 0, err
    assert f"benchlab-otel report {place.sessions()[-1]}" in out
    manifest = place.manifest()
    assert manifest["ended"]
    assert manifest["simulated"] is True
    (run,) = place.report()["runs"]
    assert (run["pipeline"], run["service"], run["frames"]) == ("jobs", "plain-app", 40)


def test_a_plain_app_gets_its_joules_and_its_exit_code_back(
    place: Place, device: str, tmp_path: Path
) -> None:
    (tmp_path / "app.py").write_text(APP)
    done = place.run(
        *("record", "--source", "benchlab", "--json", "--", sys.executable, tmp_path / "app.py", "7"),
        code=7,
        BENCHLAB_OTEL_SOURCES__BENCHLAB__PORTS=device,
    )
    report = json.loads(done.stdout)
    (run,) = report["runs"]
    assert (run["pipeline"], run["frames"], run["outcomes"]["completed"]) == ("jobs", 40, 40)
    assert {stage["name"] for stage in run["stages"]} == {"load", "compute"}  # inner is no stage
    assert run["simulated"]
    faults: list[Fault] = []
    (read,) = load_runs(
        open_session(str(place.state / "benchlab-otel" / "sessions" / place.sessions()[-1]), tmp_path), faults
    )
    by_domain = {energy.domain: energy for energy in read.energy}
    seconds = (read.frames.end - read.frames.begin) / 1e9
    for domain, watts in {"system": 95.0, "cpu": 45.0, "gpu": 35.0}.items():
        assert by_domain[domain].energy == pytest.approx(watts * seconds, rel=1e-6)
        assert by_domain[domain].simulated


GST = [
    *("gst-launch-1.0", "-q", "videotestsrc", "num-buffers=120", "!", "video/x-raw,width=160,height=120"),
    *("!", "jpegenc", "name=encode", "!", "jpegdec", "name=decode", "!", "fakesink"),
]  # fmt: skip


def test_record_gstreamer_untouched(place: Place, device: str) -> None:
    need("gst-launch-1.0")
    done = place.run(
        *("record", "--source", "benchlab", "--name", "cam0", "--json", "--", *GST),
        BENCHLAB_OTEL_SOURCES__BENCHLAB__PORTS=device,
    )
    (run,) = json.loads(done.stdout)["runs"]
    assert (run["pipeline"], run["frames"]) == ("cam0", 120)
    assert {"encode", "decode"} <= {stage["name"] for stage in run["stages"]}
    assert all(stage["count"] == 120 for stage in run["stages"])


def test_ctrl_c_ends_a_recording_properly(place: Place, device: str, tmp_path: Path) -> None:
    """As at a terminal the command gets the signal too; what it did until then is in the report."""
    script = textwrap.dedent("""
        import time
        try:
            print("going", flush=True)
            time.sleep(100)
        except KeyboardInterrupt:
            raise SystemExit(5)
    """)
    arguments = [*PROGRAM, "record", "--source", "benchlab", "--", sys.executable, "-c", script]
    environment = place.environment | {"BENCHLAB_OTEL_SOURCES__BENCHLAB__PORTS": device}
    process = subprocess.Popen(
        arguments,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        lines_until(process, "going")
        os.killpg(process.pid, signal.SIGINT)
        out, err = ended(process)
    finally:
        process.kill()
    assert process.returncode == 5, err
    assert "No frame in it" in out
    assert place.manifest()["ended"]


def test_a_command_that_is_not_there(place: Place) -> None:
    done = place.run("record", "--source", "host", "--", "no-such-command-here", code=2)
    assert "no-such-command-here: no such command" in done.stderr
    assert place.sessions() == [], "nothing was recorded"


# -- what can be wrong ------------------------------------------------------------------------------


@pytest.mark.parametrize("which", ["GRPC", "HTTP", "METRICS"])
def test_a_port_in_use(which: str, place: Place) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = place.run(
            "run", "--source", "host", code=1, **{f"BENCHLAB_OTEL_HUB__{which}": f"127.0.0.1:{port}"}
        )
    assert len(done.stderr.splitlines()) == 1
    assert str(port) in done.stderr
    assert f"hub.{which.lower()}" in done.stderr
    assert place.sessions() == []  # nothing was recorded: `latest` stays what it was


def test_the_second_run_on_a_device_says_who_holds_it(place: Place, device: str) -> None:
    ports = {"BENCHLAB_OTEL_SOURCES__BENCHLAB__PORTS": device}
    with place.started("run", "--source", "benchlab", **ports) as first:
        lines_until(first, "end with ctrl-C")
        wait_for(lambda: any(p.stat().st_size > 2000 for p in place.state.rglob("traces.otlp")))
        second = place.run("run", "--source", "benchlab", "--for", "2", **ports)
        assert re.search(rf"{re.escape(device)}.*\b{first.pid}\b", second.stderr), second.stderr
        assert first.poll() is None
        first.send_signal(signal.SIGINT)
        ended(first)
    assert first.returncode == 0


def test_a_data_folder_that_cannot_be_written(place: Place, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    folder = tmp_path / "file" / "data"
    done = place.run("run", code=1, BENCHLAB_OTEL_SESSION__DATA_DIR=str(folder))
    assert len(done.stderr.splitlines()) == 1
    assert str(tmp_path / "file") in done.stderr
    assert "session.data_dir" in done.stderr


def test_an_unknown_source(place: Place) -> None:
    done = place.run("run", "--source", "benchlub", code=2)
    assert "did you mean benchlab?" in done.stderr
    assert place.sessions() == []


# -- align as a service -------------------------------------------------------------------------------


def test_the_aligner_as_a_service(place: Place, device: str) -> None:
    """Samples from `export` and an app's spans go in; energy and frame metrics come out at the other end."""
    with place.started("run", "--source", "host") as collector:  # stands for the Collector's second receiver
        told = "".join(lines_until(collector, "end with ctrl-C"))
        out = re.search(r"(http://\S+) \(HTTP\)", told)
        assert out
        with place.started("align", OTEL_EXPORTER_OTLP_ENDPOINT=out[1]) as aligner:
            port = re.search(r"and (\d+) \(HTTP\)", lines_until(aligner, "aligner:")[-1])
            assert port
            endpoint = {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{port[1]}"}
            source = {"BENCHLAB_OTEL_SOURCES__BENCHLAB__PORTS": device}
            with place.started("export", "benchlab", **endpoint, **source) as exporter:
                lines_until(exporter, "end with ctrl-C")
                environment = place.environment | endpoint
                subprocess.run([sys.executable, "-c", APP, "0"], env=environment, timeout=60, check=True)
                exporter.send_signal(signal.SIGINT)
                assert ended(exporter)
                assert exporter.returncode == 0
            aligner.send_signal(signal.SIGINT)
            said = ended(aligner)
            assert aligner.returncode == 0, said
        collector.send_signal(signal.SIGINT)
        ended(collector)
    (name,) = place.sessions()
    (traces,) = open_session(str(place.state / "benchlab-otel" / "sessions" / name), place.state).traces
    faults: list[Fault] = []
    joules = [
        value
        for spans in read_spans([traces], faults)
        if "energy.system_j" in spans.attributes
        for value in spans.attributes["energy.system_j"].values.tolist()
    ]
    assert len(joules) == 40
    assert min(joules) > 95.0 * 0.03


# -- demo ---------------------------------------------------------------------------------------------


def test_demo_of_three_seconds(place: Place) -> None:
    """Everything that comes out of it says that it is simulated."""
    done = place.run("demo", "--for", "3")
    folder = place.state / "benchlab-otel" / "sessions" / place.sessions()[-1]
    assert str(folder) in done.stdout
    assert "simulated" in done.stdout.lower()
    assert place.manifest()["simulated"] is True
    captures = folder / "captures"
    assert {p.name for p in captures.iterdir()} >= {"demo.json", "demo.csv", "metrics.txt"}
    for capture in ("demo.json", "demo.csv"):
        comment = re.search(
            r'^//Comment=(.*)$|"Comment":"([^"]*)"', (captures / capture).read_text(), re.MULTILINE
        )
        assert comment
        assert "SIMULATED" in comment[0]
    shown = (captures / "metrics.txt").read_text()
    simulated = re.findall(
        r'^target_info\{benchlab_simulated="true".*instance="[^"/]*/(\w+)', shown, re.MULTILINE
    )
    assert "benchlab" in simulated
    assert "host" not in simulated  # what the host's own processors did is real
    assert ("aligner" in simulated) == ("\npipeline_" in shown)  # on a slow machine no frame is out yet
    (run,) = place.report()["runs"]
    assert run["frames"] == 180
    assert run["simulated"]
    assert all(energy["simulated"] for energy in run["energy"])
    assert {energy["domain"] for energy in run["energy"]} >= {"system", "cpu", "gpu"}
    aligned = place.run("align", str(folder), "--out", str(folder / "again.otlp"))
    assert "of 180 frames with energy" in aligned.stdout
