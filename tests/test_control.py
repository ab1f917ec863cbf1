"""Control of an emulated BENCHLAB over its pty: settings read back, lights by latency, fans by rule."""

import contextlib
import signal
import subprocess
import threading
import time
from dataclasses import replace

import numpy as np
import pytest
from benchlab_pycore.core.config_io import read_fan_profile, read_name, read_rgb_profile
from hypothesis import given
from hypothesis import strategies as st

from benchlab_otel import Probe, config, sources, wire
from benchlab_otel.cli.embedded import Embedded
from benchlab_otel.config import Benchlab, Sources
from benchlab_otel.simulate.device import Board, Emulator, Faults
from benchlab_otel.simulate.truth import Load, Truth
from benchlab_otel.sources import benchlab, benchlab_control
from benchlab_otel.sources.benchlab_port import Port
from benchlab_otel.sources.benchlab_settings import Settings, pack, unpack
from benchlab_otel.sources.benchlab_undo import changes_of, is_factorys
from benchlab_otel.sources.reading import SourceError
from conftest import wait_for
from receiving import Receiver
from test_cli_sources import PROGRAM, environment
from test_device import drain, open_port

TRUTH = Truth(Load(base={"PCIE1": 100.0}))
PRODUCTS = {number: name for name, number in wire.PRODUCTS.items()}


@contextlib.contextmanager
def device(product: str = "benchlab2", firmware: int | None = None):
    """An emulator and the settings of a client that has shaken hands."""
    with Emulator(TRUTH, product, firmware) as emulator:
        port = Port(str(emulator.path), 5.0)
        try:
            yield emulator, Settings(port, benchlab.shake_hands(port).layout)
        finally:
            port.close()


@contextlib.contextmanager
def started(section: Benchlab, latency=lambda: None, receiver: Receiver | None = None):
    found = sources.start(
        *(["benchlab"], Sources(benchlab=section), receiver or Receiver(), "s"),
        flush_s=0.02,
        latency=latency,
    )
    try:
        yield found
    finally:
        found.stop()


def running(emulator: Emulator, latency=lambda: None, **control):
    ports = (str(emulator.path),)
    return started(Benchlab(ports=ports, timeout_s=5.0, control=config.Control(**control)), latency)


def errors(caplog) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]


def do_what_is_told(told: str) -> None:
    for command in told.split("to put that back: ")[1].split(" && "):
        subprocess.run([*PROGRAM, *command.split()[1:]], env=environment(), check=True, timeout=60)


def give_own_calibration(emulator: Emulator) -> bytes:
    """Stores a table that is not the factory's, and puts it in force."""
    table = bytearray(emulator.memory.calibration)
    table[60] ^= 5
    table[150] ^= 7
    table[:2] = wire.checksum(bytes(table)).to_bytes(2, "little")
    emulator.memory.slots[emulator.layout.slots["user"]] = emulator.memory.calibration = bytes(table)
    return bytes(table)


def misbehave_once_it_has_loaded(emulator: Emulator, **faults) -> None:
    """From when the device first took LOAD_CALIBRATION, before its next answer."""
    take = emulator.memory.command

    def command(request: bytes) -> bytes:
        answer = take(request)
        if request[0] == wire.LOAD_CALIBRATION and emulator.opcodes[wire.LOAD_CALIBRATION] == 1:
            emulator.faults = Faults(**faults)
        return answer

    emulator.memory.command = command


def wait_for_a_failed_comparison(emulator: Emulator, found: sources.Running) -> None:
    wait_for(lambda: emulator.faults != Faults())
    failures = found.health()[0].failures
    before = failures.total()
    wait_for(lambda: failures.total() > before)


def duty(emulator: Emulator, fan: int = 0) -> tuple[int, int]:
    """(mode, fixed duty) of a fan as the device has it."""
    values = unpack(emulator.layout, "FanConfigStruct", emulator.memory.config.fans[0, fan])
    return values["FanMode"], values["FixedDuty"]


