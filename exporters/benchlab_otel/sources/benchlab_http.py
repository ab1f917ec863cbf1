"""BENCHLABs that another program reads and serves by HTTP: LinuxSupportKit, and pytools' FastAPI.

A URL names a server with one device, or a device: `…/devices/ttyACM0` is LinuxSupportKit's way,
`…/device/UID` that of pytools. Streamed (NDJSON, WebSocket) or polled; no proxy is used.

Neither server tells when a reading was made. A sample's interval holds that moment, as follows:

- LinuxSupportKit, polled: it reads the device for a request, so from request to answer.

- pytools, polled: it answers with its latest reading. One that was not there at the request before was
  published after it, and was made shortly before that (pytools asks the device, and waits 50 ms; twice
  that is allowed for): so from 0.1 s before that request to the answer with it. One that was there at the
  first request has no known time and is no sample. Polled faster than pytools reads, this is narrower than
  what is streamed.

- Streamed, and by MQTT: from when the one before came to when it came itself; the first from 0.1 s before
  it was asked for. One that follows sooner than in half the usual time shows that the one before was held
  up on its way (a burst after a stall): it begins where that one does. What is later by the same time always
  can't be told from what is not late: that time must be shorter than the server's pause between readings.
"""

from __future__ import annotations

import logging
import re
import socket
from collections.abc import Callable
from contextlib import ExitStack, suppress
from threading import Thread
from typing import Any, Protocol

from benchlab_otel import wire
from benchlab_otel.config import BenchlabHttp
from benchlab_otel.sources.benchlab_json import METRICS as METRICS
from benchlab_otel.sources.benchlab_json import (
    NOT_KNOWN,
    READ_NS,
    Feed,
    JsonReader,
    Pushed,
    device_of,
    from_kit,
    from_pytools,
    uid_of,
)
from benchlab_otel.sources.benchlab_server import FAULTS, MOST_BYTES, NONE_SET, ONE_OF_URLS, Server
from benchlab_otel.sources.reading import Reply, SourceError
from benchlab_otel.timebase import anchor

OVER_NETWORK = True
_NO_WEBSOCKETS = "pip install 'benchlab-otel[websocket]'\nor set sources.benchlab_http.stream = false"
_CLOSE_S = 1.0  # a server has to answer the end of a WebSocket
_SILENT = logging.Logger("websockets", logging.CRITICAL + 1)  # it would log the key; its errors are raised


def addresses(settings: BenchlabHttp) -> list[str]:
    """The configured URLs; "" where there are none. They are shown, and so without what may be a secret."""
    return [re.sub(r"[?#].+", "?…", re.sub(r"//[^/]*@", "//…@", url)) for url in settings.urls] or [""]


def open_reader(settings: BenchlabHttp, address: str) -> JsonReader:
    """Finds out whose API it is, and that a device is there."""
    if not address:
        raise SourceError("absent", "no server is set", NONE_SET)
    server = Server(settings, address)
    kind, name = server.device()
    info = server.get(f"/devices/{name}/info" if kind == "kit" else f"/device/{name}/info")
    layout, uid = _identity(server, kind, name, info)
    simulated = str(info.get("name", "")).startswith(wire.SIMULATED_NAME)
    device = device_of("http", uid, layout, simulated)
    values = from_kit if kind == "kit" else from_pytools
    return JsonReader(device, layout, values, _feed(server, kind, name), settings.timeout_s)


def _identity(server: Server, kind: str, name: str, info: Any) -> tuple[wire.Layout, str]:
    """(layout, UID) of what a server says it has."""
    try:
        product = int(info["productId"], 16) if kind == "kit" else info["ProductId"]
        if product == 0:  # as pytools answers for any UID
            raise SourceError("absent", f"{server.url}: no such device there", ONE_OF_URLS)
        layout = wire.layout(product, info["firmwareVersion"] if kind == "kit" else info["FwVersion"])
        return layout, uid_of(server.get(f"/devices/{name}/uid")["uid"] if kind == "kit" else name)
    except (KeyError, TypeError, ValueError) as error:
        raise SourceError("garbled", f"{server.url}: not a device's information: {error!r}") from None
    except LookupError as error:
        raise SourceError("unknown", f"{server.url}: {error}") from None


def _feed(server: Server, kind: str, name: str) -> Feed:
    if kind == "kit":
        if server.settings.stream:
            return _Stream(server, lambda: _Lines(server, f"/stream?device={name}"))
        return _Polls(server, f"/devices/{name}/sensors", fresh=True)
    if server.settings.stream:
        return _Stream(server, lambda: _Socket(server, f"/device/{name}/stream"))
    return _Polls(server, f"/device/{name}/telemetry", fresh=False)


class _Polls:
    """One request a reading, on a connection that is kept; `fresh`: the server reads the device for it."""

    def __init__(self, server: Server, path: str, fresh: bool) -> None:
        self.paced = not fresh
        self._server, self._path = server, path
        self._connection = server.connect()
        self._before = NOT_KNOWN  # when the answer before was asked for

    def next(self) -> Reply:
        with self._server.faults():
            try:
                return self._ask()
            except ConnectionError:
                if self._before == NOT_KNOWN:
                    raise
                self._connection.close()  # the server had ended it, as it was idle; a request opens it again
                return self._ask()

    def _ask(self) -> Reply:
        asked = anchor().now_ns()
        text = self._server.body(self._connection, self._path)
        end, before, self._before = anchor().now_ns(), self._before, asked
        if not self.paced:
            return asked, end, text
        return (before if before == NOT_KNOWN else before - READ_NS), end, text

    def close(self) -> None:
        self._connection.close()


class _Line(Protocol):
    """A connection on which a server sends readings."""

    def receive(self) -> bytes | str:
        """The next one, waited for; SourceError at the end."""

    def close(self) -> None:
        """Ends it, and a `receive` of another thread with it."""


class _Stream:
    """What a server sends on the line that `begin` opens, received by a thread of its own."""

    paced = True

    def __init__(self, server: Server, begin: Callable[[], _Line]) -> None:
        self._pushed = Pushed(server.url, server.settings.timeout_s)
        self._line = begin()
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
        connection = server.connect()
        with server.faults():
            connection.connect()
            self._socket: socket.socket = connection.sock  # which the connection lets go of later
            self._answer = server.request(connection, path)

    def receive(self) -> bytes:
        self._answer.renew()
        with self._server.faults():
            line = self._answer.readline(MOST_BYTES)
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
        try:
            opening = connect(
                f"{'wss' if server.secure else 'ws'}://{server.host}{path}",
                additional_headers=server.headers,
                open_timeout=server.settings.timeout_s,
                close_timeout=_CLOSE_S,
                proxy=None,  # as the other requests use none
                logger=_SILENT,
            )
            self._socket = self._closing.enter_context(opening)
        except (*FAULTS, WebSocketException) as error:
            raise server.unreachable(error) from None

    def receive(self) -> bytes | str:
        try:
            return self._socket.recv(self._server.settings.timeout_s)
        except (OSError, self._error) as error:
            raise self._server.unreachable(error) from None

    def close(self) -> None:
        self._closing.close()
