"""hwmon chips on the /sys of real machines: what is absent, what stays the same, what comes and goes."""

from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchlab_otel import sources
from benchlab_otel.config import Hwmon, Sources
from benchlab_otel.sources import hwmon
from benchlab_otel.sources.reading import SourceError
from benchlab_otel.sources.sysfs import DEGREES, place, scaled
from conftest import wait_for
from machines import unpack, write
from receiving import Receiver, read_one

SERVER, DESKTOP = "epyc-2p-server", "ryzen-5950x-rx6800xt"
TCTL = "hw.temperature.k10temp.Tctl"


@contextmanager
def opened(root: Path):
    settings = Hwmon(sysfs=root)
    with closing(hwmon.open_reader(settings, *hwmon.addresses(settings))) as reader:
        yield reader


def test_each_reading_is_new(tmp_path):
    root = unpack(DESKTOP, tmp_path)
    with opened(root) as reader:
        assert read_one(reader)[TCTL] == 61.25
        write(root / "class/hwmon/hwmon2/temp1_input", "70125")
        assert read_one(reader)[TCTL] == 70.125


def test_ids_and_keys_do_not_depend_on_hwmons_numbers(tmp_path):
    root = unpack(DESKTOP, tmp_path)
    with opened(root) as reader:
        before = {(f.key, *f.labels.values()) for f in next(reader.decode([reader.read()])).fields}
    chips = root / "class/hwmon"
    (chips / "hwmon2").rename(chips / "hwmon17")
    (chips / "hwmon0").rename(chips / "hwmon2")
    with opened(root) as reader:
        assert {(f.key, *f.labels.values()) for f in next(reader.decode([reader.read()])).fields} == before


def test_a_sensor_that_is_not_wired_is_absent_until_it_is(tmp_path):
    root = unpack(DESKTOP, tmp_path)
    with opened(root) as reader:
        values = read_one(reader)
        faulty, cold = (values[f"hw.temperature.nct6798.{name}"] for name in ("PECI-Agent-0", "AUXTIN1"))
        assert faulty != faulty
        assert cold != cold
        write(root / "class/hwmon/hwmon3/temp7_input", "48500")
        write(root / "class/hwmon/hwmon3/temp7_fault", "0")
        assert read_one(reader)["hw.temperature.nct6798.PECI-Agent-0"] == 48.5


def test_only_the_total_of_a_power_supply_is_a_domain(tmp_path):
    with opened(unpack("xeon-2p-server", tmp_path)) as reader:
        powers = {key: value for key, value in read_one(reader).items() if key.startswith("hw.power.")}
    assert powers == {
        "hw.power.corsairpsu-power-total": 236.0,
        "hw.power.rail.corsairpsu-power-+12v": 186.5,
        "hw.power.rail.corsairpsu-power-+5v": 34.0,
    }


def test_sensors_of_a_chip_that_have_one_label_are_told_apart(tmp_path):
    chip = tmp_path / "class/hwmon/hwmon0"
    write(chip / "name", "dell_smm")
    labels = {"fan1": "Other Fan", "fan2": "Other Fan", "temp1": "CPU", "temp2": "SODIMM", "temp3": "SODIMM"}
    for number, (stem, label) in enumerate(labels.items()):
        write(chip / f"{stem}_label", label)
        write(chip / f"{stem}_input", f"{number}000")
    write(chip / "temp3_max", "85000")
    with opened(tmp_path) as reader:
        (batch,) = reader.decode([reader.read()])
    assert {f.key: f.labels["hw.sensor_location"] for f in batch.fields} == {
        "hw.fan.speed.dell_smm.Other-Fan-fan1": "Other Fan fan1",
        "hw.fan.speed.dell_smm.Other-Fan-fan2": "Other Fan fan2",
        "hw.temperature.dell_smm.CPU": "CPU",
        "hw.temperature.dell_smm.SODIMM-temp2": "SODIMM temp2",
        "hw.temperature.dell_smm.SODIMM-temp3": "SODIMM temp3",
        "": "SODIMM temp3",  # its limit
    }


PCI = "devices/pci0000:00/0000:00:14.0"
SATA = f"{PCI}/ata7/host6/target6:0:0/6:0:0:0"
SAS = f"{PCI}/host6/port-6:0/end_device-6:0/target6:0:3/6:0:3:0"
UAS = "devices/pci0000:00/0000:00:14.0/usb2/2-1/2-1:1.0/host8/target8:0:0/8:0:0:0"


