"""How a command ends when it can't do what was asked: one clear line on stderr, no stack trace."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager


class UserError(Exception):
    """Wrong options, configuration or input; the message says what was expected and what to do."""

    exit_code = 2


class Failure(Exception):
    """The request was right but something failed while running: a device, a disk, a port."""

    exit_code = 1


_PICTURES = {code: 0x2400 + code for code in range(32) if chr(code) not in "\t\n"}
_PICTURES |= {0x7F: 0x2421} | dict.fromkeys(range(0x80, 0xA0), 0xFFFD)


def plain(text: str) -> str:
    """A text with its control characters, but for tabs and line ends, as pictures (U+2400 and up): what comes
    from a file steers no terminal."""
    return text.translate(_PICTURES)


@contextmanager
def needing(requirement: str) -> Iterator[None]:
    """Around the import of what needs an optional package: where that is absent, a UserError that says how
    to get it."""
    package = requirement.partition(">")[0]
    try:
        yield
    except ImportError as error:
        if (error.name or "").partition(".")[0] != package:
            raise
        how = f"{sys.executable} -m pip install '{requirement}'"
        raise UserError(f"{package} is not installed: {how}") from None
