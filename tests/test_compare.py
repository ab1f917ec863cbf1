"""compare: silent about what did not change, sure of what did, and a gate that says why."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console, RenderableType
from scipy.signal import lfilter

from benchlab_otel.archive.session import create
from benchlab_otel.export import compare_plot
from benchlab_otel.export.bootstrap import block_length, mean, quantiles
from benchlab_otel.export.compare import (
    Change,
    Comparison,
    Figure,
    Missing,
    NotComparable,
    change,
    compare,
    missing,
)
from benchlab_otel.export.compare_text import markdown, render, together
from benchlab_otel.export.gate import GateError, judge, parse
from benchlab_otel.export.recording import Recording, attributed
from benchlab_otel.model import Run
from benchlab_otel.simulate.power import measure
from benchlab_otel.timebase import anchor
from frames_of import make_run, requests
from sessions_of import METER, recorded, recording_of, truth_of
from test_cli import run


def correlated(n: int, rho: float, seed: int) -> np.ndarray:
    """Latencies whose logarithm is a first-order autoregression."""
    noise = np.random.default_rng(seed).normal(size=n + 200)
    return np.exp(0.3 * lfilter([1], [1, -rho], noise)[200:])


def slow(seed: int, factor: float = 1.0, n: int = 900) -> Recording:
    """Frames whose latency wanders slowly; no meter."""
    made = make_run(n, seed=seed)
    f = made.frames
    extra = (3e6 * factor * correlated(n, 0.8, seed)).astype(np.int64)
    f.end += extra
    last = np.append(np.flatnonzero(np.diff(f.stage_frame)), len(f.stage_frame) - 1)
    f.stage_end[last] += extra
    made.readings, made.energy = [], []
    return Recording([made], [])


# -- the bootstrap ----------------------------------------------------------------------------


def test_errors_are_those_of_many_runs() -> None:
    """Standard errors of autocorrelated values, against the spread over 300 runs; naively half of it."""
    values = [correlated(3000, 0.6, seed) for seed in range(300)]
    spread = np.std([v.mean() for v in values])
    found = np.mean([mean(v).error for v in values[:40]])
    assert 0.85 * spread < found < 1.2 * spread
    assert values[0].std() / np.sqrt(3000) < 0.6 * spread
    spread = np.std([np.quantile(v, 0.95) for v in values])
    found = np.mean([quantiles(v, [0.95])[0].error for v in values[:40]])
    assert 0.8 * spread < found < 1.25 * spread


def test_blocks_are_as_long_as_the_memory() -> None:
    lengths = [np.mean([block_length(correlated(2000, rho, s)) for s in range(10)]) for rho in (0, 0.5, 0.9)]
    assert lengths[0] < 4 < lengths[1] < 30 < lengths[2]
    assert block_length(np.ones(100)) == 1
    assert 1 <= block_length(np.arange(100.0)) <= 34


def test_too_little_says_so() -> None:
    assert "no value" in mean(np.empty(0)).reason
    assert "record for longer" in mean(np.arange(12.0)).reason
    assert (
        "too few for this quantile" in quantiles(np.random.default_rng(1).normal(size=200), [0.99])[0].reason
    )
    known = Figure("s", mean(np.random.default_rng(1).normal(size=200)))
    told = change("x", known, Figure("s", mean(np.arange(12.0))))
    assert told.change is None
    assert told.before is not None
    assert "record for longer" in told.reason


# -- what changed -----------------------------------------------------------------------------


def test_the_same_twice_does_not_differ() -> None:
    """The rate of false alarms, for all figures together: at most 5 % and what 25 trials leave to chance."""
    alarms = 0
    for seed in range(25):
        (found,) = compare([("a", slow(2 * seed)), ("b", slow(2 * seed + 1))])
        alarms += any(c.changed for c in found.changes)
    assert alarms <= 5  # P(more | 5 %) = 0.1 %
    one = slow(1)
    (itself,) = compare([("a", one), ("a", one)])
    assert not any(c.changed for c in itself.changes)
    assert all(c.change == 0 for c in itself.changes if c.change is not None)


def test_joules_of_the_same_load_do_not_differ_and_a_fifth_more_does() -> None:
    """Intervals hold the attribution's uncertainty: sampling alone would call every pair different."""
    alarms, wrong, found = 0, 0, 0
    for seed in range(4):
        same, more = recording_of(100 + seed, 40), recording_of(200 + seed, 40, infer_w=220 * 1.2)
        first, second = compare([("a", recording_of(seed, 40)), ("b", same), ("c", more)])
        alarms += any(c.changed for c in first.changes)
        by_name = {c.figure: c for c in second.changes}
        found += by_name["energy.system.frame"].changed and by_name["energy.system.infer"].changed
        wrong += any(c.changed for name, c in by_name.items() if name.startswith("latency"))
        infer = by_name["energy.system.infer"]
        assert infer.relative is not None
        assert infer.relative_uncertainty is not None
        assert abs(infer.relative - 0.2) < 2 * infer.relative_uncertainty
    assert alarms <= 2
    assert wrong <= 2
    assert found == 4


