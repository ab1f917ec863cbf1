"""The BENCHLAB source against an emulated device at the far end of a pty, with every fault it can have."""

import contextlib
import math
import os
import subprocess
import sys
import threading
import tty
from dataclasses import replace

import numpy as np
import pytest
import serial
from benchlab_pycore.core import read_device, read_name, read_sensors, read_uid, translate_sensor_struct
from hypothesis import given
from hypothesis import strategies as st

from benchlab_otel import sources, wire
from benchlab_otel.config import Benchlab, Sources
from benchlab_otel.simulate.device import Board, Emulator
from benchlab_otel.simulate.truth import Load, Truth
from benchlab_otel.sources import benchlab, benchlab_values
from benchlab_otel.sources.reading import SourceError
from benchlab_otel.timebase import anchor
from conftest import wait_for
from receiving import Receiver, read_one
from test_device import drain

WATTS = {"EPS1": 51.2, "EPS2": 7.0, "ATX3V": 3.3, "ATX12V": 21.0, "PCIE1": 44.0, "HPWR1": 120.0}
TRUTH = Truth(Load(base=WATTS))
CPU, GPU, MB = 58.2, 164.0, 24.3


def settings(emulator: Emulator, **changes) -> Sources:
    section = replace(Benchlab(ports=(str(emulator.path),), rate_hz=100.0, timeout_s=5.0), **changes)
    return Sources(benchlab=section)


@contextlib.contextmanager
def recording(emulator: Emulator, receiver: Receiver, **changes):
    running = sources.start(
        ["benchlab"], settings(emulator, **changes), receiver, "session-1", flush_s=0.02, metrics_s=0.02
    )
    try:
        yield running
    finally:
        running.stop()


def open_reader(emulator: Emulator, **changes):
    return benchlab.open_reader(settings(emulator, **changes).benchlab, str(emulator.path))


def read_once(emulator: Emulator) -> dict[str, float]:
    with contextlib.closing(open_reader(emulator)) as reader:
        return read_one(reader)


@pytest.mark.parametrize("product", ["original", "benchlab2"])
def test_domains_are_sums_of_rails_without_the_connectors_wires(product):
    with Emulator(TRUTH, product) as emulator:
        values = read_once(emulator)
    assert values["hw.power.cpu"] == pytest.approx(CPU)
    assert values["hw.power.gpu"] == pytest.approx(GPU)
    assert values["hw.power.mb"] == pytest.approx(MB)
    assert values["hw.power.system"] == pytest.approx(CPU + GPU + MB)
    assert values["hw.power.rail.PCIE1"] == 44.0
    assert values["hw.voltage.rail.ATX3V"] == 3.3
    assert values["hw.current.rail.ATX3V"] == 1.0
    if product == "benchlab2":
        assert values["hw.power.rail.HPWR1_W3"] == 20.0


def test_temperatures_above_100_survive_and_absent_ones_stay_absent():
    temperatures = [20.0, None, None, None, 118.5]
    hot = Board(temperatures=temperatures, chip=104.0, ambient=0.0, humidity=0.0, fans=[0, 800])
    with Emulator(TRUTH, "benchlab2", board=hot) as emulator:
        values = read_once(emulator)
    assert values["hw.temperature.HPWR1_IN"] == pytest.approx(118.5)
    assert values["hw.temperature.chip"] == pytest.approx(104.0)
    assert np.isnan(values["hw.temperature.TS2"])
    assert np.isnan(values["hw.temperature.ambient"])  # 0 °C at 0 % is a failed bus
    assert np.isnan(values["hw.humidity.ambient"])
    assert values["hw.fan.speed.1"] == 0.0  # a fan that stands still is a reading
    assert np.isnan(values["hw.fan.speed.3"])


@pytest.mark.parametrize(("product_id", "firmware"), sorted(wire.available()))
def test_every_contract_is_read(product_id, firmware):
    product = next(name for name, number in wire.PRODUCTS.items() if number == product_id)
    with Emulator(TRUTH, product, firmware) as emulator:
        assert read_once(emulator)["hw.temperature.chip"] == 41.0  # whole degrees in old firmware


