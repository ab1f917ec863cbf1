"""The Prometheus files: rules hold what they say, each is tested, and they use names that exist."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

import promql
from conftest import need

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "prometheus"
RULES = sorted(FOLDER.glob("rules/*.yml"))
TESTS = sorted(FOLDER.glob("tests/*.yml"))
RUNBOOK = ROOT / "docs/alerts.md"
SEEDS = {  # the names that earlier tools of the field published
    *("benchlab_voltage_v", "benchlab_power_voltage_v", "benchlab_power_current_a", "benchlab_power_w"),
    *("benchlab_total_power_w", "benchlab_fan_enabled", "benchlab_fan_duty", "benchlab_fan_rpm"),
    *("benchlab_temp_c", "benchlab_humidity_pct", "benchlab_vdd_v", "benchlab_vref_v"),
    *("benchlab_device", "benchlab_calibration_valid"),
    *("benchlab_pipeline_latency_ms", "benchlab_pipeline_dropped"),
    *("val_package_power_watts", "val_pl1_limit_watts", "hw_cpu_load_percent", "hw_temp_package_celsius"),
}


def promtool(*arguments: str | Path) -> None:
    done = subprocess.run([need("promtool"), *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@cache
def rules() -> list[dict[str, Any]]:
    return [r for file in RULES for g in yaml.safe_load(file.read_text())["groups"] for r in g["rules"]]


def alerts() -> dict[str, dict[str, Any]]:
    return {rule["alert"]: rule for rule in rules() if "alert" in rule}


def records() -> list[dict[str, Any]]:
    return [rule for rule in rules() if "record" in rule]


def cases(kind: str) -> Iterator[dict[str, Any]]:
    for file in TESTS:
        for group in yaml.safe_load(file.read_text())["tests"]:
            yield from group.get(kind, ())


# -- promtool ---------------------------------------------------------------------------------


def test_rules_and_configuration_are_valid() -> None:
    promtool("check", "rules", *RULES)
    promtool("check", "config", FOLDER / "prometheus.yml")


@pytest.mark.parametrize("file", TESTS, ids=lambda file: file.stem)
def test_rules_do_what_their_unit_tests_say(file: Path) -> None:
    promtool("test", "rules", file)


# -- every rule is tested ---------------------------------------------------------------------


def test_every_alert_is_tested_firing_and_quiet() -> None:
    fires = {case["alertname"] for case in cases("alert_rule_test") if case["exp_alerts"]}
    quiet = {case["alertname"] for case in cases("alert_rule_test") if not case["exp_alerts"]}
    assert alerts().keys() == fires == quiet


def test_every_recording_rule_is_tested_with_and_without_a_value() -> None:
    for rule in records():
        mine = [case for case in cases("promql_expr_test") if _asks_for(case["expr"], rule["record"])]
        labels = [f'{name}="{value}"' for name, value in rule.get("labels", {}).items()]
        values = [s["labels"] for case in mine for s in case.get("exp_samples") or []]
        assert any(all(label in sample for label in labels) for sample in values), (rule, "has no value")
        constant = rule["expr"].startswith("vector(")  # always has its value
        assert constant or any(not case.get("exp_samples") for case in mine), (rule, "always has a value")


def _asks_for(expression: str, name: str) -> bool:
    return name in dict(promql.selectors(expression))


# -- names ------------------------------------------------------------------------------------


def known_labels() -> dict[str, set[str]]:
    """Labels by name, of the contract, of others, and of what the rules record."""
    known = promql.contract_labels() | {
        name: labels | promql.EVERYWHERE for name, labels in promql.FOREIGN.items()
    }
    waiting = {rule["record"] for rule in records()}
    while waiting:  # rules use each other's records in any order
        ready = {r for r in waiting if all(_sources(rule) <= known.keys() for rule in records_of(r))}
        assert ready, f"{waiting} use names that nobody has"
        for name in ready:
            known[name] = set().union(*(_labels(rule, known) for rule in records_of(name)))
        waiting -= ready
    return known


def records_of(name: str) -> list[dict[str, Any]]:
    return [rule for rule in records() if rule["record"] == name]


def _sources(rule: dict[str, Any]) -> set[str]:
    return {name for name, _ in promql.selectors(rule["expr"])}


def _labels(rule: dict[str, Any], known: dict[str, set[str]]) -> set[str]:
    used: set[str] = set().union(*(known[name] for name in _sources(rule)))
    return used | promql.written_labels(rule["expr"]) | rule.get("labels", {}).keys()


def test_rules_use_metrics_that_exist_with_labels_that_they_have() -> None:
    known = known_labels()
    for rule in rules():
        for name, labels in promql.selectors(rule["expr"]):
            assert labels <= known[name], (rule, name, labels - known[name])
        assert promql.grouping_labels(rule["expr"]) <= _labels(rule, known), rule


def test_no_record_takes_a_name_of_the_contract() -> None:
    assert not {rule["record"] for rule in records()} & promql.contract_labels().keys()


def test_the_names_of_earlier_tools_are_all_there() -> None:
    assert {rule["record"] for rule in records()} >= SEEDS


@pytest.mark.parametrize(
    ("expression", "names", "grouping", "written"),
    [
        ('a:b{x="1", y=~"}b"} * on (z) group_left (u) c_total offset 5m', {"a:b", "c_total"}, "zu", ""),
        ("sum by (x) (rate(a[5m])) > 0 # not (b)", {"a"}, "x", ""),
        ('label_replace(label_join(1e3 * a, "j", ", ", "k"), "w", "$1", "x", "(.+)")', {"a"}, "", "jw"),
    ],
)
def test_expressions_are_read_right(expression: str, names: set[str], grouping: str, written: str) -> None:
    assert {name for name, _ in promql.selectors(expression)} == names
    assert promql.grouping_labels(expression) == set(grouping)
    assert promql.written_labels(expression) == set(written)


# -- runbook ----------------------------------------------------------------------------------


def test_each_alert_has_its_place_in_the_runbook_and_the_runbook_no_other() -> None:
    headings = re.findall(r"^### (\w+)\n(?=\S)", RUNBOOK.read_text(), re.MULTILINE)
    assert sorted(headings) == sorted(alerts())
    for name, alert in alerts().items():
        assert alert["annotations"]["runbook"] == f"docs/alerts.md#{name.lower()}"
        assert alert["labels"]["severity"] in ("critical", "warning")
