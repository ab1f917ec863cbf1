"""What several tests need."""

from __future__ import annotations

import os
import shutil

import pytest


def need(tool: str) -> str:
    """The path of a system tool; where it is absent the test skips, or fails on CI."""
    path = shutil.which(tool)
    if path is None:
        reason = f"{tool} is not installed (apt-get install it)"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    return path
