"""`doctor` and `devices` on written /sys trees, as root and as an ordinary user."""

import json
import os
import pwd
import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest

from benchlab_otel.sources.reading import Reason
from conftest import need
from machines import unpack, write

PROGRAM = [sys.executable, "-c", "from benchlab_otel.cli import main; main()"]
NOBODY = "65534"


def environment(root: Path, **extra: str) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("BENCHLAB_OTEL_", "OTEL_"))}
    sections = ("RAPL", "HWMON", "DRM", "POWER_SUPPLY")
    return kept | {f"BENCHLAB_OTEL_SOURCES__{name}__SYSFS": str(root) for name in sections} | extra


def run(root: Path, *arguments: str, prefix: tuple[str, ...] = (), **extra: str):
    command = [*prefix, *PROGRAM, *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=60, env=environment(root, **extra), cwd="/"
    )


@pytest.fixture
def ordinary(tmp_path) -> tuple[str, ...]:
    """What makes a command run as an ordinary user, who can reach the test's folder."""
    for folder in (tmp_path, *tmp_path.parents):
        if folder.stat().st_uid == os.geteuid():
            folder.chmod(folder.stat().st_mode | 0o055)
    if os.geteuid() != 0:
        return ()
    prefix = (need("setpriv"), f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups")
    tried = subprocess.run(
        [*prefix, sys.executable, "-c", "import benchlab_otel.cli"], capture_output=True, cwd="/"
    )
    if tried.returncode:
        pytest.skip("an ordinary user can't run this Python, which is in a private folder")
    return prefix


def protect(root: Path) -> None:
    """As the kernel has it: only root may read the counters."""
    for path in root.glob("class/powercap/*/energy_uj"):
        path.chmod(0o400 if os.geteuid() == 0 else 0)


def test_root_reads_everything_of_a_laptop(tmp_path):
    root = unpack("thinkpad-x1-i7-8550u", tmp_path)
    done = run(root, "doctor", "rapl", "hwmon", "drm", "power_supply")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "✓ rapl: RAPL: package-0, core, uncore, dram, psys (rapl, simulated)" in done.stdout
    assert done.stdout.count("readable; ") == 4
    assert "✗" not in done.stdout


def test_an_ordinary_user_gets_the_rule_and_what_it_risks(tmp_path, ordinary):
    root = unpack("thinkpad-x1-i7-8550u", tmp_path)
    protect(root)
    done = run(root, "doctor", "rapl", "hwmon", prefix=ordinary, HOME=str(tmp_path))
    assert done.returncode == 1
    assert "✗ rapl: unreadable: " in done.stdout
    assert "energy_uj: only root may read it" in done.stdout
    assert (
        'fix: sudo groupadd -f rapl && sudo usermod -aG rapl $USER && echo \'SUBSYSTEM=="powercap"'
        in done.stdout
    )
    assert "risk: " in done.stdout
    assert "PLATYPUS" in done.stdout
    assert "user: ordinary" in done.stdout
    assert "✓ hwmon: " in done.stdout, "the rest goes on"


def test_a_fix_is_a_line_to_paste_with_words_below_it(tmp_path):
    told = run(tmp_path, "doctor", "rapl").stdout.splitlines()
    at = told.index("    fix: sudo modprobe intel_rapl_msr")
    assert told[at + 1].startswith("         virtual machines have no counters")
    (found,) = json.loads(run(tmp_path, "doctor", "rapl", "--json").stdout)["sources"]
    assert found["fix"].splitlines()[0] == "sudo modprobe intel_rapl_msr"


def documented(title: str) -> list[str]:
    """The first column of a table in docs/sources.md."""
    page = (Path(__file__).parents[1] / "docs/sources.md").read_text()
    table = page.partition(f"| {title} | What it is |\n|---|---|\n")[2].partition("\n\n")[0]
    return [line.split("`")[1] for line in table.splitlines()]


def test_what_the_page_on_the_sources_says_of_the_json_is_so(tmp_path):
    report = json.loads(run(tmp_path, "doctor", "rapl", "host", "--json").stdout)
    assert list(report) == ["system", "sources"]
    assert list(report["system"]) == documented("In `system`")
    for found in report["sources"]:
        assert list(found) == documented("In the list")
    (found,) = json.loads(run(tmp_path, "devices", "rapl", "--json").stdout)
    assert [*found, "readings_per_second_set"] == documented("In the list")
    assert documented("`reason`") == list(get_args(Reason))


def test_what_is_not_there_is_a_fault_only_where_it_was_named(tmp_path):
    extra = {"BENCHLAB_OTEL_SOURCES__ENABLED": "drm,power_supply,rapl"}
    done = run(tmp_path, "doctor", **extra)
    assert done.returncode == 0, done.stdout
    assert done.stdout.count("– ") == 3
    named = run(tmp_path, "doctor", "drm")
    assert named.returncode == 1
    assert "✗ drm: absent: nothing here that drm reads" in named.stdout


def test_a_rate_that_can_not_be_reached_is_a_fault(tmp_path):
    root = unpack("epyc-2p-server", tmp_path)
    done = run(root, "doctor", "hwmon", BENCHLAB_OTEL_SOURCES__HWMON__RATE_HZ="100000")
    assert done.returncode == 1
    assert "fix: set sources.hwmon.rate_hz to at most " in done.stdout


def test_the_report_names_versions_but_no_secrets_host_or_home(tmp_path):
    root = unpack("steam-deck", tmp_path / "sys")
    home = tmp_path / "home-of-alice"
    home.mkdir()
    secrets = {"OTEL_EXPORTER_OTLP_HEADERS": "authorization=Bearer hunter2", "HOME": str(home)}
    settings = home / "config.toml"
    settings.write_text("[sources]\nenabled = ['host', 'hwmon']\n")
    for form in ((), ("--json",)):
        done = run(root, "doctor", "--config", str(settings), *form, **secrets)
        assert done.returncode == 0, done.stdout + done.stderr
        for word in ("hunter2", "alice", f"host-{socket.gethostname()}", f"host {socket.gethostname()}"):
            assert word not in done.stdout
    report = json.loads(done.stdout)
    assert {"benchlab-otel", "python", "kernel", "distribution", "packages"} <= set(report["system"])
    assert [s["source"] for s in report["sources"]] == ["host", "hwmon"]
    assert all(s["readable"] and s["readings_per_second_set"] == 1.0 for s in report["sources"])


def test_the_report_does_not_name_the_user(tmp_path, ordinary):
    user = pwd.getpwuid(int(NOBODY) if ordinary else os.geteuid()).pw_name
    done = run(tmp_path / user, "doctor", "hwmon", prefix=ordinary, HOME=str(tmp_path))
    assert "USER/class/hwmon: no sensors" in done.stdout
    assert not re.search(rf"\b{user}\b", done.stdout)


NAMED = """
import grp, os, pwd, socket, sys
from types import SimpleNamespace
host, user = sys.argv[1:3]
del sys.argv[1:3]
socket.gethostname = lambda: host
pwd.getpwuid = lambda number: SimpleNamespace(pw_name=user)
grp.getgrgid = lambda number: SimpleNamespace(gr_name=user)
os.getgroups = lambda: [100]
from benchlab_otel.cli import main
main()
"""


def run_as(host: str, user: str, root: Path, *arguments: str, prefix: tuple[str, ...] = (), **extra: str):
    """The program on a system that tells other names."""
    command = [*prefix, sys.executable, "-c", NAMED, host, user, *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=60, env=environment(root, **extra), cwd="/"
    )


def test_names_of_host_and_user_are_hidden_in_words_and_nowhere_else(tmp_path, ordinary):
    """A host `gpu.lab` and a user `unreadable`, whose names are also what programs look for."""
    root = unpack("thinkpad-x1-i7-8550u", tmp_path / "unreadable")
    protect(root)
    home = {"HOME": "/srv/unreadable"}
    asked = ("gpu.lab", "unreadable", root, "doctor", "rapl", "drm", "host")
    report = json.loads(run_as(*asked, "--json", prefix=ordinary, **home).stdout)
    rapl, drm, host = report["sources"]
    assert report["system"]["user"] == "ordinary, in groups USER"
    assert rapl["reason"] == "unreadable"
    assert rapl["address"] == f"{tmp_path}/USER/class/powercap"
    assert rapl["problem"].startswith(f"{tmp_path}/USER/class/powercap/")
    assert (drm["hw.type"], drm["description"]) == ("gpu", "Intel GPU at 0000:00:02.0 (i915)")
    assert (host["address"], host["hw.id"], host["description"]) == ("HOST", "host-HOST", "host HOST")
    told = run_as(*asked, prefix=ordinary, **home).stdout
    assert f"✗ rapl: unreadable: {tmp_path}/USER/class/powercap/" in told
    assert "✓ host: host HOST (host-HOST)" in told


@pytest.mark.parametrize("name", ["benchlab", "benchlab-otel", "host", "sys"])
def test_names_that_are_words_of_the_program_are_no_secrets(tmp_path, ordinary, name):
    """`benchlab` is the user of the image, `benchlab-otel` that of the systemd units."""
    asked = (name, name, tmp_path, "doctor", "benchlab", "benchlab_http", "benchlab_mqtt", "host")
    extra = {"HOME": f"/var/lib/{name}", "BENCHLAB_OTEL_SOURCES__BENCHLAB__SYSFS": str(tmp_path)}
    extra["BENCHLAB_OTEL_SOURCES__BENCHLAB_HTTP__KEY_FILE"] = f"/var/lib/{name}/key"
    extra["BENCHLAB_OTEL_SOURCES__BENCHLAB_HTTP__URLS"] = "http://127.0.0.1:9"
    report = json.loads(run_as(*asked, "--json", prefix=ordinary, **extra).stdout)
    assert report["system"]["benchlab-otel"]
    assert "benchlab-pycore" in report["system"]["packages"]
    assert [f["source"] for f in report["sources"]] == ["benchlab", "benchlab_http", "benchlab_mqtt", "host"]
    assert "set sources.benchlab.ports" in report["sources"][0]["fix"]
    assert report["sources"][1]["problem"].startswith("sources.benchlab_http.key_file: ~/key: ")
    assert report["sources"][3]["hw.id"] == f"host-{name}"


@pytest.mark.parametrize("command", ["doctor", "devices"])
def test_a_source_that_can_not_be_opened_does_not_end_the_report(tmp_path, command):
    root = unpack("thinkpad-x1-i7-8550u", tmp_path / "sys")
    (root / "class/hwmon/hwmon9").symlink_to(root / "gone")
    extra = {"BENCHLAB_OTEL_SOURCES__HOST__PROCFS": str(tmp_path / "host/proc")}
    done = run(root, command, "host", "hwmon", "rapl", "--json", **extra)
    report = json.loads(done.stdout)
    found = report["sources"] if command == "doctor" else report
    assert [f["reason"] for f in found] == ["unreadable", "lost", None], done.stderr
    assert found[0]["fix"].startswith("mount the host's /proc there")


def test_devices_has_every_gpu_also_the_one_that_sleeps(tmp_path):
    root = unpack("core-ultra-arc-b580", tmp_path)
    found = {d["address"]: d for d in json.loads(run(root, "devices", "drm", "rapl", "--json").stdout)}
    assert [d["hw.id"] for d in found.values()] == [None, "xe-0000:03:00.0", "rapl"]
    assert found[str(root / "class/drm/card0")]["reason"] == "asleep"
    assert found[str(root / "class/drm/card1")]["simulated"] is True
    assert "Intel GPU at" in run(root, "devices", "drm").stdout


def test_garbage_in_a_counter_is_a_line_not_a_trace(tmp_path):
    root = unpack("xeon-2p-server", tmp_path)
    write(root / "class/powercap/intel-rapl:0/energy_uj", "many")
    done = run(root, "doctor", "rapl")
    assert done.returncode == 1
    assert "garbled: " in done.stdout
    assert "expected a number of microjoules, found b'many" in done.stdout
    assert "Traceback" not in done.stderr + done.stdout
