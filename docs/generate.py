"""Writes docs/metrics.md and docs/sources.md from what the code declares: `make docs`.

Metrics are those of contract.py; a source's text is its module's docstring, its settings those of
config.py, its metrics its METRICS. tests/test_docs.py holds the pages to the code.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from benchlab_otel import contract, sources
from benchlab_otel.config import Settings, variable
from benchlab_otel.contract import Metric, prometheus_label, prometheus_name
from benchlab_otel.sources import reading
from benchlab_otel.timebase import CLOCK_ATTRIBUTE

HERE = Path(__file__).parent
HEAD = "<!-- Written by `make docs` from the code; change it there. -->\n"

SECTIONS = {  # title: (beginnings of the names, what the section is about)
    "Pipelines": (
        ("pipeline.", "align.", "clock."),
        "By the aligner, from frames and readings; `pipeline.probe.lost` by the probes.",
    ),
    "Meters": (("meter.",), "By the aligner, which finds out how a meter reads, and by sources that know."),
    "Hardware": (("hw.",), "By the sources that are named."),
    "Host and processes": (("system.", "process."), "By the source `host`."),
    "Exporters": (("exporter.",), "By every source, about itself: also when it can't read anything."),
    "Hub and archive": (("hub.", "archive."), "By the embedded hub."),
}


FINDING = {  # keys of what `devices --json` and `doctor --json` tell: tests/test_doctor.py holds them to it
    "source": "the source's name",
    "address": 'where it reads: a path, a port or a URL; `""` where it found nothing to read',
    "readable": "whether it could be read",
    "hw.id": "the device's id, as in metrics and samples",
    "hw.type": "what kind of device it is, such as `gpu`",
    "description": "the device in words",
    "simulated": "whether it is an emulator, a stub or a written tree",
    "readings_per_second": "how often it answered, asked as fast as it does; null unless readable",
    "reason": "why it can't be read, in a word",
    "problem": "the same in a sentence",
    "fix": "what to do about it. A command is all of the first line, and words about it are on the next",
    "risk": "what the fix opens up, or why it is safe",
    "readings_per_second_set": "`doctor` only: the setting `rate_hz`",
}
SYSTEM = {  # keys of what `doctor --json` tells of the machine
    "benchlab-otel": "this program's version",
    "python": "implementation and version",
    "packages": "names and versions of those that matter here",
    "kernel": "system, release and machine",
    "distribution": "its name",
    "processor": "its name, else the machine's",
    "runs in": "what may hide hardware: a container, a virtual machine",
    "user": "root, or the groups of this user",
}


def metrics_page() -> str:
    """docs/metrics.md."""
    emitters = {name: _module(name).METRICS for name in sources.NAMES}
    parts = [HEAD, "# Metrics\n"]
    parts.append(
        "One declaration of each, in `contract.py`, is what the code emits and what this page shows. The "
        "second name is Prometheus's, on both `/metrics` pages and the Collector's alike. Histograms have "
        "exemplars to the trace of a frame. A value that there is none of is absent, never 0.\n"
    )
    left = list(contract.ALL)
    for title, (beginnings, about) in SECTIONS.items():
        chosen = [m for m in left if m.name.startswith(beginnings)]
        left = [m for m in left if m not in chosen]
        parts += [f"## {title}\n", f"{about}\n", *_metric_table(chosen, emitters)]
    if left:
        parts += ["## Others\n", *_metric_table(left, emitters)]
    return "\n".join(parts)


def _metric_table(metrics: list[Metric], emitters: dict[str, tuple[Metric, ...]]) -> Iterator[str]:
    yield "| Metric | In Prometheus | Kind, unit | Labels | Meaning |\n|---|---|---|---|---|"
    for m in metrics:
        labels = ", ".join(f"`{label}`" for label in m.labels)
        by = ", ".join(name for name, emitted in emitters.items() if m in emitted)
        meaning = m.description + (f" ({by})" if by else "")
        prometheus = prometheus_name(m.name, m.unit, m.kind)
        yield f"| `{m.name}` | `{prometheus}` | {m.kind}, {m.unit} | {labels or '–'} | {meaning} |"
    yield ""


def sources_page() -> str:
    """docs/sources.md."""
    parts = [HEAD, "# Sources\n"]
    parts.append(
        "Each is one file in `exporters/benchlab_otel/sources/`, an exporter that runs alone "
        "(`benchlab-otel export NAME`) or with others. Settings are keys of the configuration file's "
        "table `[sources.NAME]`, or environment variables. `benchlab-otel doctor` tells what each can "
        "read here. Metrics that every source has of itself are under Exporters in "
        "[metrics.md](metrics.md).\n"
    )
    parts += _what_is_told()
    for name in sources.NAMES:
        module, section = _module(name), getattr(Settings().sources, name)
        parts += [f"## {name}\n", *_paragraphs(module), *_settings(section, f"sources.{name}.")]
        names = ", ".join(f"`{m.name}`" for m in module.METRICS)
        parts.append(f"Metrics: {names}.\n")
    return "\n".join(parts)


def _what_is_told() -> Iterator[str]:
    """The layout of two commands' JSON."""
    yield "## What devices and doctor tell\n"
    yield (
        "`benchlab-otel devices --json` prints a list with an object for each device and for each place "
        "that can't be read. `benchlab-otel doctor --json` prints an object: `sources` is that list for "
        "the sources that are enabled or named, `system` says in texts what the machine is. It is made for "
        "bug reports: names of the host and of the user are replaced in `address`, `description`, "
        "`problem` and the host's `hw.id`. Keys stay from version to version; what there is none of is "
        "null. `doctor` ends with 1 where a source can't be read or not as often as it is set to; one "
        "that has nothing to read here, or whose device sleeps, counts only where it was named.\n"
    )
    # the comments at `reading.Reason`
    reasons = dict(re.findall(r'^    "(\w+)",  # (.+)$', inspect.getsource(reading), re.MULTILINE))
    for title, keys in (("In the list", FINDING), ("`reason`", reasons), ("In `system`", SYSTEM)):
        yield f"| {title} | What it is |\n|---|---|"
        yield from (f"| `{key}` | {meaning} |" for key, meaning in keys.items())
        yield ""


