"""The dashboards: as their code makes them, valid for Grafana, complete, legible, and only of known names."""

from __future__ import annotations

import json
import re
import types
from enum import Enum
from itertools import combinations
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints
from urllib.parse import parse_qs, urlsplit

import promql_parser
import pytest
import yaml
from grafana_foundation_sdk.models import dashboard as models

from benchlab_dashboards import colours
from benchlab_dashboards.__main__ import BOARDS, documents
from benchlab_dashboards.board import Board, build
from dashboards import GRAFANA, Json, dashboards, panels, targets
from promql import FOREIGN, contract_labels, grouping_labels, selectors, written_labels

BUILT_IN = {"row", "timeseries", "stat", "heatmap", "bargauge", "state-timeline", "table"}
OTELCOL = re.compile(r"otelcol_(exporter|receiver|process)_\w+")
OURS = {value for name, value in vars(colours).items() if name.isupper() and isinstance(value, str)}


def test_the_files_are_what_the_code_makes() -> None:
    assert {file.name: file.read_text() for file in (GRAFANA / "dashboards").glob("*.json")} == documents(), (
        "run `make dashboards`"
    )


# -- Grafana's schema, as its SDK's types (generated from the schema) have it ---------------------


def unfit(value: Any, hint: Any, path: str) -> list[str]:
    """Where a value is not of its annotated type."""
    origin, inner = get_origin(hint), get_args(hint)
    if hint in (Any, object):
        return fields_unfit(value, path)
    if origin in (Union, types.UnionType):
        found = [unfit(value, one, path) for one in inner]
        inside = [one for one in found if not any(complaint.startswith(f"{path}:") for complaint in one)]
        return next((one for one in found if not one), (inside or found)[0])
    if origin is list and isinstance(value, list):
        return [p for i, one in enumerate(value) for p in unfit(one, inner[0], f"{path}[{i}]")]
    if origin is dict and isinstance(value, dict):
        return [p for key, one in value.items() for p in unfit(one, inner[1], f"{path}.{key}")]
    if origin is Literal:
        return [] if value in inner else [f"{path}: {value!r} is none of {inner}"]
    kind = origin or hint
    if isinstance(kind, type) and issubclass(kind, Enum):
        return [] if value in set(kind) else [f"{path}: {value!r} is no {kind.__name__}"]
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return []
    if not isinstance(value, kind):
        return [f"{path}: {value!r} is no {kind}"]
    return fields_unfit(value, path)


def fields_unfit(value: Any, path: str) -> list[str]:
    """Where fields of one of the SDK's objects are not of their types."""
    if not type(value).__module__.startswith("grafana_foundation_sdk"):
        return []
    hints = get_type_hints(type(value))
    return [p for name, hint in hints.items() for p in unfit(getattr(value, name), hint, f"{path}.{name}")]


@pytest.mark.parametrize("board", BOARDS, ids=lambda board: board.uid)
def test_every_field_has_the_type_of_grafanas_schema(board: Board) -> None:
    assert fields_unfit(build(board), board.uid) == []


def test_wrong_types_are_found() -> None:
    built = build(BOARDS[0])
    panel: Any = next(panel for panel in built.panels or [] if isinstance(panel, models.Panel))
    panel.grid_pos.h = "8"
    panel.field_config.defaults.unit = ["s"]
    panel.options.text_mode = "loud"
    complaints = [r"grid_pos\.h: '8'", r"unit: \['s'\]", r"text_mode: 'loud'"]
    found = fields_unfit(built, "")
    assert [c for c in complaints if not any(re.search(c, one) for one in found)] == []


# -- panels -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", dashboards())
def test_panels_fill_the_grid_without_overlaps(name: str) -> None:
    places = [panel["gridPos"] for panel in dashboards()[name]["panels"]]
    for place in places:
        assert place["x"] + place["w"] <= 24
        assert place["w"] >= 6
        assert place["h"] >= 1
    for a, b in combinations(places, 2):
        beside = a["x"] + a["w"] <= b["x"] or b["x"] + b["w"] <= a["x"]
        assert beside or a["y"] + a["h"] <= b["y"] or b["y"] + b["h"] <= a["y"], (a, b)
    rows = {y: sum(p["w"] for p in places if p["y"] == y) for y in {p["y"] for p in places}}
    repeated = {p["gridPos"]["y"] for p in dashboards()[name]["panels"] if p.get("repeat")}
    assert {y for y, width in rows.items() if width != 24} <= repeated


