"""Pictures of the dashboards as files have them: `python grafana/layout.py OUT [--prometheus URL] [--light]`.

Grafana can't always run where dashboards are written. Each panel is drawn on Grafana's grid of 24 columns
with its title; with a Prometheus, what its queries give is drawn in it, in the colours that it sets.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import time
import urllib.parse
import urllib.request
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from matplotlib.ticker import EngFormatter

COLUMN, LINE = 0.75, 0.42  # inches of a column and of a grid row
ALL = {"__rate_interval": "20s", "host": ".*", "job": ".+", "instance": ".+"}
UNITS = {"s": "s", "joule": "J", "watt": "W", "percentunit": "", "celsius": "°C", "amp": "A", "volt": "V"}
Series = tuple[str, dict[str, str], list[float], list[float]]


def get(url: str, what: str, **parameters: str | float) -> Any:
    """What Prometheus answers at /api/v1/WHAT."""
    with urllib.request.urlopen(f"{url}/api/v1/{what}?{urllib.parse.urlencode(parameters)}") as answer:  # noqa: S310
        return json.load(answer)["data"]


def chosen(dashboard: dict[str, Any], url: str | None) -> dict[str, str]:
    """Values of the dashboard's variables: all, or of single ones the first that there is."""
    values = dict(ALL)
    for variable in dashboard["templating"]["list"]:
        name = variable["name"]
        if variable["type"] != "query" or name in values:
            continue
        values[name] = variable.get("allValue") or ".*"
        if url and not variable["includeAll"]:
            match, label = re.fullmatch(r"label_values\((.*), (\w+)\)", variable["query"]).groups()  # type: ignore[union-attr]
            found = get(url, f"label/{label}/values", **{"match[]": filled_in(match, values)})
            preferred = [value for value in found if value == "system"]  # of domains, the whole
            values[name] = [*preferred, *found, ""][0]
    return values


def filled_in(text: str, values: dict[str, str]) -> str:
    """With values for the dashboard's variables."""
    return re.sub(r"\$(\w+)", lambda found: values.get(found[1], found[0]), text)


def ask(url: str, target: dict[str, Any], values: dict[str, str], seconds: float = 120) -> list[Series]:
    """(name, labels, times, values) of each series that a panel's query gives over the last seconds."""
    now = time.time()
    query = filled_in(target["expr"], values)
    series = []
    for one in get(url, "query_range", query=query, start=now - seconds, end=now, step=1)["result"]:
        points = [(float(t) - now, float(v)) for t, v in one["values"] if math.isfinite(float(v))]
        name = named(target["legendFormat"], one["metric"])
        series.append((name, one["metric"], [t for t, _ in points], [v for _, v in points]))
    return sorted(series, key=lambda one: one[0])


def named(legend: str, labels: dict[str, str]) -> str:
    """A series' name as Grafana makes it."""
    if legend == "__auto":
        return ",".join(labels.values()) or "value"
    return re.sub(r"{{(\w+)}}", lambda label: labels.get(label[1], ""), legend)


def style(panel: dict[str, Any], name: str) -> dict[str, Any]:
    """Colour and dash that the panel's overrides give a series."""
    found: dict[str, Any] = {}
    for override in panel["fieldConfig"]["overrides"]:
        matcher = override["matcher"]
        pattern = matcher["options"].strip("/") if matcher["id"] == "byRegexp" else f"^{matcher['options']}$"
        if re.search(pattern, name):
            for change in override["properties"]:
                if change["id"] == "color":
                    found["color"] = change["value"]["fixedColor"]
                if change["id"] == "custom.lineStyle":
                    found["dashes"] = [n / 2 for n in change["value"]["dash"]]
    return found


def draw_lines(axes: Axes, panel: dict[str, Any], series: list[Series]) -> None:
    """Time series; a filled band where the panel has one; stacked where it stacks."""
    custom = panel["fieldConfig"]["defaults"].get("custom", {})
    if custom.get("stacking", {}).get("mode") == "normal":
        grid = sorted({t for one in series for t in one[2]})
        at = [dict(zip(one[2], one[3], strict=True)) for one in series]
        layers = [[values.get(t, 0.0) for t in grid] for values in at]
        colours = [style(panel, one[0]).get("color") for one in series]
        axes.stackplot(grid, layers, colors=colours if all(colours) else None, labels=[s[0] for s in series])
    else:
        by_name = {one[0]: one for one in series}
        for name, _, times, values in series:
            axes.plot(times, values, lw=1.1, label=name, **style(panel, name))
        if "low" in by_name and "high" in by_name and len(by_name["low"][2]) == len(by_name["high"][2]):
            low, high = by_name["low"], by_name["high"]
            axes.fill_between(low[2], low[3], high[3], alpha=0.25, color=style(panel, "high").get("color"))
    if len(series) <= 14:
        axes.yaxis.set_major_formatter(EngFormatter(sep=""))
        axes.legend(fontsize=4.5, loc="upper left", ncols=3, framealpha=0.6)