def named_as_the_vendor_does(values: dict[str, float]) -> dict[str, float]:
    """Our values by the keys of pycore's `translate_sensor_struct`."""
    named = {"Vdd": "hw.voltage.VDD", "Vref": "hw.voltage.VREF", "FanExtDuty": "hw.fan.speed_ratio.external"}
    named |= {"Chip_Temp": "hw.temperature.chip", "Ambient_Temp": "hw.temperature.ambient"}
    named |= {"Humidity": "hw.humidity.ambient", "SYS_Power": "hw.power.system"}
    named |= {f"{d.upper()}_Power": f"hw.power.{d}" for d in ("cpu", "gpu", "mb")}
    named |= {f"VIN_{n}": f"hw.voltage.VIN{n}" for n in range(13)}
    for rail in (*wire.RAILS, *wire.WIRES):
        named |= {f"{rail}_{q.title()}": f"hw.{q}.rail.{rail}" for q in ("voltage", "current", "power")}
    for name in ("TS1", "TS2", "TS3", "TS4", "HPWR1_IN", "HPWR1_OUT", "HPWR2_IN", "HPWR2_OUT"):
        named[f"TS_{name.removeprefix('TS')}"] = f"hw.temperature.{name}"
    for n in range(1, 10):
        fan = {"Duty": "speed_ratio", "RPM": "speed", "Status": "enabled"}
        named |= {f"Fan{n}_{theirs}": f"hw.fan.{ours}.{n}" for theirs, ours in fan.items()}
    scale = {"Humidity": 100.0, "FanExtDuty": 100.0} | {f"Fan{n}_Duty": 100.0 for n in range(1, 10)}
    return {theirs: values[ours] * scale.get(theirs, 1.0) for theirs, ours in named.items() if ours in values}


DRAFTS = {(0x10, 4), (0x11, 3), (0x11, 5)}


@pytest.mark.parametrize(("product_id", "firmware"), sorted(wire.available()))
def test_the_vendors_client_and_ours_read_the_same_value_by_value(product_id, firmware):
    product = next(name for name, number in wire.PRODUCTS.items() if number == product_id)
    board = Board(
        chip=61.0,
        temperatures=[20.5, None, 99.9, -3.2, 45.6, 77.0, None, 12.3],
        fans=[700 + n for n in range(9)],
        inputs=[None if n == 4 else 0.5 + n / 8 for n in range(13)],
        external_duty=0.35,
    )
    load = Load(base={rail: 10.0 + n * 1.7 for n, rail in enumerate(wire.RAILS)})
    with Emulator(Truth(load), product, firmware, board=board) as emulator:
        with contextlib.closing(open_reader(emulator)) as reader:
            device = reader.device
            ours = named_as_the_vendor_does(read_one(reader))
        with serial.Serial(str(emulator.path), wire.BAUD_RATE, timeout=20) as port:
            drain(port)
            identity = read_device(port)
            assert device.hw_id == f"benchlab-{read_uid(port)}"
            assert read_name(port) in device.description
            assert ("draft" in device.description) == ((product_id, firmware) in DRAFTS)
            sensors = read_sensors(port, product_id=product_id, fw_version=firmware)
    assert identity == {"VendorId": wire.VENDOR_ID, "ProductId": product_id, "FwVersion": firmware}
    theirs = translate_sensor_struct(sensors, product_id, firmware)
    assert theirs.keys() == ours.keys()
    for key, value in theirs.items():
        assert ours[key] == pytest.approx(float("nan") if value is None else value, nan_ok=True), key


