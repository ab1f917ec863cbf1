"""Pipeline: where frames spend their time, how evenly they come, which are lost."""

from __future__ import annotations

from benchlab_dashboards.board import PIPELINE, Board, Row, choice
from benchlab_dashboards.colours import OUTCOMES, PERCENTILES
from benchlab_dashboards.panels import Query, explore_traces, heat, lines, link, traces
from benchlab_dashboards.promql import buckets, mean, quantile, rate, series, total
from benchlab_otel import contract
from benchlab_otel.contract import Metric

NO_FRAMES = "no frames: no pipeline sends spans here"
NO_PAIR = "no such pair: name pairs of marks in align.pairs"
NO_LOSS = "nothing lost"
PAIR = ('from="$from_mark"', 'to="$to_mark"')
STAGE = choice(
    "stage", "Stage", f"label_values({series(contract.STAGE_DURATION, part='_count')}, pipeline_stage)"
)
FROM = choice(
    "from_mark", "From mark", f"label_values({series(contract.PAIR_LATENCY, part='_count')}, from)", None
)
TO = choice(
    "to_mark",
    "To mark",
    f"label_values({series(contract.PAIR_LATENCY, PAIR[0], part='_count')}, to)",
    None,
)
CHOSEN = 'pipeline_stage=~"$stage"'
SPANS = '{ span.pipeline.stage = "${__field.labels.pipeline_stage}" && resource.host.name =~ "${host:pipe}" }'


def percentiles(metric: Metric, *matchers: str) -> list[Query]:
    """p50, p95 and p99 of a histogram, with exemplars."""
    ranks = {"p50": 0.5, "p95": 0.95, "p99": 0.99}
    return [Query(quantile(q, metric, *matchers), name, exemplar=name == "p99") for name, q in ranks.items()]


SHARE = total("frame_outcome", rate(contract.FRAMES, 'frame_outcome!="completed"'))
JITTER = " - ".join(quantile(q, contract.FRAME_INTERVAL) for q in (0.95, 0.5))

FRAMES = Row(
    "Frames",
    [
        lines(
            "Latency",
            "Time of a frame from its first to its last mark. Exemplars lead to traces.",
            "s",
            *percentiles(contract.FRAME_DURATION),
            styles=PERCENTILES,
            width=12,
            absent=NO_FRAMES,
        ),
        heat(
            "Latency of all frames",
            "How many frames took how long.",
            "s",
            buckets(contract.FRAME_DURATION),
            absent=NO_FRAMES,
        ),
        lines(
            "Frames a second",
            "Frames that ended, by outcome.",
            "none",
            Query(total("frame_outcome", rate(contract.FRAMES)), "{{frame_outcome}}"),
            styles=OUTCOMES,
            stacked=True,
            absent=NO_FRAMES,
        ),
        lines(
            "Frames lost",
            "Share of frames that were dropped or failed.",
            "percentunit",
            Query(f"{SHARE} / on () group_left () sum({rate(contract.FRAMES)})", "{{frame_outcome}}"),
            styles=OUTCOMES,
            absent=NO_FRAMES,
        ),
        lines(
            "Interval and jitter",
            "Time from one completed frame to the next. Jitter: its p95 less its p50.",
            "s",
            *percentiles(contract.FRAME_INTERVAL),
            Query(JITTER, "jitter"),
            styles=PERCENTILES,
            absent=NO_FRAMES,
        ),
    ],
)

STAGES = Row(
    "Stages",
    [
        lines(
            "Mean time by stage",
            "What a frame's time is made of.",
            "s",
            Query(mean(contract.STAGE_DURATION, CHOSEN, by="pipeline_stage"), "{{pipeline_stage}}"),
            stacked=True,
            width=12,
            points=link("Traces of this stage", explore_traces(SPANS)),
            absent=NO_FRAMES,
        ),
        lines(
            "95 % by stage",
            "95 of 100 frames spent no longer in the stage.",
            "s",
            Query(
                quantile(0.95, contract.STAGE_DURATION, CHOSEN, by="pipeline_stage"),
                "{{pipeline_stage}}",
                exemplar=True,
            ),
            width=12,
            points=link("Traces of this stage", explore_traces(SPANS)),
            absent=NO_FRAMES,
        ),
        heat(
            "$stage",
            "How many frames spent how long in this stage.",
            "s",
            buckets(contract.STAGE_DURATION, CHOSEN),
            width=8,
            repeat="stage",
            absent=NO_FRAMES,
        ),
    ],
)

MARKS = Row(
    "Between two marks",
    [
        lines(
            "$from_mark to $to_mark",
            "Time between two marks of the same frame, read from its trace.",
            "s",
            *percentiles(contract.PAIR_LATENCY, *PAIR),
            styles=PERCENTILES,
            width=12,
            absent=NO_PAIR,
        ),
        heat(
            "$from_mark to $to_mark, all frames",
            "How many frames took how long between the two marks.",
            "s",
            buckets(contract.PAIR_LATENCY, *PAIR),
            absent=NO_PAIR,
        ),
    ],
)

LOST = Row(
    "What is missing, and single frames",
    [
        lines(
            "Given up by probes",
            "Marks and spans a second that a probe could not keep, by reason.",
            "none",
            Query(total("reason", rate(contract.PROBE_LOST)), "{{reason}}"),
            absent=NO_LOSS,
        ),
        lines(
            "Late, twice or alone",
            "Stages, frames and readings a second that the aligner could not join.",
            "none",
            Query(total("item", rate(contract.ALIGN_LATE)), "{{item}}"),
            absent="no aligner runs",
        ),
        traces(
            "Newest frames",
            "Frames of the chosen pipelines; the trace id opens one.",
            '{ span.pipeline.name =~ "$pipeline" && resource.host.name =~ "$host" }',
            width=8,
        ),
    ],
)

BOARD = Board(
    "benchlab-pipeline",
    "benchlab-otel / Pipeline",
    "Latency of frames, stages and pairs of marks; losses; jitter.",
    [FRAMES, STAGES, MARKS, LOST],
    [PIPELINE, STAGE, FROM, TO],
)
