"""`doctor`: what the enabled sources can't read here, and the fix."""

from __future__ import annotations

from typing import Annotated

import msgspec
import typer

from benchlab_otel import sources
from benchlab_otel.cli import options
from benchlab_otel.cli.devices import look, plain


def command(
    source: Annotated[
        list[str] | None, typer.Argument(help="Only these sources (default: those that are enabled).")
    ] = None,
    config: options.ConfigFile = None,
    as_json: Annotated[bool, typer.Option("--json", help="As a JSON list.")] = False,
) -> None:
    """Read each enabled source for a moment; for what can't be read, print the exact fix.

    Ends with 1 where a source can't be read, or not as often as it is set to.

    \b
    Examples:
      benchlab-otel doctor
      benchlab-otel doctor rapl
    """
    settings = options.settings(config)
    findings = look(source or settings.sources.enabled, settings)
    wanted = [float(getattr(settings.sources, f.source).rate_hz) for f in findings]
    if as_json:
        print(msgspec.json.format(msgspec.json.encode([plain(f) for f in findings]), indent=2).decode())
    else:
        for finding, rate in zip(findings, wanted, strict=True):
            _tell(finding, rate)
    if any(f.error or f.rate_hz < rate for f, rate in zip(findings, wanted, strict=True)):
        raise typer.Exit(1)


def _tell(f: sources.Finding, wanted: float) -> None:
    """One finding: a line, and the fix below it."""
    if f.error:
        print(f"✗ {f.source}: {f.error.reason}: {f.error}")
        if f.error.fix:
            print(f"    fix: {f.error.fix}")
    elif f.device:
        simulated = ", simulated" if f.device.simulated else ""
        print(f"✓ {f.source}: {f.device.description} ({f.device.hw_id}{simulated})")
        mark = "✓" if f.rate_hz >= wanted else "✗"
        print(f"    {mark} {f.rate_hz:,.0f} readings/s are possible, {wanted:g} are set")
        if f.rate_hz < wanted:
            print(f"    fix: set sources.{f.source}.rate_hz to at most {f.rate_hz:.0f}")
