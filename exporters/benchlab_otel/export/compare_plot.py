"""Comparisons as a picture: each figure's relative change with its 95 % interval. Needs matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import median

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchlab_otel.export.compare import Change, Comparison
from benchlab_otel.export.output import replacing

SUFFIXES = (".png", ".svg")
CHANGED, UNCHANGED = "#c0392b", "#7f8c8d"


def write(path: Path, comparisons: Sequence[Comparison]) -> None:
    """Draws each comparison below the other. Raises ValueError where nothing has a relative change."""
    drawn = [(c, [x for x in c.changes if x.relative is not None]) for c in comparisons]
    drawn = [(c, changes) for c, changes in drawn if changes]
    if not drawn:
        raise ValueError("no figure has a relative change to draw")
    heights = [0.22 * len(changes) + 0.9 for _, changes in drawn]
    with rc_context({"text.parse_math": False}), replacing(path) as out:  # names may have dollars
        figure = Figure(figsize=(9, sum(heights)), layout="constrained")
        grid = figure.subplots(len(drawn), 1, squeeze=False, height_ratios=heights)
        for axes, (comparison, changes) in zip(grid[:, 0], drawn, strict=True):
            _draw(axes, comparison, changes)
        figure.savefig(out, format=path.suffix[1:], dpi=150)


def _draw(axes: Axes, comparison: Comparison, changes: Sequence[Change]) -> None:
    simulated = " (SIMULATED)" if comparison.simulated else ""
    axes.set_title(
        f"{comparison.pipeline}: {comparison.after} against {comparison.before}{simulated}", size=10
    )
    for row, change in enumerate(changes):
        half = 100 * (change.relative_uncertainty or 0.0)
        colour = CHANGED if change.changed else UNCHANGED
        axes.errorbar(100 * (change.relative or 0.0), row, xerr=half, fmt="o", ms=4, color=colour, capsize=2)
    axes.axvline(0, color="black", lw=0.8)
    edge = reach(changes)
    axes.set_xlim(-edge, edge)
    axes.set_yticks(range(len(changes)), [c.figure for c in changes], size=8)
    axes.invert_yaxis()
    axes.set_xlabel("change, % ± 95 % (red: beyond chance; wider intervals leave the picture)", size=8)
    axes.tick_params(axis="x", labelsize=8)
    axes.grid(axis="x", alpha=0.3)


def reach(changes: Sequence[Change]) -> float:
    """Half the axis, %: all that changed, but a figure of which nothing is known squeezes no other."""
    ends = [(100 * (abs(c.relative or 0.0) + (c.relative_uncertainty or 0.0)), c.changed) for c in changes]
    return 1.05 * max(3 * median(end for end, _ in ends), 1.0, *(end for end, changed in ends if changed))
