"""OpenTelemetry exporters that give every frame of a pipeline its latency and its joules."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from benchlab_otel.probe.recorder import Probe

__version__ = "0.1.0"
__all__ = ["Probe", "__version__"]


def __getattr__(name: str) -> object:
    """`Probe` is imported when it is first used, so that importing the package stays cheap."""
    if name == "Probe":
        from benchlab_otel.probe.recorder import Probe

        return Probe
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
