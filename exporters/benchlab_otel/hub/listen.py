"""Taking a TCP port, and saying who has it where it is taken."""

from __future__ import annotations

import errno
import socket

import psutil


def listen(host: str, port: int, setting: str) -> socket.socket:
    """A listening socket; port 0 takes a free one.

    Raises OSError with a message that names address, holder and the setting to change.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=128)
    except OSError as error:
        raise _explained(error, host, port, setting) from None


def _explained(error: OSError, host: str, port: int, setting: str) -> OSError:
    where = f"{host}:{port}"
    if error.errno == errno.EADDRINUSE:
        reason = f"{where} is in use{_holder(port)}; stop that or set {setting} to another port"
    elif error.errno == errno.EACCES:
        reason = f"{where}: ports below 1024 need privileges; set {setting} to a higher port"
    else:
        reason = f"cannot listen on {where}: {error.strerror or error}; check {setting}"
    return OSError(error.errno, reason)


def _holder(port: int) -> str:
    """Who listens on the port, as far as this user may see it."""
    try:
        found = [
            c.pid
            for c in psutil.net_connections("tcp")
            if c.status == psutil.CONN_LISTEN and c.laddr and c.laddr.port == port and c.pid
        ]
        return f" by {psutil.Process(found[0]).name()} (process {found[0]})" if found else ""
    except (psutil.Error, OSError):
        return ""
