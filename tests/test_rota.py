"""Devices that are read together: each by one thread at a time, and none held up by another."""

import threading
import time
from collections import Counter
from threading import Event, Thread

import numpy as np
import pytest

from benchlab_otel import sources
from benchlab_otel.config import Benchlab, Hwmon, Rapl, Sources
from benchlab_otel.simulate.device import Emulator
from benchlab_otel.simulate.truth import Load, Truth
from benchlab_otel.sources.reading import Reply, SourceError
from benchlab_otel.sources.rota import Rota, Turn
from benchlab_otel.sources.schedule import Schedule
from conftest import wait_for
from machines import unpack
from receiving import Receiver

PERIOD_S, TELL_S, LONGEST_S = 0.005, 0.02, 0.2


class Device:
    """Counts what is asked of it and answers when it may; its own thread waits for the end of its turn."""

    def __init__(self, rota: Rota, takes_s: float = 0.0, every: int = 1) -> None:
        self.told, self.takes_s, self.inside = 0, takes_s, 0
        self.replies: list[Reply] = []
        self.answers = Event()
        self.answers.set()
        self.error: Exception | None = None
        self.raised: Exception | None = None
        self.turn = Turn(self._read, self.replies, self._tell, every)
        self.thread = Thread(target=self._own, args=(rota,), daemon=True)
        self.thread.start()

    def _own(self, rota: Rota) -> None:
        try:
            rota.take(self.turn)
        except SourceError as error:
            self.raised = error

    @property
    def read(self) -> int:
        return len(self.replies)

    def _read(self) -> Reply:
        self.inside += 1
        assert self.inside == 1
        moment = time.monotonic_ns()
        self.answers.wait()
        time.sleep(self.takes_s)
        self.inside -= 1
        if self.error:
            raise self.error
        return moment, moment, ""

    def _tell(self, moment: float) -> None:
        self.told += 1

    def goes_on(self) -> None:
        before, told = self.read, self.told
        wait_for(lambda: self.read >= before + 20 and self.told > told)

    def end(self) -> None:
        self.answers.set()
        self.turn.ended.set()
        self.thread.join()


@pytest.fixture
def rota():
    before = set(threading.enumerate())
    yield Rota(Schedule(PERIOD_S, time.monotonic(), 1), lambda: TELL_S, LONGEST_S / PERIOD_S)
    wait_for(lambda: set(threading.enumerate()) <= before)  # its threads end with the last device


def test_all_are_read_and_tell_at_one_moment_of_each_period(rota):
    begin = time.monotonic()
    devices = [Device(rota) for _ in range(3)]
    for device in devices:
        device.goes_on()
    periods = (time.monotonic() - begin) / PERIOD_S
    for device in devices:
        device.end()
        assert device.read <= periods + 2
        assert device.told <= periods * PERIOD_S / TELL_S + 2


def test_a_device_of_a_lower_rate_is_read_at_a_random_moment_of_its_own_period(rota):
    every = 7
    fast, seldom = Device(rota), Device(rota, every=every)
    wait_for(lambda: len(seldom.replies) > 60)
    for device in (fast, seldom):
        device.end()
    times = np.array([start for start, *_ in fast.replies])
    at = np.searchsorted(times, [start for start, *_ in seldom.replies])  # after so many of the fast one
    assert abs(np.diff(at).mean() - every) < 1.5
    assert np.diff(at).max() <= 2 * every
    assert len(set(np.diff(at).tolist())) > every / 2


def test_guests_are_read_together_and_leave_with_the_last_device_of_the_rotas_own_rate(rota):
    host, first, second = Device(rota), Device(rota, every=10), Device(rota, every=10)
    wait_for(lambda: len(second.replies) > 20)
    apart = np.subtract([r[0] for r in first.replies[-10:]], [r[0] for r in second.replies[-10:]])
    assert np.median(abs(apart)) < 0.2 * PERIOD_S * 1e9
    assert rota.has_room("guest", 0.0, every=2)
    host.end()
    for guest in (first, second):
        guest.thread.join(30.0)
        assert guest.turn.ended.is_set()
        assert guest.raised is None
    assert not rota.has_room("guest", 0.0, every=2)


