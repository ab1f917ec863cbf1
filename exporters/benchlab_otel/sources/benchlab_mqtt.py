"""BENCHLABs that pytools publishes by MQTT: `benchlab/UID/telemetry`, and a retained `benchlab/UID/info`.

The times of readings are as well known as those of a stream by HTTP (see benchlab_http).
"""

from __future__ import annotations

import queue
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchlab_otel import wire
from benchlab_otel.config import BenchlabMqtt
from benchlab_otel.sources.benchlab_json import METRICS as METRICS
from benchlab_otel.sources.benchlab_json import (
    JsonReader,
    Pushed,
    device_of,
    fix_of,
    from_pytools,
    parse,
    uid_of,
)
from benchlab_otel.sources.reading import Reply, SourceError

if TYPE_CHECKING:
    from paho.mqtt.client import Client, MQTTMessage

OVER_NETWORK = True
_NOT_SET = "set sources.benchlab_mqtt.broker to HOST:PORT"
_ACCOUNT = "set sources.benchlab_mqtt.username and .password_file"
_WRONG_ACCOUNT = (134, 135)  # MQTT 5.0, 2.4: bad user name or password, not authorized
_NO_PAHO = "pip install 'benchlab-otel[mqtt]'"
_NO_DEVICE = "start pytools' MQTT publisher, or name a device in sources.benchlab_mqtt.uids"


def addresses(settings: BenchlabMqtt) -> list[str]:
    """The configured UIDs; "" stands for the only device that publishes."""
    return list(settings.uids) or [""]


def open_reader(settings: BenchlabMqtt, address: str) -> JsonReader:
    """Subscribes, and waits until a device has told who it is."""
    if not settings.broker:
        raise SourceError("absent", "no broker is set", _NOT_SET)
    topics = _Topics(settings, address or "+")
    try:
        name, info = topics.first_device()
        uid = uid_of(name)
        layout = wire.layout(info["ProductId"], info["FwVersion"])
    except (KeyError, TypeError, ValueError) as error:
        topics.close()
        raise SourceError("garbled", f"{settings.broker}: not a device's information: {error!r}") from None
    except LookupError as error:
        topics.close()
        raise SourceError("unknown", f"{settings.broker}: {error}") from None
    except SourceError:
        topics.close()
        raise
    device = device_of("mqtt", uid, layout, simulated=False)
    return JsonReader(device, layout, from_pytools, topics, settings.timeout_s)


class _Topics:
    """What a broker passes on: who publishes, then the readings of the one that was found."""

    paced = True

    def __init__(self, settings: BenchlabMqtt, uid: str) -> None:
        self._broker, self._timeout = settings.broker, settings.timeout_s
        self._infos: queue.Queue[MQTTMessage | SourceError] = queue.Queue(maxsize=1000)
        self._pushed = Pushed(settings.broker, settings.timeout_s)
        self._topic = ""  # of the readings
        self._filters = [(f"{settings.prefix}/{uid}/{kind}", 0) for kind in ("info", "telemetry")]
        self._client = self._connected(settings)

    def first_device(self) -> tuple[str, Mapping[str, Any]]:
        """(UID, info) of the only device; SourceError where there are none or several."""
        found: dict[str, Mapping[str, Any]] = {}
        deadline = time.monotonic() + self._timeout
        while (left := deadline - time.monotonic()) > 0:
            message = self._next_info(min(left, 0.2 if found else left))
            if message:
                found[message.topic.split("/")[-2]] = parse(message.topic, bytes(message.payload))
            elif found:
                break  # retained messages come at once
        if len(found) != 1:
            names = ", ".join(sorted(found)) or "none"
            raise SourceError("absent", f"{self._broker}: expected one device, found: {names}", _NO_DEVICE)
        ((name, info),) = found.items()
        self._topic = self._filters[1][0].replace("/+/", f"/{name}/")
        return name, info

    def next(self) -> Reply:
        return self._pushed.next()

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()

    def _next_info(self, timeout: float) -> MQTTMessage | None:
        try:
            found = self._infos.get(timeout=timeout)
        except queue.Empty:
            return None
        if isinstance(found, SourceError):
            raise found
        return found

    def _connected(self, settings: BenchlabMqtt) -> Client:
        try:
            from paho.mqtt.client import Client
            from paho.mqtt.enums import CallbackAPIVersion
        except ImportError:
            raise SourceError("unreadable", "the paho-mqtt package is not installed", _NO_PAHO) from None
        client = Client(CallbackAPIVersion.VERSION2, reconnect_on_failure=False)
        client.on_connect = self._on_connect
        client.on_disconnect = self._on_disconnect
        client.on_message = lambda _client, _data, message: self._take(message)
        if settings.username:
            client.username_pw_set(settings.username, _password(settings.password_file))
        if settings.tls:
            client.tls_set()
        try:
            client.connect(*_host_port(settings.broker))
        except (OSError, ValueError) as error:  # ValueError: a host that can't be a name
            fix = fix_of(error, "start the broker", _NOT_SET)
            raise SourceError("lost", f"{self._broker}: {error}", fix) from None
        client.loop_start()
        return client

    def _on_connect(self, client: Client, _data: Any, _flags: Any, code: Any, _properties: Any) -> None:
        if code.is_failure:
            fix = _ACCOUNT if code.value in _WRONG_ACCOUNT else ""
            self._fail(SourceError("unreadable", f"{self._broker}: {code}", fix))
        else:
            client.subscribe(self._filters)

    def _on_disconnect(self, _client: Client, _data: Any, _flags: Any, code: Any, _properties: Any) -> None:
        self._fail(SourceError("lost", f"{self._broker}: {code}"))

    def _take(self, message: MQTTMessage) -> None:
        """Readings of the one device only: others may begin to publish. A retained one is old."""
        if message.topic.endswith("/info"):
            with suppress(queue.Full):
                self._infos.put_nowait(message)
        elif message.topic == self._topic and not message.retain:
            self._pushed.put(bytes(message.payload))

    def _fail(self, error: SourceError) -> None:
        with suppress(queue.Full):
            self._infos.put_nowait(error)
        self._pushed.fail(error)


def _host_port(broker: str) -> tuple[str, int]:
    """Errors don't repeat a user and password, which have settings of their own."""
    host, _, port = broker.rpartition(":")
    if "@" in broker:
        raise SourceError("absent", "sources.benchlab_mqtt.broker: expected HOST:PORT, no user", _ACCOUNT)
    if not host or not port.isdecimal() or not 0 < int(port) < 1 << 16:
        raise SourceError("absent", f"{broker}: expected HOST:PORT", _NOT_SET)
    return host.strip("[]"), int(port)  # the brackets are those of an IPv6 address


def _password(file: str) -> str | None:
    if not file:
        return None
    try:
        return Path(file).expanduser().read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise SourceError("unreadable", f"sources.benchlab_mqtt.password_file: {file}: {error}") from None
