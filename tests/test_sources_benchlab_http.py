"""BENCHLAB over HTTP: pytools' own server on an emulated device, LinuxSupportKit as its API is written."""

import base64
import contextlib
import hashlib
import itertools
import json
import logging
import math
import re
import socket
import ssl
import subprocess
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchlab_otel import sources, wire
from benchlab_otel.config import BenchlabHttp, Rapl, Sources
from benchlab_otel.simulate.device import Board, Emulator
from benchlab_otel.simulate.truth import Load, Truth
from benchlab_otel.sources import benchlab_http, benchlab_json
from benchlab_otel.sources.reading import SourceError
from benchlab_otel.timebase import anchor
from conftest import need, wait_for
from machines import unpack
from pytools import pytools
from receiving import Receiver, read_one
from test_cli_sources import run

TRUTH = Truth(Load(base={"EPS1": 50.0, "PCIE1": 44.0, "HPWR1": 120.0, "ATX12V": 20.0}))
KEY = "a secret key"


@contextlib.contextmanager
def exporting(*urls: str, **changes):
    section = BenchlabHttp(urls=urls, **{"rate_hz": 50.0, "timeout_s": 20.0, **changes})
    receiver = Receiver()
    settings = Sources(benchlab_http=section)
    running = sources.start(["benchlab_http"], settings, receiver, "s", flush_s=0.02, metrics_s=0.02)
    try:
        yield running, receiver
    finally:
        running.stop()


# -- pytools ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def served():
    """(emulator, URL of pytools' server that reads it)."""
    board = Board(temperatures=[31.0, None, 45.5, None, 88.0], fans=[1200], external_duty=0.3)
    # firmware that sends no welcome unasked: pytools takes it for the UID
    with Emulator(TRUTH, "benchlab2", 4, board=board) as emulator, socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        fd = listening.fileno()
        with pytools(str(fd), emulator.path, fds=(fd,)):
            yield emulator, f"http://127.0.0.1:{listening.getsockname()[1]}"


@pytest.mark.parametrize("stream", [True, False])
def test_what_pytools_serves_is_exported_and_labelled(served, stream):
    emulator, url = served
    with exporting(url, stream=stream) as (_, receiver):
        wait_for(lambda: len(receiver.samples()) >= 3 and receiver.values("hw.host.power"))
    uid = emulator.uid.hex().upper()
    assert len({s.start_time_unix_nano for s, _ in receiver.samples()}) == len(receiver.samples())
    for span, values in receiver.samples():
        assert values["hw.id"] == f"benchlab-{uid}-http"
        assert values["benchlab.transport"] == "http"
        assert values["hw.power.system"] == pytest.approx(234.0)
        assert values["hw.power.rail.HPWR1_W1"] == pytest.approx(20.0)
        assert values["hw.temperature.HPWR1_IN"] == pytest.approx(88.0)
        assert "hw.temperature.TS2" not in values
        assert values["hw.fan.speed.1"] == 1200.0
        assert "hw.fan.speed.2" not in values  # it is off
        assert values["hw.fan.speed_ratio.external"] == pytest.approx(0.3)
        assert span.start_time_unix_nano < span.end_time_unix_nano
    resource = receiver.spans[-1][0]
    assert resource["benchlab.transport"] == "http"
    assert resource["benchlab.simulated"] is True
    assert receiver.values("hw.host.power", {"hw.id": f"benchlab-{uid}-http"})[0] == pytest.approx(234.0)


def test_the_zeros_of_a_device_that_pytools_lost_are_no_readings(served):
    emulator, url = served
    uid = emulator.uid.hex().upper()
    with exporting(f"{url}/device/{uid}", stream=False) as (running, receiver):
        wait_for(lambda: receiver.samples())
        emulator.unplug()
        try:
            wait_for(lambda: running.health()[0].failures["lost"])
            assert "not connected" in running.health()[0].message
        finally:
            emulator.replug()
        before = len(receiver.samples())
        wait_for(lambda: len(receiver.samples()) > before)
    assert {round(values["hw.power.system"]) for _, values in receiver.samples()} == {234}


@pytest.mark.parametrize("stream", ["true", "false"])
def test_a_server_that_has_readings_seldom_is_no_fault(served, stream):
    own = {"URLS": served[1], "STREAM": stream, "RATE_HZ": "50", "TIMEOUT_S": "30"}
    variables = {f"BENCHLAB_OTEL_SOURCES__BENCHLAB_HTTP__{name}": value for name, value in own.items()}
    done = run("doctor", "benchlab_http", **variables)
    assert done.returncode == 0, done.stdout
    assert re.search(r"readable; \d+ readings/s come, 50 are set", done.stdout)
    assert "fix" not in done.stdout


