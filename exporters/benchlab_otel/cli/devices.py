"""`devices`: what can be read here."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated, Any

import msgspec
import typer
from rich.table import Table

from benchlab_otel import sources
from benchlab_otel.cli import options
from benchlab_otel.cli.errors import UserError
from benchlab_otel.cli.terminal import console
from benchlab_otel.config import Settings
from benchlab_otel.sources.reading import SourceError


def command(
    source: Annotated[
        list[str] | None, typer.Argument(metavar="SOURCE", help="Only these sources (default: all).")
    ] = None,
    config: options.ConfigFile = None,
    as_json: Annotated[bool, typer.Option("--json", help="As a JSON list.")] = False,
) -> None:
    """The devices and counters that can be read here; `doctor` tells how to fix those that can't.

    \b
    Examples:
      benchlab-otel devices
      benchlab-otel devices benchlab --json
    """
    findings = look(source or sources.NAMES, options.settings(config))
    if as_json:
        print(msgspec.json.format(msgspec.json.encode([plain(f) for f in findings]), indent=2).decode())
        return
    table = Table(box=None, pad_edge=False)
    for column in ("Source", "Device", "Readings/s", "Where", "What"):
        table.add_column(column, overflow="fold", no_wrap=column in ("Source", "Device", "Readings/s"))
    for f in findings:
        if f.device and not f.error:
            table.add_row(f.source, f.device.hw_id, f"{f.rate_hz:,.0f}", f.address, _what(f))
        elif f.error:
            table.add_row(f.source, "–", "–", f.address, f"{f.error.reason}: {f.error}")
    console().print(table)
    if any(f.error for f in findings):
        print("How to fix what can't be read: benchlab-otel doctor", file=sys.stderr)


def look(names: Sequence[str], settings: Settings) -> list[sources.Finding]:
    """What the named sources find here, "absent" where that is nothing; UserError for a name that is none."""
    try:
        for name in names:
            sources.load(name)
    except ValueError as error:
        raise UserError(str(error)) from None
    return [found for name in names for found in sources.look(name, settings.sources) or [_nothing(name)]]


def _nothing(name: str) -> sources.Finding:
    fix = getattr(sources.load(name), "WHERE_NOTHING_IS", "")  # what would bring something
    return sources.Finding(name, "", None, 0.0, SourceError("absent", f"nothing here that {name} reads", fix))


def _what(finding: sources.Finding) -> str:
    assert finding.device
    return finding.device.description + (", simulated" if finding.device.simulated else "")


def plain(f: sources.Finding) -> dict[str, Any]:
    """A finding as JSON has it; values that there are none of are null."""
    return {
        "source": f.source,
        "address": f.address,
        "readable": f.error is None,
        "hw.id": f.device.hw_id if f.device else None,
        "hw.type": f.device.hw_type if f.device else None,
        "description": f.device.description if f.device else None,
        "simulated": f.device.simulated if f.device else None,
        "readings_per_second": round(f.rate_hz, 1) if f.error is None else None,
        "reason": f.error.reason if f.error else None,
        "problem": str(f.error) if f.error else None,
        "fix": f.error.fix or None if f.error else None,
        "risk": f.error.risk or None if f.error else None,
    }
