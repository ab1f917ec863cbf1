"""Matrices with few entries: sparse ones for long runs, plain arrays for short stretches.

Of a live stretch of twenty readings an operation on scipy's sparse arrays takes ten times as long as its
arithmetic does. Every function here takes both kinds; `design.build` chooses.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import sparse

from benchlab_otel.model import Float, Int

Sparse = sparse.csr_array[Any]
Matrix = Sparse | Float

_SMALL = 1 << 14  # entries


def is_small(rows: int, columns: int) -> bool:
    """Whether matrices of that size are better plain arrays."""
    return rows * columns <= _SMALL


def to_dense(matrix: Matrix) -> Float:
    """The same as a plain array."""
    return matrix if isinstance(matrix, np.ndarray) else np.asarray(matrix.toarray(), float)


def of_entries(values: Float, rows: Int, columns: Int, shape: tuple[int, int], dense: bool = False) -> Matrix:
    """The matrix with these values, each at a place of its own."""
    if not dense:
        return sparse.csr_array((values, (rows, columns)), shape=shape)
    out = np.zeros(shape)
    out[rows, columns] = values
    return out


def of_rows(values: Float, columns: Int, count: Int, width: int, dense: bool = False) -> Matrix:
    """The matrix (n, width) whose row i has the next `count` (n,) of the values, in these columns."""
    count = np.maximum(count, 0)
    if dense:
        return of_entries(values, np.repeat(np.arange(len(count)), count), columns, (len(count), width), True)
    return sparse.csr_array((values, columns, np.append(0, np.cumsum(count))), shape=(len(count), width))


def entry_rows(matrix: Sparse) -> Int:
    """The row of each entry."""
    return np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr))


def times_rows(factors: Float, matrix: Matrix, rows: Int) -> Matrix:
    """These rows (n,) of the matrix, each times its factor (n,)."""
    picked = matrix[rows]
    if isinstance(picked, np.ndarray):
        return factors[:, None] * picked
    picked.data *= np.repeat(factors, np.diff(picked.indptr))
    return picked


def times_columns(matrix: Matrix, columns: Float) -> Matrix:
    """The matrix with each column multiplied by its number."""
    if isinstance(matrix, np.ndarray):
        return matrix * columns
    return sparse.csr_array(
        (matrix.data * columns[matrix.indices], matrix.indices, matrix.indptr), shape=matrix.shape
    )


def transposed(matrix: Matrix) -> Matrix:
    """The transpose, a sparse one in order of its rows again."""
    return matrix.T if isinstance(matrix, np.ndarray) else matrix.T.tocsr()


def product(left: Matrix, right: Matrix) -> Matrix:
    """left @ right, quick where each row on a sparse left has one entry."""
    if not isinstance(left, np.ndarray) and np.array_equal(left.indptr, np.arange(left.shape[0] + 1)):
        return times_rows(left.data, right, np.asarray(left.indices, np.int64))
    whole: Matrix = left @ right
    return whole


def sizes(matrix: Matrix, weights: Float) -> Float:
    """Σ_j |m_kj| w_j of each row."""
    found: Float = np.abs(matrix) @ weights if isinstance(matrix, np.ndarray) else abs(matrix) @ weights
    return found


def differences(matrix: Matrix) -> Matrix:
    """Each row less the one before."""
    return matrix[1:] - matrix[:-1]


def weighted_squares(matrix: Matrix, weights: Float) -> Float:
    """Σ_j m_kj² w_j of each row."""
    if isinstance(matrix, np.ndarray):
        squared: Float = matrix**2 @ weights
        return squared
    found = np.bincount(entry_rows(matrix), matrix.data**2 * weights[matrix.indices], matrix.shape[0])
    return np.asarray(found, float)


def sums_by_group(matrix: Matrix, group: Int, groups: int) -> Float:
    """The columns of `matrix` (n, m) added up by their `group` (m,): (n, groups)."""
    n = matrix.shape[0]
    if isinstance(matrix, np.ndarray):
        summed: Float = matrix @ (group[:, None] == np.arange(groups))
        return summed
    key = entry_rows(matrix) * groups + group[matrix.indices]
    return np.asarray(np.bincount(key, matrix.data, n * groups).reshape(n, groups), float)


def used_columns(matrix: Matrix) -> Int:
    """The columns (ascending) that have entries."""
    if isinstance(matrix, np.ndarray):
        return np.flatnonzero(matrix.any(axis=0))
    used = np.zeros(matrix.shape[1], bool)
    used[matrix.indices] = True
    return np.flatnonzero(used)


def only_columns(matrix: Matrix, used: Int) -> Matrix:
    """The matrix with the columns `used` (ascending, all that have entries) alone."""
    if isinstance(matrix, np.ndarray):
        return matrix[:, used]
    renumbered = np.zeros(matrix.shape[1], np.int64)
    renumbered[used] = np.arange(len(used))
    return sparse.csr_array(
        (matrix.data, renumbered[matrix.indices], matrix.indptr), shape=(matrix.shape[0], len(used))
    )


def farthest_rows(matrix: Matrix) -> int:
    """How far apart two rows can be and still have entries in the same column."""
    if isinstance(matrix, np.ndarray):
        row, column = (np.asarray(places, np.int64) for places in np.nonzero(matrix))
    else:
        row, column = entry_rows(matrix), np.asarray(matrix.indices, np.int64)
    first, last = np.zeros((2, matrix.shape[1]), np.int64)
    last[column] = row  # of several, the last one stays
    first[column[::-1]] = row[::-1]
    return int((last - first).max(initial=0))


def band_of(matrix: Matrix, width: int) -> Float:
    """The lower band (width + 1, n) of a symmetric matrix (see `banded`); entries outside are left out."""
    n = matrix.shape[0]
    ab = np.zeros((width + 1, n))
    if isinstance(matrix, np.ndarray):
        for d in range(min(width + 1, n)):
            ab[d, : n - d] = np.diagonal(matrix, -d)
        return ab
    row = entry_rows(matrix)
    below = row - matrix.indices
    keep = (below >= 0) & (below <= width)
    ab[below[keep], matrix.indices[keep]] = matrix.data[keep]
    return ab


def square(matrix: Matrix, weights: Float, width: int) -> Float:
    """The band of M diag(w) Mᵀ."""
    return band_of(product(times_columns(matrix, weights), transposed(matrix)), width)


def extent(matrix: Sparse) -> tuple[Int, Int]:
    """The leftmost column (n,) with an entry in each row, and how far from it the last one is; 0 for empty
    rows."""
    first, span = np.zeros((2, matrix.shape[0]), np.int64)
    filled = np.flatnonzero(np.diff(matrix.indptr))
    if len(filled):
        starts = matrix.indptr[filled]
        if matrix.has_sorted_indices:
            lowest, highest = matrix.indices[starts], matrix.indices[matrix.indptr[filled + 1] - 1]
        else:
            lowest, highest = (f.reduceat(matrix.indices, starts) for f in (np.minimum, np.maximum))
        first[filled], span[filled] = lowest, highest - lowest
    return first, span
