"""Comparisons to read: tables for a terminal, and the same as Markdown."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.text import Text

from benchlab_otel.export.compare import Change, Comparison, Missing
from benchlab_otel.export.gate import Judged
from benchlab_otel.export.report_text import number, plus_minus, table_of, unit_of

HEADINGS = ("before", "after", "change", "p")
FOOTNOTE = (
    "± 95 %: how much frames vary (block bootstrap) and how well their joules are known. p: Welch's test,"
    " corrected for all figures here (Holm); bold and *: changed beyond chance (p < 5 %)."
)


def render(
    comparisons: Sequence[Comparison], judged: Sequence[Judged] = (), missing: Sequence[Missing] = ()
) -> RenderableType:
    """All comparisons as tables, what was not compared, then what the limits say."""
    parts: list[RenderableType] = []
    for comparison in comparisons:
        table = table_of("", *HEADINGS)
        for row, changed in _rows(comparison):
            table.add_row(*row, style="bold" if changed else None)
        parts += [Text(_title(comparison), style="bold"), *_simulated(comparison), "", table, ""]
        parts += [Text(f"- {line}") for line in _notes(comparison)]
    parts += [Text(_left_out(one), style="bold yellow") for one in missing]
    parts.append(Text(FOOTNOTE, style="dim"))
    parts += [
        Text(line, style="bold red" if one.verdict == "failed" else "") for one, line in _verdicts(judged)
    ]
    return Group(*parts)


def markdown(
    comparisons: Sequence[Comparison], judged: Sequence[Judged] = (), missing: Sequence[Missing] = ()
) -> str:
    """The same as `render`, for a pull request's comment."""
    lines: list[str] = []
    for comparison in comparisons:
        lines += [f"### {_plain(_title(comparison))}", ""]
        lines += [f"**{_plain(text.plain)}**\n" for text in _simulated(comparison)]
        lines += [f"| figure | {' | '.join(HEADINGS)} |", "|---|" + "---:|" * len(HEADINGS)]
        for row, changed in _rows(comparison):
            cells = [_plain(cell) for cell in row]
            lines.append("| " + " | ".join(f"**{c}**" if changed and c else c for c in cells) + " |")
        lines += ["", *(f"- {_plain(line)}" for line in _notes(comparison)), ""]
    lines += [f"**{_plain(_left_out(one))}**\n" for one in missing]
    lines += [FOOTNOTE, "", *(f"- {_plain(line)}" for _, line in _verdicts(judged))]
    return "\n".join(lines).rstrip() + "\n"


def _plain(text: str) -> str:
    """Text that Markdown leaves alone."""
    for mark in "\\|*_`<":
        text = text.replace(mark, f"\\{mark}")
    return text.replace("\n", " ")


def _title(comparison: Comparison) -> str:
    return (
        f"{comparison.pipeline}: {comparison.after} ({comparison.frames_after:,} frames) against"
        f" {comparison.before} ({comparison.frames_before:,})"
    )


def _left_out(one: Missing) -> str:
    return f"{one.pipeline}: in {one.present} and not in {one.absent}, so nothing of it is compared"


def _simulated(comparison: Comparison) -> list[Text]:
    found = ", ".join(comparison.simulated)
    return [Text(f"SIMULATED: {found}", style="bold yellow")] if found else []


def _rows(comparison: Comparison) -> list[tuple[list[str], bool]]:
    """(cells, changed) of each figure that can be compared."""
    return [(_cells(c), c.changed) for c in comparison.changes if c.change is not None]


def _cells(change: Change) -> list[str]:
    unit, scale = _unit(change)
    name = f"{change.figure}{f', {unit}' if unit else ''}"
    before, after = (number(None if v is None else v * scale, 4) for v in (change.before, change.after))
    p = "" if change.p_adjusted is None else _probability(change.p_adjusted)
    return [name, before, after, _moved(change), f"{p}{'*' if change.changed else ''}"]


def _moved(change: Change) -> str:
    """By how much: of shares in percentage points, else relative to what was before."""
    if change.relative is None or change.unit == "share":
        unit, scale = _unit(change)
        return (
            f"{_signed(plus_minus(change.change, change.uncertainty, scale))} {'pp' if unit == '%' else unit}"
        )
    return f"{_signed(plus_minus(change.relative, change.relative_uncertainty, 100))} %"


def _unit(change: Change) -> tuple[str, float]:
    if change.unit == "s":
        return "ms", 1e3
    if change.unit == "J":
        return unit_of(max(abs(change.before or 0), abs(change.after or 0)))
    return ("%", 100.0) if change.unit == "share" else ("", 1.0)


def _signed(text: str) -> str:
    return f"+{text}" if text and float(text.partition(" ")[0]) > 0 else text


def _probability(p: float) -> str:
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def _notes(comparison: Comparison) -> list[str]:
    """What could not be compared, in words: figures of one reason together."""
    reasons: dict[str, list[str]] = {}
    for change in comparison.changes:
        if change.change is None:
            reasons.setdefault(change.reason, []).append(change.figure)
    notes = [f"{together(names)}: {reason}" for reason, names in reasons.items()]
    for name, only in (
        (comparison.before, comparison.only_before),
        (comparison.after, comparison.only_after),
    ):
        if only:
            notes.append(f"only in {name}: {together(only)}")
    return notes


def together(figures: Sequence[str]) -> str:
    """Names of figures, those of one stage or domain in braces: latency.decode.{mean, p50}."""
    lasts: dict[str, list[str]] = {}
    for stem, dot, last in (name.rpartition(".") for name in figures):
        lasts.setdefault(stem + dot, []).append(last)
    return ", ".join(
        f"{stem}{{{', '.join(names)}}}" if stem and len(names) > 1 else ", ".join(stem + n for n in names)
        for stem, names in lasts.items()
    )


def _verdicts(judged: Sequence[Judged]) -> list[tuple[Judged, str]]:
    out = []
    for one in judged:
        unit, scale = _unit(one.change)
        found = _signed(plus_minus(one.change.change, one.change.uncertainty, scale))
        share = _signed(plus_minus(one.change.relative, one.change.relative_uncertainty, 100))
        told = f"{found} {unit}".rstrip() + (f" ({share} %)" if share else "")
        why = f": {one.change.reason}" if one.change.change is None else f": {told}"
        out.append((one, f"fail if {one.limit} [{one.session}, {one.pipeline}]: {one.verdict}{why}"))
    return out
