"""Pad probes in real pipelines of this process."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchlab_otel import Probe
from benchlab_otel.probe.environment import environment, follow
from benchlab_otel.probe.gstreamer import attach, load_gst
from conftest import need
from receiving import Receiver

DEBIAN = Path("/usr/lib/python3/dist-packages/gi")


@pytest.fixture(scope="module")
def gst(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Debian's bindings, linked where this Python finds them."""
    need("gst-launch-1.0")
    folder = tmp_path_factory.mktemp("gi")
    if DEBIAN.is_dir():
        (folder / "gi").symlink_to(DEBIAN)
    sys.path.append(str(folder))
    try:
        yield load_gst()
    except ImportError as error:
        if os.environ.get("CI") == "true":
            pytest.fail(str(error))
        pytest.skip(str(error))
    finally:
        sys.path.remove(str(folder))


def run(gst: Any, description: str, elements: list[str] | None = None) -> tuple[Receiver, Any, Probe]:
    """Plays the pipeline to its end under the probe."""
    pipeline = gst.parse_launch(description)
    receiver = Receiver()
    probe = Probe("cam0", sink=receiver, timeout_s=30)
    attachment = attach(pipeline, probe, elements)
    play(gst, pipeline)
    probe.close()
    return receiver, attachment, probe


def play(gst: Any, pipeline: Any) -> None:
    pipeline.set_state(gst.State.PLAYING)
    ends = gst.MessageType.EOS | gst.MessageType.ERROR
    message = pipeline.get_bus().timed_pop_filtered(60 * gst.SECOND, ends)
    pipeline.set_state(gst.State.NULL)
    assert message is not None
    assert message.type == gst.MessageType.EOS, message.parse_error()


def shapes(receiver: Receiver) -> Counter[tuple[str, str, str]]:
    """(first mark, outcome, stages in order) of the frames, counted."""
    stages: dict[bytes, list[tuple[int, int, str]]] = {}
    for _, span, _ in receiver.spans:
        stages.setdefault(span.parent_span_id, []).append(
            (span.start_time_unix_nano, span.end_time_unix_nano, span.name)
        )
    return Counter(
        (
            attributes["frame.first_mark"],
            attributes["frame.outcome"],
            " ".join(name for _, _, name in sorted(stages.get(span.span_id, []))),
        )
        for _, span, attributes in receiver.spans
        if span.name == "frame"
    )


def test_every_buffer_through_every_element(gst: Any) -> None:
    receiver, attachment, probe = run(
        gst,
        "videotestsrc name=s num-buffers=100 ! jpegenc name=e ! queue name=q ! jpegdec name=d ! fakesink",
    )
    assert shapes(receiver) == {("s", "completed", "e q d"): 100}
    assert attachment.untimed == 0
    assert not probe.lost


def test_chosen_elements(gst: Any) -> None:
    description = "videotestsrc num-buffers=50 ! jpegenc name=e ! queue ! jpegdec name=d ! fakesink"
    receiver, _, _ = run(gst, description, ["e", "d"])
    assert shapes(receiver) == {("e", "completed", "e d"): 50}
    with pytest.raises(ValueError, match=r"no element x in the pipeline; it has .*e"):
        run(gst, description, ["x"])


def test_a_tee_completes_at_all_sinks(gst: Any) -> None:
    receiver, _, _ = run(
        gst,
        "videotestsrc name=s num-buffers=50 ! tee name=t t. ! queue name=a ! fakesink "
        "t. ! queue name=b ! jpegenc name=e ! fakesink",
    )
    assert {(first, outcome) for first, outcome, _ in shapes(receiver)} == {("s", "completed")}
    assert shapes(receiver).total() == 50
    assert {"".join(sorted(stages.split())) for _, _, stages in shapes(receiver)} == {"abet"}


