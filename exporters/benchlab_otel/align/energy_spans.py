"""Aligned frames to OTLP: one `energy` span in each frame's own trace."""

from __future__ import annotations

import numpy as np

from benchlab_otel.align.aligner import Aligned
from benchlab_otel.contract import ENERGY, SIMULATED
from benchlab_otel.model import Float, FrameEnergy, Int, Readings, Resource, Uint
from benchlab_otel.otlp.encode import Attribute, Optional, SpanBatch, encode_request
from benchlab_otel.otlp.ids import derived_span_id

MAX_LINKS = 32
_PURPOSE = 0xE6E26


def encode_energy(aligned: Aligned, resource: Resource) -> bytes:
    """The energy spans of the frames that have any energy, as one trace request; b"" if none has."""
    frames = aligned.frames
    has = np.zeros(len(frames), np.bool_)
    for energy in aligned.energy:
        has |= np.isfinite(energy.energy)
    rows = np.flatnonzero(has)
    if not len(rows):
        return b""
    attributes: dict[str, Attribute] = {}
    seconds: Float = (frames.end[rows] - frames.begin[rows]) / 1e9
    for domain, energy in zip(aligned.domains, aligned.energy, strict=True):
        _describe(attributes, domain, energy, rows, seconds)
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
    attributes: dict[str, Attribute], domain: str, energy: FrameEnergy, rows: Int, seconds: Float
) -> None:
    joules = energy.energy[rows]
    known = np.isfinite(joules)
    present = np.where(known, joules, 0.0)
    attributes[f"energy.{domain}_j"] = Optional(present, known)
    attributes[f"energy.{domain}_uncertainty_j"] = Optional(
        np.where(known, energy.uncertainty[rows], 0.0), known
    )
    attributes[f"energy.{domain}.method"] = energy.method
    lasting = known & (seconds > 0)
    watts = np.divide(present, seconds, out=np.zeros_like(present), where=lasting)
    attributes[f"power.{domain}_mean_w"] = Optional(watts, lasting)


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
