"""The linear model of the readings: stages' pieces, base as a random walk, noise.

    u = X W + A p̃ + Y B + N ε          readings as mean powers over windows (n,)
    z = D u = Z W + M v                 their differences (n − 1,), free of the base's level

p̃ (m,) is how far each piece is from its stage's watts W; the base B steps at the knots by η; ε are
the readings' own errors. D takes differences of neighbouring rows, which makes the covariance of a
random walk banded and leaves its unknown level out exactly (the error contrasts of Patterson &
Thompson, Biometrika 58, 1971).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from benchlab_otel.align.attribution.matrix import (
    Matrix,
    differences,
    farthest_rows,
    is_small,
    of_rows,
    only_columns,
    sums_by_group,
    to_dense,
    used_columns,
)
from benchlab_otel.align.attribution.overlap import cumulative, distinct, overlap, ragged
from benchlab_otel.align.attribution.windows import Windows, rows_between
from benchlab_otel.model import Float, Int


@dataclass(slots=True)
class Pieces:
    """m stretches of time, `begin` to `end` (m,) s, in which stage `stage` (m,) of `stages` was active."""

    begin: Float
    end: Float
    stage: Int
    stages: int

    def __len__(self) -> int:
        return len(self.begin)


@dataclass(slots=True)
class Design:
    """The matrices of the module's formulas for n rows; `knots` (j,) s where the base may step,
    `gaps` (j,) s the time since the knot before; `steps` is H (n − 1, j), `parts` DA, `errors` DN.

    `step_extra` (j,) W² and `error_extra` (e,) W² (J² of a counter) add to the prior variance of those
    steps and readings' errors that `tails` found to be shocks; else 0.
    """

    rows: Windows
    pieces: Pieces
    overlap: Matrix
    active: Float
    parts: Matrix
    knots: Float
    gaps: Float
    steps: Matrix
    errors: Matrix
    difference: Float  # z (n − 1,)
    contrast: Float  # Z (n − 1, stages)
    step_extra: Float
    error_extra: Float
    bandwidth: int

    @property
    def dense(self) -> bool:
        """Whether its matrices are plain arrays."""
        return isinstance(self.parts, np.ndarray)


def _bandwidth(*matrices: Matrix) -> int:
    """How far apart two differences can be and still share a piece, a knot or an error."""
    return max(1, *(farthest_rows(m) for m in matrices))


def build(rows: Windows, pieces: Pieces) -> Design:
    """The model of these rows (at least two, in order of time) and pieces (in any order)."""
    dense = is_small(len(rows), max(len(pieces), rows.noise.shape[1]))
    if dense:
        rows = replace(rows, noise=to_dense(rows.noise))
    a = overlap(rows.lo, rows.hi, pieces.begin, pieces.end, rows.tau, dense)
    active = sums_by_group(a, pieces.stage, pieces.stages)
    knots = distinct(rows.hi[:-1])
    parts, steps, errors = differences(a), _steps(rows, knots, dense), differences(rows.noise)
    return Design(
        rows=rows,
        pieces=pieces,
        overlap=a,
        active=active,
        parts=parts,
        knots=knots,
        gaps=np.diff(knots, prepend=knots[0] - rows.period),
        steps=steps,
        errors=errors,
        difference=np.diff(rows.value),
        contrast=np.diff(active, axis=0),
        step_extra=np.zeros(len(knots)),
        error_extra=np.zeros(rows.noise.shape[1]),
        bandwidth=_bandwidth(parts, steps, errors),
    )


def stage_totals(columns: Float, pieces: Pieces) -> Float:
    """The rows of `columns` (m, k) added up by stage: (k, stages)."""
    totals = [np.bincount(pieces.stage, column, pieces.stages) for column in columns.T]
    return np.array(totals, float).reshape(columns.shape[1], pieces.stages)


def _steps(rows: Windows, knots: Float, dense: bool) -> Matrix:
    """H: row k's base less row k − 1's is Σ (F_{k−1}(τ_j) − F_k(τ_j)) η_j, F as in `cumulative`."""
    lo, hi = np.minimum(rows.lo[1:], rows.lo[:-1]), np.maximum(rows.hi[1:], rows.hi[:-1])
    first, last = np.searchsorted(knots, lo, "left"), np.searchsorted(knots, hi, "left")
    row, knot = ragged(first, last)
    at = knots[knot]
    value = cumulative(at, rows.lo[row], rows.hi[row], rows.tau) - cumulative(
        at, rows.lo[row + 1], rows.hi[row + 1], rows.tau
    )
    return of_rows(value, knot, last - first, len(knots), dense)


def part_of(design: Design, first: int, last: int) -> Design:
    """The model of rows first … last − 1 alone."""
    rows = rows_between(design.rows, first, last)
    sources = used_columns(design.rows.noise[first:last])
    a = design.overlap[first:last]
    mine = used_columns(a)
    a = only_columns(a, mine)
    knots = distinct(rows.hi[:-1])
    steps = np.searchsorted(design.knots, knots)
    pieces = design.pieces
    return Design(
        rows=rows,
        pieces=Pieces(pieces.begin[mine], pieces.end[mine], pieces.stage[mine], pieces.stages),
        overlap=a,
        active=design.active[first:last],
        parts=differences(a),
        knots=knots,
        gaps=design.gaps[steps],
        steps=_steps(rows, knots, design.dense),
        errors=differences(rows.noise),
        difference=design.difference[first : last - 1],
        contrast=design.contrast[first : last - 1],
        step_extra=design.step_extra[steps],
        error_extra=design.error_extra[sources],
        bandwidth=design.bandwidth,
    )
