"""Foreign files as they are read back after an import, without the command line around it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from benchlab_otel.archive.session import Session
from benchlab_otel.cli.importing import WALL, Converted, Source, TimeBase, convert, detect
from benchlab_otel.export.recording import load_runs
from benchlab_otel.model import Float, Frames, Readings, Run

START = datetime.fromisoformat("2026-10-01T12:00:00+00:00")
START_NS = 1_790_856_000_000_000_000


@dataclass(slots=True)
class Back:
    """What came of a file."""

    done: Converted
    runs: list[Run]

    @property
    def frames(self) -> Frames:
        assert len(self.runs) == 1
        return self.runs[0].frames

    def notes(self) -> str:
        return "\n".join(self.done.notes)


def import_file(
    path: Path,
    *,
    start: datetime | None = None,
    name: str | None = None,
    format_: str | None = None,
    base: TimeBase = WALL,
) -> Back:
    """Imports one file and reads it back; UserError as the command has it."""
    out = path.parent / "imported.otlp"
    done = convert(Source(path, format_ or detect(path), name, start), out, base, "s1")
    faults = []
    runs = load_runs(Session(out, None, [out], []), faults)
    assert faults == []
    return Back(done, runs)


def stages(frames: Frames, frame: int) -> dict[str, tuple[float, float]]:
    """A frame's stages, ms since the frame's begin."""
    rows = [row for row, owner in enumerate(frames.stage_frame.tolist()) if owner == frame]
    begin = int(frames.begin[frame])
    return {
        frames.stage_names[frames.stage[row]]: (
            (int(frames.stage_begin[row]) - begin) / 1e6,
            (int(frames.stage_end[row]) - begin) / 1e6,
        )
        for row in rows
    }


def durations_ms(frames: Frames) -> Float:
    return (frames.end - frames.begin) / 1e6


def readings(back: Back, meter: str, domain: str) -> Readings:
    return next(r for r in back.runs[0].readings if (r.meter, r.domain) == (meter, domain))