def test_dropped_buffers_do_not_shift_the_others(gst: Any) -> None:
    receiver, _, probe = run(
        gst,
        "videotestsrc name=s num-buffers=90 ! identity name=i drop-probability=0.5 ! jpegenc name=e "
        "! fakesink name=f",
        ["s", "i", "e", "f"],
    )
    found = shapes(receiver)
    assert found.total() == 90
    assert found["s", "completed", "i e"] + found["s", "dropped", ""] == 90
    assert found["s", "completed", "i e"] > 0
    assert found["s", "dropped", ""] > 0
    assert not probe.lost


def test_encoders_that_hold_frames_and_shift_times(gst: Any) -> None:
    receiver, _, _ = run(
        gst,
        "videotestsrc name=s num-buffers=60 ! vp8enc name=e deadline=1 lag-in-frames=5 ! vp8dec name=d "
        "! fakesink",
    )
    assert shapes(receiver) == {("s", "completed", "e d"): 60}


def test_buffers_without_time_are_counted(gst: Any) -> None:
    receiver, attachment, _ = run(gst, "fakesrc num-buffers=5 ! identity ! fakesink")
    assert shapes(receiver) == {}
    assert attachment.untimed == 5 * 4


def test_bins_and_detaching(gst: Any) -> None:
    pipeline = gst.parse_launch(
        "videotestsrc num-buffers=20 ! ( jpegenc name=e ! jpegdec name=d ) ! fakesink"
    )
    receiver = Receiver()
    probe = Probe("cam0", sink=receiver)
    attachment = attach(pipeline, probe, ["e", "d"])
    attachment.detach()
    play(gst, pipeline)
    probe.close()
    assert not receiver.spans
    pipeline = gst.parse_launch(
        "videotestsrc num-buffers=20 ! ( jpegenc name=e ! jpegdec name=d ) ! fakesink"
    )
    probe = Probe("cam0", sink=receiver)
    attach(pipeline, probe)
    play(gst, pipeline)
    probe.close()
    assert [stages for _, _, stages in shapes(receiver)] == ["e d"]


PLAYER = """
import sys
sys.path.append(sys.argv[1])
from benchlab_otel import Probe
from benchlab_otel.probe.gstreamer import attach, load_gst

class Stdout:
    def traces(self, body):
        sys.stdout.buffer.write(len(body).to_bytes(4, "big") + body)
    def metrics(self, body):
        pass

gst = load_gst()
pipeline = gst.parse_launch("videotestsrc is-live=true num-buffers=40 ! jpegenc name=e ! fakesink")
probe = Probe("probed", sink=Stdout())
attach(pipeline, probe, ["e"])
pipeline.set_state(gst.State.PLAYING)
pipeline.get_bus().timed_pop_filtered(60 * gst.SECOND, gst.MessageType.EOS)
pipeline.set_state(gst.State.NULL)
probe.close()
"""


def test_tracer_log_and_pad_probes_agree_on_the_clock(gst: Any, tmp_path: Path) -> None:
    """One pipeline seen by both: the tracer's times, put on the time base, are the pad probes'."""
    os.mkfifo(tmp_path / "log")
    traced, probed = Receiver(), Receiver()
    follower = follow(tmp_path / "log", "cam0", traced)
    bindings = Path(sys.modules["gi"].__path__[0]).parent
    done = subprocess.run(
        [sys.executable, "-c", PLAYER, str(bindings)],
        env={**os.environ, **environment("http://localhost:4318", "s1", tmp_path / "log")},
        stdout=subprocess.PIPE,
        timeout=60,
        check=True,
    )
    follower.close()
    output = done.stdout
    while output:
        size = int.from_bytes(output[:4], "big")
        probed.traces(output[4 : 4 + size])
        output = output[4 + size :]
    ends = [sorted(s.end_time_unix_nano for _, s, _ in r.spans if s.name == "e") for r in (traced, probed)]
    assert len(ends[0]) == len(ends[1]) == 40
    differences = sorted(abs(a - b) for a, b in zip(*ends, strict=True))
    assert differences[20] < 20_000_000
