"""Energy counters of the processor (RAPL) by the kernel's powercap tree; AMD exposes the same one.

Format: Documentation/power/powercap/powercap.rst of the Linux kernel. `energy_uj` wraps at
`max_energy_range_uj`; the exported counters start at 0 when they are opened and never wrap. A step
that no processor can make is no wrap: the counter began again (after a suspend, say), and so do ours.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np

from benchlab_otel.config import Rapl
from benchlab_otel.contract import ENERGY_PREFIX, HW_ENERGY
from benchlab_otel.sources.reading import Batch, Device, Field, Reply, SourceError, times
from benchlab_otel.timebase import anchor

HW_ID = "rapl"
MAX_WATTS = 5000.0  # more than any zone, the whole platform included
REFRESH_S = 0.01  # a step may have gathered for longer than between two reads: counters refresh each ms or so
_MAKE_READABLE = "sudo chmod a+r {files} (until reboot; for good: echo '{rule}' | sudo tee {rules})"
_RULES = "/etc/udev/rules.d/60-rapl.rules"
_RULE = 'SUBSYSTEM=="powercap", KERNEL=="intel-rapl:*", RUN+="/bin/chmod a+r /sys/%p/energy_uj"'
_NO_TREE = (
    "sudo modprobe intel_rapl_msr; virtual machines have no counters, and Docker hides them: run the "
    "exporter on the host, or mount the host's /sys and set sources.rapl.sysfs"
)


def addresses(settings: Rapl) -> list[str]:
    """The powercap tree: all its counters are read together."""
    return [str(settings.sysfs / "class/powercap")]


def open_reader(settings: Rapl, address: str) -> RaplReader:
    """Opens all counters; SourceError names the fix where there are none or they can't be read."""
    return RaplReader(Path(address))


class RaplReader:
    """All zones of a powercap tree."""

    def __init__(self, tree: Path) -> None:
        folders = sorted(tree.glob("intel-rapl:*"))
        if not folders:
            raise SourceError("absent", f"{tree}: no RAPL counters", _NO_TREE)
        self._folders = folders
        self._files: list[int] = []
        self._offset_ns = anchor().offset_ns
        try:
            names = _domains(folders)
            ranges = [(folder / "max_energy_range_uj").read_bytes() for folder in folders]
            self._range = np.array(_numbers(ranges, folders), np.int64)
            for folder in folders:
                self._files.append(os.open(folder / "energy_uj", os.O_RDONLY | os.O_CLOEXEC))
            first = self.read()
        except OSError as error:
            self.close()
            raise _unreadable(tree, error) from None
        except SourceError:
            self.close()
            raise
        self._names = names
        self._fields = [Field(ENERGY_PREFIX + name, HW_ENERGY, _labels(name)) for name in names]
        self._last_ns, self._last = first.start_ns, np.array(first.raw, np.int64)
        self._total = np.zeros(len(names), np.int64)  # microjoules since the first reading
        self.device = Device(
            HW_ID,
            "cpu",
            f"RAPL: {', '.join(names)}",
            simulated=not _is_sysfs(tree),
            counting_since_ns=first.start_ns,
        )

    def read(self) -> Reply:
        """All counters; SourceError when one of them can't be read any more."""
        start = time.monotonic_ns()
        try:
            texts = [os.pread(file, 32, 0) for file in self._files]
        except OSError as error:
            raise SourceError("lost", f"RAPL: a counter went away: {error}") from None
        end = time.monotonic_ns()
        return Reply(start + self._offset_ns, end + self._offset_ns, _numbers(texts, self._folders))

    def decode(self, replies: Sequence[Reply]) -> Iterator[Batch]:
        """Energy since the counters were opened; SourceError where a counter began again."""
        start, end = times(replies)
        counts = np.array([reply.raw for reply in replies], np.int64)
        steps = np.diff(counts, axis=0, prepend=self._last[None])
        steps += np.where(steps < 0, self._range, 0)  # wrapped
        seconds = np.diff(start, prepend=self._last_ns) * 1e-9
        possible = (steps >= 0) & (steps <= ((seconds + REFRESH_S) * MAX_WATTS * 1e6)[:, None])
        n = len(replies) if possible.all() else int(np.argmin(possible.all(axis=1)))
        totals = self._total + np.cumsum(steps, axis=0)
        if n:
            yield Batch(start[:n], end[:n], self._fields, totals[:n] * 1e-6)
        if n < len(replies):
            zone = int(np.argmin(possible[n]))
            before = counts[n - 1] if n else self._last
            change = f"from {before[zone]} to {counts[n, zone]} uJ within {seconds[n]:.3g} s"
            raise SourceError("reset", f"RAPL: {self._names[zone]} began again: {change}")
        self._last_ns, self._last, self._total = int(start[-1]), counts[-1], totals[-1]

    def close(self) -> None:
        """Closes the counters' files."""
        for file in self._files:
            with suppress(OSError):
                os.close(file)
        self._files = []


def _numbers(texts: list[bytes], folders: list[Path]) -> list[int]:
    try:
        return [int(text) for text in texts]
    except ValueError:
        folder, text = next(
            (folder, text) for folder, text in zip(folders, texts, strict=True) if not text.strip().isdigit()
        )
        what = f"{folder}: expected a number of microjoules, found {text[:40]!r}"
        raise SourceError("garbled", what) from None


def _domains(folders: list[Path]) -> list[str]:
    """A domain for each zone: its name, with the package's number where several have that name."""
    names = [(folder / "name").read_text().strip().replace(".", "-") for folder in folders]
    several = Counter(names)
    packages = [folder.name.split(":")[1] for folder in folders]
    return [f"{n}-{p}" if several[n] > 1 else n for n, p in zip(names, packages, strict=True)]


def _labels(name: str) -> dict[str, str]:
    kind = "memory" if name.startswith("dram") else "cpu"
    return {"hw.id": HW_ID, "hw.type": kind, "hw.sensor_location": name}


def _unreadable(tree: Path, error: OSError) -> SourceError:
    if isinstance(error, PermissionError):
        fix = _MAKE_READABLE.format(files=f"{tree}/intel-rapl:*/energy_uj", rule=_RULE, rules=_RULES)
        return SourceError("unreadable", f"{error.filename}: only root may read it", fix)
    return SourceError("unknown", f"{error.filename}: {error.strerror}", _NO_TREE)


def _is_sysfs(tree: Path) -> bool:
    """Whether the tree is the kernel's, wherever it is mounted: anything else is a fixture."""
    device = tree.stat().st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    mounts = [line.split() for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    return any(m[2] == number and m[m.index("-") + 1] == "sysfs" for m in mounts)
