"""Aligned blocks taken apart and put together: what is told of frames costs by block."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from benchlab_otel.align.aligner import Aligned, part
from benchlab_otel.align.attribution.work import join_frames
from benchlab_otel.model import FrameEnergy, Readings

_BY_FRAME = ("energy", "uncertainty", "first", "last")


def rows_of(block: Aligned, first: int, last: int) -> Aligned:
    """Frames `first` to `last` (exclusive) of a block that is not conditioned yet."""
    energy = [replace(e, **{name: getattr(e, name)[first:last] for name in _BY_FRAME}) for e in block.energy]
    return replace(block, frames=part(block.frames, first, last), energy=energy)


def joined(blocks: Sequence[Aligned]) -> list[Aligned]:
    """With those as one block whose figures can stand in one table; not conditioned yet."""
    alike: dict[tuple[object, ...], list[Aligned]] = {}
    for block in blocks:
        meters = [(e.meter, e.method, _place(r)) for e, r in zip(block.energy, block.readings, strict=True)]
        key = (block.frames.service, block.frames.pipeline, *block.domains, *meters)
        alike.setdefault(key, []).append(block)
    return [_as_one(group) for group in alike.values()]


def _place(readings: Readings) -> int:
    """The same of readings and of what they have grown to, in which their rows are the same."""
    return id(readings.time if readings.time.base is None else readings.time.base)


def _as_one(group: list[Aligned]) -> Aligned:
    if len(group) == 1:
        return group[0]
    energy = [_one_after_another(parts) for parts in zip(*(block.energy for block in group), strict=True)]
    return replace(group[-1], frames=join_frames([block.frames for block in group]), energy=energy)


def _one_after_another(parts: Sequence[FrameEnergy]) -> FrameEnergy:
    columns: dict[str, Any] = {n: np.concatenate([getattr(e, n) for e in parts]) for n in _BY_FRAME}
    return replace(parts[-1], **columns, simulated=any(e.simulated for e in parts))
