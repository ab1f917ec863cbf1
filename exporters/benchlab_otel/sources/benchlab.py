"""The BENCHLAB power meter over USB.

The protocol has no framing, no checksum and no error reply, so the reader is strict: one request at
a time in one write, an answer of exactly the right length before a deadline, nothing before and
nothing after it, values that can be. Anything else ends the reading with a SourceError; the runner
opens the port again, and opening drains the line and shakes hands until the answers fit. Values are
judged when answers are decoded, a few at a time: from the first one that can't be, none is kept. As the
device answers in order, no answer to an earlier request can be taken for a later one.
"""

from __future__ import annotations

import errno
import os
import select
import termios
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import serial
from numpy.typing import NDArray
from serial.tools import list_ports

from benchlab_otel import contract, wire
from benchlab_otel.config import Benchlab
from benchlab_otel.contract import Metric
from benchlab_otel.model import Bool, Float, Scalar
from benchlab_otel.sources.reading import Batch, Device, Field, Reply, SourceError, times
from benchlab_otel.timebase import anchor

_QUIET_S = 0.05  # the device pushes its welcome within this time of opening
_NOISY_S = 1.0  # a line that is not quiet by then is no BENCHLAB's
_BY_ID = Path("/dev/serial/by-id")
UDEV_RULE = 'SUBSYSTEM=="tty", ATTRS{idVendor}=="0483", ATTRS{idProduct}=="5740", TAG+="uaccess"'
_NO_PERMISSION = (
    f"echo '{UDEV_RULE}' | sudo tee /etc/udev/rules.d/60-benchlab.rules && sudo udevadm control --reload "
    "&& sudo udevadm trigger (or: sudo usermod -aG dialout $USER, and log in again)"
)
_NOT_FOUND = "plug it in (`lsusb -d 0483:5740` should list it), or set sources.benchlab.ports"

VOLTS = (-0.5, 60.0)  # an open input may read a little below zero
MAX_WATTS = 5000.0
DEGREES = (-60.0, 300.0)


def addresses(settings: Benchlab) -> list[str]:
    """The configured ports, else those of every USB device that may be a BENCHLAB; never none.

    "" stands for the first one that will be plugged in.
    """
    return list(settings.ports) or _usb_ports() or [""]


def _usb_ports() -> list[str]:
    """Ports with the stock ST ids, by their stable names where udev gives them."""
    stable = {link.resolve(): link for link in _BY_ID.glob("*")}
    ports = [Path(p.device) for p in list_ports.comports() if (p.vid, p.pid) == wire.USB_ID]
    return [str(stable.get(port.resolve(), port)) for port in ports]


def open_reader(settings: Benchlab, address: str) -> BenchlabReader:
    """Opens a port for this process alone, and makes sure that a BENCHLAB is on it."""
    path = address or next(iter(_usb_ports()), "")
    if not path:
        raise SourceError("absent", "no BENCHLAB on USB (0483:5740)", _NOT_FOUND)
    return BenchlabReader(settings, path)


