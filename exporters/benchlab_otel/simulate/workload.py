"""A real workload for the demo: decode, process and encode video frames at a steady rate.

`run_gstreamer` does it in a GStreamer pipeline, `run_numpy` with zlib and NumPy. `telling` makes the
stages known to an `Activity` at the very times that are recorded, so that an emulated meter draws the
stages' power by the same clock and marks that the measurement has.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Protocol

import numpy as np

from benchlab_otel.simulate.truth import Activity
from benchlab_otel.timebase import anchor

STAGES = ("decode", "process", "encode")
PIPELINE = (
    "videotestsrc is-live=true num-buffers={frames} ! video/x-raw,format=I420,width=480,height=270,"
    "framerate={fps}/1 ! jpegenc name=camera quality=90 ! queue max-size-buffers=8"
    " ! jpegdec name=decode ! videomedian name=process filtersize=5"
    " ! vp8enc name=encode deadline=1 cpu-used=8 threads=1 ! fakesink name=sink sync=false"
)


Told = Callable[[str, bool, int], None]
"""`told(stage, begins, time_ns)`: a stage begins or ends (CLOCK_MONOTONIC)."""


class FrameMarks(Protocol):
    """A frame being recorded, as a probe has it."""

    def record(self, name: str, begin_ns: int, end_ns: int) -> None:
        """A stage that was timed by CLOCK_MONOTONIC."""


def telling(activity: Activity) -> Told:
    """Tells the activity of stages; one that is begun again without an end (a lost frame) goes on."""
    busy: set[str] = set()
    offset = anchor().offset_ns

    def told(stage: str, begins: bool, time_ns: int) -> None:
        if begins and stage not in busy:
            busy.add(stage)
            activity.begin(stage, time_ns + offset)
        elif not begins and stage in busy:
            busy.remove(stage)
            activity.end(stage, time_ns + offset)

    return told


def run_numpy(
    frame: Callable[[], AbstractContextManager[FrameMarks]],
    told: Told,
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
    start = time.monotonic()
    for number in range(frames):
        time.sleep(max(0.0, start + number / fps - time.monotonic()))
        image: Any = camera[number % len(camera)]
        with frame() as marks:
            for stage in STAGES:
                begin = time.monotonic_ns()
                told(stage, True, begin)
                image = work[stage](image)
                end = time.monotonic_ns()
                told(stage, False, end)
                marks.record(stage, begin, end)
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
    frames: int,
    fps: int,
    advance: Callable[[float], None],
) -> None:
    """PIPELINE to its end, paced by a live source; `attach` is given the pipeline before it plays.

    Raises RuntimeError with GStreamer's own message where the pipeline fails.
    """
    pipeline = gst.parse_launch(PIPELINE.format(frames=frames, fps=fps))
    attach(pipeline)
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


def _on_buffer(gst: Any, pad: Any, call: Callable[[], None]) -> None:
    def passes(_pad: Any, _info: Any) -> Any:
        call()
        return gst.PadProbeReturn.OK

    pad.add_probe(gst.PadProbeType.BUFFER, passes)
