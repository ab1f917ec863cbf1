"""Generated pages equal what the code declares, and every public name is in a golden file."""

import importlib.util
import json
import re
from pathlib import Path

import pytest

from benchlab_otel import contract, sources

DOCS = Path(__file__).parents[1] / "docs"
GOLDEN = Path(__file__).parent / "golden"


def _generator():
    spec = importlib.util.spec_from_file_location("generate", DOCS / "generate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


generate = _generator()


@pytest.mark.parametrize("page", sorted(generate.PAGES))
def test_page_is_what_the_code_declares(page):
    assert (DOCS / page).read_text() == generate.PAGES[page](), f"docs/{page} is old: make docs"


def test_golden_of_every_public_name(golden):
    golden("names.txt", generate.names())


def test_no_two_metrics_have_one_name():
    for names in (
        [m.name for m in contract.ALL],
        [contract.prometheus_name(m.name, m.unit, m.kind) for m in contract.ALL],
    ):
        assert len(names) == len(set(names))


@pytest.mark.parametrize("name", sources.NAMES)
def test_a_source_declares_what_it_emits_and_says_what_it_is(name):
    module = sources.load(name)
    assert set(module.METRICS) <= set(contract.ALL)
    assert len(module.METRICS) == len(set(module.METRICS)) > 0
    assert module.__doc__


OUTLINES = [path for path in sorted(GOLDEN.glob("*.json")) if '"metrics"' in path.read_text()]


@pytest.mark.parametrize("path", OUTLINES, ids=lambda path: path.stem)
def test_a_source_emits_in_its_golden_only_what_it_declares(path):
    outline = json.loads(path.read_text())
    (source,) = {
        labels["source"] for name, _, _, labels in outline["metrics"] if name == "exporter.collect.success"
    }
    declared = {m.name for m in sources.load(source).METRICS}
    emitted = {name for name, *_ in outline["metrics"] if not name.startswith("exporter.")}
    assert emitted
    assert emitted <= declared


def test_every_metric_has_a_section_and_every_hardware_metric_a_source():
    page = (DOCS / "metrics.md").read_text()
    assert "## Others" not in page
    emitted = {m for name in sources.NAMES for m in sources.load(name).METRICS}
    assert {m.name for m in contract.ALL if m.name.startswith(("hw.", "system.", "process."))} <= {
        m.name for m in emitted
    }


def test_labels_of_prometheus_are_valid():
    for m in contract.ALL:
        for label in m.labels:
            assert re.fullmatch(r"[a-zA-Z_][a-zA-Z0-9_]*", contract.prometheus_label(label)), label