class BenchlabReader:
    """One device on one port. Not for two threads."""

    def __init__(self, settings: Benchlab, path: str) -> None:
        self.path = path
        self._clock = anchor()
        self._timeout = settings.timeout_s
        self._port = _open_port(path)
        self._file = self._port.fileno()
        self._readable = select.poll()
        self._readable.register(self._file, select.POLLIN)
        try:
            self._layout, self.device = self._shake_hands(settings)
        except SourceError:
            self.close()
            raise
        self._groups = groups(self._layout)
        self._fields = [field for group in self._groups for field in group.fields(self.device.hw_id)]

    def close(self) -> None:
        """Closes the port, also one whose device is gone."""
        with suppress(OSError, termios.error):
            self._port.close()

    def read(self) -> Reply:
        """All sensors at once; raises SourceError for anything but one whole answer."""
        reply = self._ask(wire.READ_SENSORS, self._layout.sensors.itemsize)
        if wire.GREETING in reply.raw:
            raise SourceError("garbled", f"{self.path}: an unsolicited welcome in the answer")
        return reply

    def decode(self, replies: Sequence[Reply]) -> Iterator[Batch]:
        """The values of all sensors; SourceError at the first answer that is not plausible."""
        start, end = times(replies)
        sensors = np.frombuffer(b"".join(reply.raw for reply in replies), self._layout.sensors)
        n, problem = implausible(sensors, self._layout)
        if n:
            values = np.hstack([group.values(sensors[:n]) for group in self._groups])
            yield Batch(start[:n], end[:n], self._fields, values)
        if problem:
            raise SourceError("implausible", f"{self.path}: {problem}")

    # -- the wire ---------------------------------------------------------------------------

    def _shake_hands(self, settings: Benchlab) -> tuple[wire.Layout, Device]:
        self._drain()
        welcome = self._welcome()
        vendor, product_id, firmware = self._ask(wire.READ_VENDOR_DATA, wire.VENDOR_SIZE).raw
        if vendor != wire.VENDOR_ID:
            raise SourceError("garbled", f"{self.path}: vendor {vendor:#04x}, expected {wire.VENDOR_ID:#04x}")
        try:
            layout = wire.layout(product_id, firmware)
        except LookupError as error:
            fix = "upgrade benchlab-pycore, which brings the vendor's contracts"
            raise SourceError("unknown", f"{self.path}: {error}", fix) from None
        if len(welcome) != layout.welcome_size:
            expected = f"{len(welcome)} B of welcome, expected {layout.welcome_size}"
            raise SourceError("garbled", f"{self.path}: {layout.product} firmware {firmware}: {expected}")
        uid = self._ask(wire.READ_UID, wire.UID_SIZE).raw.hex().upper()
        name = _text(self._ask(wire.READ_NAME, wire.NAME_SIZE).raw)
        device = Device(
            hw_id=f"benchlab-{uid}",
            hw_type="power_meter",
            description=f"{layout.product} firmware {firmware}, named {name or 'nothing'}",
            simulated=settings.simulated or name.startswith(wire.SIMULATED_NAME),
            attributes=_known_of_meter(settings),
        )
        return layout, device

    def _drain(self) -> None:
        """Reads until the line is quiet: the welcome after opening, answers that came late."""
        deadline = time.monotonic() + _NOISY_S
        while self._read(4096, _QUIET_S):
            if time.monotonic() > deadline:
                raise SourceError("garbled", f"{self.path}: sends without being asked; not a BENCHLAB?")

    def _welcome(self) -> bytes:
        """The greeting: 9 bytes of old firmware, 32 of new."""
        short = len(wire.GREETING) + 1
        reply: bytes = self._ask(wire.WELCOME, short, alone=False).raw
        if not reply.startswith(wire.GREETING):
            raise SourceError("garbled", f"{self.path}: answers, but not as a BENCHLAB: {reply!r}")
        return reply + self._read(wire.LONG_WELCOME_SIZE - short, _QUIET_S)

    def _ask(self, opcode: int, size: int, alone: bool = True) -> Reply:
        """The answer to one request; `alone`: nothing may follow it."""
        with self._faults():
            if waiting := self._port.in_waiting:
                raise SourceError("garbled", f"{self.path}: {waiting} B that nobody asked for")
            start = self._clock.now_ns()
            os.write(self._file, bytes([opcode]))
            reply = self._receive(size, size + alone, self._timeout)
            end = self._clock.now_ns()
        if len(reply) < size:
            what = f"{len(reply)} of {size} B" if reply else "no answer"
            limit = f"request {opcode:#04x}: {what} within {self._timeout} s"
            raise SourceError("short" if reply else "late", f"{self.path}: {limit}")
        if len(reply) > size:
            raise SourceError("garbled", f"{self.path}: request {opcode:#04x}: more than {size} B")
        return Reply(start, end, reply)

    def _read(self, size: int, timeout: float) -> bytes:
        with self._faults():
            return self._receive(size, size, timeout)

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

    @contextmanager
    def _faults(self) -> Iterator[None]:
        try:
            yield
        except (OSError, termios.error) as error:  # SerialException is an OSError
            raise SourceError("lost", f"{self.path}: unplugged? {error}") from None


def _known_of_meter(settings: Benchlab) -> dict[str, Scalar]:
    known: dict[str, Scalar] = {}
    if settings.lag_ms is not None:
        known[contract.METER_LAG] = round(settings.lag_ms * 1e6)
    if settings.window_ms is not None:
        known[contract.METER_WINDOW] = round(settings.window_ms * 1e6)
    return known


