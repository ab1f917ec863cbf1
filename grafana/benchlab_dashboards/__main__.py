"""`python -m benchlab_dashboards [FOLDER]` writes the dashboards' JSON (default: grafana/dashboards)."""

from __future__ import annotations

import sys
from pathlib import Path

from grafana_foundation_sdk.cog.encoder import JSONEncoder

from benchlab_dashboards import energy, health, host, meter, overview, pipeline, processors
from benchlab_dashboards.board import build

BOARDS = [module.BOARD for module in (overview, pipeline, energy, meter, processors, host, health)]


def documents() -> dict[str, str]:
    """The JSON text of each dashboard by file name."""
    encoder = JSONEncoder(sort_keys=True, indent=2, ensure_ascii=False)
    return {f"{board.uid}.json": encoder.encode(build(board)) + "\n" for board in BOARDS}


def main(folder: Path) -> None:
    """Writes all dashboards to a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in documents().items():
        (folder / name).write_text(text)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent.parent / "dashboards")
