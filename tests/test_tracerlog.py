"""The latency tracer's log: what GStreamer wrote, what other releases write, and what is garbled."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchlab_otel import timebase
from benchlab_otel.archive.session import open_session
from benchlab_otel.probe.assemble import Identity
from benchlab_otel.probe.environment import environment, follow
from benchlab_otel.probe.tracerlog import ELEMENT, SINK, Converter, Log, Parser, Records, chains, read_log
from conftest import need, wait_for
from receiving import Receiver

SAMPLE = Path(__file__).parents[2] / "shared/data/gstreamer/latency-traces.log"
START = 1_790_000_000_000_000_000


def line(text: str, at: str = "0:00:01.000000000", pid: int = 42) -> bytes:
    return f"{at} {pid:5} 0x55aa TRACE             GST_TRACER :0:: {text};\n".encode()


def element(name: str, begin: int, end: int) -> bytes:
    fields = f"element-id=(string)0x{abs(hash(name)):x}, element=(string){name}, src=(string)src"
    return line(f"element-latency, {fields}, time=(guint64){end - begin}, ts=(guint64){end}")


def sink(name: str, begin: int, end: int) -> bytes:
    fields = (
        "src-element-id=(string)0x1, src-element=(string)source, src=(string)src, "
        f"sink-element-id=(string)0x{abs(hash(name)):x}, sink-element=(string){name}, sink=(string)sink"
    )
    return line(f"latency, {fields}, time=(guint64){end - begin}, ts=(guint64){end}")


def read(data: bytes) -> Log:
    return read_log(BytesIO(data))


def received(log: Log, start_ns: int = START) -> Receiver:
    """The log's frames as a receiver gets them."""
    receiver = Receiver()
    converter = Converter("cam0", {"service.name": "cam0"}, log.names, log.identity())
    for body in converter.convert(log.records, dict.fromkeys(log.processes, start_ns), last=True):
        receiver.traces(body)
    return receiver


def frame_spans(receiver: Receiver, pipeline: str = "cam0") -> list[tuple[int, int, list[str]]]:
    """(begin, end, stages in order) of the pipeline's frames, in order."""
    children: dict[bytes, list[tuple[int, int, str]]] = {}
    for _, span, _ in receiver.spans:
        timed = (span.start_time_unix_nano, span.end_time_unix_nano, span.name)
        children.setdefault(span.parent_span_id, []).append(timed)
    return sorted(
        (
            span.start_time_unix_nano,
            span.end_time_unix_nano,
            [name for _, _, name in sorted(children.get(span.span_id, []))],
        )
        for _, span, attributes in receiver.spans
        if attributes.get("pipeline.name") == pipeline
    )


# -- the sample, recorded on another machine ------------------------------------------------


@pytest.fixture
def sample() -> bytes:
    if not SAMPLE.exists():
        pytest.skip(f"{SAMPLE} is not there")
    return SAMPLE.read_bytes()


def test_sample_against_a_plain_regular_expression(sample: bytes) -> None:
    wanted = rb":: latency, .*sink-element=\(string\)sink,.* time=\(guint64\)(\d+), ts=\(guint64\)(\d+);"
    expected = [(int(ts) - int(time), int(ts)) for time, ts in re.findall(wanted, sample)]
    log = read(sample)
    frames = frame_spans(received(log, start_ns=START))
    assert len(frames) == len(expected) == 96
    assert [(begin - START, end - START) for begin, end, _ in frames] == sorted(expected)
    ours = np.percentile([end - begin for begin, end, _ in frames], [50, 95, 99, 100])
    assert (
        ours.tolist() == np.percentile([end - begin for begin, end in expected], [50, 95, 99, 100]).tolist()
    )
    assert {" ".join(stages) for _, _, stages in frames} == {
        "avdec_h265-0 videorate0 capsfilter1 gluploadelement0 glcolorconvertelement0 glcolorbalance0"
    }
    assert log.garbled == 0


def test_sample_in_pieces_is_the_same(sample: bytes) -> None:
    whole = read(sample)
    parser = Parser()
    parts = [parser.feed(sample[at : at + 1013]) for at in range(0, len(sample), 1013)]
    parts.append(parser.feed(b"", last=True))
    for name in ("kind", "who", "source", "process", "begin", "end"):
        joined = np.concatenate([getattr(part, name) for part in parts])
        assert np.array_equal(joined, getattr(whole.records, name))


