"""Files whose spans are out of order, repeated, or spread: one sequence in time, each span once."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest

from benchlab_otel.archive import order
from benchlab_otel.archive.order import HORIZON, in_time
from benchlab_otel.model import Column, Spans
from test_archive import REQUESTS, as_json, numbers_of, packed, read, request_of

ALL = numbers_of(REQUESTS)


def spans_of(numbers: np.ndarray, at: np.ndarray) -> Spans:
    ids = numbers.astype(np.uint64)
    n = len(ids)
    return Spans(
        trace=np.stack([ids, ids], 1),
        span=ids,
        parent=np.zeros(n, np.uint64),
        name=np.zeros(n, np.int32),
        start=at - 500,
        end=at,
        status=np.zeros(n, np.uint8),
        resource=np.zeros(n, np.int32),
        names=["s"],
        resources=[{}],
        attributes={"n": Column(np.arange(0, n, 2), numbers[::2])},
    )


def sequence(*files: list[Spans]) -> tuple[list[int], int]:
    found: list[int] = []
    late = 0
    for block, late_now in in_time([(int(file[0].end.min()), iter(file)) for file in files]):
        column = block.attributes["n"]
        assert (np.diff(column.rows) > 0).all()
        assert (block.span[column.rows] == column.values).all()  # attributes stay with their spans
        found += block.span.tolist()
        late += late_now
    return found, late


def blocks(numbers: np.ndarray, size: int = 10_000) -> list[Spans]:
    """In this order, each at 1 ms times its number."""
    return [
        spans_of(numbers[i : i + size], numbers[i : i + size].astype(np.int64) * 1_000_000 + 10**18)
        for i in range(0, len(numbers), size)
    ]


N = 3 * HORIZON


def test_requests_that_came_late_are_sorted_in() -> None:
    numbers = np.arange(1, N + 1)
    delayed = np.concatenate([numbers[:1000], numbers[2000:100_000], numbers[1000:2000], numbers[100_000:]])
    assert sequence(blocks(delayed)) == (numbers.tolist(), 0)


def test_what_is_too_late_to_be_sorted_in_is_there_and_counted() -> None:
    numbers = np.arange(1, N + 1)
    delayed = np.concatenate([numbers[:1000], numbers[2000:], numbers[1000:2000]])
    found, late = sequence(blocks(delayed))
    assert sorted(found) == numbers.tolist()
    assert late == 1000


def test_a_file_in_order_keeps_its_blocks() -> None:
    given = blocks(np.arange(1, N + 1))
    assert [id(block) for block, _ in in_time([(0, iter(given))])] == list(map(id, given))


def test_retried_requests_come_once() -> None:
    numbers = np.arange(1, N + 1)
    retried = np.concatenate(
        [numbers[:50_000], numbers[49_000:50_000], numbers[20_000:30_000], numbers[50_000:]]
    )
    assert sequence(blocks(retried)) == (numbers.tolist(), 0)


def test_a_span_that_was_sent_again_with_another_end_is_no_repeat() -> None:
    a, b = blocks(np.arange(1, 11)), blocks(np.arange(1, 11))
    b[0].end += 1
    assert len(sequence([*a, *b])[0]) == 20


@pytest.mark.parametrize("seed", range(3))
def test_senders_in_files_of_their_own(seed: int) -> None:
    """Of different rates, one with a garbled time far ahead, as blocks of several sizes."""
    chance = np.random.default_rng(seed)
    owner = chance.choice(3, N, p=[0.9, 0.09, 0.01])
    numbers = np.arange(1, N + 1)
    files = [blocks(numbers[owner == k], size) for k, size in enumerate((40_000, 5_000, 300))]
    files[1][0].end[3] = 1 << 62
    garbled = int(files[1][0].span[3])
    expected = [n for n in numbers.tolist() if n != garbled]
    assert sequence(*files) == ([*expected, garbled], 0)


def test_rotated_files_are_read_one_after_the_other() -> None:
    """What is held of all files together does not grow with their number."""
    numbers = np.arange(1, 4 * N + 1)
    held = most = 0

    def counted(file: list[Spans]):
        nonlocal held, most
        for block in file:
            held += len(block)
            most = max(most, held)
            yield block

    parts = [blocks(part) for part in np.array_split(numbers, 12)]
    random.Random(1).shuffle(parts)
    total = 0
    for block, _ in in_time([(int(part[0].end[0]), counted(part)) for part in parts]):
        held -= len(block)
        total += len(block)
    assert total == len(numbers)
    assert most <= 2 * HORIZON + 2 * order.BLOCK_SPANS


@pytest.mark.parametrize("form", ["proto, zstd", "json"])
def test_files_that_repeat_each_other(form: str, tmp_path: Path) -> None:
    """As when a Collector restarts and its queue sends again what was written already."""
    write = {"proto, zstd": packed, "json": lambda body: as_json(body) + b"\n"}[form]
    (tmp_path / "b").write_bytes(b"".join(map(write, [*REQUESTS[8:], REQUESTS[9]])))
    (tmp_path / "a").write_bytes(b"".join(map(write, REQUESTS[:11])))
    assert read(tmp_path / "b", tmp_path / "a") == (ALL, [])


def test_as_arrived_keeps_order_and_repeats(tmp_path: Path) -> None:
    path = tmp_path / "traces"
    bodies = [request_of(3, at=10**9), request_of(1), request_of(3, at=10**9)]
    path.write_bytes(b"".join(map(packed, bodies)))
    assert read(path, as_arrived=True) == ([3, 1, 3], [])
    assert read(path) == ([1, 3], [])
