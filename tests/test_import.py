"""The import command: sessions made of files, and files put into sessions that measured meanwhile."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchlab_otel import contract, timebase
from benchlab_otel.archive.records import compressor, frame
from benchlab_otel.archive.session import create, open_session
from benchlab_otel.export.capframex import write_json
from benchlab_otel.export.recording import load, load_runs
from benchlab_otel.model import Run
from benchlab_otel.otlp.encode import SpanBatch, encode_request
from benchlab_otel.simulate.power import measure, requests
from benchlab_otel.timebase import CLOCK_ATTRIBUTE
from conftest import need
from foreign import METRICS, SYSTEM, V1, mangohud, v1
from imported import START_NS
from sessions_of import METER, truth_of


class Place:
    """A folder with its own sessions."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.data_dir = folder / "state" / "benchlab-otel"

    def write(self, name: str, *lines: str) -> None:
        (self.folder / name).write_text("\n".join(lines) + "\n")

    def run(self, *arguments: str, fails: int = 0) -> str:
        """What the command printed; its stderr where it is to fail."""
        done = self.ran(*arguments, fails=fails)
        return done.stderr if fails else done.stdout

    def ran(self, *arguments: str, fails: int = 0) -> subprocess.CompletedProcess[str]:
        state = str(self.folder / "state")
        environment = {**os.environ, "XDG_STATE_HOME": state, "XDG_CONFIG_HOME": state, "TZ": "UTC"}
        program = Path(sys.executable).with_name("benchlab-otel")
        done = subprocess.run(
            [program, "import", *arguments],
            cwd=self.folder,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == fails, done.stderr
        assert "Traceback" not in done.stderr
        return done

    def sessions(self) -> list[str]:
        folder = self.data_dir / "sessions"
        return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []

    def runs(self, session: str) -> list[Run]:
        return load_runs(open_session(session, self.data_dir), [])

    def manifest(self, session: str) -> dict[str, object]:
        return json.loads((self.data_dir / "sessions" / session / "manifest.json").read_text())


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


# -- a session of files ---------------------------------------------------------------------------


def test_files_of_several_formats_are_one_session(place: Place) -> None:
    place.write("p.csv", V1, v1(1.0), "garbage", v1(1.01))
    place.write("m.csv", *SYSTEM, METRICS, mangohud(8, 8))
    out = place.run("p.csv", "m.csv", "--session", "both", "--start", "2026-10-01T12:00:00+00:00")
    assert "p.csv: presentmon, 2 frames; times by --start" in out
    assert "m.csv: mangohud, 1 frames" in out
    assert "p.csv: 1 could not be read: line 3: expected 15 values, found 1" in out
    assert {run.frames.pipeline: len(run.frames) for run in place.runs("both")} == {"g.exe": 2, "m": 1}
    manifest = place.manifest("both")
    assert "p.csv: 1 could not be read: line 3: expected 15 values, found 1" in manifest["notes"]
    assert manifest["ended"]


def test_names_and_local_time(place: Place) -> None:
    place.write("p.csv", V1, v1(1.0))
    place.run("p.csv", "--session", "a", "--name", "mine", "--start", "2026-10-01T12:00:00.5")
    frames = place.runs("a")[0].frames
    assert frames.pipeline == "mine"
    assert int(frames.begin[0]) == START_NS + 490_000_000 + 1_000_000_000


def test_without_a_time_the_files_own_time_of_change_counts(place: Place) -> None:
    place.write("p.csv", V1, v1(1.0), v1(2.0))
    os.utime(place.folder / "p.csv", ns=(START_NS, START_NS))
    assert "time of change" in place.run("p.csv", "--session", "a")
    assert int(place.runs("a")[0].frames.end.max()) == START_NS


def test_the_same_file_makes_the_same_spans(place: Place) -> None:
    place.write("p.csv", V1, v1(1.0))
    for name in ("a", "b"):
        place.run("p.csv", "--session", name)
    first, second = (place.runs(name)[0].frames for name in ("a", "b"))
    assert (first.trace == second.trace).all()
    place.run("p.csv", "--into", "a")
    assert len(place.runs("a")[0].frames) == 1


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["p.csv", "wrong.csv"], "wrong.csv: line 1: 'hello, world' is the begin of no format"),
        (["p.csv", "absent.csv"], "absent.csv: No such file or directory"),
        (["p.csv", "."], ".: Is a directory"),
        (["p.csv", "empty.csv"], "empty.csv: "),
        (["wrong.csv", "--format", "mangohud"], "wrong.csv: line 1: no header: expected a log of MangoHud"),
        (["p.csv", "wrong.csv", "--format", "presentmon"], "wrong.csv: line 1: no header"),
        (["wrong.csv", "--format", "gstreamer"], "wrong.csv: no latency record"),
        (["p.csv", "--format", "nonsense"], "expected one of gstreamer, capframex"),
        (["p.csv", "--into", "latest", "--session", "x"], "choose one of them"),
        (["p.csv", "--into", "nowhere"], "nowhere: no such session"),
        (["p.csv", "--session", "../x"], "session id '../x'"),
        (["p.csv", "--start", "1960-01-01T00:00:00"], "before 1970"),
    ],
)
def test_what_can_not_be_used_makes_no_session(place: Place, arguments: list[str], expected: str) -> None:
    place.write("p.csv", V1, v1(1.0))
    place.write("wrong.csv", "hello, world")
    (place.folder / "empty.csv").touch()
    problem = place.run(*arguments, fails=2)
    assert expected in problem
    assert problem.count("\n") == 1
    assert place.sessions() == []
    assert not list(place.folder.rglob(".import-*"))


