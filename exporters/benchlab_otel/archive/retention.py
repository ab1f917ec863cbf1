"""What is kept for how long: raw data (samples, metrics) some days, what was aligned for longer.

Without its raw data a session still has its frames and stages, the energy of each frame
(`energy.otlp`), notes and manifest. A session that is being recorded is never touched.
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from google.protobuf.message import DecodeError
from opentelemetry.proto.trace.v1.trace_pb2 import TracesData

from benchlab_otel.archive.manifest import MANIFEST, Manifest, read_manifest, write_manifest
from benchlab_otel.archive.records import Fault, compressor, frame, read_records
from benchlab_otel.archive.session import METRICS, TRACES, hold, is_running, session_ids
from benchlab_otel.contract import SAMPLE
from benchlab_otel.otlp.json import traces_to_protobuf


@dataclass(frozen=True, slots=True)
class Policy:
    """Days that raw data and sessions are kept; `max_bytes`: of all sessions together, None: no limit."""

    raw_days: float = 7.0
    aligned_days: float = 90.0
    max_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Stored:
    """A session on disk: its age in days since it ended, its bytes, and how many of them are raw."""

    path: Path
    age_days: float
    size: int
    raw: int
    running: bool


@dataclass(frozen=True, slots=True)
class Removal:
    """What is to go of a session, why, and the bytes that it takes now."""

    path: Path
    what: Literal["raw", "all"]
    reason: str
    size: int


def size_of(folder: Path) -> int:
    """The bytes of a session's files."""
    return sum(entry.stat(follow_symlinks=False).st_size for entry in os.scandir(folder) if entry.is_file())


def stored(data_dir: Path, now: datetime | None = None) -> list[Stored]:
    """All sessions of a data folder, oldest first."""
    moment = now or datetime.now(UTC)
    found = [_stored(data_dir / "sessions" / name, moment) for name in session_ids(data_dir)]
    return sorted(found, key=lambda session: -session.age_days)


def _stored(path: Path, now: datetime) -> Stored:
    manifest = read_manifest(path / MANIFEST)
    raw = 0
    if manifest is None or manifest.raw_removed is None:
        raw = sum(p.stat().st_size for p in (path / TRACES, path / METRICS) if p.is_file())
    age = now - _ended(path, manifest)
    return Stored(path, age.total_seconds() / 86400, size_of(path), raw, is_running(path))


def _ended(path: Path, manifest: Manifest | None) -> datetime:
    """When the session ended; of one that was killed, when its data were last written."""
    try:
        ended = datetime.fromisoformat(manifest.ended) if manifest and manifest.ended else None
    except ValueError:
        ended = None
    if ended is None or ended.tzinfo is None:
        times = [entry.stat().st_mtime for entry in os.scandir(path) if entry.is_file()]
        return datetime.fromtimestamp(max(times, default=0.0), UTC)
    return ended


def plan(sessions: Sequence[Stored], policy: Policy) -> list[Removal]:
    """What the policy takes, oldest first: by age, then, while all together are too large, by size."""
    removals: dict[Path, Removal] = {}
    idle = sorted((s for s in sessions if not s.running), key=lambda s: -s.age_days)
    for s in idle:
        if s.age_days > policy.aligned_days:
            reason = f"{s.age_days:.1f} days old, kept for {policy.aligned_days:g}"
            removals[s.path] = Removal(s.path, "all", reason, s.size)
        elif s.raw and s.age_days > policy.raw_days:
            reason = f"{s.age_days:.1f} days old, raw data kept for {policy.raw_days:g}"
            removals[s.path] = Removal(s.path, "raw", reason, s.raw)
    if policy.max_bytes is not None:
        total = sum(s.size for s in sessions) - sum(r.size for r in removals.values())
        reason = f"all sessions together take more than {policy.max_bytes / (1 << 30):g} GiB"
        for s in idle:
            if total > policy.max_bytes and s.raw and s.path not in removals:
                removals[s.path] = Removal(s.path, "raw", reason, s.raw)
                total -= s.raw
        for s in idle:
            before = removals.get(s.path)
            if total > policy.max_bytes and (before is None or before.what == "raw"):
                removals[s.path] = Removal(s.path, "all", reason, s.size)
                total -= s.size - (before.size if before else 0)
    return [removals[s.path] for s in idle if s.path in removals]


def remove(path: Path) -> bool:
    """Removes a session whole or not at all; False where it is being recorded. Raises OSError."""
    with hold(path) as held:
        if not held:
            return False
        gone = path.with_name(f".removed-{secrets.token_hex(4)}")
        path.rename(gone)  # a kill from here on leaves no half of a session
        shutil.rmtree(gone)
    return True


def remove_raw(path: Path, faults: list[Fault], now: datetime | None = None) -> bool:
    """Takes samples and metrics out of a session; False where it is being recorded.

    Where its data are damaged nothing is taken, as more than samples would be lost; `faults` says what.
    Raises OSError.
    """
    with hold(path) as held:
        if not held:
            return False
        draft = path / f".{TRACES}"
        try:
            _without_samples(path / TRACES, draft, faults)
            if any(not fault.at_end for fault in faults):
                return True
            manifest = read_manifest(path / MANIFEST)
            if manifest is None:
                faults.append(Fault(str(path / MANIFEST), 0, "no manifest, so its raw data are kept", 0))
                return True
            manifest.raw_removed = (now or datetime.now(UTC)).isoformat(timespec="seconds")
            draft.replace(path / TRACES)
            (path / METRICS).unlink(missing_ok=True)
            write_manifest(path, manifest)
        finally:
            draft.unlink(missing_ok=True)
    return True


def _without_samples(source: Path, target: Path, faults: list[Fault]) -> None:
    pack = compressor()
    with target.open("wb") as out:
        for record in read_records(source, faults) if source.is_file() else ():
            try:
                body = traces_to_protobuf(record.body) if record.json else record.body
                kept = _kept(body)
            except (ValueError, DecodeError) as error:
                faults.append(Fault(str(source), record.offset, str(error), record.size))
                continue
            if kept:
                out.write(frame(kept, pack))


def _kept(body: bytes) -> bytes:
    """A trace request without its samples; b"" where nothing is left. Raises DecodeError."""
    if SAMPLE.encode() not in body:
        return body
    request = TracesData.FromString(body)
    for group in request.resource_spans:
        for scope in group.scope_spans:
            kept = [span for span in scope.spans if span.name != SAMPLE]
            if len(kept) < len(scope.spans):
                del scope.spans[:]
                scope.spans.extend(kept)
    if not any(scope.spans for group in request.resource_spans for scope in group.scope_spans):
        return b""
    return request.SerializeToString()