def test_a_uid_that_is_none_is_told_as_such(served):
    """pytools answers with an invented device."""
    with pytest.raises(SourceError, match="no such device there") as error:
        benchlab_http.open_reader(BenchlabHttp(timeout_s=20.0), f"{served[1]}/device/ABC")
    assert error.value.reason == "absent"


# -- pytools, as its API is written -------------------------------------------------------------

UID = "0102030405060708090A0B0C"
START_NS = anchor().now_ns()


def coded(made_ns: int) -> float:
    """Watts that say when a reading was made."""
    return 1.0 + (made_ns - START_NS) / 1e9


def published(made_ns: int) -> bytes:
    """A reading as `translate_sensor_struct` makes it."""
    return json.dumps({"SYS_Power": 234.0, "CPU_Power": coded(made_ns), "Vdd": 3.3}).encode()


def check_times(reader, key: str) -> int:
    """Reads once; how many readings came, each of which was made within its interval."""
    count = 0
    for batch in reader.decode([reader.read()]):
        column = [field.key for field in batch.fields].index(key)
        for start, end, watts in zip(batch.start_ns, batch.end_ns, batch.values[:, column], strict=True):
            assert start - 1000 <= START_NS + (watts - 1.0) * 1e9 <= end + 1000  # as the code is no finer
            count += 1
    return count


