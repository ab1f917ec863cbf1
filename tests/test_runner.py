"""What the thread of a source does: how often it tells, and when something fails that never should."""

import time
from functools import partial

import pytest

from benchlab_otel import sources
from benchlab_otel.config import Host, Hwmon, Rapl, Sources
from benchlab_otel.sources.reading import refused
from benchlab_otel.timebase import anchor
from conftest import wait_for
from machines import unpack
from receiving import Receiver


class Full(Receiver):
    """A sink that breaks its promise never to raise: at the first values, not at the health."""

    def metrics(self, body: bytes) -> None:
        super().metrics(body)
        if self.values("system.cpu.time")[-1:] != [None]:
            raise RuntimeError("the sink is full")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_thread_that_ended_by_a_defect_is_not_well():
    receiver = Full()
    running = sources.start(["host"], Sources(host=Host(rate_hz=50)), receiver, "s", metrics_s=0.01)
    (health,) = running.health()
    wait_for(lambda: health.failures)
    running.stop()
    assert not health.ok
    assert health.message == "reading ended: RuntimeError: the sink is full"
    assert receiver.values("exporter.collect.success") == [1.0, 0.0]
    assert receiver.values("exporter.collect.failures", {"reason": "defect"}) == [1.0]
    assert receiver.values("system.cpu.time")[-1] is None  # no last values stay on the page


def test_what_goes_while_it_is_opened_is_lost_and_opened_again(tmp_path):
    """A link in /sys whose device is just gone: no defect, and the end of nothing."""
    gone = unpack("thinkpad-x1-i7-8550u", tmp_path) / "class/hwmon/hwmon9"
    gone.symlink_to(tmp_path / "gone")
    settings = Sources(hwmon=Hwmon(sysfs=tmp_path))
    (found,) = sources.look("hwmon", settings)
    assert (found.error.reason, str(found.error)) == ("lost", f"{gone}: No such file or directory")
    running = sources.start(["hwmon"], settings, Receiver(), "s")
    (health,) = running.health()
    wait_for(lambda: health.failures)
    gone.unlink()
    wait_for(lambda: health.ok)
    running.stop()
    assert set(health.failures) == {"lost"}


@pytest.mark.parametrize(
    ("error", "reason", "said"),
    [
        (
            FileNotFoundError(2, "No such file or directory", "/sys/x"),
            "lost",
            "/sys/x: No such file or directory",
        ),
        (PermissionError(13, "Permission denied", "/sys/x"), "unreadable", "/sys/x: Permission denied"),
        (OSError("in no words"), "lost", "in no words"),
    ],
)
def test_what_the_system_refuses_in_words(error, reason, said):
    refusal = refused(error)
    assert (refusal.reason, str(refusal)) == (reason, said)
    assert bool(refusal.fix) == (reason == "unreadable")


class Counting(Receiver):
    """A sink that counts requests."""

    def __init__(self) -> None:
        super().__init__()
        self.traced = self.measured = 0

    def traces(self, body: bytes) -> None:
        super().traces(body)
        self.traced += 1

    def metrics(self, body: bytes) -> None:
        super().metrics(body)
        self.measured += 1


def test_what_was_read_is_told_no_more_often_than_asked(tmp_path):
    receiver, flush_s, metrics_s = Counting(), 0.02, 0.04
    settings = Sources(rapl=Rapl(sysfs=unpack("thinkpad-x1-i7-8550u", tmp_path), rate_hz=200))
    begin = time.monotonic()
    running = sources.start(["rapl"], settings, receiver, "s", flush_s=flush_s, metrics_s=metrics_s)
    wait_for(lambda: receiver.traced >= 30 and receiver.measured >= 15)
    running.stop()
    lasted = time.monotonic() - begin
    (health,) = running.health()
    assert len(receiver.samples()) == health.readings
    assert receiver.traced <= lasted / flush_s + 3  # the first, the last, and the session
    assert receiver.measured <= lasted / metrics_s + 3


def test_samples_are_told_sooner_while_frames_come(tmp_path):
    """Joules of frames wait for them; without frames nobody does."""
    settings = Sources(rapl=Rapl(sysfs=unpack("thinkpad-x1-i7-8550u", tmp_path), rate_hz=200))
    with_frames, without = Counting(), Counting()
    start = partial(sources.start, ["rapl"], settings, session_id="s", flush_s=3600.0)
    soon, late = start(sink=with_frames, latency=lambda: 0.01), start(sink=without)
    wait_for(lambda: with_frames.traced >= 3)
    assert without.traced == 0
    for running, receiver in ((soon, with_frames), (late, without)):
        running.stop()
        (health,) = running.health()
        assert len(receiver.samples()) == health.readings


def test_the_last_success_is_told_by_the_wall_clock(tmp_path, monkeypatch):
    """The time base is behind it, as after a suspend (by less than what makes another one)."""
    made, _ = anchor(tmp_path / "made"), monkeypatch.setenv("BENCHLAB_OTEL_RUNTIME_DIR", str(tmp_path))
    file = tmp_path / f"benchlab-otel-{made.boot_id}.anchor"
    file.write_text(f"{made.offset_ns - 900_000_000}\n")
    receiver, settings = Receiver(), Sources(rapl=Rapl(sysfs=unpack("steam-deck", tmp_path / "sys")))
    begin = time.time()
    running = sources.start(["rapl"], settings, receiver, "s", flush_s=0.02, metrics_s=0.02)
    wait_for(lambda: receiver.values("exporter.collect.last_success.timestamp"))
    running.stop()
    assert begin <= receiver.values("exporter.collect.last_success.timestamp")[0] <= time.time()
