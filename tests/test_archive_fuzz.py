"""A small share of tests/fuzz_archive.py."""

from __future__ import annotations

from pathlib import Path

from fuzz_archive import fuzz


def test_garbled_archives_crash_nothing_and_lose_nothing_without_a_word(tmp_path: Path) -> None:
    kinds = fuzz(2500, 7, tmp_path)
    assert {"proto", "json", "native zstd of proto", "json read", "bundle refused"} <= kinds.keys()
