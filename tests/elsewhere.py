"""Files that other projects published, which are not copied into this one: most checkouts lack them."""

from __future__ import annotations

from pathlib import Path

import pytest

DATA = Path(__file__).parents[2] / "shared" / "data"


def elsewhere(name: str) -> Path:
    """One of them; where it is absent the test skips, on CI, too."""
    path = DATA / name
    if not path.is_file():
        pytest.skip(f"{path} is not there: a file of another project, not part of this one")
    return path
