"""Reads GPUs as its caller asks, one JSON line a request: the loader looks for NVML once in a process.

With the stub in LD_LIBRARY_PATH, NVIDIA's own bindings load it as they do the driver's library.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import pynvml

from benchlab_otel import sources
from benchlab_otel.config import Nvml, Sources
from benchlab_otel.sources import nvml, nvml_library, nvml_state
from benchlab_otel.sources.reading import SourceError
from conftest import wait_for
from receiving import Receiver


def read(readings: int, pause_s: float = 0.0, at_once: bool = True) -> list[dict]:
    """So many readings of each GPU."""
    return [_read(address, readings, pause_s, at_once) for address in nvml.addresses(Nvml())]


def _read(address: str, readings: int, pause_s: float, at_once: bool) -> dict:
    told: dict = {"address": address, "samples": [], "times": [], "values": [], "error": None}
    waiting = []
    try:
        with closing(nvml.open_reader(Nvml(), address)) as reader:
            told["device"] = asdict(reader.device)
            for number in range(readings):
                waiting.append(reader.read())
                if not at_once or number == readings - 1:
                    for batch in reader.decode(waiting):
                        note(told, batch)
                    waiting = []
                time.sleep(pause_s)
    except SourceError as error:
        told["error"] = {name: getattr(error, name) for name in ("reason", "fix", "risk")}
        told["error"]["message"] = str(error)
    return told


def rounds(times: list[float]) -> list[list]:
    """What the first GPU tells besides energy and power at each of these times (s)."""
    pynvml.nvmlInit()
    try:
        values = nvml_state.Values(nvml_state.Gpu(pynvml.nvmlDeviceGetHandleByIndex(0), "gpu-aa", "gpu"))
        told = [values.read(time_s) for time_s in times]
    finally:
        pynvml.nvmlShutdown()
    return [
        [[f.metric.name, f.labels, v] for f, v in zip(fields, numbers, strict=True)]
        for fields, numbers in told
    ]


def list_(opened: str) -> list[list[str]]:
    """What is listed before a GPU is opened, while it is, and after."""
    before = nvml.addresses(Nvml())
    with closing(nvml.open_reader(Nvml(), opened)):
        during = nvml.addresses(Nvml())
    return [before, during, nvml.addresses(Nvml())]


def come(script: str, ready: list[str]) -> None:
    """The driver has these GPUs ready now, and NVML tells the script when it is initialized anew."""
    Path(os.environ["NVML_STUB"]).write_text(script)
    nvml_library.READY.mkdir(exist_ok=True)
    for gone in nvml_library.READY.iterdir():
        gone.rmdir()
    for address in ready:
        (nvml_library.READY / address).mkdir()


def plug(steps: list[list]) -> list[list]:
    """For each (script, GPUs of the driver): why the first GPU can't be read on, if so, and what is listed.

    It was opened at the first step, and is opened again when it can't be read on.
    """
    told = []
    come(*steps[0])
    nvml.addresses(Nvml())
    reader = nvml.open_reader(Nvml(), "0")
    for step in steps:
        come(*step)
        nvml.addresses(Nvml())
        reason = failing(reader.read)
        if reason:
            reader.close()
            reader = nvml.open_reader(Nvml(), "0")
        told.append([reason, nvml.addresses(Nvml())])
    reader.close()
    return told


def plug_third(two: str, three: str, let_go: list[int]) -> list:
    """Two GPUs are read when a third comes; these readers let go of NVML, the others hang in a call.

    Why they can't be read on; why the first can't be opened again before they let go, and after they did;
    and all GPUs that are listed then.
    """
    come(two, ["0000:01:00.0", "0000:02:00.0"])
    readers = [nvml.open_reader(Nvml(), address) for address in nvml.addresses(Nvml())]
    come(three, ["0000:01:00.0", "0000:02:00.0", "0000:03:00.0"])
    nvml.addresses(Nvml())
    told: list = [[failing(reader.read) for reader in readers], failing(open_first)]
    for number in let_go:
        readers[number].close()
    told.append(failing(open_first))
    wait_for(lambda: not failing(open_first))
    told.append(nvml.addresses(Nvml()))
    for number in {0, 1} - {*let_go}:
        readers[number].close()
    return told


def open_first() -> None:
    """Opens the first GPU and closes it."""
    nvml.open_reader(Nvml(), "0").close()


def failing(call: Callable[[], object]) -> str | None:
    """The reason of the error that a call ends with, if any."""
    try:
        call()
    except SourceError as error:
        return error.reason
    return None


def note(told: dict, batch) -> None:
    """What goes on spans, of all readings, and the metrics of the last one."""
    keyed = [(i, f.key) for i, f in enumerate(batch.fields) if f.key]
    told["samples"] += [{key: row[i] for i, key in keyed} for row in batch.values.tolist()]
    told["times"] += batch.start_ns.tolist()
    values = batch.values[-1].tolist()
    told["values"] = [
        [f.metric.name, dict(f.labels), v] for f, v in zip(batch.fields, values, strict=True) if v == v
    ]


def run(until: list, rate_hz: float = 100.0, then: list | None = None) -> dict:
    """The source at work until each (metric, labels) was told, and ten readings more of those well.

    `then` is what comes (script, GPUs of the driver) when something is read.
    """
    receiver = Receiver()
    settings = Sources(nvml=Nvml(rate_hz=rate_hz))
    running = sources.start(["nvml"], settings, receiver, "s", flush_s=0.02, metrics_s=0.01)
    try:
        if then:
            wait_for(lambda: any(h.ok for h in running.health()))
            come(*then)
        wait_for(lambda: all(receiver.values(metric, labels) for metric, labels in until))
        goals = [(h, h.readings + 10) for h in running.health() if h.ok]
        wait_for(lambda: all(h.readings >= goal for h, goal in goals))
    finally:
        running.stop()
    return {
        "outline": receiver.outline(),
        "simulated": [resource.get("benchlab.simulated") for resource, *_ in receiver.spans],
        "values": {json.dumps([m, labels]): receiver.values(m, labels) for m, labels in until},
        "health": [
            {"ok": h.ok, "message": h.message, "readings": h.readings, "failures": dict(h.failures)}
            for h in running.health()
        ],
    }


DO = {f.__name__: f for f in (read, run, rounds, list_, plug, plug_third)}


def main() -> None:
    """Answers requests until there are no more: {"path": of the script, "do": name, arguments}."""
    for line in sys.stdin:
        request = json.loads(line)
        os.environ["NVML_STUB"] = request.pop("path")
        nvml_library.READY = Path(os.environ["NVML_STUB"]).with_name("gpus")
        answer = DO[request.pop("do")](**request)
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
