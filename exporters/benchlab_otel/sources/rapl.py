"""Energy counters of the processor (RAPL) by the kernel's powercap tree; AMD exposes the same one.

Format: Documentation/power/powercap/powercap.rst of the Linux kernel. `energy_uj` wraps at
`max_energy_range_uj`; the exported counters start at 0 when they are opened and never wrap.
"""

from __future__ import annotations

import os
from collections import Counter
from contextlib import suppress
from pathlib import Path

from benchlab_otel.config import Rapl
from benchlab_otel.contract import ENERGY_PREFIX, HW_ENERGY
from benchlab_otel.sources.reading import Device, Field, Reading, SourceError
from benchlab_otel.timebase import anchor

HW_ID = "rapl"
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


class _Zone:
    """One counter, made monotonic."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._range = _number((folder / "max_energy_range_uj").read_bytes(), folder)
        self._file = os.open(folder / "energy_uj", os.O_RDONLY | os.O_CLOEXEC)
        self._last: int | None = None
        self._total = 0

    def joules(self) -> float:
        """Energy since the first call."""
        now = _number(os.pread(self._file, 32, 0), self.folder)
        if self._last is not None:
            used = now - self._last
            self._total += used if used >= 0 else used + self._range
        self._last = now
        return self._total * 1e-6

    def close(self) -> None:
        os.close(self._file)


class RaplReader:
    """All zones of a powercap tree."""

    def __init__(self, tree: Path) -> None:
        folders = sorted(tree.glob("intel-rapl:*"))
        if not folders:
            raise SourceError("absent", f"{tree}: no RAPL counters", _NO_TREE)
        self._zones: list[_Zone] = []
        try:
            names = _domains(folders)
            for folder in folders:
                self._zones.append(_Zone(folder))
        except OSError as error:
            self.close()
            raise _unreadable(tree, error) from None
        except SourceError:
            self.close()
            raise
        self._fields = [Field(ENERGY_PREFIX + name, HW_ENERGY, _labels(name)) for name in names]
        self.device = Device(
            HW_ID,
            "cpu",
            f"RAPL: {', '.join(names)}",
            simulated=not _is_sysfs(tree),
            counting_since_ns=anchor().now_ns(),
        )

    def read(self) -> Reading:
        """All counters; SourceError when one of them can't be read any more."""
        start = anchor().now_ns()
        try:
            values = [zone.joules() for zone in self._zones]
        except OSError as error:
            raise SourceError("lost", f"RAPL: a counter went away: {error}") from None
        return Reading(start, anchor().now_ns(), self._fields, values)

    def close(self) -> None:
        """Closes the counters' files."""
        for zone in self._zones:
            with suppress(OSError):
                zone.close()
        self._zones = []


def _domains(folders: list[Path]) -> list[str]:
    """A domain for each zone: its name, with the package's number where several have that name."""
    names = [(folder / "name").read_text().strip().replace(".", "-") for folder in folders]
    several = Counter(names)
    packages = [folder.name.split(":")[1] for folder in folders]
    return [f"{n}-{p}" if several[n] > 1 else n for n, p in zip(names, packages, strict=True)]


def _labels(name: str) -> dict[str, str]:
    kind = "memory" if name.startswith("dram") else "cpu"
    return {"hw.id": HW_ID, "hw.type": kind, "hw.sensor_location": name}


def _number(raw: bytes, folder: Path) -> int:
    try:
        return int(raw)
    except ValueError:
        text = f"{folder}: expected a number of microjoules, found {raw[:40]!r}"
        raise SourceError("garbled", text) from None


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
