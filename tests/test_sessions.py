"""Sessions on disk: manifest without secrets, notes, retention, and a disk that fills up."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import textwrap
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchlab_otel.archive import retention
from benchlab_otel.archive.manifest import (
    HIDDEN,
    MANIFEST,
    Manifest,
    arguments_without_secrets,
    is_secret,
    read_manifest,
    settings_without_secrets,
    write_manifest,
)
from benchlab_otel.archive.notes import Note, add_note, read_notes
from benchlab_otel.archive.records import Fault
from benchlab_otel.archive.retention import Policy, Stored, plan, remove, remove_raw, stored
from benchlab_otel.archive.session import METRICS, TRACES, create, open_session, session_ids
from benchlab_otel.otlp.encode import SpanBatch, encode_request
from benchlab_otel.timebase import Anchor
from conftest import need, wait_for
from test_archive import ALL, BASE, REQUESTS, packed, read, request_of

NOW = datetime(2026, 12, 1, tzinfo=UTC)


def mixed_request() -> bytes:
    """A frame, its stage and a sample in one request, the sample under a resource of its own."""
    ids, at = np.array([[7, 7]], np.uint64), np.array([10**18])
    one = np.array([5], np.uint64)
    frame = SpanBatch("frame", ids, one, at, at + 9, attributes={"pipeline.name": "cam0"})
    stage = SpanBatch("decode", ids, one + np.uint64(1), at, at + 4, one)
    sample = SpanBatch("sample", ids, one + np.uint64(2), at, at + 2, attributes={"hw.power.system": 5.0})
    return encode_request({"service.name": "app"}, [frame, stage, sample])


def recorded(data: Path, name: str, ended: datetime, bodies: list[bytes]) -> Path:
    writer = create(data, BASE, ["run"], name)
    for body in bodies:
        writer.traces(body)
    writer.metrics(b"\x0a\x00" * 1000)
    writer.close()
    manifest = read_manifest(writer.path / MANIFEST)
    assert manifest is not None
    manifest.ended = ended.isoformat()
    write_manifest(writer.path, manifest)
    return writer.path


# -- manifest -----------------------------------------------------------------------------------


def test_the_manifest_follows_what_becomes_known_while_recording(tmp_path: Path) -> None:
    """A kill then costs nothing of it."""
    writer = create(tmp_path, Anchor("boot", 12), ["run"], settings={"align.lateness_s": 0.3})
    try:
        writer.devices = lambda: [{"hw.id": "benchlab-1", "description": "BENCHLAB firmware 3"}]
        writer.manifest.events.append("something")
        path = writer.path / MANIFEST
        wait_for(lambda: json.loads(path.read_text())["devices"])
        found = json.loads(path.read_text())
    finally:
        writer.close()
    assert found["ended"] is None
    assert found["devices"][0]["hw.id"] == "benchlab-1"
    assert found["events"] == ["something"]
    assert found["settings"] == {"align.lateness_s": 0.3}
    assert (found["boot_id"], found["clock_offset_ns"]) == ("boot", 12)


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        (
            ["record", "--", "app", "--password", "geheim", "x"],
            ["record", "--", "app", "--password", HIDDEN, "x"],
        ),
        (
            ["app", "--api-key=geheim", "API_TOKEN=geheim"],
            ["app", f"--api-key={HIDDEN}", f"API_TOKEN={HIDDEN}"],
        ),
        (["curl", "http://me:geheim@host/x"], ["curl", f"http://{HIDDEN}@host/x"]),
        (["curl", "-H", "Authorization: Bearer geheim"], ["curl", "-H", f"Authorization: Bearer {HIDDEN}"]),
        (["curl", "-H", "X-Api-Key: geheim"], ["curl", "-H", f"X-Api-Key: {HIDDEN}"]),
        (
            ["curl", "https://host/a?user=me&access_token=geheim&n=1"],
            ["curl", f"https://host/a?user=me&access_token={HIDDEN}&n=1"],
        ),
        (
            ["sh", "-c", "cd /x; API_TOKEN='geheim' DB_PASSWORD=geheim ./app --size=3"],
            ["sh", "-c", f"cd /x; API_TOKEN={HIDDEN} DB_PASSWORD={HIDDEN} ./app --size=3"],
        ),
        (["post", '{"password": "geheim", "n": 1}'], ["post", f'{{"password": {HIDDEN}, "n": 1}}']),
        (["app", "--token", "--verbose"], ["app", "--token", "--verbose"]),
        (["gst-launch-1.0", "videotestsrc", "!", "x264enc", "key-int-max=60"], None),
        (["app", "--monkey", "keyboard", "tokens.txt"], None),
    ],
)
def test_secrets_of_a_command_line_are_not_in_the_manifest(given: list[str], shown: list[str] | None) -> None:
    assert arguments_without_secrets(given) == (given if shown is None else shown)


def test_secrets_of_settings_are_not_in_the_manifest() -> None:
    values = [("hub.basic_auth", "geheim"), ("hub.grpc", "127.0.0.1:4317"), ("url", "http://me:geheim@host")]
    shown = settings_without_secrets(
        [
            *(*values, ("hub.token", None), ("data_dir", Path("/x")), ("pairs", ("a:b",))),
            ("password_file", "/p"),
        ]
    )
    assert "geheim" not in json.dumps(shown)
    assert shown["hub.grpc"] == "127.0.0.1:4317"
    assert shown["hub.token"] is None
    assert shown["data_dir"] == "/x"
    assert shown["password_file"] == "/p"
    assert not is_secret("hub.monkey")


@settings(deadline=None)
@given(st.recursive(st.none() | st.integers() | st.text(max_size=3), lambda x: st.lists(x) | st.dictionaries(
    st.sampled_from(["id", "created", "ended", "notes", "simulated", "lost", "devices", "new"]), x
)))  # fmt: skip
def test_a_manifest_of_any_shape_is_read_or_not_but_never_crashes(value: object) -> None:
    logging.disable(logging.WARNING)
    path = Path(os.environ.get("TMPDIR", "/tmp")) / f"manifest-{os.getpid()}.json"
    path.write_text(json.dumps(value))
    try:
        found = read_manifest(path)
    finally:
        path.unlink()
        logging.disable(logging.NOTSET)
    assert found is None or (isinstance(found.id, str) and isinstance(found.lost, dict))


# -- notes --------------------------------------------------------------------------------------


def test_notes_are_added_by_others_while_it_is_recorded(tmp_path: Path) -> None:
    writer = create(tmp_path, BASE, ["run"])
    try:
        add_note(writer.path, Note(200, "später"), writer.manifest.id)
        writer.traces(REQUESTS[0])
        add_note(writer.path, Note(100, "first"), writer.manifest.id)
    finally:
        writer.close()
    faults: list[Fault] = []
    assert read_notes(writer.path, faults) == [Note(100, "first"), Note(200, "später")]
    assert not faults
    with (writer.path / "notes.otlp").open("ab") as file:
        file.write(b"\x00\x00\x00\x09\x28\xb5\x2f")  # the begin of another
    assert len(read_notes(writer.path, faults)) == 2
    assert [fault.at_end for fault in faults] == [True]


# -- retention ----------------------------------------------------------------------------------


def of(name: str, age: float, size: int = 100, raw: int = 90, running: bool = False) -> Stored:
    return Stored(Path(name), age, size, raw, running)


def planned(sessions: list[Stored], **policy: float) -> list[tuple[str, str]]:
    return [(str(r.path), r.what) for r in plan(sessions, Policy(**policy))]  # type: ignore[arg-type]  # kw


def test_raw_data_go_after_a_week_and_sessions_after_three_months() -> None:
    sessions = [
        of("a", 6.9),
        of("b", 7.1),
        of("c", 89),
        of("d", 91),
        of("e", 30, raw=0),
        of("f", 400, running=True),
    ]
    assert planned(sessions) == [("d", "all"), ("c", "raw"), ("b", "raw")]


def test_by_size_the_oldest_raw_data_go_first_then_the_oldest_sessions() -> None:
    sessions = [of("a", 1), of("b", 2), of("c", 3), of("r", 9, running=True)]
    assert planned(sessions, max_bytes=400) == []
    assert planned(sessions, max_bytes=399) == [("c", "raw")]
    assert planned(sessions, max_bytes=230) == [("c", "raw"), ("b", "raw")]
    assert planned(sessions, max_bytes=125) == [("c", "all"), ("b", "raw"), ("a", "raw")]
    assert planned(sessions, max_bytes=0) == [("c", "all"), ("b", "all"), ("a", "all")]


SESSIONS = st.builds(
    of, st.uuids().map(str), st.floats(0, 200), st.integers(50, 99), st.integers(0, 50), st.booleans()
)


@given(st.lists(SESSIONS), st.integers(0, 2000))
def test_a_plan_never_touches_what_runs_and_frees_enough(sessions: list[Stored], limit: int) -> None:
    removals = plan(sessions, Policy(7, 90, limit))
    running = {s.path for s in sessions if s.running}
    assert not running & {r.path for r in removals}
    left = sum(s.size for s in sessions) - sum(r.size for r in removals)
    untouchable = sum(s.size for s in sessions if s.running)
    assert left <= max(limit, untouchable)


def test_a_session_without_its_raw_data_keeps_frames_notes_and_energy(tmp_path: Path) -> None:
    path = recorded(tmp_path, "a", NOW, [mixed_request(), REQUESTS[0]])
    add_note(path, Note(5, "here"), "a")
    before = retention.size_of(path)
    faults: list[Fault] = []
    assert remove_raw(path, faults, NOW)
    assert not faults
    session = open_session("a", tmp_path)
    assert session.manifest is not None
    assert session.manifest.raw_removed is not None
    found, problems = read(*session.traces, as_arrived=True)
    assert (found, problems) == ([5, 6, *ALL[:10]], [])
    assert not (path / METRICS).exists()
    assert retention.size_of(path) < before
    assert read_notes(path, faults) == [Note(5, "here")]
    (again,) = stored(tmp_path, NOW)
    assert again.raw == 0  # so it is not done over again
    assert not [p for p in path.iterdir() if p.name.startswith(".")]


def test_raw_data_of_a_damaged_session_stay(tmp_path: Path) -> None:
    path = recorded(tmp_path, "a", NOW, [mixed_request(), *REQUESTS[:3]])
    data = bytearray((path / TRACES).read_bytes())
    data[len(data) // 2] ^= 255
    (path / TRACES).write_bytes(data)
    faults: list[Fault] = []
    assert remove_raw(path, faults, NOW)
    assert faults
    assert (path / TRACES).read_bytes() == data
    assert (path / METRICS).exists()


def test_a_running_session_is_never_removed(tmp_path: Path) -> None:
    writer = create(tmp_path, BASE, ["run"], "busy")
    try:
        writer.traces(REQUESTS[0])
        writer.flush()
        assert not remove(writer.path)
        assert not remove_raw(writer.path, [])
        assert [s.running for s in stored(tmp_path, NOW + timedelta(days=500))] == [True]
        assert read(writer.path / TRACES) == (ALL[:10], [])
    finally:
        writer.close()
    assert remove(writer.path)
    assert session_ids(tmp_path) == []
    assert list((tmp_path / "sessions").iterdir()) == []


def test_the_age_of_a_killed_session_is_that_of_its_data(tmp_path: Path) -> None:
    path = recorded(tmp_path, "killed", NOW, [REQUESTS[0]])
    manifest = Manifest("killed", "2026-01-01T00:00:00+00:00")
    write_manifest(path, manifest)
    for file in path.iterdir():
        os.utime(file, (NOW.timestamp() - 3 * 86400,) * 2)
    (found,) = stored(tmp_path, NOW)
    assert found.age_days == pytest.approx(3)


# -- a disk that fills up -------------------------------------------------------------------------

FILLING = textwrap.dedent("""
    import json, os, sys, time
    from pathlib import Path
    sys.path.insert(0, sys.argv[2])
    from test_archive import BASE, create
    data = Path(sys.argv[1])
    writer = create(data, BASE, ["run"], "a", min_free_bytes=4 << 20)
    sent = 0
    while not writer.stopped.wait(0.01):
        writer.traces(b"\\x0a\\x00" + os.urandom(60_000))
        sent += 1
    writer.traces(b"\\x0a\\x00")
    path = writer.path
    manifest = json.loads((path / "manifest.json").read_text()) if (path / "manifest.json").exists() else {}
    writer.close()
    try:
        create(data, BASE, ["run"], "b", min_free_bytes=4 << 20)
        refused = ""
    except OSError as error:
        refused = str(error)
    print(json.dumps([sent, writer.error, writer.lost, os.statvfs(data).f_bavail * 4096, refused,
        (path / "traces.otlp").stat().st_size, json.loads((path / "manifest.json").read_text())]))
