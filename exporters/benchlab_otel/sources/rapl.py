"""Energy counters of the processor (RAPL) by the kernel's powercap tree; AMD's packages are there too.

Zones are domains: packages, their parts (core, uncore, dram) and, where there is one, the whole
platform (psys). They overlap and are never to be summed: a package has its cores in it, psys all. AMD's
zone core is left out: AMD counts each core apart, and the kernel shows one of them. The limits that a
zone is set to (PL1 long_term, PL2 short_term) are read once a second.

Format: Documentation/power/powercap/powercap.rst of the Linux kernel. `energy_uj` wraps at
`max_energy_range_uj`; the exported counters start at 0 when they are opened and never wrap. A step
that no processor can make is no wrap: the counter began again (after a suspend, say), and so do ours.
A zone that also exists as intel-rapl-mmio is the same counter by another way, and read once; its limits
are set in both places, and the lower one is in force.
"""

from __future__ import annotations

import math
import os
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain, repeat
from pathlib import Path

import numpy as np

from benchlab_otel.config import Rapl
from benchlab_otel.contract import ENERGY_PREFIX, HW_ENERGY, HW_POWER_LIMIT
from benchlab_otel.model import Int
from benchlab_otel.sources.reading import Batch, Device, Field, Reply, SourceError, columns
from benchlab_otel.sources.sysfs import is_sysfs, text
from benchlab_otel.timebase import anchor

HW_ID = "rapl"
METRICS = (HW_ENERGY, HW_POWER_LIMIT)
MAX_WATTS = 5000.0  # more than any zone, the whole platform included
REFRESH_S = 0.01  # a step may have gathered for longer than between two reads: counters refresh each ms or so
LIMITS_EVERY_S = 1.0
_AMD, _HYGON = (f"cpu:type:x86,ven{vendor:04X}" for vendor in (2, 9))  # X86_VENDOR_* of asm/processor.h
_LENGTHS, _BEGIN = repeat(32), repeat(0)  # arguments of `os.pread` for any number of files
_RULE = (
    'SUBSYSTEM=="powercap", KERNEL=="intel-rapl*:*", '
    'RUN+="/bin/chgrp rapl /sys%p/energy_uj", RUN+="/bin/chmod g+r /sys%p/energy_uj"'
)
_MAKE_READABLE = (
    "sudo groupadd -f rapl && sudo usermod -aG rapl $USER && "
    f"echo '{_RULE}' | sudo tee /etc/udev/rules.d/60-rapl.rules && sudo udevadm control --reload && "
    "sudo udevadm trigger --subsystem-match=powercap --action=add\n"
    "then log in again; a systemd unit needs SupplementaryGroups=rapl, a container the group's number "
    "(`getent group rapl`) in group_add"
)
_RISK = (
    "whoever reads these counters can infer from fine power traces what other programs compute, keys "
    "included (PLATYPUS, CVE-2020-8694), which is why the kernel hides them; so only a group gets them: "
    "put nobody else in it, and leave machines with other users' secrets as they are"
)
_NO_TREE = (
    "sudo modprobe intel_rapl_msr\n"
    "virtual machines have no counters, and Docker hides them: run the exporter on the host, or mount the "
    "host's /sys and set sources.rapl.sysfs"
)
_LOADING_IS_SAFE = "the module only reads counters; nothing is set"


def addresses(settings: Rapl) -> list[str]:
    """The powercap tree: all its counters are read together."""
    return [str(settings.sysfs / "class/powercap")]


def open_reader(settings: Rapl, address: str) -> RaplReader:
    """Opens all counters; SourceError names the fix where there are none or none can be read."""
    return RaplReader(Path(address))


@dataclass(frozen=True, slots=True)
class _Zone:
    folder: Path
    name: str  # the domain
    range_uj: int
    file: int  # energy_uj, open
    twin: Path | None  # the MMIO zone of the same counter


