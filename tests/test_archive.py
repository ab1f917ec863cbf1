"""Archives in every format that the Collector writes, whole and damaged, and sessions on disk."""

from __future__ import annotations

import base64
import json
import random
import signal
import struct
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import zstandard
from google.protobuf.json_format import MessageToDict
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from benchlab_otel.archive.reader import read_spans
from benchlab_otel.archive.records import ZSTD_MAGIC, Fault, read_records
from benchlab_otel.archive.session import (
    ENERGY,
    TRACES,
    Manifest,
    SessionNotFound,
    SessionWriter,
    create,
    open_session,
    session_ids,
)
from benchlab_otel.hub.hub import Hub
from benchlab_otel.hub.metrics import MetricStore
from benchlab_otel.model import Spans
from benchlab_otel.otlp.decode import concatenate
from benchlab_otel.otlp.encode import SpanBatch, encode_request
from benchlab_otel.timebase import Anchor
from conftest import wait_for

BASE = Anchor("test", 0)
START = 1_790_000_000_000_000_000


def request_of(*numbers: int, at: int = 0) -> bytes:
    """A request whose spans have these numbers as their ids."""
    ids = np.array(numbers, np.uint64)
    start = START + np.array(numbers, np.int64) * 1000 + at
    attributes = {"text": f"request {numbers[0]}"}
    batch = SpanBatch("s", np.stack([ids, ids], 1), ids, start, start + 500, attributes=attributes)
    return encode_request({"service.name": "app"}, [batch])


REQUESTS = [request_of(*range(10 * i + 1, 10 * i + 11)) for i in range(20)]


def as_json(body: bytes) -> bytes:
    """As the Collector writes it: ids in hexadecimal."""
    tree = MessageToDict(ExportTraceServiceRequest.FromString(body))
    for group in tree["resourceSpans"]:
        for scope in group["scopeSpans"]:
            for span in scope["spans"]:
                for key in ("traceId", "spanId", "parentSpanId"):
                    if key in span:
                        span[key] = base64.b64decode(span[key]).hex()
    return json.dumps(tree).encode()


def prefixed(message: bytes) -> bytes:
    return struct.pack(">I", len(message)) + message


def packed(message: bytes) -> bytes:
    return prefixed(CHECKED.compress(message))


CHECKED = zstandard.ZstdCompressor(write_checksum=True)  # as the Collector's encoder does
RECORD: dict[str, Callable[[bytes], bytes]] = {
    "json": lambda body: as_json(body) + b"\n",
    "proto": prefixed,
    "proto, zstd": packed,
    "json, zstd": lambda body: packed(as_json(body)),
    "native zstd of json": lambda body: CHECKED.compress(as_json(body) + b"\n"),
    "native zstd of proto": lambda body: CHECKED.compress(prefixed(body)),
}
FORMATS = pytest.mark.parametrize("form", RECORD)


def read(*paths: Path, as_arrived: bool = False) -> tuple[list[int], list[Fault]]:
    faults: list[Fault] = []
    blocks = read_spans(paths, faults, as_arrived=as_arrived)
    return [number for spans in blocks for number in spans.span.tolist()], faults


def numbers_of(bodies: list[bytes]) -> list[int]:
    spans = (ExportTraceServiceRequest.FromString(body) for body in bodies)
    return [
        int.from_bytes(s.span_id, "big")
        for r in spans
        for g in r.resource_spans
        for scope in g.scope_spans
        for s in scope.spans
    ]


ALL = numbers_of(REQUESTS)

# -- formats ------------------------------------------------------------------------------------


@FORMATS
def test_every_format(form: str, tmp_path: Path) -> None:
    path = tmp_path / "traces"
    path.write_bytes(b"".join(map(RECORD[form], REQUESTS)))
    assert read(path) == (ALL, [])
    assert len(list(read_records(path, []))) == len(REQUESTS)


