"""What each folder may import, as docs/architecture.md says it."""

import subprocess
import sys
import tomllib
from pathlib import Path

from benchlab_otel.sources import NAMES

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "exporters" / "benchlab_otel"


def layers() -> list[str]:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    return contracts[0]["layers"]


def parts() -> set[str]:
    return {part.strip() for layer in layers() for part in layer.split(":")}


def test_dependencies_point_one_way():
    lint = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([lint], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_every_part_of_the_package_has_a_layer():
    found = {p.stem for p in PACKAGE.iterdir() if p.suffix == ".py" or (p / "__init__.py").is_file()}
    assert found - {"__init__", "__main__"} == parts()


def test_the_page_names_every_part():
    page = (ROOT / "docs" / "architecture.md").read_text()
    table = page.split("## Parts of the package")[1].split("## Where")[0]
    for part in parts():
        assert f"`{part}/`" in table or f"`{part}.py`" in table, part


def test_the_page_names_every_folder_and_source():
    page = (ROOT / "docs" / "architecture.md").read_text()
    folders = {p.name for p in ROOT.iterdir() if p.is_dir() and not p.name.startswith(".")}
    folders -= {"build", "out"}  # not in the repository
    assert {"exporters", "grafana"} <= folders
    assert not [name for name in folders if f"`{name}/" not in page]
    way = page.split("```")[1]
    assert not [name for name in NAMES if name.partition("_")[0] not in way]