def lights(emulator: Emulator, profile: int = 0) -> tuple[int, ...]:
    values = unpack(emulator.layout, "RGBConfigStruct", emulator.memory.config.rgb[profile])
    return tuple(values[key] for key in ("Mode", "Red", "Green", "Blue"))


def without(emulator: Emulator, opcode: int) -> wire.Layout:
    return replace(emulator.layout, commands=emulator.layout.commands - {opcode})


# -- settings -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("product_id", "firmware"), sorted(wire.available()))
def test_every_firmware_takes_settings_and_the_vendors_client_sees_them(product_id, firmware):
    with device(PRODUCTS[product_id], firmware) as (emulator, settings):
        settings.set_name("Prüfstand 3")
        fan = pack(settings.layout, "FanConfigStruct", settings.fan(2, 8), {"FixedDuty": 77, "FanMode": 1})
        settings.set_fan(2, 8, fan)
        rgb = pack(settings.layout, "RGBConfigStruct", settings.rgb(1), {"Red": 1, "Green": 2, "Blue": 3})
        settings.set_rgb(1, rgb)
        settings.port.close()
        with open_port(emulator) as port:
            drain(port)
            assert read_name(port) == "Prüfstand 3"
            theirs = read_fan_profile(port, 2, 8)
            assert (theirs.FixedDuty, theirs.FanMode, theirs.Temp[0]) == (77, 1, 300)
            light = read_rgb_profile(port, 1)
            assert (light.Red, light.Green, light.Blue) == (1, 2, 3)


def test_a_device_with_another_name_is_still_known_to_be_simulated():
    with Emulator(TRUTH) as emulator:
        emulator.memory.command(bytes([wire.WRITE_NAME]) + b"Bench 1\0")
        with contextlib.closing(benchlab.open_reader(Benchlab(), str(emulator.path))) as reader:
            assert reader.device.simulated
            assert "named Bench 1" in reader.device.description


def test_a_name_that_would_overrun_the_field_is_refused():
    with device() as (emulator, settings):
        with pytest.raises(ValueError, match="at most 30 bytes"):
            settings.set_name("ü" * 16)
        assert settings.name() == "SIMULATED"
        assert not emulator.opcodes[wire.WRITE_NAME]


@pytest.mark.parametrize("name", ["two\nlines", "nul\0", "\udcff"])
def test_a_name_that_is_no_text_is_refused(name):
    with device() as (emulator, settings), pytest.raises(ValueError, match="printable characters only"):
        settings.set_name(name)
    assert not emulator.opcodes[wire.WRITE_NAME]


def test_a_refused_write_says_why():
    with device() as (_, settings), pytest.raises(SourceError, match="BAD_PARAMETER") as error:
        settings.set_rgb(7, settings.rgb(0))
    assert error.value.reason == "refused"
    with device("original", 2) as (_, settings), pytest.raises(SourceError, match="has no command 0x12"):
        settings.store()


def test_a_write_that_an_old_firmware_drops_is_found_by_reading_back():
    with device("original", 2) as (emulator, settings):
        before = emulator.memory.config
        emulator.memory.layout = without(emulator, wire.WRITE_RGB)  # and it has no STATUS to tell of it
        red = pack(settings.layout, "RGBConfigStruct", settings.rgb(0), {"Red": 255})
        with pytest.raises(SourceError, match="reads back"):
            settings.set_rgb(0, red)
        assert emulator.memory.config == before


def test_store_and_restore():
    with device() as (emulator, settings):
        settings.set_name("kept")
        settings.store()
        settings.set_name("not kept")
        settings.restore()
        assert settings.name() == "kept"
        assert emulator.memory.stored.name.startswith(b"kept")


@pytest.mark.parametrize(("product", "firmware"), [("original", 3), ("original", 6), ("benchlab2", 7)])
def test_the_factory_table_is_compared_without_a_trace(product, firmware):
    with device(product, firmware) as (emulator, settings):
        slots, numbers = emulator.memory.slots, settings.layout.slots
        factory = slots[numbers["factory"]]
        assert is_factorys(settings, changes_of({}, b"uid", settings))
        user = give_own_calibration(emulator)
        changes = changes_of({}, b"uid", settings)
        assert is_factorys(settings, changes) is False
        assert not changes.left
        assert emulator.memory.calibration == user
        settings.store_calibration()
        assert slots == {numbers["user"]: user, numbers["factory"]: factory}


