"""Limits for what may change, as a CI job states them: `energy.frame > +5%`, `fps < -2%`, `drops > +0.5pp`.

    FIGURE > +NUMBER UNIT      fails where the figure grew by more
    FIGURE < -NUMBER UNIT      fails where it shrank by more

Units: % of what was before; s, ms, us (latency), J, mJ, uJ (energy), fps, pp (percentage points of
drops). The sign is part of it, for the number is a change and not a limit of the figure itself.
`latency.STAGE` is `latency.STAGE.mean`; `energy.STAGE` is `energy.system.STAGE`, or that of the only
domain there is. A limit that is exceeded fails only where the change is beyond chance.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from benchlab_otel.export.compare import Change, Comparison

Verdict = Literal["failed", "passed", "exceeded, but not beyond chance", "can't be told"]

_RULE = re.compile(r"\s*(.+?)\s*([<>])\s*([+-])\s*(\d+(?:\.\d+)?)\s*(%|[a-zµ]+|[a-z]?J)\s*\Z")
_UNITS = {
    "s": ("s", 1.0), "ms": ("s", 1e-3), "us": ("s", 1e-6), "µs": ("s", 1e-6),
    "J": ("J", 1.0), "mJ": ("J", 1e-3), "uJ": ("J", 1e-6), "fps": ("1/s", 1.0), "pp": ("share", 0.01),
}  # fmt: skip


class GateError(ValueError):
    """A limit that can't be used; the message says what was expected."""


@dataclass(frozen=True, slots=True)
class Limit:
    """`text` as given; `change` relative to what was before where `unit` is %, else in the figure's unit."""

    text: str
    figure: str
    above: bool
    change: float
    unit: str


@dataclass(frozen=True, slots=True)
class Judged:
    """What a limit says of one session."""

    limit: str
    session: str
    pipeline: str
    verdict: Verdict
    change: Change


def parse(text: str) -> Limit:
    """A limit from its text. Raises GateError."""
    match = _RULE.match(text)
    if not match:
        raise GateError(
            f"--fail-if {text!r}: expected FIGURE > +NUMBER UNIT or FIGURE < -NUMBER UNIT,"
            " such as 'energy.frame > +5%' or 'latency.frame.p95 > +2ms'"
        )
    figure, sign, plus, number, unit = match.groups()
    if unit != "%" and unit not in _UNITS:
        raise GateError(f"--fail-if {text!r}: no unit {unit!r}; there are %, {', '.join(_UNITS)}")
    factor = 0.01 if unit == "%" else _UNITS[unit][1]
    value = float(number) * factor * (1 if plus == "+" else -1)
    return Limit(text, figure, sign == ">", value, unit if unit == "%" else _UNITS[unit][0])


def judge(limits: Sequence[Limit], comparisons: Sequence[Comparison]) -> list[Judged]:
    """Each limit for each session and pipeline. Raises GateError for a figure that nothing has."""
    return [_judge(limit, comparison) for limit in limits for comparison in comparisons]


def _judge(limit: Limit, comparison: Comparison) -> Judged:
    found = _find(limit, comparison)
    if limit.unit not in ("%", found.unit):
        raise GateError(f"--fail-if {limit.text!r}: {found.figure} is in {found.unit}, not in {limit.unit}")
    moved = found.relative if limit.unit == "%" else found.change
    verdict: Verdict = "passed"
    if moved is None:
        verdict = "can't be told"
    elif moved > limit.change if limit.above else moved < limit.change:
        verdict = "failed" if found.changed else "exceeded, but not beyond chance"
    return Judged(limit.text, comparison.after, comparison.pipeline, verdict, found)


def _find(limit: Limit, comparison: Comparison) -> Change:
    """The change that a limit is about."""
    by_name = {c.figure: c for c in comparison.changes}
    gone = [*comparison.only_before, *comparison.only_after]
    energies = [name for name in (*by_name, *gone) if name.startswith("energy.")]
    domains = list(dict.fromkeys(name.split(".")[1] for name in energies))
    kind, _, rest = limit.figure.partition(".")
    names = [limit.figure, f"{limit.figure}.mean" if kind == "latency" else ""]
    if kind == "energy" and ("system" in domains or len(domains) == 1):
        names.append(f"energy.{'system' if 'system' in domains else domains[0]}.{rest}")
    for name in names:
        if name in by_name:
            return by_name[name]
    why = " (only one of the sessions has it)" if any(name in gone for name in names) else ""
    raise GateError(
        f"--fail-if {limit.text!r}: no figure {limit.figure!r} of {comparison.pipeline} in both"
        f" {comparison.before} and {comparison.after}{why}; there are {', '.join(by_name)}"
    )