def test_switches_faults_identity_and_calibration_are_exported():
    receiver = Receiver()
    board = Board(fan_switch=1, rgb_switch=1, rgb_external=True, external_duty=0.4, faults={"otp_ts1"})
    with Emulator(TRUTH, "benchlab2", board=board) as emulator, recording(emulator, receiver):
        wait_for(lambda: receiver.samples() and receiver.values("hw.fault", {"hw.fault": "otp_ts1"}))
        board.faults.clear()
        live = {"hw.fault": "otp_ts1", "hw.state": "live"}
        wait_for(lambda: receiver.values("hw.fault", live)[-1] == 0.0)
        serial_number = emulator.uid.hex().upper()
    assert receiver.values("hw.fault", live)[0] == 1.0
    assert receiver.values("hw.fault", {"hw.fault": "otp_ts1", "hw.state": "latched"})[-2] == 1.0
    assert set(receiver.values("hw.fault", {"hw.fault": "ocp_hpwr1"})) == {0.0, None}
    at = {"hw.sensor_location": "fan_switch"}
    shown = {state: receiver.values("hw.status", at | {"hw.state": state})[0] for state in POSITIONS}
    assert shown == {"auto": 0.0, "50_percent": 1.0, "100_percent": 0.0}
    assert receiver.values("hw.status", {"hw.state": "detected"})[0] == 1.0
    assert receiver.values("hw.fan.enabled", {"hw.sensor_location": "1"})[0] == 1.0
    assert receiver.values("hw.fan.enabled", {"hw.sensor_location": "9"})[0] == 0.0
    assert receiver.values("hw.calibration", {"hw.state": "valid"})[0] == 1.0
    info = {"hw.serial_number": serial_number, "hw.model": "BENCHLAB 2", "hw.firmware_version": "7"}
    assert receiver.values("hw.info", info | {"hw.name": "SIMULATED", "hw.vendor": "BENCHLAB"})[0] == 1.0
    first, last = receiver.samples()[0][1], receiver.samples()[-1][1]
    assert (first["hw.fault.live"], last["hw.fault.live"], last["hw.fault.latched"]) == (2.0, 0.0, 2.0)
    assert (first["hw.status.fan_switch"], first["hw.fan.speed_ratio.external"]) == (1.0, 0.4)


POSITIONS = ("auto", "50_percent", "100_percent")


def test_a_blank_calibration_is_not_valid():
    receiver = Receiver()
    with Emulator(TRUTH) as emulator:
        emulator.memory.calibration = bytes(emulator.layout.calibration_size)
        with recording(emulator, receiver):
            wait_for(lambda: receiver.values("hw.calibration"))
    assert receiver.values("hw.calibration", {"hw.state": "valid"})[0] == 0.0


def test_samples_metrics_and_the_simulated_mark_reach_the_sink():
    receiver = Receiver()
    with Emulator(TRUTH) as emulator:
        before = anchor().now_ns()
        with recording(emulator, receiver, lag_ms=4.0, window_ms=20.0):
            wait_for(lambda: len(receiver.samples()) >= 20 and receiver.values("hw.host.power"))
        hw_id = f"benchlab-{emulator.uid.hex().upper()}"
    resource, root, _ = receiver.spans[-1]
    assert root.name == "session"
    assert not root.parent_span_id
    spans = [span for span, _ in receiver.samples()]
    assert {(s.trace_id, s.parent_span_id) for s in spans} == {(root.trace_id, root.span_id)}
    assert len({s.span_id for s in spans}) == len(spans)
    assert all(
        before < s.start_time_unix_nano < s.end_time_unix_nano < root.end_time_unix_nano for s in spans
    )
    for _, attributes in receiver.samples():
        assert (attributes["hw.id"], attributes["hw.type"]) == (hw_id, "power_meter")
        assert attributes["hw.power.cpu"] == pytest.approx(CPU)
        assert (attributes["meter.lag_ns"], attributes["meter.window_ns"]) == (4_000_000, 20_000_000)
        assert "hw.temperature.TS2" not in attributes
    assert resource["benchlab.simulated"] is True
    assert resource["session.id"] == "session-1"
    assert resource["service.instance.id"].endswith(f"/benchlab/{hw_id}")
    assert resource["benchlab.clock.offset_ns"] == anchor().offset_ns
    eps1 = receiver.values("hw.power", {"hw.type": "power_rail", "hw.sensor_location": "EPS1"})
    assert eps1[0] == pytest.approx(51.2)
    assert eps1[-1] is None  # ended with the session
    assert receiver.values("exporter.collect.success", {"source": "benchlab", "hw.id": hw_id})[0] == 1.0
    assert receiver.values("exporter.collect.duration")[0] > 0.0
    assert before * 1e-9 < receiver.values("exporter.collect.last_success.timestamp")[0]
    assert receiver.values("exporter.collect.time.uncertainty")[0] > 0.0


