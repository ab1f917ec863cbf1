"""What the thread of a source does when something fails that never should."""

import pytest

from benchlab_otel import sources
from benchlab_otel.config import Host, Sources
from conftest import wait_for
from receiving import Receiver


class Full(Receiver):
    """A sink that breaks its promise never to raise: at the first values, not at the health."""

    def metrics(self, body: bytes) -> None:
        super().metrics(body)
        if self.values("system.cpu.time")[-1:] != [None]:
            raise RuntimeError("the sink is full")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_thread_that_ended_by_a_defect_is_not_well():
    receiver = Full()
    running = sources.start(["host"], Sources(host=Host(rate_hz=50)), receiver, "s", metrics_s=0.01)
    (health,) = running.health()
    wait_for(lambda: health.failures)
    running.stop()
    assert not health.ok
    assert health.message == "reading ended: RuntimeError: the sink is full"
    assert receiver.values("exporter.collect.success") == [1.0, 0.0]
    assert receiver.values("exporter.collect.failures", {"reason": "defect"}) == [1.0]
    assert receiver.values("system.cpu.time")[-1] is None  # no last values stay on the page
