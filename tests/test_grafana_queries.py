"""Every query of every panel, asked of a real Prometheus that was fed by a run: it gives data."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Iterator
from functools import partial

import pytest
import yaml

from conftest import wait_for
from dashboards import GRAFANA, Json, dashboards, targets
from fed_prometheus import fed_prometheus
from prometheus_server import Prometheus

VALUES = {
    "job": ".+", "instance": ".+", "host": ".*", "device": ".*", "pipeline": ".*", "stage": ".*",
    "domain": "system", "from_mark": "decode.begin", "to_mark": "encode", "__rate_interval": "8s",
    "__tags": 'host_name=~".+"',
}  # fmt: skip
MAY_BE_EMPTY = {  # part of a query: why it may give nothing here
    "otelcol_": "no Collector runs here",
    "pipeline_probe_lost_total": "no probe loses anything here",
    "hub_live_skipped_total": "the aligner keeps up here",
    "archive_lost_total": "the disk takes everything here",
    "system_paging_usage_bytes": "not every machine has swap",
    "system_pressure_time_seconds_total": "not every kernel tells it",
    "system_cpu_frequency_hertz": "virtual machines tell no clocks",
    'ALERTS{alertstate="firing"}': "alerts may or may not fire",
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    with fed_prometheus(tmp_path_factory.mktemp("fed")) as found:
        yield found


def filled_in(text: str) -> str:
    return re.sub(r"\$(\w+)", lambda found: VALUES.get(found[1], found[0]), text.replace("$$", "$"))


def gives(server: Prometheus, expression: str) -> bool:
    """Whether a query gives any number within the last half minute."""
    now = time.time()
    found = server.get("query_range", query=filled_in(expression), start=now - 30, end=now, step=2)
    return any(math.isfinite(float(value)) for one in found["result"] for _, value in one["values"])


def until_all_give(server: Prometheus, wanted: dict[str, str], seconds: float) -> dict[str, str]:
    """What of `wanted` (query: where it is) still gives nothing after so long."""
    deadline = time.monotonic() + seconds
    while wanted and time.monotonic() < deadline:
        wanted = {query: where for query, where in wanted.items() if not gives(server, query)}
        time.sleep(1)  # Prometheus scrapes no more often
    return wanted


def test_every_query_gives_data(server: Prometheus) -> None:
    wanted = {
        target["expr"]: f"{dashboard['title']}: {panel['title']}"
        for dashboard, panel, target in targets()
        if "expr" in target and not any(part in target["expr"] for part in MAY_BE_EMPTY)
    }
    assert len(wanted) > 100
    assert until_all_give(server, wanted, 80) == {}


def test_queries_that_may_be_empty_are_understood_and_still_asked(server: Prometheus) -> None:
    asked = [target["expr"] for _, _, target in targets() if "expr" in target]
    for part in MAY_BE_EMPTY:
        found = [expression for expression in asked if part in expression]
        assert found, f"nothing asks for {part} any more"
        for expression in found:
            gives(server, expression)  # Prometheus refuses what it doesn't understand


def test_from_a_span_to_the_metrics_of_its_host(server: Prometheus) -> None:
    (file,) = (GRAFANA / "provisioning" / "datasources").glob("*.yml")
    sources = yaml.safe_load(file.read_text())["datasources"]
    (queries,) = [s["jsonData"]["tracesToMetrics"]["queries"] for s in sources if s["type"] == "tempo"]
    assert until_all_give(server, {query["query"]: query["name"] for query in queries}, 60) == {}


def values_of(server: Prometheus, variable: Json) -> list[str]:
    """What Grafana offers for a variable."""
    match = re.fullmatch(r"label_values\((.*), (\w+)\)", variable["query"])
    assert match, variable["query"]
    found: list[str] = server.get(f"label/{match[2]}/values", **{"match[]": filled_in(match[1])})
    return found


def test_every_variable_has_values(server: Prometheus) -> None:
    for dashboard in dashboards().values():
        for variable in dashboard["templating"]["list"]:
            if variable["type"] == "query":
                wait_for(partial(values_of, server, variable), 60)


def test_histograms_have_exemplars_of_frames(server: Prometheus) -> None:
    def exemplars(expression: str) -> list[Json]:
        now = time.time()
        found: list[Json] = server.get(
            "query_exemplars", query=filled_in(expression), start=now - 300, end=now
        )
        return found

    shown = [target["expr"] for _, _, target in targets() if target.get("exemplar")]
    assert shown
    for expression in shown:
        wait_for(partial(exemplars, expression), 60)
        found = exemplars(expression)
        assert all(
            re.fullmatch("[0-9a-f]{32}", e["labels"]["trace_id"]) for one in found for e in one["exemplars"]
        )
