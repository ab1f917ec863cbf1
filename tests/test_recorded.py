"""Sessions whose samples are gone, and captures without aligning again: the figures of the live aligner."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from shutil import copytree

import numpy as np
import pandas as pd
import pytest

from benchlab_otel.align.aligner import Aligned, Aligner, align, close
from benchlab_otel.align.conditioner import Conditioner, close_conditioner, condition_live, learn_live
from benchlab_otel.align.energy_spans import encode_energy
from benchlab_otel.archive import reader
from benchlab_otel.archive.records import Fault, compressor, frame
from benchlab_otel.archive.retention import remove_raw
from benchlab_otel.archive.session import ENERGY, Session, create, open_session
from benchlab_otel.contract import SIMULATED
from benchlab_otel.export import recorded
from benchlab_otel.export.explain import explain
from benchlab_otel.export.recorded import (
    NO_FIGURE,
    UNNAMED,
    energies_of,
    load_recorded,
    load_recorded_runs,
    with_recorded,
)
from benchlab_otel.export.recording import load, of_run
from benchlab_otel.export.report import AS_RECORDED, make_report
from benchlab_otel.export.stream import stream
from benchlab_otel.model import Float, FrameEnergy, Readings
from benchlab_otel.otlp.decode import decode_traces
from benchlab_otel.simulate.power import Load, Meter, Stage, measure, requests, simulate
from benchlab_otel.timebase import anchor
from test_compare import run

SEEN = ("energy", "energy_uncertainty", "shared", "shared_uncertainty")
METERS = (
    Meter(noise=0.2, name="first"),
    Meter(noise=0.5, name="dev/tty.usb-2:1.0", rate_hz=50.0),
    Meter(noise=0.01, name="rapl", domain="package-0", kind="energy"),
)


def live(data_dir: Path, name: str, seconds: float = 30, infer_w: float = 220.0) -> list[Aligned]:
    """Records a session and aligns it as it happens; what the aligner gave out. One meter stops early.

    Frames pass `decode` twice, and begin before the meters do.
    """
    rng = np.random.default_rng(7)
    stages = (Stage("decode", 60.0, 0.002, 0.35, 0.1), Stage("infer", infer_w, 0.006, 0.35, 0.1))
    load = Load((*stages, replace(stages[0], name="again")), duration_s=seconds, name="cam.0")
    truth = simulate(load, rng)
    names = [name if name != "again" else "decode" for name in truth.frames.stage_names]
    codes = np.array([names.index(name) for name in names], np.int32)
    truth.frames.stage, truth.frames.stage_names = codes[truth.frames.stage], list(dict.fromkeys(names))
    readings = [measure(truth, meter, rng) for meter in METERS]
    begin, stop = truth.frames.end[30], truth.frames.end[len(truth.frames) * 3 // 4]
    readings = [_between(r, begin, np.iinfo(np.int64).max) for r in readings[:2]] + [
        _between(readings[2], begin, stop)
    ]
    writer = create(data_dir, anchor(), ["test"], name)
    state, conditioner = Aligner(), Conditioner()
    blocks: list[Aligned] = []
    for body in requests([truth.frames], readings, list(METERS)):
        writer.traces(body)
        blocks += condition_live(conditioner, state, align(state, decode_traces(body)))
        learn_live(conditioner, state)
    blocks += condition_live(conditioner, state, close(state))
    blocks += close_conditioner(conditioner)
    for block in blocks:
        writer.energy(encode_energy(block, {"service.name": "test"}))
    writer.close()
    return blocks


def _between(readings: Readings, first: int, last: int) -> Readings:
    rows = (readings.time >= first) & (readings.time <= last)
    columns = ("time", "uncertainty", "value", "trace", "span")
    return replace(readings, **{name: getattr(readings, name)[rows] for name in columns})


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def blocks(data_dir: Path) -> list[Aligned]:
    return live(data_dir, "whole")


@pytest.fixture(scope="module")
def pruned(data_dir: Path, blocks: list[Aligned]) -> Session:
    """The same without its samples."""
    copytree(data_dir / "sessions" / "whole", data_dir / "sessions" / "pruned")
    faults: list[Fault] = []
    assert remove_raw(data_dir / "sessions" / "pruned", faults)
    assert faults == []
    return open_session("pruned", data_dir)


def as_recorded(data_dir: Path) -> Session:
    return replace(open_session("whole", data_dir), recorded=True)


def told_live(blocks: list[Aligned], key: tuple[str, str], name: str) -> Float:
    """A figure (n,) of the frames as the live aligner gave it out, NaN where it gave none."""
    parts = []
    for block in blocks:
        keys = [(r.meter, r.domain) for r in block.readings]
        found = dict(zip(keys, block.conditioned or [None] * len(keys), strict=True)).get(key)
        parts.append(np.full(len(block.frames), np.nan) if found is None else getattr(found, name))
    return np.concatenate(parts)


KEYS = [(meter.name, meter.domain) for meter in METERS]


@pytest.mark.parametrize("key", KEYS)
def test_the_figures_are_those_that_were_recorded(
    key: tuple[str, str], pruned: Session, blocks: list[Aligned]
) -> None:
    faults: list[Fault] = []
    recording = load_recorded(pruned, faults)
    assert faults == []
    (one,) = recording.runs
    assert {(r.meter, r.domain) for r in one.readings} == set(KEYS)
    assert not any(map(len, one.readings))
    assert (one.frames.end == np.concatenate([block.frames.end for block in blocks])).all()
    ((found, energy),) = [(a, e) for a, e in of_run(recording, 0) if (a.meter, a.domain) == key]
    for name in SEEN:
        expected = told_live(blocks, key, name)
        assert 100 < np.isfinite(expected).sum() < len(expected)  # some frames have none
        assert np.array_equal(getattr(energy, name), expected, equal_nan=True)
    own = told_live(blocks, key, "own")
    told = np.isfinite(energy.own)
    assert told.any()
    assert energy.own[told] == pytest.approx(own[told], rel=1e-9, abs=1e-12)
    by_method = {e.method: e for e in one.energy if (e.meter, e.domain) == key}
    assert np.array_equal(by_method["conditioned"].energy, energy.energy, equal_nan=True)
    plain = interpolated_live(blocks, key)
    assert np.array_equal(by_method["interpolated"].energy, plain, equal_nan=True)
    stage = np.concatenate([_stages(block, key) for block in blocks])
    for code, figure in enumerate(found.stages):
        mine = (one.frames.stage == code) & np.isfinite(stage)
        frames = np.unique(one.frames.stage_frame[mine])
        assert figure.frames == len(frames)
        assert figure.joules == pytest.approx(stage[mine].sum() / len(frames))
        for values in (energy.stage, stage):  # of a stage passed twice only the sum is known
            assert np.nansum(values[one.frames.stage == code]) == pytest.approx(stage[mine].sum())
        assert np.isnan([figure.joules_uncertainty, figure.watts_uncertainty, figure.spread]).all()


def interpolated_live(blocks: list[Aligned], key: tuple[str, str]) -> Float:
    parts = []
    for block in blocks:
        found = {(e.meter, e.domain): e.energy for e in block.energy}
        parts.append(found.get(key, np.full(len(block.frames), np.nan)))
    return np.concatenate(parts)


def _stages(block: Aligned, key: tuple[str, str]) -> Float:
    keys = [(r.meter, r.domain) for r in block.readings]
    found = dict(zip(keys, block.conditioned or [None] * len(keys), strict=True)).get(key)
    return found.stage if found is not None else np.full(len(block.frames.stage), np.nan)


def energies(runs: list[FrameEnergy]) -> dict[tuple[str, str, str], Float]:
    return {(e.meter, e.domain, e.method): e.energy for e in runs}


def test_a_session_with_its_samples_gives_the_same_and_its_readings(
    data_dir: Path, blocks: list[Aligned], pruned: Session
) -> None:
    session = as_recorded(data_dir)
    (one,), (gone,) = load_recorded_runs(session, []), load_recorded_runs(pruned, [])
    told, without = energies(one.energy), energies(gone.energy)
    assert set(told) == set(without)
    assert len(told) == 6
    for key, values in told.items():
        assert np.array_equal(values, without[key], equal_nan=True)
    assert {(r.meter, r.domain) for r in one.readings} == set(KEYS)
    assert all(len(r) > 100 for r in one.readings)
    parts = list(stream(session, []))
    readings = [part for part in parts if isinstance(part, Readings)]
    assert sum(map(len, readings)) == sum(map(len, one.readings))
    assert sum(len(part.frames) for part in parts if isinstance(part, Aligned)) == len(one.frames)


def test_of_energies_recorded_twice_the_later_ones_count(tmp_path: Path) -> None:
    blocks = live(tmp_path, "s", seconds=20)
    path = tmp_path / "sessions" / "s" / ENERGY
    for block in blocks:
        for energy in block.energy:
            energy.energy = energy.energy + 1.0
        block.conditioned = []
    with path.open("ab") as file:
        for block in blocks[: len(blocks) // 2]:
            file.write(frame(encode_energy(block, {"service.name": "test"}), compressor()))
    session = replace(open_session("s", tmp_path), recorded=True)
    recording, (one,) = load_recorded(session, []), load_recorded_runs(session, [])
    count = sum(len(block.frames) for block in blocks[: len(blocks) // 2])
    expected = interpolated_live(blocks, KEYS[0])
    for energy in (recording.runs[0].energy, one.energy):
        found = energies(energy)
        assert np.array_equal(found[*KEYS[0], "interpolated"][:count], expected[:count], equal_nan=True)
        later = found[*KEYS[0], "interpolated"][count:]
        assert np.allclose(later, expected[count:] - 1.0, equal_nan=True)
        again = np.isfinite(expected[:count])
        assert np.isnan(found[*KEYS[0], "conditioned"][:count][again]).all()


def test_a_domain_with_a_dot_of_another_program_is_no_stage(tmp_path: Path, monkeypatch) -> None:
    """It comes in the middle of the file, which is read in several blocks."""
    monkeypatch.setattr(reader, "BLOCK_BYTES", 10_000)
    blocks = live(tmp_path, "s", seconds=20)
    path = tmp_path / "sessions" / "s" / ENERGY
    middle = len(blocks) // 2
    with path.open("wb") as file:
        for number, block in enumerate(blocks):
            if number >= middle:
                block.domains = ["gpu.hbm" if name == "package-0" else name for name in block.domains]
            file.write(frame(encode_energy(block, {"service.name": "test"}), compressor()))
        file.write(b"garbage")
    session = replace(open_session("s", tmp_path), recorded=True)
    faults: list[Fault] = []
    (one,) = load_recorded_runs(session, faults)
    assert len(faults) == 1
    found = energies(one.energy)
    expected = interpolated_live(blocks, KEYS[2])
    first = sum(len(block.frames) for block in blocks[:middle])
    dotted, before = (found["rapl", name, "interpolated"] for name in ("gpu.hbm", "package-0"))
    assert np.isnan(dotted[:first]).all()
    assert np.isfinite(dotted).sum() > 100
    assert np.array_equal(dotted[first:], expected[first:], equal_nan=True)
    assert np.array_equal(before[:first], expected[:first], equal_nan=True)


def test_energies_too_far_from_their_frames_are_told(
    tmp_path: Path, data_dir: Path, blocks: list[Aligned]
) -> None:
    """A repeat of a session that is longer than what is read ahead."""
    old = blocks[-1].frames
    early = replace(blocks[-1], frames=replace(old, begin=old.begin - 10**12, end=old.end - 10**12))
    path = tmp_path / "energy.otlp"
    path.write_bytes(frame(encode_energy(early, {"service.name": "test"}), compressor()))
    faults: list[Fault] = []
    session = as_recorded(data_dir)
    list(stream(replace(session, energy=[*session.energy, path]), faults))
    (fault,) = faults
    assert f"{len(old)} energy spans stand too far from their frames" in str(fault)


def test_without_the_meters_name_it_is_not_made_up(data_dir: Path, blocks: list[Aligned]) -> None:
    spans = decode_traces(b"".join(encode_energy(block, {SIMULATED: True}) for block in blocks))
    for name in [name for name in spans.attributes if name.endswith(".meter")]:
        del spans.attributes[name]
    frames = blocks[-1].frames

    def known() -> recorded.Energies:
        return recorded.Energies(iter([spans]))

    told = with_recorded(frames, known(), {})
    assert [(r.meter, r.domain) for r in told.readings] == [(UNNAMED, "system"), KEYS[1]]
    assert all(r.simulated for r in told.readings)
    here = {(r.meter, r.domain): r for r in blocks[-1].readings}
    told = with_recorded(frames, known(), here)
    assert [(r.meter, r.domain) for r in told.readings] == KEYS[:2]


def test_garbled_attributes_are_no_figures(blocks: list[Aligned]) -> None:
    spans = decode_traces(b"".join(encode_energy(block, {}) for block in blocks))
    spans.attributes["energy.system_j"].values = np.array(["many"] * len(spans), object)[
        spans.attributes["energy.system_j"].rows
    ]
    told = with_recorded(blocks[-1].frames, recorded.Energies(iter([spans])), {})
    assert [(r.meter, r.domain) for r in told.readings] == KEYS[1:2]


def test_the_report_says_what_is_gone(pruned: Session) -> None:
    recording = load_recorded(pruned, [])
    report = make_report(recording.runs[0], of_run(recording, 0))
    assert any(AS_RECORDED in line for line in report.unresolved)
    assert report.comparisons == []
    for energy in report.energy:
        gone = (energy.base_w, energy.check, energy.ledger, energy.window, energy.rate_hz, energy.idle_w)
        assert gone == (None,) * 6
        assert all(stage.joules_uncertainty is None for stage in energy.stages)
        assert energy.own is not None
    whole = load(open_session("whole", pruned.path.parents[1]), [])
    aligned = make_report(whole.runs[0], of_run(whole, 0))
    ((one, other),) = [
        (one, other)
        for one in report.energy
        for other in aligned.energy
        if (one.meter, one.domain) == KEYS[0] == (other.meter, other.domain)
    ]
    assert one.conditioned is not None
    assert other.conditioned is not None
    assert one.conditioned.mean_j == pytest.approx(other.conditioned.mean_j, rel=0.05)
    assert [s.stages for s in one.stages] == [s.stages for s in other.stages]
    for mine, its in zip(one.stages, other.stages, strict=True):
        assert mine.watts == pytest.approx(its.watts, rel=0.2)


def test_one_frame_explained(pruned: Session) -> None:
    recording = load_recorded(pruned, [])
    frame = explain(recording, 0, 1600)
    assert frame.meters == []  # no samples, and none are told of
    assert [d.conditioned.joules is not None for d in frame.domains] == [True, True, False]


@pytest.fixture
def commands(pruned: Session, data_dir: Path, blocks: list[Aligned]) -> Path:
    return data_dir


def test_the_commands_on_a_session_without_samples(commands: Path, tmp_path: Path) -> None:
    done = run("report", "pruned", data_dir=commands)
    assert "joules are as they were recorded" in done.stderr
    words = " ".join(done.stdout.split())
    assert "SIMULATED" in words
    assert "as they were recorded, since the samples are gone" in words
    assert "base " not in words.split("Not resolved")[0]
    runs = json.loads(run("report", "pruned", "--json", data_dir=commands).stdout)["runs"]
    assert {e["meter"] for e in runs[0]["energy"]} == {meter for meter, _ in KEYS}
    done = run("compare", "whole", "pruned", "--json", data_dir=commands)
    changes = {c["figure"]: c for c in json.loads(done.stdout)["comparisons"][0]["changes"]}
    energy = [c for name, c in changes.items() if name.startswith("energy.system")]
    assert {"energy.system.frame", "energy.system.infer", f"energy.system@{KEYS[1][0]}.shared"} <= set(
        changes
    )
    assert all(c["p"] is not None and not c["changed"] for c in energy)  # the same session
    assert "pruned" in run("plot", "pruned", "--out", tmp_path / "a.svg", data_dir=commands).stderr
    assert b"<svg" in (tmp_path / "a.svg").read_bytes()[:2000]
    assert "Trace" in run("report", "pruned", "--explain", "1200", data_dir=commands).stdout
    assert "P99" in run("report", "pruned", "--capframex", data_dir=commands).stdout


@pytest.mark.parametrize("to", ["capframex-json", "capframex-csv", "presentmon-csv", "csv", "perfetto"])
def test_every_format(to: str, commands: Path, tmp_path: Path) -> None:
    name = {"perfetto": "a.pftrace", "csv": "tables"}.get(to, "captures")
    for session, options in (("pruned", ()), ("whole", ("--recorded",))):
        out = tmp_path / session / name
        out.parent.mkdir()
        run("convert", session, "--to", to, "--out", out, *options, data_dir=commands)
        assert out.exists()


def test_parquet_is_the_same_whether_or_not_the_samples_are_there(commands: Path, tmp_path: Path) -> None:
    for session, options in (("pruned", ()), ("whole", ("--recorded",))):
        run("convert", session, "--to", "parquet", "--out", tmp_path / session, *options, data_dir=commands)
    one, other = (pd.read_parquet(tmp_path / name / "energy.parquet") for name in ("whole", "pruned"))
    by = ["frame", "stage", "meter", "domain", "method"]
    one, other = (table.sort_values(by, ignore_index=True) for table in (one, other))
    pd.testing.assert_frame_equal(one, other)
    assert set(one["method"]) == {"interpolated", "conditioned"}
    assert {"decode", "infer"} <= set(one["stage"].dropna())
    assert len(pd.read_parquet(tmp_path / "whole" / "samples.parquet")) > 1000
    assert len(pd.read_parquet(tmp_path / "pruned" / "samples.parquet")) == 0


def test_recorded_needs_a_recording(tmp_path: Path) -> None:
    live(tmp_path, "s", seconds=5)
    (tmp_path / "sessions" / "s" / ENERGY).unlink()
    refused = run("convert", "s", "--to", "csv", "--recorded", data_dir=tmp_path, code=2)
    assert "no energy.otlp in it" in refused.stderr


def test_a_stage_without_figures_says_so(pruned: Session) -> None:
    found = energies_of(pruned, [], whole=True)
    (one,) = load_recorded_runs(pruned, [])
    frames = replace(one.frames, stage_names=["decode", "other"])
    told = with_recorded(frames, found, {})
    figures = [f for f in recorded._attribution(told.readings[0], [told]).stages if f.group == ["other"]]
    assert [f.reason for f in figures] == [NO_FIGURE]


@pytest.mark.parametrize(
    ("attribute", "wanted"),
    [
        ("energy.system_j", True),
        ("energy.system_interpolated_uncertainty_j", True),
        ("energy.package-0.method", True),
        ("energy.system.meter", True),
        ("energy.system@10.0.0.5:1883_j", True),
        ("energy.system.decode_j", False),
        ("energy.system.de@code_j", False),
        ("energy.system.resolvable", False),
        ("power.system_mean_w", False),
    ],
)
def test_which_attributes_are_of_whole_frames(attribute: str, wanted: bool) -> None:
    assert recorded._of_frame(attribute) == wanted
