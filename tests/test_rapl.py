"""RAPL counters from a powercap tree that the test writes: wrap, names, and every way not to be readable."""

import contextlib
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchlab_otel import sources
from benchlab_otel.config import Rapl, Sources
from benchlab_otel.sources import rapl
from benchlab_otel.sources.reading import SourceError
from conftest import wait_for
from machines import unpack, write
from receiving import Receiver, read_one

RANGE = 262_143_328_850


def zone(root: Path, number: str, name: str, energy: int, limit: int | str = RANGE) -> Path:
    folder = root / "class/powercap" / f"intel-rapl:{number}"
    folder.mkdir(parents=True)
    (folder / "name").write_text(f"{name}\n")
    (folder / "max_energy_range_uj").write_text(f"{limit}\n")
    (folder / "energy_uj").write_text(f"{energy}\n")
    return folder


@contextlib.contextmanager
def opened(root: Path):
    settings = Rapl(sysfs=root)
    with contextlib.closing(rapl.open_reader(settings, *rapl.addresses(settings))) as reader:
        yield reader


def test_counters_go_on_across_a_wrap(tmp_path):
    package = zone(tmp_path, "0", "package-0", RANGE - 1_000_000)
    core = zone(tmp_path, "0:0", "core", 5_000_000)
    with opened(tmp_path) as reader:
        assert read_one(reader) == {"hw.energy.package-0": 0.0, "hw.energy.core": 0.0}
        (package / "energy_uj").write_text("2000000\n")
        (core / "energy_uj").write_text("5500000\n")
        assert read_one(reader) == {"hw.energy.package-0": 3.0, "hw.energy.core": 0.5}


@given(st.lists(st.tuples(st.integers(0, 999), st.booleans()), min_size=1, max_size=30))
def test_any_steps_below_the_range_add_up_however_many_are_decoded_at_once(tmp_path_factory, steps):
    root = tmp_path_factory.mktemp("sys")
    file = zone(root, "0", "package-0", 990, limit=1000) / "energy_uj"
    raw, waiting, totals = 990, [], []
    with opened(root) as reader:
        for step, decoded_now in [*steps, (0, True)]:
            raw = (raw + step) % 1000
            file.write_text(f"{raw}\n")
            waiting.append(reader.read())
            if decoded_now:
                (batch,) = reader.decode(waiting)
                totals += batch.values[:, 0].tolist()
                waiting = []
    assert totals == pytest.approx(np.cumsum([*(step for step, _ in steps), 0]) * 1e-6)


@pytest.mark.parametrize(
    ("before", "after"),
    [(200_000_000_000, 5_000_000), (5_000_000, 200_000_000_000), (RANGE + 7, 3)],
    ids=["fell", "jumped", "was beyond its own range"],
)
def test_a_counter_that_began_again_is_no_wrap(tmp_path, before, after):
    file = zone(tmp_path, "0", "package-0", before) / "energy_uj"
    with opened(tmp_path) as reader:
        replies = [reader.read()]
        file.write_text(f"{before + 1}\n")
        replies.append(reader.read())
        file.write_text(f"{after}\n")
        replies.append(reader.read())
        decoded = reader.decode(replies)
        assert next(decoded).values.tolist() == [[0.0], [1e-6]]
        with pytest.raises(
            SourceError, match=f"package-0 began again: from {before + 1} to {after}"
        ) as error:
            next(decoded)
    assert error.value.reason == "reset"


def test_after_a_reset_the_counters_begin_at_0_and_say_since_when(tmp_path):
    file = zone(tmp_path, "0", "package-0", 200_000_000_000) / "energy_uj"
    receiver = Receiver()
    running = sources.start(
        ["rapl"], Sources(rapl=Rapl(sysfs=tmp_path)), receiver, "s", flush_s=0.02, metrics_s=0.01
    )
    (health,) = running.health()
    wait_for(lambda: health.readings > 5)
    first = health.device
    file.write_text("5\n")
    wait_for(lambda: health.failures["reset"] and health.ok and len(receiver.values("hw.energy")) > 3)
    running.stop()
    assert health.device.counting_since_ns > first.counting_since_ns
    assert {attributes["hw.energy.package-0"] for _, attributes in receiver.samples()} == {0.0}
    assert receiver.values("exporter.collect.failures", {"reason": "reset"})[-2:] == [1.0, None]


