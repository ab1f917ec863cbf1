"""The report for a person: at most 80 columns wide where names are short, readable without colour."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from math import floor, isfinite, log10

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from benchlab_otel.align.attribution.conserve import Ledger
from benchlab_otel.export.report import Comparison, Energy, Joules, Latency, Report, StageEnergy, Window
from benchlab_otel.model import COMPLETED

WIDTH = 80
GAP = 2  # columns between those of a table
Cell = Callable[[Energy], str]
Pair = Callable[[Energy], tuple[str, str]]  # a figure and what stands beside it


def render(reports: Sequence[Report]) -> RenderableType:
    """A report a pipeline: latency, then each meter's domains, then what could not be resolved.

    What is of all pipelines together stands below the meters of the only one, else once, behind the last.
    """
    alone = len(reports) == 1
    parts = [part for report in reports for part in ("", *_pipeline(report, alone))][1:]
    return Group(*parts, *([] if alone else _of_all(reports)))


def _pipeline(report: Report, alone: bool) -> list[RenderableType]:
    parts: list[RenderableType] = [Text(_headline(report), style="bold")]
    if report.simulated:
        parts.append(Text(f"SIMULATED: {', '.join(report.simulated)}", style="bold yellow"))
    rows = [r for r in (report.frame, *report.stages, *report.pairs) if r]
    if rows:
        parts += ["", _latency_table(rows)]
    for meter in dict.fromkeys(e.meter for e in report.energy):
        mine = [e for e in report.energy if e.meter == meter]
        parts += [*_meter(mine), *(_whole_meter(mine, "= frames") if alone else [])]
    if alone:
        parts += _comparisons(report.comparisons)
    if report.unresolved:
        parts += ["", Text("Not resolved", style="bold")]
        parts += [_note(line) for line in report.unresolved]
    return parts


def _of_all(reports: Sequence[Report]) -> Iterator[RenderableType]:
    """What the meters say of all pipelines together: each report has it."""
    energies = list({(e.meter, e.domain): e for r in reports for e in r.energy}.values())
    for meter in dict.fromkeys(e.meter for e in energies):
        if parts := _whole_meter([e for e in energies if e.meter == meter], "= all frames"):
            yield from ("", Text(f"All pipelines, meter {meter}", style="bold"), *parts[1:])
    yield from _comparisons(list({(c.first, c.second): c for r in reports for c in r.comparisons}.values()))


def _comparisons(found: Sequence[Comparison]) -> list[RenderableType]:
    if not found:
        return []
    title = Text("The same by two meters", style="bold")
    return ["", title, *(_note(_comparison(one)) for one in found)]


def _headline(report: Report) -> str:
    words = [f"{report.pipeline}: {report.frames:,} frames in {report.seconds:.1f} s"]
    if report.fps is not None:
        words.append(f"{report.fps:.1f} fps")
    for outcome, count in report.outcomes.items():
        if outcome != COMPLETED and count:
            words.append(f"{count:,} {outcome} ({count / report.frames:.1%})")
    return ", ".join(words)


def _comparison(found: Comparison) -> str:
    pair = f"{found.first} less {found.second}"
    if found.reason:
        return f"{pair}: {found.reason}"
    watts = plus_minus(found.watts, found.uncertainty_w)
    return f"{pair}: {watts} W over {found.seconds:.0f} s (ratio {found.ratio:.3f})"


def _note(line: str) -> RenderableType:
    return Padding(Text(f"- {line}"), (0, 0, 0, 2))


# -- figures as words -------------------------------------------------------------------------


def number(value: float | None, digits: int) -> str:
    """At least so many digits, never an exponent; "" for no figure."""
    if value is None or not isfinite(value):
        return ""
    if value == 0:
        return "0"
    before = floor(log10(abs(value))) + 1
    return f"{value:.{max(0, digits - before)}f}"


def plus_minus(value: float | None, half: float | None, scale: float = 1.0) -> str:
    """A figure with its 95 % half width, both to the half width's second digit; "" for no figure."""
    if value is None or not isfinite(value):
        return ""
    if half is None or not isfinite(half) or half <= 0:
        return number(value * scale, 4)
    half *= scale
    decimals = max(0, 1 - floor(log10(float(f"{half:.1e}"))))  # of 0.0996, which is 0.10
    return f"{value * scale:z.{decimals}f} ± {half:.{decimals}f}"