def test_unplugged_and_plugged_in_again_is_a_gap():
    receiver = Receiver()
    with Emulator(TRUTH) as emulator, recording(emulator, receiver) as running:
        wait_for(lambda: len(receiver.samples()) >= 5)
        asked = anchor().now_ns()
        emulator.unplug()
        unplugged = anchor().now_ns()  # the runner may have noticed by now
        wait_for(lambda: not running.health()[0].ok)
        (health,) = running.health()
        assert str(emulator.path) in health.message
        wait_for(lambda: receiver.values("exporter.collect.failures", {"reason": "absent"}))
        failed = list(receiver.points)
        emulator_was_back = anchor().now_ns()
        emulator.replug()
        wait_for(lambda: any(s.start_time_unix_nano > emulator_was_back for s, _ in receiver.samples()))
        wait_for(lambda: receiver.values("exporter.collect.success")[-1] == 1.0)
    during = [s for s, _ in receiver.samples() if unplugged < s.start_time_unix_nano < emulator_was_back]
    assert not during
    assert 0.0 in receiver.values("exporter.collect.success")
    shown = {m.name: p.flags for _, m, _, p in failed if p.time_unix_nano > asked}
    assert shown["hw.host.power"] == 1  # no recorded value: the series has ended
    assert all(flags == 1 for name, flags in shown.items() if not name.startswith("exporter.collect."))


def usb_tty(sysfs, name: str, vendor: str, product: str) -> None:
    """As the kernel shows a CDC port: the interface's parent is the USB device."""
    device = sysfs / f"devices/usb1/{name}-device"
    (device / "1-1:1.0").mkdir(parents=True)
    (device / "idVendor").write_text(vendor + "\n")
    (device / "idProduct").write_text(product + "\n")
    (sysfs / "class/tty" / name).mkdir(parents=True)
    (sysfs / "class/tty" / name / "device").symlink_to(device / "1-1:1.0")


def test_ports_are_found_by_their_usb_ids(tmp_path):
    assert benchlab.addresses(Benchlab(sysfs=tmp_path)) == [""]
    usb_tty(tmp_path, "ttyACM1", "0483", "5740")
    usb_tty(tmp_path, "ttyACM0", "2341", "0043")
    usb_tty(tmp_path, "ttyACM7", "0483", "5740")
    (tmp_path / "class/tty/ttyACM9").mkdir()
    assert benchlab.addresses(Benchlab(sysfs=tmp_path)) == ["/dev/ttyACM1", "/dev/ttyACM7"]


def test_devices_that_are_plugged_in_later_are_read_without_a_restart(tmp_path):
    receiver = Receiver()
    section = Benchlab(ports=(f"{tmp_path}/tty*",), timeout_s=5.0)
    running = sources.start(["benchlab"], Sources(benchlab=section), receiver, "s", None, 0.02, 0.02)
    try:
        (health,) = running.health()
        wait_for(lambda: health.failures["absent"])
        with Emulator(TRUTH, path=tmp_path / "ttyA", seed=1), Emulator(TRUTH, path=tmp_path / "ttyB") as b:
            wait_for(lambda: [h.ok for h in running.health()] == [True, True])
            b.unplug()
            wait_for(lambda: [h.ok for h in running.health()].count(False) == 1)
            b.path = tmp_path / "ttyC"  # comes back as another port
            b.replug()
            wait_for(lambda: len(running.health()) == 2 and all(h.ok for h in running.health()))
        assert {h.address for h in running.health()} == {f"{tmp_path}/ttyA", f"{tmp_path}/ttyC"}
    finally:
        running.stop()
    assert len({attributes["hw.id"] for _, attributes in receiver.samples()}) == 2
    assert None in receiver.values("exporter.collect.success", {"hw.id": f"{tmp_path}/tty*"})


