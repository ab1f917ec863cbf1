"""A recorded session sent once more: into a real hub and a real OTLP receiver, moved in time or not."""

from __future__ import annotations

import re
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from benchlab_otel.archive.reader import read_spans
from benchlab_otel.archive.records import Fault
from benchlab_otel.archive.replay import Move, moved, requests
from benchlab_otel.archive.session import METRICS, TRACES, create, open_session
from benchlab_otel.contract import HW_POWER, REPLAYED, SIMULATED
from benchlab_otel.export.recording import load_runs
from benchlab_otel.model import Point, Run, Spans
from benchlab_otel.otlp.decode import concatenate
from benchlab_otel.otlp.encode import SpanBatch, encode_request, resource_of
from benchlab_otel.otlp.encode_metrics import encode_metrics
from benchlab_otel.timebase import CLOCK_ATTRIBUTE, Anchor
from conftest import wait_for
from test_commands import Place, lines_until, place

__all__ = ["place"]  # the fixture
START = 1_780_000_000_000_000_000
FRAMES, PERIOD = 120, 16_666_667
BASE = Anchor("another boot", START - 5 * 10**9)


def recorded(data: Path, seconds_between: float = 0.25) -> Path:
    """A simulated session of 2 s: frames with a stage, a meter at 20 Hz, and its power as a metric."""
    writer = create(data, BASE, ["demo"], "old")
    rng = np.random.default_rng(1)
    about = {"host.name": "old", SIMULATED: True, CLOCK_ATTRIBUTE: BASE.offset_ns}
    frames_each = int(seconds_between * 1e9 / PERIOD)
    for first in range(0, FRAMES, frames_each):
        number = np.arange(first, min(first + frames_each, FRAMES))
        ids = rng.integers(1, 1 << 63, (len(number), 4), dtype=np.uint64)
        at = START + number * PERIOD
        named = {"pipeline.name": "cam0", "frame.number": number}
        frames = SpanBatch("frame", ids[:, :2], ids[:, 2], at, at + 9_000_000, attributes=named)
        stages = SpanBatch("decode", ids[:, :2], ids[:, 3], at, at + 5_000_000, ids[:, 2])
        writer.traces(encode_request({"service.name": "app", **about}, [frames, stages]))
        times = np.arange(int(at[0]), int(at[-1]) + PERIOD, 50_000_000)
        ids = rng.integers(1, 1 << 63, (len(times), 3), dtype=np.uint64)
        values = {"hw.id": "meter", "hw.power.system": rng.normal(100, 5, len(times))}
        samples = SpanBatch("sample", ids[:, :2], ids[:, 2], times, times + 500_000, attributes=values)
        writer.traces(encode_request({"service.name": "meter", **about}, [samples]))
        labels = {"hw.id": "meter", "hw.type": "meter"}
        point = Point(HW_POWER, labels, 100.0, int(times[-1]))
        writer.metrics(encode_metrics(resource_of({"service.name": "meter", **about}), [point]))
    writer.manifest.simulated = True
    writer.close()
    return writer.path


def replayed(path: Path, move: Move) -> tuple[list[bytes], list[bytes]]:
    faults: list[Fault] = []
    found = [(r.signal, moved(r, move)) for r in requests([path / TRACES], [path / METRICS], faults)]
    assert not faults
    return [b for s, b in found if s == "traces"], [b for s, b in found if s == "metrics"]


def spans_of(path: Path) -> Spans:
    return concatenate(list(read_spans([path], [], as_arrived=True)))


def run_of(bodies: list[bytes], folder: Path) -> Run:
    writer = create(folder, BASE, ["x"], f"s{time.monotonic_ns()}")
    for body in bodies:
        writer.traces(body)
    writer.close()
    (run,) = load_runs(open_session(str(writer.path), folder), [])
    return run


def test_a_moved_session_aligns_to_the_same_figures(tmp_path: Path) -> None:
    """Energies and latencies don't change, whatever the move."""
    path = recorded(tmp_path)
    (before,) = load_runs(open_session(str(path), tmp_path), [])
    by = 86_400_000_000_123
    traces, _ = replayed(path, Move("old", by, (1 << 127) + 5))
    after = run_of(traces, tmp_path)
    assert len(before.frames) == FRAMES
    np.testing.assert_array_equal(after.frames.begin, before.frames.begin + by)
    np.testing.assert_array_equal(after.frames.end, before.frames.end + by)
    np.testing.assert_array_equal(after.frames.trace[:, 0], before.frames.trace[:, 0] ^ np.uint64(1 << 63))
    np.testing.assert_array_equal(after.frames.span, before.frames.span)
    np.testing.assert_array_equal(after.energy[0].energy, before.energy[0].energy)
    assert np.isfinite(after.energy[0].energy).mean() > 0.9
    assert after.frames.simulated