@pytest.mark.parametrize("firmware", [4, 6])
def test_a_table_that_can_not_be_written_back_is_not_touched_and_the_device_is_read(firmware, caplog):
    with Emulator(TRUTH, "benchlab2", firmware) as emulator:
        receiver = Receiver()
        section = Benchlab(ports=(str(emulator.path),), timeout_s=5.0, compare_calibration=True)
        with started(section, receiver=receiver) as found:
            wait_for(lambda: found.health()[0].ok)
            emulator.unplug()
            wait_for(lambda: not found.health()[0].ok)
            emulator.replug()
            wait_for(lambda: found.health()[0].ok)
        assert not emulator.opcodes[wire.LOAD_CALIBRATION]
    assert receiver.values("hw.calibration", {"hw.state": "valid"})[0] == 1.0
    assert not receiver.values("hw.calibration", {"hw.state": "factory"})
    assert caplog.text.count("takes only a part of a table back; the calibration is not compared") == 1


def test_a_calibration_that_the_device_refuses_to_load_is_not_compared():
    with device() as (emulator, settings):
        emulator.memory.layout = without(emulator, wire.LOAD_CALIBRATION)
        changes = changes_of({}, b"uid", settings)
        assert is_factorys(settings, changes) is None
        assert not changes.left


@pytest.mark.parametrize("firmware", [5, 6])  # the older one is written a table piece by piece
@pytest.mark.parametrize("fault", [{"silent": True}, {"late": 0.3}], ids=["silent", "late"])
def test_the_calibration_of_before_is_put_back_when_the_device_answers_again(firmware, fault):
    with Emulator(TRUTH, "original", firmware) as emulator:
        user, receiver = give_own_calibration(emulator), Receiver()
        misbehave_once_it_has_loaded(emulator, **fault)
        section = Benchlab(ports=(str(emulator.path),), compare_calibration=True)
        with started(section, receiver=receiver) as found:
            wait_for_a_failed_comparison(emulator, found)
            emulator.faults = Faults()
            wait_for(lambda: found.health()[0].ok)
            assert emulator.memory.calibration == user
    assert receiver.values("hw.calibration", {"hw.state": "factory"})[0] == 0.0


def test_a_calibration_that_can_not_be_put_back_is_told_with_what_does(caplog):
    with Emulator(TRUTH, "original") as emulator:
        user = give_own_calibration(emulator)
        misbehave_once_it_has_loaded(emulator, silent=True)
        with started(Benchlab(ports=(str(emulator.path),), compare_calibration=True)) as found:
            wait_for_a_failed_comparison(emulator, found)
        (told,) = errors(caplog)
        assert "not a BENCHLAB, or it hangs; the factory's calibration may be in force; to put" in told
        emulator.faults = Faults()
        assert emulator.memory.calibration != user
        do_what_is_told(told)
        assert emulator.memory.calibration == user


def test_who_only_looks_writes_nothing():
    with Emulator(TRUTH) as emulator:
        section = Benchlab(ports=(str(emulator.path),), compare_calibration=True)
        assert sources.look("benchlab", Sources(benchlab=section), 0.01)[0].device
        assert not emulator.opcodes[wire.LOAD_CALIBRATION]


def test_fields_are_packed_and_unpacked_and_kept_in_bounds():
    layout = wire.layout(0x11, 7)
    zero = bytes(layout.structs["FanConfigStruct"].itemsize)
    packed = pack(layout, "FanConfigStruct", zero, {"Temp": [-50, 700], "Duty": [20, 100]})
    assert unpack(layout, "FanConfigStruct", packed)["Temp"] == [-50, 700]
    with pytest.raises(ValueError, match="Duty: expected 0 to 100, not"):
        pack(layout, "FanConfigStruct", zero, {"Duty": [20, 101]})


# -- rules --------------------------------------------------------------------------------------


