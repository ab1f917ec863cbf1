"""Pad probes in a GStreamer pipeline of this process: each buffer a frame, each element a stage.

    probe = Probe("cam0")
    attachment = attach(pipeline, probe)

Buffers are followed by their running time (PTS as the segment places it: encoders that shift the PTS
shift the segment as well), so a buffer that is dropped or overtaken cannot shift another one:

- A frame begins where its running time is first seen, and its first mark is that element's name.
- An element's stage runs from the buffer's arrival at a sink pad to its first leaving by a source pad.
- It is complete when it has arrived at every sink (or left the last of the elements asked for); what
  vanishes on the way counts as dropped after the probe's time limit. An element that gives buffers new
  times (videorate) ends frames and begins others. Time spent inside a sink is not seen.
- Buffers without PTS or a time segment can't be told apart: they are left out and counted in
  `Attachment.untimed`. Two streams of one pipeline (sound and picture) share running times: attach to
  the elements of one of them.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from importlib import import_module
from typing import Any

from benchlab_otel.probe.recorder import Frame, Probe

MISSING = (
    "GStreamer's Python bindings are missing: apt install python3-gi gir1.2-gstreamer-1.0; a virtual "
    "environment of Debian's Python version sees them once /usr/lib/python3/dist-packages/gi is linked "
    "into its site-packages"
)
Told = Callable[[str, bool, int], None]
"""`told(stage, begins, time_ns)`: a stage begins or ends (CLOCK_MONOTONIC)."""
_OPEN_LIMIT = 10_000  # buffers in one element or in flight; the oldest are forgotten beyond


def load_gst() -> Any:
    """The `Gst` module, initialised; ImportError names the packages where it is missing."""
    try:
        gi = import_module("gi")
        gi.require_version("Gst", "1.0")
        gst = import_module("gi.repository.Gst")
    except (ImportError, ValueError) as error:
        raise ImportError(f"{MISSING} ({error})") from None
    gst.init(None)
    return gst


class Attachment:
    """The pad probes on one pipeline; `untimed` counts buffers that could not be followed."""

    def __init__(self, gst: Any, probe: Probe, last: Iterable[str], told: Told | None) -> None:
        self.untimed = 0
        self.told = told
        self._gst = gst
        self._probe = probe
        self._last = frozenset(last)
        self._lock = threading.Lock()
        self._open: dict[int, tuple[Frame, set[str]]] = {}
        self._probes: list[tuple[Any, int]] = []

    def detach(self) -> None:
        """Takes the probes off; frames in flight will count as dropped."""
        for pad, number in self._probes:
            pad.remove_probe(number)
        self._probes.clear()

    def watch(self, element: Any) -> None:
        """Puts probes on all pads of `element`, also on those that it adds later."""
        stage = _Stage(self, element.get_name(), is_sink=not element.numsrcpads)
        for pad in element.pads:
            self._watch_pad(stage, pad)
        element.connect("pad-added", lambda _, pad: self._watch_pad(stage, pad))

    def _watch_pad(self, stage: _Stage, pad: Any) -> None:
        kinds = self._gst.PadProbeType
        is_input = pad.get_direction() == self._gst.PadDirection.SINK
        callback = self._callback(pad, stage.arrived if is_input else stage.left)
        kind = kinds.BUFFER | kinds.BUFFER_LIST | kinds.EVENT_DOWNSTREAM
        self._probes.append((pad, pad.add_probe(kind, callback)))

    def _callback(self, pad: Any, handle: Callable[[int], None]) -> Callable[[Any, Any], Any]:
        """Calls `handle` with the running time of each buffer that passes."""
        gst, none, ok = self._gst, self._gst.CLOCK_TIME_NONE, self._gst.PadProbeReturn.OK
        sticky = pad.get_sticky_event(gst.EventType.SEGMENT, 0)
        segment: Any = sticky.parse_segment().copy() if sticky else None

        def passes(_pad: Any, info: Any) -> Any:
            nonlocal segment
            if info.type & gst.PadProbeType.EVENT_DOWNSTREAM:
                event = info.get_event()
                if event.type == gst.EventType.SEGMENT:
                    segment = event.parse_segment().copy()
                return ok
            timed = segment is not None and segment.format == gst.Format.TIME
            for buffer in _buffers(gst, info):
                known = timed and buffer.pts != none
                running = segment.to_running_time(gst.Format.TIME, buffer.pts) if known else none
                if running == none:
                    self.untimed += 1
                else:
                    handle(running)
            return ok

        return passes

    def frame(self, running: int, element: str) -> Frame:
        """The frame of this running time, begun at `element` if it is new."""
        known = self._open.get(running)
        if known is None:
            with self._lock:
                known = self._open.get(running) or self._begin(running, element)
        return known[0]

    def _begin(self, running: int, element: str) -> tuple[Frame, set[str]]:
        frame = self._probe.begin()
        frame.mark(element)
        known = self._open[running] = (frame, set(self._last))
        _forget_oldest(self._open)
        return known

    def passed(self, running: int, element: str) -> None:
        """The frame is through with `element`; after the last one it is complete."""
        if element not in self._last:
            return
        with self._lock:
            frame, to_reach = self._open.get(running, (None, set[str]()))
            to_reach.discard(element)
            if frame is not None and not to_reach:
                del self._open[running]
                frame.end()


class _Stage:
    """One element: when each running time arrived that has not left yet."""

    def __init__(self, attachment: Attachment, name: str, is_sink: bool) -> None:
        self._attachment, self._name, self._is_sink = attachment, name, is_sink
        self._arrived: dict[int, int] = {}

    def arrived(self, running: int) -> None:
        """A buffer enters the element."""
        self._attachment.frame(running, self._name)
        now = time.monotonic_ns()  # after the mark that begins the frame
        if self._is_sink:
            self._attachment.passed(running, self._name)
            return
        self._arrived.setdefault(running, now)
        if self._attachment.told is not None:
            self._attachment.told(self._name, True, now)
        _forget_oldest(self._arrived)

    def left(self, running: int) -> None:
        """A buffer leaves the element."""
        now = time.monotonic_ns()
        frame = self._attachment.frame(running, self._name)
        arrived = self._arrived.pop(running, None)
        if arrived is not None:
            frame.record(self._name, arrived, now)
            if self._attachment.told is not None:
                self._attachment.told(self._name, False, now)
        self._attachment.passed(running, self._name)


def attach(
    pipeline: Any, probe: Probe, elements: Sequence[str] | None = None, told: Told | None = None
) -> Attachment:
    """Follows the buffers of `pipeline` (a Gst.Bin) through `elements`, in their order, or through all.

    `told` hears of each stage as it begins and ends, at the very times that are recorded.

    Raises ValueError with the names there are where one is not in the pipeline, ImportError (naming
    the packages) where GStreamer's bindings are missing.
    """
    gst = load_gst()
    found = {element.get_name(): element for element in _all_elements(gst, pipeline)}
    if unknown := [name for name in elements or () if name not in found]:
        raise ValueError(f"no element {', '.join(unknown)} in the pipeline; it has {', '.join(found)}")
    if elements:
        last = list(elements[-1:])
    else:
        last = [name for name, element in found.items() if not element.numsrcpads]
    attachment = Attachment(gst, probe, last, told)
    for name in elements or found:
        attachment.watch(found[name])
    return attachment


def _all_elements(gst: Any, pipeline: Any) -> list[Any]:
    """The elements of the pipeline and of its bins, upstream first, without the bins themselves."""
    found: list[Any] = []
    iterator = pipeline.iterate_recurse()
    while True:
        result, element = iterator.next()
        if result == gst.IteratorResult.OK:
            if not isinstance(element, gst.Bin):
                found.append(element)
        elif result == gst.IteratorResult.RESYNC:
            found.clear()
            iterator.resync()
        else:
            return found[::-1]


def _buffers(gst: Any, info: Any) -> list[Any]:
    if info.type & gst.PadProbeType.BUFFER:
        return [info.get_buffer()]
    several = info.get_buffer_list()
    return [several.get(i) for i in range(several.length())]


def _forget_oldest(table: dict[int, Any]) -> None:
    """Keeps the table bounded: buffers that vanished in an element never leave it."""
    if len(table) > _OPEN_LIMIT:
        with contextlib.suppress(RuntimeError, KeyError):  # another thread was faster
            del table[next(iter(table))]