def test_a_device_may_sit_in_faster_rotas_that_it_divides():
    assert sources.periods_of(1.0, {20.0, 1.0}) == [(20.0, 20), (1.0, 1)]
    assert sources.periods_of(20.0, {1000.0, 100.0, 50.0, 20.0, 1.0}) == [(100.0, 5), (20.0, 1)]
    assert sources.periods_of(0.1, {30.0, 0.1}) == [(30.0, 300), (0.1, 1)]
    assert sources.periods_of(1000.0, {1000.0, 20.0}) == [(1000.0, 1)]


def test_devices_that_hang_hold_nobody_up_and_are_left_to_their_threads(rota):
    first, second, third, last = devices = [Device(rota) for _ in range(4)]
    last.goes_on()
    for hanging in (first, third):
        hanging.answers.clear()
        wait_for(hanging.turn.ended.is_set)
        second.goes_on()
        last.goes_on()
        assert hanging.thread.is_alive()  # nobody else touches the device while the reading goes on
    first.answers.set()
    first.thread.join(30.0)
    assert not first.thread.is_alive()
    read = first.read
    last.goes_on()
    assert first.read == read
    for device in devices:
        device.end()


def test_who_takes_long_goes_and_the_others_stay(rota):
    quick, slow = Device(rota), Device(rota, 1.01 * LONGEST_S)
    slow.thread.join(30.0)
    assert slow.read == 1
    quick.goes_on()
    quick.end()


def test_what_ends_a_device_is_raised_to_its_own_thread(rota):
    well, failing = Device(rota), Device(rota)
    failing.goes_on()
    failing.error = SourceError("lost", "gone")
    failing.thread.join(30.0)
    assert failing.raised is failing.error
    well.goes_on()
    well.end()


def test_only_who_is_quick_has_room_and_only_with_company(rota):
    assert not rota.has_room("a", 0.0)
    assert not rota.has_room("slow", 1.01 * LONGEST_S)
    assert not rota.has_room("a", 0.0)
    assert rota.has_room("b", 0.0)
    assert rota.has_room("a", 0.0)
    rota.forget("a")
    assert not rota.has_room("b", 0.0)
    assert not rota.has_room("a", 1.01 * LONGEST_S)


def test_a_source_without_an_answer_fails_alone(tmp_path):
    """Of three that are read together, one stays silent until it is unplugged."""
    receiver, tree = Receiver(), unpack("xeon-2p-server", tmp_path / "server")
    laptop = unpack("thinkpad-x1-i7-8550u", tmp_path / "laptop")
    with Emulator(Truth(Load(base={"EPS1": 10.0}))) as emulator:
        settings = Sources(
            benchlab=Benchlab(ports=(str(emulator.path),), timeout_s=60.0),
            rapl=Rapl(rate_hz=20.0, sysfs=laptop),
            hwmon=Hwmon(rate_hz=20.0, sysfs=tree),
        )
        names = ["benchlab", "rapl", "hwmon"]
        running = sources.start(names, settings, receiver, "s", flush_s=0.05, metrics_s=0.05)
        found = {health.source: health for health in running.health()}
        wait_for(lambda: all(health.readings >= 10 for health in found.values()))
        assert any(thread.name == "benchlab-otel-rota" for thread in threading.enumerate())
        emulator.faults.silent = True
        before = {name: found[name].readings for name in ("rapl", "hwmon")}
        wait_for(lambda: all(found[name].readings >= n + 20 for name, n in before.items()))
        assert found["benchlab"].ok  # not late yet
        emulator.unplug()
        wait_for(lambda: found["benchlab"].failures["lost"])
        emulator.faults.silent = False
        emulator.replug()
        wait_for(lambda: found["benchlab"].ok)
        running.stop()
    assert all(not found[name].failures for name in ("rapl", "hwmon"))
    told = Counter(resource["service.instance.id"].split("/")[1] for resource, span, _ in receiver.spans)
    assert {name: n - 1 for name, n in told.items()} == {
        h.source: h.readings for h in found.values()
    }  # a root
