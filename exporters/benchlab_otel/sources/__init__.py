"""The sources: a registry, and one module for each (see `reading` for what a source is)."""

from __future__ import annotations

import difflib
import logging
import math
import os
import random
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from itertools import count
from threading import Event, Thread
from typing import Any, Protocol, cast

from benchlab_otel.config import Sources
from benchlab_otel.contract import SESSION_ID, SIMULATED, TRANSPORT
from benchlab_otel.model import Resource, Scalar
from benchlab_otel.otlp.encode import resource_of
from benchlab_otel.otlp.sink import Sink
from benchlab_otel.sources.reading import Device, Opening, Reader, SourceError, refused
from benchlab_otel.sources.rota import MOST_HZ, Rota, Seat
from benchlab_otel.sources.runner import Health, Runner
from benchlab_otel.sources.schedule import Schedule
from benchlab_otel.timebase import CLOCK_ATTRIBUTE, anchor

log = logging.getLogger(__name__)

NAMES = ("benchlab", "benchlab_http", "benchlab_mqtt", "rapl", "nvml", "drm", "hwmon", "power_supply", "host")

LOOK_S = 3.0
STOP_S = 8.0  # all devices together: who asks for an end often waits 10 s before it kills
LIVE_FLUSH_S = 0.5  # joules of frames wait for the samples
PACED_PAUSE_S = 0.01  # between requests for what a server has at its own pace
APART_S = 0.001  # between readings of one instant, so that they do not wait for each other
Latency = Callable[[], float | None]
_Place = tuple[str, str]  # source, address


class Source(Protocol):
    """What a source's module has."""

    addresses: Callable[[Any], list[str]]
    open_reader: Callable[[Any, str], Reader]


