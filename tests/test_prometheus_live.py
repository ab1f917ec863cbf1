"""The rules in a real Prometheus that scrapes a real run: an emulated BENCHLAB 2 beside a pipeline."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import yaml

from benchlab_otel import Probe
from benchlab_otel.cli.embedded import Embedded
from benchlab_otel.config import Align, Benchlab, Hub, Session, Settings, Sources
from benchlab_otel.simulate.device import Emulator
from benchlab_otel.simulate.truth import Load, Truth
from conftest import wait_for
from prometheus_server import CONFIGURATION, Prometheus, prometheus

WATTS = {"EPS1": 60.0, "ATX12V": 20.0, "HPWR1": 240.0}
FREE = "127.0.0.1:0"
NOT_HERE = {  # records that have no value here, and why
    "val_package_power_watts": "RAPL is not read here",
    "val_pl1_limit_watts": "RAPL is not read here",
    "hw_temp_package_celsius": "sensor chips are not read here",
    "component:power_limit_watts": "nothing here has a limit",
    "component:power_of_limit:ratio": "nothing here has a limit",
    "stage:power_watts:mean1m": "energy by stage takes the model more than a minute of readings",
}


@contextmanager
def running(folder: Path) -> Iterator[Embedded]:
    truth = Truth(Load(WATTS))
    with Emulator(truth, "benchlab2") as emulator:
        meter = Benchlab(ports=(str(emulator.path),))
        settings = Settings(
            session=Session(folder),
            hub=Hub(FREE, FREE, FREE),
            align=Align(pairs=("ingress:shown",)),
            sources=Sources(benchlab=meter),
        )
        with Embedded(settings, ["test"], ["benchlab", "host"]) as embedded:
            yield embedded


def frames_until(stopped: threading.Event, embedded: Embedded) -> None:
    with closing(Probe("cam", sink=embedded.hub)) as probe:
        while not stopped.wait(0.02):
            with probe.frame() as frame:
                frame.mark("ingress")
                time.sleep(0.005)
                frame.mark("shown")


def records() -> set[str]:
    files = CONFIGURATION.parent.glob("rules/*.yml")
    groups = [group for file in files for group in yaml.safe_load(file.read_text())["groups"]]
    return {rule["record"] for group in groups for rule in group["rules"] if "record" in rule}


def test_every_record_has_a_value_and_no_rule_fails(tmp_path: Path) -> None:
    stopped = threading.Event()
    with running(tmp_path / "sessions") as embedded:
        work = threading.Thread(target=frames_until, args=(stopped, embedded))
        work.start()
        try:
            target = embedded.metrics_url.removeprefix("http://").removesuffix("/metrics")
            with prometheus(tmp_path, {"benchlab-otel": target}) as server:
                wait_for(lambda: missing(server) <= NOT_HERE.keys(), 90)
                check(server)
        finally:
            stopped.set()
            work.join()


def missing(server: Prometheus) -> set[str]:
    """Records without a value; asks no more often than the rules are evaluated."""
    time.sleep(0.5)
    there = {labels["__name__"] for labels, _ in server.series('count by (__name__) ({__name__!=""})')}
    return records() - there


def check(server: Prometheus) -> None:
    power = {labels.get("rail"): watts for labels, watts in server.series("benchlab_power_w")}
    assert power == {str(n): 0.0 for n in range(11)} | {"0": 60.0, "5": 20.0, "9": 240.0, None: 320.0}
    assert [watts for _, watts in server.series("benchlab_total_power_w")] == [320.0]
    [(pair, milliseconds)] = server.series("benchlab_pipeline_latency_ms")
    assert pair["pair"] == "('ingress', 'shown')"
    assert 5.0 <= milliseconds < 1000.0
    [(_, names)] = server.series('count({__name__=~"benchlab_.+", hw_id!=""})')
    assert 50 <= names <= 70  # about 60, says docs/deploy.md
    assert server.series("sum(rail:power_share:ratio)")[0][1] == 1.0
    groups = server.get("rules")["groups"]
    assert not [rule for group in groups for rule in group["rules"] if rule["health"] == "err"]
    assert server.series("up")[0][1] == 1.0
    firing = {labels["alertname"] for labels, _ in server.series('ALERTS{alertstate="firing"}')}
    assert not firing
