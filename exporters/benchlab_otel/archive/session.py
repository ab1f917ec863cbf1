"""Session folders: what a recording wrote, and how to find it again.

<data_dir>/sessions/<id>/manifest.json   what ran, when, on which clock, simulated or not
                        /traces.otlp     frames and samples, byte for byte as they arrived
                        /metrics.otlp    metrics, the same
                        /energy.otlp     energy spans, which the aligner derived from traces.otlp
                        /lock            locked (flock) while the session is being written
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import platform
import re
import secrets
import shutil
import threading
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from benchlab_otel import __version__
from benchlab_otel.archive.records import compressor, frame
from benchlab_otel.timebase import Anchor

log = logging.getLogger(__name__)

SESSION_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}\Z")
TRACES, METRICS, ENERGY = "traces.otlp", "metrics.otlp", "energy.otlp"
FLUSH_SECONDS = 1.0


class SessionNotFound(LookupError):
    """No session, or more than one, goes by that name; the message lists what there is."""


@dataclass(slots=True)
class Manifest:
    """What is known of a session besides its data."""

    id: str
    created: str
    ended: str | None = None
    command: list[str] = field(default_factory=list)
    host: str = ""
    version: str = __version__
    python: str = ""
    boot_id: str = ""
    clock_offset_ns: int = 0
    simulated: bool = False
    notes: list[str] = field(default_factory=list)
    events: list[str] = field(default_factory=list)
    lost: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Session:
    """A session as found on disk; `manifest` is None for bare OTLP files."""

    path: Path
    manifest: Manifest | None
    traces: list[Path]
    energy: list[Path]
    running: bool = False


def new_id(moment: datetime | None = None) -> str:
    """A session id that sorts by time."""
    return f"{(moment or datetime.now(UTC)):%Y%m%dT%H%M%SZ}-{secrets.token_hex(2)}"


class SessionWriter:
    """Appends requests to a session folder; flushed every second, so kill -9 costs at most that.

    Safe to call from several threads. A full disk never damages what was written before: the file
    is cut back to its last whole record, what did not fit is counted in `lost`, and `error` says so
    until writing works again.
    """

    def __init__(self, path: Path, manifest: Manifest) -> None:
        path.mkdir(parents=True, exist_ok=False)
        self.path = path
        self.manifest = manifest
        self.error: str | None = None
        self._lock_file = _acquire(path / "lock")
        self._files = {name: _Appender(path / name) for name in (TRACES, METRICS, ENERGY)}
        self._write_manifest()
        self._closed = threading.Event()
        self._flusher = threading.Thread(target=self._run, name="archive-flush", daemon=True)
        self._flusher.start()

    @property
    def lost(self) -> dict[str, int]:
        """Records that could not be written, by file."""
        return {name: file.lost for name, file in self._files.items() if file.lost}

    def traces(self, body: bytes) -> None:
        """Appends one trace request."""
        self._files[TRACES].append(body)

    def metrics(self, body: bytes) -> None:
        """Appends one metrics request."""
        self._files[METRICS].append(body)

    def energy(self, body: bytes) -> None:
        """Appends one trace request of energy spans."""
        self._files[ENERGY].append(body)

    def flush(self) -> None:
        """Hands everything to the operating system."""
        for file in self._files.values():
            file.flush()
        before, self.error = self.error, next((f.error for f in self._files.values() if f.error), None)
        if self.error and not before:
            log.error("%s", self.error)

    def close(self) -> None:
        """Writes what is left and the manifest's end; the session is then no longer running."""
        if self._closed.is_set():
            return
        self._closed.set()
        self._flusher.join()
        self.flush()
        for file in self._files.values():
            file.close()
        self.manifest.ended = datetime.now(UTC).isoformat(timespec="milliseconds")
        self.manifest.lost = self.lost
        try:
            self._write_manifest()
        except OSError as error:
            log.error("%s: the manifest could not be finished: %s", self.path, error.strerror)
        self._lock_file.close()

    def discard(self) -> None:
        """Closes a session that never began and removes its folder."""
        self.close()
        shutil.rmtree(self.path)

    def _run(self) -> None:
        while not self._closed.wait(FLUSH_SECONDS):
            self.flush()

    def _write_manifest(self) -> None:
        draft = self.path / ".manifest.json"
        draft.write_text(json.dumps(asdict(self.manifest), indent=1) + "\n")
        draft.replace(self.path / "manifest.json")


