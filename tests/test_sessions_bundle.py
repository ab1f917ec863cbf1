"""A session as one file: the same again elsewhere, and nothing else whatever somebody made of the file."""

from __future__ import annotations

import hashlib
import io
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from benchlab_otel.archive.bundle import SUMS, BundleError, pack, unpack
from benchlab_otel.archive.notes import Note, add_note
from benchlab_otel.archive.session import IMPORTED, create, imported_files, open_session, session_ids
from conftest import need
from test_archive import ALL, BASE, REQUESTS, read

ID = "20261001T120000Z-ab12"


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    writer = create(tmp_path / "here", BASE, ["run"], ID)
    for body in REQUESTS:
        writer.traces(body)
    writer.close()
    add_note(writer.path, Note(5, "here"), ID)
    (writer.path / ".draft").write_text("no part of it")
    path = tmp_path / "a.tar"
    with path.open("wb") as file:
        assert pack(writer.path, ID, file) == path.stat().st_size
    return path


def test_there_and_back(bundle: Path, tmp_path: Path) -> None:
    assert unpack(bundle, tmp_path / "there") == ID
    here, there = (open_session(ID, tmp_path / name) for name in ("here", "there"))
    assert here.manifest == there.manifest
    assert read(*there.traces, as_arrived=True) == (ALL, [])
    names = {p.name for p in there.path.iterdir()}
    assert names == {"manifest.json", "traces.otlp", "metrics.otlp", "energy.otlp", "notes.otlp"}
    with pytest.raises(FileExistsError, match="there already"):
        unpack(bundle, tmp_path / "there")
    assert [p.name for p in (tmp_path / "there" / "sessions").iterdir()] == [ID]


@pytest.mark.parametrize(("name", "files"), [("x" * 80, 0), (ID, 996)])
def test_the_longest_name_and_the_most_files_come_back(name: str, files: int, tmp_path: Path) -> None:
    writer = create(tmp_path / "here", BASE, ["run"], name)
    writer.close()
    for i in range(files):
        (writer.path / IMPORTED.format(i + 1)).touch()
    path = tmp_path / "a.tar"
    with path.open("wb") as file:
        pack(writer.path, name, file)
    assert unpack(path, tmp_path / "there") == name
    assert len(imported_files(tmp_path / "there" / "sessions" / name)) == files
    (writer.path / IMPORTED.format(files + 1)).touch()
    if files:
        with pytest.raises(BundleError, match="1001 files"):
            pack(writer.path, name, io.BytesIO())


def test_the_tools_of_every_system_take_it_too(bundle: Path, tmp_path: Path) -> None:
    subprocess.run([need("tar"), "xf", bundle, "-C", tmp_path], check=True)
    subprocess.run([need("sha256sum"), "--strict", "-c", SUMS], check=True, cwd=tmp_path / ID)


def refused(data: bytes, tmp_path: Path, expected: str) -> None:
    path = tmp_path / "bad.tar"
    path.write_bytes(data)
    before = {p for p in tmp_path.rglob("*") if "there" not in p.parts}
    with pytest.raises(BundleError, match=expected) as caught:
        unpack(path, tmp_path / "there")
    assert str(path) in str(caught.value)
    assert list((tmp_path / "there" / "sessions").iterdir()) == []
    assert {p for p in tmp_path.rglob("*") if "there" not in p.parts} == before


def test_cut_off_or_changed_anywhere_it_is_refused(bundle: Path, tmp_path: Path) -> None:
    data = bundle.read_bytes()
    for length in (0, 100, 511, 512, 1000, len(data.rstrip(b"\x00")) - 5):
        refused(data[:length], tmp_path, "expected|cut off|SHA-256")
    for at in range(600, len(data.rstrip(b"\x00")), 997):
        changed = bytearray(data)
        changed[at] ^= 1
        if any(changed[a : a + 512] != data[a : a + 512] for a in _contents(data)):
            refused(bytes(changed), tmp_path, "expected|cut off|SHA-256|twice")


