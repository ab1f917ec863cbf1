"""The host: processors, memory, swap, disks, network, pressure, and the processes of the pipeline.

By psutil, where it has it; metrics only, no samples. Disks are whole ones, without their partitions
and without what is made of disks (LVM, LUKS, RAID, loop devices), so that they can be summed.
Processors have a frequency where the kernel scales it, which virtual machines mostly don't. Pressure
stall information is there from Linux 4.20 on (Documentation/accounting/psi.rst).

The pipeline's processes are those that this program started (the command of `record`) with all their
children, and those of `sources.host.pids` and `.cgroups`.
"""

from __future__ import annotations

import os
import re
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import psutil

from benchlab_otel import contract
from benchlab_otel.config import Host
from benchlab_otel.contract import Metric
from benchlab_otel.sources.reading import Batch, Device, Field, Reply, SourceError, columns
from benchlab_otel.sources.sysfs import is_mount_of, text
from benchlab_otel.timebase import anchor

METRICS = (
    contract.CPU_TIME,
    contract.CPU_UTILIZATION,
    contract.CPU_FREQUENCY,
    contract.MEMORY_USAGE,
    contract.MEMORY_LIMIT,
    contract.PAGING_USAGE,
    contract.DISK_IO,
    contract.DISK_OPERATIONS,
    contract.NETWORK_IO,
    contract.NETWORK_DROPPED,
    contract.NETWORK_ERRORS,
    contract.PRESSURE,
    contract.UPTIME,
    contract.PROCESS_CPU_TIME,
    contract.PROCESS_MEMORY,
)

_MODES = {  # psutil's names to those of the semantic conventions; guest is in user already
    "user": "user", "nice": "nice", "system": "system", "idle": "idle", "iowait": "iowait",
    "irq": "interrupt", "softirq": "interrupt", "steal": "steal",
}  # fmt: skip
_SMALL_FALL_S = 3.0  # of a processor time; as in node_exporter
# In files, in memory, of ZFS: no disks, or counted by the disks below.
_NO_DISK = re.compile(r"(loop|z?ram|zd)\d+")
# A path to a namespace, nvme0c1n1 to nvme0n1, by NVMe's own multipath: older kernels count these alone.
_NVME_PATH = re.compile(r"(nvme\d+)c\d+(n\d+)")
_NO_PROC = "mount the host's /proc there (sources.host.procfs), or unset that setting"
_Value = tuple[Metric, tuple[str, ...], float]  # metric, label values, value


def addresses(settings: Host) -> list[str]:
    """This host."""
    return [socket.gethostname()]


def open_reader(settings: Host, address: str) -> HostReader:
    """The reader of this host; SourceError where there is no /proc."""
    return HostReader(settings, address)


