"""A session as one file and back: a plain tar whose last member holds the SHA-256 of all others.

`tar xf FILE && cd ID && sha256sum -c SHA256SUMS` does the same by hand. Nothing is compressed once
more (the records are already), so a bundle can't grow while it is unpacked. Unpacking takes plain
files of one folder with harmless names and refuses everything else that a tar can hold.
"""

from __future__ import annotations

import errno
import hashlib
import io
import os
import re
import secrets
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, BinaryIO

from benchlab_otel.archive.manifest import MANIFEST, read_manifest
from benchlab_otel.archive.session import NAME, free_bytes

SUMS = "SHA256SUMS"
MAX_FILES = 1000
_BLOCK = tarfile.BLOCKSIZE
_CHUNK = 1 << 20
_SUM = re.compile(r"([0-9a-f]{64})  ([A-Za-z0-9][A-Za-z0-9._-]{0,99})")


class BundleError(ValueError):
    """A file that is no whole, unchanged bundle; the message says where and what was expected."""


def members(session: Path) -> list[Path]:
    """The files of a session's folder that belong to it."""
    names = (p for p in session.iterdir() if p.is_file() and not p.is_symlink() and NAME.match(p.name))
    return sorted(p for p in names if p.name not in ("lock", SUMS))


def pack(session: Path, session_id: str, out: IO[bytes]) -> int:
    """Writes a session that is not being recorded as a bundle; returns its bytes.

    Raises BundleError where it has more files than `unpack` takes.
    """
    files, sums = members(session), []
    if len(files) > MAX_FILES:
        raise BundleError(f"{session}: {len(files)} files; a bundle has at most {MAX_FILES}")
    with tarfile.open(fileobj=out, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for path in files:
            with path.open("rb") as file:
                reading = _Hashing(file)
                tar.addfile(_entry(f"{session_id}/{path.name}", os.fstat(file.fileno())), reading)
            sums.append(f"{reading.digest()}  {path.name}\n")
        text = "".join(sums).encode()
        entry = tarfile.TarInfo(f"{session_id}/{SUMS}")
        entry.size = len(text)
        tar.addfile(entry, io.BytesIO(text))
    return out.tell()


def _entry(name: str, state: os.stat_result) -> tarfile.TarInfo:
    """Without owner: who recorded it is nobody's business elsewhere."""
    entry = tarfile.TarInfo(name)
    entry.size, entry.mtime = state.st_size, int(state.st_mtime)
    return entry


class _Hashing(io.RawIOBase):
    """A file whose bytes are hashed as they are read."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._hash = file, hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(size)
        self._hash.update(data)
        return data

    def digest(self) -> str:
        return self._hash.hexdigest()


def unpack(bundle: Path, data_dir: Path, min_free_bytes: int = 0) -> str:
    """Makes a session of a bundle and returns its id; leaves nothing behind where it can't.

    Raises BundleError for what is not exactly what `pack` writes, FileExistsError where the session is
    there already, OSError where there is no room for it.
    """
    sessions = data_dir / "sessions"
    sessions.mkdir(parents=True, exist_ok=True)
    size = bundle.stat().st_size
    if free_bytes(sessions) - size < min_free_bytes:
        raise OSError(
            errno.ENOSPC, f"no room for {size:,} bytes of {bundle} beside session.min_free_mib", str(sessions)
        )
    draft = sessions / f".import-{secrets.token_hex(4)}"
    draft.mkdir()
    try:
        with bundle.open("rb") as file:
            session_id = _extract(file, size, draft, bundle)
        target = sessions / session_id
        if target.exists():
            raise FileExistsError(errno.EEXIST, "this session is there already", str(target))
        draft.rename(target)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return session_id


def _extract(file: BinaryIO, size: int, folder: Path, bundle: Path) -> str:
    session_id, found = "", dict[str, str]()
    sums = b""
    for entry, at in _entries(file, size, bundle):
        where = f"{bundle}: byte {at}"
        owner, _, name = entry.name.partition("/")
        session_id = session_id or owner
        if owner != session_id or not NAME.match(owner) or not NAME.match(name):
            raise BundleError(f"{where}: expected a file in one session's folder, found {entry.name!r:.80}")
        if name == SUMS:
            sums = file.read(min(entry.size, _CHUNK))
            continue
        if name in found or len(found) >= MAX_FILES:
            raise BundleError(f"{where}: {name} is there twice, or more than {MAX_FILES} files")
        found[name] = _copy(file, entry.size, folder / name)
    expected = {name: digest for digest, name in _SUM.findall(sums.decode("ascii", "replace"))}
    wrong = sorted(name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name))
    if wrong or not found:
        raise BundleError(
            f"{bundle}: {', '.join(wrong)[:200] or 'no file'}: not the SHA-256 in {SUMS}; copy the file again"
        )
    manifest = read_manifest(folder / MANIFEST) if MANIFEST in found else None
    if manifest is None or manifest.id != session_id:
        raise BundleError(f"{bundle}: expected {session_id}/{MANIFEST} of that session")
    return session_id


def _entries(file: BinaryIO, size: int, bundle: Path) -> Iterator[tuple[tarfile.TarInfo, int]]:
    """The plain files of a tar and where each one's header stands; the file is then at its content."""
    at = 0
    while True:
        file.seek(at)
        header = file.read(_BLOCK)
        if header == bytes(_BLOCK):
            return
        try:
            entry = tarfile.TarInfo.frombuf(header, "ascii", "strict")
        except (tarfile.HeaderError, UnicodeError) as error:
            raise BundleError(
                f"{bundle}: byte {at}: expected a file that `sessions export` wrote, whole ({error})"
            ) from None
        if entry.type not in (tarfile.REGTYPE, tarfile.AREGTYPE):
            raise BundleError(f"{bundle}: byte {at}: expected a plain file, found type {entry.type!r}")
        if not 0 <= entry.size <= size - at - _BLOCK:
            raise BundleError(f"{bundle}: byte {at}: cut off: {entry.name!r:.80} has {entry.size} bytes")
        yield entry, at
        at += _BLOCK + -(-entry.size // _BLOCK) * _BLOCK


def _copy(file: BinaryIO, size: int, path: Path) -> str:
    """Copies so many bytes into a new file; returns their SHA-256."""
    digest = hashlib.sha256()
    with path.open("xb") as out:
        while size:
            data = file.read(min(size, _CHUNK))
            if not data:
                raise BundleError(f"{path.name}: the bundle became shorter while it was read")
            out.write(data)
            digest.update(data)
            size -= len(data)
    return digest.hexdigest()
