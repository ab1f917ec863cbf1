"""Session folders: what a recording wrote, and how to find it again.

<data_dir>/sessions/<id>/manifest.json   what ran, when, on which clock, simulated or not
                        /traces.otlp     frames and samples, byte for byte as they arrived
                        /metrics.otlp    metrics, the same
                        /energy.otlp     energy spans, which the aligner derived from traces.otlp
                        /notes.otlp      what people noted, as spans
                        /imported-N.otlp frames and samples from the files of other programs
                        /lock            locked (flock) while the session is being written
"""

from __future__ import annotations

import atexit
import errno
import fcntl
import logging
import os
import platform
import re
import secrets
import shutil
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import IO, Any

import msgspec

from benchlab_otel.archive.manifest import (
    MANIFEST,
    Manifest,
    arguments_without_secrets,
    read_manifest,
    write_manifest,
)
from benchlab_otel.archive.reader import not_otlp
from benchlab_otel.archive.records import compressor, frame
from benchlab_otel.timebase import Anchor

log = logging.getLogger(__name__)

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}\Z")  # of a session: with a file's it fits a tar's header
TRACES, METRICS, ENERGY = "traces.otlp", "metrics.otlp", "energy.otlp"
IMPORTED = "imported-{}.otlp"
FLUSH_SECONDS = 1.0


class SessionNotFound(LookupError):
    """No session, or more than one, goes by that name; the message says what there is."""


@dataclass(frozen=True, slots=True)
class Session:
    """A session as found on disk; `manifest` is None for bare OTLP files."""

    path: Path
    manifest: Manifest | None
    traces: list[Path]
    energy: list[Path]
    running: bool = False
    recorded: bool = False  # the frames' joules are those in `energy`: not aligned again


def new_id(moment: datetime | None = None) -> str:
    """A session id that sorts by time."""
    return f"{(moment or datetime.now(UTC)):%Y%m%dT%H%M%SZ}-{secrets.token_hex(2)}"


class SessionWriter:
    """Appends requests to a session folder; flushed every second, so kill -9 costs at most that.

    Safe to call from several threads. When less than `min_free_bytes` are left on the disk, recording
    stops: what came until then is whole, `stopped` is set, `error` says why, and what comes after is
    counted in `lost`. A disk that is full all the same never damages what was written before: the file
    is cut back to its last whole record, what did not fit is counted, and `error` says so until writing
    works again. `devices` is asked for the manifest's list of them.
    """

    def __init__(self, path: Path, manifest: Manifest, min_free_bytes: int = 0) -> None:
        path.mkdir(parents=True, exist_ok=False)
        self.path = path
        self.manifest = manifest
        self.devices: Callable[[], list[dict[str, Any]]] = list
        self.error: str | None = None
        self.stopped = threading.Event()
        self._min_free_bytes = min_free_bytes
        self._written: dict[str, Any] = {}
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
        """Hands everything to the operating system, as long as there is room."""
        if self.stopped.is_set():
            return
        for file in self._files.values():
            file.flush()
        left = free_bytes(self.path)
        if left < self._min_free_bytes:
            self._stop(left)
            return
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
        self.manifest.ended = self.manifest.ended or _now()
        self.manifest.lost = self.lost
        self._update_manifest()
        self._lock_file.close()

    def discard(self) -> None:
        """Closes a session that never began and removes its folder."""
        self.close()
        shutil.rmtree(self.path)

    def _run(self) -> None:
        while not self._closed.wait(FLUSH_SECONDS):
            self.flush()
            self._update_manifest()

    def _stop(self, left: int) -> None:
        """Ends the recording while there is still room to end it well."""
        for file in self._files.values():
            file.stop()
        self.error = (
            f"{self.path}: recording stopped: {_mib(left)} left on the disk, less than session.min_free_mib"
            f" ({_mib(self._min_free_bytes)}); what was recorded is whole. Free space"
            " (benchlab-otel sessions prune) or choose another session.data_dir."
        )
        log.error("%s", self.error)
        self.manifest.events.append(self.error)
        self.manifest.ended = _now()
        self.stopped.set()

    def _update_manifest(self) -> None:
        self.manifest.devices = self.devices() or self.manifest.devices
        if asdict(self.manifest) == self._written:
            return
        try:
            self._write_manifest()
        except OSError as error:
            log.error("%s: the manifest could not be written: %s", self.path, error.strerror)

    def _write_manifest(self) -> None:
        write_manifest(self.path, self.manifest)
        self._written = asdict(self.manifest)


