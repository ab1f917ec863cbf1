"""AMD and Intel GPUs by sysfs: power and energy as domains, sleep, unplugging, hostile texts."""

from contextlib import closing, contextmanager, suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchlab_otel import sources
from benchlab_otel.config import Drm, Sources
from benchlab_otel.sources import drm
from benchlab_otel.sources.reading import SourceError
from conftest import wait_for
from machines import unpack, write
from receiving import Receiver, read_one

AMD, INTEL = "ryzen-5950x-rx6800xt", "core-ultra-arc-b580"
ARC = "devices/pci0000:00/0000:00:01.0/0000:01:00.0/0000:02:01.0/0000:03:00.0"
RADEON = "devices/pci0000:00/0000:00:03.1/0000:09:00.0/0000:0a:00.0/0000:0b:00.0"


@contextmanager
def opened(root: Path, card: int = -1):
    settings = Drm(sysfs=root)
    with closing(drm.open_reader(settings, drm.addresses(settings)[card])) as reader:
        yield reader


def test_amds_power_is_a_domain(tmp_path):
    root = unpack(AMD, tmp_path)
    with opened(root) as reader:
        assert read_one(reader)["hw.power.gpu"] == 142.0
        write(root / "class/drm/card1/device/hwmon/hwmon4/power1_average", "38500000")
        assert read_one(reader)["hw.power.gpu"] == 38.5


def test_intels_energy_counts_from_0_and_the_card_counts_before_the_chip(tmp_path):
    root = unpack(INTEL, tmp_path)
    with opened(root) as reader:
        first = read_one(reader)
        assert (first["hw.energy.gpu"], first["hw.energy.gpu-pkg"]) == (0.0, 0.0)
        write(root / ARC / "hwmon/hwmon0/energy1_input", "725902500000")
        write(root / ARC / "hwmon/hwmon0/energy2_input", "391601000000")
        second = read_one(reader)
        assert (second["hw.energy.gpu"], second["hw.energy.gpu-pkg"]) == pytest.approx((2.5, 1.0))


def test_a_cards_counter_that_stays_at_0_gives_way_to_the_chips(tmp_path):
    root = unpack(INTEL, tmp_path)
    write(root / ARC / "hwmon/hwmon0/energy1_input", "0")
    with opened(root) as reader:
        read_one(reader)
        write(root / ARC / "hwmon/hwmon0/energy2_input", "391601000000")
        values = read_one(reader)
    assert values["hw.energy.gpu"] == pytest.approx(1.0)
    assert "hw.energy.gpu-pkg" not in values


@pytest.mark.parametrize(
    ("microjoules", "reason", "said"),
    [("0", "reset", "a counter began again"), ("9" * 18, "implausible", "energy rose by more than 100000 W")],
)
def test_a_counter_that_can_not_be_ends_the_readings_and_what_came_before_is_kept(
    microjoules, reason, said, tmp_path
):
    root = unpack(INTEL, tmp_path)
    with opened(root) as reader:
        replies = [reader.read()]
        write(root / ARC / "hwmon/hwmon0/energy1_input", microjoules)
        decoded = reader.decode([*replies, reader.read()])
        assert len(next(decoded).values) == 1
        with pytest.raises(SourceError, match=said) as error:
            next(decoded)
    assert error.value.reason == reason


def test_a_gpu_that_sleeps_is_not_woken(tmp_path):
    root = unpack(INTEL, tmp_path)
    receiver = Receiver()
    settings = Sources(drm=Drm(sysfs=root, rate_hz=50))
    running = sources.start(["drm"], settings, receiver, "s", flush_s=0.02, metrics_s=0.01)
    asleep, awake = running.health()
    wait_for(lambda: asleep.failures["asleep"] and awake.readings > 3)
    assert not asleep.readings
    write(root / ARC / "power/runtime_status", "suspended")
    wait_for(lambda: awake.failures["asleep"])
    wait_for(lambda: receiver.values("hw.energy")[-1] is None)
    write(root / ARC / "power/runtime_status", "active")
    wait_for(lambda: awake.ok and receiver.values("hw.energy")[-1] == 0.0)
    running.stop()
    keys = {key for _, attributes in receiver.samples() for key in attributes}
    assert {"hw.energy.gpu", "hw.gpu.clock.graphics"} <= keys
    assert "hw.power.limit" not in " ".join(keys)