def test_the_attributions_error_is_in_the_interval_however_many_frames() -> None:
    recording = recording_of(1)
    (attribution,) = recording.attributions
    (found,) = compare([("a", recording), ("b", recording)])
    for stage in attribution.stages:
        (c,) = [c for c in found.changes if c.figure == f"energy.system.{stage.group[0]}"]
        assert c.uncertainty is not None
        assert c.uncertainty >= np.sqrt(2) * stage.joules_uncertainty


def test_five_percent_of_latency_is_found_given_frames_enough() -> None:
    (found,) = compare([("a", slow(1, n=6000)), ("b", slow(2, 1.2, n=6000))])
    by_name = {c.figure: c for c in found.changes}
    frame = by_name["latency.frame.mean"]
    assert frame.relative == pytest.approx(0.05, abs=0.02)
    assert frame.changed
    assert by_name["latency.display.mean"].changed
    assert not by_name["latency.decode.mean"].changed
    assert frame.p_adjusted is not None
    assert frame.p is not None
    assert frame.p_adjusted > frame.p


def test_what_only_one_of_them_has_is_named() -> None:
    with_meter, without = recording_of(1), recording_of(2)
    without.attributions, without.runs[0].energy, without.runs[0].readings = [], [], []
    (found,) = compare([("a", with_meter), ("b", without)])
    assert "energy.system.frame" in found.only_before
    assert found.only_after == []
    with pytest.raises(
        GateError, match=r"only one of the sessions has it.*there are fps, drops, latency\.frame"
    ):
        judge([parse("energy.frame > +5%")], [found])


def test_interpolated_joules_are_not_compared_with_conditioned_ones() -> None:
    attributed, plain = recording_of(1), Recording([make_run(600)], [])
    plain.runs[0].readings[0].domain = plain.runs[0].energy[0].domain = "system"
    (found,) = compare([("a", attributed), ("b", plain)])
    assert "energy.system.interpolated" in found.only_after
    assert "energy.system.frame" in found.only_before


def test_frames_without_stages_have_the_frames_figures_alone() -> None:
    truth = truth_of(1, 30)
    f = truth.frames
    f.stage_frame, f.stage_begin, f.stage_end = (a[:0] for a in (f.stage_frame, f.stage_begin, f.stage_end))
    f.stage, f.stage_names = f.stage[:0], []
    recording = attributed([Run(f, [measure(truth, METER, np.random.default_rng(1))])])
    (found,) = compare([("a", recording), ("b", recording)])
    energies = [c for c in found.changes if c.figure.startswith("energy")]
    assert [c.figure for c in energies] == ["energy.system.frame", "energy.system.shared"]
    assert all(c.uncertainty for c in energies)


def named(*names: str) -> Recording:
    """A run of each pipeline, each of a service of its own."""
    runs: list[Run] = []
    for name in names:
        (made,) = slow(len(runs)).runs
        made.frames.pipeline, made.frames.service = name, f"host{len(runs)}"
        runs.append(made)
    return Recording(runs, [])


