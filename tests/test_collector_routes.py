"""What goes where: backends, RED metrics of foreign spans, labels, agents and gateways, TLS."""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor

from benchlab_otel import Probe, contract, sources
from benchlab_otel.align import aligner as align_core
from benchlab_otel.config import Benchlab, Sources
from benchlab_otel.model import HistogramPoint, Point
from benchlab_otel.otlp.client import OtlpClient
from benchlab_otel.otlp.decode import decode_traces
from benchlab_otel.otlp.encode import SpanBatch, encode_request
from benchlab_otel.otlp.encode_metrics import Told, encode_metrics, ended
from benchlab_otel.simulate.device import Emulator
from benchlab_otel.simulate.truth import Load, Truth
from collector_stack import Aligner, Collector, running, stack, total
from conftest import need, wait_for
from prometheus_server import Prometheus, prometheus

TOKEN = "t0ken-of-the-tests"
TOKEN_ONLY = "yaml:" + json.dumps(  # a receiver that wants a token, without TLS
    {
        "extensions": {"bearertokenauth": {"token": TOKEN}},
        "receivers": {"otlp": {"protocols": {"http": {"auth": {"authenticator": "bearertokenauth"}}}}},
        "service": {"extensions": ["health_check", "file_storage", "bearertokenauth"]},
    }
)


def test_backends_get_frames_and_energy_but_no_samples(tmp_path: Path) -> None:
    """The trace backend and one to forward to, which wants a token, are Collectors here; nothing circles."""
    tempo = Collector(tmp_path / "tempo", "all-in-one")
    yours = Collector(tmp_path / "yours", "all-in-one", TOKEN_ONLY)
    here = {"TRACES_ENDPOINT": tempo.address["COLLECTOR_OTLP_GRPC"], "FORWARD_ENDPOINT": yours.http}
    with (
        running(tempo),
        running(yours),
        stack(tmp_path, "forward", FORWARD_TOKEN=TOKEN, **here) as (collector, _),
    ):
        measured = measure(OtlpClient(collector.http), frames=30)
        for backend in (tempo, yours):
            wait_for(lambda backend=backend: energies(backend) == measured)
            names = {span.name for _, span, _ in backend.archived().spans}
            assert names == {"frame", "work", "energy"}
        spans = [span.span_id for _, span, _ in collector.archived().spans]
        assert {"frame", "work", "energy", "sample", "session", "clock"} == {
            span.name for _, span, _ in collector.archived().spans
        }
        assert len(spans) == len(set(spans))
        wait_for(lambda: total(yours.metrics(), "pipeline_frames_total") == 30)


@dataclass
class Tee:
    """Passes on what it is handed, and keeps the traces."""

    sink: OtlpClient
    bodies: list[bytes] = field(default_factory=list)

    def traces(self, body: bytes) -> None:
        self.bodies.append(body)
        self.sink.traces(body)

    def metrics(self, body: bytes) -> None:
        self.sink.metrics(body)


def measure(client: OtlpClient, frames: int) -> int:
    """Frames of a probe while an emulated meter is read, all sent through the client.

    How many of them have an energy: those in a gap, when this machine let the meter wait, have none.
    """
    load = Load(base={"EPS1": 35.0}, stages={})
    tee = Tee(client)
    with Emulator(Truth(load)) as emulator:
        meter = sources.start(
            ["benchlab"],
            Sources(benchlab=Benchlab(ports=(str(emulator.path),), timeout_s=5.0)),
            *(tee, "session-1"),
        )
        wait_for(lambda: all(h.readings > 10 for h in meter.health()))
        probe = Probe("cam0", sink=tee)
        for _ in range(frames):
            with probe.frame() as frame, frame.stage("work"):
                time.sleep(0.01)  # the work: a stage that takes no time has no energy
        probe.close()
        seen = [h.readings for h in meter.health()]  # energy needs readings behind the last frame
        wait_for(lambda: all(h.readings > n + 5 for h, n in zip(meter.health(), seen, strict=True)))
        meter.stop()
    client.close(30)
    assert not client.lost
    measured = with_energy(tee.bodies)
    assert measured, "the meter was read all the time, and not once around a frame"
    return measured


