"""Garbled archives: no crash, and each byte is either read or said to be lost.

    python tests/fuzz_archive.py [--inputs 1000000] [--seed 1]

Starts from whole files in every format of the Collector's file exporter, and damages them: bits, bytes,
stretches removed, repeated, moved and mixed between formats, lengths that lie, ends cut off. Reads each
as the archive does. A share goes to the other parsers of what comes from elsewhere: OTLP/JSON by both
ways, session bundles and manifests. Prints the seed and number of the input that broke a rule; the same
seed gives the same inputs.
"""

from __future__ import annotations

import argparse
import io
import json
import logging
import random
import sys
import tarfile
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
import zstandard

sys.path.insert(0, str(Path(__file__).parent))

from benchlab_otel.archive.bundle import BundleError, pack, unpack
from benchlab_otel.archive.manifest import MANIFEST, Manifest, read_manifest, write_manifest
from benchlab_otel.archive.reader import read_spans
from benchlab_otel.archive.records import ZSTD_MAGIC, Fault, read_records
from benchlab_otel.otlp.decode import decode_traces
from benchlab_otel.otlp.json import traces_to_protobuf
from benchlab_otel.otlp.json_spans import decode_json_traces
from test_archive import RECORD, as_json, request_of

BODIES = [request_of(*range(4 * i + 1, 4 * i + 1 + k), at=i) for i, k in enumerate((2, 1, 3))]
NUMBERS = {n for i, k in enumerate((2, 1, 3)) for n in range(4 * i + 1, 4 * i + 1 + k)}
FILES = {form: b"".join(map(write, BODIES)) for form, write in RECORD.items()}
CHECKSUMMED = [form for form in FILES if "zstd" in form]
TOKENS = [
    *(b"\x00\x00\x00\x00", b"\xff\xff\xff\xff", b"\x00\x00\x00\x01", b"\x0f\xff\xff\xff", ZSTD_MAGIC, b"\n"),
    *(b"{", b"}", b'"', b"[", b"null", b"-1", b"1e999", b"\\ud800", b"\xc3\x28", b'{"resourceSpans":[{}]}'),
    *(
        b"\x0a",
        b"\x12\xff\xff\xff\xff\x0f",
        b"\x0a\x00",
        b"\x80" * 11,
        b'"traceId":""',
        b'{"resourceMetrics"',
    ),
]


class Broken(AssertionError):
    """A rule that did not hold."""


def damage(data: bytes, chance: random.Random) -> bytes:
    """The same with one to four damages."""
    out = bytearray(data)
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(len(out) + 1)
        size = min(int(chance.expovariate(0.1)) + 1, 200)
        match chance.randrange(9):
            case 0 if at < len(out):
                out[at] ^= 1 << chance.randrange(8)
            case 1 if at < len(out):
                out[at] = chance.randrange(256)
            case 2:
                del out[at : at + size]
            case 3:
                out[at:at] = chance.randbytes(size)
            case 4:
                out[at:at] = out[at : at + size]
            case 5:
                token = chance.choice(TOKENS)
                out[at : at + len(token) * chance.randrange(2)] = token
            case 6:
                del out[at:]
            case 7:
                other = chance.choice(list(FILES.values()))
                begin = chance.randrange(len(other))
                out[at : at + chance.randrange(2) * size] = other[begin : begin + 4 * size]
            case 8:
                piece = out[at : at + size]
                del out[at : at + size]
                to = chance.randrange(len(out) + 1)
                out[to:to] = piece
    return bytes(out)


def check_archive(chance: random.Random, folder: Path) -> str:
    """One damaged archive file; returns its format."""
    form = chance.choice(list(FILES))
    data = damage(FILES[form], chance)
    path = folder / "traces"
    path.write_bytes(data)
    faults: list[Fault] = []
    records = list(read_records(path, faults))
    if data[:4] != ZSTD_MAGIC:
        _accounted(data, [(r.offset, r.size) for r in records] + [(f.offset, f.lost_bytes) for f in faults])
    faults = []
    narrow = chance.random() < 0.2
    found = [
        n
        for spans in read_spans([path], faults, as_arrived=chance.random() < 0.5, attributes=not narrow)
        for n in spans.span.tolist()
    ]
    for fault in faults:
        if not (fault.file == str(path) and fault.reason and fault.offset >= 0 and fault.lost_bytes >= 0):
            raise Broken(f"a fault that does not say where: {fault}")
    if data == FILES[form] and (set(found) != NUMBERS or faults):
        raise Broken("a whole file was not read")
    if form in CHECKSUMMED and not faults and data.startswith(FILES[form][:5]) and not set(found) <= NUMBERS:
        raise Broken("spans that nobody wrote came out of checksummed records")
    return form


def _accounted(data: bytes, pieces: list[tuple[int, int]]) -> None:
    """What is neither a record nor a fault is blank: newlines, or records of no bytes."""
    at = 0
    for offset, size in sorted(pieces):
        if offset < at:
            raise Broken(f"byte {offset} is told twice")
        _blank(data[at:offset])
        at = offset + size
    if at > len(data):
        raise Broken(f"{at - len(data)} bytes more than there are")
    _blank(data[at:])


def _blank(gap: bytes) -> None:
    if gap.strip() and gap.strip(b"\x00") and not _empty_records(gap):
        raise Broken(f"lost without a word: {gap[:60]!r}")


def _empty_records(gap: bytes) -> bool:
    """Whether these are compressed records of a message without a byte."""
    while gap:
        size = int.from_bytes(gap[:4], "big")
        try:
            if size and zstandard.ZstdDecompressor().decompress(gap[4 : 4 + size], max_output_size=1):
                return False
        except zstandard.ZstdError:
            return False
        gap = gap[4 + size :]
    return True