class _Appender:
    """One file of records, with the records of the last second in memory."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lost = 0
        self.error: str | None = None  # why the last write failed
        self._stopped = False
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        self._good = 0
        self._pending: list[bytes] = []
        self._compressor = compressor()
        self._mutex = threading.Lock()
        self._writing = threading.Lock()  # a slow disk keeps nobody from appending

    def append(self, body: bytes) -> None:
        with self._mutex:
            if self._stopped:
                self.lost += 1
            else:
                self._pending.append(frame(body, self._compressor))

    def stop(self) -> None:
        """From now on everything is lost; what was appended until now is written."""
        with self._mutex:
            self._stopped = True
        self.flush()

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
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # somebody else has it
        file.close()
        raise
    return file


def free_bytes(path: Path) -> int:
    """What a user may still write on the disk that `path` is on."""
    state = os.statvfs(path)
    return state.f_bavail * state.f_frsize


def _mib(size: int) -> str:
    return f"{size / (1 << 20):,.0f} MiB"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def create(
    data_dir: Path,
    anchor: Anchor,
    command: list[str],
    session_id: str | None = None,
    min_free_bytes: int = 0,
    settings: dict[str, Any] | None = None,
) -> SessionWriter:
    """Starts a session below `data_dir`; secrets in the command line are hidden in the manifest.

    Raises OSError where the folder can't be made or less than `min_free_bytes` are left.
    """
    now = datetime.now(UTC)
    chosen = new_id(now) if session_id is None else session_id
    if not NAME.match(chosen):
        raise ValueError(f"session id {chosen!r}: letters, digits, '.', '_' and '-' only")
    manifest = Manifest(
        id=chosen,
        created=now.isoformat(timespec="milliseconds"),
        command=arguments_without_secrets(command),
        host=platform.node(),
        boot_id=anchor.boot_id,
        clock_offset_ns=anchor.offset_ns,
        settings=settings or {},
    )
    folder = data_dir / "sessions"
    folder.mkdir(parents=True, exist_ok=True)
    left = free_bytes(folder)
    if left < min_free_bytes:
        problem = f"{_mib(left)} left on the disk, less than session.min_free_mib ({_mib(min_free_bytes)})"
        raise OSError(errno.ENOSPC, problem, str(folder))
    return SessionWriter(folder / chosen, manifest, min_free_bytes)


def open_session(reference: str, data_dir: Path) -> Session:
    """The session that `reference` names: a folder, an OTLP file, an id, the start of one, or "latest".

    "-" is an OTLP file on standard input. Raises SessionNotFound, with what there is, where none or
    several fit, or where nothing in the files is OTLP.
    """
    path = _standard_input() if reference == "-" else Path(reference)
    if path.is_dir():
        return _at(path)
    if path.is_file():
        return _bare(path, [path])
    if not NAME.match(reference):
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


@cache
def _standard_input() -> Path:
    """A copy of standard input for as long as the process runs: reading goes back where data are damaged."""
    folder = tempfile.TemporaryDirectory(prefix="benchlab-otel-")
    atexit.register(folder.cleanup)
    path = Path(folder.name) / "stdin"
    with path.open("wb") as file:
        shutil.copyfileobj(sys.stdin.buffer, file)
    return path


def session_ids(data_dir: Path) -> list[str]:
    """The ids of all sessions, oldest first, whatever they are called."""
    folder = data_dir / "sessions"
    found = [p for p in folder.iterdir() if (p / MANIFEST).is_file()] if folder.is_dir() else []
    return [path.name for path in sorted(found, key=lambda path: (_began(path), path.name))]


class _Created(msgspec.Struct):
    """What of a manifest tells a session's age: all that is read of each session to find the newest."""

    created: str


def _began(session: Path) -> datetime:
    """When a session was created; at the beginning of time where its manifest can't be read."""
    try:
        manifest = msgspec.json.decode((session / MANIFEST).read_bytes(), type=_Created)
        created = datetime.fromisoformat(manifest.created)
    except (msgspec.MsgspecError, ValueError, RecursionError, OSError):  # or it was removed meanwhile
        return datetime.min.replace(tzinfo=UTC)
    return created if created.tzinfo else created.replace(tzinfo=UTC)


def _at(path: Path) -> Session:
    manifest_path = path / MANIFEST
    if not manifest_path.is_file():
        files = sorted(p for p in path.iterdir() if p.is_file() and not p.name.startswith("."))
        if not files:
            raise SessionNotFound(f"{path}: an empty folder, no session and no OTLP file in it")
        return _bare(path, files)
    manifest = read_manifest(manifest_path)
    traces = _present(path, [TRACES]) + imported_files(path)
    energy = _present(path, [ENERGY])
    recorded = manifest is not None and manifest.raw_removed is not None and bool(energy)
    return Session(path, manifest, traces, energy, is_running(path), recorded)


def _bare(path: Path, files: list[Path]) -> Session:
    """Files without a manifest, if there is anything in them that can be read."""
    if fault := not_otlp(files):
        raise SessionNotFound(
            f"{fault.file}: no OTLP in it ({fault.place}: {fault.reason});"
            " captures and logs of other programs: benchlab-otel import FILE"
        )
    return Session(path, None, files, [])


def imported_files(path: Path) -> list[Path]:
    """What was imported into a session's folder."""
    return sorted(path.glob(IMPORTED.format("*")))


def _present(path: Path, names: Iterable[str]) -> list[Path]:
    return [path / name for name in names if (path / name).is_file()]


def is_running(folder: Path) -> bool:
    """Whether a session's folder is being written."""
    try:
        with (folder / "lock").open("r") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


@contextmanager
def hold(folder: Path) -> Iterator[bool]:
    """Keeps a session to oneself while the block runs; False where somebody else has it."""
    try:
        lock = _acquire(folder / "lock")
    except BlockingIOError:
        yield False
        return
    with lock:
        yield True
