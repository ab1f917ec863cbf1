"""BENCHLABs that another program reads and serves by HTTP: LinuxSupportKit, and pytools' FastAPI.

A URL names a server with one device, or a device: `…/devices/ttyACM0` is LinuxSupportKit's way,
`…/device/UID` that of pytools. Streamed (NDJSON, WebSocket) or polled. Neither server tells when a
reading was made, so its time is known no better than from the reading before to its arrival.
"""

from __future__ import annotations

import http.client
import re
import socket
from contextlib import ExitStack, suppress
from pathlib import Path
from threading import Thread
from typing import Any, Protocol
from urllib.parse import SplitResult, quote, urlsplit

from benchlab_otel import wire
from benchlab_otel.config import BenchlabHttp
from benchlab_otel.sources.benchlab_json import METRICS as METRICS
from benchlab_otel.sources.benchlab_json import (
    Feed,
    JsonReader,
    Pushed,
    device_of,
    from_kit,
    from_pytools,
    parse,
    uid_of,
)
from benchlab_otel.sources.reading import Reply, SourceError
from benchlab_otel.timebase import anchor

_NONE_SET = "set sources.benchlab_http.urls, such as http://127.0.0.1:8080"
_NO_KEY = "put the server's key (BENCHLAB_API_KEY) into a file and set sources.benchlab_http.key_file"
_NO_WEBSOCKETS = "pip install 'benchlab-otel[websocket]', or set sources.benchlab_http.stream = false"


_NOT_IN_URL = f"take it out of the URL; {_NO_KEY}"
_FAULTS = (OSError, http.client.HTTPException, UnicodeError)  # the last: a host that can't be a name


def addresses(settings: BenchlabHttp) -> list[str]:
    """The configured URLs; "" where there are none. They are shown, and so without what may be a secret."""
    return [re.sub(r"//[^/]*@", "//…@", url) for url in settings.urls] or [""]


def open_reader(settings: BenchlabHttp, address: str) -> JsonReader:
    """Finds out whose API it is, and that a device is there."""
    if not address:
        raise SourceError("absent", "no server is set", _NONE_SET)
    server = Server(settings, address)
    kind, name = server.device()
    info = server.get(f"/devices/{name}/info" if kind == "kit" else f"/device/{name}/info")
    layout, uid = _identity(server, kind, name, info)
    simulated = str(info.get("name", "")).startswith(wire.SIMULATED_NAME)
    device = device_of("http", uid, layout, simulated)
    return JsonReader(device, layout, from_kit if kind == "kit" else from_pytools, _feed(server, kind, name))


def _identity(server: Server, kind: str, name: str, info: Any) -> tuple[wire.Layout, str]:
    """(layout, UID) of what a server says it has."""
    try:
        product = int(info["productId"], 16) if kind == "kit" else info["ProductId"]
        layout = wire.layout(product, info["firmwareVersion"] if kind == "kit" else info["FwVersion"])
        return layout, uid_of(server.get(f"/devices/{name}/uid")["uid"] if kind == "kit" else name)
    except (KeyError, TypeError, ValueError) as error:
        raise SourceError("garbled", f"{server.url}: not a device's information: {error!r}") from None
    except LookupError as error:
        raise SourceError("unknown", f"{server.url}: {error}") from None


class Server:
    """A server's answers; everything that goes wrong is a SourceError."""

    def __init__(self, settings: BenchlabHttp, address: str) -> None:
        self.settings, self.url = settings, address
        self.parts = _split(address)
        self.headers = _key(settings.key_file)

    def connect(self) -> http.client.HTTPConnection:
        """A connection to keep."""
        kind = http.client.HTTPSConnection if self.parts.scheme == "https" else http.client.HTTPConnection
        assert self.parts.hostname
        return kind(self.parts.hostname, self.parts.port, timeout=self.settings.timeout_s)

    def device(self) -> tuple[str, str]:
        """(whose API: "kit" or "pytools", the device's name in it)."""
        _, *path = self.parts.path.rstrip("/").split("/")
        if len(path) == 2 and path[0] in ("devices", "device"):
            return ("kit" if path[0] == "devices" else "pytools"), quote(path[1])
        listed = self.get("/devices")
        if not isinstance(listed, list) or not all(isinstance(entry, dict) for entry in listed):
            raise SourceError("unknown", f"{self.url}: neither LinuxSupportKit nor pytools")
        kit = [("kit", quote(Path(str(d["device"])).name)) for d in listed if d.get("isBenchlab")]
        found = kit + [("pytools", quote(str(d["uid"]))) for d in listed if "uid" in d]
        if len(found) != 1:
            path_of = {"kit": "/devices/", "pytools": "/device/"}
            names = ", ".join(path_of[kind] + name for kind, name in found) or "none"
            fix = "name one in sources.benchlab_http.urls" if found else "plug it in there"
            raise SourceError("absent", f"{self.url}: expected one device, found: {names}", fix)
        return found[0]

    def get(self, path: str) -> Any:
        """The JSON answer to a request of its own."""
        connection = self.connect()
        try:
            return parse(self.url, self.request(connection, path).read())
        except _FAULTS as error:
            raise _unreachable(self.url, error) from None
        finally:
            connection.close()

    def request(self, connection: http.client.HTTPConnection, path: str) -> http.client.HTTPResponse:
        """Sends a GET; SourceError for a status that is not 200."""
        try:
            connection.request("GET", path, headers=self.headers)
            answer = connection.getresponse()
        except _FAULTS as error:
            raise _unreachable(self.url, error) from None
        if answer.status == 401:
            raise SourceError("unreadable", f"{self.url}: the server wants a key", _NO_KEY)
        if answer.status != 200:
            what = answer.read(200).decode("utf-8", "replace")
            raise SourceError(
                "busy" if answer.status == 409 else "lost", f"{self.url}{path}: {answer.status} {what}"
            )
        return answer


