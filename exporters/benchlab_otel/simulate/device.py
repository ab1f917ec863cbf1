"""A BENCHLAB device on a pty: the far end of the real wire, for tests, the demo and trying.

It takes every command of its firmware's contract (settings: see `memory`) and, like the device,
answers nothing to anything else. Its UID begins with SIMULATED, which is how a reader at the other
end knows what it reads.

From ORIGINAL firmware 5 and BENCHLAB 2 firmware 6 the device pushes a welcome when the port's RTS
line rises. A pty has no such line, so the emulator pushes it when it sees the port opened, which
it looks for every 5 ms: a client drains 50 ms after opening, as with the device.
"""

from __future__ import annotations

import os
import pty
import select
import tempfile
import time
import tty
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event, Thread
from types import TracebackType
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from benchlab_otel import wire
from benchlab_otel.simulate.memory import Memory
from benchlab_otel.simulate.truth import Truth
from benchlab_otel.timebase import anchor

_OPEN_POLL_S = 0.005
_PLUG_POLL_MS = 20  # how late the thread may notice `unplug` and `stop`
_VIN = 13
_RESET_S = 0.1


@dataclass(frozen=True)
class Meter:
    """How the emulated meter sees the truth, all in seconds and watts.

    A reading at time t is the mean over [t - lag - width, t - lag] (width 0: the instant t - lag)
    plus normal noise on each rail that draws power. The answer leaves `delay` plus up to `jitter`
    after the request came; t is halfway, so that a reader's midpoint is right on average.
    """

    lag: float = 0.0
    width: float = 0.0
    noise: float = 0.0
    delay: float = 0.0
    jitter: float = 0.0


@dataclass
class Board:
    """Everything the device reports besides power, in °C, relative humidity 0..1, rpm and volts.

    None is an input without a sensor. Shorter lists leave the device's other inputs without.
    """

    chip: float = 41.0
    ambient: float = 23.5
    humidity: float = 0.42
    temperatures: list[float | None] = field(default_factory=lambda: [31.0, None, 45.5])
    fans: list[int] = field(default_factory=lambda: [1200, 900])
    fan_duty: int = 60
    inputs: list[float | None] = field(default_factory=lambda: [1.25])
    fan_switch: int = 0  # position: 0 auto, 1 half, 2 full
    rgb_switch: int = 0
    rgb_external: bool = False
    external_duty: float | None = None  # 0..1, of a fan signal from outside
    faults: set[str] = field(default_factory=set)  # live now; each is latched too
    latched: set[str] = field(default_factory=set)


@dataclass
class Faults:
    """Misbehaviour that can be switched while the emulator runs."""

    silent: bool = False
    late: float = 0.0  # seconds that every answer is held back
    garbled: Literal["", "noise", "shifted"] = ""  # random bytes, or the answer's own bytes out of step
    short: int = 0  # bytes missing at the end of every answer
    welcome: bool = False  # an unsolicited welcome before every answer


