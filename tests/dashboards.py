"""The committed dashboards and what is in them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

GRAFANA = Path(__file__).parent.parent / "grafana"
Json = dict[str, Any]


def dashboards() -> dict[str, Json]:
    """By file name."""
    files = sorted((GRAFANA / "dashboards").glob("*.json"))
    return {file.name: json.loads(file.read_text()) for file in files}


def panels(dashboard: Json) -> list[Json]:
    """All panels but the headings of rows."""
    return [panel for panel in dashboard["panels"] if panel["type"] != "row"]


def targets() -> Iterator[tuple[Json, Json, Json]]:
    """(dashboard, panel, target) of every query."""
    for dashboard in dashboards().values():
        for panel in panels(dashboard):
            for target in panel["targets"]:
                yield dashboard, panel, target
