"""What several commands share: the configuration option, addresses, logging."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from benchlab_otel.cli.errors import UserError
from benchlab_otel.config import ConfigError, Settings, load

_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")

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


def told_to_end() -> threading.Event:
    """Set by ctrl-C, by SIGTERM, and when the terminal is closed (SIGHUP; nohup has it ignored).

    So that files are finished, and a device's fans and lights are put back.
    """
    stop = threading.Event()
    signal.signal(signal.SIGINT, lambda *_: stop.set())
    on_termination(stop.set)
    return stop


def on_termination(do: Callable[[], object]) -> list[tuple[int, Any]]:
    """Has SIGTERM and SIGHUP do something; what they did before."""
    wanted = [signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        wanted.append(signal.SIGHUP)
    return [(number, signal.signal(number, lambda *_: do())) for number in wanted]


class _OneLine(logging.Formatter):
    """What follows a message's first line, as words do a fix's command, becomes a comment of a shell's."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        return "  # ".join(super().formatMessage(record).splitlines())


def set_up_logging() -> None:
    """Warnings of this process on stderr, one line each; UserError where $BENCHLAB_OTEL_LOG is no level."""
    level = os.environ.get("BENCHLAB_OTEL_LOG") or "WARNING"
    if level.upper() not in _LEVELS:
        raise UserError(f"$BENCHLAB_OTEL_LOG: expected one of {', '.join(_LEVELS)}, not {level!r}")
    handler = logging.StreamHandler()
    handler.setFormatter(_OneLine("benchlab-otel: %(message)s"))
    logging.basicConfig(level=level.upper(), handlers=[handler])


def lost_words(counts: Mapping[str, int]) -> str:
    """What a client could not deliver, by reason, in words."""
    words = {"closed": "no receiver took them before the end"}
    return "lost: " + ", ".join(
        f"{n:,} spans and points ({words.get(why, why)})" for why, n in counts.items()
    )
