"""What several commands share: the configuration option, addresses, logging."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
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


def host_port(address: str) -> tuple[str, int]:
    """("127.0.0.1", 4317) of "127.0.0.1:4317"; ValueError for what is no such address."""
    host, _, port = address.rpartition(":")
    if not host or not 0 <= int(port) < 1 << 16:
        raise ValueError(address)
    return host.strip("[]"), int(port)


def set_up_logging() -> None:
    """Warnings of this process on stderr, one line each."""
    logging.basicConfig(
        level=os.environ.get("BENCHLAB_OTEL_LOG", "WARNING").upper(), format="benchlab-otel: %(message)s"
    )


def lost_words(counts: Mapping[str, int]) -> str:
    """What a client could not deliver, by reason, in words."""
    words = {"closed": "no receiver took them before the end"}
    return "lost: " + ", ".join(
        f"{n:,} spans and points ({words.get(why, why)})" for why, n in counts.items()
    )