class Emulator:
    """One emulated device; `path` is the port, stable through `unplug` and `replug`.

    Raises LookupError for a product or firmware without a contract and OSError where no pty or
    link can be made.
    """

    def __init__(
        self,
        truth: Truth,
        product: str = "original",
        firmware: int | None = None,
        meter: Meter | None = None,
        board: Board | None = None,
        path: Path | None = None,
        seed: int | None = None,
    ) -> None:
        product_id = wire.PRODUCTS[product]
        self.layout = wire.layout(product_id, firmware or wire.newest_firmware(product_id))
        self.truth = truth
        self.meter = meter or Meter()
        self.board = board or Board()
        self.faults = Faults()
        self.memory = Memory(self.layout, wire.SIMULATED_NAME)
        self.requests = 0
        self.opcodes: Counter[int] = Counter()  # of all requests
        self._random = np.random.default_rng(seed)
        self.uid = wire.SIMULATED_UID + self._random.bytes(wire.UID_SIZE - len(wire.SIMULATED_UID))
        self._own_folder = None if path else tempfile.TemporaryDirectory(prefix="benchlab-emulator-")
        self.path = path or Path(self._own_folder.name if self._own_folder else "") / "ttyBENCHLAB"
        self._master: int | None = None  # this and what follows are touched by the emulator's thread only
        self._pty = Path()  # that our link leads to
        self._plugged = True
        self._settled = Event()
        self._stop = Event()
        self._thread = Thread(target=self._run, name="benchlab-emulator", daemon=True)
        self._answers: dict[int, Callable[[], bytes]] = {
            wire.WELCOME: self._welcome,
            wire.READ_SENSORS: self._sensors,
            wire.READ_UID: lambda: self.uid,
            wire.READ_VENDOR_DATA: self._vendor_data,
        }

    # -- life -------------------------------------------------------------------------------

    def start(self) -> Emulator:
        """Plugs the device in and answers from a thread of its own."""
        self._open()
        self._thread.start()
        return self

    def stop(self) -> None:
        """Unplugs the device for good and removes its path."""
        self._stop.set()
        self._thread.join()
        if self._own_folder:
            self._own_folder.cleanup()

    def __enter__(self) -> Emulator:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def unplug(self) -> None:
        """The port vanishes; whoever has it open gets an I/O error."""
        self._plug(False)

    def replug(self) -> None:
        """The port comes back under the same path."""
        self._plug(True)

    def _plug(self, plugged: bool) -> None:
        self._plugged = plugged
        self._settled.clear()
        self._settled.wait()

    def _open(self) -> None:
        master, slave = pty.openpty()
        os.set_blocking(master, False)
        tty.setraw(slave)
        link = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        self._pty = Path(os.ttyname(slave))
        link.symlink_to(self._pty)
        link.replace(self.path)
        os.close(slave)
        self._master = master

    def _close(self) -> None:
        if self._master is None:
            return
        with suppress(OSError):  # it is gone, or no link any more
            if self.path.readlink() == self._pty:
                self.path.unlink()
        os.close(self._master)
        self._master = None

    # -- the wire ---------------------------------------------------------------------------

    def _run(self) -> None:
        opened = False
        while not self._stop.is_set():
            if self._plugged and self._master is None:
                self._open()
            elif not self._plugged:
                self._close()
            self._settled.set()
            request, is_open = self._poll(opened)
            if is_open and not opened and self.layout.welcome_size == wire.LONG_WELCOME_SIZE:
                self._write(self._welcome())
            opened = is_open
            if request:
                self._serve(request)
            elif not is_open:
                self._stop.wait(_OPEN_POLL_S)
        self._close()
        self._settled.set()

    def _poll(self, opened: bool) -> tuple[bytes, bool]:
        """(the packet that came, if any; whether somebody has the port open)."""
        if self._master is None:
            return b"", False
        poll = select.poll()
        poll.register(self._master, select.POLLIN)
        events = dict(poll.poll(_PLUG_POLL_MS if opened else 0)).get(self._master, 0)
        if events & select.POLLHUP:
            return b"", False
        request = os.read(self._master, 4096) if events & select.POLLIN else b""
        while request and len(request) < self.memory.size(request) and poll.poll(_PLUG_POLL_MS):
            request += os.read(self._master, 4096)
        return request, True

    def _serve(self, received: bytes) -> None:
        """Answers what came, packet for packet."""
        while received:
            size = self.memory.size(received) or len(received)
            self._serve_packet(received[:size])
            received = received[size:]

    def _serve_packet(self, request: bytes) -> None:
        """The firmware checks a packet's length and ignores what is wrong."""
        arrived = time.monotonic()
        self.requests += 1
        self.opcodes[request[0]] += 1
        if self.faults.silent:
            return
        if request[0] in (wire.RESET, wire.BOOTLOADER) and request[0] in self.layout.commands:
            self._restart(request[0])
            return
        delay = self.meter.delay + self.meter.jitter * self._random.random()
        self._stop.wait(delay / 2)
        if reply := self._spoil(self._answer(request)):
            self._stop.wait(max(0.0, arrived + delay + self.faults.late - time.monotonic()))
            self._write(reply)

    def _answer(self, request: bytes) -> bytes:
        measured = self._answers.get(request[0])
        if measured is None:
            return self.memory.command(request)
        self.memory.status = wire.OK if len(request) == 1 else wire.BAD_LENGTH
        return measured() if len(request) == 1 else b""

    def _restart(self, opcode: int) -> None:
        """A reset takes the port away for a moment, the bootloader until the device is plugged in again."""
        self.memory.reset()
        self._close()
        self._plugged = opcode == wire.RESET
        self._stop.wait(_RESET_S)

    def _spoil(self, reply: bytes) -> bytes:
        if not reply:
            return reply
        if self.faults.garbled == "noise":
            reply = self._random.bytes(len(reply))
        elif self.faults.garbled == "shifted":
            by = int(self._random.integers(1, max(2, len(reply))))
            reply = reply[by:] + reply[:by]
        if self.faults.welcome:
            reply = self._welcome() + reply
        return reply[: len(reply) - self.faults.short] if self.faults.short else reply

    def _write(self, data: bytes) -> None:
        # a client that does not read fills the pty: what does not fit is lost, as on the device
        if self._master is not None:
            with suppress(BlockingIOError):
                os.write(self._master, data)

    # -- answers ----------------------------------------------------------------------------

    def _welcome(self) -> bytes:
        if self.layout.welcome_size < wire.LONG_WELCOME_SIZE:
            return wire.GREETING.ljust(self.layout.welcome_size, b"\0")
        return self.layout.product.encode().ljust(self.layout.welcome_size, b"\0")

    def _vendor_data(self) -> bytes:
        return bytes([wire.VENDOR_ID, self.layout.product_id, self.layout.firmware])

    def _sensors(self) -> bytes:
        now = anchor().now_ns()
        end = now - int(self.meter.lag * 1e9)
        watts = self.truth.rail_watts(end - int(self.meter.width * 1e9), end)
        row = np.zeros((), self.layout.sensors)
        for i, rail in enumerate(self.layout.rails):
            row["PowerReadings"][i] = self._power(rail, watts)
        self._surroundings(row)
        return row.tobytes()

    def _power(self, rail: str, watts: dict[str, float]) -> tuple[int, int, int]:
        """(mV, mA, mW) of a rail, or of a connector's wire: a sixth of the connector."""
        connector, _, wire_number = rail.partition("_W")
        volts = wire.NOMINAL_VOLTS[connector]
        power = watts[connector] / (6 if wire_number else 1)
        if power and self.meter.noise:
            power += self.meter.noise * self._random.standard_normal()
        return round(volts * 1e3), round(power / volts * 1e3), round(power * 1e3)

    def _surroundings(self, row: NDArray[np.void]) -> None:
        board = self.board
        row["Vin"] = _inputs(board.inputs, 1e3, _VIN)
        row["Vdd"], row["Vref"] = 3300, 2500
        row["Tchip"] = round(board.chip / self.layout.chip_degrees)
        row["Ts"] = _inputs(board.temperatures, 10, len(self.layout.temperatures))
        row["Tamb"], row["Hum"] = round(board.ambient * 10), round(board.humidity * 1000)
        row["FanSwitchStatus"], row["RGBSwitchStatus"] = board.fan_switch, board.rgb_switch
        row["RgbExtStatus"] = board.rgb_external
        duty = board.external_duty
        row["FanExtDuty"] = wire.NO_EXTERNAL_DUTY if duty is None else round(duty * 100)
        if self.layout.faults:
            board.latched |= board.faults
            row["FaultStatus"], row["FaultLog"] = self._bits(board.faults), self._bits(board.latched)
        for i, rpm in enumerate(board.fans):
            row["Fans"][i] = (1, board.fan_duty, rpm)

    def _bits(self, faults: set[str]) -> int:
        return sum(1 << self.layout.faults.index(fault) for fault in faults)


def _inputs(values: list[float | None], scale: float, count: int) -> list[int]:
    """Raw values of `count` inputs; those without a sensor read ABSENT."""
    raw = [wire.ABSENT if value is None else round(value * scale) for value in values]
    return (raw + [wire.ABSENT] * count)[:count]
