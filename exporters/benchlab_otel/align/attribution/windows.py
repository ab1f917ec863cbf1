"""What each reading averages over: readings of any meter as mean powers over compact windows."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from scipy import sparse

from benchlab_otel.align.attribution.counters import Clean
from benchlab_otel.align.attribution.matrix import Matrix, only_columns, used_columns
from benchlab_otel.align.attribution.overlap import Weight
from benchlab_otel.model import Float, Int

Shape = Literal["boxcar", "lowpass"]


@dataclass(frozen=True, slots=True)
class Kernel:
    """How a power meter averages: over `width_s` seconds that ended `lag_s` before the reading.

    `lowpass`: a first-order low-pass whose time constant is `width_s`. Width 0 is instantaneous.
    A counter has no width of its own: it averages from one reading to the next.
    """

    shape: Shape = "boxcar"
    lag_s: float = 0.0
    width_s: float = 0.0

    @property
    def tau(self) -> float:
        """The time constant of a low-pass (s), 0 for a boxcar."""
        return self.width_s if self.shape == "lowpass" else 0.0


@dataclass(slots=True)
class Windows:
    """n rows: `value` (n,) W is the mean power over [lo, hi) (n,) s, up to noise.

    `noise` (n, e) tells how the errors of the e readings enter the rows, `row` (n,) which reading
    ends each row (row of the input readings). `at` (e,) s is each reading's time less the lag,
    `shown` (e,) its value, `uncertainty` (e,) s that of its time. `period` s is usual between rows.
    """

    lo: Float
    hi: Float
    value: Float
    tau: float
    noise: Matrix
    row: Int
    kernel: Kernel
    counter: bool
    at: Float
    shown: Float
    uncertainty: Float
    period: float = field(init=False)

    def __post_init__(self) -> None:
        self.period = float(np.median(np.diff(self.hi))) if len(self) > 1 else 0.0

    def __len__(self) -> int:
        return len(self.value)


def windows(readings: Clean, kernel: Kernel) -> Windows:
    """The readings as rows.

    A counter's row is its step over the time between two readings. A low-pass is turned into rows
    that end where the next begins: (y_k − ρ y_{k−1}) / (1 − ρ), ρ = exp(−Δt / τ), is the average of
    the power since reading k − 1 weighted by exp(t / τ), and nothing earlier.
    """
    at = readings.time - kernel.lag_s
    n = len(at)
    if readings.kind == "power" and kernel.tau == 0.0:
        # an uncertain time smears the window: a boxcar of the same mean and variance
        width = np.maximum(np.hypot(kernel.width_s, 2 * readings.uncertainty), 2e-9)
        middle = at - kernel.width_s / 2
        return Windows(
            lo=middle - width / 2,
            hi=middle + width / 2,
            value=readings.value,
            tau=0.0,
            noise=sparse.eye_array(n, format="csr"),
            row=readings.row,
            kernel=kernel,
            counter=False,
            at=at,
            shown=readings.value,
            uncertainty=readings.uncertainty,
        )
    gap = np.diff(at)
    usable = ~readings.fresh[1:] & (gap > 0)
    if readings.kind == "energy":
        scale, rho = 1.0 / gap, np.ones(n - 1)
    else:
        rho = np.exp(-gap / kernel.tau)
        scale = 1.0 / (1.0 - rho)
    k = np.flatnonzero(usable)
    rows = np.arange(len(k))
    weights = np.concatenate([scale[k], -(scale * rho)[k]])
    noise = sparse.csr_array((weights, (np.tile(rows, 2), np.concatenate([k + 1, k]))), shape=(len(k), n))
    return Windows(
        lo=at[k],
        hi=at[k + 1],
        value=scale[k] * (readings.value[k + 1] - rho[k] * readings.value[k]),
        tau=kernel.tau if readings.kind == "power" else 0.0,
        noise=noise,
        row=readings.row[k + 1],
        kernel=kernel,
        counter=readings.kind == "energy",
        at=at,
        shown=readings.value,
        uncertainty=readings.uncertainty,
    )


def tile(rows: Windows) -> bool:
    """Whether each window begins where the one before ended, but for missed readings."""
    between = rows.lo[1:] - rows.hi[:-1]
    usual = float(np.median(between)) if len(between) else 0.0
    return rows.tau == 0.0 and usual < 1e-9 and bool(np.all(between >= -1e-9))


def edge_gain(rows: Windows, energy: Weight, base: float) -> Float:
    """How a reading changes with its own time (e,), the mean over its uncertainty: W/s, or J/s for a counter.

    `energy` is what the model's mean power above `base` (W) amounts to until a time.
    """
    half = np.maximum(rows.uncertainty, 1e-6)

    def power(at: Float) -> Float:
        return (energy(at + half) - energy(at - half)) / (2 * half)

    if rows.counter:
        return base + power(rows.at)
    if rows.tau:
        return (base + power(rows.at) - rows.shown) / rows.tau
    return (power(rows.hi) - power(rows.lo)) / np.maximum(rows.hi - rows.lo, 1e-9)


def rows_between(rows: Windows, first: int, last: int) -> Windows:
    """Rows first … last − 1 alone, with the readings that they came from."""
    noise = rows.noise[first:last]
    used = used_columns(noise)
    return Windows(
        lo=rows.lo[first:last],
        hi=rows.hi[first:last],
        value=rows.value[first:last],
        tau=rows.tau,
        noise=only_columns(noise, used),
        row=rows.row[first:last],
        kernel=rows.kernel,
        counter=rows.counter,
        at=rows.at[used],
        shown=rows.shown[used],
        uncertainty=rows.uncertainty[used],
    )
