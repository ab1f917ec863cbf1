"""Overview: is it fast, what does it cost, is anything wrong."""

from __future__ import annotations

from benchlab_dashboards.board import PIPELINE, Board, Row
from benchlab_dashboards.panels import Query, lines, number, rows
from benchlab_dashboards.promql import SCOPED, by_host, mean, quantile, rate, scoped, total
from benchlab_otel import contract

FIRING = 'ALERTS{alertstate="firing"}'
NO_FRAMES = "no frames: no pipeline sends spans here"
SYSTEM = ('domain="system"', 'method="conditioned"')
FRAMES = total("pipeline_name", rate(contract.FRAMES))
NOT_COMPLETED, IDLE = 'frame_outcome!="completed"', 'cpu_mode="idle"'
LOST = f"sum({rate(contract.FRAMES, NOT_COMPLETED)}) / sum({rate(contract.FRAMES)})"
READS, SOURCE = scoped(contract.COLLECT_SUCCESS), "job, instance, source, hw_id"
ASLEEP = scoped(contract.COLLECT_FAILURES, 'reason="asleep"')
SLEEPING = f"count({READS} == 0 and on ({SOURCE}) increase({ASLEEP}[$__rate_interval]) > 0)"
SIMULATED = f'count(target_info{{{SCOPED},benchlab_simulated="true"}})'

NOW = Row(
    "Now",
    [
        number(
            "Frames a second",
            "Frames that ended, of the chosen pipelines.",
            "none",
            Query(f"sum({rate(contract.FRAMES)})"),
            absent=NO_FRAMES,
        ),
        number(
            "Latency, 95 %",
            "95 of 100 frames took no longer, from first to last mark.",
            "s",
            Query(quantile(0.95, contract.FRAME_DURATION)),
            absent=NO_FRAMES,
        ),
        number(
            "Joules a frame",
            "Mean energy that the whole host used while a frame was in flight.",
            "joule",
            Query(mean(contract.FRAME_ENERGY, *SYSTEM)),
            absent="no energy: no meter of the whole host",
        ),
        number(
            "Frames lost",
            "Share of frames that were dropped or failed.",
            "percentunit",
            Query(LOST),
            absent=NO_FRAMES,
            bad_above=0.01,
        ),
        number(
            "Power",
            "Power of the chosen hosts together, where a meter measures the whole host.",
            "watt",
            Query(f"sum({scoped(contract.HOST_POWER)})"),
            absent="no meter of the whole host",
        ),
        number(
            "Sources that fail",
            "Sources whose last reading did not work, without GPUs that sleep. Health tells which and why.",
            "none",
            Query(f"sum(1 - {READS}) - ({SLEEPING} or 0 * sum({READS}))"),
            absent="no source runs",
            bad_above=0.5,
        ),
        number(
            "Firing alerts",
            "Alerts of prometheus/rules that fire. docs/alerts.md has a line on each.",
            "none",
            Query(f"count({FIRING})"),
            absent="none fires",
            bad_above=0.5,
        ),
        number(
            "Simulated",
            "Resources whose data come from a simulation: not a measurement.",
            "none",
            Query(SIMULATED),
            absent="nothing simulated",
            bad_above=0.5,
        ),
    ],
)

PIPELINES = Row(
    "Pipelines",
    [
        lines(
            "Frames a second",
            "Frames that ended, by pipeline.",
            "none",
            Query(FRAMES, "{{pipeline_name}}"),
            absent=NO_FRAMES,
        ),
        lines(
            "Latency, 95 %",
            "By pipeline. A point's exemplars lead to frames' traces.",
            "s",
            Query(
                quantile(0.95, contract.FRAME_DURATION, by="pipeline_name"),
                "{{pipeline_name}}",
                exemplar=True,
            ),
            absent=NO_FRAMES,
        ),
        lines(
            "Joules a frame",
            "Mean energy of the whole host while a frame was in flight, by pipeline.",
            "joule",
            Query(mean(contract.FRAME_ENERGY, *SYSTEM, by="pipeline_name"), "{{pipeline_name}}"),
            absent="no energy: no meter of the whole host",
        ),
    ],
)

BUSY = f"1 - {scoped(contract.CPU_UTILIZATION, IDLE)}"
HOSTS = Row(
    "Hosts",
    [
        lines(
            "Power",
            "Of each host, where a meter measures the whole of it.",
            "watt",
            Query(total("host", by_host(scoped(contract.HOST_POWER))), "{{host}}"),
            absent="no meter of the whole host",
        ),
        lines(
            "Processor",
            "Share of all processors' time that is not idle, by host.",
            "percentunit",
            Query(f"max by (host) ({by_host(BUSY)})", "{{host}}"),
            most=1,
            absent="the host source does not run",
        ),
        lines(
            "Hottest sensor",
            "The highest temperature that is read on each host.",
            "celsius",
            Query(f"max by (host) ({by_host(scoped(contract.HW_TEMPERATURE))})", "{{host}}"),
            least=20,
            absent="no thermometer is read",
        ),
    ],
)

ALERTS = Row(
    "Alerts",
    [
        rows(
            "Alerts that fire",
            "Each with what it fires for; docs/alerts.md tells what to do.",
            "none",
            {"firing": FIRING},
            {
                "alertname": "alert",
                "severity": "severity",
                "instance": "instance",
                "hw_id": "device",
                "pipeline_name": "pipeline",
            },
            height=6,
            absent="none fires",
        )
    ],
)

BOARD = Board(
    "benchlab-overview",
    "benchlab-otel / Overview",
    "Speed, cost and faults of pipelines and hosts at a glance.",
    [NOW, PIPELINES, HOSTS, ALERTS],
    [PIPELINE],
)