def test_colours_have_hysteresis():
    rules = config.Control(light=True, yellow_ms=20.0, red_ms=40.0, hysteresis=0.1)
    shown, seen = "", []
    for latency in (5.0, 19.0, 20.0, 18.5, 17.9, 41.0, 37.0, 35.9, 10.0):
        shown = benchlab_control.color_of(latency, shown, rules)
        seen.append(shown)
    assert seen == ["green", "green", "yellow", "yellow", "green", "red", "red", "yellow", "green"]


@given(st.one_of(st.none(), st.floats()))
def test_a_duty_is_always_within_its_limits(value):
    rules = config.Control(least_duty=25, failsafe_duty=90)
    rule = benchlab_control.parse_rule("3 temperature.TS1 30:0 60:95")
    duty = benchlab_control.duty_of(rule, value, rules)
    assert 25 <= duty <= 95
    assert duty == 90 or not (value is None or np.isnan(value))


@pytest.mark.parametrize("rule", ["1 power.gpu 60:20 30:100", "1 power.gpu 30:20 60:101"])
def test_rules_that_can_not_be_followed_are_refused_at_the_start(rule):
    section = Benchlab(control=config.Control(fans=(rule,)))
    with pytest.raises(ValueError, match=rule):
        sources.start(["benchlab"], Sources(benchlab=section), Receiver(), "s")


@pytest.mark.parametrize(
    ("control", "said"),
    [
        ({"fans": ("1 power.gpu 0:20 9:100", "1 power.cpu 0:20 9:100")}, "expected one rule for a fan"),
        (
            {"light": True, "yellow_ms": 50.0, "red_ms": 40.0},
            "expected yellow_ms up to red_ms, not 50 and 40",
        ),
    ],
)
def test_rules_that_contradict_each_other_are_refused_at_the_start(control, said):
    section = Benchlab(control=config.Control(**control))
    with pytest.raises(ValueError, match=said):
        sources.start(["benchlab"], Sources(benchlab=section), Receiver(), "s")


def test_a_rule_by_a_quantity_that_is_not_there_says_so_once(caplog):
    rule = "1 power.gpuu 0:30 200:80"
    with Emulator(TRUTH) as emulator, running(emulator, fans=(rule,), failsafe_duty=91) as found:
        wait_for(lambda: duty(emulator) == (1, 91))
        wait_for(lambda: found.health()[0].readings > 20)
    said = "fan 1 stays at failsafe_duty: the device has no power.gpuu; did you mean power.gpu?"
    assert caplog.text.count(said) == 1


def test_nothing_is_written_unless_asked_for():
    with Emulator(TRUTH) as emulator:
        with running(emulator) as found:
            wait_for(lambda: found.health()[0].readings > 5)
        writes = {wire.WRITE_NAME, wire.WRITE_FAN, wire.WRITE_RGB, wire.WRITE_CALIBRATION, wire.ACTION}
        writes |= {wire.LOAD_CALIBRATION, wire.STORE_CALIBRATION, wire.STORE_CONFIG, wire.LOAD_CONFIG}
        assert not writes & emulator.opcodes.keys()


def test_the_light_shows_latency_and_is_put_back():
    seconds = [0.010]
    with Emulator(TRUTH, "benchlab2") as emulator:
        before = dict(emulator.memory.config.rgb)
        with running(emulator, lambda: seconds[0], light=True):
            single = emulator.layout.enums["RGB_MODE"]["single_color"]
            for latency, colour in ((0.010, (0, 255, 0)), (0.030, (255, 140, 0)), (0.050, (255, 0, 0))):
                seconds[0] = latency
                wait_for(lambda colour=colour: lights(emulator) == lights(emulator, 1) == (single, *colour))
            seconds[0] = None  # no frames: as it was
            wait_for(lambda: emulator.memory.config.rgb == before)
            seconds[0] = 0.1
            wait_for(lambda: emulator.memory.config.rgb != before)
        assert emulator.memory.config.rgb == before


