"""What the sources read of real machines' /sys: a golden file for each machine (tests/sysfs)."""

import re
from contextlib import closing
from pathlib import Path

import pytest
from opentelemetry.semconv._incubating.attributes.hw_attributes import HwLimitTypeValues

from benchlab_otel import sources
from benchlab_otel.config import Drm, Hwmon, PowerSupply, Rapl, Sources
from benchlab_otel.sources.reading import SourceError
from machines import NAMES, unpack

SYSFS_SOURCES = ("rapl", "hwmon", "drm", "power_supply")


def settings(root: Path) -> Sources:
    return Sources(
        rapl=Rapl(sysfs=root),
        hwmon=Hwmon(sysfs=root),
        drm=Drm(sysfs=root),
        power_supply=PowerSupply(sysfs=root),
    )


def described(name: str, root: Path) -> list[str]:
    """What a source reads there: a line for each device and each value that is there."""
    source, section = sources.load(name), getattr(settings(root), name)
    lines = []
    for address in source.addresses(section):
        try:
            with closing(source.open_reader(section, address)) as reader:
                device = reader.device
                assert device.simulated, "a tree outside sysfs"
                lines.append(f"{name}: {device.hw_id} ({device.hw_type}): {device.description}")
                (batch,) = reader.decode([reader.read()])
        except SourceError as error:
            lines.append(f"{name}: {error.reason}: {error}")
            continue
        for field, value in zip(batch.fields, batch.values[0].tolist(), strict=True):
            if value == value:  # not NaN
                assert field.metric in source.METRICS
                assert set(field.labels) <= set(field.metric.labels)
                labels = ", ".join(f"{k}={v}" for k, v in field.labels.items())
                lines.append(
                    f"  {field.metric.name}{{{labels}}} {value:.10g}" + f"  # {field.key}" * bool(field.key)
                )
        keys = [field.key for field in batch.fields if field.key]
        assert len(keys) == len(set(keys))
    return lines


@pytest.mark.parametrize("machine", NAMES)
def test_golden(machine, tmp_path, golden):
    root = unpack(machine, tmp_path)
    lines = [line.replace(str(root), "/sys") for name in SYSFS_SOURCES for line in described(name, root)]
    golden(f"machine-{machine}.txt", "\n".join(lines) + "\n")


def test_there_are_at_least_five_machines():
    assert len(NAMES) >= 5


@pytest.mark.parametrize("name", SYSFS_SOURCES)
def test_a_virtual_machine_has_nothing(name, tmp_path):
    lines = described(name, tmp_path)
    assert not lines or "absent: " in lines[0]


def test_limits_of_temperatures_have_the_words_of_the_semantic_conventions_in_all_sources():
    directed = {word.value for word in HwLimitTypeValues} - {"critical", "degraded"}  # of high or low?
    goldens = [path.read_text() for path in (Path(__file__).parent / "golden").iterdir()]
    of_files = re.compile(r'hw\.temperature\.limit(?:\{|",)[^}]*?hw\.limit_type(?:=|": ")([\w.]+)')
    words = {word for golden in goldens for word in of_files.findall(golden)}
    assert {"high.critical", "high.degraded", "throttled"} <= words <= directed
