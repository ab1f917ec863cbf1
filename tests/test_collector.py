"""The stack and the embedded mode show the same names, labels and values."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from benchlab_otel import Probe, sources
from benchlab_otel.cli.demo import LOAD, METER
from benchlab_otel.cli.embedded import Embedded
from benchlab_otel.config import Settings
from benchlab_otel.hub.metrics import metrics_page
from benchlab_otel.otlp.client import OtlpClient
from benchlab_otel.otlp.sink import Sink
from benchlab_otel.simulate.device import Emulator
from benchlab_otel.simulate.truth import Truth
from benchlab_otel.simulate.workload import run_numpy, telling
from collector_stack import stack
from conftest import wait_for


class Tee:
    """A sink that hands the same bytes to several."""

    def __init__(self, *sinks: Sink) -> None:
        self._sinks = sinks

    def traces(self, body: bytes) -> None:
        for sink in self._sinks:
            sink.traces(body)

    def metrics(self, body: bytes) -> None:
        for sink in self._sinks:
            sink.metrics(body)


# Told by each for itself (what arrived where, and when), or only where something went wrong.
ITS_OWN = ("hub_", "archive_", "align_behind_", "clock_")
NOW_AND_THEN = ("exporter_collect_failures_total",)


def test_names_labels_and_values_are_those_of_embedded(tmp_path: Path, golden: Any) -> None:
    """The same meter and pipeline, byte for byte, into both ways to run."""
    truth = Truth(LOAD)
    frames = 240
    meters: Series = {}
    with ExitStack() as closing:
        collector, aligner = closing.enter_context(stack(tmp_path))
        emulator = closing.enter_context(Emulator(truth, meter=METER, seed=3))
        settings = _settings(tmp_path, emulator)
        embedded = Embedded(settings, ["test"], [])
        closing.callback(embedded.close)
        client = OtlpClient(collector.http)
        tee = Tee(embedded.hub, client)
        meter = sources.start(["benchlab"], settings.sources, tee, "session-1")

        def both(instance: str) -> tuple[Series, Series]:
            embedded.refresh()
            one = _series(_parse(metrics_page(embedded.store, "")[0].decode()))
            return _of(one, instance), _of(_series(collector.metrics()), instance)

        def meters_agree() -> bool:
            """Keeps what was compared: a late answer takes a meter's series away for a moment."""
            nonlocal meters
            meters, other = both("/benchlab/")
            return len(meters) > 50 and meters == other

        probe = Probe("cam0", sink=tee)
        run_numpy(probe.frame, telling(truth.activity), frames, 60, lambda _: None)
        probe.close()
        wait_for(meters_agree)  # names, labels and values
        meter.stop()
        client.close()
        assert not client.lost
        wait_for(lambda: collector.own("otelcol_exporter_queue_size", exporter="otlp_grpc/aligner") == 0)
        aligner.end()  # tells what it still had
        embedded.close()
        one, other = both("/aligner")
    ours, theirs = ({key for key in side if not key[0].startswith(ITS_OWN)} for side in (one, other))
    assert ours == theirs
    assert {key[0] for key in one} == {key[0] for key in other}
    assert {one[key] for key in ours if key[0] == "pipeline_frames_total"} == {frames, 0}
    for key in ours:
        assert one[key] == pytest.approx(other[key], rel=1e-6, abs=1e-9), key
    golden("series.txt", _outline(meters | one))


def _settings(folder: Path, emulator: Emulator) -> Settings:
    settings = Settings()
    meter = replace(settings.sources.benchlab, ports=(str(emulator.path),))
    hub = replace(settings.hub, grpc="127.0.0.1:0", http="127.0.0.1:0", metrics="127.0.0.1:0")
    return replace(
        settings,
        hub=hub,
        session=replace(settings.session, data_dir=folder / "data"),
        sources=replace(settings.sources, benchlab=meter),
    )


Key = tuple[str, frozenset[tuple[str, str]]]
Series = dict[Key, float]


def _parse(text: str) -> list[Sample]:
    return [s for family in text_string_to_metric_families(text) for s in family.samples]


def _series(samples: list[Sample]) -> Series:
    found = {
        (s.name, frozenset((k, _bound(v) if k == "le" else v) for k, v in s.labels.items())): s.value
        for s in samples
        if s.name not in NOW_AND_THEN
    }
    assert len(found) == len([s for s in samples if s.name not in NOW_AND_THEN]), "a series shown twice"
    return found


def _bound(text: str) -> str:
    return f"{float(text):g}"  # 1 and 1.0


def _of(series: Series, instance: str) -> Series:
    """The series of the instances that have this in their name."""
    return {key: value for key, value in series.items() if instance in dict(key[1])["instance"]}


def _outline(series: Series) -> str:
    """Each name with its labels, as a golden file holds them."""
    lines = {f"{name}{{{','.join(sorted(k for k, _ in labels))}}}" for name, labels in series}
    return "".join(f"{line}\n" for line in sorted(lines))
