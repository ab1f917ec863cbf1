"""A server that reads a BENCHLAB, by HTTP: its address, its key, and answers of bounded length and time."""

from __future__ import annotations

import http.client
import io
import re
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, quote, urlsplit

from benchlab_otel.config import BenchlabHttp
from benchlab_otel.sources.benchlab_json import fix_of, parse
from benchlab_otel.sources.reading import SourceError

FAULTS = (OSError, http.client.HTTPException, UnicodeError)  # the last: a host that can't be a name
MOST_BYTES = 1 << 20  # of an answer or a line: a reading has some 5,000

NONE_SET = "set sources.benchlab_http.urls, such as http://127.0.0.1:8080"
ONE_OF_URLS = "name one in sources.benchlab_http.urls"
_NO_KEY = "put the server's key (BENCHLAB_API_KEY) into a file and set sources.benchlab_http.key_file"
_NOT_IN_URL = f"take it out of the URL; {_NO_KEY}"
_PATHS = {"kit": "/devices/", "pytools": "/device/"}  # of a device, in whose API


class Server:
    """A server's answers; everything that goes wrong is a SourceError."""

    def __init__(self, settings: BenchlabHttp, address: str) -> None:
        self.settings, self.url = settings, address
        self._parts = _split(address)
        self.secure = self._parts.scheme == "https"
        self.host = self._parts.netloc  # with its port
        self.headers = _key(settings.key_file)

    def connect(self) -> http.client.HTTPConnection:
        """A connection to keep; it is made at the first request."""
        kind = http.client.HTTPSConnection if self.secure else http.client.HTTPConnection
        assert self._parts.hostname
        connection = kind(self._parts.hostname, self._parts.port, timeout=self.settings.timeout_s)
        connection.response_class = Answer
        return connection

    def device(self) -> tuple[str, str]:
        """(whose API: "kit" or "pytools", the device's name in it): what the URL names, or the only one."""
        path = self._parts.path.strip("/")
        named = re.fullmatch(r"(devices?)/([^/]+)", path)
        if self._parts.query or self._parts.fragment or (path and not named):
            what = f"{self.url}: expected http://HOST:PORT, alone or with /devices/PORT or /device/UID"
            raise SourceError("absent", what, NONE_SET)
        if named:
            return ("kit" if named[1] == "devices" else "pytools"), quote(named[2])
        return self._only_device(self.get("/devices"))

    def get(self, path: str) -> Any:
        """The JSON answer to a request of its own."""
        connection = self.connect()
        try:
            with self.faults():
                return parse(self.url, self.body(connection, path))
        finally:
            connection.close()

    def body(self, connection: http.client.HTTPConnection, path: str) -> bytes:
        """The answer to a GET; raises like `request`."""
        text = self.request(connection, path).read(MOST_BYTES + 1)
        if len(text) > MOST_BYTES:
            raise SourceError("garbled", f"{self.url}: an answer of more than {MOST_BYTES:,} bytes")
        return text

    def request(self, connection: http.client.HTTPConnection, path: str) -> Answer:
        """Sends a GET; SourceError for a status that is not 200, one of FAULTS where none comes."""
        if connection.sock:
            connection.sock.settimeout(self.settings.timeout_s)  # not what the answer before left of it
        connection.request("GET", path, headers=self.headers)
        answer = connection.getresponse()
        assert isinstance(answer, Answer)
        if answer.status == 401:
            raise SourceError("unreadable", f"{self.url}: the server wants a key", _NO_KEY)
        if answer.status != 200:
            place = f"{self._parts.scheme}://{self.host}{path}"
            what = answer.read(200).decode("utf-8", "replace")
            raise SourceError("busy" if answer.status == 409 else "lost", f"{place}: {answer.status} {what}")
        return answer

    @contextmanager
    def faults(self) -> Iterator[None]:
        """Around what may end with one of FAULTS: makes it a SourceError."""
        try:
            yield
        except FAULTS as error:
            raise self.unreachable(error) from None

    def unreachable(self, error: Exception) -> SourceError:
        """Why there is no answer."""
        late = isinstance(error, TimeoutError)
        fix = fix_of(error, "start the server", NONE_SET)
        return SourceError("late" if late else "lost", f"{self.url}: {error or type(error).__name__}", fix)

    def _only_device(self, listed: Any) -> tuple[str, str]:
        """The device of an answer to /devices."""
        if not isinstance(listed, list) or not all(isinstance(entry, dict) for entry in listed):
            raise SourceError("unknown", f"{self.url}: neither LinuxSupportKit nor pytools")
        kit = [d for d in listed if d.get("isBenchlab") and "device" in d]
        found = [("kit", quote(Path(str(d["device"])).name)) for d in kit]
        found += [("pytools", quote(str(d["uid"]))) for d in listed if "uid" in d]
        if len(found) != 1:
            names = ", ".join(_PATHS[kind] + name for kind, name in found) or "none"
            fix = ONE_OF_URLS if found else "plug it in there"
            raise SourceError("absent", f"{self.url}: expected one device, found: {names}", fix)
        return found[0]


class Answer(http.client.HTTPResponse):
    """An answer that has to come, as a whole, within its socket's timeout (s)."""

    def __init__(self, sock: socket.socket, *arguments: Any, **named: Any) -> None:
        super().__init__(sock, *arguments, **named)
        self._bounded = _Bounded(sock, self.fp)
        self.fp = io.BufferedReader(self._bounded)

    def renew(self) -> None:
        """Gives what comes next the whole time again."""
        self._bounded.renew()


class _Bounded(io.RawIOBase):
    """What is received until a deadline: a socket's own timeout begins anew with each byte."""

    def __init__(self, sock: socket.socket, received: io.BufferedReader) -> None:
        self._socket, self._received = sock, received
        self._timeout_s = sock.gettimeout() or 0.0
        self.renew()

    def renew(self) -> None:
        self._deadline = time.monotonic() + self._timeout_s

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        left = self._deadline - time.monotonic()
        if left <= 0.0:
            raise TimeoutError("timed out")
        self._socket.settimeout(left)
        return self._received.readinto1(buffer)

    def close(self) -> None:
        self._received.close()
        super().close()


def _split(address: str) -> SplitResult:
    """The parts of a server's URL; SourceError where it is none."""
    wrong = SourceError("absent", f"{address}: not a URL of a server", NONE_SET)
    if re.search(r"[\x00-\x20\x7f]", address):
        raise wrong
    try:
        parts = urlsplit(address)
        port = parts.port
    except ValueError:
        raise wrong from None
    if parts.scheme not in ("http", "https") or not parts.hostname or port == 0:
        raise wrong
    if "@" in parts.netloc:
        raise SourceError("unreadable", f"{address}: a user or password in a URL is not used", _NOT_IN_URL)
    return parts


def _key(file: str) -> dict[str, str]:
    """The header of the key in a file; errors don't repeat it."""
    if not file:
        return {}
    try:
        key = Path(file).expanduser().read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise SourceError("unreadable", f"sources.benchlab_http.key_file: {file}: {error}", _NO_KEY) from None
    if not key.isascii() or not key.isprintable():
        what = f"sources.benchlab_http.key_file: {file}: expected one line of ASCII"
        raise SourceError("unreadable", what, _NO_KEY)
    return {"Authorization": f"Bearer {key}"}
