"""NVML while it is initialized, and which GPUs it lists.

NVML counts how often it was initialized, and a nested time finds nothing new: which GPUs there are it
looks for at the first of them only. So while a GPU is read its list is asked for as it stands, and NVML is
initialized to look only where nothing keeps it so: GPUs that came, or came back, are found then.

Reference: https://docs.nvidia.com/deploy/nvml-api (nvmlInit_v2, nvmlShutdown, nvmlDeviceGetCount_v2).
"""

from __future__ import annotations

from contextlib import suppress
from threading import Lock, Thread

import pynvml

ASK_S = 5.0  # a driver that wakes its GPUs first takes a second or two


class Library:
    """The library of this process. Any thread may use it."""

    def __init__(self) -> None:
        self._users = 0  # that have it initialized
        self._lock = Lock()
        self._listed = [""]
        self._look: Thread | None = None

    def enter(self) -> None:
        """Initializes it; NVMLError where that can't be."""
        pynvml.nvmlInit()
        with self._lock:
            self._users += 1

    def leave(self) -> None:
        """Undoes one `enter`."""
        with self._lock:
            self._users -= 1
        with suppress(pynvml.NVMLError):
            pynvml.nvmlShutdown()

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
        try:
            self._listed = [str(index) for index in range(self._count())] or [""]
        except pynvml.NVMLError as error:
            self._listed = [] if error.value == pynvml.NVML_ERROR_LIBRARY_NOT_FOUND else [""]

    def _count(self) -> int:
        if self._users:
            with suppress(pynvml.NVMLError):  # the last one may just have left
                return int(pynvml.nvmlDeviceGetCount())
        self.enter()
        try:
            return int(pynvml.nvmlDeviceGetCount())
        finally:
            self.leave()
