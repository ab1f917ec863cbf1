"""A stretch of a session as a picture: the meter's readings, what they were attributed to, the stages at
work, and each frame's joules with their intervals.

`stretch` gathers the plain data of one domain, `write` draws them as PNG or SVG. Needs matplotlib (the
extra `plot`). Times are seconds from the begin of the session's first frame. Colours are those of
Okabe and Ito, which people who see few colours tell apart too.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from benchlab_otel.align.attribution.attribute import Attribution, PipelineEnergy
from benchlab_otel.align.attribution.conserve import even_split
from benchlab_otel.export.output import replacing
from benchlab_otel.export.recording import Recording, of_run
from benchlab_otel.model import Float, FrameEnergy, Int, Readings, Run

SUFFIXES = (".png", ".svg")
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442")
BASE_COLOUR, INK, FAINT = "#C9CDD1", "#1B1F23", "#8B949E"
HATCHES = ("", "////", "....")  # once the colours are used up
MOST_LANES = 4  # frames of one stage beside each other


class NothingToDraw(ValueError):
    """No such domain, or no frame in the stretch; the message says what there is."""


@dataclass(slots=True)
class Track:
    """One stage's m visits in the stretch: `begin`, `end` (m,) s, `watts` (m,) above base, NaN where the
    readings can't tell."""

    name: str
    begin: Float
    end: Float
    watts: Float


@dataclass(slots=True)
class Intervals:
    """Joules (n,) of n frames in flight, at the middles (n,) s of the frames, ± `half` (n,)."""

    at: Float
    joules: Float
    half: Float


@dataclass(slots=True)
class Stretch:
    """What is drawn. `readings`: begin, end (s) and mean power (W) of what each reading averages over;
    `base`: (times (k,) s, W) or None without attribution, for which `reason` says why."""

    title: str
    begin: float
    end: float
    readings: tuple[Float, Float, Float]
    tracks: list[Track]
    base: tuple[Float, Float] | None
    conditioned: Intervals | None
    interpolated: Intervals | None
    simulated: list[str]
    reason: str


def stretch(
    recording: Recording, domain: str | None = None, begin: float | None = None, end: float | None = None
) -> Stretch:
    """The data between two times (s), or of a second in the middle, for one domain (default: `system`,
    else the first that was attributed). Raises NothingToDraw."""
    runs = [run for run in recording.runs if len(run.frames)]
    if not runs:
        raise NothingToDraw("no frame in the session")
    found = _chosen(recording.attributions, domain)
    series = next(r for r in runs[0].readings if (r.meter, r.domain) == (found.meter, found.domain))
    origin = min(int(run.frames.begin.min()) for run in runs)
    last = (max(int(run.frames.end.max()) for run in runs) - origin) / 1e9
    first, until = _limits(begin, end, last)
    told = [
        (run, energy)
        for i, run in enumerate(recording.runs)
        for a, energy in of_run(recording, i)
        if a is found
    ]
    tracks = [track for run, energy in told for track in _tracks(run, energy, len(told) > 1, origin)]
    visible = [t for track in tracks if len((t := _within(track, first, until)).begin)]
    conditioned = _intervals(told, found, "conditioned", origin, first, until)
    interpolated = _intervals(told, found, "interpolated", origin, first, until)
    if not visible and conditioned is None and interpolated is None:
        raise NothingToDraw(f"no frame between {first:g} and {until:g} s; the last one ends at {last:.3f} s")
    return Stretch(
        title=f"{', '.join(run.frames.pipeline for run, _ in told)}: {found.domain} of {found.meter}",
        begin=first,
        end=until,
        readings=_readings(series, found, origin, first, until),
        tracks=visible,
        base=None if found.reason else _base(told, found, origin),
        conditioned=conditioned,
        interpolated=interpolated,
        simulated=_simulated(told, series),
        reason=found.reason,
    )