@pytest.mark.parametrize("inner", ["json", "proto"])
def test_native_zstd_whose_frames_end_anywhere(inner: str, tmp_path: Path) -> None:
    plain = b"".join(map(RECORD[inner], REQUESTS))
    cuts = [0, 7, 1000, len(plain) // 2, len(plain)]
    path = tmp_path / "traces.zst"
    path.write_bytes(b"".join(zstandard.compress(plain[a:b]) for a, b in pairwise(cuts)))
    assert read(path) == (ALL, [])


def test_json_without_a_last_newline_and_with_empty_lines(tmp_path: Path) -> None:
    path = tmp_path / "traces.jsonl"
    path.write_bytes(b"\n" + b"\n\n".join(map(as_json, REQUESTS)))
    assert read(path) == (ALL, [])


@pytest.mark.parametrize("content", [b"", b"\n", b" "])
def test_empty_file(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "traces"
    path.write_bytes(content)
    assert read(path) == ([], [])


# -- damage -------------------------------------------------------------------------------------


@FORMATS
def test_a_last_record_cut_off_anywhere(form: str, tmp_path: Path) -> None:
    records = [RECORD[form](body) for body in REQUESTS[:3]]
    whole, last = b"".join(records[:2]), records[2]
    path = tmp_path / "traces"
    for length in range(1, len(last)):
        path.write_bytes(whole + last[:length])
        found, faults = read(path, as_arrived=True)
        if found == ALL[:30]:  # all but a newline or a checksum was there
            assert length > len(last) - 8
            continue
        assert found == ALL[:20], length
        if "native" not in form:
            assert [(f.offset, f.lost_bytes, f.at_end) for f in faults] == [(len(whole), length, True)]
            assert str(path) in str(faults[0])


@FORMATS
def test_garbled_middle_costs_only_what_is_garbled(form: str, tmp_path: Path) -> None:
    """Every byte of a middle record in turn, and its neighbours are always there."""
    records = [RECORD[form](body) for body in REQUESTS[:4]]
    path = tmp_path / "traces"
    begin = len(records[0]) + len(records[1])
    chance = random.Random(1)
    for at in range(0, len(records[2]), 1 + len(records[2]) // 500):
        if form == "json" and records[2][at : at + 1] == b"\n":
            continue  # makes one line of two
        data = bytearray(b"".join(records))
        data[begin + at] ^= chance.randrange(1, 256)
        path.write_bytes(data)
        found, faults = read(path, as_arrived=True)
        assert found[:20] == ALL[:20], at
        assert found[-10:] == ALL[30:40], at
        for fault in faults:
            assert fault.file == str(path)
            assert not fault.at_end
            if "without a valid trace and span id" in fault.reason:
                continue
            assert 0 < fault.lost_bytes <= len(data) - begin
            if "native" not in form:
                assert begin <= fault.offset < begin + len(records[2])
        if "zstd" in form:  # its checksum tells; elsewhere a garbled tag is an unknown field
            assert found == (ALL[:20] + ALL[30:40] if faults else ALL[:40]), at


@pytest.mark.parametrize("form", ["proto", "proto, zstd", "native zstd of proto"])
def test_a_stretch_of_noise_in_the_middle(form: str, tmp_path: Path) -> None:
    records = [RECORD[form](body) for body in REQUESTS]
    noise = random.Random(5).randbytes(3000) + ZSTD_MAGIC + b"\x00\x00\x01\x00\x0a\x03"
    path = tmp_path / "traces"
    path.write_bytes(b"".join(records[:10]) + noise + b"".join(records[10:]))
    found, faults = read(path)
    assert found == ALL
    if "native" in form:
        assert faults
    else:
        assert [(f.offset, f.lost_bytes) for f in faults] == [(len(b"".join(records[:10])), len(noise))]


@pytest.mark.parametrize("form", ["proto", "proto, zstd"])
def test_a_garbled_start(form: str, tmp_path: Path) -> None:
    path = tmp_path / "traces"
    path.write_bytes(b"\xff" * 9 + b"".join(map(RECORD[form], REQUESTS)))
    found, faults = read(path)
    assert found == ALL
    assert [(f.offset, f.lost_bytes) for f in faults] == [(0, 9)]


@FORMATS
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_any_damage_is_a_fault_and_no_crash(
    form: str, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    content = bytearray(b"".join(RECORD[form](body) for body in REQUESTS[:4]))
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(content) - 1))
        content[at : at + data.draw(st.integers(0, 9))] = data.draw(st.binary(max_size=9))
    path = tmp_path_factory.mktemp("garbled") / "traces"
    path.write_bytes(content)
    found, faults = read(path)
    if "zstd" in form:
        assert set(found) <= set(ALL)
        assert faults or found == ALL[:40]


def test_a_length_that_claims_more_than_there_is(tmp_path: Path) -> None:
    records = [packed(body) for body in REQUESTS[:4]]
    lying = struct.pack(">I", len(records[1]) + len(records[2]) - 4) + records[1][4:]
    path = tmp_path / "traces"
    path.write_bytes(records[0] + lying + records[2] + records[3])
    found, faults = read(path)
    assert found == ALL[:10] + ALL[20:40]
    assert [(f.offset, f.lost_bytes) for f in faults] == [(len(records[0]), len(lying))]


# -- several files ------------------------------------------------------------------------------


def test_rotated_files_in_any_order(tmp_path: Path) -> None:
    names = [
        "traces.jsonl",
        "traces-2026-11-22T14-26-52.513-size.jsonl",
        "traces-2026-11-22T15-00-00.000-size.jsonl",
    ]
    for name, part in zip(names, (REQUESTS[14:], REQUESTS[:7], REQUESTS[7:14]), strict=True):
        (tmp_path / name).write_bytes(b"".join(as_json(body) + b"\n" for body in part))
    session = open_session(str(tmp_path), tmp_path)
    assert session.manifest is None
    assert read(*session.traces) == (ALL, [])
    assert read(*reversed(session.traces)) == (ALL, [])


def test_one_file_for_each_sender(tmp_path: Path) -> None:
    """As `group_by` of the Collector's file exporter writes them: read side by side in time."""
    for i, name in enumerate("abc"):
        (tmp_path / name).write_bytes(b"".join(map(packed, REQUESTS[i::3])))
    assert read(*(tmp_path / name for name in "cab")) == (ALL, [])


# -- sessions -----------------------------------------------------------------------------------


def test_a_running_session_can_be_read(tmp_path: Path) -> None:
    writer = create(tmp_path, BASE, ["run"])
    try:
        for i, body in enumerate(REQUESTS):
            writer.traces(body)
            writer.flush()
            session = open_session("latest", tmp_path)
            assert session.running
            assert read(*session.traces) == (ALL[: 10 * (i + 1)], [])
        writer.energy(REQUESTS[0])
    finally:
        writer.close()
    session = open_session("latest", tmp_path)
    assert not session.running
    assert session.manifest is not None
    assert session.manifest.ended is not None
    assert read(*session.traces) == (ALL, [])
    assert read(*session.energy) == (ALL[:10], [])


def test_what_is_appended_is_flushed_within_a_second_or_so(tmp_path: Path) -> None:
    writer = create(tmp_path, BASE, ["run"])
    try:
        writer.traces(REQUESTS[0])
        wait_for(lambda: read(writer.path / TRACES)[0] == ALL[:10])
    finally:
        writer.close()


WRITER = textwrap.dedent("""
    import sys, time
    from pathlib import Path
    sys.path.insert(0, sys.argv[2])
    from test_archive import BASE, create, request_of
    writer = create(Path(sys.argv[1]), BASE, ["run"])
    n = 0
    while True:
        n += 1
        writer.traces(request_of(n))
        print(n, time.monotonic_ns(), flush=True)
        time.sleep(0.002)
""")


def test_kill_9_costs_at_most_the_last_second(tmp_path: Path) -> None:
    arguments = [sys.executable, "-c", WRITER, str(tmp_path), str(Path(__file__).parent)]
    child = subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True)
    try:
        assert child.stdout is not None
        lines = [child.stdout.readline()]
        while int(lines[-1].split()[1]) - int(lines[0].split()[1]) < 3.5e9:
            lines.append(child.stdout.readline())
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
    killed = time.monotonic_ns()
    session = open_session("latest", tmp_path)
    assert not session.running
    found, faults = read(*session.traces)
    assert found == list(range(1, len(found) + 1))
    assert all(f.at_end for f in faults)
    times = {int(n): int(t) for n, t in map(str.split, lines)}
    lost = [t for n, t in times.items() if n > len(found)]
    assert len(found) > 100
    assert min(lost, default=killed) > killed - 2.5e9  # a second, and what a busy machine adds


FULL = textwrap.dedent("""
    import json, logging, resource, sys
    from pathlib import Path
    logging.basicConfig()
    sys.path.insert(0, sys.argv[2])
    from test_archive import BASE, REQUESTS, create
    writer = create(Path(sys.argv[1]), BASE, ["run"])
    for body in REQUESTS[:5]:
        writer.traces(body)
    writer.flush()
    size = (writer.path / "traces.otlp").stat().st_size
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 100, unlimited[1]))
    said = []
    for body in REQUESTS[5:8]:
        writer.traces(body)
        writer.flush()
        said.append(writer.error)
    resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
    for body in REQUESTS[8:10]:
        writer.traces(body)
        writer.flush()
        said.append(writer.error)
    lost = writer.lost
    writer.close()
    print(json.dumps([lost, said]))
""")


def test_a_full_disk_damages_nothing_and_says_so(tmp_path: Path) -> None:
    arguments = [sys.executable, "-c", FULL, str(tmp_path), str(Path(__file__).parent)]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    lost, said = json.loads(done.stdout)
    session = open_session("latest", tmp_path)
    assert lost == {TRACES: 3}
    assert session.manifest is not None
    assert session.manifest.lost == lost
    assert [bool(problem) for problem in said] == [True, True, True, False, False]
    assert str(session.path / TRACES) in said[0]
    assert "everything before them is safe" in said[0]
    assert done.stderr.count(str(session.path / TRACES)) == 1  # once, not every second
    assert read(*session.traces) == (ALL[:50] + ALL[80:100], [])


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "sessions").write_text("a file")
    with pytest.raises(OSError, match="sessions"):
        create(tmp_path, BASE, [])


