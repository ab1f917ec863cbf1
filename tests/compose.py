"""docker-compose.yml as `docker compose` reads it where nothing is set."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parent.parent
FILE = ROOT / "docker-compose.yml"
_VARIABLE = re.compile(r"\$\$|\$\{(\w+):-([^}]*)\}")


@cache
def services() -> dict[str, Any]:
    """The services, variables being at their defaults."""
    return dict(project()["services"])


@cache
def project() -> dict[str, Any]:
    """The whole file."""
    found: dict[str, Any] = yaml.safe_load(
        _VARIABLE.sub(lambda m: m[2] or "" if m[1] else "$", FILE.read_text())
    )
    return found


def own() -> dict[str, Any]:
    """The services that run this project's program."""
    image = services()["aligner"]["image"]
    return {name: s for name, s in services().items() if s["image"] == image and "entrypoint" not in s}
