"""A real workload for the demo: decode, process and encode video frames at a steady rate.

`run_gstreamer` does it in a GStreamer pipeline, `run_numpy` with zlib and NumPy. Both tell an
`Activity` which stage is at work, so that an emulated meter can draw the stages' power, and both
leave the measuring of stages to whoever calls them.
"""

from __future__ import annotations

import threading
import time
import zlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Protocol

import numpy as np

from benchlab_otel.simulate.truth import Activity

STAGES = ("decode", "process", "encode")
PIPELINE = (
    "videotestsrc is-live=true num-buffers={frames} ! video/x-raw,format=I420,width=480,height=270,"
    "framerate={fps}/1 ! jpegenc name=camera quality=90 ! queue max-size-buffers=8"
    " ! jpegdec name=decode ! videomedian name=process filtersize=5"
    " ! vp8enc name=encode deadline=1 cpu-used=8 threads=1 ! fakesink name=sink sync=false"
)


class FrameMarks(Protocol):
    """A frame being recorded, as a probe has it."""

    def stage(self, name: str) -> AbstractContextManager[None]:
        """A stage that lasts as long as the block."""


def run_numpy(
    frame: Callable[[], AbstractContextManager[FrameMarks]],
    activity: Activity,
    frames: int,
    fps: float,
    advance: Callable[[float], None],
) -> None:
    """Frames of noise, zlib-packed: unpacked, smoothed and packed again, `fps` times a second.

    The size varies from frame to frame as a codec's work does. `advance` is told of each frame.
    """
    random = np.random.default_rng(7)
    camera = [_packed(random, lines) for lines in random.integers(200, 420, 24)]
    work: dict[str, Callable[[Any], Any]] = {"decode": _decode, "process": _process, "encode": _encode}
    begin = time.monotonic()
    for number in range(frames):
        time.sleep(max(0.0, begin + number / fps - time.monotonic()))
        image: Any = camera[number % len(camera)]
        with frame() as marks:
            for stage in STAGES:
                with marks.stage(stage):
                    activity.begin(stage)
                    image = work[stage](image)
                    activity.end(stage)
        advance(1)


def _packed(random: np.random.Generator, lines: int) -> bytes:
    return zlib.compress(random.integers(0, 64, (lines, 640), np.uint8).tobytes(), 1)


def _decode(packed: bytes) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.frombuffer(zlib.decompress(packed), np.uint8).reshape(-1, 640)


def _process(image: np.ndarray[Any, np.dtype[np.uint8]]) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """A vertical box blur, over and over."""
    total = np.zeros(image.shape, np.uint16)
    for shift in range(-6, 7):
        total += np.roll(image, shift, axis=0)
    return (total // 13).astype(np.uint8)


def _encode(image: np.ndarray[Any, np.dtype[np.uint8]]) -> bytes:
    return zlib.compress(image.tobytes(), 1)


def run_gstreamer(
    gst: Any,
    attach: Callable[[Any], object],
    activity: Activity,
    frames: int,
    fps: int,
    advance: Callable[[float], None],
) -> None:
    """PIPELINE to its end, paced by a live source; `attach` is given the pipeline before it plays.

    Raises RuntimeError with GStreamer's own message where the pipeline fails.
    """
    pipeline = gst.parse_launch(PIPELINE.format(frames=frames, fps=fps))
    attach(pipeline)
    for stage in STAGES:
        _tell_activity(gst, pipeline.get_by_name(stage), stage, activity)
    _on_buffer(gst, pipeline.get_by_name("sink").get_static_pad("sink"), lambda: advance(1))
    pipeline.set_state(gst.State.PLAYING)
    try:
        wanted = gst.MessageType.EOS | gst.MessageType.ERROR
        message = pipeline.get_bus().timed_pop_filtered((frames / fps + 60) * gst.SECOND, wanted)
        if message is None:
            raise RuntimeError("the GStreamer pipeline did not end")
        if message.type == gst.MessageType.ERROR:
            raise RuntimeError(f"the GStreamer pipeline failed: {message.parse_error()[0].message}")
    finally:
        pipeline.set_state(gst.State.NULL)


def _tell_activity(gst: Any, element: Any, stage: str, activity: Activity) -> None:
    """The stage is at work from a buffer's arrival in the element until one leaves it."""
    busy = threading.Event()

    def arrives() -> None:
        if not busy.is_set():
            busy.set()
            activity.begin(stage)

    def leaves() -> None:
        if busy.is_set():
            busy.clear()
            activity.end(stage)

    _on_buffer(gst, element.get_static_pad("sink"), arrives)
    _on_buffer(gst, element.get_static_pad("src"), leaves)


def _on_buffer(gst: Any, pad: Any, call: Callable[[], None]) -> None:
    def passes(_pad: Any, _info: Any) -> Any:
        call()
        return gst.PadProbeReturn.OK

    pad.add_probe(gst.PadProbeType.BUFFER, passes)
