"""A real Prometheus for a test: the project's own configuration, with other targets and shorter intervals."""

from __future__ import annotations

import json
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from conftest import free_ports, need, wait_for

CONFIGURATION = Path(__file__).parent.parent / "prometheus" / "prometheus.yml"


@dataclass(frozen=True)
class Prometheus:
    """A running server."""

    port: int

    def get(self, what: str, **parameters: str | float) -> Any:
        """What the HTTP API answers at /api/v1/WHAT."""
        url = f"http://127.0.0.1:{self.port}/api/v1/{what}?{urllib.parse.urlencode(parameters)}"
        with urllib.request.urlopen(url, timeout=30) as answer:
            return json.load(answer)["data"]

    def series(self, query: str) -> list[tuple[dict[str, str], float]]:
        """(labels, value) of each series that a query gives now."""
        return [
            (found["metric"], float(found["value"][1])) for found in self.get("query", query=query)["result"]
        ]

    def answers(self) -> bool:
        """Whether it is up."""
        try:
            return bool(self.get("status/runtimeinfo"))
        except OSError:
            return False


@contextmanager
def prometheus(folder: Path, targets: dict[str, str], interval: str = "1s") -> Iterator[Prometheus]:
    """Prometheus with the jobs of prometheus.yml that `targets` gives a HOST:PORT, and all its rules."""
    configuration = yaml.safe_load(CONFIGURATION.read_text())
    jobs = {job["job_name"]: job for job in configuration["scrape_configs"]}
    for name, target in targets.items():
        jobs[name]["static_configs"] = [{"targets": [target]}]
    configuration["scrape_configs"] = [jobs[name] for name in targets]
    configuration["global"] = {"scrape_interval": interval, "evaluation_interval": interval}
    configuration["rule_files"] = [str(CONFIGURATION.parent / name) for name in configuration["rule_files"]]
    file = folder / "prometheus.yml"
    file.write_text(yaml.safe_dump(configuration))
    (port,) = free_ports(1)
    command = [
        *(need("prometheus"), f"--config.file={file}", f"--storage.tsdb.path={folder / 'data'}"),
        *(f"--web.listen-address=127.0.0.1:{port}", "--enable-feature=exemplar-storage"),
    ]
    with (folder / "prometheus.log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        server = Prometheus(port)
        wait_for(server.answers)
        yield server
    finally:
        process.terminate()
        process.wait(30)