class Pytools(BaseHTTPRequestHandler):
    """The part of pytools' server that a client needs; `latest` is its cache. It never ends a WebSocket."""

    protocol_version = "HTTP/1.1"
    latest = published(START_NS)
    listed: list = [{"uid": UID, "port": "x", "connected": True}]

    def do_GET(self) -> None:
        if self.path.endswith("/stream"):
            return self.stream()
        information = {"ProductId": 16, "FwVersion": 6, "UID": UID}
        answers = {"/devices": self.listed, f"/device/{UID}/info": information}
        if self.path == f"/device/{UID}/telemetry":
            return self.answer(self.latest)
        return self.answer(json.dumps(answers[self.path]).encode())

    def answer(self, text: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def stream(self) -> None:
        accepted = self.headers["Sec-WebSocket-Key"].encode() + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
        self.send_response(101)
        self.send_header("Upgrade", "websocket")
        self.send_header("Connection", "Upgrade")
        digest = hashlib.sha1(accepted).digest()  # RFC 6455, 4.2.2
        self.send_header("Sec-WebSocket-Accept", base64.b64encode(digest).decode())
        self.end_headers()
        while True:
            text = published(anchor().now_ns() - 50_000_000)
            self.wfile.write(b"\x81\x7e" + len(text).to_bytes(2, "big") + text)
            time.sleep(0.1)

    def log_message(self, *_) -> None:
        pass


@contextlib.contextmanager
def serving(handler, context: ssl.SSLContext | None = None):
    """The host and port of a server with these answers."""
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        server.block_on_close = False
        server.handle_error = lambda *_: None  # a client that goes is no error
        if context:
            server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()


@contextlib.contextmanager
def reading(handler, **changes):
    """A reader of a server with these answers."""
    settings = BenchlabHttp(**{"stream": False, "timeout_s": 20.0, **changes})
    with (
        serving(handler) as place,
        contextlib.closing(benchlab_http.open_reader(settings, f"http://{place}")) as reader,
    ):
        yield reader


def test_a_polled_reading_was_made_within_its_interval_and_one_of_unknown_age_is_none():
    handler = type("Handler", (Pytools,), {})
    with reading(handler) as reader:
        assert check_times(reader, "hw.power.cpu") == 0  # it was there before
        assert check_times(reader, "hw.power.cpu") == 0
        for _ in range(3):
            handler.latest = published(anchor().now_ns() - 50_000_000)  # which pytools' own reading takes
            assert check_times(reader, "hw.power.cpu") == 1
            assert check_times(reader, "hw.power.cpu") == 0


def test_a_websockets_reading_was_made_within_its_interval():
    with reading(Pytools, stream=True) as reader:
        assert sum(check_times(reader, "hw.power.cpu") for _ in range(3)) == 3


def test_a_server_that_repeats_one_reading_for_ever_has_none():
    with (
        serving(Pytools) as place,
        exporting(f"http://{place}", stream=False, timeout_s=0.3) as (running, receiver),
    ):
        wait_for(lambda: running.health()[0].failures["late"] >= 3)
        assert not running.health()[0].ok
    assert not receiver.samples()


def test_a_proxy_of_the_environment_is_not_used(monkeypatch):
    for name in ("http_proxy", "https_proxy", "socks_proxy"):
        monkeypatch.setenv(name, f"{name.removesuffix('s_proxy').removesuffix('_proxy')}://127.0.0.1:1")
    with reading(Pytools, stream=True) as reader:
        assert check_times(reader, "hw.power.cpu") == 1


def test_a_websocket_that_the_server_does_not_end_holds_up_nothing_and_no_log_has_the_key(key_file, caplog):
    caplog.set_level(logging.DEBUG)
    with serving(Pytools) as place:
        with exporting(f"http://{place}", key_file=key_file) as (_, receiver):
            wait_for(receiver.samples)
        assert "left behind" not in caplog.text
    assert KEY not in caplog.text


@pytest.mark.parametrize("listed", [[{"isBenchlab": True}], []])
def test_a_list_without_a_device_is_told(listed):
    with (
        pytest.raises(SourceError, match="expected one device, found: none"),
        reading(type("Handler", (Pytools,), {"listed": listed})),
    ):
        pass


@pytest.mark.parametrize(
    "path",
    ["/bench2", f"/device/{UID}/telemetry", f"/bench2/device/{UID}", "/device", "/?device=ttyACM3", "/#x"],
)
def test_a_url_that_names_something_else_reads_no_other_device(path):
    with serving(Pytools) as place, pytest.raises(SourceError, match="expected http://HOST:PORT, alone or"):
        benchlab_http.open_reader(BenchlabHttp(timeout_s=20.0), f"http://{place}{path}")


def test_a_query_is_shown_nowhere():
    assert benchlab_http.addresses(BenchlabHttp(urls=("http://h/?key=hunter2",))) == ["http://h/?…"]


class EndsIdle(Pytools):
    """As uvicorn, which ends a connection that was idle for 5 s."""

    def answer(self, text: bytes) -> None:
        super().answer(text)
        self.close_connection = True


def test_a_connection_that_the_server_ended_while_it_was_idle_is_opened_again():
    handler = type("Handler", (EndsIdle,), {})
    with reading(handler) as reader:
        check_times(reader, "hw.power.cpu")
        for _ in range(3):
            handler.latest = published(anchor().now_ns())
            assert check_times(reader, "hw.power.cpu") == 1


class TooLong(Pytools):
    def answer(self, text: bytes) -> None:
        super().answer(b"[" + b"0," * (1 << 21) + b"0]")


class SlowHead(Pytools):
    def do_GET(self) -> None:
        for byte in b"HTTP/1.1 200 OK\r\n" * 2:
            self.wfile.write(bytes([byte]))
            time.sleep(0.1)
        self.close_connection = True


class SlowBody(Pytools):
    def answer(self, text: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "1000")
        self.end_headers()
        for _ in range(30):
            self.wfile.write(b" ")
            time.sleep(0.1)
        self.close_connection = True


@pytest.mark.parametrize(
    ("handler", "timeout_s", "reason", "said"),
    [
        (TooLong, 20.0, "garbled", "an answer of more than"),
        (SlowHead, 0.5, "late", "timed out"),
        (SlowBody, 0.5, "late", "timed out"),
    ],
)
def test_an_answer_has_to_end(handler, timeout_s, reason, said):
    with pytest.raises(SourceError, match=said) as error, reading(handler, timeout_s=timeout_s):
        pass
    assert error.value.reason == reason


def test_a_certificate_that_is_not_trusted_is_told_with_what_helps(tmp_path):
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    command = [need("openssl"), "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
    files = ["-nodes", "-subj", "/CN=localhost", "-keyout", key, "-out", certificate]
    subprocess.run([*command, *files], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    with serving(Pytools, context) as place, pytest.raises(SourceError, match="CERTIFICATE") as error:
        benchlab_http.open_reader(BenchlabHttp(timeout_s=20.0), f"https://{place}")
    assert "SSL_CERT_FILE" in error.value.fix


# -- LinuxSupportKit ----------------------------------------------------------------------------


def kit_reading(streamed: bool, **changes) -> dict:
    """A reading as Program.cs of LinuxSupportKit makes it (its API is a paper specification)."""
    volts = wire.NOMINAL_VOLTS.values()
    power = [(v, 1.0 + n, 12.0 + 12.0 * n) for n, v in enumerate(volts)]
    fans = [{"channel": n, "enabled": n == 0, "duty": 40, "rpm": 900} for n in range(9)]
    reading = {"device": "/dev/ttyACM0", "timestamp": f"{time.time()}", "humidity": 41.5, "fans": fans}
    if streamed:
        reading |= {"voltages": [1000] * 13, "chipTemp": 40.0, "ambientTemp": 23.0}
        reading["power"] = [{"v": v, "a": a, "w": w} for v, a, w in power]
    else:
        reading["voltages"] = [{"channel": n, "millivolts": 1000, "volts": 1.0} for n in range(13)]
        reading["temperatures"] = {"chip": 40.0, "ambient": 23.0, "sensors": [30.0, 31.0, 32.0, 33.0]}
        named = [{"channel": n, "voltage": v, "current": a, "power": w} for n, (v, a, w) in enumerate(power)]
        reading["power"] = named
    return reading | changes


class Kit(BaseHTTPRequestHandler):
    """The part of LinuxSupportKit's service that a client needs, with a bearer key."""

    change: dict = {}
    every_s = 0.02  # of the stream
    slow_s = 0.0  # a reading that is asked for

    def do_GET(self) -> None:
        if self.headers.get("Authorization") != f"Bearer {KEY}":
            return self.answer(401, {"error": "Unauthorized"})
        answers = {
            "/devices": [
                {"device": "/dev/ttyACM0", "isBenchlab": True},
                {"device": "x", "isBenchlab": False},
            ],
            "/devices/ttyACM0/info": {"name": "Lab", "productId": "0x10", "firmwareVersion": 6},
            "/devices/ttyACM0/uid": {"uid": "0102030405060708090A0B0C"},
            "/devices/ttyACM0/sensors": kit_reading(streamed=False, **self.change),
        }
        if self.path == "/stream?device=ttyACM0":
            return self.stream()
        if self.path.endswith("/sensors"):
            time.sleep(self.slow_s)
        return self.answer(200 if self.path in answers else 404, answers.get(self.path, {"error": "none"}))

    def answer(self, status: int, body) -> None:
        text = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def stream(self) -> None:
        self.send_response(200)
        self.end_headers()
        with contextlib.suppress(OSError):
            for _ in range(200):
                self.wfile.write(json.dumps(kit_reading(streamed=True, **self.change)).encode() + b"\n")
                time.sleep(self.every_s)

    def log_message(self, *_) -> None:
        pass


@contextlib.contextmanager
def kit(every_s: float = Kit.every_s, slow_s: float = Kit.slow_s, **change):
    handler = type("Kit", (Kit,), {"change": change, "every_s": every_s, "slow_s": slow_s})
    with serving(handler) as place:
        yield f"http://{place}"


@pytest.fixture
def key_file(tmp_path):
    path = tmp_path / "key"
    path.write_text(KEY + "\n")
    return str(path)


@pytest.mark.parametrize("stream", [True, False])
def test_what_linux_support_kit_serves_is_exported(stream, key_file, golden):
    with kit() as url, exporting(url, stream=stream, key_file=key_file) as (_, receiver):
        wait_for(lambda: len(receiver.samples()) >= 3 and receiver.values("hw.host.power"))
    golden(f"benchlab-http-{'stream' if stream else 'poll'}.json", receiver.outline())
    resource, _, values = receiver.spans[0]
    assert values["hw.id"] == "benchlab-0102030405060708090A0B0C-http"
    assert values["hw.power.rail.EPS2"] == 24.0
    assert values["hw.power.cpu"] == 36.0
    assert values["hw.power.system"] == sum(12.0 + 12.0 * n for n in range(11))
    assert values["hw.voltage.VIN3"] == 1.0
    assert values["hw.humidity.ambient"] == pytest.approx(0.415)
    assert ("hw.temperature.TS4" in values) is not stream  # its stream leaves them out
    assert "hw.fan.speed.2" not in values
    assert "benchlab.simulated" not in resource


@pytest.mark.parametrize("absent", [327.67, 3276.7])
def test_an_input_without_a_probe_is_absent_and_the_rest_is_read(absent, key_file):
    degrees = {"chip": 40.0, "ambient": 23.0, "sensors": [30.0, absent, 32.0, absent]}
    settings = BenchlabHttp(key_file=key_file, stream=False, timeout_s=20.0)
    with (
        kit(temperatures=degrees) as url,
        contextlib.closing(benchlab_http.open_reader(settings, url)) as reader,
    ):
        values = read_one(reader)
    found = [values[f"hw.temperature.TS{n}"] for n in range(1, 5)]
    assert found == pytest.approx([30.0, math.nan, 32.0, math.nan], nan_ok=True)
    assert values["hw.power.cpu"] == 36.0


def test_a_server_is_read_in_a_thread_of_its_own_as_it_may_keep_others_waiting(key_file, tmp_path):
    tree = unpack("thinkpad-x1-i7-8550u", tmp_path / "sys")
    with kit(slow_s=0.0) as url:
        http = BenchlabHttp(urls=(url,), stream=False, key_file=key_file, rate_hz=20.0)
        settings = Sources(benchlab_http=http, rapl=Rapl(rate_hz=20.0, sysfs=tree))
        running = sources.start(["benchlab_http", "rapl"], settings, Receiver(), "s", flush_s=0.02)
        wait_for(lambda: all(health.readings >= 30 for health in running.health()))
        names = [thread.name for thread in threading.enumerate()]
        running.stop()
    assert "benchlab-otel-benchlab_http" in names
    assert "benchlab-otel-rota" not in names


def test_what_is_streamed_faster_than_it_is_read_does_not_pile_up(key_file):
    settings = BenchlabHttp(key_file=key_file, timeout_s=20.0)
    replies = []

    def read_to_the_end(reader) -> None:
        while True:
            time.sleep(0.05)
            replies.append(reader.read())

    with (
        kit(every_s=0.0) as url,
        contextlib.closing(benchlab_http.open_reader(settings, url)) as reader,
        pytest.raises(SourceError, match="the stream ended"),
    ):
        read_to_the_end(reader)
    assert 0 < len(replies) < 100  # of 200
    times = [(start, end) for start, end, _ in replies]
    assert all(a <= b for a, b in itertools.pairwise(times))
    assert all(start < end for start, end in times)


def coded_line() -> bytes:
    """A line of the stream whose first rail says when it was made: now."""
    data = kit_reading(streamed=True)
    data["power"][0]["w"] = coded(anchor().now_ns())
    return json.dumps(data).encode() + b"\n"


class HeldUp(Kit):
    """Its readings come late: the first before the headers, then two at once after a stall."""

    def stream(self) -> None:
        first = coded_line()
        time.sleep(0.02)  # it takes a while to read the device
        self.send_response(200)
        self.end_headers()
        self.wfile.write(first)
        time.sleep(0.2)
        second, third = coded_line(), coded_line()
        time.sleep(0.02)
        self.wfile.write(second + third)
        time.sleep(0.2)  # until both have been read
        self.wfile.write(coded_line())


def test_a_streamed_reading_was_made_within_its_interval_also_in_a_burst(key_file):
    with reading(HeldUp, stream=True, key_file=key_file) as reader:
        assert check_times(reader, "hw.power.rail.EPS1") == 1
        time.sleep(0.3)  # until the burst is there: its last is the newest
        assert check_times(reader, "hw.power.rail.EPS1") == 1
        assert check_times(reader, "hw.power.rail.EPS1") == 1


@pytest.mark.parametrize(
    ("change", "reason", "said"),
    [
        ({"error": "Timeout"}, "lost", "the server says: Timeout"),
        ({"power": [{"voltage": 612.0, "current": 1, "power": 1}] * 11}, "implausible", "outside -0.5 to 24"),
        ({"power": [{"voltage": 12.0, "current": 1, "power": 12}] * 11}, "implausible", "ATX3V is 12"),
        ({"power": [{"voltage": 12.0, "current": 1, "power": 900}] * 11}, "implausible", "hw.power.system"),
        ({"power": "none"}, "garbled", "not a reading"),
        ({"humidity": "wet"}, "garbled", "humidity: expected a number"),
    ],
)
def test_what_can_not_be_is_not_exported(change, reason, said, key_file):
    with kit(**change) as url, exporting(url, stream=False, key_file=key_file) as (running, receiver):
        wait_for(lambda: running.health()[0].failures[reason])
        assert said in running.health()[0].message
    assert not receiver.samples()


def test_a_key_is_asked_for_and_never_shown(key_file, caplog):
    with kit() as url:
        with pytest.raises(SourceError, match="wants a key") as error:
            benchlab_http.open_reader(BenchlabHttp(), url)
        assert error.value.reason == "unreadable"
        with pytest.raises(SourceError, match="key_file: /nowhere"):
            benchlab_http.open_reader(BenchlabHttp(key_file="/nowhere"), url)
        with exporting(f"{url}/devices/ttyACM7", key_file=key_file) as (running, _):
            wait_for(lambda: running.health()[0].failures)
            assert "404" in running.health()[0].message
            assert KEY not in running.health()[0].message
    assert KEY not in caplog.text


NO_URLS = ["nowhere", "http://127.0.0.1:99999", "http://127.0.0.1:eighty", "http://[::1", "http://a b"]
NO_SERVERS = ["http://127.0.0.1:1", f"http://{'a' * 70}.invalid", "http://127.0.0.1:1/devices/ttyACM0"]


@pytest.mark.parametrize("url", ["", *NO_URLS, *NO_SERVERS])
def test_no_server_says_what_to_do(url):
    with pytest.raises(SourceError) as error:
        benchlab_http.open_reader(BenchlabHttp(timeout_s=1.0), url)
    assert error.value.fix


@pytest.mark.parametrize("key", ["schlüssel ☃", "two\nlines"])
def test_a_key_that_can_not_be_sent_is_refused_without_showing_it(key, tmp_path):
    file = tmp_path / "key"
    file.write_text(key)
    with pytest.raises(SourceError, match=r"key_file: .*: expected one line of ASCII") as error:
        benchlab_http.open_reader(BenchlabHttp(key_file=str(file)), "http://127.0.0.1:1")
    assert error.value.reason == "unreadable"
    assert key not in str(error.value)


def test_a_password_in_a_url_is_shown_nowhere(caplog):
    with exporting("http://lab:hunter2@127.0.0.1:1/devices/ttyACM0") as (running, receiver):
        wait_for(lambda: running.health()[0].failures["unreadable"])
        (health,) = running.health()
    assert "key_file" in health.fix
    told = [*(str(labels) for *_, labels, _ in receiver.points), str(health), caplog.text]
    assert "…@127.0.0.1" in " ".join(told)
    assert "hunter2" not in " ".join(told)


def test_a_rate_below_one_reading_a_second_is_told_as_one_that_can_be_set(key_file):
    with kit(slow_s=2.2) as url:
        own = {"URLS": url, "KEY_FILE": key_file, "STREAM": "false", "TIMEOUT_S": "30"}
        variables = {f"BENCHLAB_OTEL_SOURCES__BENCHLAB_HTTP__{name}": value for name, value in own.items()}
        done = run("doctor", "benchlab_http", **variables)
    assert done.returncode == 1
    assert re.search(r"fix: set sources.benchlab_http.rate_hz to at most 0\.[1-9]", done.stdout)


# -- values -------------------------------------------------------------------------------------

JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
)


@given(JSON, st.sampled_from([benchlab_json.from_kit, benchlab_json.from_pytools]))
def test_any_json_is_a_reading_or_a_clear_refusal(data, values):
    with pytest.raises(SourceError):
        benchlab_json.row([], values(data))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[" * 100_000, "not JSON"),
        (f'{{"SYS_Power": 5, "EPS1_Current": {"9" * 400}}}', "hw.current.rail.EPS1 is inf"),
        ('{"SYS_Power": 5, "EPS1_Current": -1e308}', "hw.current.rail.EPS1 is -1e[+]308"),
        ('{"SYS_Power": 5, "Fan1_RPM": -7, "Fan1_Status": 1}', "hw.fan.speed.1 is -7"),
        ('{"SYS_Power": 5, "Fan1_RPM": 7, "Fan1_Status": 3}', "hw.fan.enabled.1 is 3"),
    ],
)
def test_numbers_that_can_not_be_and_text_that_is_too_deep_are_refused(text, said):
    fields = benchlab_json.fields_of(wire.layout(0x11, 7), "x")
    with pytest.raises(SourceError, match=said):
        benchlab_json.row(fields, benchlab_json.from_pytools(benchlab_json.parse("x", text)))


def test_a_welcome_is_no_uid():
    with pytest.raises(SourceError, match="welcome"):
        benchlab_json.uid_of(b"BENCHLAB 2\0\0".hex())


def test_zeros_everywhere_are_no_reading():
    fields = benchlab_json.fields_of(wire.layout(0x10, 6), "x")
    zeros = {field.key: 0.0 for field in fields}
    with pytest.raises(SourceError, match="not connected"):
        benchlab_json.row(fields, zeros)
    with pytest.raises(SourceError, match="0 V"):
        benchlab_json.row(fields, zeros | {"hw.fan.speed.1": 900.0})
