"""The vendor's own benchlab-pytools, in an environment of its own (tests/pytools.sh), on emulated devices."""

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

PYTHON = Path(__file__).parent.parent / ".build/pytools/bin/python"

# Its discovery looks for USB ports, which a pty is not: the operating system's list is replaced for it.
PROGRAM = """
import sys
from serial.tools import list_ports, list_ports_common
ports = []
for path in sys.argv[2:]:
    port = list_ports_common.ListPortInfo(path, skip_link_detection=True)
    port.hwid = "USB VID:PID=0483:5740"
    ports.append(port)
list_ports.comports = lambda *_, **__: ports
if sys.argv[1] == "mqtt":
    from benchlab.mqtt.mqtt_publisher import run_mqtt_mode
    run_mqtt_mode()
else:
    import uvicorn
    from benchlab.restapi.telemetry_api import app
    uvicorn.run(app, fd=int(sys.argv[1]))
"""


@contextlib.contextmanager
def pytools(
    what: str, *ports: Path, fds: tuple[int, ...] = (), **environment: str
) -> Iterator[subprocess.Popen]:
    """pytools at work: `what` is "mqtt", or the number of a listening socket for its REST server."""
    if not PYTHON.exists():
        reason = "pytools is not installed (tests/pytools.sh)"
        pytest.fail(reason) if os.environ.get("CI") == "true" else pytest.skip(reason)
    command = [str(PYTHON), "-c", PROGRAM, what, *map(str, ports)]
    variables = {
        "POLL_INTERVAL": "0.1",
        "MQTT_POLL_RATE": "0.1",
        "SCAN_INTERVAL": "9999",
        "LOG_LEVEL": "WARNING",
    } | environment
    process = subprocess.Popen(
        command,
        pass_fds=fds,
        env=os.environ | variables,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()
