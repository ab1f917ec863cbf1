"""Files of OTLP requests as the Collector's file exporter writes them, in every format it has.

| Format | Bytes on disk |
|---|---|
| json | JSON lines |
| proto | 4-byte big-endian length + message |
| json or proto with zstd | the same length prefix, each message a zstd frame of its own (what we write) |
| native zstd | one real .zst stream of JSON lines or of length-prefixed messages |

Told apart by the first bytes. Source: fileexporter README and source of
opentelemetry-collector-contrib v0.155.0.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import zstandard

ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
MAX_RECORD = 256 << 20  # a length beyond this is taken for garbage


@dataclass(frozen=True, slots=True)
class Fault:
    """Something of a file that could not be read: where, why, and how many bytes of it were passed over."""

    file: str
    offset: int
    reason: str
    lost_bytes: int
    at_end: bool = False  # the last record is cut off, as it is while a file is being written

    def __str__(self) -> str:
        return f"{self.file}: byte {self.offset}: {self.reason}; {self.lost_bytes} bytes passed over"


@dataclass(frozen=True, slots=True)
class Record:
    """One request as it stands in a file: `json` tells which encoding `body` is in."""

    offset: int
    body: bytes
    json: bool


def frame(body: bytes, compressor: zstandard.ZstdCompressor) -> bytes:
    """The bytes of one record: length prefix and compressed message."""
    packed = compressor.compress(body)
    return struct.pack(">I", len(packed)) + packed


def read_records(path: Path, faults: list[Fault]) -> Iterator[Record]:
    """The records of one file in the order they stand there; what can't be read goes to `faults`.

    Reads as far as the file reaches now, so a file that is being written is read to its last whole
    record. Raises OSError where the file can't be opened.
    """
    with path.open("rb") as stream:
        head = stream.read(8)
        stream.seek(0)
        if head[:4] == ZSTD_MAGIC:
            yield from _native(stream, str(path), faults)
        elif head[:1] in (b"{", b"\n", b" "):
            yield from _lines(stream, str(path), faults)
        else:
            yield from _framed(stream, str(path), faults, packed=head[4:8] == ZSTD_MAGIC)


def _lines(stream: BinaryIO | io.BufferedIOBase, name: str, faults: list[Fault]) -> Iterator[Record]:
    offset = 0
    for line in stream:
        text = line.strip()
        if text and not line.endswith(b"\n") and not text.endswith(b"}"):
            faults.append(Fault(name, offset, "the last line is cut off", len(line), at_end=True))
        elif text:
            yield Record(offset, text, json=True)
        offset += len(line)


def _native(stream: BinaryIO, name: str, faults: list[Fault]) -> Iterator[Record]:
    """A real .zst file; what it decompresses to says which format is inside."""
    reader = zstandard.ZstdDecompressor().stream_reader(stream, read_across_frames=True)
    plain = io.BufferedReader(_Tolerant(reader, name, faults), buffer_size=1 << 20)
    if plain.peek(1)[:1] == b"{":
        yield from _lines(plain, name, faults)
    else:
        yield from _framed(plain, name, faults, packed=False)


class _Tolerant(io.RawIOBase):
    """A decompressing stream that ends, with a fault, where the compressed data are damaged."""

    def __init__(self, reader: zstandard.ZstdDecompressionReader, name: str, faults: list[Fault]) -> None:
        self._reader, self._name, self._faults, self._at = reader, name, faults, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]  # io wants Buffer
        try:
            data = self._reader.read(len(buffer))
        except zstandard.ZstdError as error:
            self._faults.append(Fault(self._name, self._at, f"damaged zstd data after this: {error}", 0))
            return 0
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)


def _framed(
    stream: BinaryIO | io.BufferedIOBase, name: str, faults: list[Fault], packed: bool
) -> Iterator[Record]:
    """Length-prefixed records, each a zstd frame if `packed`."""
    unpack = zstandard.ZstdDecompressor()
    offset = 0
    while prefix := stream.read(4):
        length = struct.unpack(">I", prefix)[0] if len(prefix) == 4 else 0
        body = stream.read(length) if length <= MAX_RECORD else b""
        damaged = length > MAX_RECORD or (packed and body[:4] != ZSTD_MAGIC[: len(body)])
        if not damaged and (len(prefix) < 4 or len(body) < length):
            faults.append(
                Fault(name, offset, "the last record is cut off", len(prefix) + len(body), at_end=True)
            )
            return
        if damaged:
            found = _resynchronize(stream, offset) if packed and stream.seekable() else -1
            lost = (found if found >= 0 else _size(stream, offset)) - offset
            faults.append(Fault(name, offset, "no record starts here", lost))
            if found < 0:
                return
            offset = found
            stream.seek(found)
            continue
        start = offset
        offset += 4 + length
        if packed:
            try:
                body = unpack.decompress(body, max_output_size=MAX_RECORD)
            except zstandard.ZstdError as error:
                faults.append(Fault(name, start, f"damaged record: {error}", 4 + length))
                continue
        if body:
            yield Record(start, body, json=packed and body[:1] == b"{")


def _resynchronize(stream: BinaryIO | io.BufferedIOBase, offset: int) -> int:
    """Where the next record after a damaged one seems to start, -1 if nowhere."""
    size = _size(stream, offset)
    stream.seek(offset + 1)
    tail = stream.read()
    at = tail.find(ZSTD_MAGIC, 4)
    while at >= 0:
        start = offset + 1 + at - 4
        length: int = struct.unpack(">I", tail[at - 4 : at])[0]
        if 0 < length <= size - start - 4:
            return start
        at = tail.find(ZSTD_MAGIC, at + 1)
    return -1


def _size(stream: BinaryIO | io.BufferedIOBase, default: int) -> int:
    return stream.seek(0, io.SEEK_END) if stream.seekable() else default