def _contents(data: bytes) -> list[int]:
    """Where blocks stand that mean something: headers and contents without their padding."""
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        return [
            at
            for member in tar
            for at in [member.offset, *range(member.offset_data, member.offset_data + member.size - 511, 512)]
        ]


def hostile(*entries: tuple[str, bytes], change: Callable[[tarfile.TarInfo], None] = lambda e: None) -> bytes:
    """A tar with right checksums all over."""
    out = io.BytesIO()
    sums = "".join(f"{hashlib.sha256(body).hexdigest()}  {name.split('/')[-1]}\n" for name, body in entries)
    with tarfile.open(fileobj=out, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for name, body in entries:
            entry = tarfile.TarInfo(name)
            entry.size = len(body)
            change(entry)
            tar.addfile(entry, io.BytesIO(body))
        entry = tarfile.TarInfo(f"{ID}/{SUMS}")
        entry.size = len(sums)
        tar.addfile(entry, io.BytesIO(sums.encode()))
    return out.getvalue()


@pytest.mark.parametrize(
    "name",
    [
        "../x", "/etc/x", f"{ID}/../x", f"{ID}/../../x", f"{ID}/sub/x", f"{ID}/.x", "x", f"{ID}/",
        f"./{ID}/x", f"{ID}/" + "x" * 90 + "/../../y", f"{ID}/a\\..\\b", f"{ID}/a b", "other/manifest.json",
    ],
)  # fmt: skip
def test_names_that_lead_elsewhere_are_refused(name: str, tmp_path: Path) -> None:
    refused(hostile((f"{ID}/traces.otlp", b"x"), (name, b"bad")), tmp_path, "expected")


@pytest.mark.parametrize("kind", ["1", "2", "3", "4", "5", "6", "7", "S", "x", "g", "L", "K", "V"])
def test_links_devices_folders_and_extensions_are_refused(kind: str, tmp_path: Path) -> None:
    def change(entry: tarfile.TarInfo) -> None:
        entry.type, entry.linkname = kind.encode(), "/etc/passwd"

    refused(hostile((f"{ID}/manifest.json", b""), change=change), tmp_path, "expected a plain file")


def test_a_file_that_claims_to_be_larger_than_the_bundle_is_refused(bundle: Path, tmp_path: Path) -> None:
    entry = tarfile.TarInfo(f"{ID}/traces.otlp")
    entry.size = 1 << 50
    refused(entry.tobuf(tarfile.GNU_FORMAT) + b"x" * 512, tmp_path, "cut off")


def test_compressed_bundles_and_other_files_are_refused(bundle: Path, tmp_path: Path) -> None:
    refused(
        subprocess.run(["gzip", "-c", bundle], capture_output=True, check=True).stdout, tmp_path, "expected"
    )
    refused(b"PK\x03\x04" + bytes(2000), tmp_path, "expected")


def test_a_file_twice_or_none_or_without_sums_is_refused(tmp_path: Path) -> None:
    refused(hostile((f"{ID}/traces.otlp", b"a"), (f"{ID}/traces.otlp", b"a")), tmp_path, "twice")
    refused(hostile(*((f"{ID}/t{i}", b"a") for i in range(1001))), tmp_path, "1000 files")
    refused(hostile(), tmp_path, "no file")
    refused(hostile((f"{ID}/traces.otlp", b"a")), tmp_path, "manifest.json")
    refused(hostile((f"{ID}/manifest.json", b'{"id":"other","created":""}')), tmp_path, "manifest.json")


def test_no_room_is_said_before_anything_is_written(bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(OSError, match="no room"):
        unpack(bundle, tmp_path / "there", min_free_bytes=1 << 60)
    assert session_ids(tmp_path / "there") == []
    assert list((tmp_path / "there" / "sessions").iterdir()) == []