def test_kept_times_change_nothing_but_the_mark(tmp_path: Path) -> None:
    path = recorded(tmp_path)
    traces, metrics = replayed(path, Move("old"))
    (path / "again").write_bytes(b"".join(len(b).to_bytes(4, "big") + b for b in traces))
    before, after = spans_of(path / TRACES), spans_of(path / "again")
    for name in ("trace", "span", "parent", "start", "end"):
        np.testing.assert_array_equal(getattr(after, name), getattr(before, name))
    assert all(r[REPLAYED] == "old" and r[SIMULATED] for r in after.resources)
    points = [ExportMetricsServiceRequest.FromString(body) for body in metrics]
    assert all(REPLAYED in str(p) and SIMULATED in str(p) and CLOCK_ATTRIBUTE not in str(p) for p in points)


def test_requests_come_in_the_order_of_time_over_all_files(tmp_path: Path) -> None:
    path = recorded(tmp_path)
    found = list(requests([path / TRACES], [path / METRICS], []))
    assert [r.time_ns for r in found] == sorted(r.time_ns for r in found)
    assert {r.signal for r in found[:4]} == {"traces", "metrics"}


def test_spans_in_wall_time_are_put_on_the_session_s_time_base(tmp_path: Path) -> None:
    """As the aligner does it: by the last wall offset that was recorded."""
    writer = create(tmp_path, BASE, ["x"], "a")
    ids, one = np.array([[1, 1]], np.uint64), np.array([1], np.uint64)
    at = np.array([START])
    clock = {"clock.wall_offset_ns": 3_000_000_000}
    writer.traces(
        encode_request({CLOCK_ATTRIBUTE: 7}, [SpanBatch("clock", ids, one, at, at, attributes=clock)])
    )
    foreign = SpanBatch("frame", ids, one, at + 3_000_000_000, at + 3_000_000_005)
    writer.traces(encode_request({"service.name": "foreign"}, [foreign]))
    writer.close()
    bodies, _ = replayed(writer.path, Move("a"))
    span = ExportTraceServiceRequest.FromString(bodies[1]).resource_spans[0].scope_spans[0].spans[0]
    assert (span.start_time_unix_nano, span.end_time_unix_nano) == (START, START + 5)


def test_what_is_damaged_is_passed_over_and_told(tmp_path: Path) -> None:
    path = recorded(tmp_path)
    data = bytearray((path / TRACES).read_bytes())
    data[len(data) // 2] ^= 255
    (path / TRACES).write_bytes(data)
    faults: list[Fault] = []
    found = list(requests([path / TRACES], [], faults))
    assert len(faults) == 1
    assert len(found) > 10


def endpoint(run: subprocess.Popen[str], protocol: str) -> str:
    """Where `run` says that it receives."""
    found = re.search(rf"(http\S+) \({protocol}\)", "".join(lines_until(run, "OTLP")))
    assert found
    return found[1]


def test_into_a_live_hub_at_ten_times_the_speed(place: Place) -> None:
    """Aligned on this side, so that the hub's /metrics has the frames' energy though they are past."""
    recorded(place.state / "benchlab-otel")
    with place.started("run", "--source", "host") as run:
        url = endpoint(run, "HTTP")
        begin = time.time_ns()
        done = place.run("replay", "old", "--to", url, "--speed", "10", "--align")
        assert re.match(r"old: \d+ traces requests, \d+ metrics requests", done.stdout)
        run.send_signal(signal.SIGINT)
        assert run.wait(60) == 0
    (name,) = [n for n in place.sessions() if n != "old"]
    session = open_session(name, place.state / "benchlab-otel")
    assert session.manifest is not None
    assert session.manifest.simulated  # the mark came through
    spans = spans_of(session.path / TRACES)
    frames = spans.name == spans.names.index("frame")
    assert frames.sum() == FRAMES
    assert (spans.end[frames] > begin - 3 * 10**9).all()  # it is as if it had just been
    assert (spans.end[frames] < time.time_ns() + 10**9).all()
    length = spans.end[frames] - spans.start[frames]
    assert (length == 9_000_000).all()  # faster, but no frame became shorter
    energies = spans.name == spans.names.index("energy")
    assert energies.sum() > 0.9 * FRAMES  # all but the last, which no reading covers
    replayed_frames = spans.resource[frames]
    assert all(spans.resources[i][REPLAYED] == "old" for i in set(replayed_frames.tolist()))


def test_at_its_own_speed_it_takes_as_long_as_it_did(place: Place) -> None:
    recorded(place.state / "benchlab-otel")
    with place.started("run", "--source", "host") as run:
        url = endpoint(run, "gRPC")
        out = place.run("replay", "old", "--to", url, "--protocol", "grpc", "--times", "kept").stdout
        took = re.search(r"in ([\d.]+) s", out)
        assert took is not None
        assert float(took[1]) >= 1.9
        sessions = place.state / "benchlab-otel"
        (name,) = [n for n in place.sessions() if n != "old"]
        wait_for(lambda: len(spans_of(sessions / "sessions" / name / TRACES)) >= FRAMES * 2)


def test_nobody_there_and_nothing_to_replay_are_said(place: Place, tmp_path: Path) -> None:
    recorded(place.state / "benchlab-otel")
    assert "--to" in place.run("replay", "old", "--to", "ftp://x", code=2).stderr
    (tmp_path / "empty.jsonl").write_bytes(b"{}\n")
    done = place.run("replay", tmp_path / "empty.jsonl", "--to", "http://127.0.0.1:1", code=2)
    assert "nothing to replay" in done.stderr
