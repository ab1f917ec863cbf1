"""A Collector or an aligner that is down for a while or killed: nothing is lost, nothing is doubled."""

from __future__ import annotations

import signal
import time
from collections import Counter
from pathlib import Path

import pytest

from benchlab_otel import Probe
from benchlab_otel.archive.records import Fault
from benchlab_otel.archive.session import open_session
from benchlab_otel.export.recording import load_runs
from benchlab_otel.otlp.client import OtlpClient
from collector_stack import Collector, stack, total
from conftest import wait_for


class Kept:
    """A sink that keeps trace requests."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []

    def traces(self, body: bytes) -> None:
        self.bodies.append(body)

    def metrics(self, body: bytes) -> None:
        """Not wanted."""


def record(probe: Probe, frames: int) -> None:
    """Frames of one stage, about as fast as they come; they last, so that a kill falls among them."""
    for _ in range(frames):
        with probe.frame() as frame, frame.stage("work"):
            time.sleep(0.001)


def frame_numbers(collector: Collector) -> Counter[int]:
    """How often each frame is in the archive."""
    spans = collector.archived().spans
    return Counter(a["frame.number"] for _, span, a in spans if span.name == "frame")


def frames_told(collector: Collector) -> float:
    """Frames that the aligner has told of on the Collector's /metrics."""
    return total(collector.metrics(), "pipeline_frames_total")


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL], ids=["stopped", "killed"])
def test_a_collector_that_goes_away_and_comes_back(how: signal.Signals, tmp_path: Path) -> None:
    """Frames are recorded before, while it is down and after; the probe keeps what it can't send."""
    with stack(tmp_path) as (collector, _):
        client = OtlpClient(collector.http, spill=tmp_path / "probe")
        probe = Probe("cam0", sink=client)
        record(probe, 100)
        wait_for(lambda: collector.own("otelcol_exporter_sent_spans_total", exporter="file/archive") > 50)
        record(probe, 50)
        collector.end(how)
        record(probe, 100)
        wait_for(lambda: [*(tmp_path / "probe").rglob("*.traces")])  # some is on the probe's disk
        collector.start()
        record(probe, 100)
        probe.close()
        client.close(30)
        assert not client.lost
        wait_for(lambda: frames_told(collector) == 350, 60)
        assert set(frame_numbers(collector)) == set(range(1, 351))
        # A request whose answer a kill cut off is there twice; readers and aligner take it once.
        assert sum(frame_numbers(collector).values()) - 350 <= (0 if how == signal.SIGTERM else 150)
        assert frames_read(collector) == 350


def test_a_request_that_comes_twice_counts_once(tmp_path: Path) -> None:
    """As after a kill that cut its answer off."""
    requests = Kept()
    probe = Probe("cam0", sink=requests)
    record(probe, 20)
    probe.close()
    with stack(tmp_path) as (collector, _):
        client = OtlpClient(collector.http)
        for body in [*requests.bodies, *requests.bodies]:
            client.traces(body)
        client.close()
        assert not client.lost
        wait_for(lambda: frames_told(collector) == 20)
        wait_for(
            lambda: collector.own("otelcol_exporter_sent_spans_total", exporter="otlp_grpc/aligner") >= 80
        )
        assert set(frame_numbers(collector).values()) == {2}
        assert frames_read(collector) == 20
        assert total(collector.metrics(), "pipeline_frames_total") == 20


def frames_read(collector: Collector) -> int:
    """Frames that our own reader finds in the archive."""
    folder = collector.folder / "archive"
    faults: list[Fault] = []
    (run,) = load_runs(open_session(str(folder), folder), faults, lambda _: None)
    assert not faults
    return len(run.frames)


def test_an_aligner_that_is_killed_and_comes_back(tmp_path: Path) -> None:
    """What was recorded without it waits in the Collector's queue, on disk: that may be killed too."""
    with stack(tmp_path) as (collector, aligner):
        client = OtlpClient(collector.http)
        probe = Probe("cam0", sink=client)
        record(probe, 50)
        wait_for(lambda: frames_told(collector) == 50)
        aligner.end(signal.SIGKILL)
        record(probe, 100)
        probe.close()
        client.close()
        assert not client.lost
        wait_for(lambda: collector.own("otelcol_exporter_queue_size", exporter="otlp_grpc/aligner") > 0)
        collector.end(signal.SIGKILL)
        collector.start()
        aligner.start(collector)
        wait_for(lambda: frames_told(collector) == 100, 60)  # a new process counts from 0
        assert frame_numbers(collector) == Counter(range(1, 151))


def test_a_backend_that_is_down_and_full_keeps_nobody_waiting(tmp_path: Path) -> None:
    """Its queue's end is counted; the archive and the aligner get every frame, once."""
    config = "yaml:exporters::otlp_grpc/traces::sending_queue::queue_size: 20000"
    small = "yaml:exporters::otlp_grpc/traces::sending_queue::batch: {min_size: 1000, max_size: 10000}"
    with stack(tmp_path, config, small) as (collector, _):
        client = OtlpClient(collector.http)
        probe = Probe("cam0", sink=client)
        record(probe, 600)
        probe.close()
        client.close()
        assert not client.lost
        wait_for(lambda: frames_told(collector) == 600)
        assert collector.own("otelcol_exporter_enqueue_failed_spans_total", exporter="otlp_grpc/traces") > 0
        assert frame_numbers(collector) == Counter(range(1, 601))