def test_import_command(sample: bytes, tmp_path: Path) -> None:
    (tmp_path / "camera.log").write_bytes(sample)
    command = [sys.executable, "-c", "from benchlab_otel.cli import main; main()", "import"]
    place = {**os.environ, "XDG_STATE_HOME": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path)}
    done = subprocess.run(
        [*command, "camera.log", "--start", "2026-01-02T03:04:05"],
        cwd=tmp_path,
        env={**place, "TZ": "UTC"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "camera.log: 96 frames; times by --start" in done.stdout
    session = open_session("latest", tmp_path / "benchlab-otel")
    assert session.traces[0].stat().st_size > 1000
    (tmp_path / "empty.log").write_text("not a log\n")
    for bad in ("empty.log", "absent.log"):
        failed = subprocess.run(
            [*command, bad], cwd=tmp_path, env=place, capture_output=True, text=True, check=False
        )
        assert failed.returncode == 2
        assert failed.stderr.startswith(f"benchlab-otel: {bad}: ")
        assert failed.stderr.count("\n") == 1


# -- variants ---------------------------------------------------------------------------------


def test_releases_without_ids_and_coloured_lines() -> None:
    old = line("element-latency, element=(string)enc, src=(string)src, time=(guint64)5, ts=(guint64)20")
    older = line(
        "latency, src=(string)src_src, sink=(string)fakesink0_sink, time=(guint64)20, ts=(guint64)30"
    )
    coloured = (
        element("dec", 20, 30).replace(b"TRACE", b"\x1b[37mTRACE\x1b[00m").replace(b"0:00", b"\x1b[1m0:00")
    )
    log = read(old + older + coloured)
    assert log.garbled == 0
    assert log.records.kind.tolist() == [ELEMENT, SINK, ELEMENT]
    assert [log.names.table[w] for w in log.records.who] == ["enc", "fakesink0_sink", "dec"]


def test_class_records_and_reported_latency_are_no_records() -> None:
    reported = "element-reported-latency, element-id=(string)0x1, element=(string)enc, live=(boolean)0"
    log = read(
        line('latency.class, src=(structure)"scope\\,\\ type", time=(structure)"value"')
        + line(f"{reported}, min=(guint64)0, max=(guint64)0, ts=(guint64)5")
        + sink("sink", 0, 10)
    )
    assert len(log.records) == 1
    assert log.garbled == 0


def test_one_name_twice_in_a_pipeline() -> None:
    first = element("enc", 0, 10)
    log = read(first + first.replace(b"element-id=(string)0x", b"element-id=(string)0xf"))
    assert [log.names.table[w] for w in log.records.who] == ["enc", "enc#2"]


def test_two_programs_in_one_log() -> None:
    def run(pid: int) -> bytes:
        return (sink("out", 0, 10) + element("enc", 0, 10)).replace(b"   42 ", b"%5d " % pid)

    log = read(run(42) + run(43))
    assert frame_spans(received(log)) == [(START, START + 10, ["enc"])] * 2
    assert log.processes == [42, 43]


def test_a_bin_around_a_sink_is_no_second_sink() -> None:
    pushed = b"".join(
        element("conv", t, t + 10) + sink("bin", t, t + 10)
        + sink("inner", t, t + 20) + element("up", t + 10, t + 20)
        for t in range(0, 1000, 100)
    )  # fmt: skip
    frames = frame_spans(received(read(pushed)))
    assert [(end - begin, stages) for begin, end, stages in frames] == [(20, ["conv", "up"])] * 10


def test_two_sinks_of_a_tee_are_two_pipelines() -> None:
    pushed = b"".join(
        element("t", n, n + 10) + sink("a", n, n + 30) + element("qa", n + 10, n + 30)
        + element("t", n, n + 11) + sink("b", n, n + 40) + element("qb", n + 11, n + 40)
        for n in range(0, 1000, 100)
    )  # fmt: skip
    receiver = received(read(pushed))
    assert [s for _, _, s in frame_spans(receiver, "cam0/a")] == [["t", "qa"]] * 10
    assert [s for _, _, s in frame_spans(receiver, "cam0/b")] == [["t", "qb"]] * 10


def test_overlapping_frames_and_a_dropped_buffer_do_not_mix() -> None:
    log = read(
        element("enc", 0, 10) + element("enc", 20, 30) + element("enc", 40, 50)
        + sink("out", 0, 60) + element("queue", 10, 60)
        + sink("out", 40, 70) + element("queue", 50, 70)
    )  # fmt: skip
    frames = frame_spans(received(log))
    assert [(b - START, e - START, s) for b, e, s in frames] == [
        (0, 60, ["enc", "queue"]),
        (40, 70, ["enc", "queue"]),
    ]


def test_a_coarse_clock_takes_the_nearest_record_before() -> None:
    log = read(
        element("parse", 0, 10) + element("enc", 10, 10) + sink("out", 0, 10) + element("conv", 10, 10)
    )
    found = chains(log.records, set())
    assert [log.names.table[w] for w in log.records.who[found.stage]] == ["parse", "enc", "conv"]
    assert found.ambiguous > 0


def test_buffers_without_a_latency_record_are_counted() -> None:
    pushed = element("dec", 0, 10) + element("dec", 12, 20) + sink("out", 0, 10) + element("dec", 0, 10)
    assert chains(read(pushed).records, set()).unframed == 2


def test_the_same_log_makes_the_same_spans() -> None:
    data = sink("out", 0, 10) + element("enc", 0, 10)
    ids = [[s.span_id for _, s, _ in received(read(data)).spans] for _ in range(2)]
    assert ids[0] == ids[1]
    assert read(data).identity() != read(data + data).identity()


# -- garbled ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "bad",
    [
        line("latency, sink=(string)s, src=(string)s, ts=(guint64)5"),
        line("latency, sink=(string)s, src=(string)s, time=(guint64)9, ts=(guint64)5"),
        line("latency, sink=(string)s, src=(string)s, time=(guint64)1, ts=(guint64)18446744073709551615"),
        line("element-latency, element=(string), src=(string), time=(guint64)1, ts=(guint64)5"),
        line("element-latency, element=(string)e, src=(string)s, time=(guint64)x, ts=(guint64)5"),
        b"half a line :: latency, src=(string)s, sink=(string)s, time=(guint64)1, ts=(guint64)5;\n",
        sink("out", 0, 5)[:-20],
    ],
)
def test_garbled_records_are_counted_and_the_rest_read(bad: bytes) -> None:
    log = read(sink("out", 0, 10) + bad)
    assert log.garbled == 1
    assert len(log.records) == 1


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.sampled_from([sink("out", 0, 90), element("enc", 0, 50), element("queue", 50, 90)])
        | st.binary(max_size=60),
        max_size=12,
    ),
    st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 255)), max_size=5),
    st.integers(1, 200),
)
def test_no_garbled_log_crashes(pieces: list[bytes], damage: list[tuple[int, int]], size: int) -> None:
    data = bytearray(b"".join(pieces))
    for at, value in damage:
        if at < len(data):
            data[at] = value
    parser = Parser()
    converter = Converter("cam0", {}, parser.names, Identity(1, 1))
    count = 0
    for at in range(0, len(data), size):
        records = parser.feed(bytes(data[at : at + size]))
        count += len(records)
        list(converter.convert(records, {}))
    records = parser.feed(b"", last=True)
    list(converter.convert(records, dict.fromkeys(parser.latest, START), last=True))
    seen = len(re.findall(rb":: (?:element-)?latency, ", data))
    assert count + len(records) + parser.garbled == seen


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 400_000_000), min_size=1, max_size=60), st.integers(0, 4), st.randoms())
def test_streaming_finds_what_reading_at_once_finds(gaps: list[int], queues: int, random: object) -> None:
    lines = []
    for number, at in enumerate(np.cumsum(gaps).tolist()):
        lines.append(element("enc", at, at + 1 + number))
        edge = at + 1 + number
        for stage in range(queues):
            lines.append(element(f"queue{stage}", edge, edge + 7))
            edge += 7
        lines.append(sink("out", at, edge + 3))
        lines.append(element("last", edge, edge + 3))
    whole = frame_spans(received(read(b"".join(lines))))
    receiver = Receiver()
    parser = Parser()
    converter = Converter("cam0", {}, parser.names, Identity(1, 1))
    for text in lines:
        for body in converter.convert(parser.feed(text), {42: START}):
            receiver.traces(body)
    nothing: Records = parser.feed(b"", last=True)
    for body in converter.convert(nothing, {42: START}, last=True):
        receiver.traces(body)
    assert frame_spans(receiver) == whole


