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
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import BinaryIO

import msgspec
import zstandard

from benchlab_otel.otlp.protobuf import fields, varint

ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
MAX_RECORD = 256 << 20  # a length beyond this is taken for garbage
CUT_OFF = "the last record is cut off"
DAMAGED = "no whole record starts here"


@dataclass(frozen=True, slots=True)
class Fault:
    """Something of a file that could not be read: where, why, and how many bytes of it were passed over."""

    file: str
    offset: int
    reason: str
    lost_bytes: int
    at_end: bool = False  # the last record is cut off, as it is while a file is being written
    line: int = 0  # of JSON lines, from 1

    @property
    def place(self) -> str:
        """Where in the file, in words."""
        return f"line {self.line}, byte {self.offset}" if self.line else f"byte {self.offset}"

    def __str__(self) -> str:
        return f"{self.file}: {self.place}: {self.reason}; {self.lost_bytes} bytes passed over"


@dataclass(frozen=True, slots=True)
class Record:
    """One request as it stands in a file, where it takes `size` bytes; `json` tells `body`'s encoding."""

    offset: int
    size: int
    body: bytes
    json: bool
    line: int = 0  # of JSON lines, from 1


def compressor() -> zstandard.ZstdCompressor:
    """What `frame` compresses with; its checksums tell a garbled record from a good one."""
    return zstandard.ZstdCompressor(level=1, write_checksum=True)


def frame(body: bytes, pack: zstandard.ZstdCompressor) -> bytes:
    """The bytes of one record: length prefix and compressed message."""
    packed = pack.compress(body)
    return struct.pack(">I", len(packed)) + packed


def read_records(path: Path, faults: list[Fault]) -> Iterator[Record]:
    """The records of one file in the order they stand there; what can't be read goes to `faults`.

    Reads as far as the file reaches now, so a file that is being written is read to its last whole
    record. After damage it goes on at the next whole record. Offsets in a native zstd file are those
    in its decompressed data. Raises OSError, with the file's name, where it can't be read.
    """
    try:
        yield from _read(path, faults)
    except OSError as error:
        error.filename = str(path)  # what fails while reading doesn't name the file by itself
        raise


def _read(path: Path, faults: list[Fault]) -> Iterator[Record]:
    with path.open("rb", buffering=_BUFFER) as stream:
        head = stream.read(_HEAD)
        stream.seek(0)
        if head[:4] == ZSTD_MAGIC:
            yield from _native(stream, str(path), faults)
        elif head[:1] in (b"{", b"\n", b" "):
            yield from _lines(stream, str(path), faults)
        else:
            plain = head[4:8] != ZSTD_MAGIC and (ZSTD_MAGIC not in head or _starts_record(stream, 0, None))
            stream.seek(0)
            yield from _framed(stream, str(path), faults, packed=not plain)


_HEAD = 1 << 16  # even where the first record is damaged a later one shows the format
_BUFFER = 1 << 20  # lines may be megabytes long


# -- JSON lines ---------------------------------------------------------------------------------


def _lines(stream: BinaryIO | io.BufferedIOBase, name: str, faults: list[Fault]) -> Iterator[Record]:
    offset = 0
    for number, line in enumerate(_split_lines(stream), 1):
        text = line if line.startswith(b"{") else line.strip()  # a copy of megabytes the less
        if len(line) > MAX_RECORD:
            faults.append(Fault(name, offset, "no request is as long as this line", len(line), line=number))
        elif text and not line.endswith(b"\n") and not _is_json(text):
            faults.append(Fault(name, offset, CUT_OFF, len(line), at_end=True, line=number))
        elif text:
            yield Record(offset, len(line), text, json=True, line=number)
        offset += len(line)


def _split_lines(stream: BinaryIO | io.BufferedIOBase) -> Iterator[bytes]:
    """As iterating over the stream, but faster for lines of megabytes, and cut where they are endless."""
    begun: list[bytes] = []
    while chunk := stream.read(_LINES):
        at = 0
        while (end := chunk.find(b"\n", at)) >= 0:
            yield b"".join([*begun, chunk[at : end + 1]])
            begun, at = [], end + 1
        begun.append(chunk[at:])
        if len(begun) * _LINES > MAX_RECORD + _LINES:
            yield b"".join(begun)
            begun = []
    if any(begun):
        yield b"".join(begun)


_LINES = 1 << 18  # what the processor's cache holds


def _is_json(text: bytes) -> bool:
    try:
        msgspec.json.decode(text, type=msgspec.Raw)
    except (msgspec.DecodeError, RecursionError):
        return False
    return True


# -- native zstd ----------------------------------------------------------------------------------


def _native(stream: BinaryIO, name: str, faults: list[Fault]) -> Iterator[Record]:
    """A real .zst file; what it decompresses to says which format is inside."""
    at = 0
    while at >= 0:
        found: list[Fault] = []
        section = _Section(stream, at, name, found)
        plain = io.BufferedReader(section, buffer_size=1 << 20)
        if plain.peek(1)[:1] == b"{":
            yield from _lines(plain, name, found)
        else:
            yield from _framed(plain, name, found, packed=False)
        at = section.next
        faults += [replace(fault, at_end=fault.at_end and at < 0) for fault in found]


