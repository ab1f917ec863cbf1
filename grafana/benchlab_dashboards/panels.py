"""The kinds of panels: each has a title, description, unit, a text for no data, and a link to traces."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from string import ascii_uppercase
from typing import Any, TypeVar
from urllib.parse import quote

from grafana_foundation_sdk.builders import (
    bargauge,
    common,
    dashboard,
    heatmap,
    prometheus,
    stat,
    statetimeline,
    table,
    tempo,
    timeseries,
)
from grafana_foundation_sdk.models import common as kinds
from grafana_foundation_sdk.models import dashboard as models
from grafana_foundation_sdk.models import heatmap as heatmap_models
from grafana_foundation_sdk.models import prometheus as prometheus_models

from benchlab_dashboards.colours import BLUE, GREEN, SOLID, VERMILLION, Style

METRICS = models.DataSourceRef(type_val="prometheus", uid="${prometheus_datasource}")
TRACES = models.DataSourceRef(type_val="tempo", uid="${tempo_datasource}")
ABSENT = "no data"

Builder = Any  # the SDK's panel builders share their methods but no base class
B = TypeVar("B", bound=Any)


@dataclass(frozen=True)
class Query:
    """One query; `legend` as Grafana has it (`{{label}}`), exemplars only of histograms."""

    expr: str
    legend: str = "__auto"
    exemplar: bool = False
    instant: bool = False
    format: prometheus_models.PromQueryFormat = prometheus_models.PromQueryFormat.TIME_SERIES


def explore_traces(query: str) -> str:
    """The address of Grafana's Explore with a TraceQL query, over the dashboard's time.

    Everything is percent-encoded but Grafana's variables, which it fills in.
    """
    pane = {
        "datasource": "${tempo_datasource}",
        "queries": [
            {"refId": "A", "queryType": "traceql", "query": query, "limit": 50, "tableType": "traces"}
        ],
        "range": {"from": "${__from}", "to": "${__to}"},
    }
    text = json.dumps({"frames": pane}, separators=(",", ":"))
    return f"/explore?schemaVersion=1&orgId=1&panes={quote(text, safe='${}:._,()')}"


ALL_FRAMES = '{ span.pipeline.name != "" && resource.host.name =~ "${host:pipe}" }'
FRAMES = '{ span.pipeline.name =~ "${pipeline:pipe}" && resource.host.name =~ "${host:pipe}" }'


def link(title: str, url: str) -> dashboard.DashboardLink:
    """A link of a panel or of its points."""
    return dashboard.DashboardLink(title).type(models.DashboardLinkType.LINK).url(url).target_blank(True)


def _describe(
    panel: B, title: str, description: str, unit: str, queries: Iterable[Query], absent: str, **grid: int
) -> B:
    for letter, query in zip(ascii_uppercase, queries, strict=False):
        panel = panel.with_target(_target(query).ref_id(letter))
    return (
        panel.title(title)
        .description(description)
        .datasource(METRICS)
        .unit(unit)
        .no_value(absent)
        .span(grid["width"])
        .height(grid["height"])
    )


def _target(query: Query) -> prometheus.Dataquery:
    target = prometheus.Dataquery().expr(query.expr).legend_format(query.legend).datasource(METRICS)
    target = target.format(query.format)
    if query.exemplar:
        target = target.exemplar(True)
    return target.instant() if query.instant else target.range()


def _value(name: str, value: object) -> models.DynamicConfigValue:
    return models.DynamicConfigValue(id_val=name, value=value)


def _style(style: str | Style) -> list[models.DynamicConfigValue]:
    colour, dash = (style, SOLID) if isinstance(style, str) else style
    found = [_value("color", {"mode": "fixed", "fixedColor": colour})]
    if dash:
        found.append(_value("custom.lineStyle", {"fill": "dash", "dash": list(dash)}))
    return found


def _coloured(panel: B, styles: Mapping[str, str | Style]) -> B:
    """Fixed styles for the series whose names are, or end in, the keys."""
    for name, style in styles.items():
        panel = panel.override_by_regexp(f"/(^| ){name}$/", _style(style))
    return panel


def _repeated(panel: B, variable: str) -> B:
    """Once for each value of a variable, where one is named."""
    return panel.repeat(variable).repeat_direction("h").max_per_row(3) if variable else panel


def _newest() -> common.ReduceDataOptions:
    return common.ReduceDataOptions().calcs(["lastNotNull"]).values(False).fields("")


def lines(
    title: str,
    description: str,
    unit: str,
    *queries: Query,
    styles: Mapping[str, str | Style] | None = None,
    width: int = 8,
    height: int = 8,
    stacked: bool = False,
    points: dashboard.DashboardLink | None = None,
    least: float | None = 0,
    most: float | None = None,
    absent: str = ABSENT,
) -> timeseries.Panel:
    """Series over time. A gap stays a gap: nothing is drawn over readings that are absent."""
    panel = _describe(
        timeseries.Panel(), title, description, unit, queries, absent, width=width, height=height
    )
    panel = (
        panel.line_width(1)
        .fill_opacity(60 if stacked else 0)
        .show_points(kinds.VisibilityMode.AUTO)
        .span_nulls(False)
        .color_scheme(dashboard.FieldColor().mode(models.FieldColorModeId.PALETTE_CLASSIC_BY_NAME))
        .legend(
            common.VizLegendOptions()
            .display_mode(kinds.LegendDisplayMode.LIST)
            .placement(kinds.LegendPlacement.BOTTOM)
            .show_legend(True)
        )
        .tooltip(
            common.VizTooltipOptions().mode(kinds.TooltipDisplayMode.MULTI).sort(kinds.SortOrder.DESCENDING)
        )
    )
    if stacked:
        panel = panel.stacking(common.StackingConfig().mode(kinds.StackingMode.NORMAL).group("A"))
    if least is not None:
        panel = panel.axis_soft_min(least)
    if most is not None:
        panel = panel.axis_soft_max(most)
    if points is not None:
        panel = panel.data_links([points])
    return _coloured(panel, styles or {})


def band(
    title: str,
    description: str,
    unit: str,
    mean: str,
    half_width: str,
    width: int = 8,
    repeat: str = "",
    least: float | None = 0,
    absent: str = ABSENT,
) -> timeseries.Panel:
    """A figure with its 95 % interval, filled from `low` to `high`."""
    panel = lines(
        title,
        description,
        unit,
        Query(mean, "estimate"),
        Query(f"({mean}) - ({half_width})", "low"),
        Query(f"({mean}) + ({half_width})", "high"),
        styles={"estimate": BLUE},
        width=width,
        least=least,
        absent=absent,
    )
    edge = [*_style(BLUE), _value("custom.lineWidth", 0)]
    fill = [_value("custom.fillBelowTo", "low"), _value("custom.fillOpacity", 25)]
    panel = panel.override_by_name("low", edge).override_by_name("high", [*edge, *fill])
    return _repeated(panel, repeat)


def number(
    title: str,
    description: str,
    unit: str,
    query: Query,
    absent: str = ABSENT,
    bad_above: float | None = None,
) -> stat.Panel:
    """The newest value in large, with its course behind it; in vermillion above `bad_above`."""
    panel = _describe(stat.Panel(), title, description, unit, [query], absent, width=6, height=4)
    steps = [models.Threshold(value=None, color=GREEN if bad_above is not None else BLUE)]
    if bad_above is not None:
        steps.append(models.Threshold(value=bad_above, color=VERMILLION))
    return (
        panel.color_scheme(dashboard.FieldColor().mode(models.FieldColorModeId.THRESHOLDS))
        .thresholds(dashboard.ThresholdsConfig().mode(models.ThresholdsMode.ABSOLUTE).steps(steps))
        .graph_mode(kinds.BigValueGraphMode.AREA)
        .color_mode(kinds.BigValueColorMode.VALUE)
        .text_mode(kinds.BigValueTextMode.VALUE)
        .reduce_options(_newest())
    )


def heat(
    title: str,
    description: str,
    unit: str,
    query: str,
    width: int = 12,
    repeat: str = "",
    absent: str = ABSENT,
) -> heatmap.Panel:
    """How many observations fell into each bucket over time, with exemplars."""
    shape = prometheus_models.PromQueryFormat.HEATMAP
    queries = [Query(query, "{{le}}", exemplar=True, format=shape)]
    panel = _describe(heatmap.Panel(), title, description, unit, queries, absent, width=width, height=8)
    panel = (
        panel.calculate(False)
        .color(
            heatmap.HeatmapColorOptions()
            .mode(heatmap_models.HeatmapColorMode.SCHEME)
            .scheme("Viridis")
            .scale(heatmap_models.HeatmapColorScale.EXPONENTIAL)
            .exponent(0.5)
            .steps(64)
            .fill(BLUE)
        )
        .filter_values(heatmap.FilterValueRange().le(1e-9))
        .y_axis(heatmap.YAxisConfig().unit(unit).axis_placement(kinds.AxisPlacement.LEFT))
        .cell_gap(1)
        .show_legend()
        .show_y_histogram()
        .exemplars_color(VERMILLION)
    )
    return _repeated(panel, repeat)


def bars(
    title: str,
    description: str,
    unit: str,
    query: Query,
    styles: Mapping[str, str | Style] | None = None,
    width: int = 8,
    most: float | None = None,
    absent: str = ABSENT,
) -> bargauge.Panel:
    """The newest value of each series as a bar."""
    panel = _describe(bargauge.Panel(), title, description, unit, [query], absent, width=width, height=8)
    panel = (
        panel.orientation(kinds.VizOrientation.HORIZONTAL)
        .display_mode(kinds.BarGaugeDisplayMode.BASIC)
        .reduce_options(_newest())
        .color_scheme(dashboard.FieldColor().mode(models.FieldColorModeId.FIXED).fixed_color(BLUE))
        .min(0)
    )
    if most is not None:
        panel = panel.max(most)
    return _coloured(panel, {name: _hue(style) for name, style in (styles or {}).items()})


def _hue(style: str | Style) -> str:
    return style if isinstance(style, str) else style[0]


def states(
    title: str,
    description: str,
    query: Query,
    words: Mapping[int, tuple[str, str]],
    width: int = 12,
    absent: str = ABSENT,
) -> statetimeline.Panel:
    """Each series as a strip of states; `words` gives each value's (word, colour)."""
    panel = _describe(
        statetimeline.Panel(), title, description, "none", [query], absent, width=width, height=8
    )
    options = {
        str(value): models.ValueMappingResult(text=word, color=colour, index=i)
        for i, (value, (word, colour)) in enumerate(words.items())
    }
    return (
        panel.mappings([models.ValueMap(options=options)])
        .color_scheme(dashboard.FieldColor().mode(models.FieldColorModeId.THRESHOLDS))
        .show_value(kinds.VisibilityMode.AUTO)
        .row_height(0.8)
        .merge_values(True)
        .legend(common.VizLegendOptions().show_legend(False))
    )