def test_pipelines_are_matched_by_name_unless_there_is_one_each() -> None:
    assert [c.pipeline for c in compare([("a", named("x")), ("b", named("y"))])] == ["y"]
    assert [c.pipeline for c in compare([("a", named("x", "y")), ("b", named("y", "z"))])] == ["y"]
    with pytest.raises(NotComparable, match="a has x, y, b has z"):
        compare([("a", named("x", "y")), ("b", named("z"))])
    with pytest.raises(NotComparable, match="'z' in both"):
        compare([("a", named("x")), ("b", named("x"))], pipeline="z")


def test_pipelines_of_one_name_are_told_apart_by_their_service() -> None:
    """Two processes' pipelines may be called alike; each has its own comparison."""
    found = compare([("a", named("x", "x", "y")), ("b", named("x", "x", "y"))])
    assert [c.pipeline for c in found] == ["x of host0", "x of host1", "y"]
    assert [c.frames_after for c in found] == [len(r.frames) for r in named("x", "x", "y").runs]
    only = compare([("a", named("x", "x", "y")), ("b", named("x", "x", "y"))], pipeline="x")
    assert [c.pipeline for c in only] == ["x of host0", "x of host1"]


def test_pipelines_that_one_of_them_lacks_are_named() -> None:
    sessions = [("a", named("x", "y")), ("b", named("y", "z"))]
    assert missing(sessions) == [Missing("x", "a", "b"), Missing("z", "b", "a")]
    assert missing(sessions, "y") == []
    assert missing([("a", named("x")), ("b", named("z"))]) == []  # one each: they are compared
    for text in (markdown([], (), missing(sessions)), shown_of(render([], (), missing(sessions)))):
        assert "x: in a and not in b, so nothing of it is compared" in text


def shown_of(rendered: RenderableType) -> str:
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(rendered)
    return console.export_text()


# -- limits -----------------------------------------------------------------------------------


def compared(relative: float, changed: bool, figure: str = "energy.gpu.frame", unit: str = "J") -> Comparison:
    moved = Change(
        figure, unit, 2.0, 2 + 2 * relative, 2 * relative, 0.1, relative, 0.05, 0.01, 0.02, changed
    )
    return Comparison("cam0", "a", "b", 100, 100, [moved])


@pytest.mark.parametrize(
    ("limit", "relative", "changed", "verdict"),
    [
        ("energy.frame > +5%", 0.06, True, "failed"),
        ("energy.gpu.frame>+5%", 0.06, False, "exceeded, but not beyond chance"),
        ("energy.frame > +5%", 0.04, True, "passed"),
        ("energy.frame > +5%", -0.5, True, "passed"),
        ("energy.frame < -5 %", -0.06, True, "failed"),
        ("energy.frame > +100mJ", 0.06, True, "failed"),
        ("energy.frame > +0.2 J", 0.06, True, "passed"),
    ],
)
def test_limits(limit: str, relative: float, changed: bool, verdict: str) -> None:
    (judged,) = judge([parse(limit)], [compared(relative, changed)])
    assert judged.verdict == verdict


@pytest.mark.parametrize(
    "text", ["", "energy.frame", "energy.frame > 5%", "energy.frame > +5", "energy.frame = +5%", "> +5%"]
)
def test_what_is_no_limit_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(GateError, match="expected FIGURE > "):
        parse(text)


def test_unknown_figures_and_units_list_the_known_ones() -> None:
    with pytest.raises(GateError, match=r"no figure 'energy.decode' of cam0 .* there are energy.gpu.frame"):
        judge([parse("energy.decode > +5%")], [compared(0, False)])
    with pytest.raises(GateError, match="no unit 'kg'; there are %, s, ms"):
        parse("energy.frame > +5kg")
    with pytest.raises(GateError, match="is in J, not in s"):
        judge([parse("energy.frame > +5ms")], [compared(0, False)])
    nothing_before = Comparison("cam0", "a", "b", 9, 9, [Change("drops", "share", 0.0, 0.5, 0.5, 0.1)])
    (judged,) = judge([parse("drops > +5%")], [nothing_before])
    assert judged.verdict == "can't be told"
    assert judge([parse("drops > +5pp")], [nothing_before])[0].verdict == "exceeded, but not beyond chance"


# -- the command ------------------------------------------------------------------------------


