"""Plain data that the parts hand each other: arrays and dataclasses, no behaviour beyond length.

Times are int64 nanoseconds of Unix time on the shared time base (see `timebase`), powers are
watts, energies joules. `n` is the number of rows; row order means nothing unless a field says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from benchlab_otel.contract import Metric

Int = NDArray[np.int64]
Uint = NDArray[np.uint64]
Float = NDArray[np.float64]
Bool = NDArray[np.bool_]
Scalar = str | bool | int | float

STATUS_UNSET, STATUS_OK, STATUS_ERROR = 0, 1, 2
COMPLETED, DROPPED, FAILED = "completed", "dropped", "failed"


@dataclass(slots=True)
class Column:
    """An attribute that some rows have: `values[i]` belongs to row `rows[i]` (rows ascending).

    `values` is float64, int64, bool or, for strings and anything else, object.
    """

    rows: Int
    values: NDArray[Any]


@dataclass(slots=True)
class Spans:
    """n spans as columns.

    `trace` is (n, 2) uint64: the 16 bytes of the trace id as two big-endian numbers; `span` and
    `parent` (n,) uint64, parent 0 = root; `name` (n,) int32 into `names`; `resource` (n,) int32
    into `resources`; `status` (n,) uint8, the OTLP status code; `links` maps a row to the
    (trace hi, trace lo, span id) rows of its links, filled only where a reader asks for them.
    """

    trace: Uint
    span: Uint
    parent: Uint
    name: NDArray[np.int32]
    start: Int
    end: Int
    status: NDArray[np.uint8]
    resource: NDArray[np.int32]
    names: list[str]
    resources: list[dict[str, Any]]
    attributes: dict[str, Column] = field(default_factory=dict)
    links: dict[int, Uint] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.span)


@dataclass(slots=True)
class Frames:
    """n finished frames of one pipeline, in order of their end, with the times of their stages.

    `trace` (n, 2) uint64, `span` (n,) uint64 the frame span's id; `begin`, `end` (n,) int64 ns:
    first to last mark over the frame's own span and its stages; `number` (n,) int64;
    `outcome` (n,) uint8 into OUTCOMES. Stage intervals are a ragged table of m rows:
    `stage_frame` (m,) int64 row of the frame, ascending; `stage` (m,) int32 into `stage_names`;
    `stage_begin`, `stage_end` (m,) int64 ns.
    """

    pipeline: str
    trace: Uint
    span: Uint
    begin: Int
    end: Int
    number: Int
    outcome: NDArray[np.uint8]
    stage_frame: Int
    stage: NDArray[np.int32]
    stage_begin: Int
    stage_end: Int
    stage_names: list[str]
    simulated: bool = False
    service: str = ""
    first_mark: str = ""  # the mark that a frame begins with, where the probe named it

    def __len__(self) -> int:
        return len(self.span)


OUTCOMES = (COMPLETED, DROPPED, FAILED)


@dataclass(slots=True)
class Readings:
    """n readings of one domain of one meter, ascending in time.

    `kind` tells what `value` is: "power" (W) or "energy" (J, cumulative counter). `time` (n,)
    int64 ns is the middle of request and response minus the meter's lag; `uncertainty` (n,)
    int64 ns is half that interval; `trace` (n, 2) and `span` (n,) name the sample span.
    `window_ns` is the meter's averaging width (0 = instantaneous, None = not known), `wrap_j` (J) where
    a counter starts again at 0 (0 = it does not, so a fall is a reset). `clock_ns` is how well round
    trips tell the offset of a meter's own clock (None = its times are the host's).
    """

    meter: str
    domain: str
    kind: Literal["power", "energy"]
    time: Int
    uncertainty: Int
    value: Float
    trace: Uint
    span: Uint
    window_ns: int | None = None
    wrap_j: float = 0.0
    clock_ns: int | None = None
    simulated: bool = False

    def __len__(self) -> int:
        return len(self.time)


@dataclass(slots=True)
class FrameEnergy:
    """The energy of n frames in one domain by one method; NaN where the meter did not cover the frame.

    `energy` (n,) J while the frame was in flight and `uncertainty` (n,) its 95 % half width;
    `first`, `last` (n,) int64 rows of the readings used, -1 where none.
    """

    meter: str
    domain: str
    method: Literal["interpolated", "conditioned"]
    energy: Float
    uncertainty: Float
    first: Int
    last: Int
    simulated: bool = False


@dataclass(slots=True)
class Run:
    """One pipeline of a session: its frames, and what the session's meters say about them.

    Each entry of `energy` has a row for each frame.
    """

    frames: Frames
    readings: list[Readings] = field(default_factory=list)
    energy: list[FrameEnergy] = field(default_factory=list)


Resource = Mapping[str, Scalar]


@dataclass(slots=True)
class Exemplar:
    """One measured value that a metric point shows as an example, and the trace it came from."""

    value: float
    time_ns: int
    trace: tuple[int, int]
    span: int


@dataclass(slots=True)
class Point:
    """The value of one series of a gauge, counter or updown metric at `time_ns`.

    `start_ns` is when a counter began to count. A value of NaN ends the series.
    """

    metric: Metric
    labels: dict[str, str]
    value: float
    time_ns: int
    start_ns: int = 0


@dataclass(slots=True)
class HistogramPoint:
    """A cumulative histogram series: `counts` has one more entry than `metric.bounds`.

    `exemplars` maps a bucket's index to the latest example that fell in it.
    """

    metric: Metric
    labels: dict[str, str]
    counts: Int
    sum: float
    time_ns: int
    start_ns: int
    exemplars: dict[int, Exemplar] = field(default_factory=dict)
