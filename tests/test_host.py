"""Host metrics against the kernel's own files."""

import os
import time
from pathlib import Path

import psutil
import pytest

from benchlab_otel import sources
from benchlab_otel.config import Host, Sources
from benchlab_otel.sources import host
from conftest import wait_for
from receiving import Receiver


def series(reader) -> dict[tuple[str, ...], float]:
    (batch,) = reader.decode([reader.read()])
    keys = [(f.metric.name, *f.labels.values()) for f in batch.fields]
    return dict(zip(keys, batch.values[0], strict=True))


def test_values_are_the_kernels():
    before = Path("/proc/uptime").read_text().split()
    values = series(host.open_reader(Host(), "here"))
    cpu = sum(v for k, v in values.items() if k[0] == "system.cpu.time")
    assert cpu == pytest.approx(float(before[0]) * psutil.cpu_count(), rel=0.2, abs=60)
    total = sum(v for k, v in values.items() if k[0] == "system.memory.usage")
    assert total == pytest.approx(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"), rel=0.2)
    interfaces = [line.split(":")[0].strip() for line in Path("/proc/net/dev").read_text().splitlines()[2:]]
    assert {k[1] for k in values if k[0] == "system.network.io"} == set(interfaces)


def test_utilization_comes_with_the_second_reading_and_adds_up_to_one():
    reader = host.open_reader(Host(), "here")
    assert not [k for k in series(reader) if k[0] == "system.cpu.utilization"]
    shares: list[float] = []
    deadline = time.monotonic() + 30
    while not shares and time.monotonic() < deadline:  # the kernel counts in ticks
        sum(range(100_000))
        shares = [v for k, v in series(reader).items() if k[0] == "system.cpu.utilization"]
    assert sum(shares) == pytest.approx(1.0)
    assert all(0.0 <= share <= 1.0 for share in shares)


def test_metrics_only_and_not_simulated():
    receiver = Receiver()
    running = sources.start(["host"], Sources(host=Host(rate_hz=50)), receiver, "s", metrics_s=0.01)
    wait_for(lambda: receiver.values("system.cpu.utilization"))
    running.stop()
    assert not receiver.samples()
    assert all("benchlab.simulated" not in resource for resource, *_ in receiver.points)
    assert receiver.values("exporter.collect.success")[0] == 1.0


def test_golden_of_names(golden):
    reader = host.open_reader(Host(), "here")
    names = set()
    deadline = time.monotonic() + 30
    while "system.cpu.utilization" not in {n.split()[0] for n in names} and time.monotonic() < deadline:
        (batch,) = reader.decode([reader.read()])
        names |= {" ".join((f.metric.name, f.metric.unit, *f.labels)) for f in batch.fields}
    golden("host.txt", "\n".join(sorted(n for n in names if "disk" not in n)) + "\n")  # not all have disks