def _text(raw: bytes) -> str:
    return raw.split(b"\0", 1)[0].decode("utf-8", "replace")


# -- the port ---------------------------------------------------------------------------------


def _open_port(path: str) -> serial.Serial:
    try:
        port = serial.Serial(path, wire.BAUD_RATE, exclusive=True, rtscts=False, dsrdtr=False)
    except (OSError, termios.error) as error:
        raise _cannot_open(path, error) from None
    if holder := holder_of(path):
        port.close()
        raise SourceError("busy", f"{path}: in use by {holder}", "stop it, or read the device there")
    return port


def _cannot_open(path: str, error: Exception) -> SourceError:
    code = error.errno if isinstance(error, OSError) else error.args[0]
    if code in (errno.EAGAIN, errno.EBUSY):
        holder = holder_of(path, own=True) or "another process"
        return SourceError("busy", f"{path}: in use by {holder}", "stop it, or read the device there")
    if code == errno.EACCES:
        return SourceError("unreadable", f"{path}: no permission", _NO_PERMISSION)
    if code in (errno.ENOENT, errno.ENODEV, errno.ENXIO):
        return SourceError("absent", f"{path}: no such port", _NOT_FOUND)
    return SourceError("unknown", f"{path}: can't be opened as a serial port: {error}")


def holder_of(path: str, own: bool = False) -> str:
    """Who has a device open, as "process PID (command)": "" where nobody can be found.

    A process without the lock (another tool) is found too. Other users' processes show only to root.
    """
    target = Path(path).resolve()
    for folder in Path("/proc").glob("[0-9]*"):
        if not own and int(folder.name) == os.getpid():
            continue
        with suppress(OSError):
            if any(link.readlink() == target for link in _links(folder / "fd")):
                command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
                return f"process {folder.name} ({command.strip()[:120]})"
    return ""


def _links(folder: Path) -> Iterator[Path]:
    for link in folder.iterdir():
        with suppress(OSError):  # closed since it was listed
            link.readlink()
            yield link


# -- values -----------------------------------------------------------------------------------


def implausible(sensors: NDArray[np.void], layout: wire.Layout) -> tuple[int, str]:
    """The first of n answers that can't be true and why, (n, "") where all can.

    It is the only defence of a protocol without checksum.
    """
    power = sensors["PowerReadings"]
    volts, watts = power["Voltage"] / 1e3, power["Power"] / 1e3
    total = watts[:, : len(wire.RAILS)].sum(axis=1, keepdims=True)
    temperatures = _temperatures(sensors)
    outside = (temperatures < DEGREES[0]) | (temperatures > DEGREES[1])
    checks: list[tuple[Bool, str]] = [
        ((volts < VOLTS[0]) | (volts > VOLTS[1]), f"a rail outside {VOLTS[0]} to {VOLTS[1]} V"),
        (abs(np.hstack([total, watts])) > MAX_WATTS, f"more than {MAX_WATTS} W"),
        (outside, f"a temperature outside {DEGREES[0]} to {DEGREES[1]} °C"),
        (sensors["Hum"] > 1000, "a humidity above 100 %"),
        (
            (sensors["FanSwitchStatus"] > 2) | (sensors["RGBSwitchStatus"] > 1),
            "a switch position that isn't one",
        ),
        (sensors["RgbExtStatus"] > 1, "an RGB status that isn't one"),
        (
            (sensors["FanExtDuty"] > 100) & (sensors["FanExtDuty"] != wire.NO_EXTERNAL_DUTY),
            "a duty above 100 %",
        ),
        (sensors["Fans"]["Enable"] > 1, "a fan that is neither on nor off"),
        (sensors["Fans"]["Duty"] > 100, "a fan's duty above 100 %"),
    ]
    found = [(int(np.argwhere(wrong)[0, 0]), problem) for wrong, problem in checks if wrong.any()]
    return min(found, default=(len(sensors), ""), key=lambda f: f[0])


@dataclass(frozen=True, slots=True)
class Group:
    """Values of one kind: `values` gives those of n answers (n, len(names)), NaN where absent."""

    prefix: str
    names: Sequence[str]
    metric: Metric
    hw_type: str
    values: Callable[[NDArray[np.void]], Float]

    def fields(self, hw_id: str) -> list[Field]:
        """The fields of the values of a device."""
        return [Field(self.prefix + name, self.metric, self._labels(hw_id, name)) for name in self.names]

    def _labels(self, hw_id: str, name: str) -> dict[str, str]:
        labels = {"hw.id": hw_id, "hw.type": self.hw_type, "hw.sensor_location": name}
        return {key: labels[key] for key in self.metric.labels}