def test_otlp_needs_no_import(place: Place) -> None:
    """The command says so, in whatever form of the Collector's files it comes."""
    truth = truth_of(1, 2.0)
    body = b"".join(frame(b, compressor()) for b in requests([truth.frames], [], []))
    (place.folder / "traces.otlp").write_bytes(body)
    problem = place.run("traces.otlp", fails=2)
    assert (
        "traces.otlp: OTLP already, nothing to import: `benchlab-otel report traces.otlp` takes it" in problem
    )
    assert place.sessions() == []


def test_a_full_disk_is_said_and_leaves_no_session(place: Place) -> None:
    """A real file system of 64 KiB; writing to it fails without a name."""
    need("unshare")
    unshare = ["unshare", *([] if os.geteuid() == 0 else ["-r"]), "-m"]
    if subprocess.run([*unshare, "true"], capture_output=True).returncode:
        pytest.skip("no mount namespace may be made here")
    place.write("p.csv", V1, *(v1(1 + i / 100 + i % 7 / 999) for i in range(5000)))
    state = place.folder / "state"
    state.mkdir()
    program = Path(sys.executable).with_name("benchlab-otel")
    script = f"mount -t tmpfs -o size=64k none {state} && {program} import p.csv; echo $?; ls -A {state}/*/*"
    environment = {**os.environ, "XDG_STATE_HOME": str(state), "XDG_CONFIG_HOME": str(state)}
    done = subprocess.run(
        [*unshare, "sh", "-c", script], capture_output=True, text=True, cwd=place.folder, env=environment
    )
    if "permission denied" in done.stderr.lower():
        pytest.skip("no file system may be mounted here")
    assert "benchlab-otel: No space left on device\n" in done.stderr
    assert "unexpected" not in done.stderr
    assert done.stdout == "1\n"


# -- into a session -------------------------------------------------------------------------------


def test_a_capture_beside_a_meter_gets_its_joules(place: Place) -> None:
    """The frames of a pipeline go by way of CapFrameX's format and get the joules they had."""
    truth = truth_of(seed=5, seconds=20)
    power = measure(truth, METER, np.random.default_rng(5))
    for name, frames in (("whole", [truth.frames]), ("meter", [])):
        writer = create(place.data_dir, timebase.anchor(), ["test"], name)
        for body in requests(frames, [power], [METER]):
            writer.traces(body)
        writer.close()
    run = place.runs("whole")[0]
    write_json(place.folder / "c.json", [run])
    zero = int(run.frames.end[0])  # second 0 of a capture
    start = f"{np.datetime64(round(zero / 1000), 'us')}+00:00"
    assert "readings" in place.run("c.json", "--into", "meter", "--start", start)
    found = load(open_session("meter", place.data_dir), [])
    wanted = load(open_session("whole", place.data_dir), [])
    back = found.runs[0].frames
    assert np.allclose(back.end, run.frames.end[1:], rtol=0, atol=2000)
    energies = {(e.meter, e.domain, e.method): e.energy for e in found.runs[0].energy}
    for energy in wanted.runs[0].energy:
        if energy.method == "interpolated":
            mine = energies[energy.meter, energy.domain, "interpolated"]
            both = np.isfinite(mine) & np.isfinite(energy.energy[1:])
            assert both.mean() > 0.9
            assert np.allclose(mine[both], energy.energy[1:][both], rtol=1e-3)
    assert place.manifest("meter")["notes"]


