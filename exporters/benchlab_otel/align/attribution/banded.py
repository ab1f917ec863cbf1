"""Symmetric banded matrices: products, Cholesky, and the band of the inverse in linear time.

A matrix of n rows and bandwidth w is an array `ab` (w + 1, n) in LAPACK's lower form:
ab[d, j] = S[j + d, j]; entries past the end are zero.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.linalg import cho_solve_banded, cholesky_banded
from scipy.linalg.lapack import dtbtrs

from benchlab_otel.model import Float, Int


def band_of(matrix: sparse.csr_array[Any], width: int) -> Float:
    """The lower band (width + 1, n) of a symmetric sparse matrix; entries outside are left out."""
    n = matrix.shape[0]
    row = np.repeat(np.arange(n), np.diff(matrix.indptr))
    below = row - matrix.indices
    keep = (below >= 0) & (below <= width)
    ab = np.zeros((width + 1, n))
    ab[below[keep], matrix.indices[keep]] = matrix.data[keep]
    return ab


def product(ab: Float, x: Float) -> Float:
    """S x for x (n, k)."""
    n = ab.shape[1]
    out = ab[0][:, None] * x
    for d in range(1, min(ab.shape[0], n)):
        b = ab[d, : n - d, None]
        out[d:] += b * x[: n - d]
        out[: n - d] += b * x[d:]
    return out


def inner(a: Float, b: Float) -> float:
    """tr(A B) of two symmetric banded matrices of the same size, from their bands."""
    width = min(len(a), len(b))
    return float(np.einsum("n,n->", a[0], b[0]) + 2.0 * np.einsum("dn,dn->", a[1:width], b[1:width]))


def square(matrix: sparse.csr_array[Any], columns: Float, width: int) -> Float:
    """The band of M diag(c) Mᵀ."""
    scaled = sparse.csr_array(
        (matrix.data * columns[matrix.indices], matrix.indices, matrix.indptr), matrix.shape
    )
    return band_of((scaled @ matrix.T).tocsr(), width)


_JITTER = 1e-9  # of the diagonal: above rounding, below any variance that matters


@dataclass(slots=True)
class Cholesky:
    """The banded Cholesky factor of S. `scipy.linalg.LinAlgError` when S is not positive definite."""

    factor: Float

    @classmethod
    def of(cls, ab: Float) -> Cholesky:
        """Factors S; where rounding alone keeps it from being positive definite, S with _JITTER more."""
        try:
            return cls(cholesky_banded(ab, lower=True, check_finite=False))
        except np.linalg.LinAlgError:
            return cls(cholesky_banded(_lifted(ab), lower=True, check_finite=False))

    def solve(self, x: Float) -> Float:
        """S⁻¹ x for x (n,) or (n, k)."""
        solved: Float = cho_solve_banded((self.factor, True), x, check_finite=False)
        return solved

    def logdet(self) -> float:
        """log det S."""
        return 2.0 * float(np.log(self.factor[0]).sum())

    def whiten(self, x: Float) -> Float:
        """L⁻¹ x (n,): independent with variance one where x has the covariance S."""
        solved, info = dtbtrs(self.factor, x[:, None], uplo="L")
        if info:
            raise np.linalg.LinAlgError(f"singular factor at row {info}")
        return np.asarray(solved[:, 0], float)


def _lifted(ab: Float) -> Float:
    lifted = ab.copy()
    lifted[0] *= 1.0 + _JITTER
    return lifted


def inverse_band(ab: Float, width: int) -> Float:
    """The band (width + 1, n) of S⁻¹, exact, in O(n w²) by block odd-even reduction.

    Blocks of w = max(bandwidth, width) rows make S block tridiagonal; eliminating every other
    block leaves a block tridiagonal matrix of half the size (Cholesky in nested dissection order).
    On the way back each eliminated block of the inverse follows from its two neighbours (the
    recurrence of Takahashi, Fagan & Chen 1973), all blocks of a level at once. What `Cholesky.of` says
    of rounding holds here too.
    """
    n = ab.shape[1]
    w = max(ab.shape[0] - 1, width, 1)
    count = -(-n // w)
    try:
        inv_diagonal, inv_lower = _inverse_blocks(*_blocks(ab, w, count))
    except np.linalg.LinAlgError:
        inv_diagonal, inv_lower = _inverse_blocks(*_blocks(_lifted(ab), w, count))
    out = np.zeros((width + 1, count * w))
    stacked = np.concatenate([inv_diagonal, np.concatenate([inv_lower, np.zeros((1, w, w))])], axis=1)
    for d in range(width + 1):
        out[d] = stacked[:, np.arange(w) + d, np.arange(w)].ravel()
        if d:
            out[d, n - d :] = 0.0
    return out[:, :n]


def _blocks(ab: Float, w: int, count: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """S as diagonal blocks (count, w, w) and the blocks below them; identity past the end."""
    n = ab.shape[1]
    padded = np.zeros((w + 1, count * w))
    padded[: ab.shape[0], :n] = ab
    padded[0, n:] = 1.0
    grid = padded.reshape(w + 1, count, w)
    stacked = np.zeros((count, 2 * w, w))
    for d in range(w + 1):
        stacked[:, np.arange(w) + d, np.arange(w)] = grid[d]
    diagonal = stacked[:, :w]
    diagonal = diagonal + np.tril(diagonal, -1).transpose(0, 2, 1)
    return diagonal, stacked[:-1, w:]


def _inverse_blocks(diagonal: Float, lower: Float) -> tuple[Float, Float]:
    """Diagonal and lower blocks of the inverse of a block tridiagonal matrix."""
    count = len(diagonal)
    if count == 1:
        root = np.linalg.inv(np.linalg.cholesky(diagonal))
        return np.asarray(root.transpose(0, 2, 1) @ root, float), lower
    odd = np.arange(1, count, 2)
    left, right = lower[odd - 1], lower[odd[odd < count - 1]]  # S[i, i−1] and S[i+1, i]
    root = np.linalg.inv(np.linalg.cholesky(diagonal[odd]))
    y, z = root @ left, root[: len(right)] @ right.transpose(0, 2, 1)
    even = diagonal[::2].copy()
    even[: len(odd)] -= y.transpose(0, 2, 1) @ y
    even[1 : 1 + len(right)] -= z.transpose(0, 2, 1) @ z
    inv_even, inv_far = _inverse_blocks(even, -(z.transpose(0, 2, 1) @ y[: len(right)]))
    back = root.transpose(0, 2, 1)
    u, v, pivot = back @ y, back[: len(right)] @ z, back @ root

    # S⁻¹[i, i−1] and S⁻¹[i, i+1] of the odd blocks, from the even ones around them
    near = -u @ inv_even[: len(odd)]
    near[: len(right)] -= v @ inv_far
    ahead = -u[: len(right)] @ inv_far.transpose(0, 2, 1) - v @ inv_even[1 : 1 + len(right)]
    inv_diagonal, inv_lower = np.empty_like(diagonal), np.empty_like(lower)
    inv_diagonal[::2] = inv_even
    own = pivot - near @ u.transpose(0, 2, 1)
    own[: len(right)] -= ahead @ v.transpose(0, 2, 1)
    inv_diagonal[odd] = own
    inv_lower[odd - 1] = near
    inv_lower[odd[: len(right)]] = ahead.transpose(0, 2, 1)
    return inv_diagonal, inv_lower


def quadratic(rows: sparse.csr_array[Any], band: Float) -> Float:
    """kᵀ S⁻¹ k for each sparse row k of `rows` (f, n), from the band of S⁻¹.

    The nonzeros of a row must lie within the band's width of each other.
    """
    first, dense = _dense_rows(rows)
    count, span = dense.shape
    out = np.zeros(count)
    at = np.minimum(first, band.shape[1] - 1)
    for a in range(span):
        column = np.minimum(at + a, band.shape[1] - 1)
        out += dense[:, a] ** 2 * band[0, column]
        for b in range(a + 1, span):
            out += 2.0 * dense[:, a] * dense[:, b] * band[b - a, column]
    return out


def span(rows: sparse.csr_array[Any]) -> Int:
    """Distance (f,) between the first and the last nonzero column of each row (0 for empty rows)."""
    if rows.nnz == 0:
        return np.zeros(rows.shape[0], np.int64)
    filled = np.flatnonzero(np.diff(rows.indptr))
    starts = rows.indptr[filled]
    out = np.zeros(rows.shape[0], np.int64)
    out[filled] = np.maximum.reduceat(rows.indices, starts) - np.minimum.reduceat(rows.indices, starts)
    return out


def _dense_rows(rows: sparse.csr_array[Any]) -> tuple[Int, Float]:
    """The first nonzero column (f,) of each row and its entries from there on (f, longest span + 1)."""
    count = rows.shape[0]
    first = np.zeros(count, np.int64)
    filled = np.flatnonzero(np.diff(rows.indptr))
    if len(filled):
        first[filled] = np.minimum.reduceat(rows.indices, rows.indptr[filled])
    owner = np.repeat(np.arange(count), np.diff(rows.indptr))
    offset = rows.indices - first[owner]
    dense = np.zeros((count, int(offset.max(initial=0)) + 1))
    dense[owner, offset] = rows.data
    return first, dense
