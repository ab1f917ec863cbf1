"""What all dashboards have in common: variables, links, time, and numbered panels in rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from grafana_foundation_sdk.builders import dashboard
from grafana_foundation_sdk.models import dashboard as models

from benchlab_dashboards import panels
from benchlab_dashboards.colours import VERMILLION
from benchlab_dashboards.promql import scoped
from benchlab_otel import contract

TAG = "benchlab-otel"
ALL = models.VariableOption(selected=True, text="All", value="$__all")


@dataclass(frozen=True)
class Row:
    """A heading and the panels below it, side by side until 24 columns are full."""

    title: str
    panels: Sequence[Any]


@dataclass(frozen=True)
class Board:
    """A dashboard; `variables` follow the common ones. With a pipeline variable, links go to its frames."""

    uid: str
    title: str
    description: str
    rows: Sequence[Row]
    variables: Sequence[dashboard.QueryVariable] = field(default=())
    span: str = "now-15m"


def choice(
    name: str, label: str, query: str, all_value: str | None = ".*", description: str = ""
) -> dashboard.QueryVariable:
    """A variable whose values come from Prometheus; single where `all_value` is None."""
    variable = (
        dashboard.QueryVariable(name)
        .label(label)
        .description(description)
        .query(query)
        .datasource(panels.METRICS)
        .refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(models.VariableSort.ALPHABETICAL_ASC)
        .multi(all_value is not None)
        .include_all(all_value is not None)
    )
    return variable if all_value is None else variable.all_value(all_value).current(ALL)


DEVICE = choice("device", "Device", f"label_values({scoped(contract.COLLECT_SUCCESS)}, hw_id)")
PIPELINE = choice("pipeline", "Pipeline", f"label_values({scoped(contract.FRAMES)}, pipeline_name)")


def common_variables() -> list[Any]:
    """Data sources, then job, host and instance, each within the choice before it."""
    job, host = 'job=~"$job"', 'instance=~"$host/.*"'
    return [
        dashboard.DatasourceVariable("prometheus_datasource")
        .label("Prometheus data source")
        .type("prometheus"),
        dashboard.DatasourceVariable("tempo_datasource").label("Tempo data source").type("tempo"),
        choice("job", "Job", "label_values(target_info, job)", ".+"),
        choice("host", "Host", f"label_values(target_info{{{job}}}, host_name)"),
        choice("instance", "Instance", f"label_values(target_info{{{job},{host}}}, instance)", ".+"),
    ]


def build(board: Board) -> models.Dashboard:
    """The dashboard as Grafana's model: panels numbered and laid out, each with a link to the traces."""
    builder = (
        dashboard.Dashboard(board.title)
        .uid(board.uid)
        .description(board.description)
        .tags([TAG])
        .readonly()  # files are the source: what is changed in the browser would be lost
        .timezone("browser")
        .refresh("10s")
        .time(board.span, "now")
        .tooltip(models.DashboardCursorSync.CROSSHAIR)
        .link(_to_the_others())
        .annotation(_alerts())
    )
    for variable in [*common_variables(), *board.variables]:
        builder = builder.with_variable(variable)
    for row in board.rows:
        builder = builder.with_row(dashboard.Row(row.title))
        for panel in row.panels:
            builder = builder.with_panel(panel)
    built = builder.build()
    frames = panels.FRAMES if PIPELINE in board.variables else panels.ALL_FRAMES
    for number, panel in enumerate(built.panels or [], 1):
        panel.id_val = number
        if isinstance(panel, models.Panel):
            panel.links = [panels.link("Frames at this time", panels.explore_traces(frames)).build()]
    return built


def _to_the_others() -> dashboard.DashboardLink:
    link = dashboard.DashboardLink("Dashboards").type(models.DashboardLinkType.DASHBOARDS)
    return link.tags([TAG]).as_dropdown(True).include_vars(True).keep_time(True)


def _alerts() -> dashboard.AnnotationQuery:
    """Marks on every panel where an alert of prometheus/rules began to fire."""
    return (
        dashboard.AnnotationQuery()
        .name("Firing alerts")
        .datasource(panels.METRICS)
        .enable(True)
        .icon_color(VERMILLION)
        .expr('ALERTS{alertstate="firing"}')
    )
