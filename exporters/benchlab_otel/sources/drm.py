"""AMD and Intel GPUs by the files of their kernel drivers (amdgpu, i915, xe); no library is needed.

Power (AMD) or an energy counter (Intel), which give frames their joules, and load, memory, clocks,
temperatures, fans, voltage, PCIe link and limits. What a driver has no file for is absent.

Formats: Documentation/gpu/amdgpu/thermal.rst, Documentation/ABI/testing/sysfs-driver-intel-i915-hwmon
and sysfs-driver-intel-xe-hwmon of the Linux kernel. AMD's power is an average over a time that the
firmware decides. Intel's sustained limit (PL1, `power1_max`) is called long_term, as RAPL calls it; a
limit has the place of the energy that it limits. Cards with a PCIe switch of their own (AMD from RDNA
on, Intel Arc): the link is that of the switch to the slot. A GPU that its power management has switched
off is not woken to be read (reason "asleep"); while it is read, most drivers keep it awake.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from benchlab_otel import contract
from benchlab_otel.config import Drm
from benchlab_otel.contract import Metric
from benchlab_otel.sources.reading import Device, Field, Reply, SourceError
from benchlab_otel.sources.sysfs import (
    DEGREES,
    RPM,
    VOLTS,
    WATTS,
    Sensor,
    SensorReader,
    is_sysfs,
    place,
    scaled,
    text,
)
from benchlab_otel.timebase import anchor

METRICS = (
    contract.HW_POWER,
    contract.HW_ENERGY,
    contract.HW_POWER_LIMIT,
    contract.HW_TEMPERATURE,
    contract.HW_TEMPERATURE_LIMIT,
    contract.HW_VOLTAGE,
    contract.HW_FAN_SPEED,
    contract.HW_FAN_SPEED_RATIO,
    contract.GPU_UTILIZATION,
    contract.GPU_MEMORY_USAGE,
    contract.GPU_MEMORY_LIMIT,
    contract.GPU_CLOCK,
    contract.GPU_CLOCK_LIMIT,
    contract.GPU_PCIE_GENERATION,
    contract.GPU_PCIE_WIDTH,
    contract.HW_INFO,
)

_SUSPENDED = b"suspended"
_VENDORS = {"amdgpu": "AMD", "i915": "Intel", "xe": "Intel"}
_GENERATIONS = {"2.5": 1.0, "5.0": 2.0, "8.0": 3.0, "16.0": 4.0, "32.0": 5.0, "64.0": 6.0}
_POWER_LIMITS = {"cap": "cap", "max": "long_term", "crit": "high.critical"}  # file: hw.limit_type
_TEMPERATURE_LIMITS = {"crit": "high.critical", "max": "high.degraded"}


def addresses(settings: Drm) -> list[str]:
    """The folder of each card whose driver can be read; none where there is none."""
    cards = (settings.sysfs / "class/drm").glob("card*")
    return [str(c) for c in sorted(cards) if re.fullmatch(r"card\d+", c.name) and _driver(c) in _VENDORS]


def open_reader(settings: Drm, address: str) -> GpuReader:
    """Opens a card's files; SourceError where it has no sensors or is asleep."""
    return GpuReader(Path(address))


class GpuReader(SensorReader):
    """One card."""

    def __init__(self, card: Path) -> None:
        device, driver = card / "device", _driver(card)
        if not driver:
            raise SourceError("absent", f"{card}: no GPU there")
        self._power_state = device / "power/runtime_status"
        if text(self._power_state) == _SUSPENDED.decode():
            raise self._asleep()
        monitor = next(iter(sorted(device.glob("hwmon/hwmon*"))), None)
        hw_id = f"{driver}-{place(device)}"
        sensors = [*_sensors(card, device, monitor, hw_id), _info(device, driver, hw_id)]
        if all(sensor.slow for sensor in sensors):
            raise SourceError("absent", f"{card}: {driver} has no power, load or clock of it in sysfs")
        about = Device(
            hw_id,
            "gpu",
            f"{_VENDORS[driver]} GPU at {place(device)} ({driver})",
            simulated=not is_sysfs(card),
            counting_since_ns=anchor().now_ns(),
        )
        super().__init__(about, sensors)
        self._power_state_file = self.keep_open(self._power_state)

    def read(self) -> Reply:
        """All values; SourceError "asleep" where reading would wake the GPU."""
        if self._power_state_file is not None and _is_suspended(self._power_state_file):
            raise self._asleep()
        return super().read()

    def _asleep(self) -> SourceError:
        return SourceError("asleep", f"{self._power_state}: suspended; not woken to be read")


def _is_suspended(file: int) -> bool:
    try:
        return os.pread(file, 32, 0).startswith(_SUSPENDED)
    except OSError:
        return False