def _module(name: str) -> ModuleType:
    return import_module(f"benchlab_otel.sources.{name}")


def _paragraphs(module: ModuleType) -> Iterator[str]:
    for paragraph in inspect.cleandoc(module.__doc__ or "").split("\n\n"):
        yield " ".join(paragraph.split()) + "\n"


def _settings(section: Any, prefix: str) -> Iterator[str]:
    """A table of the section's keys, and one of each section in it."""
    about = " ".join(inspect.cleandoc(section.__doc__ or "").split())
    yield f"{about}\n"
    yield "| Setting | Default | Variable |\n|---|---|---|"
    nested = []
    for field in fields(section):
        key, value = prefix + field.name, getattr(section, field.name)
        if is_dataclass(value):
            nested.append((value, f"{key}."))
        else:
            yield f"| `{key}` | {_shown(value)} | `{variable(key)}` |"
    yield ""
    for inner, inner_prefix in nested:
        yield from _settings(inner, inner_prefix)


def _shown(value: Any) -> str:
    if value is None:
        return "not known"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, tuple):
        return ", ".join(f"`{item}`" for item in value) or "none"
    return f"`{value:g}`" if isinstance(value, float) else f"`{value}`"


def names() -> str:
    """Every public name, one a line: metrics as Prometheus has them too, spans, attributes."""
    lines = []
    for m in contract.ALL:
        prometheus = prometheus_name(m.name, m.unit, m.kind)
        labels = " ".join(f"{label}={prometheus_label(label)}" for label in m.labels)
        lines.append(f"metric {m.name} {m.unit} {m.kind} {prometheus} {labels}".strip())
    for key, value in vars(contract).items():
        if key.isupper() and isinstance(value, str):
            kind = "attribute" if "." in value else "span"
            lines.append(f"{kind} {value}")
    schema = (HERE / "trace-schema.md").read_text()  # held to the code by tests/test_schema.py
    lines += [
        f"attribute {name}" for name in re.findall(r"^\| `([^` ]*<domain>[^` ]*)` \|", schema, re.MULTILINE)
    ]
    lines.append(f"attribute {CLOCK_ATTRIBUTE}")
    return "\n".join(sorted(lines)) + "\n"


PAGES = {"metrics.md": metrics_page, "sources.md": sources_page}

if __name__ == "__main__":
    for page, text in PAGES.items():
        (HERE / page).write_text(text())
        print(f"docs/{page}")
