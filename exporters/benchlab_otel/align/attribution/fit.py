"""Watts of each stage and what varies by how much, and how likely that makes the readings."""

from __future__ import annotations

import numpy as np

from benchlab_otel.align.attribution.design import Design, part_of
from benchlab_otel.align.attribution.gls import (
    Fit,
    Variances,
    least_squares,
    prior,
    restricted_likelihood,
    solve,
)
from benchlab_otel.align.attribution.reml import FEW_ROWS, reml
from benchlab_otel.model import Float


def fit(design: Design, start: Variances | None = None, most_rows: int = 8192) -> Fit:
    """Watts and variances from the readings; `start` shortens the search.

    Variances come from at most `most_rows` rows in the middle (they settle long before), watts from
    all. Raises numpy.linalg.LinAlgError where the stages can't be told apart (see `resolve`).
    """
    if start is None and len(design.rows) > 2 * FEW_ROWS:
        start = reml(_middle(design, FEW_ROWS))[0]
    variances, loglik = reml(_middle(design, most_rows), start, thorough=True)
    priors = prior(design, variances, least_squares(design))
    solved = solve(design, priors)
    return Fit(solved.watts, solved.covariance, variances, loglik, solved, priors)


def _middle(design: Design, most: int) -> Design:
    n = len(design.rows)
    return design if n <= most else part_of(design, (n - most) // 2, (n + most) // 2)


def log_likelihood(design: Design, variances: Variances) -> float:
    """The restricted log-likelihood of given variances (−∞ where it can't be computed), without constants."""
    try:
        return restricted_likelihood(design, solve(design, prior(design, variances, least_squares(design))))
    except np.linalg.LinAlgError:
        return -np.inf


def log_likelihoods(design: Design, variances: Variances) -> Float:
    """What each difference (n − 1,) adds to the log-likelihood, given all before it and the watts found."""
    solved = solve(design, prior(design, variances, least_squares(design)))
    surprise = solved.factor.whiten(design.difference - design.contrast @ solved.watts)
    return -0.5 * surprise**2 - np.log(solved.factor.factor[0])
