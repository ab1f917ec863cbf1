"""`config show`: what is in force and where it comes from."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
import typer
from rich.table import Table

from benchlab_otel import config as configuration
from benchlab_otel.archive.manifest import settings_without_secrets
from benchlab_otel.cli import options
from benchlab_otel.cli.terminal import console

command = typer.Typer(no_args_is_help=True)


@command.callback()
def _config() -> None:
    """The configuration in force, and where each value comes from."""


@command.command()
def show(
    config: options.ConfigFile = None,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON: key → value, origin, variable.")] = False,
) -> None:
    """Print every key, its value in force (secrets hidden), and what sets it.

    \b
    Example:
      BENCHLAB_OTEL_HUB__METRICS=127.0.0.1:9200 benchlab-otel config show
    """
    options.settings(config)  # so that a mistake is reported the same way as by every command
    values = configuration.resolve(config)
    plain = settings_without_secrets([(key, v.value) for key, v in values.items()])
    if as_json:
        shown = {
            key: {"value": plain[key], "origin": v.origin, "variable": configuration.variable(key)}
            for key, v in values.items()
        }
        print(msgspec.json.format(msgspec.json.encode(shown), indent=2).decode())
        return
    table = Table(box=None, pad_edge=False)
    for column in ("Key", "Value", "From"):
        table.add_column(column, overflow="fold", no_wrap=column == "Key")
    for key, v in values.items():
        table.add_row(key, _text(plain[key]), v.origin)
    console().print(table)


def _text(value: Any) -> str:
    """The value as one would write it in the file; nothing where it is not set."""
    return "not set" if value is None else msgspec.json.encode(value).decode()