def links(reader) -> list[float]:
    """PCIe generation and width."""
    (batch,) = reader.decode([reader.read()])
    return [
        value
        for f, value in zip(batch.fields, batch.values[0].tolist(), strict=True)
        if f.metric.name.startswith("hw.gpu.pcie")
    ]


@pytest.mark.parametrize(("machine", "gpu"), [(AMD, RADEON), (INTEL, ARC)])
def test_the_link_is_the_slots_where_the_card_has_a_switch(machine, gpu, tmp_path):
    root = unpack(machine, tmp_path)
    port = (root / gpu).parents[1]
    write(port / "current_link_speed", "8.0 GT/s PCIe")
    write(port / "current_link_width", "4")
    with opened(root) as reader:
        assert links(reader) == [3.0, 4.0]


@pytest.mark.parametrize("port", [1, 2], ids=["below a root port", "below the mainboard's switch"])
@pytest.mark.parametrize(("machine", "gpu"), [(AMD, RADEON), (INTEL, ARC)])
def test_without_a_switch_of_the_card_the_link_is_the_gpus(machine, gpu, port, tmp_path):
    root = unpack(machine, tmp_path)
    write((root / gpu).parents[port - 1] / "vendor", "0x10b5")
    write(root / gpu / "current_link_speed", "5.0 GT/s PCIe")
    write(root / gpu / "current_link_width", "2")
    with opened(root) as reader:
        assert links(reader) == [2.0, 2.0]


def test_a_limit_is_where_its_energy_is_and_intels_sustained_one_is_long_term(tmp_path):
    root = unpack(INTEL, tmp_path)
    write(root / ARC / "hwmon/hwmon0/power1_max", "210000000")
    with opened(root) as reader:
        (batch,) = reader.decode([reader.read()])
    found = {
        (f.labels["hw.sensor_location"], f.labels["hw.limit_type"]): value
        for f, value in zip(batch.fields, batch.values[0].tolist(), strict=True)
        if f.metric.name == "hw.power.limit" and value == value
    }
    assert found == {("gpu", "cap"): 228.0, ("gpu", "long_term"): 210.0, ("gpu-pkg", "long_term"): 190.0}


def test_slow_values_are_read_once_a_second_and_are_in_no_sample(tmp_path):
    root = unpack(AMD, tmp_path)
    with opened(root) as reader:
        (batch,) = reader.decode([reader.read(), reader.read()])
        (column,) = (i for i, f in enumerate(batch.fields) if f.metric.name == "hw.gpu.memory.usage")
        assert batch.fields[column].key == ""
        assert batch.values[:, column].tolist() == [6442450944.0] * 2
        write(root / "class/drm/card1/device/mem_info_vram_used", "1024")

        def usage() -> float:
            (batch,) = reader.decode([reader.read()])
            return batch.values[0, column]

        wait_for(lambda: usage() == 1024.0)


def test_a_card_that_answers_nothing_any_more_is_lost(tmp_path):
    root = unpack(AMD, tmp_path)
    with opened(root) as reader:
        read_one(reader)
        for path in (root / RADEON).rglob("*"):
            if path.is_file() and not path.is_symlink() and path.name != "runtime_status":
                path.write_text("")
        with pytest.raises(SourceError, match="no sensor can be read any more") as error:
            reader.read()
    assert error.value.reason == "lost"


def test_other_drivers_are_left_alone(tmp_path):
    root = unpack(AMD, tmp_path)
    driver = root / "class/drm/card1/device/driver"
    driver.unlink()
    driver.symlink_to("../../../bus/pci/drivers/nvidia")
    assert drm.addresses(Drm(sysfs=root)) == []


TEXTS = st.one_of(
    st.binary(max_size=60), st.from_regex(rb"\d{1,3}: ?\d{1,5}[mM][hH]z ?\*?\n?", fullmatch=True)
)


@given(TEXTS)
def test_tables_and_link_speeds_are_values_or_refused(text):
    for parse in (drm.highest_clock, drm.pcie_generation):
        with suppress(ValueError):
            assert parse(text) >= 0.0
