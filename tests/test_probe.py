"""The probe: frames, marks and stages from threads, processes and hot loops, as the receiver sees them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchlab_otel import Probe, timebase
from benchlab_otel.probe.recorder import Mark
from conftest import wait_for
from receiving import Receiver

STATUS_ERROR = 2


def frames(receiver: Receiver) -> list[tuple[Any, dict[str, Any]]]:
    """Frame spans with their attributes, by frame number."""
    found = [(span, attributes) for _, span, attributes in receiver.spans if span.name == "frame"]
    return sorted(found, key=lambda f: f[1]["frame.number"])


def stages(receiver: Receiver, frame: Any) -> list[tuple[str, int, int]]:
    """(name, begin, end) of the frame's stages, relative to its begin, in order."""
    begin = frame.start_time_unix_nano
    return sorted(
        (
            (span.name, span.start_time_unix_nano - begin, span.end_time_unix_nano - begin)
            for _, span, attributes in receiver.spans
            if span.trace_id == frame.trace_id and span.parent_span_id == frame.span_id
            if attributes == {"pipeline.stage": span.name}
        ),
        key=lambda s: s[1:],
    )


def test_frames_stages_and_resource() -> None:
    receiver = Receiver()
    probe = Probe("cam0", sink=receiver, simulated=True, attributes={"camera": "left"})
    before = timebase.anchor().now_ns()
    for _ in range(3):
        with probe.frame() as frame:
            with frame.stage("decode"):
                time.sleep(0.002)
            with frame.stage("encode"):
                pass
    probe.close()
    found = frames(receiver)
    assert [a["frame.number"] for _, a in found] == [1, 2, 3]
    assert len({span.trace_id for span, _ in found}) == 3
    for span, attributes in found:
        assert attributes["pipeline.name"] == "cam0"
        assert attributes["frame.outcome"] == "completed"
        assert span.status.code == 0
        assert before <= span.start_time_unix_nano <= span.end_time_unix_nano <= timebase.anchor().now_ns()
        (decode, start, end), (encode, _, _) = stages(receiver, span)
        assert (decode, encode) == ("decode", "encode")
        assert end - start >= 2_000_000
    resource = receiver.spans[0][0]
    assert resource["service.name"] == "cam0"
    assert resource["benchlab.simulated"] is True
    assert resource["camera"] == "left"
    assert resource["benchlab.clock.offset_ns"] == timebase.anchor().offset_ns


def test_a_stage_runs_from_mark_to_mark() -> None:
    receiver = Receiver()
    probe = Probe("cam0", sink=receiver)
    frame = probe.begin(number=41)
    for name in ("ingress", "encoded", "display"):
        frame.mark(name)
    frame.end()
    probe.close()
    ((span, attributes),) = frames(receiver)
    assert attributes["frame.number"] == 41
    assert attributes["frame.first_mark"] == "ingress"
    (encoded, at_ingress, at_encoded), (display, also_encoded, _) = stages(receiver, span)
    assert (encoded, display) == ("encoded", "display")
    assert at_ingress == 0
    assert also_encoded == at_encoded


def test_a_first_mark_behind_a_stage_ends_a_span_from_the_frames_begin() -> None:
    receiver = Receiver()
    probe = Probe("cam0", sink=receiver)
    frame = probe.begin()
    with frame.stage("decode"):
        pass
    frame.mark("decoded")
    frame.end()
    probe.close()
    ((span, attributes),) = frames(receiver)
    assert "frame.first_mark" not in attributes
    assert {name for name, begin, _ in stages(receiver, span) if begin == 0} == {"decoded"}


def test_outcomes() -> None:
    receiver = Receiver()
    probe = Probe("cam0", sink=receiver)
    probe.begin().drop()
    probe.begin().fail("timeout")
    with pytest.raises(ZeroDivisionError), probe.frame():
        raise ZeroDivisionError
    probe.close()
    shown = [(a["frame.outcome"], a.get("error.type"), s.status.code) for s, a in frames(receiver)]
    assert shown == [
        ("dropped", None, STATUS_ERROR),
        ("failed", "timeout", STATUS_ERROR),
        ("failed", "ZeroDivisionError", STATUS_ERROR),
    ]


def test_a_frame_that_never_ends_is_dropped_after_the_time_limit() -> None:
    receiver = Receiver()
    probe = Probe("cam0", sink=receiver, timeout_s=0.2, interval_s=0.02)
    lost = probe.begin()
    lost.mark("ingress")
    lost.mark("encoded")
    wait_for(lambda: frames(receiver))
    ((span, attributes),) = frames(receiver)
    assert attributes["frame.outcome"] == "dropped"
    assert span.status.code == STATUS_ERROR
    ((name, _, end),) = stages(receiver, span)
    assert name == "encoded"
    assert span.end_time_unix_nano - span.start_time_unix_nano == end  # its last sign of life
    lost.mark("display")
    probe.close()
    assert probe.lost == {"frame not open": 1}
    assert len(frames(receiver)) == 1