# -- names --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["../x", "a/b", "", ".", "..", ".hidden", "a\n", "x" * 81, "a b"])
def test_names_that_could_leave_the_folder_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="letters, digits"):
        create(tmp_path / "data", BASE, [], name)
    assert not list(tmp_path.iterdir())


def test_sessions_are_found_by_name_prefix_and_latest(tmp_path: Path) -> None:
    with pytest.raises(SessionNotFound, match="none yet"):
        open_session("latest", tmp_path)
    for name in ("20261001T1-a", "20261001T2-b", "20261001T2-bc", "20261002T1-c"):
        create(tmp_path, BASE, [], name).close()

    def found(reference: str) -> str:
        return open_session(reference, tmp_path).path.name

    assert found("latest") == "20261002T1-c"
    assert found("20261001T1") == "20261001T1-a"
    assert found("20261001T2-b") == "20261001T2-b"  # whole, though another begins with it
    assert found(str(tmp_path / "sessions" / "20261001T1-a")) == "20261001T1-a"
    with pytest.raises(SessionNotFound, match=r"several sessions fit: 20261001T2-b, 20261001T2-bc$"):
        found("20261001T2")
    with pytest.raises(SessionNotFound, match="no such session"):
        found("2027")
    with pytest.raises(SessionNotFound, match="no such file or folder"):
        found("../20261001T1-a")
    with pytest.raises(FileExistsError):
        create(tmp_path, BASE, [], "20261001T1-a")


