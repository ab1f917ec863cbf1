"""`emulate`, `devices`, `doctor` and `export` as a user runs them."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import urllib.request

import pytest

from conftest import wait_for

PROGRAM = [sys.executable, "-c", "from benchlab_otel.cli import main; main()"]


def environment(**extra) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("BENCHLAB_OTEL_", "OTEL_"))}
    return kept | extra


@contextlib.contextmanager
def started(*arguments, **extra):
    process = subprocess.Popen(
        [*PROGRAM, *arguments], stdout=subprocess.PIPE, text=True, env=environment(**extra)
    )
    try:
        yield process
        process.send_signal(signal.SIGINT)
        process.rest = process.communicate(timeout=60)[0]
    finally:
        process.kill()
        process.wait()


def run(*arguments, **extra) -> subprocess.CompletedProcess[str]:
    command = [*PROGRAM, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment(**extra))


@pytest.fixture(scope="module")
def ports():
    """The ports of two emulated devices."""
    with (
        started("emulate", "--seed", "1", "--watts", "EPS1=80") as a,
        started("emulate", "--seed", "2", "--product", "benchlab2") as b,
    ):
        yield ",".join(p.stdout.readline().strip() for p in (a, b))
    assert a.returncode == b.returncode == 0


def test_a_log_level_that_is_none_is_told():
    done = run("export", "host", "--for", "0.1", BENCHLAB_OTEL_LOG="verbose")
    assert done.returncode == 2
    assert "$BENCHLAB_OTEL_LOG: expected one of DEBUG, INFO, " in done.stderr


def test_devices_shows_both_and_says_that_they_are_simulated(ports):
    found = run("devices", "benchlab", "--json", BENCHLAB_OTEL_SOURCES__BENCHLAB__PORTS=ports)
    devices = json.loads(found.stdout)
    assert [d["address"] for d in devices] == ports.split(",")
    assert all(d["simulated"] and d["readable"] and d["readings_per_second"] > 10 for d in devices)
    assert len({d["hw.id"] for d in devices}) == 2
    table = run("devices", BENCHLAB_OTEL_SOURCES__BENCHLAB__PORTS=ports).stdout
    assert all(d["hw.id"] in table for d in devices)


def test_doctor_names_the_fix_and_fails_where_something_cannot_be_read(ports, tmp_path):
    good = run("doctor", "benchlab", BENCHLAB_OTEL_SOURCES__BENCHLAB__PORTS=ports)
    assert good.returncode == 0, good.stdout + good.stderr
    bad = run("doctor", "rapl", BENCHLAB_OTEL_SOURCES__RAPL__SYSFS=str(tmp_path))
    assert bad.returncode == 1
    assert "no RAPL counters" in bad.stdout
    assert "fix: sudo modprobe" in bad.stdout


def test_export_shows_metrics_and_ends_properly(ports):
    arguments = ("export", "benchlab", "host", "--metrics", "127.0.0.1:0")
    with started(*arguments, BENCHLAB_OTEL_SOURCES__BENCHLAB__PORTS=ports) as exporter:
        url = exporter.stdout.readline().split()[1]

        def page() -> str:
            with urllib.request.urlopen(url) as answer:
                return answer.read().decode()

        wait_for(lambda: len(re.findall(r"^hw_host_power_watts\{.*\} (80|95)\.0$", page(), re.M)) == 2)
        assert 'benchlab_simulated="true"' in page()
    assert exporter.returncode == 0
    assert re.search(r"benchlab: [1-9]\d* readings", exporter.rest)


def test_a_fix_in_the_log_is_one_line_that_can_be_pasted(tmp_path):
    asked = ("export", "rapl", "--for", "0.5", "--metrics", "127.0.0.1:0")
    done = run(*asked, BENCHLAB_OTEL_SOURCES__RAPL__SYSFS=str(tmp_path))
    (line,) = done.stderr.splitlines()
    problem, _, fix = line.partition("; ")
    assert problem == f"benchlab-otel: rapl: absent: {tmp_path}/class/powercap: no RAPL counters"
    assert fix.startswith("sudo modprobe intel_rapl_msr  # virtual machines have no counters")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("export", "benchlub"), "did you mean benchlab?"),
        (("export", "host", "--metrics", "nowhere"), "expected HOST:PORT"),
        (("export", "host", "--metrics", "127.0.0.1:65536"), "expected HOST:PORT"),
        (("export", "host", "--metrics", ":9110"), "expected HOST:PORT"),
        (("export", "host", "--otlp", "http://localhost:65536"), "expected http(s)://host:port"),
        (("export", "host", "--for", "inf"), "--for"),
        (("export", "host", "--for", "nan"), "--for"),
        (("emulate", "--watts", "EPS1"), "expected RAIL=W"),
        (("emulate", "--watts", "EPS1=nan"), "expected RAIL=W"),
        (("emulate", "--watts", "EPS1=1e12"), "up to 5000 W"),
        (("emulate", "--watts", "EPS1=-5"), "up to 5000 W"),
        (("emulate", "--lag-ms", "inf"), "--lag-ms"),
        (("emulate", "--watts", "EPS9=1"), "no rail EPS9"),
        (("emulate", "--firmware", "77"), "no contract"),
        (("emulate", "--path", "/dev/null"), "there is a file already"),
    ],
)
def test_mistakes_are_one_line(arguments, said):
    done = run(*arguments)
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_an_emulator_takes_the_path_of_nobody_else(tmp_path):
    path = tmp_path / "ttyBENCHLAB"
    for taken in (tmp_path / "notes.txt", tmp_path / "not there", "/dev/null"):
        path.symlink_to(taken)
        done = run("emulate", "--path", str(path))
        assert (done.returncode, "there is a file already" in done.stderr) == (2, True)
        assert path.is_symlink()
        path.unlink()
    with started("emulate", "--path", str(path)) as process:
        assert process.stdout.readline() == f"{path}\n"
        assert run("emulate", "--path", str(path)).returncode == 2
        process.kill()
        process.wait(60)
    with started("emulate", "--path", str(path)) as process:  # what was left by the one that was killed
        assert process.stdout.readline() == f"{path}\n"
        process.terminate()
        process.wait(60)
    assert not path.is_symlink()