def load(name: str) -> Source:
    """The module of a source; ValueError names the nearest one where there is none of that name."""
    if name not in NAMES:
        near = difflib.get_close_matches(name, NAMES, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ValueError(f"no source {name!r}; sources: {', '.join(NAMES)}{hint}")
    return cast(Source, import_module(f"{__name__}.{name}"))


class Running:
    """Sources at work; what is plugged in later is found every few seconds and read too.

    `addresses` gives (source, address) of what can be read now, `new_runner` what reads one.
    """

    def __init__(self, addresses: Callable[[], list[_Place]], new_runner: Callable[[_Place], Runner]) -> None:
        self._addresses, self._new_runner = addresses, new_runner
        self._runners: dict[_Place, Runner] = {}
        self._stop = Event()
        self._take_stock()
        self._thread = Thread(target=self._watch, name="benchlab-otel-devices", daemon=True)
        self._thread.start()

    def health(self) -> list[Health]:
        """How each device is doing."""
        return [runner.health for runner in self._runners.copy().values()]

    def stop(self) -> None:
        """Ends reading; all that was read has been handed to the sink when this returns.

        Threads that a driver holds up are left behind after STOP_S, and an error says which.
        """
        self._stop.set()
        deadline = time.monotonic() + STOP_S
        for runner in self._runners.copy().values():
            runner.request_stop()
        self._thread.join(STOP_S)
        if self._thread.is_alive():
            log.error("sources: the search for devices does not end: its thread is left behind")
        for runner in self._runners.copy().values():
            runner.stop(deadline)

    def _watch(self) -> None:
        while not self._stop.wait(LOOK_S):
            self._take_stock()

    def _take_stock(self) -> None:
        """Starts runners for what is new, ends those that have nothing to wait for."""
        listed = self._addresses()
        if self._stop.is_set():
            return
        for place in listed:
            if not any(_same(place, known) for known in self._runners):
                self._runners[place] = self._new_runner(place)
                self._runners[place].start()
        for place in [p for p in self._runners if p not in listed and self._superseded(p)]:
            self._runners.pop(place).stop(time.monotonic() + STOP_S)

    def _superseded(self, place: _Place) -> bool:
        """Whether no device was ever there, or the one that was is read elsewhere by now."""
        device = self._runners[place].health.device
        others = [r.health for known, r in self._runners.items() if known != place]
        return device is None or any(h.ok and h.device and h.device.hw_id == device.hw_id for h in others)


def _same(a: _Place, b: _Place) -> bool:
    """Whether two addresses are one: a port's stable name appears a little later than the port."""
    return a == b or (a[0] == b[0] and os.path.realpath(a[1]) == os.path.realpath(b[1]))


def start(
    names: Sequence[str],
    settings: Sources,
    sink: Sink,
    session_id: str,
    resource_extra: Mapping[str, Scalar] | None = None,
    flush_s: float = 1.0,
    metrics_s: float = 1.0,
    latency: Latency = lambda: None,
) -> Running:
    """Reads the named sources until `stop` is called: quick devices of one rate together, others each alone.

    A device that is not there or not readable is no error: its health says so and it is tried
    again. `latency` is that of the latest frames (s), None without: a device's control may show it, and while
    frames come samples are handed over at least each LIVE_FLUSH_S. Raises ValueError for a name that is no
    source, and for a control that can't be.
    """

    def tell_s() -> float:
        return flush_s if latency() is None else min(flush_s, LIVE_FLUSH_S)

    found = {name: (load(name), getattr(settings, name)) for name in names}
    openings = {name: _openings(source, section, latency) for name, (source, section) in found.items()}
    seed, now = random.getrandbits(64), time.monotonic()
    begins = count(now, APART_S)
    rates = {section.rate_hz for _, section in found.values()}
    rotas = {rate: Rota(Schedule(1.0 / rate, now, seed), tell_s) for rate in rates}

    def new_runner(place: _Place) -> Runner:
        name, address = place
        _, section = found[name]
        opening = openings[name](address)
        seats = [] if opening.alone else periods_of(section.rate_hz, rates)
        return Runner(
            name,
            address,
            opening.open_reader,
            Schedule(1.0 / section.rate_hz, next(begins), seed),
            [Seat(rotas[base], every) for base, every in seats],
            sink,
            partial(_resource, name, session_id, resource_extra or {}),
            tell_s,
            metrics_s,
            opening.finish,
        )

    def addresses() -> list[_Place]:
        return [
            (name, address)
            for name, (source, section) in found.items()
            for address in source.addresses(section)
        ]

    return Running(addresses, new_runner)


def periods_of(rate: float, rates: set[float]) -> list[tuple[float, int]]:
    """Which of `rates` have whole multiples of a rate's periods, and how many in one: the fastest first."""
    bases = [base for base in rates if base == rate or (base <= MOST_HZ and _is_multiple(base, rate))]
    return [(base, round(base / rate)) for base in sorted(bases, reverse=True)]


def _is_multiple(base: float, rate: float) -> bool:
    return base > rate and math.isclose(base / rate, round(base / rate), rel_tol=1e-9)


def _openings(source: Source, section: Any, latency: Latency) -> Callable[[str], Opening]:
    """How each address of a source is opened."""
    controlled = getattr(source, "controlled", None)
    if controlled is None:
        alone = getattr(source, "OVER_NETWORK", False)
        return lambda address: Opening(partial(source.open_reader, section, address), alone=alone)
    return cast(Callable[[str], Opening], controlled(section, latency))


def _resource(source: str, session_id: str, extra: Mapping[str, Scalar], device: Device | None) -> Resource:
    host = socket.gethostname()
    attributes: dict[str, Scalar] = {
        "service.name": "benchlab-otel",
        "service.instance.id": f"{host}/{source}" + (f"/{device.hw_id}" if device else ""),
        "host.name": host,
        SESSION_ID: session_id,
        CLOCK_ATTRIBUTE: anchor().offset_ns,
    }
    if device and device.simulated:
        attributes[SIMULATED] = True
    if device and TRANSPORT in device.attributes:
        attributes[TRANSPORT] = device.attributes[TRANSPORT]
    return resource_of(attributes | dict(extra))


@dataclass(frozen=True, slots=True)
class Finding:
    """What a look at one address found: a device and how fast it can be read, or why not.

    `paced`: the rate is that of a server, which has readings no faster however often one asks.
    """

    source: str
    address: str
    device: Device | None
    rate_hz: float
    error: SourceError | None
    paced: bool = False


def look(name: str, settings: Sources, seconds: float = 0.3) -> list[Finding]:
    """Opens everything that a source can read, and reads it as fast as it answers for a while.

    That takes longer where a server has its own pace: until two readings have come.
    """
    source, section = load(name), getattr(settings, name)
    return [_look(name, source, section, address, seconds) for address in source.addresses(section)]


def _look(name: str, source: Source, section: Any, address: str, seconds: float) -> Finding:
    device = None
    try:
        with closing(source.open_reader(section, address)) as reader:
            device = reader.device
            paced = getattr(reader, "paced", False)
            rate = _pace(reader, seconds) if paced else _fastest(reader, seconds)
            return Finding(name, address, device, rate, None, paced)
    except SourceError as error:
        return Finding(name, address, device, 0.0, error)
    except OSError as error:
        return Finding(name, address, device, 0.0, refused(error))


def _fastest(reader: Reader, seconds: float) -> float:
    """Readings a second where each is asked for as soon as the one before is there."""
    begin, count = time.monotonic(), 0
    while time.monotonic() < begin + seconds:
        count += sum(len(r.start_ns) for r in reader.decode([reader.read()]))
    return count / (time.monotonic() - begin)


def _pace(reader: Reader, seconds: float) -> float:
    """Readings a second that a server has."""
    begin = time.monotonic()
    came: list[int] = []  # Unix ns
    while len(came) < 2 or time.monotonic() < begin + seconds:
        came += [end for batch in reader.decode([reader.read()]) for end in batch.end_ns.tolist()]
        time.sleep(PACED_PAUSE_S)
    return (len(came) - 1) / (came[-1] - came[0]) * 1e9
