"""Host metrics against the kernel's own files."""

import os
import subprocess
import time
from pathlib import Path

import psutil
import pytest

from benchlab_otel import sources
from benchlab_otel.config import Host, Sources
from benchlab_otel.sources import host
from benchlab_otel.sources.reading import SourceError
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
    assert total == os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
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


def processes(reader) -> dict[int, set[str]]:
    """The metrics of each process."""
    found: dict[int, set[str]] = {}
    for name, *labels in series(reader):
        if name.startswith("process."):
            found.setdefault(int(labels[0]), set()).add(name)
    return found


def test_the_command_and_its_children_are_the_pipelines_processes():
    reader = host.open_reader(Host(), "here")
    with subprocess.Popen(["sh", "-c", "cat; true"], stdin=subprocess.PIPE) as shell:
        wait_for(lambda: {"sh", "cat"} <= {k[2] for k in series(reader) if k[0] == "process.memory.usage"})
        assert processes(reader)[shell.pid] == {"process.cpu.time", "process.memory.usage"}
        shell.stdin.close()
    assert shell.pid not in processes(reader)


def test_processes_by_pid_and_by_cgroup(tmp_path):
    below = tmp_path / "fs/cgroup/video.slice/cam.service"
    below.mkdir(parents=True)
    (below / "cgroup.procs").write_text(f"{os.getpid()}\n")
    reader = host.open_reader(
        Host(sysfs=tmp_path, pids=(os.getppid(), 2**22 + 1), cgroups=("video.slice",)), "h"
    )
    assert {os.getpid(), os.getppid()} <= set(processes(reader))
    assert 2**22 + 1 not in processes(reader)


PROC = {
    "stat": "cpu  100 0 50 1000 7 1 2 3 0 0\ncpu0 100 0 50 1000 7 1 2 3 0 0\nbtime 1700000000\n",
    "meminfo": "MemTotal: 1000 kB\nMemFree: 400 kB\nMemAvailable: 620 kB\nBuffers: 50 kB\nCached: 250 kB\n"
    "Active: 1 kB\nInactive: 1 kB\nShmem: 1 kB\nSwapTotal: 500 kB\nSwapFree: 400 kB\n",
    "vmstat": "pswpin 1\npswpout 2\n",
    "diskstats": "259 0 nvme0n1 10 0 80 5 20 0 160 9 0 14 14\n259 1 nvme0n1p1 10 0 80 5 20 0 160 9 0 14 14\n"
    "7 0 loop0 0 0 0 0 0 0 0 0 0 0 0\n",
    "net/dev": "a\nb\n  eth0: 1000 10 1 2 0 0 0 0 2000 20 3 4 0 0 0 0\n",
    "pressure/cpu": "some avg10=0.00 avg60=0.22 avg300=0.26 total=2500000\n",
    "pressure/io": "some avg10=0 avg60=0 avg300=0 total=1000000\nfull avg10=0 avg60=0 total=500000\n",
    "pressure/memory": "",
    "self/task/1/children": "",
}


@pytest.fixture
def host_reader(tmp_path):
    """A reader of a /proc and /sys that the test has written; the real ones are psutil's again afterwards."""
    for name, text in PROC.items():
        path = tmp_path / "proc" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    for name, text in {
        "block/nvme0n1/size": "1\n",
        "devices/system/cpu/cpu7/cpufreq/scaling_cur_freq": "800000\n",
    }.items():
        path = tmp_path / "sys" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    yield host.open_reader(Host(procfs=tmp_path / "proc", sysfs=tmp_path / "sys"), "h")
    host.open_reader(Host(), "here")


def test_golden_of_a_host(host_reader, golden):
    assert host_reader.device.simulated, "not the kernel's /proc"
    lines = [
        " ".join((*key, f"{value:.6g}"))
        for key, value in series(host_reader).items()
        if key[0] != "system.uptime"
    ]
    golden("host.txt", "\n".join(lines) + "\n")


def rewrite(path: Path, old: str, new: str) -> None:
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))


def cpu(values, name: str) -> dict[str, float]:
    return {k[1]: v for k, v in values.items() if k[0] == name}


def test_processor_times_never_fall_a_little(host_reader, tmp_path):
    """The kernel's estimate of iowait does: 1, 2 ticks; as a counter that would be a reset."""
    assert cpu(series(host_reader), "system.cpu.time")["iowait"] == 0.07
    rewrite(tmp_path / "proc/stat", " 1000 7 ", " 1010 5 ")
    values = series(host_reader)
    assert cpu(values, "system.cpu.time")["iowait"] == 0.07
    assert cpu(values, "system.cpu.utilization")["idle"] == 1.0
    rewrite(tmp_path / "proc/stat", " 1010 5 ", " 1010 9 ")
    values = series(host_reader)
    assert cpu(values, "system.cpu.time")["iowait"] == 0.09
    assert cpu(values, "system.cpu.utilization")["iowait"] == 1.0


