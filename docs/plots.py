"""The three plots of measurement.md, from simulated runs (fixed seeds): python docs/plots.py"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from scipy.stats import norm

from benchlab_otel.align.attribution import counters
from benchlab_otel.align.attribution.attribute import Settings, attribute
from benchlab_otel.align.attribution.block import design_of, fitted_block
from benchlab_otel.align.attribution.condition import base_power
from benchlab_otel.align.attribution.overlap import running_energy
from benchlab_otel.align.attribution.windows import Kernel, windows
from benchlab_otel.align.attribution.work import work_of
from benchlab_otel.simulate.power import (
    ORIGIN_NS,
    Background,
    Load,
    Meter,
    Stage,
    Truth,
    frame_truth,
    measure,
    simulate,
)

IMAGES = Path(__file__).parent / "images"
WATTS = (("decode", 60.0), ("infer", 220.0), ("encode", 110.0))


def load(spread: float, lengths: tuple[float, ...], background: Background, duration: float) -> Load:
    stages = tuple(Stage(n, w, x, 0.35, spread) for (n, w), x in zip(WATTS, lengths, strict=True))
    return Load(stages, duration_s=duration, background=background)


def save(figure: Figure, name: str) -> None:
    IMAGES.mkdir(exist_ok=True)
    figure.savefig(IMAGES / f"{name}.svg", bbox_inches="tight", metadata={"Date": None})


def power_over_time() -> None:
    """A quarter of a second: the true power, what a 20 Hz meter shows, and what the readings tell."""
    rng = np.random.default_rng(1)
    truth = simulate(load(0.1, (0.002, 0.006, 0.003), Background(95, 30, 2.0), 60.0), rng)
    readings = measure(truth, Meter(noise=0.3), rng)
    rows = windows(counters.clean(readings, ORIGIN_NS), Kernel("boxcar", 0.0, 0.05))
    work = work_of([truth.frames], ORIGIN_NS)
    block = fitted_block(work, rows, None, 8192)
    design, _ = design_of(work, rows)
    at = np.linspace(30.0, 30.25, 5000)
    upto = running_energy(design.pieces.begin, design.pieces.end, block.posterior.watts)
    told = np.gradient(upto(at), at) + base_power(block.posterior, at)
    figure = Figure(figsize=(8, 2.8))
    axes = figure.subplots()
    axes.plot(
        at, truth.level[np.searchsorted(truth.edges, at, "right") - 1], color="0.7", lw=3, label="truth"
    )
    axes.plot(at, told, color="C0", lw=1, label="conditioned")
    near = (rows.hi > 30.0) & (rows.lo < 30.25)
    axes.hlines(rows.value[near], rows.lo[near], rows.hi[near], color="C3", lw=2, label="20 Hz readings")
    axes.set(xlabel="s", ylabel="W", xlim=(30.0, 30.25))
    axes.legend(loc="upper right", fontsize=8)
    save(figure, "power")


def calibration() -> None:
    """How often intervals of any stated level hold the truth, over twelve runs of each load."""
    figure = Figure(figsize=(4, 3.6))
    axes = figure.subplots()
    levels = np.linspace(0.5, 0.99, 40)
    loads = {
        "±10 %, 20 Hz": (0.1, (0.002, 0.006, 0.003), Background(), {}),
        "±10 %, 100 Hz": (0.1, (0.002, 0.006, 0.003), Background(), {"rate_hz": 100.0}),
        "overlapping, 0/30 W, ±10 %": (0.1, (0.005, 0.012, 0.0063), Background(95, 30, 2.0), {}),
        "t noise, 3 degrees of freedom": (
            0.02,
            (0.002, 0.006, 0.003),
            Background(),
            {"noise": 2.0, "tails": 3.0},
        ),
    }
    for name, (spread, lengths, background, meter) in loads.items():
        scores = []
        for seed in range(12):
            rng = np.random.default_rng(seed)
            truth = simulate(load(spread, lengths, background, 60.0), rng)
            readings = measure(truth, Meter(**{"noise": 0.2, **meter}), rng)
            p = attribute([truth.frames], readings).pipelines[0]
            scores.append(np.abs(p.own - frame_truth(truth, 0, 60).own) / (p.own_uncertainty / 1.959964))
        score = np.concatenate(scores)
        score = score[np.isfinite(score)]
        axes.plot(levels, [np.mean(score <= norm.ppf((1 + x) / 2)) for x in levels], label=name)
    axes.plot([0.5, 1], [0.5, 1], color="0.6", ls=":")
    axes.set(xlabel="stated", ylabel="held")
    axes.legend(fontsize=7)
    save(figure, "calibration")


def lag() -> None:
    """The self-check against the lag that is assumed: the meter's own clock shows itself."""
    figure = Figure(figsize=(5, 2.8))
    axes = figure.subplots()
    lags = np.arange(-0.006, 0.0301, 0.001)
    for spread in (0.02, 0.1):
        rng = np.random.default_rng(3)
        truth: Truth = simulate(load(spread, (0.002, 0.006, 0.003), Background(), 60.0), rng)
        readings = measure(truth, Meter(noise=0.3, lag_s=0.012, known=False), rng)
        errors = []
        for x in lags:
            check = attribute(
                [truth.frames], readings, Settings(kernel=Kernel("boxcar", float(x), 0.05))
            ).check
            errors.append(100 * check.error if check else np.nan)
        axes.plot(1e3 * lags, errors, label=f"powers ±{100 * spread:.0f} %")
    axes.axvline(12.0, color="0.6", ls=":", label="the meter's lag")
    axes.set(xlabel="lag assumed, ms", ylabel="left-out reading missed by, %", ylim=(0, None))
    axes.legend(fontsize=8)
    save(figure, "lag")


if __name__ == "__main__":
    power_over_time()
    calibration()
    lag()