def test_the_command(tmp_path: Path) -> None:
    for name, seed, watts in (("before", 1, 220.0), ("after", 2, 264.0)):
        recorded(tmp_path, name, seed, 30, infer_w=watts)
    gate = ("--fail-if", "energy.infer > +5%", "--fail-if", "latency.infer > +50%")
    picture = tmp_path / "change.svg"
    done = run("compare", "before", "after", *gate, "--plot", picture, data_dir=tmp_path, code=3)
    assert "SIMULATED" in done.stdout
    assert "energy.infer > +5% [after, cam0]: failed" in " ".join(done.stdout.split())
    assert "latency.infer > +50% [after, cam0]: passed" in " ".join(done.stdout.split())
    assert b"<svg" in picture.read_bytes()[:2000]
    plain = run("compare", "before", "after", "--json", data_dir=tmp_path).stdout
    changes = {c["figure"]: c for c in json.loads(plain)["comparisons"][0]["changes"]}
    assert changes["energy.system.infer"]["changed"]
    assert changes["latency.infer.mean"]["unit"] == "s"
    text = run("compare", "before", "after", "before", "--markdown", data_dir=tmp_path).stdout
    assert text.count("| figure | before | after | change |") == 2
    assert "| **energy.system.infer, " in text


def test_a_pipeline_that_is_gone_passes_no_gate(tmp_path: Path) -> None:
    """A camera that no longer starts has no latency to exceed a limit."""
    for name, pipelines in (("before", ("cam0", "cam1")), ("after", ("cam0",))):
        writer = create(tmp_path, anchor(), ["test"], name)
        for pipeline in pipelines:
            made = make_run(300)
            made.frames.pipeline = pipeline
            made.frames.trace[:, 1] += np.uint64(len(pipeline) * ord(pipeline[-1]) << 40)
            writer.traces(requests(made)[0])
        writer.close()
    gate = ("--fail-if", "latency.frame > +5%")
    done = run("compare", "before", "after", *gate, data_dir=tmp_path, code=1)
    assert "cam1: in before and not in after, so nothing of it is compared" in done.stdout
    assert "passed" in done.stdout
    run("compare", "before", "after", data_dir=tmp_path)
    run("compare", "before", "after", *gate, "--pipeline", "cam0", data_dir=tmp_path)
    run("compare", "after", "before", *gate, data_dir=tmp_path)  # a new one has nothing to be compared with
    plain = json.loads(run("compare", "before", "after", "--json", data_dir=tmp_path).stdout)
    assert plain["missing"] == [{"pipeline": "cam1", "present": "before", "absent": "after"}]


def test_the_command_refuses_in_words(tmp_path: Path) -> None:
    recorded(tmp_path, "s1", seconds=5)

    def refused(*arguments: str) -> str:
        return run("compare", *arguments, data_dir=tmp_path, code=2).stderr

    assert "two sessions or more" in refused("s1")
    assert "there are fps, drops" in refused("s1", "s1", "--fail-if", "speed > +5%")
    assert "ends with .png or .svg" in refused("s1", "s1", "--plot", "x.gif")
    assert "no mark 'x'" in refused("s1", "s1", "--pair", "x:infer")


def test_markdown_keeps_names_as_they_are() -> None:
    named = compared(0.1, True, figure="energy.gpu.my_stage|*x*")
    assert "my\\_stage\\|\\*x\\*" in markdown([named])


def test_an_unknown_figure_squeezes_no_other_in_the_picture(tmp_path: Path) -> None:
    """Scale: all that changed is whole within the axes, whatever ±1,000 % is beside it."""
    known = [compared(x, True).changes[0] for x in (0.02, 0.05, -0.03)]
    wild = replace(known[0], relative=1.0, relative_uncertainty=10.0, changed=False)
    reach = compare_plot.reach([*known, wild])
    assert 5 < reach < 100
    assert compare_plot.reach([replace(wild, changed=True)]) > 1100


def test_names_of_figures_are_put_together() -> None:
    assert together(["fps", "drops", "latency.a.mean", "latency.a.p50", "energy.gpu.frame"]) == (
        "fps, drops, latency.a.{mean, p50}, energy.gpu.frame"
    )


def test_a_picture_of_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no figure"):
        compare_plot.write(tmp_path / "x.png", [Comparison("cam0", "a", "b", 1, 1, [])])
    assert list(tmp_path.iterdir()) == []
