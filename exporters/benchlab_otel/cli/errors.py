"""How a command ends when it can't do what was asked: one clear line on stderr, no stack trace."""

from __future__ import annotations


class UserError(Exception):
    """Wrong options, configuration or input; the message says what was expected and what to do."""

    exit_code = 2


class Failure(Exception):
    """The request was right but something failed while running: a device, a disk, a port."""

    exit_code = 1