# -- real pipelines ---------------------------------------------------------------------------

PIPELINES = {
    "videotestsrc num-buffers=100 ! jpegenc ! jpegdec ! fakesink": {"": (100, "jpegenc0 jpegdec0")},
    "videotestsrc num-buffers=100 ! jpegenc ! queue ! jpegdec ! queue ! fakesink": {
        "": (100, "jpegenc0 queue0 jpegdec0 queue1")
    },
    "videotestsrc num-buffers=50 ! tee name=t t. ! queue ! fakesink name=a "
    "t. ! queue ! jpegenc ! fakesink name=b": {
        "/a": (50, "t queue0"),
        "/b": (50, "t queue1 jpegenc0"),
    },
    "videotestsrc num-buffers=90 ! video/x-raw,framerate=30/1 ! videorate ! video/x-raw,framerate=10/1 "
    "! jpegenc ! fakesink": {"": (30, "capsfilter0 videorate0 capsfilter1 jpegenc0")},
}


def launch(pipeline: str, log: Path) -> None:
    subprocess.run(
        [need("gst-launch-1.0"), "-q", *pipeline.split()],
        env={**os.environ, **environment("http://localhost:4318", "s1", log)},
        check=True,
        timeout=60,
        capture_output=True,
    )


def check_frames(receiver: Receiver, expected: dict[str, tuple[int, str]]) -> None:
    for sink_name, (count, order) in expected.items():
        frames = frame_spans(receiver, f"cam0{sink_name}")
        shown = Counter(" ".join(stages) for _, _, stages in frames)
        assert len(frames) >= count - 1 if "videorate" in order else len(frames) == count
        assert shown.most_common(1)[0][0] == order
        assert shown[order] >= 0.9 * len(frames)


