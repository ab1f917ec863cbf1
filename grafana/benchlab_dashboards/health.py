"""Health: is every source there and on time, how well times are known, what was lost on the way."""

from __future__ import annotations

from benchlab_dashboards.board import DEVICE, PIPELINE, Board, Row
from benchlab_dashboards.colours import GREEN, ORANGE, SKY, VERMILLION
from benchlab_dashboards.panels import Query, lines, states
from benchlab_dashboards.promql import SCOPE, by_device, rate, series, total
from benchlab_otel import contract

NO_SOURCE = "no source runs"
NO_ALIGNER = "no aligner runs"
NO_COLLECTOR = "no Collector is scraped: embedded, or its own telemetry is off"
WHO = "{{source}} {{device}}"
AGE = by_device(f"time() - {series(contract.COLLECT_LAST)}")

SOURCES = Row(
    "Sources",
    [
        states(
            "Readings",
            "Whether each source's last reading worked.",
            Query(by_device(series(contract.COLLECT_SUCCESS)), WHO),
            {0: ("fails", VERMILLION), 1: ("reads", GREEN)},
            absent=NO_SOURCE,
        ),
        lines(
            "Age of the last good reading",
            "Grows where a device has gone or its exporter stands still.",
            "s",
            Query(AGE, WHO),
            width=12,
            absent=NO_SOURCE,
        ),
        lines(
            "Round-trip time",
            "Time that each source's last reading took.",
            "s",
            Query(by_device(series(contract.COLLECT_DURATION)), WHO),
            absent=NO_SOURCE,
        ),
        lines(
            "Time uncertainty of readings",
            "Half of the longest round trip: how well a reading's time is known.",
            "s",
            Query(by_device(series(contract.COLLECT_UNCERTAINTY)), WHO),
            absent=NO_SOURCE,
        ),
        lines(
            "Readings not got",
            "A second, by reason.",
            "none",
            Query(by_device(rate(contract.COLLECT_FAILURES)), f"{WHO} {{{{reason}}}}"),
            absent="none failed",
        ),
    ],
)

CLOCKS = Row(
    "Clock and aligner",
    [
        lines(
            "Clock offset",
            "How far the wall clock is ahead of the clock that spans carry. A jump is a clock step.",
            "s",
            Query(series(contract.CLOCK_WALL), "{{instance}}"),
            least=None,
            absent=NO_ALIGNER,
        ),
        lines(
            "Aligner behind",
            "How long ago the newest frame ended that the aligner is done with, its energy included.",
            "s",
            Query(series(contract.ALIGN_BEHIND), "{{pipeline_name}}"),
            absent="no frame is done, or none came for a minute",
        ),
        lines(
            "Late, twice or alone",
            "Stages, frames and readings a second that could not be joined.",
            "none",
            Query(total("item", rate(contract.ALIGN_LATE)), "{{item}}"),
            absent=NO_ALIGNER,
        ),
    ],
)

LOSSES = Row(
    "Taken and lost on the way",
    [
        lines(
            "Spans taken",
            "A second, by each hub.",
            "none",
            Query(rate(contract.HUB_SPANS), "{{instance}}"),
            absent="no hub runs: a Collector takes its place",
        ),
        lines(
            "Not taken",
            "Requests, spans and points a second that the hub refused, by reason.",
            "none",
            Query(total("signal, reason", rate(contract.HUB_REJECTED)), "{{signal}} {{reason}}"),
            absent="nothing was refused",
        ),
        lines(
            "Lost",
            "A second: marks that probes gave up, spans that the live view skipped, records that could not"
            " be written.",
            "none",
            Query(total("reason", rate(contract.PROBE_LOST)), "probe {{reason}}"),
            Query(f"sum({rate(contract.HUB_LIVE_SKIPPED)})", "skipped live"),
            Query(total("file", rate(contract.ARCHIVE_LOST)), "not written {{file}}"),
            absent="nothing was lost",
        ),
    ],
)


def collector(name: str) -> str:
    """A metric of the Collector's own telemetry, whose instances are named otherwise than ours."""
    return f"{name}{{{','.join(SCOPE)}}}"


def flow(verb: str, by: str) -> list[Query]:
    """Spans and metric points a second that components `verb`."""
    return [
        Query(
            total(by, f"rate({collector(f'otelcol_{verb}_{item}_total')}[$__rate_interval])"),
            f"{{{{{by}}}}} {item}",
        )
        for item in ("spans", "metric_points")
    ]


FILLED = f"{collector('otelcol_exporter_queue_size')} / {collector('otelcol_exporter_queue_capacity')}"
COLLECTOR = Row(
    "Collector",
    [
        lines(
            "Queues",
            "How full each exporter's sending queue is.",
            "percentunit",
            Query(FILLED, "{{exporter}} {{data_type}}"),
            most=1,
            absent=NO_COLLECTOR,
        ),
        lines(
            "Accepted",
            "A second, by receiver.",
            "none",
            *flow("receiver_accepted", "receiver"),
            absent=NO_COLLECTOR,
        ),
        lines(
            "Sent", "A second, by exporter.", "none", *flow("exporter_sent", "exporter"), absent=NO_COLLECTOR
        ),
        lines(
            "Refused",
            "A second, by receiver: the memory limiter at work, or a full queue.",
            "none",
            *flow("receiver_refused", "receiver"),
            absent="nothing was refused, or no Collector is scraped",
        ),
        lines(
            "Not sent",
            "Send attempts that failed and enqueuing that failed, a second, by exporter.",
            "none",
            *flow("exporter_send_failed", "exporter"),
            *flow("exporter_enqueue_failed", "exporter"),
            absent="nothing failed, or no Collector is scraped",
        ),
        lines(
            "Memory",
            "Resident memory of the Collector, and its heap.",
            "bytes",
            Query(collector("otelcol_process_memory_rss_bytes"), "resident"),
            Query(collector("otelcol_process_runtime_heap_alloc_bytes"), "heap"),
            styles={"resident": SKY, "heap": ORANGE},
            absent=NO_COLLECTOR,
        ),
    ],
)

BOARD = Board(
    "benchlab-health",
    "benchlab-otel / Health",
    "Freshness of sources, quality of times, losses, and the Collector's queues.",
    [SOURCES, CLOCKS, LOSSES, COLLECTOR],
    [DEVICE, PIPELINE],
)