def test_the_light_is_put_back_when_readings_fail():
    board = Board(temperatures=[30.0])
    with Emulator(TRUTH, "benchlab2", board=board) as emulator:
        before = dict(emulator.memory.config.rgb)
        with running(emulator, lambda: 0.1, light=True) as found:
            wait_for(lambda: emulator.memory.config.rgb != before)
            board.temperatures = [900.0]  # answers that can't be, until the end
            wait_for(lambda: found.health()[0].failures["implausible"] > 2)
        assert emulator.memory.config.rgb == before


class Broken(Receiver):
    """A sink that ends the reader's thread: it breaks its promise never to raise."""

    broken = False

    def traces(self, body: bytes) -> None:
        if self.broken:
            raise RuntimeError("full")
        super().traces(body)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_everything_is_put_back_when_the_readers_thread_ends_by_a_defect():
    control = config.Control(light=True, fans=("1 power.gpu 0:30 200:80",))
    receiver = Broken()
    with Emulator(TRUTH, "benchlab2") as emulator:
        before = emulator.memory.config
        section = Benchlab(ports=(str(emulator.path),), timeout_s=5.0, control=control)
        found = sources.start(["benchlab"], Sources(benchlab=section), receiver, "s", latency=lambda: 0.1)
        wait_for(lambda: duty(emulator) == (1, 55) and lights(emulator)[1:] == (255, 0, 0))
        receiver.broken = True
        wait_for(lambda: found.health()[0].failures["defect"])
        wait_for(lambda: emulator.memory.config == before)
        found.stop()


def test_a_run_shows_the_latency_of_its_frames_on_the_device(tmp_path):
    with Emulator(TRUTH, "benchlab2") as emulator:
        before = dict(emulator.memory.config.rgb)
        light = config.Control(light=True, yellow_ms=40.0, red_ms=5000.0)
        settings = config.Settings(
            session=config.Session(tmp_path),
            hub=config.Hub("127.0.0.1:0", "127.0.0.1:0", "127.0.0.1:0"),
            sources=Sources(benchlab=Benchlab(ports=(str(emulator.path),), timeout_s=5.0, control=light)),
        )
        with Embedded(settings, ["test"], ["benchlab"]) as embedded:
            with contextlib.closing(Probe("cam", sink=embedded.hub)) as probe:

                def is_yellow() -> bool:
                    with probe.frame() as frame:
                        frame.mark("ingress")
                        time.sleep(0.06)
                        frame.mark("shown")
                    return lights(emulator)[1:] == (255, 140, 0)

                wait_for(is_yellow)
            wait_for(lambda: emulator.memory.config.rgb == before)  # no more frames
        assert emulator.memory.config.rgb == before


def test_fans_follow_their_rule_and_are_put_back():
    board = Board(temperatures=[45.0, None])
    rules = ("1 temperature.TS1 30:20 60:100", "2 power.gpu 0:30 200:80", "3 temperature.TS2 30:20 60:100")
    with Emulator(TRUTH, "benchlab2", board=board) as emulator:
        before = dict(emulator.memory.config.fans)
        with running(emulator, fans=rules, failsafe_duty=95) as found:
            wait_for(lambda: duty(emulator, 0) == (1, 60))
            wait_for(lambda: duty(emulator, 1) == (1, 55))
            wait_for(lambda: duty(emulator, 2) == (1, 95))  # no sensor there
            board.temperatures[0] = 80.0
            wait_for(lambda: duty(emulator, 0) == (1, 100))
            board.temperatures[0] = 10.0
            wait_for(lambda: duty(emulator, 0) == (1, 20))
            assert found.health()[0].ok
        assert emulator.memory.config.fans == before


def test_fans_go_to_their_failsafe_when_readings_stop_and_resume_after():
    board = Board(temperatures=[30.0])
    with Emulator(TRUTH, board=board) as emulator:
        before = dict(emulator.memory.config.fans)
        with running(emulator, fans=("1 temperature.TS1 30:20 60:100",), failsafe_duty=88) as found:
            wait_for(lambda: duty(emulator) == (1, 20))
            healthy, board.temperatures = board.temperatures, [900.0]  # answers that can't be
            wait_for(lambda: duty(emulator) == (1, 88))
            wait_for(lambda: found.health()[0].failures["implausible"])
            board.temperatures = healthy
            wait_for(lambda: duty(emulator) == (1, 20))
            emulator.unplug()
            wait_for(lambda: not found.health()[0].ok)
            emulator.memory.reset()
            emulator.replug()
            wait_for(lambda: duty(emulator) == (1, 20))
        assert emulator.memory.config.fans == before  # not the fail-safe of between


