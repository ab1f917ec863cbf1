"""Processor time, memory, disks and network of the host, by psutil; metrics only, no samples."""

from __future__ import annotations

import socket
from collections.abc import Iterator, Sequence

import numpy as np
import psutil

from benchlab_otel import contract
from benchlab_otel.config import Host
from benchlab_otel.contract import Metric
from benchlab_otel.sources.reading import Batch, Device, Field, Reply, SourceError, times
from benchlab_otel.timebase import anchor

_MODES = {  # psutil's names to those of the semantic conventions; guest is in user already
    "user": "user", "nice": "nice", "system": "system", "idle": "idle", "iowait": "iowait",
    "irq": "interrupt", "softirq": "interrupt", "steal": "steal",
}  # fmt: skip
_MEMORY_STATES = ("used", "free", "cached", "buffers")
_Value = tuple[Metric, tuple[str, ...], float]  # metric, label values, value


def addresses(settings: Host) -> list[str]:
    """This host."""
    return [socket.gethostname()]


def open_reader(settings: Host, address: str) -> HostReader:
    """The reader of this host."""
    return HostReader(address)


class HostReader:
    """What psutil tells about the host. Utilization is that since the reading before."""

    def __init__(self, name: str) -> None:
        booted = anchor().offset_ns  # CLOCK_MONOTONIC is 0 at boot
        self.device = Device(f"host-{name}", "host", f"host {name}", counting_since_ns=booted)
        self._times: dict[str, float] = {}

    def read(self) -> Reply:
        """All values of one moment."""
        start = anchor().now_ns()
        try:
            values = [*self._processors(), *_memory(), *_disks(), *_network()]
        except (OSError, psutil.Error) as error:
            raise SourceError("unreadable", f"host: {error}", "mount /proc readable") from None
        return Reply(start, anchor().now_ns(), values)

    def decode(self, replies: Sequence[Reply]) -> Iterator[Batch]:
        """One by one: disks and interfaces come and go."""
        for reply in replies:
            values: list[_Value] = reply.raw
            fields = [Field("", m, dict(zip(m.labels, labels, strict=True))) for m, labels, _ in values]
            yield Batch(*times([reply]), fields, np.array([[value for _, _, value in values]]))

    def close(self) -> None:
        """Nothing to let go of."""

    def _processors(self) -> Iterator[_Value]:
        raw = psutil.cpu_times()._asdict()
        times: dict[str, float] = {}
        for name, mode in _MODES.items():
            if name in raw:
                times[mode] = times.get(mode, 0.0) + raw[name]
        yield from ((contract.CPU_TIME, (mode,), seconds) for mode, seconds in times.items())
        used = {mode: max(0.0, seconds - self._times.get(mode, 0.0)) for mode, seconds in times.items()}
        if self._times and (total := sum(used.values())) > 0:
            yield from ((contract.CPU_UTILIZATION, (mode,), part / total) for mode, part in used.items())
        self._times = times


def _memory() -> Iterator[_Value]:
    memory = psutil.virtual_memory()
    for state in _MEMORY_STATES:
        if hasattr(memory, state):
            yield contract.MEMORY_USAGE, (state,), float(getattr(memory, state))


def _disks() -> Iterator[_Value]:
    for disk, io in (psutil.disk_io_counters(perdisk=True) or {}).items():
        yield contract.DISK_IO, (disk, "read"), float(io.read_bytes)
        yield contract.DISK_IO, (disk, "write"), float(io.write_bytes)


def _network() -> Iterator[_Value]:
    for interface, io in (psutil.net_io_counters(pernic=True) or {}).items():
        yield contract.NETWORK_IO, (interface, "receive"), float(io.bytes_recv)
        yield contract.NETWORK_IO, (interface, "transmit"), float(io.bytes_sent)
