"""The BENCHLAB power meter over USB.

Opening drains the line and shakes hands until the answers fit: the welcome first, so that another
board with the same stock USB ids gets no more than one zero byte. Whatever is odd later ends the
reading with a SourceError; the runner opens the port again. Values are judged when answers are
decoded, a few at a time: from the first one that can't be, none is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from glob import glob
from pathlib import Path

from benchlab_otel import contract, wire
from benchlab_otel.config import Benchlab
from benchlab_otel.model import Float, Scalar
from benchlab_otel.sources.benchlab_control import Control, Latency, checked
from benchlab_otel.sources.benchlab_port import NOT_FOUND, QUIET_S, Port
from benchlab_otel.sources.benchlab_settings import Settings
from benchlab_otel.sources.benchlab_undo import ByUid, Changes, changes_of, finish, is_factorys, put_back
from benchlab_otel.sources.benchlab_values import Decoder, groups, metrics
from benchlab_otel.sources.reading import Batch, Device, Field, Opening, Reply, SourceError, columns

METRICS = (*metrics(wire.layout(0x11, wire.newest_firmware(0x11))), contract.HW_INFO, contract.HW_CALIBRATION)

_BY_ID = Path("/dev/serial/by-id")


def addresses(settings: Benchlab) -> list[str]:
    """The configured ports that are there, else those of every USB device that may be a BENCHLAB.

    Never none: a port that is named and not there is listed too, "" stands for one to come.
    """
    if settings.ports:
        return [port for name in settings.ports for port in sorted(glob(name)) or [name]]  # noqa: PTH207 (absolute)
    return _usb_ports(settings.sysfs) or [""]


def _usb_ports(sysfs: Path) -> list[str]:
    """Ports with the stock ST ids, by their stable names where udev gives them."""
    stable = {link.resolve(): link for link in _BY_ID.glob("*")}
    names = sorted(tty.name for tty in (sysfs / "class/tty").glob("ttyACM*") if _usb_id(tty) == wire.USB_ID)
    ports = [Path("/dev") / name for name in names]
    return [str(stable.get(port, port)) for port in ports]


def _usb_id(tty: Path) -> tuple[int, int] | None:
    """(vendor, product) of the USB device that a tty's interface belongs to."""
    device = (tty / "device").resolve().parent
    try:
        return int((device / "idVendor").read_text(), 16), int((device / "idProduct").read_text(), 16)
    except (OSError, ValueError):
        return None


def open_reader(settings: Benchlab, address: str) -> BenchlabReader:
    """Opens a port for this process alone, and makes sure that a BENCHLAB is on it; writes nothing to it."""
    if not address:
        raise SourceError("absent", "no BENCHLAB on USB (0483:5740)", NOT_FOUND)
    return BenchlabReader(replace(settings, compare_calibration=False), address, {})


def controlled(settings: Benchlab, latency: Latency) -> Callable[[str], Opening]:
    """How each port is opened: with control, and its calibration compared, where that is asked for.

    ValueError for a fan rule that can't be followed.
    """
    checked(settings.control)
    return partial(_opening, settings, latency, {})


def _opening(settings: Benchlab, latency: Latency, changed: ByUid, address: str) -> Opening:
    if not address:
        return Opening(partial(open_reader, settings, address))
    asked = bool(settings.control.light or settings.control.fans)
    control = Control(settings.control, latency) if asked else None
    reader = partial(BenchlabReader, settings, address, changed, control)
    return Opening(reader, partial(put_back_left, settings, address, changed), alone=asked)


def put_back_left(settings: Benchlab, address: str, changed: ByUid) -> None:
    """Puts back what is left of devices that were read on a port, or tells how; the port is closed."""
    finish(address, partial(_opened, settings, address), changed)


@contextmanager
def _opened(settings: Benchlab, address: str, timeout_s: float) -> Iterator[tuple[Settings, bytes]]:
    """The settings of the device on a port, and its UID; SourceError where none answers."""
    with closing(Port(address, min(settings.timeout_s, timeout_s))) as port:
        known = shake_hands(port)
        yield Settings(port, known.layout), known.uid


class BenchlabReader:
    """One device on one port. Not for two threads at a time.

    What is changed on it, for control or to compare its calibration, is in `changed` until it is put back.
    """

    def __init__(self, settings: Benchlab, path: str, changed: ByUid, control: Control | None = None) -> None:
        self.path = path
        self._port = Port(path, settings.timeout_s)
        self._control: Control | None = None  # until the device is known
        self._failed = False
        try:
            known = shake_hands(self._port)
            self._settings = Settings(self._port, known.layout)
            changes = changes_of(changed, known.uid, self._settings)
            put_back(self._settings, changes, "calibration")  # where an opening before broke off
            lasting = _lasting(known, self._settings, changes if settings.compare_calibration else None)
            if control:
                control.opened(self._settings, changes)
                self._control = control
        except SourceError:
            self.close()
            raise
        self._layout = known.layout
        self.device = Device(
            hw_id=known.hw_id,
            hw_type="power_meter",
            description=f"{known}, named {known.name or 'nothing'}",
            simulated=settings.simulated or known.simulated,
            attributes=_known_of_meter(settings),
        )
        self._decoder = Decoder(known.layout, [holds for _, holds in lasting])
        self._fields = [field for group in groups(known.layout) for field in group.fields(known.hw_id)]
        self._fields += [field for field, _ in lasting]
        self._keys = [field.key for field in self._fields]

    def close(self) -> None:
        """Puts back what was controlled and closes the port, also one whose device is gone."""
        if self._control:
            self._control.closing(self._settings, self._failed)
        self._port.close()

    def read(self) -> Reply:
        """All sensors at once; raises SourceError for anything but one whole answer."""
        self._failed = True  # unless all goes well
        reply = self._port.ask(_READ_SENSORS, self._layout.sensors.itemsize)
        self._failed = wire.GREETING in reply[2]
        if self._failed:
            raise SourceError("garbled", f"{self.path}: an unsolicited welcome in the answer")
        return reply

    def decode(self, replies: Sequence[Reply]) -> Iterator[Batch]:
        """The values of all sensors; SourceError at the first answer that is not plausible."""
        start, end, raw = columns(replies)
        values, problem = self._decoder.decode(raw)
        if n := len(values):
            yield Batch(start[:n], end[:n], self._fields, values)
        if problem:
            self._failed = True
            raise SourceError("implausible", f"{self.path}: {problem}")
        if self._control and not self._failed:
            self._act(self._control, values[-1])

    def _act(self, control: Control, newest: Float) -> None:
        try:
            control.act(self._settings, dict(zip(self._keys, newest.tolist(), strict=True)))
        except SourceError:
            self._failed = True
            raise


