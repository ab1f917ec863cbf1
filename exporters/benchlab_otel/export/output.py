"""Files of exports: whole or not at all, and JSON from arrays without an object for each value."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import msgspec
import numpy as np
from numpy.typing import NDArray

BLOCK = 1 << 15  # values that become text together

Array = NDArray[Any]
Lazy = Callable[[], Array]


@contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """A file that takes its name only when it is whole.

    What a link points at is replaced, not the link. A device or pipe (`/dev/null`) is written to: a file in
    its place would take it from everyone. Raises OSError, with the file's name, where it can't be written.
    """
    target = Path(os.path.realpath(path))
    draft = target.with_name(f".{target.name}.part")
    with _naming(path, draft):
        if target.exists() and not target.is_file():
            with path.open("wb") as there:  # a folder is refused here
                yield there
            return
        out = draft.open("wb")
        try:
            with out:
                yield out
            draft.replace(target)
        finally:
            draft.unlink(missing_ok=True)


@contextmanager
def folder_at(path: Path) -> Iterator[None]:
    """A folder to write into. Where it was made for that and nothing comes of it, it goes again."""
    made = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        with suppress(OSError):  # the first that is not empty
            for folder in made:
                folder.rmdir()
        raise


@contextmanager
def _naming(path: Path, draft: Path) -> Iterator[None]:
    """Gives errors the file's name: a full disk's have none, others the draft's, which nobody knows."""
    try:
        yield
    except OSError as error:
        if error.filename is None or str(error.filename) == str(draft):
            error.filename = str(path)
        raise


def dump_json(out: IO[bytes], node: Any) -> None:
    """Writes a tree of dicts, lists, arrays (or functions that compute them) and plain values as JSON.

    NaN is written as `NaN`: strict JSON has no word for it.
    """
    if callable(node):
        node = node()
    if isinstance(node, np.ndarray):
        _array(out, node)
    elif isinstance(node, dict):
        for i, (key, value) in enumerate(node.items()):
            out.write((b"," if i else b"{") + msgspec.json.encode(key) + b":")
            dump_json(out, value)
        out.write(b"}" if node else b"{}")
    elif isinstance(node, list):
        for i, value in enumerate(node):
            out.write(b"," if i else b"[")
            dump_json(out, value)
        out.write(b"]" if node else b"[]")
    else:
        out.write(msgspec.json.encode(node))


def _array(out: IO[bytes], values: Array) -> None:
    out.write(b"[")
    for at in range(0, len(values), BLOCK):
        out.write((b"," if at else b"") + _text(values[at : at + BLOCK]))
    out.write(b"]")


def _text(values: Array) -> bytes:
    """The values with commas between them."""
    if values.strides == (0,) or values.tobytes() == values[:1].tobytes() * len(values):  # one value
        text = b",".join([msgspec.json.encode(values[0].item())] * len(values))
    else:
        text = msgspec.json.encode(values.tolist())[1:-1]
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        return text.replace(b"null", b"NaN")  # the encoder writes NaN as null
    return text
