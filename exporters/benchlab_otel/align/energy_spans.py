"""Aligned frames to OTLP: one `energy` span in each frame's own trace."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from benchlab_otel.align.aligner import Aligned
from benchlab_otel.align.attribution.attribute import PipelineEnergy
from benchlab_otel.contract import ENERGY, SIMULATED
from benchlab_otel.model import Bool, FrameEnergy, Frames, Int, Readings, Resource, Uint
from benchlab_otel.otlp.encode import Attribute, Optional, SpanBatch, Strings, encode_request
from benchlab_otel.otlp.ids import derived_span_id

MAX_LINKS = 32
METHODS = ["interpolated", "conditioned"]
_PURPOSE = 0xE6E26


def has_energy(aligned: Aligned) -> Bool:
    """(n,) which of the frames have an energy of any domain."""
    has = np.zeros(len(aligned.frames), np.bool_)
    figures: list[FrameEnergy | PipelineEnergy] = [*aligned.energy, *filter(None, aligned.conditioned)]
    for one in figures:
        has |= np.isfinite(one.energy)
    return has


def encode_energy(aligned: Aligned, resource: Resource) -> bytes:
    """The energy spans of the frames that have any energy, as one trace request; b"" if none has."""
    frames = aligned.frames
    rows = np.flatnonzero(has_energy(aligned))
    if not len(rows):
        return b""
    attributes: dict[str, Attribute] = {}
    conditioned = aligned.conditioned or [None] * len(aligned.energy)
    for domain, energy, better in zip(aligned.domains, aligned.energy, conditioned, strict=True):
        _describe(attributes, domain, energy, better, frames, rows)
    count, trace, span = _links(aligned, rows)
    batch = SpanBatch(
        name=ENERGY,
        trace=frames.trace[rows],
        span=derived_span_id(frames.trace[rows], _PURPOSE),
        parent=frames.span[rows],
        start=frames.begin[rows],
        end=frames.end[rows],
        attributes=attributes,
        link_count=count,
        link_trace=trace,
        link_span=span,
    )
    simulated = frames.simulated or any(e.simulated for e in aligned.energy)
    extra = {SIMULATED: True} if simulated else {}
    return encode_request({**resource, **extra}, [batch])


def _describe(
    attributes: dict[str, Attribute],
    domain: str,
    energy: FrameEnergy,
    figures: PipelineEnergy | None,
    frames: Frames,
    rows: Int,
) -> None:
    """Adds a domain's attributes: conditioned figures where a frame has them, else the interpolated ones."""
    joules, half = energy.energy[rows], energy.uncertainty[rows]
    method = np.full(len(rows), METHODS.index(energy.method), np.int32)
    if figures is not None:
        better = np.isfinite(figures.energy[rows])
        attributes[f"energy.{domain}_interpolated_j"] = _known(joules)
        attributes[f"energy.{domain}_interpolated_uncertainty_j"] = _known(half)
        joules = np.where(better, figures.energy[rows], joules)
        half = np.where(better, figures.energy_uncertainty[rows], half)
        method[better] = METHODS.index("conditioned")
        attributes[f"energy.{domain}_shared_j"] = _known(figures.shared[rows])
        attributes[f"energy.{domain}_shared_uncertainty_j"] = _known(figures.shared_uncertainty[rows])
        _describe_stages(attributes, domain, figures, frames, rows)
    attributes[f"energy.{domain}_j"] = _known(joules)
    attributes[f"energy.{domain}_uncertainty_j"] = _known(half)
    attributes[f"energy.{domain}.meter"] = energy.meter
    attributes[f"energy.{domain}.method"] = Strings(method, METHODS)
    seconds = (frames.end[rows] - frames.begin[rows]) / 1e9
    watts = np.divide(joules, seconds, out=np.full(len(rows), np.nan), where=seconds > 0)
    attributes[f"power.{domain}_mean_w"] = _known(watts)


def _describe_stages(
    attributes: dict[str, Attribute], domain: str, figures: PipelineEnergy, frames: Frames, rows: Int
) -> None:
    """Adds each stage's own joules; `resolvable` is false where a frame has a stage without any.

    Of a stage that a frame passed several times the joules add up, and so do the half widths: they are
    of the same watts.
    """
    resolvable = np.isfinite(figures.energy)
    for code, name in enumerate(frames.stage_names):
        mine = np.flatnonzero(frames.stage == code)
        owner = frames.stage_frame[mine]
        passed = np.zeros(len(frames), np.bool_)
        passed[owner] = True
        joules = np.where(passed, np.bincount(owner, figures.stage[mine], len(frames)), np.nan)
        half = np.where(passed, np.bincount(owner, figures.stage_uncertainty[mine], len(frames)), np.nan)
        resolvable &= ~passed | np.isfinite(joules)
        attributes[f"energy.{domain}.{name}_j"] = _known(joules[rows])
        attributes[f"energy.{domain}.{name}_uncertainty_j"] = _known(half[rows])
    attributes[f"energy.{domain}.resolvable"] = resolvable[rows]


def _known(values: NDArray[np.floating]) -> Optional:
    """A column that only the rows with a figure carry."""
    known = np.isfinite(values)
    return Optional(np.where(known, values, 0.0).astype(np.float64), known)


def _links(aligned: Aligned, rows: Int) -> tuple[Int, Uint, Uint]:
    """(count (n,), trace ids (n, w, 2), span ids (n, w)): first, last and at most 32 of the samples used.

    Domains of one meter come from the same samples, so each meter is linked once.
    """
    meters: dict[str, tuple[FrameEnergy, Readings]] = {}
    for energy, readings in zip(aligned.energy, aligned.readings, strict=True):
        meters.setdefault(energy.meter, (energy, readings))
    budget = max(2, MAX_LINKS // len(meters))
    width = 0
    columns = []
    for energy, readings in meters.values():
        first, last = energy.first[rows], energy.last[rows]
        count = np.where(first >= 0, np.minimum(last - first + 1, budget), 0)
        steps = np.arange(int(count.max(initial=0)))
        stretch = (last - first) / np.maximum(count - 1, 1)
        index = np.clip(first[:, None] + np.rint(steps * stretch[:, None]).astype(np.int64), 0, None)
        index = np.minimum(index, max(len(readings) - 1, 0))
        columns.append((count, steps[None, :] < count[:, None], readings.trace[index], readings.span[index]))
        width += len(steps)
    valid = np.concatenate([c[1] for c in columns], axis=1)
    order = np.argsort(~valid, axis=1, kind="stable")[:, :MAX_LINKS]  # the links that exist come first
    trace = np.concatenate([c[2] for c in columns], axis=1)
    span = np.concatenate([c[3] for c in columns], axis=1)
    return (
        np.minimum(valid.sum(axis=1), MAX_LINKS).astype(np.int64),
        np.take_along_axis(trace, order[:, :, None], axis=1),
        np.take_along_axis(span, order, axis=1),
    )