def unit_of(largest_j: float) -> tuple[str, float]:
    """The unit in which joules up to this read well, and how many of it make a joule."""
    if largest_j >= 10:
        return "J", 1.0
    return ("mJ", 1e3) if largest_j >= 0.01 else ("µJ", 1e6)


def window_words(energy: Energy) -> str:
    """What is known of the meter's averaging, in a line."""
    window = energy.window
    if window is None or energy.reason:
        return ""
    lag, width = (
        plus_minus(seconds, half, 1e3)
        for seconds, half in (
            (window.lag_s, window.lag_uncertainty_s),
            (window.width_s, window.width_uncertainty_s),
        )
    )
    if energy.kind == "energy":
        over = "Counter: from one reading to the next"
    elif window.shape == "lowpass":
        over = f"Low-pass of {width} ms"
    else:
        over = f"Mean over {width} ms" if window.width_s else "Instantaneous"
    late = f", {lag} ms late" if window.lag_s or window.origin == "found" else ""
    clock = f"; {window.clock}" if window.clock else ""
    return f"{over}{late} ({_origin(window)}){clock}"


def _origin(window: Window) -> str:
    if window.origin == "found":
        return "found from the activity"
    return f"configured; {window.reason}" if window.reason else "configured"


# -- tables -----------------------------------------------------------------------------------


def table_of(*columns: str) -> Table:
    """The first column is names, the others are figures."""
    table = Table(box=None, pad_edge=False, padding=(0, GAP, 0, 0), header_style="bold")
    table.add_column(columns[0], overflow="fold")
    for column in columns[1:]:
        table.add_column(column, justify="right", no_wrap=True)
    return table


def _latency_table(rows: Sequence[Latency]) -> Table:
    table = table_of("Latency (ms)", "p50", "p95", "p99", "max", "of frame time", "frames")
    for r in rows:
        figures = [f"{s * 1e3:.2f}" for s in (r.p50_s, r.p95_s, r.p99_s, r.max_s)]
        table.add_row(r.name, *figures, "" if r.share is None else f"{r.share:.1%}", f"{r.count:,}")
    return table


def _by_row(title: str, energies: Sequence[Energy], columns: Sequence[tuple[str, Cell]]) -> Table | None:
    """A row a domain; columns that no domain has are left out."""
    cells = [(name, [cell(e) for e in energies]) for name, cell in columns]
    kept = [(name, values) for name, values in cells if any(values)]
    if not kept:
        return None
    table = table_of(title, *(name for name, _ in kept))
    for i, e in enumerate(energies):
        table.add_row(e.domain, *(values[i] for _, values in kept))
    return table


def _by_column(title: str, beside: str, energies: Sequence[Energy], rows: dict[str, Pair]) -> Iterator[Table]:
    """A column a domain, two where it has anything `beside`."""
    groups = [_columns(e, beside, list(rows.values())) for e in energies]
    return side_by_side(title, list(rows), groups)


def side_by_side(
    title: str, rows: Sequence[str], groups: Sequence[Sequence[Sequence[str]]]
) -> Iterator[Table]:
    """Groups of columns (heading first) that stay together, in as many tables as the width takes."""
    names = max(len(name) for name in (title, *rows))
    widths = [sum(GAP + max(map(len, column)) for column in group) for group in groups]
    first = 0
    while first < len(groups):
        last = first + 1
        while last < len(groups) and names + sum(widths[first : last + 1]) <= WIDTH:
            last += 1
        columns = [column for group in groups[first:last] for column in group]
        table = table_of(title, *(column[0] for column in columns))
        for i, name in enumerate(rows, 1):
            table.add_row(name, *(column[i] for column in columns))
        yield table
        first = last


