"""Requests kept on disk while the other side is down: one file each, bounded in bytes, in order.

A file holds one record of the Collector's file format (4-byte big-endian length, then the message
compressed with zstd), so what was never sent can still be read or imported. Every process owns a
numbered slot of the directory by a lock on it; whoever takes a slot next also sends what its last
owner left.
"""

from __future__ import annotations

import fcntl
import os
import struct
from collections import deque
from dataclasses import dataclass
from pathlib import Path

import zstandard

MAX_SLOTS = 1024


@dataclass(frozen=True, slots=True)
class Spilled:
    """A request on disk: its signal ("traces" or "metrics"), its file and the file's size."""

    path: Path
    signal: str
    size: int


class Spill:
    """A bounded queue of requests in a directory; survives the process."""

    def __init__(self, directory: Path, max_bytes: int) -> None:
        """Takes the first free slot under `directory`; OSError where it cannot be written."""
        self.max_bytes = max_bytes
        self._directory, self._lock = _take_slot(directory)
        self._files = deque(_left_over(self._directory))
        self._bytes = sum(f.size for f in self._files)
        self._next = 1 + max((int(f.path.stem) for f in self._files), default=0)
        self._compressor = zstandard.ZstdCompressor(level=1)

    def __len__(self) -> int:
        return len(self._files)

    def append(self, signal: str, body: bytes) -> bool:
        """Writes the request behind all others; False where the bound is reached or the disk is full."""
        message = self._compressor.compress(body)
        record = struct.pack(">I", len(message)) + message
        if self._bytes + len(record) > self.max_bytes:
            return False
        path = self._directory / f"{self._next:012d}.{signal}"
        draft = path.with_suffix(".part")
        try:
            draft.write_bytes(record)
            draft.rename(path)  # a kill leaves a whole record or none
        except OSError:
            draft.unlink(missing_ok=True)
            return False
        self._next += 1
        self._files.append(Spilled(path, signal, len(record)))
        self._bytes += len(record)
        return True

    def first(self) -> tuple[Spilled, bytes] | None:
        """The oldest request and its bytes; unreadable files are skipped and stay on disk."""
        while self._files:
            oldest = self._files[0]
            try:
                return oldest, zstandard.ZstdDecompressor().decompress(oldest.path.read_bytes()[4:])
            except (OSError, zstandard.ZstdError):
                self._forget(oldest)
        return None

    def remove(self, spilled: Spilled) -> None:
        """Deletes a request that has been dealt with."""
        spilled.path.unlink(missing_ok=True)
        self._forget(spilled)

    def close(self) -> None:
        """Gives the slot back; what is in it stays."""
        if self._lock >= 0:
            os.close(self._lock)
        self._lock = -1

    def _forget(self, spilled: Spilled) -> None:
        self._files.remove(spilled)
        self._bytes -= spilled.size


def _take_slot(directory: Path) -> tuple[Path, int]:
    for number in range(MAX_SLOTS):
        slot = directory / str(number)
        slot.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(slot, os.O_RDONLY | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            continue
        return slot, descriptor
    raise OSError(f"{directory}: all {MAX_SLOTS} spill slots are taken by running processes")


def _left_over(slot: Path) -> list[Spilled]:
    found = [
        Spilled(path, path.suffix[1:], path.stat().st_size)
        for path in slot.iterdir()
        if path.stem.isdigit() and path.suffix in (".traces", ".metrics")
    ]
    return sorted(found, key=lambda f: f.path.stem)
