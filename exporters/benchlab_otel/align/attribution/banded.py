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


def product(ab: Float, x: Float) -> Float:
    """S x for x (n, k)."""
    n = ab.shape[1]
    out = ab[0][:, None] * x
    for d in range(1, min(ab.shape[0], n)):
        b = ab[d, : n - d, None]
        out[d:] += b * x[: n - d]
        out[: n - d] += b * x[d:]
    return out


def bilinear(x: Float, matrix: Float, y: Float) -> Float:
    """xᵀ M y of each pair of rows of x and y (n, k), with M (k, k)."""
    out: Float = np.einsum("nk,nk->n", x @ matrix, y)
    return out


def inner(a: Float, b: Float) -> float:
    """tr(A B) of two symmetric banded matrices of the same size, from their bands."""
    width = min(len(a), len(b))
    return float(np.einsum("n,n->", a[0], b[0]) + 2.0 * np.einsum("dn,dn->", a[1:width], b[1:width]))


_LEAST_BLOCK = 10  # rows; numpy is no quicker with smaller ones
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
            lifted = ab.copy()
            lifted[0] *= 1.0 + _JITTER
            return cls(cholesky_banded(lifted, lower=True, check_finite=False))

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

    def squares(self, x: Float) -> Float:
        """xᵀ S⁻¹ x of each column of x (n, k)."""
        if not x.size:  # LAPACK's wrapper writes past the end of nothing
            return np.zeros(x.shape[1])
        solved, info = dtbtrs(self.factor, x, uplo="L")
        if info:
            raise np.linalg.LinAlgError(f"singular factor at row {info}")
        return np.asarray(np.einsum("nk,nk->k", solved, solved), float)

    def inverse_band(self, width: int) -> Float:
        """The band (width + 1, n) of S⁻¹, exact, in O(n w²).

        With S = L Lᵀ in blocks of w ≥ max(bandwidth, width) rows and M_i = −L_{i+1,i} L_i⁻¹, the inverse's
        blocks follow from the last one back (Takahashi, Fagan & Chen 1973): Z_{i+1,i} = Z_{i+1} M_i and
        Z_i = (L_i L_iᵀ)⁻¹ + M_iᵀ Z_{i+1,i}.
        """
        n = self.factor.shape[1]
        w = max(len(self.factor) - 1, width, _LEAST_BLOCK)
        columns = _block_columns(self.factor, w)
        root = np.linalg.inv(columns[:, :w])
        inverse = root.transpose(0, 2, 1) @ root
        move = -(columns[:, w:] @ root)
        columns[-1, w:] = 0.0
        below = columns[:, w:]
        for i in range(len(inverse) - 2, -1, -1):
            np.matmul(inverse[i + 1], move[i], out=below[i])
            inverse[i] += move[i].T @ below[i]
        columns[:, :w] = inverse
        out = np.empty((width + 1, n))
        for d in range(width + 1):
            out[d] = columns[:, np.arange(w) + d, np.arange(w)].ravel()[:n]
            out[d, n - d :] = 0.0
        return out


def _block_columns(ab: Float, w: int) -> NDArray[np.float64]:
    """A banded lower triangle's columns in blocks of w: (count, 2w, w), from the diagonal down; past its
    end the identity's."""
    n = ab.shape[1]
    count = -(-n // w)
    padded = np.zeros((len(ab), count * w))
    padded[:, :n] = ab
    padded[0, n:] = 1.0
    grid = padded.reshape(len(ab), count, w)
    stacked = np.zeros((count, 2 * w, w))
    for d in range(len(ab)):
        stacked[:, np.arange(w) + d, np.arange(w)] = grid[d]
    return stacked


def quadratic(rows: sparse.csr_array[Any], first: Int, band: Float) -> Float:
    """kᵀ S⁻¹ k for each sparse row k of `rows` (f, n), from the band of S⁻¹.

    The nonzeros of a row, of which `first` (f,) is the leftmost, must lie within the band's width.
    """
    dense = _dense_rows(rows, first)
    count, span = dense.shape
    out = np.zeros(count)
    at = np.minimum(first, band.shape[1] - 1)
    for a in range(span):
        column = np.minimum(at + a, band.shape[1] - 1)
        out += dense[:, a] ** 2 * band[0, column]
        for b in range(a + 1, span):
            out += 2.0 * dense[:, a] * dense[:, b] * band[b - a, column]
    return out


def _dense_rows(rows: sparse.csr_array[Any], first: Int) -> Float:
    """The entries of each row from its column `first` (f,) on: (f, longest span + 1)."""
    owner = np.repeat(np.arange(rows.shape[0]), np.diff(rows.indptr))
    offset = rows.indices - first[owner]
    dense = np.zeros((rows.shape[0], int(offset.max(initial=0)) + 1))
    dense[owner, offset] = rows.data
    return dense