def _columns(e: Energy, beside: str, rows: Sequence[Pair]) -> list[list[str]]:
    """One domain's columns, their headings first."""
    figures, others = zip(*(row(e) for row in rows), strict=True)
    columns = [[e.domain, *figures]]
    return [*columns, [beside, *others]] if any(others) else columns


# -- a meter ----------------------------------------------------------------------------------


def _meter(energies: Sequence[Energy]) -> list[RenderableType]:
    """All domains of one meter, as far as they are of one pipeline."""
    first = energies[0]
    rate = f", read at {first.rate_hz:.3g} Hz" if first.rate_hz else ""
    parts: list[RenderableType] = ["", Text(f"Meter {first.meter}{rate}", style="bold")]
    if words := next(filter(None, map(window_words, energies)), ""):
        parts.append(Text(words))
    for table in filter(None, (*_stage_tables(energies), _frame_table(energies), _truth_table(energies))):
        parts += ["", table]
    return parts


def _whole_meter(energies: Sequence[Energy], frames: str) -> list[RenderableType]:
    """All domains of one meter, as far as they are of all pipelines, whose `frames` are called so."""
    parts: list[RenderableType] = []
    for table in filter(None, (_ledger_table(energies, frames), _check_table(energies))):
        parts += ["", table]
    findings: dict[str, list[str]] = {}
    for e in energies:
        for finding in e.check.findings if e.check else ():
            findings.setdefault(finding, []).append(e.domain)
    parts += [_note(f"{', '.join(domains)}: {finding}") for finding, domains in findings.items()]
    return parts


def _stage_tables(energies: Sequence[Energy]) -> Iterator[Table]:
    """Watts, then joules a frame, a row a stage or group of stages; beside the truth where it is known."""
    energies = [e for e in energies if e.stages]
    labels = list(dict.fromkeys(_label(s) for e in energies for s in e.stages if s.watts is not None))
    unit, scale = _unit(energies)

    def watts(s: StageEnergy) -> tuple[str, str]:
        return plus_minus(s.watts, s.watts_uncertainty), number(s.true_watts, 4)

    def joules(s: StageEnergy) -> tuple[str, str]:
        share = "" if s.share is None else f"{s.share:z.0%}"
        return plus_minus(s.joules, s.joules_uncertainty, scale), (
            number(s.true_joules * scale, 4) if s.true_joules is not None else share
        )

    known = any(s.true_watts is not None for e in energies for s in e.stages)
    rows = _stage_rows(labels, watts)
    if any(e.base_w is not None for e in energies):
        rows["base"] = lambda e: (plus_minus(e.base_w, e.base_uncertainty_w), "")
    if rows:
        yield from _by_column("Watts", "true", energies, rows)
    if labels:
        beside = "true" if known else "share"
        yield from _by_column(f"{unit} a frame", beside, energies, _stage_rows(labels, joules))


def _stage_rows(labels: Sequence[str], figure: Callable[[StageEnergy], tuple[str, str]]) -> dict[str, Pair]:
    """For each stage or group what a domain says of it, a dash where it has no figure."""

    def row(label: str) -> Pair:
        return lambda e: next(
            (figure(s) for s in e.stages if _label(s) == label and s.watts is not None), ("–", "")
        )

    return {label: row(label) for label in labels}


def _label(stage: StageEnergy) -> str:
    return " + ".join(stage.stages)


def _unit(energies: Sequence[Energy]) -> tuple[str, float]:
    """One unit for all of a meter's joules a frame."""
    kinds = [j for e in energies for j in (e.conditioned, e.interpolated, e.shared) if j]
    return unit_of(max((abs(j.mean_j) for j in kinds), default=0.0))


