"""`demo`: the whole of it in 20 s, with an emulated meter whose truth is known."""

from __future__ import annotations

import time
import urllib.request
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import psutil
import typer

from benchlab_otel import Probe
from benchlab_otel.archive.records import Fault
from benchlab_otel.archive.session import open_session
from benchlab_otel.cli import options
from benchlab_otel.cli.embedded import Embedded
from benchlab_otel.cli.errors import Failure
from benchlab_otel.cli.options import host_port, set_up_logging
from benchlab_otel.cli.progress import progress
from benchlab_otel.cli.terminal import console
from benchlab_otel.config import Settings
from benchlab_otel.export import capframex, capframex_csv
from benchlab_otel.export.capframex_columns import Options
from benchlab_otel.export.recording import Recording, load, of_run
from benchlab_otel.export.report import KnownTruth, make_report
from benchlab_otel.export.report_text import render
from benchlab_otel.model import Frames, Run
from benchlab_otel.probe.gstreamer import attach, load_gst
from benchlab_otel.simulate.device import Emulator, Meter
from benchlab_otel.simulate.truth import Load, Truth
from benchlab_otel.simulate.workload import STAGES, run_gstreamer, run_numpy, telling

FPS = 60
PIPELINE = "demo"
LOAD = Load(
    base={"EPS1": 35.0, "ATX12V": 40.0, "PCIE1": 20.0},
    stages={"decode": {"EPS1": 60.0}, "process": {"PCIE1": 180.0, "EPS1": 40.0}, "encode": {"EPS1": 110.0}},
)
METER = Meter(lag=0.004, width=0.05, noise=0.2, delay=0.0005, jitter=0.0005)
PAGES = {
    "metrics.txt": "text/plain",
    "metrics.openmetrics.txt": "application/openmetrics-text; version=1.0.0",
}


def command(
    seconds: Annotated[
        float, typer.Option("--for", metavar="SECONDS", min=1, help="How long the workload runs.")
    ] = 20.0,
    stay: Annotated[bool, typer.Option("--stay", help="Keep /metrics up afterwards, until ctrl-C.")] = False,
    config: options.ConfigFile = None,
) -> None:
    """Run a real pipeline beside an emulated power meter, and show its joules beside the truth.

    \b
    Examples:
      benchlab-otel demo
      benchlab-otel demo --for 60 --stay
    """
    set_up_logging()
    truth = Truth(LOAD)
    with Emulator(truth, meter=METER) as emulator:
        settings = _settings(options.settings(config), str(emulator.path))
        with Embedded(settings, ["demo"], ["benchlab", "host"]) as running:
            print(f"Emulated BENCHLAB on {emulator.path}, read at {settings.sources.benchlab.rate_hz:g} Hz")
            print(f"Metrics while it runs: {running.metrics_url}")
            _work(running, truth, seconds)
            time.sleep(0.5)  # the meter's readings of the last frames
            pages = {name: _scrape(running.metrics_url, accept) for name, accept in PAGES.items()}
            if stay:
                _wait(running.metrics_url)
    folder = running.archive.path
    recording = _recording(folder)
    reports = []
    for i, run in enumerate(recording.runs):
        true = {readings.domain: _known(truth, run.frames, readings.domain) for readings in run.readings}
        reports.append(make_report(run, of_run(recording, i), truth=true))
    console().print("", render(reports), sep="\n")
    _write_captures(folder / "captures", recording.runs, pages)
    _say_what_next(folder)


def _settings(settings: Settings, port: str) -> Settings:
    """The user's settings with the emulator as the only device, and free ports where the usual are taken."""
    meter = replace(settings.sources.benchlab, ports=(port,), rate_hz=20.0, lag_ms=None, window_ms=None)
    hub = replace(
        settings.hub,
        grpc="127.0.0.1:0",
        http="127.0.0.1:0",
        metrics=_free(settings.hub.metrics),
    )
    return replace(settings, hub=hub, sources=replace(settings.sources, benchlab=meter))


def _free(address: str) -> str:
    host, port = host_port(address)
    taken = {
        c.laddr.port for c in psutil.net_connections("tcp") if c.status == psutil.CONN_LISTEN and c.laddr
    }
    return f"{host}:0" if port in taken else address


def _work(running: Embedded, truth: Truth, seconds: float) -> None:
    frames = round(seconds * FPS)
    probe = Probe(PIPELINE, sink=running.hub)
    told = telling(truth.activity)
    try:
        gst: Any = load_gst()
    except ImportError as error:
        gst = None
        print(f"No GStreamer here, so decode, process and encode are zlib and NumPy. ({error})")
    else:
        print("GStreamer pipeline: jpegdec (decode) ! videomedian (process) ! vp8enc (encode)")
    try:
        with progress(f"{frames} frames at {FPS} a second", frames) as advance:
            if gst is None:
                run_numpy(probe.frame, told, frames, FPS, advance)
            else:
                follow = partial(attach, probe=probe, elements=STAGES, told=told)
                run_gstreamer(gst, follow, frames, FPS, advance)
    except RuntimeError as error:
        raise Failure(str(error)) from None
    finally:
        probe.close()


def _scrape(url: str, accept: str) -> bytes:
    request = urllib.request.Request(url, headers={"Accept": accept})  # noqa: S310 - our own page
    with urllib.request.urlopen(request, timeout=10) as page:  # noqa: S310
        body: bytes = page.read()
    return body


def _wait(url: str) -> None:
    print(f"{url} stays up; end with ctrl-C.", flush=True)
    try:
        while True:
            time.sleep(1)
    except KeyboardInterrupt:
        print()


def _recording(folder: Path) -> Recording:
    faults: list[Fault] = []
    recording = load(open_session(str(folder), folder.parent), faults)
    if faults or not recording.runs:
        raise Failure(f"{folder}: the recording is not whole: {'; '.join(map(str, faults)) or 'no frames'}")
    return recording


def _known(truth: Truth, frames: Frames, domain: str) -> KnownTruth:
    """What the emulated machine really drew in a domain, and took for these frames."""
    first, last = int(frames.begin.min()), int(frames.end.max())
    active = (np.array(truth.activity.active_ns(last)) - truth.activity.active_ns(first)) / 1e9
    watts = {stage: truth.stage_watts(stage, domain) for stage in truth.activity.stages}
    a_frame = dict(zip(watts, active / len(frames), strict=True))
    joules = {stage: watts[stage] * float(a_frame[stage]) for stage in watts}
    return KnownTruth(truth.energy(domain, frames.begin, frames.end), watts, joules)


def _write_captures(folder: Path, runs: list[Run], pages: dict[str, bytes]) -> None:
    folder.mkdir(exist_ok=True)
    chosen = Options(pairs=("decode.begin:encode",))
    capframex.write_json(folder / "demo.json", runs, chosen)
    capframex_csv.write_csv(folder / "demo.csv", runs, chosen)
    for name, page in pages.items():
        (folder / name).write_bytes(page)


def _say_what_next(folder: Path) -> None:
    print(
        f"""
Session    {folder}
Captures   {folder / "captures"}: demo.json and demo.csv for CapFrameX,
           metrics.txt and metrics.openmetrics.txt: what Prometheus scrapes from /metrics
Next       benchlab-otel report {folder.name} --json
           benchlab-otel convert {folder.name} --to capframex-json --out my.json
           benchlab-otel record -- gst-launch-1.0 videotestsrc num-buffers=300 ! jpegenc ! fakesink
           benchlab-otel doctor"""
    )
