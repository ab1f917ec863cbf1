"""What a PromQL expression asks for: enough of its grammar for the expressions in this repository."""

from __future__ import annotations

import re
from collections.abc import Iterator

from benchlab_otel.contract import ALL, prometheus_label, prometheus_name

_KEYWORDS = {"and", "or", "unless", "bool", "offset", "inf", "nan", "start", "end", "atan2"}
_LABEL_LIST = re.compile(r"\b(?:by|without|on|ignoring|group_left|group_right)\s*\(([^()]*)\)", re.IGNORECASE)
_SELECTOR = re.compile(r"(?<![\w:.$])([a-zA-Z_:][\w:]*)\s*(\(|\{[^{}]*\})?")
_STRING = re.compile(r'"(?:[^"\\]|\\.)*"|\'(?:[^\'\\]|\\.)*\'')

EVERYWHERE = {"job", "instance"}
SUFFIXES = {"histogram": ("_bucket", "_sum", "_count")}
FOREIGN = {  # metrics of others, with the labels that we rely on
    "up": set[str](),
    "target_info": {"host_name", "benchlab_simulated", "service_version"},
    "otelcol_exporter_queue_size": {"exporter", "data_type"},
    "otelcol_exporter_queue_capacity": {"exporter", "data_type"},
}


def contract_labels() -> dict[str, set[str]]:
    """Labels by Prometheus name, of every series that the contract allows."""
    known = {}
    for metric in ALL:
        name = prometheus_name(metric.name, metric.unit, metric.kind)
        labels = {prometheus_label(label) for label in metric.labels} | EVERYWHERE
        for suffix in SUFFIXES.get(metric.kind, ("",)):
            known[name + suffix] = labels | ({"le"} if suffix == "_bucket" else set())
    return known


def selectors(expression: str) -> Iterator[tuple[str, set[str]]]:
    """(metric name, labels matched on) of each selector."""
    text = _LABEL_LIST.sub(" ", _bare(expression))
    for name, rest in _SELECTOR.findall(text):
        if rest != "(" and name.lower() not in _KEYWORDS:
            yield name, set(re.findall(r"(\w+)\s*[=!]", rest))


def grouping_labels(expression: str) -> set[str]:
    """Labels in by, without, on, ignoring and group_left or group_right."""
    lists = _LABEL_LIST.findall(_bare(expression))
    return {label for found in lists for label in re.findall(r"\w+", found)}


def written_labels(expression: str) -> set[str]:
    """Labels that label_replace and label_join make."""
    names = set()
    for call in re.finditer(r"label_(replace|join)\(", expression):
        names.add(_destination(expression[call.end() :]))
    return names


def _destination(arguments: str) -> str:
    """The first string behind the first argument of a call."""
    depth, position = 0, 0
    while position < len(arguments):
        string = _STRING.match(arguments, position)
        if string and depth == 0:
            return string[0][1:-1]
        depth += {"(": 1, "{": 1, ")": -1, "}": -1}.get(arguments[position], 0)
        position = string.end() if string else position + 1
    raise ValueError(f"no label in {arguments[:60]}")


def _bare(expression: str) -> str:
    """The expression without comments, strings and durations."""
    text = _STRING.sub('""', expression)
    return re.sub(r"\[[^\]]*\]", "", re.sub(r"#.*", "", text))
