"""The runtime telemetry of BitNet's scripts: JSON lines {timestamp, component, event, attributes}.

A frame is one run of the runtime: from `runtime.execute.start` to `runtime.execute.complete` (without a
start: `duration_ms` before it). It completed where `returncode` is 0. Tokens a second come from the
runtime's own summary on stderr or from `metrics.tokens_per_second`, and become attributes of the frame;
`metrics.power_watts` becomes a reading that is no domain, since nothing says of what.

The file holds prompts and answers: commands, their arguments and stdout are never read.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np

from benchlab_otel.imports.capture import UNIX, Block, Capture, Samples
from benchlab_otel.imports.gather import Gathering
from benchlab_otel.imports.table import read_lines
from benchlab_otel.model import COMPLETED, FAILED

HINT = "BitNet's runtime telemetry: JSON lines with timestamp, component and event"
_LATEST_S = 5e9
_NOT_JSON = (msgspec.DecodeError, UnicodeError, RecursionError)
_LONGEST_S = 86_400.0
_RATE = re.compile(r"(prompt )?eval time =\s*([\d.]{1,20}) ms /\s*(\d{1,9}) (?:runs|tokens)")
TOKENS_PER_SECOND, PROMPT_TOKENS_PER_SECOND = "runtime.tokens_per_second", "runtime.prompt_tokens_per_second"
POWER = "hw.power.reported.total"


class _Line(msgspec.Struct):
    timestamp: float
    event: str
    component: str = ""
    attributes: dict[str, msgspec.Raw] = {}


@dataclass(slots=True)
class _Run:
    start_s: float | None = None
    figures: dict[str, float] = field(default_factory=dict)


def detect(head: bytes) -> bool:
    """Whether a file with these first bytes is one."""
    first = head.lstrip(b"\xef\xbb\xbf \t\r\n").split(b"\n")[0]
    return first.startswith(b"{") and all(
        key in first for key in (b'"timestamp"', b'"component"', b'"event"')
    )


def read(capture: Capture) -> Iterator[Block | Samples]:
    """The runs that the telemetry tells of; its times are Unix time. Raises OSError."""
    capture.zero, capture.name = UNIX, "runtime"
    gathering = Gathering()
    runs: dict[str, _Run] = {}
    others: Counter[str] = Counter()
    count = 0
    for number, line in _lines(capture):
        run = runs.setdefault(line.component, _Run())
        run.figures |= _figures(line)
        yield from _power(line)
        kind = line.event.removeprefix("runtime.execute.")
        if kind == "start":
            runs[line.component] = _Run(line.timestamp, _figures(line))
        elif kind == "complete":
            begin = _begin(line, run)
            if begin is None:
                capture.faults.add(number, "expected runtime.execute.start before it, or duration_ms")
            else:
                outcome = COMPLETED if _number(line.attributes, "returncode") == 0 else FAILED
                gathering.add(
                    count, round(begin * 1e9), round(line.timestamp * 1e9), (), outcome, run.figures
                )
                count += 1
            del runs[line.component]
        elif kind in ("retry", "circuit_opened", "circuit_blocked"):
            others[kind] += 1
        yield from gathering.full()
    yield from gathering.rest()
    capture.notes += [f"{n} times {kind}" for kind, n in others.items()]
    capture.notes.append("commands, their arguments and stdout were not taken over")


def _lines(capture: Capture) -> Iterator[tuple[int, _Line]]:
    decode = msgspec.json.Decoder(_Line).decode
    for first, lines in read_lines(capture.path, capture.advance):
        for number, text in enumerate(lines, first):
            if not text.strip():
                continue
            try:
                line = decode(text)
            except _NOT_JSON:
                capture.faults.add(number, "expected JSON with timestamp (s), component and event")
                continue
            if 0 < line.timestamp < _LATEST_S:
                yield number, line
            else:
                capture.faults.add(number, f"expected Unix time in seconds, found {line.timestamp:g}")


def _begin(line: _Line, run: _Run) -> float | None:
    """When the run that is complete began, s; None where nothing says so."""
    if run.start_s is not None and 0 <= line.timestamp - run.start_s <= _LONGEST_S:
        return run.start_s
    duration = _number(line.attributes, "duration_ms")
    return (
        line.timestamp - duration / 1e3
        if duration is not None and 0 <= duration <= _LONGEST_S * 1e3
        else None
    )


def _figures(line: _Line) -> dict[str, float]:
    """Tokens a second, from the metrics or from what the runtime wrote to stderr."""
    found: dict[str, float] = {}
    rate = _metric(line.attributes, "tokens_per_second")
    if rate is not None:
        found[TOKENS_PER_SECOND] = rate
    if line.event == "runtime.execute.stderr":
        for prompt, milliseconds, tokens in _RATE.findall(_text(line.attributes.get("chunk"))):
            elapsed = _float(milliseconds)
            if elapsed:
                key = PROMPT_TOKENS_PER_SECOND if prompt else TOKENS_PER_SECOND
                found[key] = int(tokens) / elapsed * 1e3
    return found


def _power(line: _Line) -> Iterator[Samples]:
    watts = _metric(line.attributes, "power_watts")
    if watts is not None:
        moment = np.array([round(line.timestamp * 1e9)], np.int64)
        yield Samples("bitnet", "other", moment, moment, (POWER,), np.array([[watts]]))


def _metric(attributes: dict[str, msgspec.Raw], name: str) -> float | None:
    """A metric, `metrics.name` or `name` in `metrics`."""
    flat = _number(attributes, f"metrics.{name}")
    if flat is not None:
        return flat
    nested = _decoded(attributes.get("metrics"))
    value = nested.get(name) if isinstance(nested, dict) else None
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _number(attributes: dict[str, msgspec.Raw], name: str) -> float | None:
    value = _decoded(attributes.get(name))
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _text(raw: msgspec.Raw | None) -> str:
    value = _decoded(raw)
    return value if isinstance(value, str) else ""


def _decoded(raw: msgspec.Raw | None) -> Any:
    try:
        return None if raw is None else msgspec.json.decode(raw)
    except _NOT_JSON:
        return None


def _float(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return 0.0