def _driver(card: Path) -> str:
    link = card / "device/driver"
    return link.readlink().name if link.is_symlink() else ""


def _sensors(card: Path, device: Path, monitor: Path | None, hw_id: str) -> Iterator[Sensor]:
    if monitor:
        yield from _power(monitor, hw_id)
        yield from _energy(monitor, hw_id)
        yield from _limits(monitor, hw_id)
        yield from _temperatures(monitor, hw_id)
        yield from _slow_sensors(monitor, hw_id)
        yield from _clocks(monitor, hw_id)
    yield from _load(device, hw_id)
    yield from _intel_clocks(card, device, hw_id)
    yield from _link(device, hw_id)


def _if_there(
    path: Path,
    metric: Metric,
    labels: dict[str, str],
    value: Callable[..., float],
    key: str = "",
) -> Iterator[Sensor]:
    """The sensor where its file is there; one without a key is slow."""
    if path.exists():
        yield Sensor(Field(key, metric, labels), (path,), value, slow=not key)


def _hw(hw_id: str, where: str) -> dict[str, str]:
    return {"hw.id": hw_id, "hw.type": "gpu", "hw.sensor_location": where}


def _power(monitor: Path, hw_id: str) -> Iterator[Sensor]:
    """AMD: the average where there is one. An APU's is that of the whole package, processor included."""
    is_apu = (monitor / "in1_input").exists()  # the driver has a northbridge's voltage for APUs only
    for name in ("power1_average", "power1_input"):
        if text(monitor / name):
            domain = "apu" if is_apu else "gpu"
            key = contract.POWER_PREFIX + domain
            yield from _if_there(
                monitor / name, contract.HW_POWER, _hw(hw_id, domain), scaled(1e-6, WATTS), key
            )
            return


def _counters(monitor: Path) -> Iterator[tuple[Path, str, str]]:
    """Intel's energy counters: (file, label, domain).

    The whole card is "gpu", or the chip where the card has no counter or one that stays at 0.
    """
    files = [p for p in sorted(monitor.glob("energy*_input")) if text(p) not in ("", "0")]
    for number, path in enumerate(files):
        label = text(path.with_name(path.name.replace("_input", "_label")))
        yield path, label, f"gpu-{label or path.name.partition('_')[0]}" if number else "gpu"


def _energy(monitor: Path, hw_id: str) -> Iterator[Sensor]:
    for path, _, domain in _counters(monitor):
        key = contract.ENERGY_PREFIX + domain
        yield from _if_there(path, contract.HW_ENERGY, _hw(hw_id, domain), scaled(1e-6), key)


def _limits(monitor: Path, hw_id: str) -> Iterator[Sensor]:
    domains = {label: domain for _, label, domain in _counters(monitor)}
    for path in sorted(monitor.glob("power*_*")):
        stem, _, kind = path.name.partition("_")
        if kind in _POWER_LIMITS:
            label = text(monitor / f"{stem}_label")
            labels = _hw(hw_id, domains.get(label, label or "gpu")) | {"hw.limit_type": _POWER_LIMITS[kind]}
            yield from _if_there(path, contract.HW_POWER_LIMIT, labels, scaled(1e-6, (1e-6, WATTS[1])))


def _temperatures(monitor: Path, hw_id: str) -> Iterator[Sensor]:
    for path in sorted(monitor.glob("temp*_input")):
        stem = path.name.removesuffix("_input")
        where = text(monitor / f"{stem}_label") or stem
        value = scaled(1e-3, DEGREES)
        yield from _if_there(
            path, contract.HW_TEMPERATURE, _hw(hw_id, where), value, f"hw.temperature.gpu.{where}"
        )
        for suffix, limit_type in _TEMPERATURE_LIMITS.items():
            labels = _hw(hw_id, where) | {"hw.limit_type": limit_type}
            yield from _if_there(monitor / f"{stem}_{suffix}", contract.HW_TEMPERATURE_LIMIT, labels, value)


def _slow_sensors(monitor: Path, hw_id: str) -> Iterator[Sensor]:
    for path in sorted(monitor.glob("in*_input")):
        where = text(path.with_name(path.name.replace("_input", "_label"))) or path.name.partition("_")[0]
        yield from _if_there(path, contract.HW_VOLTAGE, _hw(hw_id, where), scaled(1e-3, VOLTS))
    for path in sorted(monitor.glob("fan*_input")):
        fan = _hw(hw_id, path.name.partition("_")[0]) | {"hw.type": "fan"}
        yield from _if_there(path, contract.HW_FAN_SPEED, fan, scaled(1.0, RPM))
    fan = _hw(hw_id, "fan1") | {"hw.type": "fan"}
    yield from _if_there(monitor / "pwm1", contract.HW_FAN_SPEED_RATIO, fan, scaled(1 / 255, (0.0, 1.0)))


