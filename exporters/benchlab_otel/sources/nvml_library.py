"""NVML while it is initialized, and which GPUs it lists.

NVML counts how often it was initialized, and a nested time finds nothing new: which GPUs there are it
looks for at the first of them only. So while a GPU is read its list is asked for as it stands. When the
driver then gets a GPU ready (one that was plugged in, came back, or was given back by a virtual machine),
all readers let go of NVML for a moment, and it is initialized anew: DCGM does the same. Indices, and so
domains, may be others after that; ids stay. Each coming does this once, whether NVML lists the GPU then or
not, so one that fails or that a container may not use does not break off reading again and again.

The driver tells its GPUs in /proc/driver/nvidia/gpus (WSL has none), where one is as soon as it can be
used: its folder in /sys/bus/pci/drivers/nvidia is there before that. nvmlDeviceDiscoverGpus would not help:
it has the kernel search the bus, needs root, and may make all handles invalid.

What this can't do: have a GPU removed that NVML has open. The driver then waits for all its users, NVML
among them (an external GPU excepted), so end this program before one is removed, reset or unbound.

Reference: https://docs.nvidia.com/deploy/nvml-api (nvmlInit_v2, nvmlShutdown, nvmlDeviceGetCount_v2,
nvmlDeviceDiscoverGpus); nv_pci_probe and nv_pci_remove_helper in kernel-open/nvidia/nv-pci.c of
https://github.com/NVIDIA/open-gpu-kernel-modules; DcgmNvmlSystemEventThread in NVIDIA's DCGM 4.6.
"""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path
from threading import Lock, Thread

import pynvml

from benchlab_otel.sources.reading import SourceError

ASK_S = 5.0  # a driver that wakes its GPUs first takes a second or two
LET_GO_S = 5.0  # for all readers to let go; one that hangs in a call is not waited for any longer
READY = Path("/proc/driver/nvidia/gpus")  # has a folder for each GPU of the driver, by PCI address


class Library:
    """The library of this process. Any thread may use it."""

    def __init__(self) -> None:
        self._users = 0  # that have it initialized
        self._lock = Lock()  # of users, and of what initializes and shuts down
        self._listed = [""]
        self._look: Thread | None = None
        self._ready: set[str] = set()  # the driver's GPUs at the last look
        self._barred_until = 0.0  # CLOCK_MONOTONIC in seconds

    def enter(self) -> None:
        """Initializes it; NVMLError where that can't be."""
        with self._lock:
            pynvml.nvmlInit()
            self._users += 1

    def check(self) -> None:
        """SourceError while all who read GPUs are to leave, and nobody is to begin."""
        if time.monotonic() < self._barred_until:
            raise SourceError("busy", "NVML is initialized anew, to find a GPU that came")

    def leave(self) -> None:
        """Undoes one `enter`."""
        with self._lock:
            self._users -= 1
            with suppress(pynvml.NVMLError):
                pynvml.nvmlShutdown()
            if not self._users:
                self._barred_until = 0.0

    def gpus(self) -> list[str]:
        """NVML's index of each GPU, [""] where there is none, [] without a driver of NVIDIA.

        A driver that hangs holds up a thread of its own: the list is the last one then.
        """
        if self._look is None or not self._look.is_alive():
            self._look = Thread(target=self._list, name="benchlab-otel-nvml-list", daemon=True)
            self._look.start()
            self._look.join(ASK_S)
        return self._listed

    def _list(self) -> None:
        self._look_for_new()
        try:
            self._listed = [str(index) for index in range(self._count())] or [""]
        except pynvml.NVMLError as error:
            self._listed = [] if error.value == pynvml.NVML_ERROR_LIBRARY_NOT_FOUND else [""]

    def _look_for_new(self) -> None:
        """Has all leave when there is a GPU that was not there at the look before."""
        ready = _ready()
        with self._lock:
            if self._users and ready - self._ready:
                self._barred_until = time.monotonic() + LET_GO_S
            self._ready = ready

    def _count(self) -> int:
        if self._users:
            with suppress(pynvml.NVMLError):  # the last one may just have left
                return int(pynvml.nvmlDeviceGetCount())
        self.enter()
        try:
            return int(pynvml.nvmlDeviceGetCount())
        finally:
            self.leave()


def _ready() -> set[str]:
    """The PCI addresses of the driver's GPUs, none where it doesn't tell them."""
    try:
        return {gpu.name for gpu in READY.iterdir()}
    except OSError:
        return set()
