"""Readings of one device as sample spans. What is the same in all of them is prepared once."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np

from benchlab_otel import contract
from benchlab_otel.model import Bool, Float, Int, Resource, Uint
from benchlab_otel.otlp.encode import Attribute, Repeated, SpanBatch, Table, encode_request
from benchlab_otel.otlp.ids import nonzero
from benchlab_otel.sources.reading import Batch, Device, Field

_MOST_PREPARED = 64  # of one device: sensors that come and go at random have many


_Columns = Int | list[int] | slice  # a slice copies nothing
_Prepared = tuple[_Columns, Repeated]  # which of the sampled values are there, and the requests of them


class Samples:
    """Trace requests of a device's readings; `trace` (1, 2) and `root` (1,) are the session's."""

    def __init__(self, resource: Resource, device: Device, trace: Uint, root: Uint) -> None:
        self._resource, self._trace, self._root = resource, trace, root
        about = {contract.HW_ID: device.hw_id, contract.HW_TYPE: device.hw_type}
        self._attributes: dict[str, Attribute] = {**about, **device.attributes}
        self._fields: Sequence[Field] = ()
        self._keys: tuple[str, ...] = ()
        self._columns: _Columns = []  # of the values with a key
        self._prepared: dict[tuple[tuple[str, ...], bytes], _Prepared] = {}  # by keys, and which are absent

    def request(self, batch: Batch) -> bytes | None:
        """The samples of a batch; None where none of its values belongs in one."""
        if batch.fields is not self._fields:
            self._look_at(batch.fields)
        if not self._keys:
            return None
        values = batch.values[:, self._columns]
        span = nonzero(np.frombuffer(os.urandom(8 * len(values)), np.uint64))
        absent = np.isnan(values)
        if (absent != absent[0]).any():
            return encode_request(self._resource, [self._spans(span, batch.start_ns, batch.end_ns, values)])
        there, repeated = self._repeated(absent[0])
        return repeated.request(span, batch.start_ns, batch.end_ns, values[:, there])

    def _look_at(self, fields: Sequence[Field]) -> None:
        sampled = [i for i, field in enumerate(fields) if field.key]
        self._fields, self._keys = fields, tuple(fields[i].key for i in sampled)
        first = sampled == list(range(len(sampled)))
        self._columns = slice(len(sampled)) if first else sampled

    def _repeated(self, absent: Bool) -> _Prepared:
        kind = (self._keys, absent.tobytes())
        if kind not in self._prepared:
            if len(self._prepared) >= _MOST_PREPARED:
                self._prepared.clear()
            one = np.ones(1, np.int64)
            example = self._spans(one.astype(np.uint64), one, one, np.where(absent, np.nan, 0.0)[None])
            there = np.flatnonzero(~absent) if absent.any() else slice(None)
            self._prepared[kind] = there, Repeated(self._resource, example)
        return self._prepared[kind]

    def _spans(self, span: Uint, start: Int, end: Int, values: Float) -> SpanBatch:
        n = len(span)
        return SpanBatch(
            contract.SAMPLE,
            trace=self._trace.repeat(n, axis=0),
            span=span,
            start=start,
            end=end,
            parent=self._root.repeat(n),
            attributes=dict(self._attributes),
            table=Table(self._keys, values),
        )