class HostReader:
    """What the kernel tells about the host. Utilization is that since the reading before."""

    def __init__(self, settings: Host, name: str) -> None:
        psutil.PROCFS_PATH = str(settings.procfs)  # one host a process: psutil has it once for all
        self._settings = settings
        booted = anchor().offset_ns  # CLOCK_MONOTONIC is 0 at boot
        try:
            simulated = not is_mount_of(settings.procfs, "proc")
        except OSError as error:
            raise SourceError("unreadable", f"{error.filename}: {error.strerror}", _NO_PROC) from None
        self.device = Device(
            f"host-{name}",
            "host",
            f"host {name}",
            simulated=simulated,
            counting_since_ns=booted,
        )
        self._times: dict[str, float] = {}
        self._fields: dict[tuple[str, tuple[str, ...]], Field] = {}
        self._processes: dict[int, psutil.Process] = {}
        self._clocks = _clock_files(settings.sysfs)

    def read(self) -> Reply:
        """All values of one moment."""
        start = anchor().now_ns()
        settings = self._settings
        try:
            values = [
                *self._processors(),
                *self._frequencies(),
                *_memory(),
                *_swap(settings.procfs),
                *_disks(settings.sysfs),
                *_network(),
                *_pressure(settings.procfs),
                (contract.UPTIME, (), time.clock_gettime(time.CLOCK_BOOTTIME)),
                *self._pipeline(),
            ]
        except (OSError, psutil.Error) as error:
            raise SourceError("unreadable", f"host: {error}", _NO_PROC) from None
        return start, anchor().now_ns(), values

    def decode(self, replies: Sequence[Reply]) -> Iterator[Batch]:
        """One by one: disks, interfaces and processes come and go."""
        for reply in replies:
            start, end, (values,) = columns([reply])
            fields = [self._field(metric, labels) for metric, labels, _ in values]
            yield Batch(start, end, fields, np.array([[value for _, _, value in values]]))

    def close(self) -> None:
        """Closes the files of the processors' clocks."""
        for file in self._clocks.values():
            os.close(file)
        self._clocks = {}

    def _field(self, metric: Metric, labels: tuple[str, ...]) -> Field:
        key = (metric.name, labels)
        if key not in self._fields:
            self._fields[key] = Field("", metric, dict(zip(metric.labels, labels, strict=True)))
        return self._fields[key]

    def _processors(self) -> Iterator[_Value]:
        raw = psutil.cpu_times()._asdict()
        times: dict[str, float] = {}
        for name, mode in _MODES.items():
            if name in raw:
                times[mode] = times.get(mode, 0.0) + raw[name]
        times = {mode: _risen(self._times.get(mode, 0.0), seconds) for mode, seconds in times.items()}
        yield from ((contract.CPU_TIME, (mode,), seconds) for mode, seconds in times.items())
        used = {mode: max(0.0, seconds - self._times.get(mode, 0.0)) for mode, seconds in times.items()}
        if self._times and (total := sum(used.values())) > 0:
            yield from ((contract.CPU_UTILIZATION, (mode,), part / total) for mode, part in used.items())
        self._times = times

    def _frequencies(self) -> Iterator[_Value]:
        """Each processor's clock; psutil has them without the processors' numbers."""
        for number, file in self._clocks.items():
            with suppress(OSError, ValueError):  # a processor that was switched off
                yield contract.CPU_FREQUENCY, (number,), int(os.pread(file, 32, 0)) * 1e3

    def _pipeline(self) -> Iterator[_Value]:
        """The pipeline's processes; one that ends between two steps is not there."""
        found = {}
        for pid in _pids(self._settings):
            with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                process = found[pid] = self._processes.get(pid) or psutil.Process(pid)
                with process.oneshot():
                    name, cpu, memory = process.name(), process.cpu_times(), process.memory_info()
                yield contract.PROCESS_CPU_TIME, (str(pid), name, "user"), cpu.user
                yield contract.PROCESS_CPU_TIME, (str(pid), name, "system"), cpu.system
                yield contract.PROCESS_MEMORY, (str(pid), name), float(memory.rss)
        self._processes = found


def _risen(before: float, now: float) -> float:
    """A processor time (s) as a counter, which must not fall: the one before until it is passed.

    The kernel's idle and iowait are estimates that may fall a little (Documentation/filesystems/proc.rst).
    One that falls far began again, as its processor was switched off.
    """
    return before if 0.0 < before - now < _SMALL_FALL_S else now


def _clock_files(sysfs: Path) -> dict[str, int]:
    """The open file of each processor's clock (kHz), by its number."""
    files = {}
    for path in sorted((sysfs / "devices/system/cpu").glob("cpu[0-9]*/cpufreq/scaling_cur_freq")):
        with suppress(OSError):
            number = path.parts[-3].removeprefix("cpu")
            files[number] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    return files


def _memory() -> Iterator[_Value]:
    """By states that add up to all memory, as the semantic conventions want; psutil's `used` does not: it
    has shared memory in it, which is cached, too."""
    memory = psutil.virtual_memory()
    states = {state: getattr(memory, state) for state in ("free", "cached", "buffers")}
    states["used"] = max(0, memory.total - sum(states.values()))
    yield from ((contract.MEMORY_USAGE, (state,), float(size)) for state, size in states.items())
    yield contract.MEMORY_LIMIT, (), float(memory.total)


_SWAP_KB = re.compile(r"^Swap(Total|Free): *(\d+) kB$", re.MULTILINE)


