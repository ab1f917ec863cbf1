"""Files of other programs, read into frames and readings: one module a format, see `capture`.

(GStreamer's own tracer log is read by `probe.tracerlog`, which also follows one while it is written.)
"""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

# in the order in which they are asked whether a file is theirs
NAMES = ("capframex", "presentmon", "mangohud", "inference_log", "bitnet", "dlstreamer", "deepstream")


def reader(name: str) -> ModuleType:
    """The module that reads a format."""
    return import_module(f"{__name__}.{name}")


def detect(head: bytes) -> str | None:
    """The format of a file with these first bytes (`capture.HEAD` of them); None for none of ours."""
    return next((name for name in NAMES if reader(name).detect(head)), None)
