"""The rules of grafana/dashboard-linter, each by its name; exceptions are in grafana/dashboards/.lint.

After docs/rules and lint/ of github.com/grafana/dashboard-linter (2026). Its rules for LogQL have nothing
to look at here.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Any, get_args, get_type_hints

import promql_parser as promql
import pytest
import yaml
from grafana_foundation_sdk.models import units

from dashboards import GRAFANA, Json, dashboards, panels

RATE_INTERVAL = timedelta(seconds=8869990)  # a range that nobody writes
UNITS = {get_args(kind)[0] for kind in get_type_hints(units).values()}
COUNTING = {"rate", "irate", "increase"}
TITLED = {"stat", "singlestat", "graph", "table", "timeseries", "gauge"}
ASKED = {"stat", "singlestat", "table", "timeseries", "gauge", "state-timeline"}
Found = Iterator[tuple[str, str]]  # (panel's title or "", what is wrong)


def variables(dashboard: Json, kind: str) -> list[Json]:
    return [variable for variable in dashboard["templating"]["list"] if variable["type"] == kind]


def parsed(expression: str) -> Any:
    """The syntax tree; raises ValueError where it is no PromQL."""
    return promql.parse(
        expression.replace("$__rate_interval", f"{RATE_INTERVAL.seconds + RATE_INTERVAL.days * 86400}s")
    )


def nodes(node: Any, parents: tuple[Any, ...] = ()) -> Iterator[tuple[Any, tuple[Any, ...]]]:
    """Every node below one, with those above it."""
    yield node, parents
    names = {"BinaryExpr": ("lhs", "rhs"), "MatrixSelector": ("vector_selector",), "Call": ("args",)}
    for name in names.get(type(node).__name__, ("expr", "param")):
        below = getattr(node, name, None)
        for child in below if isinstance(below, list) else [below]:
            if child is not None:
                yield from nodes(child, (*parents, node))


def queries(dashboard: Json) -> Iterator[tuple[str, Any]]:
    """(panel's title, syntax tree) of each query that is PromQL."""
    for panel in panels(dashboard):
        for target in panel["targets"]:
            try:
                yield panel["title"], parsed(target.get("expr", ""))
            except ValueError:
                continue  # target-promql-rule's


def template_datasource_rule(dashboard: Json) -> Found:
    found = variables(dashboard, "datasource")
    if not found:
        yield "", "no data source variable"
    for variable in found:
        if variable["name"] != f"{variable['query']}_datasource":
            yield "", f"data source variable {variable['name']}"
        if variable["label"] != f"{variable['query'].title()} data source":
            yield "", f"data source label {variable['label']}"


def template_job_rule(dashboard: Json, name: str = "job") -> Found:
    for variable in variables(dashboard, "query"):
        if variable["name"] != name:
            continue
        if variable["datasource"]["uid"] != "${prometheus_datasource}":
            yield "", f"{name} asks {variable['datasource']}"
        if variable["label"] != name.title():
            yield "", f"{name} is labelled {variable['label']}"
        if not variable["multi"] or variable["allValue"] != ".+":
            yield "", f"{name} is not multi with .+ for all"
        return
    yield "", f"no variable {name}"


def template_instance_rule(dashboard: Json) -> Found:
    yield from template_job_rule(dashboard, "instance")


def template_label_promql_rule(dashboard: Json) -> Found:
    for variable in variables(dashboard, "query"):
        function, _, rest = variable["query"].partition("(")
        selector, _, label = rest.removesuffix(")").rpartition(", ")
        try:
            parsed(selector)
        except ValueError as error:
            yield "", f"{variable['name']}: {error}"
        if function != "label_values" or not label.isidentifier():
            yield "", f"{variable['name']} asks {variable['query']}"


def template_on_time_change_reload_rule(dashboard: Json) -> Found:
    for variable in variables(dashboard, "query"):
        if variable["refresh"] != 2:
            yield "", f"{variable['name']} is not read anew when the time changes"


def panel_datasource_rule(dashboard: Json) -> Found:
    allowed = {f"${{{variable['name']}}}" for variable in variables(dashboard, "datasource")}
    for panel in panels(dashboard):
        if panel["datasource"]["uid"] not in allowed:
            yield panel["title"], f"asks {panel['datasource']}"


def panel_title_description_rule(dashboard: Json) -> Found:
    for panel in panels(dashboard):
        if panel["type"] in TITLED and not (panel.get("title") and panel.get("description")):
            yield panel.get("title", ""), "no title or no description"


def panel_units_rule(dashboard: Json) -> Found:
    for panel in panels(dashboard):
        defaults = panel["fieldConfig"]["defaults"]
        if panel["type"] in TITLED and not defaults.get("mappings") and defaults.get("unit") not in UNITS:
            yield panel["title"], f"unit {defaults.get('unit')}"


def panel_no_targets_rule(dashboard: Json) -> Found:
    for panel in panels(dashboard):
        if not panel.get("targets"):
            yield panel["title"], "no query"


def target_promql_rule(dashboard: Json) -> Found:
    for panel in panels(dashboard):
        for target in panel["targets"] if panel["type"] in ASKED else []:
            try:
                parsed(target.get("expr", ""))
            except ValueError as error:
                yield panel["title"], str(error)


def target_rate_interval_rule(dashboard: Json) -> Found:
    for title, tree in queries(dashboard):
        for node, parents in nodes(tree):
            other = isinstance(node, promql.MatrixSelector) and node.range != RATE_INTERVAL
            if other and parents and getattr(parents[-1], "func", None) and parents[-1].func.name in COUNTING:
                yield title, f"a range of {node.range}"


def target_job_rule(dashboard: Json, name: str = "job") -> Found:
    for title, tree in queries(dashboard):
        for node, _ in nodes(tree):
            if isinstance(node, promql.VectorSelector):
                found = [(m.name, m.value) for m in node.matchers.matchers if m.op == promql.MatchOp.Re]
                if (name, f"${name}") not in found:
                    yield title, f"{node.name} without a matcher of {name}"


def target_instance_rule(dashboard: Json) -> Found:
    yield from target_job_rule(dashboard, "instance")


def target_counter_agg_rule(dashboard: Json) -> Found:
    for title, tree in queries(dashboard):
        for node, parents in nodes(tree):
            if isinstance(node, promql.VectorSelector) and (node.name or "").endswith("_total"):
                calls = [above.func.name for above in parents[-2:] if isinstance(above, promql.Call)]
                if not COUNTING.intersection(calls):
                    yield title, f"{node.name} as it is"


def uneditable_dashboard(dashboard: Json) -> Found:
    if dashboard["editable"]:
        yield "", "editable"


RULES = {
    "template-datasource-rule": template_datasource_rule,
    "template-job-rule": template_job_rule,
    "template-instance-rule": template_instance_rule,
    "template-label-promql-rule": template_label_promql_rule,
    "template-on-time-change-reload-rule": template_on_time_change_reload_rule,
    "panel-datasource-rule": panel_datasource_rule,
    "panel-title-description-rule": panel_title_description_rule,
    "panel-units-rule": panel_units_rule,
    "panel-no-targets-rule": panel_no_targets_rule,
    "target-promql-rule": target_promql_rule,
    "target-rate-interval-rule": target_rate_interval_rule,
    "target-job-rule": target_job_rule,
    "target-instance-rule": target_instance_rule,
    "target-counter-agg-rule": target_counter_agg_rule,
    "uneditable-dashboard": uneditable_dashboard,
}
EXCEPTIONS = yaml.safe_load((GRAFANA / "dashboards" / ".lint").read_text())["exclusions"]


@pytest.mark.parametrize("rule", RULES)
def test_rule(rule: str) -> None:
    allowed = {(e["dashboard"], e["panel"]) for e in EXCEPTIONS.get(rule, {}).get("entries", [])}
    found = [(d["title"], *problem) for d in dashboards().values() for problem in RULES[rule](d)]
    assert [problem for problem in found if problem[:2] not in allowed] == []
    assert allowed == {problem[:2] for problem in found if problem[:2] in allowed}, (
        "exceptions that nothing needs"
    )


def test_exceptions_are_of_known_rules_and_have_reasons() -> None:
    assert EXCEPTIONS.keys() <= RULES.keys()
    assert all(exception["reason"].strip() and exception["entries"] for exception in EXCEPTIONS.values())


def test_every_rule_finds_what_is_wrong() -> None:
    matchers = 'job=~"$job",instance=~"$instance"'
    panel = {"type": "timeseries", "title": "", "datasource": {"uid": "x"}, "fieldConfig": {"defaults": {}}}
    bad = [f"rate(a_total{{{matchers}}}[5m])", "b_total", "sum("]
    variable = {"type": "query", "name": "z", "query": "sum(x", "refresh": 1}
    dashboard = {
        "editable": True,
        "templating": {"list": [variable]},
        "panels": [{**panel, "targets": [{"expr": expr} for expr in bad]}, {**panel, "targets": []}],
    }
    assert [name for name, rule in RULES.items() if not list(rule(dashboard))] == []
