"""What several tests need."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest


def need(tool: str) -> str:
    """The path of a system tool; where it is absent the test skips, or fails on CI."""
    return shutil.which(tool) or absent(f"{tool} is not installed (apt-get install it)")


def absent(reason: str) -> NoReturn:
    """Skips the test for want of something that tests/system.sh and the like install; on CI it fails."""
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)


def pytest_configure() -> None:
    # under nohup it is ignored, by the commands that tests start too, and some tests end them by it
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="write the golden files anew")


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """Compares text with tests/golden/NAME, or writes that file with --update-golden."""

    def compare(name: str, text: str) -> None:
        path = Path(__file__).parent / "golden" / name
        if request.config.getoption("--update-golden"):
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)
        assert text == path.read_text(), f"{path} differs; if that is meant: pytest --update-golden"

    return compare


def wait_for(condition: Callable[[], object], seconds: float = 30.0) -> None:
    """Waits until the condition holds; fails after `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.005)


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on now; not of those that the kernel gives to outgoing connections, which
    could be taken before they are used."""
    ports: list[int] = []
    while len(ports) < count:
        port = random.randrange(15_000, 32_000)
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            ports += [port] if port not in ports else []
    return ports