class RaplReader:
    """All zones of a powercap tree that can be read; the description names those that can't."""

    def __init__(self, tree: Path) -> None:
        folders = _folders(tree)
        if not folders:
            raise SourceError("absent", f"{tree}: no RAPL counters", _NO_TREE, _LOADING_IS_SAFE)
        self._offset_ns = anchor().offset_ns
        self._zones, left_out = _open_zones(folders, _counts_single_cores(tree.parents[1]))
        if not self._zones:
            raise _unreadable(tree, left_out)
        self._files = [zone.file for zone in self._zones]
        names = [zone.name for zone in self._zones]
        self._range = np.array([zone.range_uj for zone in self._zones], np.int64)
        self._limits = [limit for zone in self._zones for limit in _limits(zone)]
        energies = [Field(ENERGY_PREFIX + name, HW_ENERGY, _labels(name)) for name in names]
        self._fields = energies + [limit.field for limit in self._limits]
        self._limits_w, self._limits_due = [math.nan] * len(self._limits), 0
        try:
            first_ns, _, texts = self.read()
            counts, error = self._counts([texts])
            if error:
                raise error
            self._last_ns, self._last = first_ns, counts[0]
        except SourceError:
            self.close()
            raise
        self._total = np.zeros(len(names), np.int64)  # microjoules since the first reading
        missing = "".join(f"; left out: {name} ({why})" for name, why in left_out.items())
        self.device = Device(
            HW_ID,
            "cpu",
            f"RAPL: {', '.join(names)}{missing}",
            simulated=not is_sysfs(tree),
            counting_since_ns=first_ns,
        )

    def read(self) -> Reply:
        """All counters; SourceError when one of them can't be read any more."""
        start = time.monotonic_ns()
        if start >= self._limits_due:
            self._limits_w = [_in_force(limit.settings) for limit in self._limits]
            self._limits_due = start + int(LIMITS_EVERY_S * 1e9)
            start = time.monotonic_ns()
        try:
            texts = list(map(os.pread, self._files, _LENGTHS, _BEGIN))
        except OSError as error:
            raise SourceError("lost", f"RAPL: a counter went away: {error}") from None
        end = time.monotonic_ns()
        return start + self._offset_ns, end + self._offset_ns, texts

    def decode(self, replies: Sequence[Reply]) -> Iterator[Batch]:
        """Energy since the counters were opened; SourceError for no number, or a counter that began again."""
        start, end, texts = columns(replies)
        counts, error = self._counts(texts)
        n = len(counts)
        counts = np.concatenate(([self._last], counts))
        steps = counts[1:] - counts[:-1]
        steps += (steps < 0) * self._range  # wrapped
        moments = np.concatenate(([self._last_ns], start[:n]))
        seconds = (moments[1:] - moments[:-1]) * 1e-9
        possible = (steps >= 0) & (steps <= ((seconds + REFRESH_S) * (MAX_WATTS * 1e6))[:, None])
        if not possible.all():
            n = int(np.argmin(possible.all(axis=1)))
            zone = int(np.argmin(possible[n]))
            change = f"from {counts[n, zone]} to {counts[n + 1, zone]} uJ within {seconds[n]:.3g} s"
            error = SourceError("reset", f"RAPL: {self._zones[zone].name} began again: {change}")
        if n:
            totals = self._total + steps[:n].cumsum(axis=0)
            values = np.empty((n, len(self._fields)))
            values[:, : len(self._zones)] = totals * 1e-6
            values[:, len(self._zones) :] = self._limits_w  # they are for metrics: the last ones
            self._last_ns, self._last, self._total = start.item(n - 1), counts[n], totals[-1]
            yield Batch(start[:n], end[:n], self._fields, values)
        if error:
            raise error

    def _counts(self, texts: Sequence[list[bytes]]) -> tuple[Int, SourceError | None]:
        """Microjoules (n, zones) of the replies before the first without, and what is wrong with that one."""
        try:
            shape = len(texts), len(self._zones)
            return np.fromiter(map(int, chain.from_iterable(texts)), np.int64).reshape(shape), None
        except (ValueError, OverflowError):
            n, error = self._first_garbled(texts)
            return self._counts(texts[:n])[0], error

    def _first_garbled(self, texts: Sequence[list[bytes]]) -> tuple[int, SourceError]:
        for n, reply in enumerate(texts):
            for zone, said in zip(self._zones, reply, strict=True):
                try:
                    if abs(int(said)) >= 1 << 63:
                        return n, SourceError("garbled", "RAPL: expected a number of microjoules below 2^63")
                except ValueError:
                    problem = f"{zone.folder}: expected a number of microjoules, found {said!r}"
                    return n, SourceError("garbled", problem)
        raise AssertionError("all are numbers")

    def close(self) -> None:
        """Closes the files."""
        settings = chain.from_iterable(limit.settings for limit in self._limits)
        for file in (*self._files, *chain.from_iterable(settings)):
            with suppress(OSError):
                os.close(file)
        self._files, self._limits = [], []


def _folders(tree: Path) -> dict[Path, Path | None]:
    """Each zone, and its twin of the MMIO interface where it has one; zones that only that has come last."""
    mmio = {text(zone / "name"): zone for zone in sorted(tree.glob("intel-rapl-mmio:*"))}
    zones = {zone: mmio.pop(text(zone / "name"), None) for zone in sorted(tree.glob("intel-rapl:*"))}
    return zones | dict.fromkeys(mmio.values())