class _Section(io.RawIOBase):
    """What the zstd frames from `at` on decompress to, up to the first damaged one.

    `next` is where the first good frame after the damage starts, -1 where there is none.
    """

    def __init__(self, stream: BinaryIO, at: int, name: str, faults: list[Fault]) -> None:
        stream.seek(at)
        self.next = -1
        self._stream, self._name, self._faults = stream, name, faults
        self._frame, self._start = zstandard.ZstdDecompressor().decompressobj(), at
        self._packed, self._plain = b"", b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]  # io wants Buffer
        while not self._plain:
            self._packed = self._packed or self._stream.read(_CHUNK)
            if not self._packed:
                if self._stream.tell() > self._start:
                    self._damaged("the last zstd frame is cut off", at_end=True)
                return 0
            try:
                self._decompress()
            except zstandard.ZstdError as error:
                self._damaged(f"damaged zstd frame: {error}")
                return 0
        count = min(len(buffer), len(self._plain))
        buffer[:count], self._plain = self._plain[:count], self._plain[count:]
        return count

    def _decompress(self) -> None:
        """Takes in the chunk at hand."""
        self._plain, self._packed = self._frame.decompress(self._packed), b""
        if self._frame.eof:
            self._packed = self._frame.unused_data
            self._start = self._stream.tell() - len(self._packed)
            self._frame = zstandard.ZstdDecompressor().decompressobj()

    def _damaged(self, reason: str, at_end: bool = False) -> None:
        self.next = _find(self._stream, self._start + 1, _unpacks)
        end = self.next if self.next >= 0 else _size(self._stream)
        fault = Fault(self._name, self._start, reason, end - self._start, at_end and self.next < 0)
        self._faults.append(fault)
        self._packed, self._start = b"", _size(self._stream)


_CHUNK = 1 << 14


def _unpacks(stream: BinaryIO | io.BufferedIOBase, at: int) -> bool:
    """Whether a zstd frame starts at `at`, as far as its first chunk tells."""
    stream.seek(at)
    try:
        zstandard.ZstdDecompressor().decompressobj().decompress(stream.read(_CHUNK))
    except zstandard.ZstdError:
        return False
    return True


# -- length-prefixed ------------------------------------------------------------------------------


def _framed(
    stream: BinaryIO | io.BufferedIOBase, name: str, faults: list[Fault], packed: bool
) -> Iterator[Record]:
    """Length-prefixed records, each a zstd frame if `packed`."""
    unpack = zstandard.ZstdDecompressor() if packed else None
    offset = 0
    while prefix := stream.read(4):
        length = int.from_bytes(prefix, "big")
        body = stream.read(length) if len(prefix) == 4 and length <= MAX_RECORD else b""
        message = _message(body, unpack) if len(prefix) == 4 and len(body) == length else None
        if message is not None:
            if message:
                yield Record(offset, 4 + length, message, json=packed and message[:1] == b"{")
            offset += 4 + length
            continue
        starts = partial(_starts_record, unpack=unpack)
        found = _find(stream, offset + 1, starts, packed) if stream.seekable() else -1
        whole = found if found >= 0 else _size(stream) if stream.seekable() else offset + 4 + len(body)
        short = len(prefix) < 4 or len(body) < length <= MAX_RECORD
        cut_off = found < 0 and short and _may_be_cut(body, packed)
        faults.append(Fault(name, offset, CUT_OFF if cut_off else DAMAGED, whole - offset, at_end=cut_off))
        if found < 0:
            return
        offset = found
        stream.seek(found)


def _message(body: bytes, unpack: zstandard.ZstdDecompressor | None) -> bytes | None:
    """The request in a whole record, None where there is none."""
    if unpack is None:
        return body if _is_request(body) else None
    try:
        if not body or zstandard.frame_content_size(body) > MAX_RECORD:
            return None if body else body
        return unpack.decompress(body, max_output_size=MAX_RECORD, allow_extra_data=False)
    except zstandard.ZstdError:
        return None


def _is_request(body: bytes) -> bool:
    """Whether fields fill the message exactly."""
    try:
        return all(number < 100 for number, _, _ in fields(body, 0, len(body)))
    except ValueError:
        return False


def _may_be_cut(body: bytes, packed: bool) -> bool:
    return not packed or body[:4] == ZSTD_MAGIC[: len(body)]


def _starts_record(
    stream: BinaryIO | io.BufferedIOBase, at: int, unpack: zstandard.ZstdDecompressor | None
) -> bool:
    """Whether a whole record starts at `at`."""
    stream.seek(at)
    length = int.from_bytes(stream.read(4), "big")
    if not 0 < length <= MAX_RECORD or (unpack is None and not _may_fit(stream.read(12), length)):
        return False
    stream.seek(at + 4)
    body = stream.read(length)
    return len(body) == length and bool(_message(body, unpack))


def _may_fit(head: bytes, length: int) -> bool:
    """Whether the first field of a request that begins with `head` ends within its `length`."""
    try:
        size, at = varint(head, 1, len(head))
    except ValueError:
        return False
    return at + size <= length


# -- after damage ---------------------------------------------------------------------------------


def _find(
    stream: BinaryIO | io.BufferedIOBase,
    at: int,
    starts: Callable[[BinaryIO | io.BufferedIOBase, int], bool],
    framed: bool | None = None,
) -> int:
    """The first position from `at` on where `starts` holds, -1 if nowhere.

    Looked at are the places of zstd's magic number (`framed`: 4 bytes before it) or, for a plain
    record (`framed` False), 4 bytes before the tag that every request begins with.
    """
    mark, before = (b"\x0a", 4) if framed is False else (ZSTD_MAGIC, 4 if framed else 0)
    at += before
    while True:
        stream.seek(at)
        window = stream.read(_WINDOW)
        place = window.find(mark)
        while place >= 0:
            if starts(stream, at + place - before):
                return at + place - before
            place = window.find(mark, place + 1)
        if len(window) < _WINDOW:
            return -1
        at += _WINDOW - len(mark) + 1


_WINDOW = 1 << 20


def _size(stream: BinaryIO | io.BufferedIOBase) -> int:
    return stream.seek(0, io.SEEK_END)
