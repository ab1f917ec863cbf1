"""`doctor`: what each source can read here, and for what it can't the exact fix and what that risks."""

from __future__ import annotations

import grp
import math
import os
import platform
import pwd
import re
import socket
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from benchlab_otel import __version__, sources
from benchlab_otel.cli import options
from benchlab_otel.cli.devices import look, plain
from benchlab_otel.config import Settings
from benchlab_otel.sources.reading import SourceError

_PACKAGES = ("numpy", "scipy", "psutil", "pyserial", "benchlab-pycore", "grpcio", "protobuf")
_NOT_HERE = ("absent", "asleep")  # no fault of the setup, unless the source was asked for by name
_NO_SECRETS = {  # as a host's or user's name: words of the program and of the kernel are in any report
    *(word for name in sources.NAMES for word in name.split("_")),
    *("benchlab-otel", sys.platform, "class", "core", "dev", "proc", "sys"),
}
_CONTAINER_MARKS = ("/.dockerenv", "/run/.containerenv", "/run/systemd/container")


def command(
    source: Annotated[
        list[str] | None,
        typer.Argument(metavar="SOURCE", help="Only these sources (default: those that are enabled)."),
    ] = None,
    config: options.ConfigFile = None,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """Read each enabled source for a moment; for what can't be read, print the exact fix and its risk.

    The output is meant for bug reports: it has versions and devices, but no secrets, no names of the
    host or of users. Ends with 1 where a source can't be read, or not as often as it is set to; a
    source that has nothing to read here counts only where it was named.

    \b
    Examples:
      benchlab-otel doctor
      benchlab-otel doctor rapl
    """
    settings = options.settings(config)
    findings = [_anonymous(f) for f in look(source or settings.sources.enabled, settings)]
    if as_json:
        report = {"system": _system(), "sources": [_with_rate(f, settings) for f in findings]}
        print(msgspec.json.format(msgspec.json.encode(report), indent=2).decode())
    else:
        lines = [f"{name}: {value}" for name, value in _system().items()]
        lines += [line for f in findings for line in ("", *_told(f, _wanted(f, settings), bool(source)))]
        print("\n".join(lines))
    if any(_is_fault(f, _wanted(f, settings), bool(source)) for f in findings):
        raise typer.Exit(1)


def _wanted(f: sources.Finding, settings: Settings) -> float:
    return float(getattr(settings.sources, f.source).rate_hz)


def _with_rate(f: sources.Finding, settings: Settings) -> dict[str, Any]:
    return plain(f) | {"readings_per_second_set": _wanted(f, settings)}


def _is_fault(f: sources.Finding, wanted: float, named: bool) -> bool:
    if f.error:
        return named or f.error.reason not in _NOT_HERE
    return f.rate_hz < wanted and not f.paced


def _told(f: sources.Finding, wanted: float, named: bool) -> Iterator[str]:
    """A finding: a line, and below it the rate, or the fix and what it risks."""
    mark = "✗" if _is_fault(f, wanted, named) else "–" if f.error else "✓"
    if f.error:
        yield f"{mark} {f.source}: {f.error.reason}: {f.error}"
        if f.error.fix:
            command, *about = f.error.fix.splitlines()
            yield f"    fix: {command}"
            yield from (f"         {line}" for line in about)
        if f.error.risk:
            yield f"    risk: {f.error.risk}"
    elif f.device:
        simulated = ", simulated" if f.device.simulated else ""
        yield f"{mark} {f.source}: {f.device.description} ({f.device.hw_id}{simulated})"
        there = "come" if f.paced else "are possible"
        yield f"    readable; {f.rate_hz:,.0f} readings/s {there}, {wanted:g} are set"
        if _is_fault(f, wanted, named):
            yield f"    fix: set sources.{f.source}.rate_hz to at most {_rounded_down(f.rate_hz):g}"
            yield "    risk: none; readings that come late are skipped, not made up"


def _rounded_down(rate: float) -> float:
    """To two digits."""
    step = 10.0 ** (math.floor(math.log10(rate)) - 1)
    return math.floor(rate / step) * step


# -- the system -------------------------------------------------------------------------------


def _system() -> dict[str, str]:
    """What a bug report needs to know about this machine."""
    return {
        "benchlab-otel": __version__,
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "packages": ", ".join(f"{name} {version(name)}" for name in _PACKAGES),
        "kernel": f"{platform.system()} {platform.release()} {platform.machine()}",
        "distribution": _distribution(),
        "processor": _of_cpuinfo("model name") or platform.machine(),
        "runs in": _surroundings(),
        "user": _user(),
    }


def _distribution() -> str:
    with suppress(OSError):
        return platform.freedesktop_os_release().get("PRETTY_NAME", "unknown")
    return "unknown"


def _of_cpuinfo(key: str) -> str:
    with suppress(OSError):
        found = re.search(rf"^{key}\s*:\s*(.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
        return found[1] if found else ""
    return ""


def _surroundings() -> str:
    """What may hide hardware."""
    container = any(Path(mark).exists() for mark in _CONTAINER_MARKS)
    guest = "hypervisor" in _of_cpuinfo("flags").split()
    machine = "a virtual machine" if guest else "a real machine"
    return f"a container on {machine}" if container else machine


def _user() -> str:
    """root, or the groups of this user that give access to devices."""
    if os.geteuid() == 0:
        return "root"
    names = []
    for group in os.getgroups():
        with suppress(KeyError):
            names.append(_unnamed(grp.getgrgid(group).gr_name))  # many users have one of their own name
    return f"ordinary, in groups {', '.join(sorted(names)) or 'without names'}"


# -- without names ----------------------------------------------------------------------------


def _anonymous(f: sources.Finding) -> sources.Finding:
    """A finding whose free texts name neither host nor user; what programs read and people paste stays."""
    device, error = f.device, f.error
    if device:
        device = replace(device, description=_unnamed(device.description))
        if device.hw_type == "host":
            device = replace(device, hw_id=_unnamed(device.hw_id))
    if error:
        error = SourceError(error.reason, _unnamed(str(error)), error.fix, error.risk)
    return replace(f, address=_unnamed(f.address), device=device, error=error)


def _unnamed(text: str) -> str:
    """The text without the names of the host, of the user and of the user's home."""
    for word, stands_in in _names():
        text = re.sub(rf"(?<![A-Za-z0-9]){re.escape(word)}(?![A-Za-z0-9])", stands_in, text)
    return text


def _names() -> Sequence[tuple[str, str]]:
    host, home = socket.gethostname(), os.path.expanduser("~")  # noqa: PTH111 - may be no path at all
    names = [(host, "HOST"), (host.partition(".")[0], "HOST"), (home, "~")]
    with suppress(KeyError):  # a container's user may have no name
        user = pwd.getpwuid(os.geteuid()).pw_name
        names += [(user, "USER")] if user != "root" else []
    return [(word, stands_in) for word, stands_in in names if len(word) > 1 and word not in _NO_SECRETS]
