"""`device` as a user runs it, on emulated devices over their ptys."""

import contextlib
import json
import os

import pytest

from benchlab_otel import wire
from benchlab_otel.simulate.device import Emulator
from benchlab_otel.simulate.truth import Load, Truth
from benchlab_otel.sources.benchlab_port import Port
from conftest import wait_for
from test_cli_sources import PROGRAM, environment, subprocess

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