@pytest.mark.parametrize(
    ("device", "buses", "expected"),
    [
        (f"{PCI}/i2c-5/5-0051", {"5-0051": "i2c", "i2c-5": "i2c"}, "0000:00:14.0-0051"),
        (f"{PCI}/i2c-5/i2c-INT33BE:00", {"i2c-INT33BE:00": "i2c", "i2c-5": "i2c"}, "i2c-INT33BE:00"),
        (SATA, {"6:0:0:0": "scsi", "target6:0:0": "scsi", "host6": "scsi"}, "0000:00:14.0-ata-3"),
        (SAS, {"6:0:3:0": "scsi", "target6:0:3": "scsi", "host6": "scsi"}, "0000:00:14.0-0:3:0"),
        (UAS, {"8:0:0:0": "scsi", "host8": "scsi", "2-1:1.0": "usb", "2-1": "usb"}, "2-1:1.0"),
        (f"{PCI}/nvme/nvme3", {}, "0000:00:14.0"),
        ("devices/i2c-5/5-0051", {"5-0051": "i2c", "i2c-5": "i2c"}, "5-0051"),
    ],
)
def test_a_place_has_no_number_that_the_kernel_gives_as_devices_come(device, buses, expected, tmp_path):
    folder = tmp_path / device
    folder.mkdir(parents=True)
    write(tmp_path / PCI / "ata7/ata_port/ata7/port_no", "3")
    for parent in (folder, *folder.parents):
        if bus := buses.get(parent.name, "pci" if parent.name == "0000:00:14.0" else ""):
            (parent / "subsystem").symlink_to(tmp_path / "bus" / bus)
    assert place(folder) == expected


def test_the_same_address_on_two_adapters_of_a_controller_is_two_places(tmp_path):
    for adapter in ("i2c-9", "i2c-10"):
        device = tmp_path / PCI / adapter / f"{adapter.removeprefix('i2c-')}-0051"
        device.mkdir(parents=True)
        for folder, bus in ((device, "i2c"), (device.parent, "i2c")):
            (folder / "subsystem").symlink_to(tmp_path / "bus" / bus)
    (tmp_path / PCI / "subsystem").symlink_to(tmp_path / "bus/pci")
    first, second = tmp_path / PCI / "i2c-9/9-0051", tmp_path / PCI / "i2c-10/10-0051"
    assert place(first) == "0000:00:14.0-port-0-0051"
    assert place(second) == "0000:00:14.0-port-1-0051"


def test_a_chip_that_comes_is_found_and_one_that_goes_leaves_no_values(tmp_path):
    root = unpack(SERVER, tmp_path)
    receiver = Receiver()
    settings = Sources(hwmon=Hwmon(sysfs=root, rate_hz=50))
    running = sources.start(["hwmon"], settings, receiver, "s", flush_s=0.02, metrics_s=0.01)
    second = {"hw.id": "k10temp-0000:80:18.3"}
    wait_for(lambda: receiver.values("hw.temperature", second))
    link = root / "class/hwmon/hwmon2"
    target = link.readlink()
    link.unlink()
    wait_for(lambda: receiver.values("hw.temperature", second)[-1] is None)
    link.symlink_to(target)
    wait_for(lambda: receiver.values("hw.temperature", second)[-1] == 39.75)
    running.stop()
    assert receiver.values("exporter.collect.failures", {"reason": "lost"})[-2] >= 1.0
    assert all(resource["benchlab.simulated"] is True for resource, *_ in receiver.spans)


def test_a_chip_that_comes_back_under_its_number_before_anyone_looks_is_read_again(tmp_path):
    root = unpack(DESKTOP, tmp_path)
    link = root / "class/hwmon/hwmon2"
    again = link.with_name("again")
    with opened(root) as reader:
        reader.read()
        again.symlink_to(link.readlink())
        again.replace(link)
        with pytest.raises(SourceError, match="devices came or went") as error:
            wait_for(lambda: not reader.read())
    assert error.value.reason == "lost"


def test_a_folder_without_a_number_is_no_chip(tmp_path):
    root = unpack(DESKTOP, tmp_path)
    (root / "class/hwmon/hwmonitor").mkdir()
    with opened(root) as reader:
        assert read_one(reader)[TCTL] == 61.25


def test_no_chips_is_absent_and_says_how_to_find_drivers(tmp_path):
    with pytest.raises(SourceError, match="no sensors") as error, opened(tmp_path):
        pass
    assert error.value.reason == "absent"
    assert "sensors-detect" in error.value.fix


@given(st.one_of(st.binary(max_size=20), st.integers().map(lambda n: str(n).encode())), st.binary(max_size=3))
def test_whatever_a_file_says_it_is_a_possible_value_or_none(text, fault):
    try:
        value = scaled(1e-3, DEGREES)(text, fault)
    except ValueError:
        return
    assert DEGREES[0] <= value <= DEGREES[1]
    assert int(fault) == 0