def rows(
    title: str,
    description: str,
    unit: str,
    queries: Mapping[str, str],
    labels: Mapping[str, str],
    units: Mapping[str, str] | None = None,
    width: int = 24,
    height: int = 8,
    absent: str = ABSENT,
) -> table.Panel:
    """A table of the newest values: `labels` (label: heading) first, then a column for each query."""
    shape = prometheus_models.PromQueryFormat.TABLE
    asked = [Query(expr, instant=True, format=shape) for expr in queries.values()]
    panel = _describe(table.Panel(), title, description, unit, asked, absent, width=width, height=height)
    headings = {f"Value #{letter}": name for letter, name in zip(ascii_uppercase, queries, strict=False)}
    if len(queries) == 1:
        headings = {"Value": next(iter(queries))}
    renamed = {**labels, **headings}
    panel = panel.with_transformation(models.DataTransformerConfig(id_val="merge", options={}))
    panel = panel.with_transformation(
        models.DataTransformerConfig(
            id_val="organize",
            options={
                "includeByName": dict.fromkeys(renamed, True),
                "indexByName": {name: i for i, name in enumerate(renamed)},
                "renameByName": renamed,
            },
        )
    )
    for name, its_unit in (units or {}).items():
        panel = panel.override_by_name(name, [_value("unit", its_unit)])
    return panel


def traces(title: str, description: str, query: str, width: int) -> table.Panel:
    """The newest traces that a TraceQL query finds, each linked to the trace itself."""
    target = tempo.TempoQuery().query_type("traceql").query(query).limit(20).ref_id("A").datasource(TRACES)
    return (
        table.Panel()
        .title(title)
        .description(description)
        .datasource(TRACES)
        .with_target(target)
        .unit("none")
        .no_value("no traces: is Tempo the trace data source, and do frames reach it?")
        .span(width)
        .height(8)
    )