def test_the_latest_is_the_newest_whatever_it_is_called(tmp_path: Path) -> None:
    """A name that sorts last, as an import's may, doesn't stand in the way of all that come after it."""
    for name in ("zelda", "20261001T120000Z-0001", "doom"):
        writer = create(tmp_path, BASE, [], name)
        writer.manifest.created = f"2026-10-0{len(session_ids(tmp_path))}T12:00:00.000+00:00"
        writer.close()
    assert session_ids(tmp_path) == ["zelda", "20261001T120000Z-0001", "doom"]
    assert open_session("latest", tmp_path).path.name == "doom"
    with pytest.raises(SessionNotFound, match="newest: zelda, 20261001T120000Z-0001, doom"):
        open_session("quake", tmp_path)
    for manifest in ("{", '{"created": "soon"}', '{"created": 1}', "\0"):
        (tmp_path / "sessions" / "doom" / "manifest.json").write_text(manifest)
        assert open_session("latest", tmp_path).path.name == "20261001T120000Z-0001"


@pytest.mark.parametrize("text", ["", "{", "[1]", '"x"', '{"id": "a"}', "\0\xff"])
def test_a_garbled_manifest_costs_only_the_manifest(text: str, tmp_path: Path) -> None:
    writer = create(tmp_path, BASE, [])
    writer.traces(REQUESTS[0])
    writer.close()
    (writer.path / "manifest.json").write_bytes(text.encode("latin-1"))
    session = open_session("latest", tmp_path)
    assert session.manifest is None
    assert read(*session.traces) == (ALL[:10], [])


