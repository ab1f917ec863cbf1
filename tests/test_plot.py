"""Pictures: the data in them against the truth, and real files that open, show and say what they should."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import zstandard
from PIL import Image

from benchlab_otel.align.attribution.stream import reading_rows
from benchlab_otel.archive.records import frame
from benchlab_otel.export import compare_plot
from benchlab_otel.export.compare import Change, Comparison
from benchlab_otel.export.plot import NothingToDraw, Stretch, _edges, _level, stretch, write
from benchlab_otel.export.recording import Recording, attributed
from benchlab_otel.model import Run
from benchlab_otel.simulate.power import Background, Load, Meter, Stage, Truth, measure, requests, simulate
from frames_of import make_readings, make_run

STAGES = (Stage("decode", 60.0, 0.005), Stage("infer", 220.0, 0.010), Stage("display", 110.0, 0.006))
METERS = [
    Meter(noise=0.2, lag_s=0.01),
    Meter(name="rapl", domain="package-0", kind="energy", rate_hz=50.0),
]


@pytest.fixture(scope="module")
def truth() -> Truth:
    """Frames that overlap over a background that switches."""
    load = Load(STAGES, duration_s=20, background=Background(95.0, 30.0, 3.0), start_spread=0.2)
    return simulate(load, np.random.default_rng(4))


@pytest.fixture(scope="module")
def recording(truth: Truth) -> Recording:
    rng = np.random.default_rng(5)
    return attributed([Run(truth.frames, [measure(truth, meter, rng) for meter in METERS])])


def attributed_joules(data: Stretch) -> float:
    """What is stacked in the picture: base and stages over the stretch."""
    assert data.base is not None
    edges = _edges(data)
    middle = (edges[1:] + edges[:-1]) / 2
    watts = np.interp(middle, *data.base) + sum(_level(track, middle) for track in data.tracks)
    return float(watts @ np.diff(edges))


@pytest.mark.parametrize("domain", ["system", "package-0"])
def test_the_stacked_power_is_the_true_energy(truth: Truth, recording: Recording, domain: str) -> None:
    data = stretch(recording, domain, 5.0, 10.0)
    first = (truth.frames.begin.min() - 1_760_000_000_000_000_000) / 1e9
    true = truth.energy(np.array([first + 5.0]), np.array([first + 10.0]))[0]
    assert attributed_joules(data) == pytest.approx(true, rel=0.03)


def test_readings_stand_where_they_average(recording: Recording) -> None:
    begin, end, watts = stretch(recording, "system", 5.0, 6.0).readings
    assert end - begin == pytest.approx(0.05)
    assert len(watts) in range(17, 25)
    assert ((watts > 90) & (watts < 700)).all()
    begin, end, watts = stretch(recording, "package-0", 5.0, 6.0).readings
    assert end[:-1] == pytest.approx(begin[1:])  # a counter leaves nothing out
    assert watts.mean() == pytest.approx(300, rel=0.2)


def test_the_stretch_is_a_second_in_the_middle(recording: Recording) -> None:
    data = stretch(recording)
    assert (data.begin, data.end) == pytest.approx((9.5, 10.5), abs=0.15)
    assert data.title == "simulated: system of meter0"
    assert [track.name for track in data.tracks] == ["decode", "infer", "display"]
    assert data.simulated == ["pipeline simulated", "meter meter0"]
    assert data.conditioned is not None
    assert len(data.conditioned.at) in range(55, 65)
    assert stretch(recording, None, 3.0).end == 4.0
    assert stretch(recording, None, None, 3.0).begin == 2.0


def test_refusals_in_words(recording: Recording) -> None:
    with pytest.raises(NothingToDraw, match="no domain 'gpu' in the session; it has system, package-0"):
        stretch(recording, "gpu")
    with pytest.raises(NothingToDraw, match=r"no frame between 90 and 91 s; the last one ends at 20\.\d+ s"):
        stretch(recording, None, 90.0)
    with pytest.raises(NothingToDraw, match="ends at 3 s, before it begins at 4 s"):
        stretch(recording, None, 4.0, 3.0)
    with pytest.raises(NothingToDraw, match="no reading of a power or energy meter"):
        stretch(attributed([Run(make_run().frames)]))
    with pytest.raises(NothingToDraw, match="no frame in the session"):
        stretch(Recording([], []))


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        image.load()
        return np.asarray(image.convert("RGB"))


def near(colours: np.ndarray, colour: str) -> int:
    """How many pixels have about this colour."""
    wanted = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)])
    return int((np.abs(colours.astype(int) - wanted).max(axis=2) < 12).sum())


def test_png_shows_base_stages_and_readings(recording: Recording, tmp_path: Path) -> None:
    path = tmp_path / "power.png"
    write(path, stretch(recording, "system", 5.0, 5.5))
    colours = pixels(path)
    assert colours.shape[0] > 800
    assert colours.shape[1] > 1200
    for colour, least in (("#C9CDD1", 20_000), ("#0072B2", 5_000), ("#E69F00", 20_000), ("#009E73", 5_000)):
        assert near(colours, colour) > least
    assert near(colours, "#1B1F23") > 2_000  # the readings and the text
    assert 0.3 < (colours == 255).all(axis=2).mean() < 0.95
    assert [p.name for p in tmp_path.iterdir()] == ["power.png"]


def svg_text(path: Path) -> list[str]:
    tree = ElementTree.parse(path)
    return ["".join(node.itertext()).strip() for node in tree.iter("{http://www.w3.org/2000/svg}text")]


def test_svg_says_what_it_shows_and_is_the_same_each_time(recording: Recording, tmp_path: Path) -> None:
    data = stretch(recording, "system", 5.0, 5.5)
    for name in ("a.svg", "b.svg"):
        write(tmp_path / name, data)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
    shown = svg_text(tmp_path / "a.svg")
    assert "SIMULATED: pipeline simulated, meter meter0" in shown
    assert {"Power (W)", "Time since the first frame began (s)", "decode", "infer", "display", "base"} <= set(
        shown
    )
    assert "Energy while" in " ".join(shown)
    assert {"conditioned ± 95 %"} <= set(shown)


def test_names_are_no_formulas(truth: Truth, tmp_path: Path) -> None:
    """Two dollars in a name would begin one, and what is between them seldom is one."""
    frames = replace(truth.frames, pipeline=r"cam$\frac$", stage_names=["$HOME/a$b", r"$\bad{", "c"])
    series = measure(truth, METERS[0], np.random.default_rng(5))
    write(tmp_path / "a.svg", stretch(attributed([Run(frames, [series])]), "system", 5.0, 5.5))
    assert {"$HOME/a$b", r"$\bad{"} <= set(svg_text(tmp_path / "a.svg"))
    moved = Change("latency.$a$.mean", "s", 1.0, 2.0, 1.0, 0.1, 1.0, 0.1)
    compare_plot.write(tmp_path / "b.svg", [Comparison(r"cam$\frac$", "a", "b", 9, 9, [moved])])
    assert (tmp_path / "b.svg").is_file()


def test_real_data_are_not_called_simulated(tmp_path: Path) -> None:
    run = make_run(300)
    run.readings = [replace(make_readings("gpu", 6 * 10**9), window_ns=50_000_000)]
    write(tmp_path / "a.svg", stretch(attributed([run])))
    assert not any("SIMULATED" in text for text in svg_text(tmp_path / "a.svg"))


def test_no_base_is_drawn_where_the_meter_saw_nothing(truth: Truth) -> None:
    readings = measure(truth, Meter(noise=0.2), np.random.default_rng(1))
    first, last = (np.quantile(readings.time, part) for part in (0.4, 0.6))
    seen = (readings.time < first) | (readings.time > last)
    run = Run(truth.frames, [reading_rows(readings, np.flatnonzero(seen))])
    data = stretch(attributed([run]))
    assert data.base is not None
    begin, end = ((t - truth.frames.begin.min()) / 1e9 for t in (first, last))
    inside = np.interp(np.linspace(begin + 0.2, end - 0.2, 50), *data.base)
    assert np.isnan(inside).all()
    assert np.isfinite(np.interp([begin - 0.5, end + 0.5], *data.base)).all()


def test_a_long_reason_stays_in_the_picture(tmp_path: Path) -> None:
    run = make_run(60)
    run.readings = [make_readings("gpu", 5 * 10**8)]
    data = replace(stretch(attributed([run])), reason="the meter's lag and window are not known " * 5)
    write(tmp_path / "a.svg", data)
    assert max(map(len, svg_text(tmp_path / "a.svg"))) <= 90


def test_without_attribution_the_picture_says_why(tmp_path: Path) -> None:
    run = make_run(60)
    run.readings = [make_readings("gpu", 5 * 10**8)]
    data = stretch(attributed([run]))
    assert data.base is None
    write(tmp_path / "a.svg", data)
    assert any(
        text.startswith("Nothing attributed: too little data") for text in svg_text(tmp_path / "a.svg")
    )


def test_more_stages_than_colours(tmp_path: Path) -> None:
    stages = tuple(Stage(f"s{i}", 20.0 + 10 * i, 0.001) for i in range(9))
    rng = np.random.default_rng(1)
    truth = simulate(Load(stages, duration_s=20), rng)
    data = stretch(attributed([Run(truth.frames, [measure(truth, METERS[0], rng)])]), None, 5.0, 5.2)
    write(tmp_path / "a.png", data)
    assert len(data.tracks) == 9
    assert pixels(tmp_path / "a.png").std() > 10


PROGRAM = Path(sys.executable).with_name("benchlab-otel")


def test_as_a_command(truth: Truth, tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    compressor = zstandard.ZstdCompressor()
    bodies = requests([truth.frames], [measure(truth, METERS[0], rng)], METERS[:1])
    session = tmp_path / "traces.otlp"
    session.write_bytes(b"".join(frame(body, compressor) for body in bodies))

    def plot(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
        command = [PROGRAM, "plot", session, *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=120)

    done = plot("--out", tmp_path / "a.png", "--from", "4", "--to", "4.5")
    assert done.stdout == f"{tmp_path / 'a.png'}  simulated: system of meter0, 4 to 4.5 s\n"
    assert pixels(tmp_path / "a.png").std() > 10
    refused = plot("--out", tmp_path / "a.gif")
    assert refused.returncode == 2
    assert "expected a name that ends with .png or .svg" in refused.stderr
    refused = plot("--out", tmp_path / "b.png", "--domain", "gpu")
    assert (refused.returncode, refused.stderr) == (
        2,
        "benchlab-otel: no domain 'gpu' in the session; it has system\n",
    )
    assert not (tmp_path / "b.png").exists()


@pytest.mark.parametrize("arguments", ["plot latest", "compare a b --plot c.svg"])
def test_without_matplotlib_the_command_says_how_to_get_it(arguments: str) -> None:
    code = f"""
import sys
sys.modules["matplotlib"] = None  # what an absent package looks like to import
from benchlab_otel.cli import main
sys.argv = ["benchlab-otel", *{arguments.split()}]
main()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 2
    wanted = f"matplotlib is not installed: {sys.executable} -m pip install 'matplotlib>=3.10'"
    assert done.stderr == f"benchlab-otel: {wanted}\n"