def test_parts_of_several_packages_get_the_packages_number(tmp_path):
    for package in ("0", "1"):
        zone(tmp_path, package, f"package-{package}", 1)
        zone(tmp_path, f"{package}:0", "dram", 1)
    zone(tmp_path, "2", "psys", 1)
    with opened(tmp_path) as reader:
        (batch,) = reader.decode([reader.read()])
    keys = [f.key.removeprefix("hw.energy.") for f in batch.fields]
    kinds = {f.labels["hw.sensor_location"]: f.labels["hw.type"] for f in batch.fields}
    assert sorted(keys) == ["dram-0", "dram-1", "package-0", "package-1", "psys"]
    assert kinds["dram-1"] == "memory"
    assert kinds["package-1"] == "cpu"


@pytest.mark.parametrize(("vendor", "counts_all_cores"), [("0000", True), ("0002", False), ("0009", False)])
def test_the_zone_core_of_amd_and_hygon_is_one_core_and_left_out(vendor, counts_all_cores, tmp_path):
    write(tmp_path / "devices/system/cpu/modalias", f"cpu:type:x86,ven{vendor}fam0019mod0021:feature:,0000")
    for package in ("0", "1"):
        zone(tmp_path, package, f"package-{package}", 1)
        zone(tmp_path, f"{package}:0", "core", 1)
    with opened(tmp_path) as reader:
        keys, said = set(read_one(reader)), reader.device.description
    packages = {"hw.energy.package-0", "hw.energy.package-1"}
    assert keys == packages | ({"hw.energy.core-0", "hw.energy.core-1"} if counts_all_cores else set())
    assert ("core-1 (counts one core of the package)" in said) != counts_all_cores


def test_no_counters_says_what_to_do(tmp_path):
    with pytest.raises(SourceError, match="no RAPL counters") as error, opened(tmp_path):
        pass
    assert error.value.reason == "absent"
    assert "modprobe" in error.value.fix


