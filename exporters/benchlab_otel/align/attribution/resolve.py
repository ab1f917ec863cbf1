"""Which stages the readings can tell apart, and why not where they can't.

No figure is given for what can't be resolved: stages never seen apart are one group, a stage that
is always active belongs to the base, and too little data says how much more would do.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from benchlab_otel.align.attribution.design import Design, Pieces
from benchlab_otel.align.attribution.fit import fit
from benchlab_otel.align.attribution.gls import Fit, Variances
from benchlab_otel.align.attribution.matrix import used_columns
from benchlab_otel.model import Bool, Float, Int

_HOPELESS = 30.0  # times as much data as there is: more than that is a matter of structure
_SINGULAR = 1e-9
_ALWAYS = 0.99  # share of the time
TOO_LITTLE = 0.01  # of it
BASE = -1


@dataclass(slots=True)
class Resolution:
    """`column` (stages,): the model's column of each stage, stages of a group share one, `BASE` where
    it merged with the base; `reason` (stages,): why there is no figure, "" where there is one. `lost`
    (stages,): those that ran too little to show, so that the base may not have their power either."""

    column: Int
    reason: list[str]
    lost: Bool


def resolve(
    design: Design, names: list[str], start: Variances | None, most_rows: int
) -> tuple[Design, Fit, Resolution]:
    """Fits, and merges stages until all that is left can be told apart (or needs more data only)."""
    stages, share = design.pieces.stages, design.active.mean(axis=0)
    column, reason = np.arange(stages), [""] * stages
    seen = np.bincount(design.pieces.stage[used_columns(design.overlap)], minlength=stages) > 0
    for s in np.flatnonzero(~seen):
        column[s], reason[s] = BASE, "never active while the meter was read"
    while True:
        used = np.unique(column[column >= 0])
        column = np.where(column >= 0, np.searchsorted(used, column), BASE)
        model = regrouped(design, column, len(used))
        direction = _blind_direction(model.contrast)
        if direction is None:
            break
        _merge(direction, column, reason, names, share)
    begun = start if start is not None and len(start.stage) == len(used) else None
    while True:
        found = fit(model, begun, most_rows)
        direction = _unsure_direction(model, found)
        if direction is None:
            break
        _merge(direction, column, reason, names, share)
        used = np.unique(column[column >= 0])
        column = np.where(column >= 0, np.searchsorted(used, column), BASE)
        model, begun = regrouped(design, column, len(used)), None
    for c, words in _needs_more(model, found).items():
        for s in np.flatnonzero(column == c):
            reason[s] = reason[s] or words
    lost = (column == BASE) & (share < TOO_LITTLE)
    return model, found, Resolution(column, reason, lost)


def regrouped(design: Design, column: Int, columns: int) -> Design:
    """The same rows with the stages' pieces in other columns; those of `BASE` are left out."""
    stage = column[design.pieces.stage]
    if columns == design.pieces.stages and np.array_equal(stage, design.pieces.stage):
        return design
    active, contrast = np.zeros((len(design.rows), columns)), np.zeros((len(design.rows) - 1, columns))
    for s in np.flatnonzero(column >= 0):
        active[:, column[s]] += design.active[:, s]
        contrast[:, column[s]] += design.contrast[:, s]
    keep = stage >= 0
    if keep.all():
        pieces = replace(design.pieces, stage=stage, stages=columns)
        return replace(design, pieces=pieces, active=active, contrast=contrast)
    kept = np.flatnonzero(keep)
    return replace(
        design,
        pieces=Pieces(design.pieces.begin[kept], design.pieces.end[kept], stage[kept], columns),
        overlap=design.overlap[:, kept],
        parts=design.parts[:, kept],
        active=active,
        contrast=contrast,
    )


def limits(design: Design, found: Fit) -> Float:
    """The half width of each column's watts above which it is no figure: it could be zero, and is
    not small beside the mean power either."""
    mean = float(np.mean(np.abs(design.rows.value))) or 1.0
    return np.maximum(np.abs(found.watts), mean / 4)


def _excess(design: Design, found: Fit) -> Float:
    """How many times as much data each column's watts would need."""
    half = 1.96 * np.sqrt(np.maximum(np.diag(found.covariance), 0.0))
    excess: Float = (half / limits(design, found)) ** 2
    return excess


def _blind_direction(contrast: Float) -> Float | None:
    """A mixture of columns that the differences don't show at all."""
    if contrast.shape[1] == 0:
        return None
    norm = np.sqrt(np.mean(contrast**2, axis=0))
    silent = norm < 1e-6
    if silent.any():
        return np.eye(len(norm))[np.flatnonzero(silent)[0]]
    scaled = contrast / norm
    values, vectors = np.linalg.eigh(scaled.T @ scaled / len(contrast))
    return vectors[:, 0] / norm if values[0] < _SINGULAR * values[-1] else None


def _unsure_direction(design: Design, found: Fit) -> Float | None:
    """The mixture of columns that is least certain, when more data of this kind would not settle it."""
    if not len(found.watts) or _excess(design, found).max() <= _HOPELESS:
        return None
    scale = np.sqrt(np.diag(found.covariance))
    values, vectors = np.linalg.eigh(found.covariance)
    direction = vectors[:, -1]
    return np.where(np.abs(direction) * np.sqrt(values[-1]) > 0.3 * scale, direction, 0.0)


def _merge(direction: Float, column: Int, reason: list[str], names: list[str], share: Float) -> None:
    """Groups the columns that trade watts with each other, or gives those that the base mirrors to it;
    `share` (stages,) of the readings' time is each stage's."""
    size = np.abs(direction)
    involved = np.flatnonzero(size > 0.1 * size.max())
    trading = len(involved) > 1 and (direction[involved] > 0).any() and (direction[involved] < 0).any()
    stages = np.flatnonzero(np.isin(column, involved))
    said = ", ".join(names[s] for s in stages)
    if trading:
        for s in stages:
            column[s], reason[s] = involved[0], f"never seen apart: {said}; one figure for the group"
        return
    for s in stages:
        reason[s] = (
            f"{_unseen(float(share[stages].sum()))}: {said}; part of the base"
            if len(involved) == 1
            else f"one of {said} is always active: part of the base"
        )
        column[s] = BASE


def _unseen(share: float) -> str:
    """Why what takes this share of the time can't be told from the base."""
    if share > _ALWAYS:
        return "always active while the meter was read"
    if share < TOO_LITTLE:
        return "takes too little time to show in the readings"
    return "active for the same part of each reading"


def _needs_more(design: Design, found: Fit) -> dict[int, str]:
    """What to tell of each column whose watts are no figure yet."""
    if not len(found.watts):
        return {}
    length = float(design.rows.hi[-1] - design.rows.lo[0])
    excess = _excess(design, found)
    return {
        int(c): f"too little data: about {length * (excess[c] - 1):.0f} s more of this kind are needed"
        for c in np.flatnonzero(excess > 1.0)
    }