@pytest.mark.parametrize("pipeline", PIPELINES)
def test_finished_logs_of_real_pipelines(pipeline: str, tmp_path: Path) -> None:
    launch(pipeline, tmp_path / "log")
    with (tmp_path / "log").open("rb") as file:
        log = read_log(file)
    assert log.garbled == 0
    check_frames(received(log), PIPELINES[pipeline])


@pytest.mark.parametrize("make", [os.mkfifo, Path.touch], ids=["fifo", "file"])
def test_followed_while_it_is_written(make: Callable[[Path], None], tmp_path: Path) -> None:
    need("gst-launch-1.0")
    make(tmp_path / "log")
    receiver = Receiver()
    follower = follow(tmp_path / "log", "cam0", receiver)
    before = timebase.anchor().now_ns()
    pipeline = "videotestsrc is-live=true num-buffers=40 ! jpegenc ! queue ! jpegdec ! fakesink"
    launch(pipeline, tmp_path / "log")
    after = timebase.anchor().now_ns()
    wait_for(lambda: frame_spans(receiver))  # while it runs, not only at the end
    follower.close()
    check_frames(receiver, {"": (40, "jpegenc0 queue0 jpegdec0")})
    assert follower.frames == 40
    assert follower.garbled == 0
    frames = frame_spans(receiver)
    late_ns = (
        50_000_000  # the log's start is known as late as its lines are read: a file is polled every 10 ms
    )
    assert before < frames[0][0] < frames[-1][1] < after + late_ns


def test_two_programs_one_after_the_other_in_one_fifo(tmp_path: Path) -> None:
    need("gst-launch-1.0")
    os.mkfifo(tmp_path / "log")
    receiver = Receiver()
    follower = follow(tmp_path / "log", "cam0", receiver)
    for _ in range(2):
        launch("videotestsrc num-buffers=20 ! jpegenc ! fakesink", tmp_path / "log")
    follower.close()
    assert len(frame_spans(receiver)) == 40


def test_a_users_own_tracers_and_levels_stay() -> None:
    base = {"GST_TRACERS": "leaks", "GST_DEBUG": "2"}
    variables = environment("http://localhost:4318", "s1", Path("/x"), base=base)
    assert variables["GST_TRACERS"] == "leaks;latency(flags=pipeline+element)"
    assert variables["GST_DEBUG"] == "2,GST_TRACER:7"
    assert variables["BENCHLAB_OTEL_SESSION"] == "s1"
    assert "GST_DEBUG_FILE" not in environment("http://localhost:4318", "s1")