def test_marks_of_many_threads_end_in_their_frames() -> None:
    receiver = Receiver()
    probe = Probe("cam0", sink=receiver, interval_s=0.005)
    begun = [probe.begin() for _ in range(200)]

    def work(name: str) -> None:
        for frame in begun:
            with frame.stage(name):
                pass

    threads = [threading.Thread(target=work, args=(name,)) for name in ("a", "b", "c", "d")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for frame in begun:
        frame.end()
    probe.close()
    assert len(frames(receiver)) == 200
    for span, _ in frames(receiver):
        assert sorted(name for name, _, _ in stages(receiver, span)) == ["a", "b", "c", "d"]
    assert not probe.lost


def test_bare_marks_of_interleaved_frames_and_threads() -> None:
    receiver = Receiver()
    probe = Probe("cam0", sink=receiver, interval_s=0.002)
    mark = probe.marker("ingress", "display")
    handed_on: list[int] = []

    def second_half() -> None:
        for number in range(3000):
            while len(handed_on) <= number:
                time.sleep(0)
            mark(number, "encoded")
            mark(number, "display")

    thread = threading.Thread(target=second_half)
    thread.start()
    for number in range(3000):
        mark(number, "ingress")
        mark(number, "captured")
        handed_on.append(number)
    thread.join()
    probe.close()
    found = frames(receiver)
    assert [a["frame.number"] for _, a in found] == list(range(3000))
    assert {(a["frame.outcome"], a["frame.first_mark"]) for _, a in found} == {("completed", "ingress")}
    order = Counter(tuple(name for name, _, _ in stages(receiver, span)) for span, _ in found[::100])
    assert order == {("captured", "encoded", "display"): 30}
    assert not probe.lost


def test_bare_marks_use_a_number_again_and_count_strays() -> None:
    receiver = Receiver()
    probe = Probe("cam0", sink=receiver)
    mark = probe.marker("ingress", "display")
    assert probe.marker("ingress", "display") is mark
    with pytest.raises(ValueError, match="'ingress' to 'display'"):
        probe.marker("a", "b")
    mark(7, "encoded")
    for _ in range(2):
        mark(7, "ingress")
        mark(7, "display")
    mark(7, "ingress")
    probe.close()
    outcomes = [a["frame.outcome"] for _, a in frames(receiver)]
    assert sorted(outcomes) == ["completed", "completed", "dropped"]
    assert len({span.trace_id for span, _ in frames(receiver)}) == 3
    assert probe.lost == {"mark outside a frame": 1}


@settings(max_examples=50, deadline=None)
@given(st.lists(st.lists(st.tuples(st.integers(0, 3), st.sampled_from("abcz")), max_size=20), max_size=4))
def test_every_bare_mark_is_in_a_frame_or_counted(batches: list[list[tuple[int, str]]]) -> None:
    receiver = Receiver()
    probe = Probe("cam0", sink=receiver, interval_s=60)
    mark: Mark = probe.marker("a", "z")
    for batch in batches:
        for number, name in batch:
            mark(number, name)
        probe.flush()
    probe.close()
    counts: Counter[str] = Counter()
    is_open: set[int] = set()
    for number, name in (m for batch in batches for m in batch):
        if name == "a":
            counts["dropped"] += number in is_open
            counts["frames"] += 1
            is_open.add(number)
        elif number not in is_open:
            counts["strays"] += 1
        else:
            counts["stages"] += 1
            if name == "z":
                is_open.discard(number)
    outcomes = Counter(a["frame.outcome"] for _, a in frames(receiver))
    assert outcomes.total() == counts["frames"]
    assert outcomes["dropped"] == counts["dropped"] + len(is_open)
    assert sum(s.name != "frame" for _, s, _ in receiver.spans) == counts["stages"]
    assert probe.lost.total() == counts["strays"]


def test_a_full_buffer_never_blocks_and_is_counted_in_a_metric() -> None:
    receiver = Receiver()
    probe = Probe("cam0", sink=receiver, capacity=10, interval_s=60)
    mark = probe.marker("a", "z")
    for number in range(20):
        mark(number, "a")
        mark(number, "z")
    probe.close()
    assert len(frames(receiver)) == 5
    assert probe.lost == {"buffer full": 30}
    assert receiver.values("pipeline.probe.lost", {"pipeline.name": "cam0", "reason": "buffer full"}) == [30]


JOINING = """
import sys
from benchlab_otel import Probe
probe = Probe("cam0", instance="second")
for line in sys.stdin:
    frame = probe.join(line.strip())
    with frame.stage("infer"):
        pass
    frame.mark("inference_done")
    print("done", flush=True)
"""


def send_to(receiver: Receiver, refused: str = "") -> tuple[Any, dict[str, str]]:
    """A collector's HTTP endpoint in front of `receiver`, and the environment that points to it.

    It answers requests to the path `refused` with 400.
    """

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            if self.path != refused:
                (receiver.traces if self.path == "/v1/traces" else receiver.metrics)(body)
            self.send_response(400 if self.path == refused else 200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    endpoint = f"http://127.0.0.1:{server.server_port}"
    return server, {**os.environ, "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint}


def test_two_processes_in_one_trace() -> None:
    receiver = Receiver()
    server, environment = send_to(receiver)
    probe = Probe("cam0", sink=receiver)
    with subprocess.Popen(
        [sys.executable, "-c", JOINING],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as other:
        assert other.stdin
        assert other.stdout
        for _ in range(5):
            with probe.frame() as frame:
                with frame.stage("decode"):
                    pass
                print(frame.traceparent, file=other.stdin, flush=True)
                assert other.stdout.readline() == "done\n"
        other.stdin.close()
        assert other.wait(30) == 0
    probe.close()
    server.shutdown()
    assert len(frames(receiver)) == 5
    for span, _ in frames(receiver):
        length = span.end_time_unix_nano - span.start_time_unix_nano
        found = stages(receiver, span)
        assert {name for name, _, _ in found} == {"decode", "infer", "inference_done"}
        assert all(0 <= begin <= end <= length for _, begin, end in found)  # one clock in both
    instances = {r["service.instance.id"] for r, s, _ in receiver.spans if s.name == "infer"}
    assert instances == {"second"}


def test_a_traceparent_that_is_none_is_refused() -> None:
    probe = Probe("cam0", sink=Receiver())
    with pytest.raises(ValueError, match="not a W3C traceparent"):
        probe.join("00-nothing")
    probe.close()


def test_a_forked_child_records_its_own_frames() -> None:
    receiver = Receiver()
    server, environment = send_to(receiver)
    script = """
import os, multiprocessing
from benchlab_otel import Probe
probe = Probe("cam0")
probe.begin(1).end()
def child():
    probe.begin(2).end()
process = multiprocessing.get_context("fork").Process(target=child)
process.start()
process.join()
probe.begin(3).end()
"""
    done = subprocess.run([sys.executable, "-c", script], env=environment, timeout=60, check=False)
    assert done.returncode == 0
    server.shutdown()
    assert [a["frame.number"] for _, a in frames(receiver)] == [1, 2, 3]
    halves = {span.trace_id[:8] for span, _ in frames(receiver)}
    assert len(halves) == 2  # the child's ids are its own


def test_a_program_that_ends_loses_nothing() -> None:
    receiver = Receiver()
    server, environment = send_to(receiver)
    script = """
import signal, sys, time
from benchlab_otel import Probe
signal.signal(signal.SIGTERM, lambda *_: sys.exit(3))
probe = Probe("cam0", interval_s=60)
probe.begin(1).end()
print("ready", flush=True)
if len(sys.argv) > 1:
    time.sleep(60)
"""
    command = [sys.executable, "-c", script]
    subprocess.run(command, env=environment, timeout=60, check=True)
    with subprocess.Popen([*command, "wait"], env=environment, stdout=subprocess.PIPE) as process:
        assert process.stdout
        process.stdout.readline()
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 3
    server.shutdown()
    assert len(frames(receiver)) == 2


def test_what_the_server_refused_is_in_the_metric() -> None:
    receiver = Receiver()
    server, environment = send_to(receiver, refused="/v1/traces")
    script = """
import sys
from benchlab_otel import Probe
probe = Probe("cam0", interval_s=0.02)
for _ in range(3):
    probe.begin().end()
sys.stdin.read()
"""
    with subprocess.Popen([sys.executable, "-c", script], env=environment, stdin=subprocess.PIPE) as process:
        wait_for(lambda: receiver.values("pipeline.probe.lost", {"reason": "rejected"})[-1:] == [3])
        process.communicate(timeout=60)
    server.shutdown()


def test_importing_the_package_stays_cheap() -> None:
    script = "import sys, benchlab_otel; print('numpy' in sys.modules, 'grpc' in sys.modules)"
    shown = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert shown.stdout.split() == ["False", "False"]
