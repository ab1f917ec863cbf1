"""The serial line to one BENCHLAB: one request at a time, and nothing that is not its answer.

The protocol has no framing, no checksum and no error reply, so the line is strict: a request in one
write, an answer of exactly the right length before a deadline, nothing before and nothing after it.
Anything else is a SourceError, after which the line is to be closed. As the device answers in order,
no answer to an earlier request can be taken for a later one.
"""

from __future__ import annotations

import errno
import os
import select
import termios
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import serial

from benchlab_otel import wire
from benchlab_otel.sources.reading import Reply, SourceError
from benchlab_otel.timebase import anchor

QUIET_S = 0.05  # the device pushes its welcome within this time of opening
_NOISY_S = 1.0  # a line that is not quiet by then is no BENCHLAB's
UDEV_RULE = 'SUBSYSTEM=="tty", ATTRS{idVendor}=="0483", ATTRS{idProduct}=="5740", TAG+="uaccess"'
_NO_PERMISSION = (
    f"echo '{UDEV_RULE}' | sudo tee /etc/udev/rules.d/60-benchlab.rules && sudo udevadm control --reload "
    "&& sudo udevadm trigger\n"
    "or `sudo usermod -aG dialout $USER`, and log in again"
)
_RISK = (
    "uaccess lets whoever sits at this machine use the port, dialout its members use every serial port; "
    "who can open it can also set the device's fans and calibration"
)
_STOP_IT = "stop it (`ps -fp PID` shows how it was started), or read the device there"
_FAULTS = (OSError, termios.error)  # a SerialException is an OSError
NOT_FOUND = "plug it in (`lsusb -d 0483:5740` should list it), or set sources.benchlab.ports"


class Port:
    """An open serial port, for this process alone. Not for two threads at a time."""

    def __init__(self, path: str, timeout_s: float) -> None:
        self.path = path
        self._timeout = timeout_s
        self._offset_ns = anchor().offset_ns
        self._port = _open(path)
        self._file = self._port.fileno()
        self._readable = select.poll()
        self._readable.register(self._file, select.POLLIN)

    def close(self) -> None:
        """Closes the port, also one whose device is gone."""
        with suppress(*_FAULTS):
            self._port.close()

    def drain(self) -> None:
        """Reads until the line is quiet: the welcome after opening, answers that came late."""
        deadline = time.monotonic() + _NOISY_S
        while self.receive(4096, QUIET_S):
            if time.monotonic() > deadline:
                raise SourceError("unknown", f"{self.path}: sends without being asked; not a BENCHLAB?")

    def ask(self, request: bytes, size: int, alone: bool = True) -> Reply:
        """The answer of `size` bytes to one request; `alone`: nothing may follow it."""
        try:
            if self._readable.poll(0):
                raise self._unasked()
            start = time.monotonic_ns()
            os.write(self._file, request)
            reply = self._receive(size, size + alone, self._timeout)
            end = time.monotonic_ns()
        except _FAULTS as error:
            raise self._lost(error) from None
        if len(reply) < size:
            what = f"{len(reply)} of {size} B" if reply else "no answer"
            limit = f"request {request[0]:#04x}: {what} within {self._timeout:.2g} s"
            raise SourceError("short" if reply else "late", f"{self.path}: {limit}")
        if len(reply) > size:
            raise SourceError("garbled", f"{self.path}: request {request[0]:#04x}: more than {size} B")
        return start + self._offset_ns, end + self._offset_ns, reply

    def answer(self, request: bytes, size: int, alone: bool = True) -> bytes:
        """As `ask`, without the times."""
        _, _, reply = self.ask(request, size, alone)
        return bytes(reply)

    def tell(self, request: bytes) -> None:
        """Sends one command that has no answer."""
        try:
            os.write(self._file, request)
        except _FAULTS as error:
            raise self._lost(error) from None

    def receive(self, size: int, timeout: float) -> bytes:
        """Up to `size` bytes that come before the timeout."""
        try:
            return self._receive(size, size, timeout)
        except _FAULTS as error:
            raise self._lost(error) from None

    def _receive(self, least: int, most: int, timeout: float) -> bytes:
        """What comes before the timeout, waiting for `least` bytes and taking no more than `most`.

        As pyserial's `read`, with a third of the calls.
        """
        deadline = time.monotonic() + timeout
        received = b""
        while len(received) < least:
            left = deadline - time.monotonic()
            if left <= 0.0 or not self._readable.poll(left * 1e3):
                break
            part = os.read(self._file, most - len(received))
            if not part:
                raise OSError("hung up")
            received += part
        return received

    def _unasked(self) -> SourceError:
        if waiting := self._port.in_waiting:
            return SourceError("garbled", f"{self.path}: {waiting} B that nobody asked for")
        return self._lost(OSError("hung up"))

    def _lost(self, error: Exception) -> SourceError:
        return SourceError("lost", f"{self.path}: unplugged? {error}")


def _open(path: str) -> serial.Serial:
    try:
        port = serial.Serial(path, wire.BAUD_RATE, exclusive=True, rtscts=False, dsrdtr=False)
    except _FAULTS as error:
        raise _cannot_open(path, error) from None
    if holder := holder_of(path):
        port.close()
        raise SourceError("busy", f"{path}: in use by {holder}", _STOP_IT)
    return port


def _cannot_open(path: str, error: Exception) -> SourceError:
    code = error.errno if isinstance(error, OSError) else error.args[0]
    if code in (errno.EAGAIN, errno.EBUSY):
        holder = holder_of(path, own=True) or "another process"
        return SourceError("busy", f"{path}: in use by {holder}", _STOP_IT)
    if code == errno.EACCES:
        return SourceError("unreadable", f"{path}: no permission", _NO_PERMISSION, _RISK)
    if code in (errno.ENOENT, errno.ENODEV, errno.ENXIO):
        return SourceError("absent", f"{path}: no such port", NOT_FOUND)
    return SourceError("unknown", f"{path}: can't be opened as a serial port: {error}")


def holder_of(path: str, own: bool = False) -> str:
    """Who has a device open, as "process PID (program)": "" where nobody can be found.

    A process without the lock (another tool) is found too. Other users' processes show only to root. The
    command line is left out: it may hold secrets, and this is logged and reported.
    """
    target = Path(path).resolve()
    for folder in Path("/proc").glob("[0-9]*"):
        if not own and int(folder.name) == os.getpid():
            continue
        with suppress(OSError):
            if any(link.readlink() == target for link in _links(folder / "fd")):
                program = (folder / "comm").read_text(errors="replace").strip()
                return f"process {folder.name} ({program})"
    return ""


def _links(folder: Path) -> Iterator[Path]:
    for link in folder.iterdir():
        with suppress(OSError):  # closed since it was listed
            link.readlink()
            yield link