def draw_states(axes: Axes, panel: dict[str, Any], series: list[Series]) -> None:
    """A strip for each series, in its states' colours."""
    words = panel["fieldConfig"]["defaults"]["mappings"][0]["options"]
    for row, (name, _, times, values) in enumerate(series):
        axes.scatter(
            times, [row] * len(times), c=[words[f"{v:g}"]["color"] for v in values], marker="s", s=14
        )
        axes.text(times[0], row + 0.12, name, fontsize=4.5)
    axes.set_ylim(-0.6, len(series) - 0.2)
    axes.set_yticks([])


def draw_value(axes: Axes, series: list[Series]) -> None:
    """The newest value in large."""
    axes.axis("off")
    axes.text(
        0.5, 0.4, f"{series[0][3][-1]:.4g}", fontsize=16, ha="center", va="center", transform=axes.transAxes
    )


def draw_bars(axes: Axes, panel: dict[str, Any], series: list[Series]) -> None:
    """The newest values as bars."""
    colours = [style(panel, one[0]).get("color", "#0072B2") for one in series]
    axes.barh([one[0] for one in series], [one[3][-1] for one in series], color=colours)
    axes.invert_yaxis()


def draw_heat(axes: Axes, series: list[Series]) -> None:
    """Buckets over time, those of a histogram made separate."""
    ordered = sorted(series, key=lambda one: float(one[1]["le"]))
    columns = min(len(one[3]) for one in ordered)
    totals = [one[3][-columns:] for one in ordered]
    cells = [totals[0], *([b - a for a, b in zip(*pair, strict=True)] for pair in pairwise(totals))]
    axes.pcolormesh([[math.sqrt(max(cell, 0)) for cell in row] for row in cells], cmap="viridis")
    axes.set_yticks(range(0, len(ordered), 4), [ordered[i][1]["le"] for i in range(0, len(ordered), 4)])


def draw_table(axes: Axes, series: list[Series]) -> None:
    """The newest values as text."""
    axes.axis("off")
    hidden = {"__name__", "job", "instance"}
    lines = [
        " · ".join(v for k, v in one[1].items() if k not in hidden) + f"  {one[3][-1]:.4g}" for one in series
    ]
    axes.text(0, 1, "\n".join(lines[:12]), fontsize=5.5, va="top", transform=axes.transAxes)


def draw_panel(axes: Axes, panel: dict[str, Any], url: str | None, values: dict[str, str]) -> None:
    """What the panel shows: its series, or what it says without."""
    asked = [target for target in panel["targets"] if "expr" in target] if url else []
    series = [one for target in asked for one in ask(str(url), target, values) if one[3]]
    axes.tick_params(labelsize=5, length=2)
    axes.grid(alpha=0.2)
    if not series:
        axes.axis("off")
        text = panel["fieldConfig"]["defaults"]["noValue"] if url else panel["type"]
        axes.text(
            0.5,
            0.5,
            text,
            fontsize=7,
            ha="center",
            va="center",
            alpha=0.7,
            wrap=True,
            transform=axes.transAxes,
        )
        return
    match panel["type"]:
        case "state-timeline":
            draw_states(axes, panel, series)
        case "timeseries":
            draw_lines(axes, panel, series)
            axes.set_ylabel(UNITS.get(panel["fieldConfig"]["defaults"]["unit"], ""), fontsize=5)
        case "stat":
            draw_value(axes, series)
        case "bargauge":
            draw_bars(axes, panel, series)
        case "heatmap":
            draw_heat(axes, series)
        case _:
            draw_table(axes, series)


def picture(dashboard: dict[str, Any], out: Path, url: str | None) -> None:
    """Draws one dashboard to a PNG file."""
    high = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in dashboard["panels"])
    figure = plt.figure(figsize=(24 * COLUMN, high * LINE))
    values = chosen(dashboard, url)
    for panel in dashboard["panels"]:
        place = panel["gridPos"]
        x, y = place["x"] / 24, 1 - (place["y"] + place["h"]) / high
        w, h = place["w"] / 24, place["h"] / high
        title = filled_in(panel["title"], values) + (
            f"  (repeats by {panel['repeat']})" if panel.get("repeat") else ""
        )
        if panel["type"] == "row":
            figure.text(x + 0.004, y + h / 3, title, fontsize=10, weight="bold")
            continue
        edge = Rectangle(
            (x + 0.001, y + 0.1 / high), w - 0.002, h - 0.2 / high, fill=False, lw=0.5, alpha=0.5
        )
        figure.add_artist(edge)
        figure.text(x + 0.005, y + h - 0.75 / high, title, fontsize=7.5, weight="bold")
        axes = figure.add_axes((x + 0.022, y + 0.7 / high, w - 0.03, h - 1.8 / high))
        draw_panel(axes, panel, url, values)
    figure.savefig(out, dpi=80)
    plt.close(figure)


def main() -> None:
    """Draws all dashboards."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("out", type=Path, help="folder for the pictures")
    arguments.add_argument("--prometheus", help="its address, such as http://localhost:9090")
    arguments.add_argument("--light", action="store_true", help="on white instead of dark")
    asked = arguments.parse_args()
    plt.style.use("default" if asked.light else "dark_background")
    asked.out.mkdir(parents=True, exist_ok=True)
    for file in sorted((Path(__file__).parent / "dashboards").glob("*.json")):
        picture(json.loads(file.read_text()), asked.out / f"{file.stem}.png", asked.prometheus)


if __name__ == "__main__":
    main()