def test_fans_are_put_back_where_reading_ends_while_readings_fail():
    board = Board(temperatures=[30.0])
    with Emulator(TRUTH, "benchlab2", board=board) as emulator:
        before = dict(emulator.memory.config.fans)
        with running(emulator, fans=("1 temperature.TS1 30:20 60:100",), failsafe_duty=88) as found:
            wait_for(lambda: duty(emulator) == (1, 20))
            board.temperatures = [900.0]  # an answer that can't be, each time
            wait_for(lambda: found.health()[0].failures["implausible"] > 1)
            wait_for(lambda: duty(emulator) == (1, 88))
        assert emulator.memory.config.fans == before


def test_fans_of_a_device_that_is_gone_in_the_end_are_told_with_what_sets_them_back(caplog):
    board = Board(temperatures=[30.0])
    rules = {"fans": ("2 temperature.TS1 30:20 60:100",), "fan_profile": 1}
    with Emulator(TRUTH, "benchlab2", board=board) as emulator:
        before = pack(
            *(emulator.layout, "FanConfigStruct", emulator.memory.config.fans[1, 1]),
            {"FanMode": 0, "FixedDuty": 47},
        )
        emulator.memory.config.fans[1, 1] = before
        with running(emulator, light=True, latency=lambda: 0.05, **rules) as found:
            wait_for(lambda: lights(emulator, 1)[1:] == (255, 0, 0))
            wait_for(lambda: emulator.memory.config.fans[1, 1] != before)
            emulator.unplug()
            wait_for(lambda: not found.health()[0].ok)
        (told,) = errors(caplog)
        assert "no such port; fan 2 may still be at 20 %, lights 0 may" in told
        assert "lights 1 may still be red" in told
        emulator.replug()
        do_what_is_told(told)
        assert emulator.memory.config.fans[1, 1] == before
        assert lights(emulator, 1)[1:] != (255, 0, 0)


def controlled_ports(folder) -> Benchlab:
    rules = config.Control(light=True, fans=("1 power.gpu 0:30 200:80",))
    return Benchlab(ports=(f"{folder}/tty*",), timeout_s=5.0, control=rules)


def is_controlled(emulator: Emulator) -> bool:
    return duty(emulator) == (1, 55) and lights(emulator, 1)[1:] == (255, 0, 0)