""")


def test_recording_stops_before_the_disk_is_full(tmp_path: Path) -> None:
    """A real file system of 12 MiB, of which 4 are to stay free."""
    need("unshare")
    mount = f"mount -t tmpfs -o size=12m none {tmp_path}"
    script = f'{mount} && exec {sys.executable} -c "$0" {tmp_path} {Path(__file__).parent}'
    user = [] if os.geteuid() == 0 else ["-r"]
    command = ["unshare", *user, "-m", "sh", "-c", script, FILLING]
    if subprocess.run(["unshare", *user, "-m", "true"], capture_output=True).returncode:
        pytest.skip("no mount namespace may be made here")
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    if "permission denied" in done.stderr.lower():
        pytest.skip("no file system may be mounted here")
    assert done.returncode == 0, done.stderr
    sent, error, lost, free, refused, size, manifest = json.loads(done.stdout)
    assert sent > 50
    assert "recording stopped" in error
    assert "session.min_free_mib (4 MiB)" in error
    assert 0 < free < 4 << 20  # near the limit, not full
    assert size > 4 << 20  # what came before is there
    assert lost[TRACES] >= 1
    assert manifest["lost"] == lost
    assert manifest["ended"]
    assert error in manifest["events"]
    assert "No space left" in refused or "session.min_free_mib" in refused
    assert done.stderr.count("recording stopped") <= 1


def test_a_recording_on_a_disk_with_room_goes_on(tmp_path: Path) -> None:
    writer = create(tmp_path, BASE, ["run"], min_free_bytes=1)
    try:
        writer.traces(request_of(1))
        writer.flush()
        assert not writer.stopped.is_set()
    finally:
        writer.close()
    assert read(writer.path / TRACES) == ([1], [])


# -- standard input -------------------------------------------------------------------------------


def test_an_archive_on_standard_input(tmp_path: Path) -> None:
    script = textwrap.dedent("""
        from pathlib import Path
        from benchlab_otel.archive.reader import read_spans
        from benchlab_otel.archive.session import open_session
        faults = []
        session = open_session("-", Path("/nowhere"))
        print(sum(map(len, read_spans(session.traces, faults))), *faults)
        assert open_session("-", Path("/nowhere")).path == session.path
        print(session.path)
    """)
    data = b"".join(map(packed, REQUESTS))
    done = subprocess.run([sys.executable, "-c", script], input=data[:-5], capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr
    first, path = done.stdout.decode().splitlines()
    assert first.startswith("190 ")
    assert "stdin: byte" in first
    assert not Path(path).exists()