def _chosen(attributions: Sequence[Attribution], domain: str | None) -> Attribution:
    if not attributions:
        raise NothingToDraw("the session has no reading of a power or energy meter")
    if domain is None:
        system = [a for a in attributions if a.domain == "system" and not a.reason]
        return (system or [a for a in attributions if not a.reason] or list(attributions))[0]
    named = [a for a in attributions if a.domain == domain]
    if not named:
        there = ", ".join(dict.fromkeys(a.domain for a in attributions))
        raise NothingToDraw(f"no domain {domain!r} in the session; it has {there}")
    return named[0]


def _limits(begin: float | None, end: float | None, last: float) -> tuple[float, float]:
    """A second in the middle, where nothing else was asked for."""
    if begin is None and end is None:
        first = round(max(0.0, last / 2 - 0.5), 1)
        return first, min(first + 1.0, max(last, 1e-3))
    first = begin if begin is not None else max(0.0, (end or 0.0) - 1.0)
    until = end if end is not None else first + 1.0
    if until <= first:
        raise NothingToDraw(f"the stretch ends at {until:g} s, before it begins at {first:g} s")
    return first, until


def _seconds(time: Int, origin: int) -> Float:
    return (time - origin) / 1e9


def _tracks(run: Run, energy: PipelineEnergy, several: bool, origin: int) -> list[Track]:
    """Each stage's visits; what a frame's stages took together and none of them alone is spread evenly."""
    frames = run.frames
    begin, end = _seconds(frames.stage_begin, origin), _seconds(frames.stage_end, origin)
    joules, length = energy.stage, end - begin
    blind = np.isnan(joules)
    n = len(frames)
    known = np.bincount(frames.stage_frame, np.where(blind, 0.0, joules), n)
    hidden = np.bincount(frames.stage_frame, np.where(blind, length, 0.0), n)
    together = np.divide(energy.own - known, hidden, out=np.full(n, np.nan), where=hidden > 0)
    alone = np.divide(joules, length, out=np.zeros(len(joules)), where=length > 0)
    watts = np.where(blind, together[frames.stage_frame], alone)
    prefix = f"{frames.pipeline} " if several else ""
    return [
        Track(prefix + name, begin[mine], end[mine], watts[mine])
        for k, name in enumerate(frames.stage_names)
        if (mine := frames.stage == k).any()
    ]


def _within(track: Track, first: float, until: float) -> Track:
    rows = (track.end > first) & (track.begin < until)
    return Track(track.name, track.begin[rows], track.end[rows], track.watts[rows])


def _base(
    told: Sequence[tuple[Run, PipelineEnergy]], found: Attribution, origin: int
) -> tuple[Float, Float] | None:
    """The base at each frame: its share of it over the seconds that it shares, all pipelines together; NaN
    where the meter did not cover the frame."""
    begin = np.concatenate([_seconds(run.frames.begin, origin) for run, _ in told])
    end = np.concatenate([_seconds(run.frames.end, origin) for run, _ in told])
    joules = np.concatenate([energy.shared - energy.own for _, energy in told])
    split = even_split(begin, end)
    seconds = split(end) - split(begin)
    lasting = seconds > 0
    if not np.isfinite(joules[lasting]).any():
        return None
    order = np.argsort((begin + end)[lasting], kind="stable")
    watts = (joules[lasting] / seconds[lasting])[order]
    return ((begin + end)[lasting] / 2)[order], watts