def test_a_device_that_comes_back_under_another_port_is_put_back_there(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(sources, "LOOK_S", 0.1)
    with Emulator(TRUTH, "benchlab2", path=tmp_path / "ttyA") as emulator:
        before = emulator.memory.config
        with started(controlled_ports(tmp_path), lambda: 0.05) as found:
            wait_for(lambda: is_controlled(emulator))
            emulator.unplug()  # and keeps its settings, by a supply of its own
            wait_for(lambda: not found.health()[0].ok)
            emulator.path = tmp_path / "ttyB"
            emulator.replug()
            wait_for(lambda: [(h.address, h.ok) for h in found.health()] == [(str(tmp_path / "ttyB"), True)])
            assert is_controlled(emulator)
        assert emulator.memory.config == before
    assert not errors(caplog)


def test_devices_that_change_places_are_put_back(tmp_path, caplog):
    with (
        Emulator(TRUTH, "benchlab2", path=tmp_path / "ttyA") as a,
        Emulator(TRUTH, "benchlab2", path=tmp_path / "ttyB") as b,
    ):
        before = a.memory.config
        b.memory.command(bytes([wire.WRITE_FAN, 0, 0]) + before.fans[0, 0].replace(b"\x32", b"\x2f"))
        other = b.memory.config
        assert other != before
        with started(controlled_ports(tmp_path), lambda: 0.05) as found:
            wait_for(lambda: is_controlled(a) and is_controlled(b))
            for emulator in (a, b):
                emulator.unplug()
            wait_for(lambda: not any(h.ok for h in found.health()))
            a.path, b.path = b.path, a.path
            for emulator in (a, b):
                emulator.replug()
            wait_for(lambda: all(h.ok for h in found.health()))
        assert (a.memory.config, b.memory.config) == (before, other)
    assert not errors(caplog)


def test_a_device_that_another_one_took_the_port_of_is_told_in_the_end(tmp_path, caplog):
    path = tmp_path / "ttyA"
    with (
        Emulator(TRUTH, "benchlab2", path=path) as gone,
        Emulator(TRUTH, "benchlab2", path=tmp_path / "later") as other,
    ):
        before = other.memory.config
        with started(controlled_ports(tmp_path), lambda: 0.05):
            wait_for(lambda: is_controlled(gone))
            gone.unplug()
            other.unplug()
            other.path = path
            other.replug()
            wait_for(lambda: is_controlled(other))
        assert other.memory.config == before
    (told,) = errors(caplog)
    assert f"{path}: another device is there now; fan 1 may still be at" in told


def test_a_controlled_device_holds_up_no_other():
    with Emulator(TRUTH) as a, Emulator(TRUTH) as b:
        rules = config.Control(fans=("1 power.gpu 0:30 200:80",))
        section = Benchlab(ports=(str(a.path), str(b.path)), timeout_s=5.0, control=rules)
        with started(section) as found:
            wait_for(lambda: all(h.readings >= 20 for h in found.health()))  # a few suffice to join others
            assert not [thread for thread in threading.enumerate() if thread.name == "benchlab-otel-rota"]


@pytest.mark.parametrize(
    ("command", "number"),
    [
        (("export", "benchlab", "--metrics", "127.0.0.1:0"), signal.SIGTERM),
        (("export", "benchlab", "--metrics", "127.0.0.1:0"), signal.SIGHUP),
        (("run", "--source", "benchlab"), signal.SIGHUP),
        (("record", "--", "sleep", "60"), signal.SIGTERM),
        (("record", "--", "sleep", "60"), signal.SIGHUP),
    ],
    ids=lambda value: value.name if isinstance(value, signal.Signals) else value[0],
)
def test_fans_are_put_back_when_a_command_is_ended_or_its_terminal_closed(command, number, tmp_path):
    with Emulator(TRUTH) as emulator:
        before = dict(emulator.memory.config.fans)
        own = environment(
            XDG_STATE_HOME=str(tmp_path),
            BENCHLAB_OTEL_SOURCES__ENABLED="benchlab",
            BENCHLAB_OTEL_SOURCES__BENCHLAB__PORTS=str(emulator.path),
            BENCHLAB_OTEL_SOURCES__BENCHLAB__TIMEOUT_S="5",
            BENCHLAB_OTEL_SOURCES__BENCHLAB__CONTROL__FANS="1 power.gpu 0:30 200:80",
            **{f"BENCHLAB_OTEL_HUB__{name}": "127.0.0.1:0" for name in ("GRPC", "HTTP", "METRICS")},
        )
        with subprocess.Popen([*PROGRAM, *command], env=own, stdout=subprocess.DEVNULL) as process:
            wait_for(lambda: duty(emulator) == (1, 55))
            process.send_signal(number)
            process.wait(60)
        assert emulator.memory.config.fans == before


def test_a_firmware_that_refuses_ends_control_and_not_the_readings(caplog):
    with Emulator(TRUTH) as emulator:
        emulator.memory.layout = replace(
            emulator.layout, commands=emulator.layout.commands - {wire.WRITE_FAN}
        )
        with running(emulator, fans=("1 power.gpu 0:30 200:80",)) as found:
            wait_for(lambda: "control ended" in caplog.text)
            readings = found.health()[0].readings
            wait_for(lambda: found.health()[0].readings > readings + 5)
            assert found.health()[0].ok
    assert "UNKNOWN_OPCODE" in caplog.text
