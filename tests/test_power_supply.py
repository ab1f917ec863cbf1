"""Batteries and USB-PD ports: the direction is the status's, and a contract is no measurement."""

from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchlab_otel import sources
from benchlab_otel.config import PowerSupply, Sources
from benchlab_otel.sources import power_supply
from benchlab_otel.sources.reading import SourceError
from conftest import wait_for
from machines import unpack, write
from receiving import Receiver

LAPTOP, HANDHELD = "thinkpad-x1-i7-8550u", "steam-deck"


@contextmanager
def opened(root: Path):
    settings = PowerSupply(sysfs=root)
    with closing(power_supply.open_reader(settings, *power_supply.addresses(settings))) as reader:
        yield reader


def values(reader) -> dict[tuple[str, str, str], float]:
    """What is there, by metric, id and place."""
    (batch,) = reader.decode([reader.read()])
    return {
        (f.metric.name, f.labels["hw.id"], f.labels["hw.sensor_location"]): value
        for f, value in zip(batch.fields, batch.values[0].tolist(), strict=True)
        if value == value  # not NaN
    }


OUT, IN = ("hw.power", "BAT0", "discharge"), ("hw.power", "BAT0", "charge")


def test_power_flows_out_or_in_or_is_absent(tmp_path):
    root = unpack(LAPTOP, tmp_path)
    with opened(root) as reader:
        assert values(reader)[OUT] == 8.734
        write(root / "class/power_supply/BAT0/status", "Charging")
        found = values(reader)
        assert found[IN] == 8.734
        assert OUT not in found
        write(root / "class/power_supply/BAT0/status", "Full")
        assert not {IN, OUT} & set(values(reader))


def test_only_what_the_battery_gives_is_a_domain(tmp_path):
    with opened(unpack(LAPTOP, tmp_path)) as reader:
        (batch,) = reader.decode([reader.read()])
    assert [f.key for f in batch.fields if f.key] == ["hw.power.battery"]


def test_without_power_now_it_is_current_times_voltage_whatever_the_sign(tmp_path):
    root = unpack(HANDHELD, tmp_path)
    with opened(root) as reader:
        assert values(reader)["hw.power", "BAT1", "charge"] == pytest.approx(10.625)
        write(root / "class/power_supply/BAT1/status", "Discharging")
        write(root / "class/power_supply/BAT1/current_now", "1250000")
        assert values(reader)["hw.power", "BAT1", "discharge"] == pytest.approx(10.625)


def test_a_controllers_battery_has_a_charge_but_no_power(tmp_path):
    with opened(unpack(HANDHELD, tmp_path)) as reader:
        found = values(reader)
    assert found["hw.battery.charge", "hid-28de-battery", "hid-28de-battery"] == 0.55
    assert not [key for key in found if key[0] == "hw.power" and key[1] == "hid-28de-battery"]


def test_a_usb_contract_is_a_limit_and_an_empty_port_has_none(tmp_path):
    port = "ucsi-source-psy-USBC000:00"
    with opened(unpack(LAPTOP, tmp_path)) as reader:
        limits = {key[1]: value for key, value in values(reader).items() if key[0] == "hw.power.limit"}
    assert limits == {f"{port}1": 65.0}


@pytest.mark.parametrize(
    ("online", "usb_type", "watts"),
    [
        ("1", "C [PD] PD_PPS", 15.0),
        ("2", "C PD [PD_PPS]", 15.0),
        ("0", "C [PD] PD_PPS", None),  # it gives power
        ("1", "[C] PD PD_PPS", None),  # no contract: the driver guesses
        ("1", "[SDP] DCP CDP", None),
    ],
)
def test_only_a_contract_by_which_the_port_takes_power_is_a_limit(online, usb_type, watts, tmp_path):
    root = unpack(LAPTOP, tmp_path)
    port = root / "class/power_supply/ucsi-source-psy-USBC000:002"
    for name, text in (("online", online), ("usb_type", usb_type), ("current_now", "3000000")):
        write(port / name, text)
    with opened(root) as reader:
        assert values(reader).get(("hw.power.limit", port.name, port.name)) == watts


