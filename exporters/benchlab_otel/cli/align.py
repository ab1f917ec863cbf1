"""`align FILES --out FILE`: archives aligned (again); without files, the aligner as a service."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from benchlab_otel.align.aligner import Aligner
from benchlab_otel.align.energy_spans import encode_energy, has_energy
from benchlab_otel.archive.records import Fault, compressor, frame
from benchlab_otel.archive.session import Session
from benchlab_otel.cli import options
from benchlab_otel.cli.errors import UserError
from benchlab_otel.cli.finding import find
from benchlab_otel.cli.memory import keep_freed_memory
from benchlab_otel.cli.progress import progress
from benchlab_otel.export.output import replacing
from benchlab_otel.export.recording import FOREVER_NS, conditioned_session
from benchlab_otel.otlp.encode import resource_of


def command(
    files: Annotated[
        list[str] | None,
        typer.Argument(metavar="FILE", help="Sessions or OTLP files; none: run as a service."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Where the energy spans go (framed OTLP).")
    ] = None,
    config: options.ConfigFile = None,
) -> None:
    """Give the frames of archives their energy again, or serve a Collector as its aligner.

    \b
    Examples:
      benchlab-otel align latest --out energy.otlp
      benchlab-otel align traces.jsonl traces-*.jsonl --out energy.otlp
      OTEL_EXPORTER_OTLP_ENDPOINT=http://localhost:4328 benchlab-otel align
    """
    settings = options.settings(config)
    if not files:
        from benchlab_otel.cli.align_service import serve

        serve(settings)
        return
    if out is None:
        raise UserError("align FILES needs --out FILE, where the energy spans go")
    keep_freed_memory()
    found = [find(name, settings.session.data_dir) for name in files]
    paths = [path for s in found for path in s.traces]
    one = found[0] if len(found) == 1 else None
    whole = one or Session(paths[0] if paths else Path(), None, paths, [])
    faults: list[Fault] = []
    state = Aligner(lateness_ns=int(settings.align.lateness_s * 1e9), keep_ns=FOREVER_NS)
    resource = resource_of({"service.name": "benchlab-otel"})
    pack = compressor()
    count = covered = 0
    size = sum(path.stat().st_size for path in paths)
    with replacing(out) as file, progress("Aligning", size) as advance:
        for aligned in conditioned_session(state, whole, faults, advance, forget=True):
            count += len(aligned.frames)
            body = encode_energy(aligned, resource)
            if body:
                file.write(frame(body, pack))
                covered += int(has_energy(aligned).sum())
    for fault in faults:
        print(f"benchlab-otel: {fault}", file=sys.stderr)
    print(f"{out}: {covered:,} of {count:,} frames with energy")
