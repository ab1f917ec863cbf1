"""The emulated BENCHLAB, read over its pty by the vendor's own client and by raw requests."""

import statistics
import termios
import time

import numpy as np
import pytest
import serial
from benchlab_pycore.core import (
    read_calibration,
    read_device,
    read_name,
    read_sensors,
    read_uid,
    translate_sensor_struct,
)
from benchlab_pycore.core import structures as vendor

from benchlab_otel import wire
from benchlab_otel.simulate.device import Board, Emulator, Meter
from benchlab_otel.simulate.truth import Load, Truth
from benchlab_otel.timebase import anchor
from conftest import wait_for

LOAD = Load(base={"EPS1": 50.0, "ATX3V": 3.3, "HPWR1": 120.0}, stages={"encode": {"EPS1": 30.0}})
GONE = (serial.SerialException, OSError, termios.error)


def open_port(emulator: Emulator, timeout: float = 20.0) -> serial.Serial:
    return serial.Serial(str(emulator.path), wire.BAUD_RATE, timeout=timeout, rtscts=False, dsrdtr=False)


def drain(port: serial.Serial) -> None:
    """Drops the welcome; there is none where the port was open a moment before."""
    port.timeout, kept = 0.2, port.timeout
    port.read(2 * wire.LONG_WELCOME_SIZE)
    port.timeout = kept


def ask(port: serial.Serial, request: bytes, size: int) -> bytes:
    port.write(request)
    return port.read(size)


@pytest.mark.parametrize(
    ("product", "product_id", "firmware"), [("original", 0x10, 6), ("benchlab2", 0x11, 7)]
)
def test_vendor_client_reads_what_was_set(product, product_id, firmware):
    truth = Truth(LOAD)
    truth.activity.begin("encode")
    board = Board(chip=61.5, ambient=-3.5, humidity=0.501, temperatures=[20.5, None, 99.9], fans=[1234])
    with Emulator(truth, product, board=board, seed=1) as emulator, open_port(emulator) as port:
        port.read(wire.LONG_WELCOME_SIZE)
        assert read_device(port) == {"VendorId": 0xEE, "ProductId": product_id, "FwVersion": firmware}
        assert read_uid(port) == emulator.uid.hex().upper()
        assert read_name(port).startswith("SIMULATED")
        assert read_calibration(port, product_id) is not None
        sensors = read_sensors(port, product_id=product_id, fw_version=firmware)
    values = translate_sensor_struct(sensors, product_id, firmware)
    assert values["CPU_Power"] == 80.0
    assert values["SYS_Power"] == pytest.approx(203.3)
    assert values["ATX3V_Current"] == pytest.approx(1.0)
    assert (values["Chip_Temp"], values["Ambient_Temp"], values["Humidity"]) == (61.5, -3.5, 50.1)
    assert (values["TS_1"], values["TS_2"], values["TS_3"], values["TS_4"]) == (20.5, None, 99.9, None)
    assert (values["Fan1_RPM"], values["Fan2_RPM"]) == (1234, 0)
    if product == "benchlab2":
        assert values["HPWR1_W6_Power"] == 20.0


@pytest.mark.parametrize(("product_id", "firmware"), sorted(wire.available()))
def test_layouts_agree_with_the_vendors_structures(product_id, firmware):
    ours = wire.layout(product_id, firmware)
    theirs = vendor.SensorStructOriginal
    if product_id == 0x11:
        theirs = vendor.SensorStructBL2 if firmware >= 5 else vendor.SensorStructBL2Legacy
    names = vendor.SENSOR_POWER_NAMES_BL2 if product_id == 0x11 else vendor.SENSOR_POWER_NAMES_ORIGINAL
    assert list(ours.rails) == names
    for name, (_, offset) in ours.sensors.fields.items():
        assert getattr(theirs, name).offset == offset


def test_every_contract_can_be_emulated():
    for product_id, firmware in wire.available():
        product = next(name for name, number in wire.PRODUCTS.items() if number == product_id)
        with Emulator(Truth(LOAD), product, firmware) as emulator, open_port(emulator) as port:
            if emulator.layout.welcome_size == wire.LONG_WELCOME_SIZE:
                assert port.read(wire.LONG_WELCOME_SIZE).startswith(wire.GREETING)
            assert ask(port, b"\x0e", 3) == bytes([0xEE, product_id, firmware])
            assert len(ask(port, b"\x01", emulator.layout.sensors.itemsize)) in (
                216,
                368,
                384,
            )


def test_bad_requests_get_no_bytes():
    with Emulator(Truth(LOAD)) as emulator, open_port(emulator) as port:
        port.read(wire.LONG_WELCOME_SIZE)
        for sent, bad in enumerate((b"\x7f", b"\x01\x01", b"\x09\x00"), start=1):
            port.write(bad)
            wait_for(lambda sent=sent: emulator.requests == sent)
        assert ask(port, b"\x0e", 3) == b"\xee\x10\x06"