@pytest.mark.parametrize("name", dashboards())
def test_every_panel_says_what_it_shows_and_what_is_missing(name: str) -> None:
    dashboard = dashboards()[name]
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])
    assert {panel["type"] for panel in dashboard["panels"]} <= BUILT_IN, "needs a plugin"
    for panel in panels(dashboard):
        assert panel["title"]
        assert panel["description"].endswith((".", ": not a measurement.")), panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"]
        assert panel["fieldConfig"]["defaults"]["noValue"]
        assert [link["title"] for link in panel["links"]] == ["Frames at this time"]


def test_links_open_explore_with_a_trace_query() -> None:
    for dashboard in dashboards().values():
        names = {variable["name"] for variable in dashboard["templating"]["list"]}
        for panel in panels(dashboard):
            points = panel["fieldConfig"]["defaults"].get("links", [])
            for link in [*panel["links"], *points]:
                pane = json.loads(parse_qs(urlsplit(link["url"]).query)["panes"][0])["frames"]
                assert pane["datasource"] == "${tempo_datasource}"
                assert pane["queries"][0]["queryType"] == "traceql"
                used = set(re.findall(r"\$\{(\w+)", json.dumps(pane))) - {"__from", "__to", "__field"}
                assert used <= names, f"{panel['title']} uses variables that {dashboard['title']} has not"


def test_exemplars_are_asked_for_with_histograms_only() -> None:
    shown = [(panel["title"], t["expr"]) for _, panel, t in targets() if t.get("exemplar")]
    assert len(shown) >= 10
    assert [title for title, expr in shown if "_bucket" not in expr] == []


# -- colours ----------------------------------------------------------------------------------


def luminance(colour: str) -> float:
    """Relative luminance (WCAG 2)."""
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


@pytest.mark.parametrize("background", ["#ffffff", "#181b1f"], ids=["light", "dark"])
def test_colours_show_on_dark_and_on_light(background: str) -> None:
    for colour in OURS:
        low, high = sorted((luminance(colour), luminance(background)))
        assert (high + 0.05) / (low + 0.05) > 2, colour


def test_fixed_colours_are_of_the_palette() -> None:
    text = json.dumps(list(dashboards().values()))
    assert set(re.findall(r"#[0-9A-Fa-f]{6}\b", text)) <= OURS


# -- queries ----------------------------------------------------------------------------------


def test_queries_ask_only_for_what_the_contract_has() -> None:
    known = contract_labels() | FOREIGN | {"ALERTS": {"alertstate"}}
    for _, panel, target in targets():
        expression = target.get("expr")
        if expression is None:
            continue
        promql_parser.parse(expression.replace("$__rate_interval", "1m"))
        asked = [(name, labels) for name, labels in selectors(expression) if not OTELCOL.match(name)]
        for name, labels in asked:
            assert name in known, f"{panel['title']}: {name}"
            assert labels <= known[name] | {"job", "instance"}, f"{panel['title']}: {name} {labels}"
        carried = {label for name, _ in asked for label in known[name]} | written_labels(expression)
        if asked:
            assert grouping_labels(expression) <= carried, panel["title"]
            legend = set(re.findall(r"{{(\w+)}}", target["legendFormat"]))
            assert legend <= carried, f"{panel['title']}: {legend - carried}"


# -- provisioning -----------------------------------------------------------------------------


def provisioned(kind: str) -> Json:
    (file,) = (GRAFANA / "provisioning" / kind).glob("*.yml")
    found: Json = yaml.safe_load(file.read_text())
    return found


def test_exemplars_lead_to_tempo_and_traces_to_prometheus() -> None:
    sources = {source["uid"]: source for source in provisioned("datasources")["datasources"]}
    (exemplar,) = sources["prometheus"]["jsonData"]["exemplarTraceIdDestinations"]
    assert (exemplar["name"], sources[exemplar["datasourceUid"]]["type"]) == ("trace_id", "tempo")
    assert sources[sources["tempo"]["jsonData"]["tracesToMetrics"]["datasourceUid"]]["type"] == "prometheus"
    scrape = yaml.safe_load((GRAFANA.parent / "prometheus" / "prometheus.yml").read_text())["global"]
    assert sources["prometheus"]["jsonData"]["timeInterval"] == scrape["scrape_interval"]
    assert all(re.fullmatch(r"\$\w+", source["url"]) for source in sources.values())


def test_dashboards_can_not_be_changed_in_the_browser() -> None:
    (provider,) = provisioned("dashboards")["providers"]
    assert not provider["allowUiUpdates"]
    assert provider["disableDeletion"]