def groups(layout: wire.Layout) -> list[Group]:
    """What a device of a layout measures. Domains are sums of rails, in which wires have no part."""
    rails, fans = layout.rails, [str(n + 1) for n in range(layout.sensors["Fans"].shape[0])]
    inputs = [f"VIN{n}" for n in range(layout.sensors["Vin"].shape[0])]
    parts = {"cpu": "cpu", "gpu": "gpu", "mb": "motherboard"}

    def total(domain: str) -> Callable[[NDArray[np.void]], Float]:
        rows = [wire.RAILS.index(rail) for rail in wire.DOMAINS[domain]]
        return lambda s: s["PowerReadings"]["Power"][:, rows].sum(axis=1, keepdims=True) / 1e3

    def power(name: str) -> Callable[[NDArray[np.void]], Float]:
        return lambda s: s["PowerReadings"][name] / 1e3

    def degrees(name: str, scale: float) -> Callable[[NDArray[np.void]], Float]:
        return lambda s: _present(s[name][:, None], scale)

    return [
        Group("hw.power.", ["system"], contract.HOST_POWER, "", total("system")),
        *(Group("hw.power.", [d], contract.HW_POWER, parts[d], total(d)) for d in ("cpu", "gpu", "mb")),
        Group("hw.power.rail.", rails, contract.HW_POWER, "power_rail", power("Power")),
        Group("hw.voltage.rail.", rails, contract.HW_VOLTAGE, "power_rail", power("Voltage")),
        Group("hw.current.rail.", rails, contract.HW_CURRENT, "power_rail", power("Current")),
        Group("hw.voltage.", inputs, contract.HW_VOLTAGE, "voltage", lambda s: _present(s["Vin"], 1e-3)),
        Group("hw.voltage.", ["VDD"], contract.HW_VOLTAGE, "voltage", lambda s: s["Vdd"][:, None] / 1e3),
        Group("hw.voltage.", ["VREF"], contract.HW_VOLTAGE, "voltage", lambda s: s["Vref"][:, None] / 1e3),
        Group(
            "hw.temperature.",
            ["chip"],
            contract.HW_TEMPERATURE,
            "temperature",
            degrees("Tchip", layout.chip_degrees),
        ),
        Group("hw.temperature.", layout.temperatures, contract.HW_TEMPERATURE, "temperature", _temperatures),
        Group("hw.temperature.", ["ambient"], contract.HOST_AMBIENT, "", lambda s: _ambient(s)[:, :1]),
        Group("hw.humidity.", ["ambient"], contract.HW_HUMIDITY, "humidity", lambda s: _ambient(s)[:, 1:]),
        Group("hw.fan.speed.", fans, contract.HW_FAN_SPEED, "fan", lambda s: _fans(s, "Tach", 1.0)),
        Group(
            "hw.fan.speed_ratio.", fans, contract.HW_FAN_SPEED_RATIO, "fan", lambda s: _fans(s, "Duty", 0.01)
        ),
    ]


def _present(raw: NDArray[np.integer[Any]], scale: float) -> Float:
    return np.where(raw == wire.ABSENT, np.nan, raw * scale)


def _temperatures(sensors: NDArray[np.void]) -> Float:
    """°C of the sensor inputs, from the raw values: hot connectors beyond 100 °C must show."""
    return _present(sensors["Ts"], 0.1)


def _ambient(sensors: NDArray[np.void]) -> Float:
    """°C and relative humidity (n, 2), absent when both are 0: that is what a failed I2C bus reads."""
    raw = np.stack([sensors["Tamb"], sensors["Hum"]], axis=1)
    return np.where(raw.any(axis=1, keepdims=True), raw * (0.1, 0.001), np.nan)


def _fans(sensors: NDArray[np.void], name: str, scale: float) -> Float:
    """Values of the fans that are on, NaN of the others."""
    return np.where(sensors["Fans"]["Enable"] == 1, sensors["Fans"][name] * scale, np.nan)