def with_energy(bodies: list[bytes]) -> int:
    """Frames that have an energy by the aligner, which needs no Collector to tell."""
    state = align_core.Aligner()
    blocks = [aligned for body in bodies for aligned in align_core.align(state, decode_traces(body))]
    energy = [e.energy for aligned in (*blocks, *align_core.close(state)) for e in aligned.energy[:1]]
    return int(np.isfinite(np.concatenate(energy)).sum()) if energy else 0


def energies(collector: Collector) -> int:
    """Energy spans in the archive, each counted once."""
    return len({span.span_id for _, span, _ in collector.archived().spans if span.name == "energy"})


def test_forwarding_with_a_wrong_token_is_counted(tmp_path: Path) -> None:
    yours = Collector(tmp_path / "yours", "all-in-one", TOKEN_ONLY)
    collector = Collector(
        tmp_path / "here", "all-in-one", "forward", FORWARD_ENDPOINT=yours.http, FORWARD_TOKEN="an0ther-token"
    )
    with running(yours), running(collector):
        client = OtlpClient(collector.http)
        client.traces(one_span())
        client.close()
        wait_for(
            lambda: collector.own("otelcol_exporter_send_failed_spans_total", exporter="otlp_http/forward")
        )
        assert TOKEN not in collector.log() + yours.log()
        assert "an0ther-token" not in collector.log() + yours.log()
        assert not yours.archived().spans


def one_span() -> bytes:
    moment = np.array([time.time_ns()], np.int64)
    span = SpanBatch("x", np.array([[1, 2]], np.uint64), np.array([7], np.uint64), moment, moment)
    return encode_request({"service.name": "x"}, [span])


# -- metrics --------------------------------------------------------------------------------------------


def test_foreign_spans_become_red_metrics_with_exemplars(tmp_path: Path) -> None:
    """Rate, errors and durations of an app's own spans; a pipeline's spans have metrics of their own."""
    often = "yaml:connectors::span_metrics::metrics_flush_interval: 1s"
    with running(Collector(tmp_path, "all-in-one", often)) as collector:
        resource = Resource.create({"service.name": "shop", "service.instance.id": "shop-1"})
        provider = TracerProvider(resource=resource)
        provider.add_span_processor(SimpleSpanProcessor(OTLPSpanExporter(f"{collector.http}/v1/traces")))
        tracer = provider.get_tracer("shop")
        traces = []
        for _ in range(5):
            with tracer.start_as_current_span("checkout") as span:
                traces.append(f"{span.get_span_context().trace_id:032x}")
            with tracer.start_as_current_span("picture", attributes={"pipeline.name": "foreign"}):
                pass
        provider.shutdown()
        client = OtlpClient(collector.http)
        probe = Probe("cam0", sink=client)
        with probe.frame() as frame, frame.stage("work"):
            pass
        probe.close()
        client.close()
        bucket = rf'traces_span_metrics_duration_seconds_bucket.* # .*trace_id="({"|".join(traces)})"'
        wait_for(lambda: re.search(bucket, collector.openmetrics()))
        wait_for(lambda: total(collector.metrics(), "traces_span_metrics_calls_total") == 5)
        calls = [s for s in collector.metrics() if s.name == "traces_span_metrics_calls_total"]
        assert [s.labels for s in calls] == [
            {
                "job": "shop",
                "instance": "shop-1",
                "service_name": "shop",
                "span_name": "checkout",
                "span_kind": "SPAN_KIND_INTERNAL",
                "status_code": "STATUS_CODE_UNSET",
            }
        ]


def test_labels_outside_the_contract_make_no_series(tmp_path: Path) -> None:
    """A restart, another SDK or a label too many must not add series."""
    with running(Collector(tmp_path, "all-in-one")) as collector:
        client = OtlpClient(collector.http)
        for run in range(3):
            resource = {
                "service.name": "benchlab-otel",
                "service.instance.id": "host/benchlab",
                "host.name": "host",
                contract.SESSION_ID: f"session-{run}",
                "benchlab.clock.offset_ns": run,
                "telemetry.sdk.version": f"1.{run}",
                "process.pid": run,
            }
            labels = {"hw.id": "gpu0", "hw.type": "gpu", "request": f"{run}"}
            client.metrics(
                encode_metrics(resource, [Point(contract.HW_POWER, labels, 100.0 + run, time.time_ns())])
            )
        client.close()
        assert not client.lost
        wait_for(lambda: total(collector.metrics(), "hw_power_watts") == 102)
        target = {"job": "benchlab-otel", "instance": "host/benchlab"}
        assert {s.name: s.labels for s in collector.metrics()} == {
            "hw_power_watts": target | {"hw_id": "gpu0", "hw_type": "gpu"},
            "target_info": target | {"host_name": "host"},
        }
        assert len(collector.metrics()) == 2


