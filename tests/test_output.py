"""Files of exports take their names whole, and take nothing else's place."""

from __future__ import annotations

import os
from pathlib import Path
from threading import Thread

import pytest

from benchlab_otel.export.output import replacing


def test_a_pipe_is_written_to_and_stays_one(tmp_path: Path) -> None:
    """As `--out /dev/null` and `/dev/stdout`: a file in the device's place would break the machine."""
    pipe, read = tmp_path / "pipe", list[bytes]()
    os.mkfifo(pipe)
    reader = Thread(target=lambda: read.append(pipe.read_bytes()), daemon=True)
    reader.start()
    with replacing(pipe) as out:
        out.write(b"all of it")
    reader.join(60)
    assert read == [b"all of it"]
    assert pipe.is_fifo()
    assert list(tmp_path.iterdir()) == [pipe]


def test_what_a_link_points_at_is_replaced_and_the_link_stays(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    target, link = tmp_path / "elsewhere" / "real.json", tmp_path / "link.json"
    link.symlink_to(target)
    for text in (b"first", b"second"):
        with replacing(link) as out:
            out.write(text)
        assert link.is_symlink()
        assert target.read_bytes() == text


def test_a_failure_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(b"before")

    def fail() -> None:
        with replacing(path) as out:
            out.write(b"half of")
            raise ValueError("no more")

    with pytest.raises(ValueError, match="no more"):
        fail()
    assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("name", "problem"),
    [("folder", "Is a directory"), ("nowhere/a.json", "No such file"), ("a" * 300, "name too long")],
)
def test_errors_name_the_file_that_was_asked_for(name: str, problem: str, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError, match=problem) as raised, replacing(tmp_path / name):
        pass
    assert raised.value.filename == str(tmp_path / name)


@pytest.mark.skipif(not Path("/dev/full").is_char_device(), reason="no device that is always full")
def test_a_full_disk_is_named(tmp_path: Path) -> None:
    """Writing says no name by itself, and what has none is taken for a bug."""
    (tmp_path / "full.json").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left") as raised, replacing(tmp_path / "full.json") as out:
        out.write(bytes(1 << 20))
    assert raised.value.filename == str(tmp_path / "full.json")