def check_json(chance: random.Random, _folder: Path) -> str:
    """Both ways of OTLP/JSON give the same spans, or the typed one, which checks less, some more."""
    line = damage(as_json(chance.choice(BODIES)), chance).replace(b"\n", b" ")
    try:
        expected = decode_traces(traces_to_protobuf(line))
    except ValueError:
        expected = None
    try:
        found = decode_json_traces([line])
    except ValueError:
        if expected is not None:
            raise Broken("typed decoding refused what is right") from None
        return "json refused"
    if expected is not None:
        for name in ("trace", "span", "parent", "start", "end", "status"):
            if not np.array_equal(getattr(found, name), getattr(expected, name)):
                raise Broken(f"{name} differs")
        if [found.names[i] for i in found.name] != [expected.names[i] for i in expected.name]:
            raise Broken("names differ")
        if found.attributes.keys() != expected.attributes.keys():
            raise Broken("attributes differ")
    return "json read"


def _bundle() -> bytes:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_manifest(folder, Manifest("20260101T000000Z-ab12", "2026-01-01T00:00:00+00:00"))
        (folder / "traces.otlp").write_bytes(FILES["proto, zstd"])
        out = io.BytesIO()
        pack(folder, "20260101T000000Z-ab12", out)
        return out.getvalue()[: 512 * 12]  # without the padding at the end of a tar


BUNDLE = _bundle()


def check_bundle(chance: random.Random, folder: Path) -> str:
    """A damaged bundle is refused without a trace, or is the session that it was."""
    data = bytearray(damage(BUNDLE, chance))
    if chance.random() < 0.7 and len(data) >= 512:
        _hostile_header(data, chance)
    path = folder / "bundle.tar"
    path.write_bytes(data)
    before = sorted(folder.parent.iterdir())
    try:
        unpack(path, folder / "data")
        kind = "bundle taken"
    except (BundleError, FileExistsError):
        kind = "bundle refused"
    if sorted(folder.parent.iterdir()) != before:
        raise Broken("something was written outside the data folder")
    for session in (folder / "data" / "sessions").iterdir():
        if (session / "traces.otlp").read_bytes() != FILES["proto, zstd"] or session.name[0] == ".":
            raise Broken(f"{session.name} is not what was packed")
        for file in session.iterdir():
            if file.is_symlink() or not file.is_file():
                raise Broken(f"{file} is no plain file")
            file.unlink()
        session.rmdir()
    return kind


def _hostile_header(data: bytearray, chance: random.Random) -> None:
    """Another first entry, with a header that is right in itself."""
    names = ["../x", "/etc/x", "20260101T000000Z-ab12/../../x", "a/b/c", "20260101T000000Z-ab12/.x", "x" * 90]
    entry = tarfile.TarInfo(chance.choice([*names, "20260101T000000Z-ab12/manifest.json"]))
    entry.type = chance.choice([b"0", b"1", b"2", b"3", b"5", b"6", b"S", b"x", b"g", b"L", b"7"])
    entry.linkname = chance.choice(["", "/etc/passwd", "../../x"])
    entry.size = chance.choice([0, 10, 1 << 20, 1 << 40, -1 & ((1 << 60) - 1)])
    data[:512] = entry.tobuf(tarfile.GNU_FORMAT)[:512]


def check_manifest(chance: random.Random, folder: Path) -> str:
    write_manifest(folder, Manifest("a", "2026", notes=["x"], devices=[{"hw.id": "y"}], lost={"f": 1}))
    path = folder / MANIFEST
    path.write_bytes(damage(path.read_bytes(), chance))
    found = read_manifest(path)
    if found is not None:
        json.dumps([found.id, found.created, found.ended])
    return "manifest read" if found else "manifest refused"


TARGETS = [(check_archive, 0.75), (check_json, 0.19), (check_bundle, 0.04), (check_manifest, 0.02)]


def fuzz(inputs: int, seed: int, folder: Path, tell: bool = False) -> Counter[str]:
    """So many inputs; returns how many there were of each kind. Raises Broken with the input's number."""
    logging.disable(logging.WARNING)
    kinds: Counter[str] = Counter()
    begin = time.monotonic()
    work = folder / "work"
    work.mkdir(exist_ok=True)
    for number in range(inputs):
        chance = random.Random(f"{seed}/{number}")
        check = chance.choices([t for t, _ in TARGETS], [w for _, w in TARGETS])[0]
        try:
            kinds[check(chance, work)] += 1
        except Exception as error:
            raise Broken(f"seed {seed}, input {number}: {type(error).__name__}: {error}") from error
        if tell and number % 50_000 == 49_999:
            print(f"{number + 1:,} inputs, {time.monotonic() - begin:,.0f} s", flush=True)
    logging.disable(logging.NOTSET)
    return kinds


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    arguments.add_argument("--inputs", type=int, default=1_000_000)
    arguments.add_argument("--seed", type=int, default=1)
    arguments.add_argument("--only", type=int, help="the number of one input")
    chosen = arguments.parse_args()
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as name:
        if chosen.only is not None:
            (Path(name) / "work").mkdir()
            chance = random.Random(f"{chosen.seed}/{chosen.only}")
            check = chance.choices([t for t, _ in TARGETS], [w for _, w in TARGETS])[0]
            print(check(chance, Path(name) / "work"))
            return
        begin = time.monotonic()
        kinds = fuzz(chosen.inputs, chosen.seed, Path(name), tell=True)
        print(f"{chosen.inputs:,} inputs in {time.monotonic() - begin:,.0f} s, no rule broken")
        for kind, count in kinds.most_common():
            print(f"  {count:10,} {kind}")


if __name__ == "__main__":
    main()