_READ_SENSORS = bytes([wire.READ_SENSORS])


@dataclass(frozen=True, slots=True)
class Identity:
    """Who a device says it is."""

    layout: wire.Layout
    uid: bytes
    name: str

    def __str__(self) -> str:
        draft = " (draft contract)" if self.layout.draft else ""
        return f"{self.layout.product} firmware {self.layout.firmware}{draft}"

    @property
    def hw_id(self) -> str:
        """Stable across restarts and ports."""
        return f"benchlab-{self.uid.hex().upper()}"

    @property
    def simulated(self) -> bool:
        """Whether it is an emulator, whatever name it was given since."""
        return self.uid.startswith(wire.SIMULATED_UID)


def shake_hands(port: Port) -> Identity:
    """Makes sure that a BENCHLAB of a known firmware is on the line; SourceError says what is instead."""
    port.drain()
    welcome = _welcome(port)
    vendor, product_id, firmware = port.answer(bytes([wire.READ_VENDOR_DATA]), wire.VENDOR_SIZE)
    if vendor != wire.VENDOR_ID:
        raise SourceError("garbled", f"{port.path}: vendor {vendor:#04x}, expected {wire.VENDOR_ID:#04x}")
    try:
        layout = wire.layout(product_id, firmware)
    except LookupError as error:
        fix = "upgrade benchlab-pycore, which brings the vendor's contracts"
        raise SourceError("unknown", f"{port.path}: {error}", fix) from None
    if len(welcome) != layout.welcome_size:
        expected = f"{len(welcome)} B of welcome, expected {layout.welcome_size}"
        raise SourceError("garbled", f"{port.path}: {layout.product} firmware {firmware}: {expected}")
    uid = port.answer(bytes([wire.READ_UID]), wire.UID_SIZE)
    return Identity(layout, uid, Settings(port, layout).name())


def _welcome(port: Port) -> bytes:
    """The greeting: 9 bytes of old firmware, 32 of new."""
    short = len(wire.GREETING) + 1
    try:
        reply = port.answer(bytes([wire.WELCOME]), short, alone=False)
    except SourceError as error:
        if error.reason == "lost":
            raise
        raise SourceError("unknown", f"{error}: not a BENCHLAB, or it hangs", _FOREIGN) from None
    if not reply.startswith(wire.GREETING):
        raise SourceError("unknown", f"{port.path}: not a BENCHLAB: it answers {reply!r}", _FOREIGN)
    return reply + port.receive(wire.LONG_WELCOME_SIZE - short, QUIET_S)


_FOREIGN = "name the BENCHLAB's own port in sources.benchlab.ports, or plug it in again"


def _lasting(known: Identity, settings: Settings, changes: Changes | None) -> list[tuple[Field, bool]]:
    """What holds for as long as the port is open: who it is, and the state of its calibration.

    With `changes` it is compared with the factory's.
    """
    info = {
        "hw.id": known.hw_id,
        "hw.type": "power_meter",
        "hw.name": known.name,
        "hw.vendor": "BENCHLAB",
        "hw.model": known.layout.product,
        "hw.serial_number": known.uid.hex().upper(),
        "hw.firmware_version": str(known.layout.firmware),
    }
    states = {"valid": calibration_valid(settings.calibration())}
    factory = is_factorys(settings, changes) if changes else None
    if factory is not None:
        states["factory"] = factory
    return [
        (Field("", contract.HW_INFO, {key: value for key, value in info.items() if value}), True),
        *(
            (Field("", contract.HW_CALIBRATION, {"hw.id": known.hw_id, "hw.state": state}), holds)
            for state, holds in states.items()
        ),
    ]


def calibration_valid(calibration: bytes) -> bool:
    """Whether the table's checksum is right; that of blank memory is not."""
    return int.from_bytes(calibration[:2], "little") == wire.checksum(calibration) and any(calibration)


def _known_of_meter(settings: Benchlab) -> dict[str, Scalar]:
    known: dict[str, Scalar] = {}
    if settings.lag_ms is not None:
        known[contract.METER_LAG] = round(settings.lag_ms * 1e6)
    if settings.window_ms is not None:
        known[contract.METER_WINDOW] = round(settings.window_ms * 1e6)
    return known