def test_series_that_end_are_gone(tmp_path: Path) -> None:
    """All of them, and what is told in the same request is not passed over."""
    resource = {"service.name": "benchlab-otel", "service.instance.id": "host/benchlab"}
    powers = [Point(contract.HW_POWER, {"hw.id": f"gpu{i}"}, 100.0 + i, time.time_ns()) for i in range(4)]
    counts = np.zeros(len(contract.FRAME_DURATION.bounds) + 1, np.int64)
    durations = HistogramPoint(contract.FRAME_DURATION, {"pipeline.name": "a"}, counts, 0.0, 1, 1)
    with running(Collector(tmp_path, "all-in-one")) as collector:
        client = OtlpClient(collector.http)
        client.metrics(encode_metrics(resource, [durations, *powers]))
        wait_for(lambda: total(collector.metrics(), "hw_power_watts") == 406)
        newer = replace(powers[3], value=7.0, time_ns=time.time_ns())
        ends = [ended(point, newer.time_ns) for point in (durations, *powers[:3])]
        client.metrics(encode_metrics(resource, [*ends, newer]))
        client.close()
        wait_for(lambda: total(collector.metrics(), "hw_power_watts") == 7)
        assert {s.name for s in collector.metrics()} == {"hw_power_watts", "target_info"}


def test_an_aligner_that_learns_of_a_simulation_has_no_twin(tmp_path: Path) -> None:
    """The prometheus exporter keys series by all of the resource; old ones would hide the new."""
    resource = {"service.name": "benchlab-otel", "service.instance.id": "host/aligner"}
    frames = Point(contract.FRAMES, {"pipeline.name": "a", "frame.outcome": "completed"}, 1.0, 2, 1)
    with running(Collector(tmp_path, "all-in-one")) as collector:
        client = OtlpClient(collector.http)
        told = Told()
        now = time.time_ns()
        later = resource | {contract.SIMULATED: True}
        for body in [
            *told.requests(resource, [frames], now),
            *told.requests(later, [replace(frames, value=2.0, time_ns=3)], now),
        ]:
            client.metrics(body)
        client.close()
        wait_for(lambda: total(collector.metrics(), "pipeline_frames_total") == 2)
        (target,) = (s.labels for s in collector.metrics() if s.name == "target_info")
        assert target["benchlab_simulated"] == "true"


def test_prometheus_scrapes_both_pages(tmp_path: Path) -> None:
    """The project's own configuration and rules, on everybody's metrics and on the Collector's own."""
    with stack(tmp_path) as (collector, _):
        targets = {"benchlab-otel": collector.address["COLLECTOR_METRICS"], "collector": collector.telemetry}
        with prometheus(tmp_path, targets) as server:
            begin = time.time()
            measure(OtlpClient(collector.http), frames=20)
            wait_for(lambda: total_of(server, 'pipeline_frames_total{frame_outcome="completed"}') == 20)
            wait_for(lambda: total_of(server, "up") == len(targets))
            assert server.series('otelcol_exporter_queue_capacity{exporter="otlp_grpc/aligner"}')
            span = {"start": begin - 60, "end": time.time() + 60}
            traces = {s.trace_id.hex() for _, s, _ in collector.archived().spans if s.name == "frame"}
            shown = server.get("query_exemplars", query="pipeline_frame_duration_seconds_bucket", **span)
            assert {e["labels"]["trace_id"] for one in shown for e in one["exemplars"]} <= traces
            assert shown


def total_of(server: Prometheus, query: str) -> float:
    return sum(value for _, value in server.series(query))


# -- many hosts, and other machines -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CA, a server's and a client's certificate and key, and a client's that another CA signed."""
    folder = tmp_path_factory.mktemp("keys")
    for ca in ("ca", "other-ca"):
        openssl(folder, f"req -x509 -keyout {ca}.key -out {ca}.crt -days 2 -subj /CN={ca}")
    for name, ca in (("server", "ca"), ("client", "ca"), ("stranger", "other-ca")):
        openssl(
            folder,
            f"req -keyout {name}.key -out {name}.csr -subj /CN={name} -addext subjectAltName=IP:127.0.0.1",
        )
        signing = f"x509 -req -in {name}.csr -CA {ca}.crt -CAkey {ca}.key -out {name}.crt -days 2"
        openssl(folder, f"{signing} -copy_extensions copy")
    (folder / "token").write_text(TOKEN)
    return folder