@pytest.mark.parametrize(
    ("fault", "value", "reasons"),
    [
        ("late", 0.5, {"late"}),
        ("silent", True, {"late"}),
        ("short", 1, {"short", "garbled"}),
        ("garbled", "noise", {"garbled", "implausible", "unknown", "short"}),
        ("garbled", "shifted", {"garbled", "implausible", "unknown", "short"}),
        ("welcome", True, {"garbled", "implausible", "short", "unknown"}),
    ],
)
def test_faulty_replies_never_become_values(fault, value, reasons):
    receiver = Receiver()
    with (
        Emulator(TRUTH, seed=7) as emulator,
        recording(emulator, receiver, rate_hz=200.0, timeout_s=0.1) as running,
    ):
        (health,) = running.health()
        healthy = getattr(emulator.faults, fault)
        for _ in range(3):
            readings, failures = health.readings, health.failures.total()
            wait_for(lambda before=readings: health.readings >= before + 5)
            setattr(emulator.faults, fault, value)
            wait_for(lambda before=failures: health.failures.total() >= before + 2)
            setattr(emulator.faults, fault, healthy)
        readings = health.readings
        wait_for(lambda: health.readings >= readings + 5)
    assert set(health.failures) & reasons
    if fault == "silent":
        health_shown = zip(
            receiver.values("exporter.collect.success"),
            receiver.values("exporter.collect.duration"),
            strict=True,
        )
        assert next(duration for success, duration in health_shown if success == 0.0) >= 0.1
    for _, attributes in receiver.samples():
        for rail in wire.RAILS:
            assert attributes[f"hw.power.rail.{rail}"] == pytest.approx(WATTS.get(rail, 0.0))
        assert attributes["hw.temperature.TS1"] == 31.0
    for value in filter(None, receiver.values("hw.host.power")):
        assert value == pytest.approx(CPU + GPU + MB)


def test_a_late_answer_is_not_taken_for_the_next_one():
    truth = Truth(Load(base={"EPS1": 10.0}, stages={"step": {"EPS1": 90.0}}))
    with Emulator(truth) as emulator:
        reader = open_reader(emulator, timeout_s=0.5)
        emulator.faults.late = 1.0
        with pytest.raises(SourceError, match="no answer"):
            reader.read()
        reader.close()
        truth.activity.begin("step")
        emulator.faults.late = 0.0
        watts = []
        while len(watts) < 3:
            with contextlib.suppress(SourceError), contextlib.closing(open_reader(emulator)) as reader:
                watts.append(read_one(reader)["hw.power.system"])
        assert set(watts) == {100.0}


def test_the_second_run_says_who_holds_the_device():
    with Emulator(TRUTH) as emulator, contextlib.closing(open_reader(emulator)):
        program = """
import sys
from benchlab_otel.config import Benchlab
from benchlab_otel.sources import benchlab
try:
    benchlab.open_reader(Benchlab(), sys.argv[1])
except benchlab.SourceError as error:
    print(error.reason, error)
"""
        command = [sys.executable, "-c", program, str(emulator.path)]
        said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
        assert said.startswith(f"busy {emulator.path}")
        assert f"process {os.getpid()} (" in said
        with pytest.raises(SourceError, match=f"process {os.getpid()}") as same_process:
            open_reader(emulator)
        assert same_process.value.reason == "busy"


def test_a_tool_that_takes_no_lock_is_found_too_and_its_secrets_are_not_told():
    with Emulator(TRUTH) as emulator:
        program = "import sys; f = open(sys.argv[1], 'rb'); print('open', flush=True); sys.stdin.read()"
        command = [sys.executable, "-c", program, str(emulator.path), "--key=hunter2"]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
            assert other.stdout.readline() == b"open\n"
            with pytest.raises(SourceError, match=f"process {other.pid} [(]python") as error:
                open_reader(emulator)
            assert "hunter2" not in str(error.value)
            other.stdin.close()


def test_a_port_that_this_user_may_not_open_names_the_rule_and_what_it_opens_up():
    with Emulator(TRUTH) as emulator, without_rights(emulator.path):
        with pytest.raises(SourceError, match="no permission") as error:
            open_reader(emulator)
        assert error.value.reason == "unreadable"
        assert 'ATTRS{idVendor}=="0483", ATTRS{idProduct}=="5740"' in error.value.fix
        assert "can also set the device's fans" in error.value.risk


