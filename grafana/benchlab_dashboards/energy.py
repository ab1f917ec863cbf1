"""Energy: joules of frames and stages with their 95 % intervals, and how far they can be trusted."""

from __future__ import annotations

from benchlab_dashboards.board import DEVICE, PIPELINE, Board, Row, choice
from benchlab_dashboards.colours import GREEN, GREY, ORANGE, PERCENTILES, SKY
from benchlab_dashboards.panels import Query, band, heat, lines, rows
from benchlab_dashboards.promql import buckets, mean, quantile, series
from benchlab_otel import contract
from benchlab_otel.contract import Metric

NO_ENERGY = "no energy: no meter, no frames, or too few readings yet"
DOMAIN = choice(
    "domain",
    "Domain",
    f"label_values({series(contract.BASE_POWER)}, domain)",
    None,
    "The part of the machine whose energy is shown.",
)
STAGE = choice("stage", "Stage", f"label_values({series(contract.STAGE_POWER)}, pipeline_stage)")
PART = 'domain="$domain"'
CONDITIONED = (PART, 'method="conditioned"')
CHOSEN = (PART, 'pipeline_stage=~"$stage"')
SEVERAL = "With several meters, pipelines or hosts chosen: their mean."


def average(metric: Metric, *matchers: str) -> str:
    """One figure of what is chosen."""
    return f"avg({series(metric, *matchers)})"


METHODS = mean(contract.FRAME_ENERGY, PART, by="method")

FRAME = Row(
    "A frame",
    [
        band(
            "Joules a frame",
            "Mean energy of the domain while a frame was in flight, conditioned on the stages,"
            f" and how well a single frame's is known (95 %). {SEVERAL}",
            "joule",
            mean(contract.FRAME_ENERGY, *CONDITIONED),
            average(contract.FRAME_ENERGY_UNCERTAINTY, PART),
            width=8,
            absent=NO_ENERGY,
        ),
        lines(
            "From frame to frame",
            "How the frames' energies differ. Exemplars lead to traces.",
            "joule",
            Query(quantile(0.5, contract.FRAME_ENERGY, *CONDITIONED), "p50"),
            Query(quantile(0.95, contract.FRAME_ENERGY, *CONDITIONED), "p95"),
            Query(quantile(0.99, contract.FRAME_ENERGY, *CONDITIONED), "p99", exemplar=True),
            styles=PERCENTILES,
            absent=NO_ENERGY,
        ),
        heat(
            "Energy of all frames",
            "How many frames took how much.",
            "joule",
            buckets(contract.FRAME_ENERGY, *CONDITIONED),
            width=8,
            absent=NO_ENERGY,
        ),
        lines(
            "Frames a joule",
            "Efficiency: frames per joule that the domain used while one was in flight.",
            "none",
            Query(f"1 / ({mean(contract.FRAME_ENERGY, *CONDITIONED)})", "frames a joule"),
            styles={"frames a joule": GREEN},
            width=12,
            absent=NO_ENERGY,
        ),
        lines(
            "Conditioned and interpolated",
            "The same mean by both methods: conditioned on the stages, and as"
            " straight lines between readings, which a slow meter bends.",
            "joule",
            Query(METHODS, "{{method}}"),
            styles={"conditioned": SKY, "interpolated": ORANGE},
            width=12,
            absent=NO_ENERGY,
        ),
    ],
)

WATTS = Row(
    "Watts a stage",
    [
        band(
            "Watts of $stage",
            f"What the stage draws above base while it is active, and its 95 % interval. {SEVERAL}",
            "watt",
            average(contract.STAGE_POWER, *CHOSEN),
            average(contract.STAGE_POWER_UNCERTAINTY, *CHOSEN),
            repeat="stage",
            least=None,
            absent=NO_ENERGY,
        ),
    ],
)

JOULES = Row(
    "Joules a stage",
    [
        band(
            "Joules of $stage",
            f"Mean energy of the stage above base in a frame, and its 95 % interval. {SEVERAL}",
            "joule",
            average(contract.STAGE_ENERGY, *CHOSEN),
            average(contract.STAGE_ENERGY_UNCERTAINTY, *CHOSEN),
            repeat="stage",
            least=None,
            absent=NO_ENERGY,
        ),
    ],
)


def newest(metric: Metric) -> str:
    """One row for each pipeline and stage."""
    return f"avg by (pipeline_name, pipeline_stage) ({series(metric, *CHOSEN)})"


TABLE = Row(
    "All stages",
    [
        rows(
            "Stages of the domain",
            "The newest figures of all stages, each with its 95 % half width.",
            "none",
            {
                "watts": newest(contract.STAGE_POWER),
                "± watts": newest(contract.STAGE_POWER_UNCERTAINTY),
                "joules a frame": newest(contract.STAGE_ENERGY),
                "± joules": newest(contract.STAGE_ENERGY_UNCERTAINTY),
            },
            {"pipeline_name": "pipeline", "pipeline_stage": "stage"},
            {"watts": "watt", "± watts": "watt", "joules a frame": "joule", "± joules": "joule"},
            height=7,
            absent=NO_ENERGY,
        ),
    ],
)

TRUST = Row(
    "Base, conservation and self-check",
    [
        band(
            "Base",
            f"What the domain draws while no stage is active, and its 95 % interval. {SEVERAL}",
            "watt",
            average(contract.BASE_POWER, PART),
            average(contract.BASE_POWER_UNCERTAINTY, PART),
            absent=NO_ENERGY,
        ),
        band(
            "Conservation",
            "Measured energy less shares of frames and idle. Of a counter, or of a meter whose windows"
            " follow each other without gaps, it is the meter's noise and the interval holds 0. Of any"
            " other meter it tells by how much its readings, joined by lines, miss the energy.",
            "joule",
            average(contract.ENERGY_RESIDUAL, PART),
            average(contract.ENERGY_RESIDUAL_UNCERTAINTY, PART),
            least=None,
            absent=NO_ENERGY,
        ),
        lines(
            "Misses of predictions",
            "Each reading predicted from all the others: the mean miss, knowing the stages"
            " and without. Close together: the stages explain nothing.",
            "percentunit",
            Query(f"avg by (model) ({series(contract.PREDICTION_ERROR, PART)})", "{{model}}"),
            styles={"stages": SKY, "none": GREY},
            absent=NO_ENERGY,
        ),
        lines(
            "Predictions that held",
            "Share of readings within their prediction's 95 % interval: 0.95 is right, less is"
            " overconfident.",
            "percentunit",
            Query(average(contract.PREDICTION_COVERAGE, PART), "held"),
            Query("0.95", "should"),
            styles={"held": SKY, "should": GREY},
            width=12,
            least=0.8,
            most=1,
            absent=NO_ENERGY,
        ),
        lines(
            "The meter",
            "How late readings are, and the time they average over: configured or found from the"
            " pipeline's activity.",
            "s",
            Query(average(contract.METER_LAG_TIME, PART), "lag"),
            Query(average(contract.METER_WINDOW_TIME, PART), "window"),
            styles={"lag": SKY, "window": ORANGE},
            width=12,
            absent="neither configured nor found: configure lag_ms and window_ms",
        ),
    ],
)

BOARD = Board(
    "benchlab-energy",
    "benchlab-otel / Energy",
    "What frames and stages cost, how sure that is, and whether the energy is conserved.",
    [FRAME, WATTS, JOULES, TABLE, TRUST],
    [PIPELINE, DEVICE, DOMAIN, STAGE],
)