def _split(address: str) -> SplitResult:
    """The parts of a server's URL; SourceError where it is none."""
    wrong = SourceError("absent", f"{address}: not a URL of a server", _NONE_SET)
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


def _unreachable(url: str, error: Exception) -> SourceError:
    late = isinstance(error, TimeoutError)
    return SourceError(
        "late" if late else "lost", f"{url}: {error or type(error).__name__}", "start the server"
    )


def _feed(server: Server, kind: str, name: str) -> Feed:
    if kind == "kit":
        stream, poll = f"/stream?device={name}", f"/devices/{name}/sensors"
        if server.settings.stream:
            return _Stream(server, _Lines(server, stream))
        return _Polls(server, poll, fresh=True)
    if server.settings.stream:
        return _Stream(server, _Socket(server, f"/device/{name}/stream"))
    return _Polls(server, f"/device/{name}/telemetry", fresh=False)


class _Polls:
    """One request a reading, on a connection that is kept; `fresh`: the server reads the device for it."""

    def __init__(self, server: Server, path: str, fresh: bool) -> None:
        self._server, self._path, self._fresh = server, path, fresh
        self._connection = server.connect()
        self._before = anchor().now_ns()  # when the reading before was asked for

    def next(self) -> Reply:
        asked = anchor().now_ns()
        try:
            text = self._server.request(self._connection, self._path).read()
        except _FAULTS as error:
            raise _unreachable(self._server.url, error) from None
        begin = asked if self._fresh else self._before
        self._before = asked
        return begin, anchor().now_ns(), text

    def close(self) -> None:
        self._connection.close()


class _Line(Protocol):
    """A connection on which a server sends readings."""

    def receive(self) -> bytes | str:
        """The next one, waited for; SourceError at the end."""

    def close(self) -> None:
        """Ends it, and a `receive` of another thread with it."""


class _Stream:
    """What a server sends, received by a thread of its own."""

    def __init__(self, server: Server, line: _Line) -> None:
        self._line = line
        self._pushed = Pushed(server.url, server.settings.timeout_s)
        self._thread = Thread(target=self._run, name="benchlab-otel-stream", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            while True:
                self._pushed.put(self._line.receive())
        except SourceError as error:
            self._pushed.fail(error)

    def next(self) -> Reply:
        return self._pushed.next()

    def close(self) -> None:
        self._line.close()
        self._thread.join()


class _Lines:
    """NDJSON."""

    def __init__(self, server: Server, path: str) -> None:
        self._server = server
        self._connection = server.connect()
        try:
            self._connection.connect()
        except _FAULTS as error:
            raise _unreachable(server.url, error) from None
        self._socket: socket.socket = self._connection.sock  # which the connection lets go of later
        self._answer = server.request(self._connection, path)

    def receive(self) -> bytes:
        try:
            line = self._answer.readline(1 << 20)
        except _FAULTS as error:
            raise _unreachable(self._server.url, error) from None
        if not line:
            raise SourceError("lost", f"{self._server.url}: the stream ended")
        return line

    def close(self) -> None:
        with suppress(OSError):  # the server was faster
            self._socket.shutdown(socket.SHUT_RDWR)


class _Socket:
    """A WebSocket, by the `websockets` package."""

    def __init__(self, server: Server, path: str) -> None:
        try:
            from websockets.exceptions import WebSocketException
            from websockets.sync.client import connect
        except ImportError:
            raise SourceError(
                "unreadable", "the websockets package is not installed", _NO_WEBSOCKETS
            ) from None
        self._server, self._error, self._closing = server, WebSocketException, ExitStack()
        scheme = "wss" if server.parts.scheme == "https" else "ws"
        url = f"{scheme}://{server.parts.netloc}{path}"
        try:
            timeout_s = server.settings.timeout_s
            opening = connect(url, additional_headers=server.headers, open_timeout=timeout_s)
            self._socket = self._closing.enter_context(opening)
        except (*_FAULTS, WebSocketException) as error:
            raise _unreachable(server.url, error) from None

    def receive(self) -> bytes | str:
        try:
            return self._socket.recv(self._server.settings.timeout_s)
        except (OSError, self._error) as error:
            raise _unreachable(self._server.url, error) from None

    def close(self) -> None:
        self._closing.close()