def _counts_single_cores(sysfs: Path) -> bool:
    """Whether the processor has an energy counter for each core, where others have one for all."""
    return text(sysfs / "devices/system/cpu/modalias").startswith((_AMD, _HYGON))


def _open_zones(
    folders: dict[Path, Path | None], counts_single_cores: bool
) -> tuple[list[_Zone], dict[str, str]]:
    """The zones that can be read, and why others can't."""
    zones, left_out = [], {}
    for (folder, twin), name in zip(folders.items(), _domains(list(folders)), strict=True):
        if counts_single_cores and text(folder / "name") == "core":
            left_out[name] = "counts one core of the package"
            continue
        try:
            range_uj = _range(folder / "max_energy_range_uj")
            file = os.open(folder / "energy_uj", os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            left_out[name] = f"{error.filename}: {error.strerror}"
            continue
        except ValueError:
            left_out[name] = f"{folder / 'max_energy_range_uj'}: expected a number of microjoules"
            continue
        try:
            os.pread(file, 32, 0)
            zones.append(_Zone(folder, name, range_uj, file, twin))
        except OSError as error:  # there, but the processor has no such counter
            os.close(file)
            left_out[name] = f"{folder / 'energy_uj'}: {error.strerror}"
    return zones, left_out


def _range(path: Path) -> int:
    """Microjoules; ValueError for what is none, or more than a counter of the kernel has bits for."""
    found = int(path.read_bytes())
    if not 0 < found < 1 << 63:
        raise ValueError(found)
    return found


def _domains(folders: list[Path]) -> list[str]:
    """A domain for each zone: its name, with the package's number where several have that name."""
    names = [(text(folder / "name") or folder.name).replace(".", "-") for folder in folders]
    several = Counter(names)
    packages = [folder.name.split(":")[1] for folder in folders]
    return [f"{n}-{p}" if several[n] > 1 else n for n, p in zip(names, packages, strict=True)]


@dataclass(frozen=True, slots=True)
class _Limit:
    field: Field
    settings: list[tuple[int, ...]]  # open files of each place: the limit, the twin's then also its switch


def _limits(zone: _Zone) -> list[_Limit]:
    """A zone's limits, each with all places where it is set; one that can't be opened is left out."""
    settings: dict[str, list[tuple[int, ...]]] = {}
    for folder in filter(None, (zone.folder, zone.twin)):
        # Not of the own zone: that says 0 also where the BIOS has locked a limit that is in force.
        switch = [folder / "enabled"] if folder == zone.twin else []
        for path in sorted(folder.glob("constraint_*_power_limit_uw")):
            kind = text(path.with_name(path.name.replace("power_limit_uw", "name")))
            if files := _open_readable(path, *switch):
                settings.setdefault(kind or path.name.rsplit("_", 3)[0], []).append(files)
    return [
        _Limit(Field("", HW_POWER_LIMIT, _labels(zone.name) | {"hw.limit_type": kind}), places)
        for kind, places in settings.items()
    ]


def _open_readable(*paths: Path) -> tuple[int, ...]:
    """The files that can be opened, up to the first that can't."""
    files: list[int] = []
    with suppress(OSError):
        for path in paths:
            files.append(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
    return tuple(files)


def _in_force(settings: list[tuple[int, ...]]) -> float:
    """W: the lowest of the places where it is enabled; NaN where there is none."""
    watts = [_watts(limit) for limit, *switch in settings if all(map(_is_on, switch))]
    return min((w for w in watts if not math.isnan(w)), default=math.nan)


def _watts(file: int) -> float:
    """NaN for 0, which is none, and where it can't be read."""
    try:
        return int(os.pread(file, 32, 0)) * 1e-6 or math.nan
    except (OSError, ValueError):
        return math.nan


def _is_on(file: int) -> bool:
    try:
        return os.pread(file, 32, 0).strip() != b"0"
    except OSError:
        return True


def _labels(name: str) -> dict[str, str]:
    kind = "memory" if name.startswith("dram") else "cpu"
    return {"hw.id": HW_ID, "hw.type": kind, "hw.sensor_location": name}


def _unreadable(tree: Path, left_out: dict[str, str]) -> SourceError:
    first = next(iter(left_out.values()))
    if os.strerror(13) in first:
        path = first.rpartition(":")[0]
        return SourceError("unreadable", f"{path}: only root may read it", _MAKE_READABLE, _RISK)
    return SourceError("unknown", f"{tree}: no zone can be read: {first}", _NO_TREE, _LOADING_IS_SAFE)