@contextlib.contextmanager
def nobody():
    """Without root's right to read everything."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_unreadable_counters_give_the_fix_and_no_zeros(tmp_path):
    folder = zone(tmp_path, "0", "package-0", 1)
    for path in (tmp_path, *tmp_path.parents):
        if path.stat().st_uid == os.geteuid() and path != Path("/tmp"):
            path.chmod(path.stat().st_mode | 0o055)
    (folder / "energy_uj").chmod(0)
    receiver = Receiver()
    with nobody():
        running = sources.start(["rapl"], Sources(rapl=Rapl(sysfs=tmp_path)), receiver, "s", metrics_s=0.01)
        wait_for(lambda: receiver.values("exporter.collect.failures", {"reason": "unreadable"}))
        (health,) = running.health()
        running.stop()
    assert "energy_uj: only root may read it" in health.message
    assert 'KERNEL=="intel-rapl*:*"' in health.fix
    assert "sudo udevadm trigger" in health.fix
    assert set(receiver.values("exporter.collect.success")) == {0.0, None}
    assert not receiver.values("hw.energy")
    assert not receiver.samples()


def test_one_zone_without_a_range_is_left_out_and_named(tmp_path):
    with opened(unpack("xeon-2p-server", tmp_path)) as reader:
        keys = {f.key for f in next(reader.decode([reader.read()])).fields if f.key}
        assert keys == {"hw.energy.package-0", "hw.energy.package-1", "hw.energy.dram-0"}
        assert "left out: dram-1 (" in reader.device.description
        assert "max_energy_range_uj: No such file or directory" in reader.device.description


@pytest.mark.parametrize("limit", ["many", "0", "-1", "9" * 30])
def test_no_zone_that_can_be_read_says_why(limit, tmp_path):
    zone(tmp_path, "0", "package-0", 1, limit=limit)
    with (
        pytest.raises(SourceError, match="max_energy_range_uj: expected a number") as error,
        opened(tmp_path),
    ):
        pass
    assert error.value.reason == "unknown"


def test_mmio_zones_are_read_only_where_there_is_no_other(tmp_path):
    laptop, desktop = (
        unpack("thinkpad-x1-i7-8550u", tmp_path / "a"),
        unpack("core-ultra-arc-b580", tmp_path / "b"),
    )
    with opened(laptop) as reader:
        assert reader.device.description == "RAPL: package-0, core, uncore, dram, psys"
        write(laptop / "class/powercap/intel-rapl:0/energy_uj", "150338922281")
        write(laptop / "class/powercap/intel-rapl-mmio:0/energy_uj", "150338999999")
        assert read_one(reader)["hw.energy.package-0"] == pytest.approx(1e-4)
    with opened(desktop) as reader:
        assert reader.device.description == "RAPL: package-0"


def limits(reader) -> dict[tuple[str, str], float]:
    (batch,) = reader.decode([reader.read()])
    named = [(f.labels["hw.sensor_location"], f.labels.get("hw.limit_type")) for f in batch.fields]
    return {name: value for name, value in zip(named, batch.values[0].tolist(), strict=True) if name[1]}


def test_limits_are_read_again_and_none_is_absent(tmp_path):
    root = unpack("thinkpad-x1-i7-8550u", tmp_path)
    with opened(root) as reader:
        found = limits(reader)
        assert found["package-0", "long_term"] == 20.0
        assert found["package-0", "short_term"] == 44.0
        assert np.isnan(found["core", "long_term"])
        write(root / "class/powercap/intel-rapl:0/constraint_0_power_limit_uw", "15000000")
        wait_for(lambda: limits(reader)["package-0", "long_term"] == 15.0)


def test_of_limits_that_are_set_in_two_places_the_lower_is_in_force(tmp_path):
    root = unpack("thinkpad-x1-i7-8550u", tmp_path)
    twin = root / "class/powercap/intel-rapl-mmio:0"
    for number, (kind, watts) in enumerate([("long_term", 12), ("short_term", 60), ("peak_power", 90)]):
        write(twin / f"constraint_{number}_name", kind)
        write(twin / f"constraint_{number}_power_limit_uw", f"{watts}000000")
    write(twin / "enabled", "1")
    with opened(root) as reader:
        found = limits(reader)
        assert found["package-0", "long_term"] == 12.0
        assert found["package-0", "short_term"] == 44.0
        assert found["package-0", "peak_power"] == 90.0
        write(twin / "enabled", "0")  # as thermald does
        wait_for(lambda: limits(reader)["package-0", "long_term"] == 20.0)
        assert np.isnan(limits(reader)["package-0", "peak_power"])


@pytest.mark.parametrize("text", ["", "12x\n", "\xff\n"])
@pytest.mark.parametrize("good", [0, 1, 2])
def test_a_counter_that_is_no_number_is_refused_after_what_came_before_it(tmp_path, text, good):
    folder = zone(tmp_path, "0", "package-0", 1)
    with opened(tmp_path) as reader:
        replies = [reader.read() for _ in range(good)]
        (folder / "energy_uj").write_text(text, "latin-1")
        replies += [reader.read() for _ in range(2)]
        decoded = reader.decode(replies)
        if good:
            assert next(decoded).values[:, 0].tolist() == [0.0] * good
        with pytest.raises(SourceError, match=r"intel-rapl:0: expected a number of microj.*found b") as error:
            next(decoded)
        assert error.value.reason == "garbled"


def test_a_counter_beyond_its_bits_is_refused_also_when_it_is_opened(tmp_path):
    file = zone(tmp_path, "0", "package-0", 1) / "energy_uj"
    with opened(tmp_path) as reader:
        file.write_text("9" * 30)
        with pytest.raises(SourceError, match=r"below 2\^63"):
            read_one(reader)
    with pytest.raises(SourceError, match=r"below 2\^63") as error, opened(tmp_path):
        pass
    assert error.value.reason == "garbled"


def test_a_tree_outside_sysfs_is_simulated_and_its_samples_say_so(tmp_path, golden):
    zone(tmp_path, "0", "package-0", 7_000_000)
    zone(tmp_path, "0:0", "core", 1)
    receiver = Receiver()
    running = sources.start(["rapl"], Sources(rapl=Rapl(sysfs=tmp_path)), receiver, "s", metrics_s=0.01)
    wait_for(lambda: len(receiver.samples()) > 5 and receiver.values("hw.energy"))
    running.stop()
    assert all(resource["benchlab.simulated"] is True for resource, span, _ in receiver.spans)
    golden("rapl.json", receiver.outline())