def _swap(procfs: Path) -> Iterator[_Value]:
    """Not by psutil, which reads all of vmstat for it, too."""
    bytes_of = {name: float(kb) * 1024 for name, kb in _SWAP_KB.findall(text(f"{procfs}/meminfo"))}
    if bytes_of.get("Total"):
        yield contract.PAGING_USAGE, ("used",), bytes_of["Total"] - bytes_of["Free"]
        yield contract.PAGING_USAGE, ("free",), bytes_of["Free"]


def _disks(sysfs: Path) -> Iterator[_Value]:
    try:
        whole = {name.replace("!", "/") for name in os.listdir(sysfs / "block")}  # noqa: PTH208 - names only
    except OSError:
        whole = None
    # nowrap is for kernels that count in 32 bits
    counters = psutil.disk_io_counters(perdisk=True, nowrap=False) or {}
    counted = {disk: io for disk, io in counters.items() if io.read_count or io.write_count}
    for disk, io in counted.items():
        path = _NVME_PATH.fullmatch(disk)
        if _NO_DISK.fullmatch(disk) or (path and path[1] + path[2] in counted):
            continue
        if whole is None or (disk in whole and not _is_stacked(sysfs, disk)):
            yield contract.DISK_IO, (disk, "read"), float(io.read_bytes)
            yield contract.DISK_IO, (disk, "write"), float(io.write_bytes)
            yield contract.DISK_OPERATIONS, (disk, "read"), float(io.read_count)
            yield contract.DISK_OPERATIONS, (disk, "write"), float(io.write_count)


def _is_stacked(sysfs: Path, disk: str) -> bool:
    """Whether a disk is made of others, which count its traffic (block/holder.c of the Linux kernel)."""
    try:
        return bool(os.listdir(f"{sysfs}/block/{disk.replace('/', '!')}/slaves"))  # noqa: PTH208 - names only
    except OSError:
        return False


def _network() -> Iterator[_Value]:
    for interface, io in (psutil.net_io_counters(pernic=True, nowrap=False) or {}).items():
        for metric, received, sent in (
            (contract.NETWORK_IO, io.bytes_recv, io.bytes_sent),
            (contract.NETWORK_DROPPED, io.dropin, io.dropout),
            (contract.NETWORK_ERRORS, io.errin, io.errout),
        ):
            yield metric, (interface, "receive"), float(received)
            yield metric, (interface, "transmit"), float(sent)


_STALL = re.compile(r"^(some|full) .*total=(\d+)$", re.MULTILINE)


def _pressure(procfs: Path) -> Iterator[_Value]:
    """Time that tasks waited; none where the kernel does not keep it."""
    for resource in ("cpu", "io", "memory", "irq"):
        for kind, total_us in _STALL.findall(text(f"{procfs}/pressure/{resource}")):
            yield contract.PRESSURE, (resource, kind), int(total_us) * 1e-6


# -- the pipeline's processes -----------------------------------------------------------------


def _pids(settings: Host) -> list[int]:
    """All of them, in order."""
    own: list[int] = []
    with suppress(OSError, ValueError):  # not getpid(): procfs may be the host's, which numbers differently
        if _has_children():
            own = list(_children(settings.procfs, int((settings.procfs / "self").readlink().name)))
    named = [pid for cgroup in settings.cgroups for pid in _of_cgroup(settings.sysfs, cgroup)]
    return sorted({*own, *settings.pids, *named})


def _has_children() -> bool:
    """Whether this process has any: one call, where the kernel's lists are a file for each thread."""
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)  # reaps none
    except ChildProcessError:
        return False
    return True


def _children(procfs: Path, pid: int) -> Iterator[int]:
    """The processes that a process started and theirs, by the kernel's lists (CONFIG_PROC_CHILDREN)."""
    tasks = f"{procfs}/{pid}/task"
    try:
        threads = os.listdir(tasks)  # noqa: PTH208 - names only
    except OSError:  # it has ended
        return
    for thread in threads:
        for child in map(int, text(f"{tasks}/{thread}/children").split()):
            yield child
            yield from _children(procfs, child)


def _of_cgroup(sysfs: Path, name: str) -> Iterator[int]:
    """The processes of a cgroup and of those below it."""
    for path in (sysfs / "fs/cgroup" / name.strip("/")).rglob("cgroup.procs"):
        yield from map(int, text(path).split())