def plug_in(root: Path, name: str, kind: str) -> None:
    """A supply that gives 5 W."""
    folder = root / "devices/platform" / name
    for file, text in (("type", kind), ("status", "Discharging"), ("power_now", "5000000")):
        write(folder / file, text)
    (root / "class/power_supply" / name).symlink_to(folder)


@pytest.mark.parametrize(
    ("kinds", "domains"),
    [
        ({"UPS0": "UPS"}, {"hw.power.BAT0", "hw.power.UPS0"}),
        ({"BAT1": "Battery", "UPS0": "UPS"}, {"hw.power.BAT0", "hw.power.BAT1", "hw.power.UPS0"}),
    ],
)
def test_each_of_several_supplies_is_a_domain_of_its_own(kinds, domains, tmp_path):
    root = unpack(LAPTOP, tmp_path)
    for name, kind in kinds.items():
        plug_in(root, name, kind)
    with opened(root) as reader:
        (batch,) = reader.decode([reader.read()])
    assert sorted(f.key for f in batch.fields if f.key) == sorted(domains)


def test_a_battery_that_is_plugged_in_is_read_and_one_that_is_unplugged_leaves_no_values(tmp_path):
    root = unpack(LAPTOP, tmp_path)
    receiver = Receiver()
    settings = Sources(power_supply=PowerSupply(sysfs=root, rate_hz=50))
    running = sources.start(["power_supply"], settings, receiver, "s", flush_s=0.02, metrics_s=0.01)
    first, second = {"hw.id": "BAT0"}, {"hw.id": "BAT1"}
    wait_for(lambda: receiver.values("hw.power", first))
    plug_in(root, "BAT1", "Battery")
    wait_for(lambda: receiver.values("hw.power", second))
    (root / "class/power_supply/BAT1").unlink()
    wait_for(lambda: receiver.values("hw.power", second)[-1] is None)
    wait_for(lambda: receiver.values("hw.power", first)[-1] == 8.734)
    running.stop()
    keys = {key for _, attributes in receiver.samples() for key in attributes if key.startswith("hw.power")}
    assert keys == {"hw.power.battery", "hw.power.BAT0", "hw.power.BAT1"}


def test_without_any_supply_it_is_absent(tmp_path):
    with (
        pytest.raises(SourceError, match="no battery") as error,
        closing(power_supply.open_reader(PowerSupply(sysfs=tmp_path), str(tmp_path))),
    ):
        pass
    assert error.value.reason == "absent"


def test_a_battery_without_power_that_answers_nothing_any_more_is_lost(tmp_path):
    """All its values are slow ones, which are read each second."""
    root = unpack(LAPTOP, tmp_path)
    for supply in (root / "class/power_supply").iterdir():
        if supply.name != "BAT0":
            supply.unlink()
    write(root / "class/power_supply/BAT0/scope", "Device")
    with opened(root) as reader:
        assert ("hw.battery.charge", "BAT0", "BAT0") in values(reader)
        for path in (root / "class/power_supply/BAT0/").glob("*"):
            if path.is_file():
                path.write_text("")
        with pytest.raises(SourceError, match="no sensor can be read any more"):
            wait_for(lambda: not reader.read())


def test_a_desktop_has_nothing_to_read(tmp_path):
    assert power_supply.addresses(PowerSupply(sysfs=unpack("epyc-2p-server", tmp_path))) == []


@given(st.binary(max_size=12), st.binary(max_size=12), st.none() | st.binary(max_size=12))
def test_texts_that_make_no_sense_are_refused(status, first, voltage):
    try:
        watts = power_supply.flowing(b"Charging", status, first, voltage)
    except ValueError:
        return
    assert status.strip() == b"Charging"
    assert watts >= 0.0
