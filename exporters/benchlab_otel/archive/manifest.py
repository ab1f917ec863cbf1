"""What is known of a session besides its data: a JSON file that people may read, without secrets."""

from __future__ import annotations

import json
import logging
import platform
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from benchlab_otel import __version__

log = logging.getLogger(__name__)

MANIFEST = "manifest.json"
HIDDEN = "***"


@dataclass(slots=True)
class Manifest:
    """What ran, when, on which clock, with which devices and settings.

    `clock_offset_ns`: Unix time less CLOCK_MONOTONIC of boot `boot_id`. `live`: recorded as it happened,
    so its requests are read in the order of their arrival. `lost`: records by file that could not be
    written. `raw_removed`: when retention took the samples and metrics.
    """

    id: str
    created: str
    ended: str | None = None
    command: list[str] = field(default_factory=list)
    host: str = ""
    version: str = __version__
    python: str = field(default_factory=platform.python_version)
    kernel: str = field(default_factory=platform.release)
    boot_id: str = ""
    clock_offset_ns: int = 0
    live: bool = True
    simulated: bool = False
    devices: list[dict[str, Any]] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    events: list[str] = field(default_factory=list)
    lost: dict[str, int] = field(default_factory=dict)
    raw_removed: str | None = None


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Replaces the folder's manifest in one step. Raises OSError."""
    draft = folder / f".{MANIFEST}"
    draft.write_text(json.dumps(asdict(manifest), indent=1) + "\n")
    draft.replace(folder / MANIFEST)


def read_manifest(path: Path) -> Manifest | None:
    """The manifest of a file; None, with a warning, where it is none: the data are readable without."""
    try:
        found: dict[str, Any] = json.loads(path.read_bytes())
        defaults = Manifest(id="", created="")
        known = {f.name: found[f.name] for f in fields(Manifest) if f.name in found}
        for name, value in known.items():
            default = getattr(defaults, name)
            if not isinstance(value, type(default)) and not (
                default is None and isinstance(value, str | None)
            ):
                raise ValueError(f"{name}: expected {type(default).__name__}, found {value!r:.40}")
        return Manifest(**known)
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        log.warning("%s: not a session manifest (%s); its data are read without it", path, error)
        return None


# -- secrets ----------------------------------------------------------------------------------

_SECRET = re.compile(
    r"(?:^|_)(?:pass(?:word|wd|phrase)?|secrets?|tokens?|credentials?|(?:api|access|private|client)_?key|auth(?:orization)?|headers?)(?:_|$)"
)
_IN_TEXT = re.compile(r"(?<=://)[^/@\s]+(?=@)|(?<=bearer )\S+|(?<=basic )\S+", re.IGNORECASE)
_NAMED = re.compile(
    r"""([A-Za-z0-9_][\w.-]*)(["']?(?:=|: *))(?!(?:bearer|basic) |//)("[^"]*"|'[^']*'|[^\s&;'"]+)""",
    re.IGNORECASE,
)
_ACCOUNT = re.compile(r"\A(?!\w+://)(?:[^\s:@]+:\S*(?=@)|\S+(?=@[^\s@]+:\d+\Z))")  # before what is HOST:PORT
_ASSIGNMENT = re.compile(r"(-{0,2}[A-Za-z0-9_][\w.-]*)=(.+)", re.DOTALL)


def is_secret(name: str) -> bool:
    """Whether a setting, option or variable of this name holds a secret."""
    return bool(_SECRET.search(re.sub(r"[^a-z0-9]+", "_", name.lower())))


def text_without_secrets(text: str) -> str:
    """A text with users in URLs and what secret names in it stand for (queries, headers, a shell's
    variables) hidden."""
    hidden = _IN_TEXT.sub(HIDDEN, text)
    return _NAMED.sub(lambda m: f"{m[1]}{m[2]}{HIDDEN if is_secret(m[1]) else m[3]}", hidden)


def arguments_without_secrets(arguments: Sequence[str]) -> list[str]:
    """A command line with the values of secret options and variables, and users in URLs, hidden."""
    shown: list[str] = []
    hide_next = False
    for argument in arguments:
        if hide_next and not argument.startswith("-"):
            shown.append(HIDDEN)
        elif (match := _ASSIGNMENT.fullmatch(argument)) and is_secret(match[1]):
            shown.append(f"{match[1]}={HIDDEN}")
        else:
            shown.append(text_without_secrets(argument))
        hide_next = argument.startswith("-") and "=" not in argument and is_secret(argument)
    return shown


def settings_without_secrets(values: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """(key, value) pairs as JSON values, those of secret keys and users in URLs and HOST:PORT hidden.

    The name of a file that holds a secret is none.
    """
    secret = {key for key, value in values if value and is_secret(key) and not key.endswith("_file")}
    return {key: HIDDEN if key in secret else _shown(value) for key, value in values}


def _shown(value: Any) -> Any:
    if isinstance(value, tuple | list):
        return [_shown(item) for item in value]
    if isinstance(value, Path):
        return text_without_secrets(str(value))
    return _ACCOUNT.sub(HIDDEN, text_without_secrets(value)) if isinstance(value, str) else value
