"""The compose file, image and units: valid, pinned, locked down, and about things that exist."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from benchlab_otel.cli import COMMANDS
from benchlab_otel.sources import NAMES
from compose import FILE, ROOT, own, project, services

NO_HEALTH_CHECK = {
    "collector": "its image has no shell and no client",
    "tempo": "its image has no shell and no client",
    "prepare": "ends at once",
    "demo": "ends by itself and begins anew",
}
AS_ROOT = {"prepare": "gives volumes to the users of the images"}
LOCKED = re.compile(r"^([A-Za-z0-9_.-]+)==(\S+)", re.MULTILINE)


def test_the_file_is_what_the_compose_specification_says() -> None:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(FILE)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.fixture(params=sorted(services()))
def service(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    return request.param, services()[request.param]


def test_images_have_versions(service: tuple[str, dict[str, Any]]) -> None:
    assert re.fullmatch(r"[\w./-]+:v?\d+\.\d+\.\d+", service[1]["image"])


def test_services_are_locked_down(service: tuple[str, dict[str, Any]]) -> None:
    name, settings = service
    assert settings["read_only"] is True
    assert settings["cap_drop"] == ["ALL"]
    assert settings["security_opt"] == ["no-new-privileges:true"]
    assert "privileged" not in settings
    assert settings.get("cap_add", []) == (["CHOWN"] if name == "prepare" else [])
    assert ("user" in settings) == (name in AS_ROOT)
    limits = settings["deploy"]["resources"]["limits"]
    assert {"cpus", "memory", "pids"} <= limits.keys()


def test_services_are_watched(service: tuple[str, dict[str, Any]]) -> None:
    name, settings = service
    checked = "test" in settings.get("healthcheck", {})
    assert checked != (name in NO_HEALTH_CHECK)


def test_ports_are_on_localhost_only(service: tuple[str, dict[str, Any]]) -> None:
    assert all(port.startswith("127.0.0.1:") for port in service[1].get("ports", []))


def test_what_is_mounted_is_there_and_read_only(service: tuple[str, dict[str, Any]]) -> None:
    for mount in service[1].get("volumes", []):
        source, target, *mode = (
            (mount["source"], mount["target"]) if isinstance(mount, dict) else mount.split(":")
        )
        if source.startswith("."):
            assert (ROOT / source).exists(), source
        if source.startswith((".", "/")):
            assert mode in (["ro"], ["ro,rslave"]), f"{target} is writable"
        else:
            assert source in project()["volumes"]


def test_each_volume_and_each_profile_is_used() -> None:
    mounts = [m for s in services().values() for m in s.get("volumes", [])]
    used = {m["source"] if isinstance(m, dict) else m.split(":")[0] for m in mounts}
    assert project()["volumes"].keys() <= used
    assert {p for s in services().values() for p in s.get("profiles", [])} == {"gpu", "demo"}


def test_prometheus_scrapes_services_of_the_file() -> None:
    jobs = yaml.safe_load((ROOT / "prometheus/prometheus.yml").read_text())["scrape_configs"]
    targets = {target for job in jobs for config in job["static_configs"] for target in config["targets"]}
    collector = services()["collector"]["environment"]
    assert f"collector:{collector['COLLECTOR_METRICS'].rpartition(':')[2]}" in targets
    assert {target.partition(":")[0] for target in targets} <= services().keys() | {"localhost"}


def test_settings_that_the_example_names_are_the_files() -> None:
    example = (ROOT / "deploy/example.env").read_text()
    assert set(re.findall(r"^(?:# )?([A-Z_]+)=", example, re.MULTILINE)) == set(
        re.findall(r"(?<!\$)\$\{(\w+)", FILE.read_text())
    )


# -- the image --------------------------------------------------------------------------------


def test_the_image_is_pinned_ends_without_root_and_copies_what_is_let_through() -> None:
    lines = (ROOT / "Dockerfile").read_text().splitlines()
    bases = [line.split()[1] for line in lines if line.startswith("FROM")]
    assert all(re.fullmatch(r"python:\d+\.\d+\.\d+-slim-\w+", base) for base in bases)
    assert [line for line in lines if line.startswith("USER")][-1] == "USER 10001:10001"
    let_through = {
        line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")
    }
    copied = {word for line in lines if re.match(r"COPY (?!--from)", line) for word in line.split()[1:-1]}
    assert copied == let_through
    assert all((ROOT / name).exists() for name in copied)


def test_the_images_packages_are_those_of_the_tests() -> None:
    image = dict(LOCKED.findall((ROOT / "deploy/requirements.lock").read_text()))
    tests = dict(LOCKED.findall((ROOT / "requirements.lock").read_text()))
    assert image.items() <= tests.items()
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    assert {re.split(r"[=<>]", name)[0] for name in declared} <= image.keys()


# -- units ------------------------------------------------------------------------------------


@pytest.mark.parametrize("unit", sorted(ROOT.glob("deploy/systemd/*.service")), ids=lambda p: p.stem)
def test_units_start_commands_that_exist(unit: Path) -> None:
    [command] = re.findall(r"^ExecStart=\S+/benchlab-otel (.*)$", unit.read_text(), re.MULTILINE)
    name, *arguments = command.split()
    assert name in COMMANDS
    if name == "export":
        assert set(arguments) <= set(NAMES)


def test_own_services_are_all_that_run_the_program() -> None:
    assert own().keys() == {"benchlab", "host", "nvml", "demo", "aligner"}