def _frame_table(energies: Sequence[Energy]) -> Table | None:
    """Both methods side by side: the mean of all frames, ± that of a single one."""
    unit, scale = _unit(energies)

    def joules(of: Callable[[Energy], Joules | None]) -> Cell:
        return lambda e: plus_minus(j.mean_j, j.uncertainty_j, scale) if (j := of(e)) else ""

    def best(of: Callable[[Joules], float]) -> Cell:
        return lambda e: number(of(j) * scale, 3) if (j := e.conditioned or e.interpolated) else ""

    columns: list[tuple[str, Cell]] = [
        ("conditioned", joules(lambda e: e.conditioned)),
        ("p50", best(lambda j: j.p50_j)),
        ("p95", best(lambda j: j.p95_j)),
        ("own share", joules(lambda e: e.shared)),
        ("interpolated", joules(lambda e: e.interpolated)),
        ("covered", lambda e: f"{e.coverage:.1%}"),
    ]
    if not any(e.conditioned for e in energies):
        columns += [
            ("W in flight", lambda e: number(e.in_flight_w, 4)),
            ("W idle", lambda e: number(e.idle_w, 4)),
        ]
    return _by_row(f"One frame, {unit}", energies, columns)


def _truth_table(energies: Sequence[Energy]) -> Table | None:
    """How far off a frame's joules are, and how many of the intervals hold the truth."""
    unit, scale = _unit(energies)

    def error(of: Callable[[Energy], Joules | None]) -> Cell:
        def cell(e: Energy) -> str:
            if not (j := of(e)) or not (t := j.truth):
                return ""
            relative = f" ({t.error_j / t.mean_j:.1%})" if t.mean_j else ""
            return number(t.error_j * scale, 2) + relative

        return cell

    def held(of: Callable[[Energy], Joules | None]) -> Cell:
        return lambda e: f"{j.truth.held:.1%}" if (j := of(e)) and j.truth else ""

    def true(e: Energy) -> str:
        best = e.conditioned or e.interpolated
        return number(best.truth.mean_j * scale, 4) if best and best.truth else ""

    columns: list[tuple[str, Cell]] = [
        ("true", true),
        ("conditioned off by", error(lambda e: e.conditioned)),
        ("held", held(lambda e: e.conditioned)),
        ("interpolated off by", error(lambda e: e.interpolated)),
        ("held", held(lambda e: e.interpolated)),
    ]
    if not any(true(e) for e in energies):
        return None
    return _by_row(f"The truth, {unit}", energies, columns)


def _ledger_table(energies: Sequence[Energy], frames: str) -> Table | None:
    """Where the meter's energy went. One that does not cover all time is itself only an estimate."""
    exact = all(e.ledger.exact for e in energies if e.ledger)
    whole, rest = ("measured", "+ noise") if exact else ("readings' integral", "+ its error")
    columns: list[tuple[str, Cell]] = [
        (whole, _joules(lambda ledger: ledger.measured)),
        (frames, _joules(lambda ledger: ledger.shares)),
        ("+ idle", _joules(lambda ledger: ledger.idle)),
        (rest, lambda e: plus_minus(e.ledger.residual, e.ledger.residual_uncertainty) if e.ledger else ""),
    ]
    return _by_row("Ledger, J", energies, columns)


def _joules(of: Callable[[Ledger], float]) -> Cell:
    return lambda e: number(of(e.ledger), 6) if e.ledger else ""


def _check_table(energies: Sequence[Energy]) -> Table | None:
    """The self-check: each reading predicted from all the others."""
    columns: list[tuple[str, Cell]] = [
        ("off by", lambda e: f"{e.check.error:.2%}" if e.check else ""),
        ("without stages", lambda e: f"{e.check.error_no_stages:.2%}" if e.check else ""),
        ("in 95 % interval", lambda e: f"{e.check.coverage:.1%}" if e.check else ""),
    ]
    return _by_row("Readings predicted from the others", energies, columns)
