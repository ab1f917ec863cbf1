"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from benchlab_otel.cli.errors import UserError
from benchlab_otel.config import ConfigError, Settings, load

ConfigFile = Annotated[
    Path | None,
    typer.Option("--config", metavar="FILE", help="Configuration file instead of the first one found."),
]


def settings(config: Path | None) -> Settings:
    """The settings in force; UserError where the file or the environment can't be used."""
    try:
        return load(config)
    except ConfigError as error:
        raise UserError(str(error)) from None
    except OSError as error:
        raise UserError(f"{error.filename}: can't read the configuration: {error.strerror}") from None
