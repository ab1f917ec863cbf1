"""The fixes that sources name: what looks like a command is one, and does what it is meant to."""

from __future__ import annotations

import ast
import inspect
import os
import re
import shlex
import subprocess
from collections.abc import Iterator
from fnmatch import fnmatch
from importlib import import_module
from pkgutil import iter_modules
from typing import Any

import pytest
import yaml

from benchlab_otel import sources
from benchlab_otel.sources import rapl
from compose import FILE, ROOT

MODULES = [import_module(f"{sources.__name__}.{module.name}") for module in iter_modules(sources.__path__)]
BEGIN = ("sudo", "pip", "echo")  # of a fix that is a command
COMMANDS = (*BEGIN, "grep")
UDEV = (ROOT / "deploy/udev/60-benchlab-otel.rules").read_text()


def constants(value: Any) -> Iterator[str]:
    """The texts in a module's global, such as a table of fixes."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for part in value.values():
            yield from constants(part)
    elif isinstance(value, tuple):
        for part in value:
            yield from constants(part)


def texts(module: Any) -> Iterator[str]:
    """All that a module's globals and functions have as texts."""
    for value in list(vars(module).values()):
        yield from constants(value)
    for function in ast.walk(ast.parse(inspect.getsource(module))):
        if isinstance(function, ast.FunctionDef):
            for node in ast.walk(function):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    yield node.value


FIXES = sorted({t for module in MODULES for t in texts(module) if t.partition(" ")[0] in BEGIN})


def test_the_fixes_are_found():
    assert {rapl._MAKE_READABLE, rapl._NO_TREE, "pip install 'benchlab-otel[mqtt]'"} <= set(FIXES)


@pytest.mark.parametrize(
    "fix",
    [pytest.param(fix, id=fix[:40]) for fix in FIXES],
)
def test_a_fix_that_begins_with_a_command_has_nothing_else_in_its_line(fix):
    command = fix.splitlines()[0]
    parsed = subprocess.run(["bash", "-n", "-c", command], capture_output=True, text=True)
    assert parsed.returncode == 0, parsed.stderr
    words = list(shlex.shlex(command, posix=True, punctuation_chars=True))
    starts = [0] + [i + 1 for i, word in enumerate(words) if set(word) <= set("&|;()")]
    assert {words[i] for i in starts} <= set(COMMANDS)
    assert not [word for word in shlex.split(command) if word.endswith((",", ".", ":"))]


# -- RAPL: the group that may read the counters -----------------------------------------------


def test_the_fix_of_rapl_does_what_it_is_meant_to(tmp_path):
    """Run by bash, with tools that write down what they are called with."""
    tools, log = tmp_path / "bin", tmp_path / "log"
    tools.mkdir()
    for name, does in {
        "sudo": 'exec "$@"',
        "tee": f'cat > "{tmp_path}/$(basename "$1")"',
        **dict.fromkeys(("groupadd", "usermod", "udevadm"), f'echo "$(basename "$0") $@" >> "{log}"'),
    }.items():
        (tools / name).write_text(f"#!/bin/sh\n{does}\n")
        (tools / name).chmod(0o755)
    environment = {"PATH": f"{tools}:{os.environ['PATH']}", "USER": "alice"}
    command = rapl._MAKE_READABLE.splitlines()[0]
    subprocess.run(["bash", "-c", command], env=environment, check=True)
    assert log.read_text().splitlines() == [
        "groupadd -f rapl",
        "usermod -aG rapl alice",
        "udevadm control --reload",
        "udevadm trigger --subsystem-match=powercap --action=add",
    ]
    assert (tmp_path / "60-rapl.rules").read_text() in UDEV, "one rule in both places"


@pytest.mark.parametrize("zone", ["intel-rapl:0", "intel-rapl:0:1", "intel-rapl-mmio:0"])
def test_the_rule_is_for_all_zones(zone):
    (pattern,) = re.findall(r'SUBSYSTEM=="powercap", KERNEL=="([^"]+)"', UDEV)
    assert fnmatch(zone, pattern)


def test_what_reads_rapl_is_in_the_group():
    for unit in ROOT.glob("deploy/systemd/*.service"):
        reads = re.search(r"^ExecStart=\S+ (run$|export .*\brapl\b)", unit.read_text(), re.MULTILINE)
        groups = re.findall(r"^SupplementaryGroups=.*\brapl\b", unit.read_text(), re.MULTILINE)
        assert bool(reads) == bool(groups), unit
        assert bool(reads) == ("groupadd -f rapl" in unit.read_text()), "or systemd doesn't start it"
    for name, service in yaml.safe_load(FILE.read_text())["services"].items():
        reads = "rapl" in (service.get("command") or [])
        assert reads == any("RAPL_GID" in group for group in service.get("group_add", [])), name