def _clocks(monitor: Path, hw_id: str) -> Iterator[Sensor]:
    """AMD's clocks, in Hz, and the highest that their tables hold."""
    for stem, part in (("freq1", "graphics"), ("freq2", "memory")):
        labels = {"hw.id": hw_id, "hw.gpu.part": part}
        yield from _if_there(
            monitor / f"{stem}_input", contract.GPU_CLOCK, labels, scaled(1.0), f"hw.gpu.clock.{part}"
        )
    for name, part in (("pp_dpm_sclk", "graphics"), ("pp_dpm_mclk", "memory")):
        labels = {"hw.id": hw_id, "hw.gpu.part": part}
        yield from _if_there(monitor / "device" / name, contract.GPU_CLOCK_LIMIT, labels, highest_clock)


def highest_clock(table: bytes) -> float:
    """The highest clock, in Hz, of lines such as `1: 2475Mhz *`."""
    clocks = [float(found) * 1e6 for found in re.findall(rb"^\d+:\s*(\d+)\s*mhz", table.lower(), re.M)]
    if not clocks:
        raise ValueError(table)
    return max(clocks)


def _intel_clocks(card: Path, device: Path, hw_id: str) -> Iterator[Sensor]:
    """Intel's graphics clock, in MHz: i915's files, or xe's of its first tile."""
    first_gt = device / "tile0/gt0/freq0"
    labels = {"hw.id": hw_id, "hw.gpu.part": "graphics"}
    for path in (card / "gt_act_freq_mhz", first_gt / "act_freq"):
        yield from _if_there(path, contract.GPU_CLOCK, labels, scaled(1e6), "hw.gpu.clock.graphics")
    for path in (card / "gt_RP0_freq_mhz", first_gt / "rp0_freq"):
        yield from _if_there(path, contract.GPU_CLOCK_LIMIT, labels, scaled(1e6))


def _load(device: Path, hw_id: str) -> Iterator[Sensor]:
    for name, task in (("gpu_busy_percent", "general"), ("mem_busy_percent", "memory")):
        labels = {"hw.id": hw_id, "hw.gpu.task": task}
        value = scaled(0.01, (0.0, 1.0))
        yield from _if_there(
            device / name, contract.GPU_UTILIZATION, labels, value, f"hw.gpu.utilization.{task}"
        )
    labels = {"hw.id": hw_id}
    yield from _if_there(device / "mem_info_vram_used", contract.GPU_MEMORY_USAGE, labels, scaled(1.0))
    yield from _if_there(device / "mem_info_vram_total", contract.GPU_MEMORY_LIMIT, labels, scaled(1.0))


def _link(device: Path, hw_id: str) -> Iterator[Sensor]:
    labels, port = {"hw.id": hw_id}, _slot_port(device)
    yield from _if_there(port / "current_link_speed", contract.GPU_PCIE_GENERATION, labels, pcie_generation)
    yield from _if_there(port / "current_link_width", contract.GPU_PCIE_WIDTH, labels, scaled(1.0, (1, 32)))


def _slot_port(device: Path) -> Path:
    """The card's PCIe port to the slot: the GPU, or the upstream port of the card's own switch.

    Behind such a switch a GPU says 2.5 GT/s x1 (Intel) or the most that it can do (AMD), whatever the
    slot's link. Its two ports have the GPU's vendor id, by which amdgpu tells them too; Intel's root ports
    have that as well, but are right below the host bridge (`pci0000:00`).
    """
    gpu = device.resolve()
    downstream, upstream, above = gpu.parents[:3]
    makers = {text(folder / "vendor") for folder in (gpu, downstream, upstream)}
    return upstream if len(makers) == 1 and not above.name.startswith("pci") else gpu


def pcie_generation(speed: bytes) -> float:
    """The generation of a speed such as `16.0 GT/s PCIe`; ValueError where it is none."""
    word = speed.decode(errors="replace").partition(" GT/s")[0]
    if word not in _GENERATIONS:
        raise ValueError(speed)
    return _GENERATIONS[word]


def _info(device: Path, driver: str, hw_id: str) -> Sensor:
    """What the card is: the name that it has for itself, or else its PCI ids."""
    ids = ":".join(text(device / name).removeprefix("0x") for name in ("vendor", "device"))
    labels = {
        "hw.id": hw_id,
        "hw.type": "gpu",
        "hw.vendor": _VENDORS[driver],
        "hw.model": text(device / "product_name") or ids,
    }
    return Sensor(Field("", contract.HW_INFO, labels), (), lambda: 1.0, slow=True)
