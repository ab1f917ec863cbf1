"""`device` as a user runs it, on emulated devices over their ptys."""

import contextlib
import json
import os
import signal

import pytest

from benchlab_otel import wire
from benchlab_otel.simulate.device import Emulator, Faults, Meter
from benchlab_otel.simulate.truth import Load, Truth
from benchlab_otel.sources.benchlab_port import Port
from conftest import wait_for
from test_cli_sources import PROGRAM, environment, subprocess
from test_control import give_own_calibration, misbehave_once_it_has_loaded

TRUTH = Truth(Load(base={"EPS1": 50.0}))


@pytest.fixture
def emulator():
    with Emulator(TRUTH, "benchlab2", seed=1) as found:
        yield found


def run(emulator, *arguments, typed=""):
    own = environment(BENCHLAB_OTEL_SOURCES__BENCHLAB__TIMEOUT_S="10")
    command = [*PROGRAM, "device", *arguments, "--port", str(emulator.path)]
    return subprocess.run(command, input=typed, capture_output=True, text=True, timeout=60, env=own)


def test_name_fans_and_lights_are_read_and_written(emulator):
    assert run(emulator, "name", "Bench 3").stdout == "Bench 3\n"
    done = run(emulator, "fan", "2", "FanMode=temp_control", "TempSource=ts_hpwr1_in", "Temp=300,650")
    fan = json.loads(done.stdout)
    assert (fan["TempSource"], fan["Temp"], fan["Duty"]) == ("ts_hpwr1_in", [300, 650], [20, 100])
    assert json.loads(run(emulator, "fan", "2").stdout) == fan
    light = json.loads(run(emulator, "rgb", "Mode=single_color", "Red=9", "--profile", "1").stdout)
    assert (light["Mode"], light["Red"]) == ("single_color", 9)
    run(emulator, "restore")
    assert run(emulator, "name").stdout == "SIMULATED\n"


def test_calibration_is_shown_and_compared(emulator):
    shown = json.loads(run(emulator, "calibration", "--compare").stdout)
    assert (shown["valid"], shown["factory"], shown["Vdd"]) == (True, True, [3, -12])


def test_a_calibration_that_can_not_be_compared_is_shown_all_the_same():
    with Emulator(TRUTH, "benchlab2", 6) as emulator:
        done = run(emulator, "calibration", "--compare")
    shown = json.loads(done.stdout)
    assert (shown["valid"], shown["Vdd"]) == (True, [3, -12])
    assert "factory" not in shown
    assert "the calibration is not compared with the factory's" in done.stderr


@contextlib.contextmanager
def comparing(emulator):
    """`device calibration --compare` from when the factory's table is in force."""
    before = emulator.memory.calibration
    command = [*PROGRAM, "device", "calibration", "--compare", "--port", str(emulator.path)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, env=environment()) as process:
        wait_for(lambda: emulator.memory.calibration != before)
        yield process
        process.wait(60)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_no_signal_ends_a_comparison_before_the_table_is_put_back(number):
    with Emulator(TRUTH, meter=Meter(delay=0.1)) as emulator:
        user = give_own_calibration(emulator)
        with comparing(emulator) as process:
            process.send_signal(number)
        assert emulator.memory.calibration == user


def test_a_device_that_is_silent_for_a_moment_of_a_comparison_gets_its_table_back():
    with Emulator(TRUTH) as emulator:
        user = give_own_calibration(emulator)
        misbehave_once_it_has_loaded(emulator, silent=True)
        with comparing(emulator) as process:
            wait_for(lambda: emulator.opcodes[wire.WELCOME] >= 2)  # the port was opened anew
            emulator.faults = Faults()
        assert process.returncode == 1
        assert emulator.memory.calibration == user


def test_a_table_is_written_whole_or_not_at_all(emulator):
    table = emulator.memory.calibration
    for wrong, said in ((table[1:].hex(), "a table has 294 bytes, not 293"), ("xy", "hexadecimal digits")):
        done = run(emulator, "calibration", "--write", wrong)
        assert (done.returncode, said in done.stderr) == (2, True)
    changed = table[:2] + bytes(4) + table[6:-1] + b"\x07"
    assert run(emulator, "calibration", "--write", changed.hex()).returncode == 0
    assert emulator.memory.calibration == changed


@pytest.mark.parametrize(("product", "firmware"), [("original", 3), ("benchlab2", 4)])
def test_a_firmware_that_keeps_no_settings_says_how_to_restore_them(product, firmware):
    with Emulator(TRUTH, product, firmware) as emulator:
        done = run(emulator, "restore")
    assert done.returncode == 1
    assert "has no command 0x11; set them with `benchlab-otel device fan`" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "opcode"),
    [
        (("reset",), wire.RESET),
        (("bootloader",), wire.BOOTLOADER),
        (("calibration", "--store"), wire.STORE_CALIBRATION),
    ],
)
def test_what_destroys_needs_a_flag_and_the_uid(emulator, arguments, opcode):
    uid = emulator.uid.hex().upper()
    refused = run(emulator, *arguments)
    assert refused.returncode == 2
    assert "--destructive" in refused.stderr
    assert run(emulator, *arguments, "--destructive", typed="yes\n").returncode == 2
    assert not emulator.opcodes[opcode]
    done = run(emulator, *arguments, "--destructive", typed=f"{uid}\n")
    assert done.returncode == 0, done.stderr
    wait_for(lambda: emulator.opcodes[opcode])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("fan", "1", "Speed=3"), "fields: FanMode, TempSource"),
        (("fan", "1", "FanMode=fast"), "expected temp_control, fixed, ext"),
        (("fan", "1", "Temp=3"), "expected 2 whole numbers"),
        (("fan", "1", "FixedDuty=101"), "FixedDuty: expected 0 to 100, not 101"),
        (("fan", "1", "MinDuty=300"), "MinDuty: expected 0 to 100, not 300"),
        (("rgb", "Red=256"), "Red: expected 0 to 255, not 256"),
        (("name", "a name that is much too long for it"), "at most 30 bytes"),
    ],
)
def test_mistakes_are_one_line(emulator, arguments, said):
    done = run(emulator, *arguments)
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_a_device_that_is_being_read_is_not_touched(emulator):
    with contextlib.closing(Port(str(emulator.path), 5.0)):
        done = run(emulator, "name", "mine")
    assert done.returncode == 1
    assert f"in use by process {os.getpid()}" in done.stderr