class _Appender:
    """One file of records, with the records of the last second in memory."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lost = 0
        self.error: str | None = None  # why the last write failed
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        self._good = 0
        self._pending: list[bytes] = []
        self._compressor = compressor()
        self._mutex = threading.Lock()
        self._writing = threading.Lock()  # a slow disk keeps nobody from appending

    def append(self, body: bytes) -> None:
        with self._mutex:
            self._pending.append(frame(body, self._compressor))

    def flush(self) -> None:
        """Writes what is pending, or counts it as lost and says why in `error`."""
        with self._writing:
            with self._mutex:
                pending, self._pending = self._pending, []
            if pending:
                self._write(pending)

    def _write(self, pending: list[bytes]) -> None:
        data = memoryview(b"".join(pending))
        written = 0
        try:
            while written < len(data):
                written += os.write(self._fd, data[written:])
        except OSError as error:
            os.ftruncate(self._fd, self._good)
            self.lost += len(pending)
            self.error = (
                f"{self.path}: {error.strerror}: {self.lost} records could not be written; "
                "everything before them is safe. Free space or choose another session.data_dir."
            )
            return
        self._good += written
        self.error = None

    def close(self) -> None:
        os.close(self._fd)


def _acquire(path: Path) -> IO[str]:
    """A lock file, locked for as long as it is open."""
    file = path.open("w")
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return file


def create(
    data_dir: Path, anchor: Anchor, command: list[str], session_id: str | None = None
) -> SessionWriter:
    """Starts a session below `data_dir`. Raises OSError where the folder can't be made."""
    now = datetime.now(UTC)
    chosen = new_id(now) if session_id is None else session_id
    if not SESSION_ID.match(chosen):
        raise ValueError(f"session id {chosen!r}: letters, digits, '.', '_' and '-' only")
    manifest = Manifest(
        id=chosen,
        created=now.isoformat(timespec="milliseconds"),
        command=command,
        host=platform.node(),
        python=platform.python_version(),
        boot_id=anchor.boot_id,
        clock_offset_ns=anchor.offset_ns,
    )
    return SessionWriter(data_dir / "sessions" / chosen, manifest)


def open_session(reference: str, data_dir: Path) -> Session:
    """The session that `reference` names: a folder, an OTLP file, an id, the start of one, or "latest".

    Raises SessionNotFound, with what there is, where none or several fit.
    """
    path = Path(reference)
    if path.is_dir():
        return _at(path)
    if path.is_file():
        return Session(path, None, [path], [])
    if not SESSION_ID.match(reference):
        raise SessionNotFound(f"{reference}: no such file or folder")
    ids = session_ids(data_dir)
    matches = ids[-1:] if reference == "latest" else [i for i in ids if i.startswith(reference)]
    if reference in matches:
        matches = [reference]
    if len(matches) == 1:
        return _at(data_dir / "sessions" / matches[0])
    if matches:
        raise SessionNotFound(f"{reference}: several sessions fit: {', '.join(matches[-10:])}")
    known = ", ".join(ids[-5:]) or "none yet"
    raise SessionNotFound(f"{reference}: no such session in {data_dir / 'sessions'} (newest: {known})")


def session_ids(data_dir: Path) -> list[str]:
    """The ids of all sessions, oldest first."""
    folder = data_dir / "sessions"
    return (
        sorted(p.name for p in folder.iterdir() if (p / "manifest.json").is_file()) if folder.is_dir() else []
    )


def _at(path: Path) -> Session:
    manifest_path = path / "manifest.json"
    if not manifest_path.is_file():
        files = sorted(p for p in path.iterdir() if p.is_file() and not p.name.startswith("."))
        if not files:
            raise SessionNotFound(f"{path}: an empty folder, no session and no OTLP file in it")
        return Session(path, None, files, [])
    manifest = _read_manifest(manifest_path)
    return Session(
        path, manifest, _present(path, [TRACES]), _present(path, [ENERGY]), _is_locked(path / "lock")
    )


def _present(path: Path, names: Iterable[str]) -> list[Path]:
    return [path / name for name in names if (path / name).is_file()]


def _read_manifest(path: Path) -> Manifest | None:
    try:
        found: dict[str, Any] = json.loads(path.read_text())
        known = Manifest.__dataclass_fields__
        return Manifest(**{k: v for k, v in found.items() if k in known})
    except (ValueError, TypeError, AttributeError) as error:
        log.warning("%s: not a session manifest (%s); its data are read without it", path, error)
        return None


def _is_locked(path: Path) -> bool:
    try:
        with path.open("r") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False