def openssl(folder: Path, command: str) -> None:
    program, *arguments = command.split()
    if program == "req":
        arguments += ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    subprocess.run([need("openssl"), program, *arguments], cwd=folder, check=True, capture_output=True)


def secured(keys: Path) -> dict[str, str]:
    return {
        "TLS_CERT_FILE": str(keys / "server.crt"),
        "TLS_KEY_FILE": str(keys / "server.key"),
        "TLS_CLIENT_CA_FILE": str(keys / "ca.crt"),
        "TOKEN_FILE": str(keys / "token"),
    }


def test_an_agent_and_its_gateway_with_certificates_and_a_token(keys: Path, tmp_path: Path) -> None:
    """What a host measures arrives at the gateway's /metrics and, without samples, at its backend."""
    tempo = Collector(tmp_path / "tempo", "all-in-one")
    gateway = Collector(
        tmp_path / "gateway",
        "gateway",
        "secure-receiver",
        TRACES_ENDPOINT=tempo.address["COLLECTOR_OTLP_GRPC"],
        **secured(keys),
    )
    aligner = Aligner(tmp_path)
    agent = Collector(
        tmp_path / "agent",
        "agent",
        "secure-sender",
        ALIGNER_ENDPOINT=aligner.endpoint,
        GATEWAY_ENDPOINT=gateway.address["COLLECTOR_OTLP_GRPC"],
        TLS_CA_FILE=str(keys / "ca.crt"),
        TLS_CERT_FILE=str(keys / "client.crt"),
        TLS_KEY_FILE=str(keys / "client.key"),
        TOKEN_FILE=str(keys / "token"),
    )
    with running(tempo), running(gateway), running(agent):
        aligner.start(agent)
        measured = measure(OtlpClient(agent.http), frames=20)
        wait_for(lambda: energies(tempo) == measured)
        assert "sample" not in {span.name for _, span, _ in tempo.archived().spans}
        wait_for(lambda: total(gateway.metrics(), "pipeline_frames_total") == 20)
        assert energies(agent) == measured
        aligner.end()
        assert TOKEN not in gateway.log() + agent.log()


@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
@pytest.mark.parametrize(
    ("certificate", "token", "refusal"),
    [
        ("client", TOKEN, ""),
        ("client", "an0ther-token", "expected scheme or token"),
        ("stranger", TOKEN, "(?i)ssl|tsi"),  # what TLS says of it, in HTTP's words and in gRPC's
        (None, TOKEN, "(?i)ssl|tsi"),
    ],
)
def test_senders_need_a_certificate_and_the_token(
    protocol: str,
    certificate: str | None,
    token: str,
    refusal: str,
    keys: Path,
    gateway: Collector,
    caplog: pytest.LogCaptureFixture,
) -> None:
    name = "COLLECTOR_OTLP_GRPC" if protocol == "grpc" else "COLLECTOR_OTLP_HTTP"
    environment = {
        "OTEL_EXPORTER_OTLP_PROTOCOL": protocol,
        "OTEL_EXPORTER_OTLP_ENDPOINT": f"https://{gateway.address[name]}",
        "OTEL_EXPORTER_OTLP_CERTIFICATE": str(keys / "ca.crt"),
        "OTEL_EXPORTER_OTLP_HEADERS": f"authorization=Bearer%20{token}",
        "OTEL_EXPORTER_OTLP_TIMEOUT": "5000",
    }
    if certificate:
        environment["OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE"] = str(keys / f"{certificate}.crt")
        environment["OTEL_EXPORTER_OTLP_CLIENT_KEY"] = str(keys / f"{certificate}.key")
    client = OtlpClient(environ=environment)
    client.traces(one_span())
    wait_for(lambda: client.sent or caplog.messages)
    client.close(0)
    assert client.sent == (not refusal)
    assert bool(client.lost) == bool(refusal)
    assert re.search(refusal, " ".join(caplog.messages))


@pytest.fixture(scope="module")
def gateway(keys: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Collector]:
    """One for all senders."""
    folder = tmp_path_factory.mktemp("gateway")
    with running(Collector(folder, "gateway", "secure-receiver", **secured(keys))) as collector:
        yield collector