def recorded_with_clock(place: Place, wall_offsets: dict[int, int]) -> None:
    """A session on a time base; the wall clock was so far ahead (ns) of it from these times (ns) on."""
    anchor = timebase.Anchor("boot", 1_000_000)
    writer = create(place.data_dir, anchor, ["test"], "live")
    times = START_NS + np.array(list(wall_offsets), np.int64)
    ids = np.arange(1, len(times) + 1, dtype=np.uint64)
    clock = SpanBatch(
        name=contract.CLOCK,
        trace=np.stack([ids, ids], axis=1),
        span=ids,
        start=times,
        end=times,
        attributes={contract.CLOCK_WALL_OFFSET: np.array(list(wall_offsets.values()), np.int64)},
    )
    writer.traces(encode_request({CLOCK_ATTRIBUTE: anchor.offset_ns}, [clock]))
    writer.close()


def test_wall_times_are_put_on_the_sessions_time_base(place: Place) -> None:
    second = 1_000_000_000
    recorded_with_clock(place, {0: 5 * second, 100 * second: 7 * second, 200 * second: 7 * second})
    place.write("p.csv", V1, v1(10.0), v1(150.0))
    place.run("p.csv", "--into", "live", "--start", "2026-10-01T12:00:00+00:00")
    frames = place.runs("live")[0].frames
    presented = frames.begin + 10_000_000
    assert (presented - START_NS).tolist() == [5 * second, 143 * second]


def test_what_of_the_session_s_clock_cannot_be_read_is_told(place: Place) -> None:
    recorded_with_clock(place, {0: 0, 10**12: 0})
    traces = place.data_dir / "sessions" / "live" / "traces.otlp"
    whole = traces.stat().st_size
    traces.write_bytes(traces.read_bytes() + b"garbage")
    place.write("p.csv", V1, v1(10.0))
    told = place.ran("p.csv", "--into", "live", "--start", "2026-10-01T12:00:00+00:00").stderr
    assert f"{traces}: byte {whole}: " in told
    assert len(place.runs("live")[0].frames) == 1


def test_a_file_of_another_time_is_refused(place: Place) -> None:
    recorded_with_clock(place, {0: 0, 10**12: 0})
    place.write("p.csv", V1, v1(10.0))
    before = sorted(path.name for path in (place.data_dir / "sessions" / "live").iterdir())
    problem = place.run("p.csv", "--into", "live", "--start", "2026-10-02T12:00:00+00:00", fails=2)
    assert "is of 2026-10-02 12:00:09 to 2026-10-02 12:00:10, the session of 2026-10-01 12:00:00" in problem
    assert "give --start" in problem
    assert sorted(path.name for path in (place.data_dir / "sessions" / "live").iterdir()) == before


def test_a_session_that_is_being_recorded_is_left_alone(place: Place) -> None:
    writer = create(place.data_dir, timebase.anchor(), ["test"], "busy")
    place.write("p.csv", V1, v1(10.0))
    assert "busy: being recorded; end that first" in place.run("p.csv", "--into", "busy", fails=2)
    writer.close()


def test_each_import_is_a_file_of_its_own(place: Place) -> None:
    recorded_with_clock(place, {0: 0, 10**12: 0})
    place.write("p.csv", V1, v1(10.0))
    for start in ("12:00:00", "12:00:05"):
        place.run("p.csv", "--into", "live", "--start", f"2026-10-01T{start}+00:00")
    names = {path.name for path in open_session("live", place.data_dir).traces}
    assert names == {"traces.otlp", "imported-1.otlp", "imported-2.otlp"}