def test_a_manifest_of_another_version(tmp_path: Path) -> None:
    writer = create(tmp_path, BASE, ["run", "--for", "3"])
    writer.close()
    path = writer.path / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"new": 1}))
    manifest = open_session("latest", tmp_path).manifest
    assert isinstance(manifest, Manifest)
    assert manifest.command == ["run", "--for", "3"]


@pytest.mark.parametrize(
    ("content", "place"),
    [
        (b"root:x:0:0:root:/root:/bin/bash\n" * 40, "byte 0: no whole record starts here"),
        (b'{\n  "name": "x",\n  "version": 1\n}\n', "line 1, byte 0: OTLP/JSON: not JSON"),
        (b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 9, "byte 0: no whole record starts here"),
        (packed(REQUESTS[0])[:-5], "byte 0: the last record is cut off"),
    ],
)
def test_files_of_which_nothing_can_be_read_are_refused(content: bytes, place: str, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    for reference in (path, tmp_path):
        with pytest.raises(SessionNotFound, match="no OTLP in it") as caught:
            open_session(str(reference), tmp_path)
        assert str(path) in str(caught.value)
        assert place in str(caught.value)
    (tmp_path / "other").write_bytes(packed(REQUESTS[0]))
    assert len(open_session(str(tmp_path), tmp_path).traces) == 2  # one bad file costs only itself


def test_a_file_whose_reading_fails_is_named() -> None:
    path = Path("/proc/self/mem")  # opens, but has nothing at byte 0
    with pytest.raises(OSError, match=str(path)):
        list(read_records(path, []))


def test_an_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(SessionNotFound, match="empty folder"):
        open_session(str(tmp_path), tmp_path)


def test_a_discarded_session_leaves_nothing(tmp_path: Path) -> None:
    create(tmp_path, BASE, []).discard()
    assert list((tmp_path / "sessions").iterdir()) == []


# -- order --------------------------------------------------------------------------------------


def send(hub: Hub, first: int) -> None:
    for i in range(200):
        hub.traces(request_of(first + i + 1))


def test_archived_and_live_order_are_one(tmp_path: Path) -> None:
    """Whatever the threads do: what is aligned live and what is aligned again is the same sequence."""
    live: list[Spans] = []
    archive = SessionWriter(tmp_path / "session", Manifest("test", ""))
    hub = Hub(archive, live.append, MetricStore(), {"service.name": "hub"}, BASE)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        threads = [
            threading.Thread(
                target=lambda k=k: [hub.traces(request_of(1000 * k + i + 1)) for i in range(200)]
            )
            for k in range(6)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
        hub.close()
        archive.close()
    order = concatenate(live).span.tolist()
    assert len(order) == 1200
    assert read(archive.path / TRACES) == (order, [])
    assert (archive.path / ENERGY).read_bytes() == b""
