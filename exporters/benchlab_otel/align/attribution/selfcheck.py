"""How well each reading is predicted from all the others: a check that needs no ground truth.

With Q = S_y⁻¹ − S_y⁻¹X (XᵀS_y⁻¹X)⁻¹ XᵀS_y⁻¹ and q = Q y, leaving reading k out and predicting it
misses by q_k / Q_kk, with variance 1 / Q_kk: no refit is needed (Rasmussen & Williams 2006,
sec. 5.4.2; with unknown watts, Dubrule, Math. Geology 15, 1983). Here X holds the base's level
too, and Q = Dᵀ P D with P of the differences (see `design`).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from benchlab_otel.align.attribution import banded
from benchlab_otel.align.attribution.design import Design
from benchlab_otel.align.attribution.gls import Solved
from benchlab_otel.model import Float

NORMAL_95 = 1.959964


@dataclass(slots=True)
class SelfCheck:
    """`error` and `error_no_stages`: mean absolute miss of the predictions over the mean power, of
    this model and of one that knows no stages; `coverage`: the share within their 95 % interval;
    `tails`: excess kurtosis and `correlation`: lag-one correlation of the whitened residuals (both 0
    under the model); `widened`: what all intervals were multiplied by; `findings` in words."""

    error: float
    error_no_stages: float
    coverage: float
    tails: float
    correlation: float
    widened: float
    findings: list[str] = field(default_factory=list)


def leave_one_out(solved: Solved, inverse: Float) -> tuple[Float, Float]:
    """Reading less its prediction from all others (n,) W, and that miss's standard deviation (n,) W.

    `inverse` is the band of S⁻¹ of the differences, of width 1 at least.
    """
    u, cov = solved.u, solved.covariance
    diagonal = inverse[0] - banded.bilinear(u, cov, u)
    below = inverse[1, :-1] - banded.bilinear(u[1:], cov, u[:-1])
    q_diagonal = np.append(0.0, diagonal) + np.append(diagonal, 0.0)
    q_diagonal[1:-1] -= 2 * below
    q = np.append(0.0, solved.alpha) - np.append(solved.alpha, 0.0)
    q_diagonal = np.maximum(q_diagonal, np.finfo(float).tiny)
    return q / q_diagonal, 1 / np.sqrt(q_diagonal)


def check(
    solved: Solved, inverse: Float, plain: tuple[Solved, Float], power: Float, whitened: Float
) -> SelfCheck:
    """The self-check of one block; `plain` is the model without stages, `power` (n,) W the readings."""
    miss, sd = leave_one_out(solved, inverse)
    without, _ = leave_one_out(*plain)
    size = float(np.mean(np.abs(power))) or 1.0
    scaled = np.abs(miss) / sd
    n = len(whitened)
    centred = whitened - whitened.mean()
    variance = float(np.mean(centred**2)) or 1.0
    tails = kurtosis(whitened)
    correlation = float(np.mean(centred[1:] * centred[:-1])) / variance if n > 1 else 0.0
    widened = max(1.0, float(np.quantile(scaled, 0.95)) / NORMAL_95)
    return SelfCheck(
        error=float(np.mean(np.abs(miss))) / size,
        error_no_stages=float(np.mean(np.abs(without))) / size,
        coverage=float(np.mean(scaled <= NORMAL_95)),
        tails=tails,
        correlation=correlation,
        widened=widened,
        findings=_findings(tails, correlation, n),
    )


def _findings(tails: float, correlation: float, n: int) -> list[str]:
    """What the residuals show that the model doesn't have, where chance (4 sd) can't explain it."""
    found = []
    if tails > 4 * np.sqrt(24 / max(n, 1)):
        found.append(f"heavy tails: excess kurtosis {tails:.1f}; rare readings are far off")
    if abs(correlation) > 4 / np.sqrt(max(n, 1)):
        found.append(
            f"residuals of neighbouring readings correlate ({correlation:+.2f}): "
            "a clock, a stage's marks or the meter's window may be wrong, or a load has no marks"
        )
    return found


def whitened_residuals(solved: Solved, design: Design) -> Float:
    """(n − 1,) independent standard normal numbers under the model: each reading's surprise after
    all before it."""
    return solved.factor.whiten(design.difference - design.contrast @ solved.watts)


def heavy_tails(solved: Solved, design: Design) -> bool:
    """Whether the whitened residuals have rarer and bigger values than chance (4 sd) allows."""
    whitened = whitened_residuals(solved, design)
    return kurtosis(whitened) > 4 * np.sqrt(24 / len(whitened))


def kurtosis(whitened: Float) -> float:
    """Excess kurtosis: 0 for a normal distribution."""
    centred = whitened - whitened.mean()
    variance = float(np.mean(centred**2)) or 1.0
    return float(np.mean((centred**2) ** 2)) / variance**2 - 3.0  # a power of 4 takes numpy 20 times as long