@contextlib.contextmanager
def without_rights(path):
    """A path that this process may not open, root's rights being laid down."""
    path.chmod(0)
    user = os.geteuid()
    os.seteuid(user or 65534)
    try:
        yield
    finally:
        os.seteuid(user)


@pytest.mark.parametrize("path", ["/dev/null", "/nonexistent/ttyACM0"])
def test_a_path_that_is_no_device_says_so(path):
    with pytest.raises(SourceError, match=path):
        benchlab.open_reader(Benchlab(), path)


@pytest.mark.parametrize("answer", [b"", b"ok\r\n>>> ", b"HELLO, I AM ANOTHER BOARD"])
def test_another_board_with_the_same_usb_ids_gets_one_zero_byte_and_is_named(answer):
    master, slave = os.openpty()
    tty.setraw(slave)
    received = []

    def board() -> None:
        received.append(os.read(master, 4096))
        os.write(master, answer)

    thread = threading.Thread(target=board, daemon=True)
    thread.start()
    try:
        with pytest.raises(SourceError, match="not a BENCHLAB") as error:
            benchlab.open_reader(Benchlab(timeout_s=1.0), os.ttyname(slave))
        assert error.value.reason == "unknown"
        thread.join(30)
        os.set_blocking(master, False)
        with pytest.raises(OSError, match=r"temporarily unavailable|Input/output error"):
            os.read(master, 4096)  # nothing more was sent
    finally:
        os.close(master)
        os.close(slave)
    assert received == [b"\0"]


@pytest.mark.parametrize(("product", "known"), [("original", "0x10 fw 6"), ("benchlab2", "0x11 fw 7")])
def test_an_unknown_firmware_is_refused_with_those_that_are_known(product, known):
    with Emulator(TRUTH, product) as emulator:
        emulator.layout = replace(emulator.layout, firmware=99)
        with pytest.raises(SourceError, match=f"no contract for .* firmware 99; known: .*{known}") as error:
            open_reader(emulator)
        assert error.value.reason == "unknown"
        assert "benchlab-pycore" in error.value.fix
        assert not emulator.opcodes[wire.READ_SENSORS]


@pytest.mark.parametrize("product", ["original", "benchlab2"])
def test_an_answer_out_of_step_by_any_number_of_bytes_is_implausible(product):
    with Emulator(TRUTH, product) as emulator:
        layout = emulator.layout
        with serial.Serial(str(emulator.path), timeout=5) as port:
            port.read(wire.LONG_WELCOME_SIZE)
            port.write(bytes([wire.READ_SENSORS]))
            raw = port.read(layout.sensors.itemsize)
    decoder = benchlab_values.Decoder(layout)
    shifted = [raw[by:] + raw[:by] for by in range(len(raw))]
    assert [by for by, answer in enumerate(shifted) if not decoder.decode([answer])[1]] == [0]
    values, _ = decoder.decode([shifted[0], shifted[0], shifted[8], shifted[0], shifted[5]])
    assert len(values) == 2  # up to the first of them


def judged(sensors: np.ndarray) -> tuple[int, str]:
    """How many answers of the newest layout come before the first that can't be, and why that can't."""
    values, problem = NEWEST.decode([answer.tobytes() for answer in sensors])
    return len(values), problem


NEWEST = benchlab_values.Decoder(wire.layout(0x11, 7))


def at_rest(n: int) -> np.ndarray:
    """Answers of the newest layout, all zero but for the device's own supply."""
    sensors = np.zeros(n, wire.layout(0x11, 7).sensors)
    sensors["Vdd"] = 3_300
    return sensors


@pytest.mark.parametrize(
    ("rail", "field", "value", "said"),
    [
        ("ATX3V", "Voltage", 6_601, "twice its voltage"),
        ("ATX5VSB", "Voltage", 10_001, "twice its voltage"),
        ("HPWR1_W2", "Voltage", 24_001, "twice its voltage"),
        ("EPS1", "Voltage", -501, "below -0.5 V"),
        ("PCIE1", "Current", 500_001, "more than 500.0 A"),
        ("PCIE1", "Power", -5_000_001, "more than 5000.0 W"),
    ],
)
def test_each_rail_has_bounds(rail, field, value, said):
    layout = wire.layout(0x11, 7)
    sensors = at_rest(2)
    row = layout.rails.index(rail)
    sensors["PowerReadings"][field][:, row] = value - 1 if value > 0 else value + 1
    assert judged(sensors) == (2, "")
    sensors["PowerReadings"][field][1, row] = value
    n, problem = judged(sensors)
    assert n == 1
    assert said in problem


