"""Reading ahead: blocks are decoded in a thread of their own while those before them are worked on.

Decompressing and NumPy's loops let other threads run, so on two cores a long session takes less time.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from benchlab_otel.archive.records import Fault

T = TypeVar("T")
BLOCKS = 1  # that are read before they are asked for; more would only take memory


def read_ahead(read: Callable[[list[Fault]], Iterator[T]], faults: list[Fault]) -> Iterator[T]:
    """What `read` gives, in its order. What it notes in the list that it is handed comes into `faults` with
    the next block, so that these have one order too; what it raises is raised here."""
    blocks = _with_faults(read)
    with ThreadPoolExecutor(1, "read-ahead") as thread:
        coming: deque[Future[tuple[T | None, list[Fault]]]] = deque()
        while True:
            while len(coming) <= BLOCKS:
                coming.append(thread.submit(next, blocks, (None, [])))
            block, found = coming.popleft().result()
            faults += found
            if block is None:
                return
            yield block


def _with_faults(read: Callable[[list[Fault]], Iterator[T]]) -> Iterator[tuple[T | None, list[Fault]]]:
    """Each block with the faults before it; those after the last one come with None."""
    found: list[Fault] = []
    for block in read(found):
        yield block, found[:]
        found.clear()
    yield None, found