def test_a_processor_time_that_falls_far_began_again(host_reader, tmp_path):
    series(host_reader)
    rewrite(tmp_path / "proc/stat", " 1000 7 ", " 600 8 ")
    values = series(host_reader)
    assert cpu(values, "system.cpu.time")["idle"] == 6.0
    assert cpu(values, "system.cpu.utilization") == pytest.approx(
        {mode: float(mode == "iowait") for mode in cpu(values, "system.cpu.time")}
    )


def test_disks_are_those_at_the_bottom_so_that_they_can_be_summed(host_reader, tmp_path):
    """LUKS on RAID on a partition, an image and a ZFS volume on that disk, and swap in memory."""
    numbers = " 10 0 80 5 20 0 160 9 0 14 14"
    names = ("dm-0", "md127", "loop3", "zd16", "zram0", "cciss/c0d0", "sda", "sda1")
    (tmp_path / "proc/diskstats").write_text("".join(f"8 0 {name}{numbers}\n" for name in names))
    below = {"dm-0": ["md127"], "md127": ["sda1"], "cciss!c0d0": [], "sda": []}
    for name, disks in below.items():
        folder = tmp_path / "sys/block" / name / "slaves"
        folder.mkdir(parents=True)
        for disk in disks:
            (folder / disk).symlink_to(f"../../{disk}")
    for name in ("loop3", "zd16", "zram0"):
        (tmp_path / "sys/block" / name / "slaves").mkdir(parents=True)
    values = series(host_reader)
    assert {k[1] for k in values if k[0] == "system.disk.io"} == {"cciss/c0d0", "sda"}


def test_a_disk_that_is_reached_by_paths_is_counted_once(host_reader, tmp_path):
    """NVMe multipath: the second disk is of a kernel that counts at its paths alone."""
    some, none = " 10 0 80 5 20 0 160 9 0 14 14\n", " 0 0 0 0 0 0 0 0 0 0 0\n"
    disks = {"nvme0c0n1": some, "nvme0c1n1": some, "nvme0n1": some, "nvme1c2n1": some, "nvme1n1": none}
    (tmp_path / "proc/diskstats").write_text("".join(f"259 0 {name}{n}" for name, n in disks.items()))
    for name in disks:
        (tmp_path / "sys/block" / name / "slaves").mkdir(parents=True, exist_ok=True)
    values = series(host_reader)
    assert {k[1] for k in values if k[0] == "system.disk.io"} == {"nvme0n1", "nvme1c2n1"}


def test_the_states_of_memory_add_up_also_where_some_of_what_is_cached_can_not_be_freed(host_reader):
    values = series(host_reader)
    states = {k[1]: v / 1024 for k, v in values.items() if k[0] == "system.memory.usage"}
    assert states == {"used": 300.0, "free": 400.0, "cached": 250.0, "buffers": 50.0}


def test_everything_that_is_emitted_is_declared(host_reader):
    for reader in (host_reader, host.open_reader(Host(), "here")):
        (batch,) = reader.decode([reader.read()])
        assert {f.metric for f in batch.fields} <= set(host.METRICS)


def test_a_proc_that_lacks_files_is_unreadable_not_empty(tmp_path):
    reader = host.open_reader(Host(procfs=tmp_path), "h")
    with pytest.raises(SourceError, match="host: ") as error:
        reader.read()
    host.open_reader(Host(), "here")
    assert error.value.reason == "unreadable"
    assert "sources.host.procfs" in error.value.fix


def test_no_proc_at_all_is_unreadable_and_tried_again(tmp_path):
    """As in a container where nobody mounted the host's, until somebody does."""
    receiver, procfs = Receiver(), tmp_path / "host/proc"
    running = sources.start(["host"], Sources(host=Host(procfs=procfs)), receiver, "s", metrics_s=0.01)
    (health,) = running.health()
    wait_for(lambda: health.failures["unreadable"] > 1)
    assert health.message == f"{procfs}: No such file or directory"
    assert "sources.host.procfs" in health.fix
    procfs.parent.mkdir()
    procfs.symlink_to("/proc")
    wait_for(lambda: health.ok)
    running.stop()
    host.open_reader(Host(), "here")
    assert set(health.failures) == {"unreadable"}