WRONG = [  # field, a number that just can't be, what is told: of several the first
    ("PowerReadings.Voltage", -501, "a rail below"),
    ("PowerReadings.Current", 500_001, "more than 500.0 A"),
    ("PowerReadings.Power", 5_000_001, "more than 5000.0 W"),
    ("Ts", 3_001, "a temperature"),
    ("Tchip", -601, "a temperature"),
    ("Tamb", 3_001, "a temperature"),
    ("Hum", 1_001, "a humidity"),
    ("FanSwitchStatus", 3, "a fan_switch"),
    ("RGBSwitchStatus", 2, "a rgb_switch"),
    ("RgbExtStatus", 2, "a rgb_external"),
    ("FanExtDuty", 101, "a duty"),
    ("Fans.Enable", 2, "a fan that is neither"),
    ("Fans.Duty", 101, "a fan's duty"),
    ("FaultStatus", 1 << 34, "in FaultStatus"),
    ("FaultLog", 1 << 34, "in FaultLog"),
]


@given(st.lists(st.sampled_from(range(len(WRONG))), min_size=1, unique=True), st.data())
def test_the_first_answer_that_cannot_be_is_told_by_the_first_of_its_problems(which, data):
    sensors = at_rest(4)
    bad = data.draw(st.integers(0, 3))
    for field, value, _ in (WRONG[n] for n in which):
        numbers = sensors
        for name in field.split("."):
            numbers = numbers[name]
        numbers = numbers.reshape(4, -1)
        place = data.draw(st.integers(0, numbers.shape[1] - 1))
        numbers[:bad, place] = value - 1 if value > 0 else value + 1
        numbers[bad:, place] = value
    n, problem = judged(sensors)
    assert n == bad
    assert WRONG[min(which)][2] in problem


@pytest.mark.parametrize(("millivolts", "good"), [(0, 0), (999, 0), (1_000, 1), (3_300, 1)])
def test_a_processor_that_answers_has_a_supply(millivolts, good):
    sensors = at_rest(1)
    sensors["Vdd"] = millivolts
    assert judged(sensors)[0] == good


@pytest.mark.parametrize(
    ("field", "key"), [("Tchip", "chip"), ("Tamb", "ambient"), ("Ts", "TS1"), ("Vin", "VIN0")]
)
def test_what_the_vendor_has_as_no_value_is_absent(field, key):
    sensors = at_rest(1)
    sensors[field], sensors["Hum"] = wire.ABSENT, 500
    (row,), problem = NEWEST.decode([sensors.tobytes()])
    keys = [key for group in benchlab_values.groups(wire.layout(0x11, 7)) for key in group.keys]
    named = dict(zip(keys, row.tolist(), strict=True))
    assert not problem
    assert math.isnan(named[("hw.voltage." if field == "Vin" else "hw.temperature.") + key])
    assert named["hw.humidity.ambient"] == 0.5


@given(st.data())
def test_whatever_bytes_come_decoding_either_refuses_or_gives_possible_values(data):
    size = wire.layout(0x11, 7).sensors.itemsize
    values, problem = NEWEST.decode([data.draw(st.binary(min_size=size, max_size=size))])
    assert len(values) == (not problem)
    assert all(abs(values[:, 0]) <= benchlab_values.MAX_WATTS)


@pytest.mark.parametrize("product", ["original", "benchlab2"])
def test_golden_of_what_is_exported(product, golden):
    receiver = Receiver()
    full = Board(temperatures=[30.0 + n for n in range(8)], fans=[1000] * 9, inputs=[1.0] * 13)
    with Emulator(TRUTH, product, board=full, seed=1) as emulator, recording(emulator, receiver):
        wait_for(lambda: receiver.samples() and receiver.values("hw.host.power"))
    golden(f"benchlab-{product}.json", receiver.outline())
