"""The Collector's configurations: valid, safe by default, agreeing with each other and the contract."""

from __future__ import annotations

import re
import subprocess
import textwrap
from pathlib import Path
from typing import Any

import pytest
import yaml

from benchlab_otel import contract
from collector_stack import CONFIGS, need_collector

WHOLE = ("agent", "all-in-one", "gateway")
BEHIND = ("forward", "secure-receiver", "secure-sender")
GIVEN = {  # what has no default
    "FORWARD_ENDPOINT": "https://otlp.example",
    "FORWARD_TOKEN": "x",
    "TLS_CA_FILE": "/ca.crt",
    "TLS_CERT_FILE": "/server.crt",
    "TLS_CLIENT_CA_FILE": "/ca.crt",
    "TLS_KEY_FILE": "/server.key",
    "TOKEN_FILE": "/token",
}
VARIABLE = re.compile(r"\$\{env:(\w+)(?::-([^}]*))?\}")


def text(name: str) -> str:
    return (CONFIGS / f"{name}.yaml").read_text()


def load(name: str) -> dict[str, Any]:
    return yaml.safe_load(text(name))


@pytest.mark.parametrize(
    "names",
    [
        *((name,) for name in WHOLE),
        *((name, "forward") for name in WHOLE),
        ("all-in-one", "secure-receiver", "forward"),
        ("gateway", "secure-receiver", "forward"),
        ("agent", "secure-sender", "forward"),
    ],
    ids="+".join,
)
def test_the_collector_takes_them(names: tuple[str, ...]) -> None:
    command = [need_collector(), "validate"]
    for name in names:
        command += ["--config", CONFIGS / f"{name}.yaml"]
    done = subprocess.run(command, env=GIVEN, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_forwarding_to_nowhere_is_refused() -> None:
    """Without its variable the file must not quietly do nothing."""
    command = [need_collector(), "validate", "--config", CONFIGS / "all-in-one.yaml"]
    done = subprocess.run(
        [*command, "--config", CONFIGS / "forward.yaml"], env={}, capture_output=True, text=True, timeout=60
    )
    assert done.returncode != 0
    assert "otlp_http/forward" in done.stderr


@pytest.mark.parametrize("name", [*WHOLE, *BEHIND])
def test_variables_are_told_at_the_top_with_their_defaults(name: str) -> None:
    head, _, body = text(name).partition("\n\n")
    told = {m[1]: m[2] for m in re.finditer(r"^# ([A-Z][A-Z_]+) +(\S+)", head, re.M)}
    used = {m[1]: m[2] for m in VARIABLE.finditer(body)}
    assert told.keys() == used.keys()
    for variable, default in used.items():
        assert default == (None if variable in GIVEN else told[variable])


@pytest.mark.parametrize("name", [*WHOLE, *BEHIND])
def test_everything_listens_on_localhost_unless_told_otherwise(name: str) -> None:
    """Every address is a variable; its default is of this machine."""
    for line in text(name).splitlines():
        if match := re.match(r"\s+(?:endpoint|host): (.+)", line):
            variable = VARIABLE.fullmatch(match[1])
            assert variable, line
            assert variable[1] in GIVEN or variable[2].startswith("127.0.0.1"), line


@pytest.mark.parametrize("name", WHOLE)
def test_what_comes_in_meets_the_memory_limiter_first(name: str) -> None:
    config = load(name)
    for pipeline in config["service"]["pipelines"].values():
        if any(receiver.startswith("otlp") for receiver in pipeline["receivers"]):
            assert pipeline["processors"][0] == "memory_limiter"


@pytest.mark.parametrize("name", [*WHOLE, "forward"])
def test_what_goes_out_waits_on_disk_and_is_retried_for_ever(name: str) -> None:
    exporters = {k: v for k, v in load(name)["exporters"].items() if k.startswith("otlp")}
    assert exporters
    for exporter in exporters.values():
        assert exporter["sending_queue"]["storage"] == "file_storage"
        assert exporter["sending_queue"]["batch"]
        assert exporter["retry_on_failure"]["max_elapsed_time"] == 0


def test_what_has_the_same_name_is_the_same() -> None:
    """The files share components; a change in one must be made in all."""
    for kind in ("receivers", "processors", "exporters", "connectors", "extensions"):
        known: dict[str, Any] = {}
        for name in WHOLE:
            for component, config in load(name).get(kind, {}).items():
                assert known.setdefault(component, config) == config, f"{component} of {name}.yaml"


def test_nothing_goes_in_circles() -> None:
    """What the aligner gives back must not reach it again."""
    for name in ("agent", "all-in-one"):
        for pipeline in load(name)["service"]["pipelines"].values():
            if "otlp_grpc/aligner" in pipeline["exporters"]:
                assert pipeline["receivers"] == ["otlp"]


def test_the_builder_has_what_is_used_and_no_more() -> None:
    modules = {
        "batch": "batchprocessor", "bearertokenauth": "bearertokenauthextension", "file": "fileexporter",
        "file_storage": "filestorage", "filter": "filterprocessor", "forward": "forwardconnector",
        "health_check": "healthcheckextension", "memory_limiter": "memorylimiterprocessor",
        "otlp": "otlpreceiver", "otlp_grpc": "otlpexporter", "otlp_http": "otlphttpexporter",
        "prometheus": "prometheusexporter", "span_metrics": "spanmetricsconnector",
        "transform": "transformprocessor",
    }  # fmt: skip
    kinds = ("receivers", "processors", "exporters", "connectors", "extensions")
    used = {
        modules[component.partition("/")[0]]
        for name in (*WHOLE, *BEHIND)
        for kind in kinds
        for component in load(name).get(kind, {})
    }
    built = {entry["gomod"].split()[0].rsplit("/", 1)[1] for kind in kinds for entry in load("builder")[kind]}
    assert used == built


LABELS = re.compile(r"(keep_keys\(datapoint\.attributes, \[\n)(.*?)(\n +\]\))", re.S)


@pytest.mark.parametrize("name", ["all-in-one", "gateway"])
def test_labels_are_those_of_the_contract(name: str, request: pytest.FixtureRequest) -> None:
    """--update-golden writes the list anew."""
    labels = sorted({label for metric in contract.ALL for label in metric.labels})
    listed = textwrap.fill(
        ", ".join(f'"{label}"' for label in labels), 108, initial_indent=" " * 14, subsequent_indent=" " * 14
    )
    found = LABELS.search(text(name))
    assert found
    if request.config.getoption("--update-golden"):
        path: Path = CONFIGS / f"{name}.yaml"
        path.write_text(LABELS.sub(lambda m: m[1] + listed + m[3], text(name)))
    assert LABELS.search(text(name))[2] == listed, "contract.py has other labels; pytest --update-golden"