def test_two_emulators_at_once():
    other = Truth(Load(base={"EPS1": 7.0}))
    with (
        Emulator(Truth(LOAD), seed=1) as a,
        Emulator(other, "benchlab2", seed=2) as b,
        open_port(a) as port_a,
        open_port(b) as port_b,
    ):
        for port in (port_a, port_b):
            port.read(wire.LONG_WELCOME_SIZE)
        assert ask(port_a, b"\x0d", 12) == a.uid != b.uid
        assert ask(port_b, b"\x0d", 12) == b.uid


def test_unplug_and_replug_under_the_same_path():
    with Emulator(Truth(LOAD)) as emulator:
        with open_port(emulator) as port:
            port.read(wire.LONG_WELCOME_SIZE)
            emulator.unplug()
            assert not emulator.path.exists()
            with pytest.raises(GONE):
                ask(port, b"\x0e", 3)
        emulator.replug()
        with open_port(emulator) as port:
            port.read(wire.LONG_WELCOME_SIZE)
            assert ask(port, b"\x0e", 3) == b"\xee\x10\x06"
    assert not emulator.path.exists()


def test_only_its_own_link_is_removed(tmp_path):
    path = tmp_path / "ttyBENCHLAB"
    first, second = (Emulator(Truth(LOAD), path=path).start() for _ in range(2))
    own = path.readlink()
    first.stop()
    assert path.readlink() == own
    second.stop()
    assert not path.is_symlink()


def test_faults_show_on_the_wire():
    with Emulator(Truth(LOAD), seed=3) as emulator, open_port(emulator, timeout=0.2) as port:
        port.timeout = 20
        port.read(wire.LONG_WELCOME_SIZE)
        emulator.faults.welcome = True
        assert ask(port, b"\x0e", 35).startswith(wire.GREETING)
        emulator.faults.welcome = False
        emulator.faults.garbled = "shifted"
        assert sorted(ask(port, b"\x0e", 3)) == sorted(b"\xee\x10\x06")
        emulator.faults.garbled = ""
        port.timeout = 0.5
        emulator.faults.short = 1
        assert ask(port, b"\x0e", 3) == b"\xee\x10"
        emulator.faults.short = 0
        emulator.faults.silent = True
        assert ask(port, b"\x0e", 3) == b""
        emulator.faults.silent = False
        emulator.faults.late = 1.5
        assert ask(port, b"\x0e", 3) == b""
        port.timeout = 20
        assert port.read(3) == b"\xee\x10\x06"


def system_watts(port: serial.Serial, layout: wire.Layout) -> float:
    row = np.frombuffer(ask(port, b"\x01", layout.sensors.itemsize), layout.sensors)[0]
    return float(row["PowerReadings"]["Power"][: len(wire.RAILS)].sum()) / 1000


def test_a_boxcar_meter_with_lag_reports_the_past():
    truth = Truth(Load(base={"EPS1": 100.0}, stages={"burst": {"EPS1": 100.0}}))
    second = 1_000_000_000
    truth.activity.begin("burst", anchor().now_ns() - 60 * second)
    truth.activity.end("burst", anchor().now_ns() - 30 * second)
    meters = {200.0: Meter(lag=40.0), 150.0: Meter(lag=15.0, width=30.0), 100.0: Meter(width=5.0)}
    for watts, meter in meters.items():
        with Emulator(truth, meter=meter) as emulator, open_port(emulator) as port:
            port.read(wire.LONG_WELCOME_SIZE)
            # the window slides with real time: 10 s of slowness are worth 33 W at most
            assert system_watts(port, emulator.layout) == pytest.approx(
                watts, abs=30.0 if watts == 150 else 0.01
            )


def test_noise_and_delay_are_as_asked():
    meter = Meter(noise=2.0, delay=0.002, jitter=0.001)
    with (
        Emulator(Truth(Load(base={"EPS1": 100.0})), meter=meter, seed=4) as emulator,
        open_port(emulator) as port,
    ):
        port.read(wire.LONG_WELCOME_SIZE)
        begin = time.monotonic()
        watts = [system_watts(port, emulator.layout) for _ in range(200)]
        assert time.monotonic() - begin >= 200 * 0.002
    assert statistics.mean(watts) == pytest.approx(100.0, abs=1.0)
    assert 1.5 < statistics.stdev(watts) < 2.5


def test_stopping_leaves_no_folder_behind():
    emulator = Emulator(Truth(LOAD)).start()
    folder = emulator.path.parent
    assert emulator.path.readlink().is_relative_to("/dev")
    emulator.stop()
    assert not folder.exists()