def _intervals(
    told: Sequence[tuple[Run, PipelineEnergy]],
    found: Attribution,
    method: str,
    origin: int,
    first: float,
    until: float,
) -> Intervals | None:
    """The frames' joules by one method, of all pipelines."""

    def mine(run: Run) -> FrameEnergy | None:
        named = (
            e for e in run.energy if (e.meter, e.domain, e.method) == (found.meter, found.domain, method)
        )
        return next(named, None)

    parts = [(run.frames, e) for run, _ in told if (e := mine(run))]
    if not parts:
        return None
    at = np.concatenate([_seconds((f.begin + f.end) // 2, origin) for f, _ in parts])
    joules, half = (
        np.concatenate([getattr(e, name) for _, e in parts]) for name in ("energy", "uncertainty")
    )
    rows = (at >= first) & (at <= until) & np.isfinite(joules)
    return Intervals(at[rows], joules[rows], half[rows]) if rows.any() else None


def _readings(
    series: Readings, found: Attribution, origin: int, first: float, until: float
) -> tuple[Float, Float, Float]:
    time = _seconds(series.time, origin) - found.kernel.lag_s
    if series.kind == "energy":
        begin, end = time[:-1], time[1:]
        watts = np.divide(
            np.diff(series.value), end - begin, out=np.full(len(begin), np.nan), where=end > begin
        )
        watts[watts < 0] = np.nan  # wrapped, or began again
    else:
        begin, end, watts = time - found.kernel.width_s, time, series.value
    rows = (end >= first) & (begin <= until) & np.isfinite(watts)
    return begin[rows], end[rows], watts[rows]


def _simulated(told: Sequence[tuple[Run, PipelineEnergy]], series: Readings) -> list[str]:
    named = [f"pipeline {run.frames.pipeline}" for run, _ in told if run.frames.simulated]
    return [*named, f"meter {series.meter}"] if series.simulated else named


# -- the picture ------------------------------------------------------------------------------


def write(path: Path, data: Stretch) -> None:
    """Draws to a .png or .svg file; nothing is left at `path` when it fails. Raises OSError."""
    style: Any = {
        "svg.hashsalt": "benchlab-otel",  # the same data give the same file
        "svg.fonttype": "none",
        "text.parse_math": False,  # names may have dollars
        "font.size": 9,
        "axes.edgecolor": FAINT,
        "axes.labelcolor": INK,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "xtick.color": INK,
        "ytick.color": INK,
    }
    with rc_context(style), replacing(path) as out:
        metadata = {"Date": None} if path.suffix == ".svg" else {}
        _figure(data).savefig(out, format=path.suffix[1:], metadata=metadata)


def _figure(data: Stretch) -> Figure:
    figure = Figure(figsize=(12, 8), dpi=150, layout="constrained")
    tracks = 0.35 + 0.3 * len(data.tracks)
    power, stages, joules = figure.subplots(3, 1, sharex=True, height_ratios=(4.2, tracks, 2.2), squeeze=True)
    _draw_power(power, data)
    _draw_tracks(stages, data.tracks)
    _draw_joules(joules, data)
    joules.set_xlabel("Time since the first frame began (s)")
    joules.set_xlim(data.begin, data.end)
    power.set_title(data.title, loc="left", pad=22, fontsize=11, fontweight="bold", color=INK)
    if data.simulated:
        words = f"SIMULATED: {', '.join(data.simulated)}"
        power.set_title(words, loc="right", pad=22, fontsize=9, fontweight="bold", color="#A40000")
    for axes in (power, joules):
        axes.grid(axis="y", color=FAINT, alpha=0.25, linewidth=0.6)
        axes.set_axisbelow(True)
    return figure


def _looks(k: int) -> dict[str, Any]:
    """Colour and hatch of the k-th track."""
    hatch = HATCHES[k // len(COLOURS) % len(HATCHES)]
    return {"facecolor": COLOURS[k % len(COLOURS)], "hatch": hatch, "snap": False}  # as wide as it lasted


def _draw_power(axes: Axes, data: Stretch) -> None:
    """Base and stages stacked, and over them the readings as long as what they average over."""
    axes.set_ylabel("Power (W)")
    if data.base is not None:
        edges = _edges(data)
        middle = (edges[1:] + edges[:-1]) / 2
        floor = np.interp(middle, *data.base)
        axes.stairs(floor, edges, fill=True, facecolor=BASE_COLOUR, linewidth=0, label="base", snap=False)
        for k, track in enumerate(data.tracks):
            top = floor + _level(track, middle)
            axes.stairs(top, edges, baseline=floor, fill=True, linewidth=0, label=track.name, **_looks(k))
            floor = top
    else:
        words = textwrap.fill(f"Nothing attributed: {data.reason}", 90)
        axes.text(0.5, 0.5, words, transform=axes.transAxes, ha="center", color=FAINT)
    begin, end, watts = data.readings
    halo = [withStroke(linewidth=3.2, foreground="white")]
    if len(watts) and float(np.max(end - begin)) > 0:
        label = "reading of the meter, over the time that it averages"
        axes.hlines(watts, begin, end, colors=INK, linewidth=1.6, label=label, path_effects=halo)
    else:
        label = "reading of the meter"
        axes.plot(end, watts, "o", markersize=3, color=INK, label=label, path_effects=halo)
    low, high = axes.get_ylim()
    low = min(0.0, low)
    axes.set_ylim(low, high + 0.03 * (high - low))  # readings that are all alike lie at the top
    _legend(axes, 8)


def _legend(axes: Axes, columns: int) -> None:
    """Above the data, never on them."""
    axes.legend(
        loc="lower left",
        bbox_to_anchor=(0.0, 1.0),
        ncols=columns,
        frameon=False,
        fontsize=8,
        borderaxespad=0.1,
        handlelength=1.4,
    )


def _edges(data: Stretch) -> Float:
    """Where the attributed power changes, and a grid on which the base is followed."""
    changes = [t for track in data.tracks for t in (track.begin, track.end)]
    grid = np.linspace(data.begin, data.end, 201)
    return np.unique(np.clip(np.concatenate([grid, *changes]), data.begin, data.end))


def _level(track: Track, at: Float) -> Float:
    """The stage's power (W) at times (k,), all its visits at once."""
    times = np.concatenate([track.begin, track.end])
    steps = np.concatenate([np.nan_to_num(track.watts), -np.nan_to_num(track.watts)])
    order = np.argsort(times, kind="stable")
    sums = np.append(0.0, np.cumsum(steps[order]))
    return sums[np.searchsorted(times[order], at, side="right")]


def _draw_tracks(axes: Axes, tracks: Sequence[Track]) -> None:
    """A row a stage; frames that overlap within it lie beside each other."""
    for k, track in enumerate(tracks):
        lane, colour = _lanes(track), COLOURS[k % len(COLOURS)]
        height = 0.76 / (int(lane.max()) + 1)
        for n in range(int(lane.max()) + 1):
            bars = list(zip(track.begin[lane == n], (track.end - track.begin)[lane == n], strict=True))
            looks = _looks(k) | {"edgecolor": colour, "linewidth": 0.6}  # without it a short one is not seen
            axes.broken_barh(bars, (k - 0.38 + n * height, height * 0.92), **looks)
    axes.set_yticks(range(len(tracks)), [track.name for track in tracks])
    axes.set_ylim(len(tracks) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.set_ylabel("Stages", labelpad=8)


def _lanes(track: Track) -> Int:
    """The first free lane for each visit (m,)."""
    free = [-np.inf] * MOST_LANES
    lane = np.zeros(len(track.begin), np.int64)
    for i in np.argsort(track.begin, kind="stable"):
        open_lanes = [n for n in range(MOST_LANES) if free[n] <= track.begin[i]]
        lane[i] = open_lanes[0] if open_lanes else int(np.argmin(free))
        free[lane[i]] = float(track.end[i])
    return lane


def _draw_joules(axes: Axes, data: Stretch) -> None:
    """Each frame by both methods; the scale is that of the conditioned figures and of the points."""
    axes.set_ylabel("Energy while\nin flight (J)")
    tops = [0.0]
    for found, name, colour, marker in (
        (data.interpolated, "interpolated ± 95 %", FAINT, "o"),
        (data.conditioned, "conditioned ± 95 %", INK, "D"),
    ):
        if found is None:
            continue
        main = name.startswith("conditioned")
        half = np.nan_to_num(found.half)
        axes.errorbar(
            found.at,
            found.joules,
            yerr=half,
            linestyle="",
            marker=marker,
            markersize=3.5 if main else 4,
            markerfacecolor=colour if main else "white",
            color=colour,
            elinewidth=1.2 if main else 0.5,
            alpha=1.0 if main else 0.6,
            label=name,
        )
        tops.append(float(np.max(found.joules + (half if main or data.conditioned is None else 0))))
    axes.set_ylim(0, max(tops) * 1.08 or 1.0)
    if len(tops) > 1:
        _legend(axes, 2)
