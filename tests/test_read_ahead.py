"""Reading in another thread: the same blocks and faults in the same order, and errors where they are met."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchlab_otel.archive.ahead import BLOCKS, read_ahead
from benchlab_otel.archive.records import Fault


def fault(number: int) -> Fault:
    return Fault("f", number, "garbled", 1)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.booleans(), max_size=12))
def test_blocks_and_faults_come_in_the_order_of_reading(what: list[bool]) -> None:
    """A block for each True, a fault for each False; a block brings the faults before it."""

    def read(found: list[Fault]) -> Iterator[int]:
        for number, is_block in enumerate(what):
            if is_block:
                yield number
            else:
                found.append(fault(number))

    faults: list[Fault] = []
    for block in read_ahead(read, faults):
        assert what[block]
        assert faults == [fault(i) for i in range(block) if not what[i]]
    assert faults == [fault(i) for i in range(len(what)) if not what[i]]


def test_what_goes_wrong_is_raised_after_the_blocks_before_it() -> None:
    def read(found: list[Fault]) -> Iterator[int]:
        yield from range(3)
        raise OSError(5, "gone", "traces.otlp")

    blocks = read_ahead(read, [])
    assert [next(blocks) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(OSError, match="gone"):
        next(blocks)


def test_only_a_few_blocks_are_read_ahead_and_nothing_after_the_reader_is_closed() -> None:
    read_so_far = []
    threads = threading.active_count()

    def read(found: list[Fault]) -> Iterator[int]:
        for number in range(1000):
            read_so_far.append(number)
            yield number

    blocks = read_ahead(read, [])
    assert next(blocks) == 0
    blocks.close()
    assert len(read_so_far) <= BLOCKS + 1
    assert threading.active_count() == threads
