"""The command line as people and scripts meet it: real processes, exit codes, no stack traces."""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest

from benchlab_otel import __version__
from benchlab_otel.archive.session import create
from benchlab_otel.cli import COMMANDS
from benchlab_otel.timebase import anchor
from capframex_validator import csv_problems, json_problems
from frames_of import make_run, requests

PROGRAM = Path(sys.executable).with_name("benchlab-otel")


def run(
    *arguments: str | Path,
    data_dir: Path | None = None,
    code: int = 0,
    cwd: Path | None = None,
    **environment: str,
) -> subprocess.CompletedProcess[str]:
    """One command in a process of its own; checks the exit code and that nothing was traced."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("BENCHLAB_OTEL_")}
    env |= {"COLUMNS": "80", "XDG_CONFIG_HOME": os.devnull, **environment}
    if data_dir:
        env["BENCHLAB_OTEL_SESSION__DATA_DIR"] = str(data_dir)
    done = subprocess.run(
        [PROGRAM, *arguments], capture_output=True, text=True, env=env, cwd=cwd, timeout=120
    )
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr + done.stdout
    return done


@pytest.fixture
def recorded(tmp_path: Path) -> Path:
    """A data folder with one session of 120 frames, one of them dropped, and a simulated meter."""
    writer = create(tmp_path / "data", anchor(), ["test"], "s1")
    made = make_run(120, dropped=(5,))
    made.readings[0].simulated = True
    for body in requests(made):
        writer.traces(body)
    writer.close()
    return tmp_path / "data"


# -- the program ------------------------------------------------------------------------------


def test_help_lists_every_command_in_one_line() -> None:
    shown = run("--help").stdout
    assert all(re.search(rf"^\W*{name}\s+\S.*$", shown, re.MULTILINE) for name in COMMANDS)
    assert max(map(len, shown.splitlines())) <= 80
    assert "Exit codes: 0 done; 1 something failed" in shown


def test_help_imports_no_command() -> None:
    code = """
import sys
from benchlab_otel.cli import main
sys.argv = ["benchlab-otel", "--help"]
try:
    main()
except SystemExit:
    print("numpy" in sys.modules, file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "False"


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_each_command_has_an_example(name: str) -> None:
    arguments = (name, "show") if name in ("config", "sessions") else (name,)
    shown = run(*arguments, "--help").stdout
    assert max(map(len, shown.splitlines())) <= 80, "examples that are wrapped can't be pasted"
    examples = [line for line in shown.splitlines() if "Usage:" not in line]
    assert any(f"benchlab-otel {' '.join(arguments)}" in line for line in examples)


def test_version() -> None:
    assert run("--version").stdout == f"benchlab-otel {__version__}\n"


def test_unknown_command_and_option_end_with_2() -> None:
    assert "No such command 'nope'" in run("nope", code=2).stderr
    assert "--nope" in run("report", "--nope", code=2).stderr


def ended(body: str, *arguments: str) -> tuple[int, str]:
    """Exit code and stderr of a command with that body."""
    code = f"""
import sys, types
from benchlab_otel import cli
def command() -> None:
    {body}
sys.modules["benchlab_otel.cli.broken"] = types.SimpleNamespace(command=command)
cli.COMMANDS["broken"] = ("broken", "")
sys.argv = ["benchlab-otel", *{arguments!r}, "broken"]
cli.main()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    return done.returncode, done.stderr


def test_a_bug_says_how_to_report_it() -> None:
    code, stderr = ended("{}['x']")
    assert code == 1
    assert stderr.startswith("benchlab-otel: unexpected KeyError: 'x'\nPlease report it")
    assert "Traceback" in ended("{}['x']", "--debug")[1]


def test_errors_of_the_machine_name_the_file() -> None:
    assert ended("open('/nonexistent/file')") == (
        1,
        "benchlab-otel: /nonexistent/file: No such file or directory\n",
    )


def test_ctrl_c_ends_with_130() -> None:
    assert ended("raise KeyboardInterrupt") == (130, "")


# -- configuration ----------------------------------------------------------------------------


def test_config_show_says_where_values_come_from(tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text("[hub]\nmax_request_mib = 8\n")
    environment = {"BENCHLAB_OTEL_SOURCES__BENCHLAB__RATE_HZ": "50", "BENCHLAB_OTEL_CONFIG": str(file)}
    found = json.loads(run("config", "show", "--json", **environment).stdout)
    assert found["hub.max_request_mib"]["origin"] == f"{file}:2"
    assert found["sources.benchlab.rate_hz"] == {
        "value": 50.0,
        "origin": "$BENCHLAB_OTEL_SOURCES__BENCHLAB__RATE_HZ",
        "variable": "BENCHLAB_OTEL_SOURCES__BENCHLAB__RATE_HZ",
    }
    assert re.search(r"hub\.http +\"127\.0\.0\.1:4318\" +default", run("config", "show").stdout)
    narrow = run("config", "show", COLUMNS="80").stdout
    assert all(f"{key} " in narrow for key in found), "keys are whole at 80 columns"


def test_config_show_hides_secrets(tmp_path: Path) -> None:
    environment = {
        "BENCHLAB_OTEL_SOURCES__BENCHLAB_HTTP__URLS": "http://me:geheim@host:8585,http://host/?token=geheim2",
        "BENCHLAB_OTEL_SOURCES__BENCHLAB_MQTT__PASSWORD_FILE": "/run/secrets/mqtt",
    }
    for arguments in ((), ("--json",)):
        told = run("config", "show", *arguments, COLUMNS="200", **environment).stdout
        assert "geheim" not in told
        assert "http://***@host:8585" in told
        assert "/run/secrets/mqtt" in told, "where it is read is no secret"


def test_a_mistake_in_the_configuration_ends_any_command_with_2(tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text("[hub]\ngrcp = 'x'\n")
    for arguments in (("config", "show"), ("report",)):
        error = run(*arguments, "--config", file, code=2).stderr
        assert error == f"benchlab-otel: {file}:2: unknown key hub.grcp; did you mean hub.grpc?\n"
    assert "No such file" in run("report", "--config", tmp_path / "gone", code=2).stderr


# -- report and convert -----------------------------------------------------------------------


def test_report_as_table_and_as_json(recorded: Path) -> None:
    shown = run("report", data_dir=recorded).stdout
    assert "cam0: 120 frames in 2.0 s" in shown
    assert "1 dropped (0.8%)" in shown
    assert "SIMULATED: meter benchlab-1" in shown
    found = json.loads(run("report", "s1", "--json", "--pair", "ingress:infer", data_dir=recorded).stdout)
    assert found["session"] == "s1"
    (one,) = found["runs"]
    assert one["outcomes"] == {"completed": 119, "dropped": 1, "failed": 0}
    assert one["pairs"][0]["p50_s"] == pytest.approx(0.008, rel=0.05)
    assert one["energy"][0]["domain"] == "gpu"


def test_report_of_what_is_not_there(recorded: Path, tmp_path: Path) -> None:
    assert "no such session" in run("report", "s2", data_dir=recorded, code=2).stderr
    assert "no such session" in run("report", data_dir=tmp_path / "none", code=2).stderr
    unknown = run("report", "--pair", "x:infer", data_dir=recorded, code=2).stderr
    assert "no mark 'x'; it has ingress" in unknown


def test_empty_session(tmp_path: Path) -> None:
    create(tmp_path, anchor(), ["test"], "empty").close()
    assert "No frame in it" in run("report", data_dir=tmp_path).stdout
    assert json.loads(run("report", "--json", data_dir=tmp_path).stdout)["runs"] == []
    refused = run("convert", "empty", "--to", "capframex-json", data_dir=tmp_path, code=2)
    assert "no frame in it" in refused.stderr


def test_damaged_archive_is_read_as_far_as_it_goes(recorded: Path) -> None:
    traces = recorded / "sessions" / "s1" / "traces.otlp"
    whole = traces.read_bytes()
    traces.write_bytes(whole[:-20])
    done = run("report", "--json", data_dir=recorded)
    assert "the last record is cut off" in done.stderr
    found = json.loads(done.stdout)
    assert found["runs"][0]["frames"] == 120
    assert str(traces) in found["faults"][0]


def test_session_still_being_written(tmp_path: Path) -> None:
    writer = create(tmp_path, anchor(), ["test"], "live")
    writer.traces(requests(make_run(120))[0])
    writer.flush()
    done = run("report", data_dir=tmp_path)
    writer.close()
    assert "is still being recorded" in done.stderr
    assert "120 frames" in done.stdout


def test_convert_to_capframex(recorded: Path, tmp_path: Path) -> None:
    pairs = ("--pair", "ingress:infer", "--pair", "infer:display")
    out = ("--out", tmp_path / "out")
    done = run("convert", "latest", "--to", "capframex-json", *out, *pairs, data_dir=recorded)
    path = tmp_path / "out" / "cam0.json"
    assert done.stdout.startswith(f"{path}  119 frame times; CapFrameX shows 6")
    assert json_problems(path) == []
    capture = json.loads(path.read_bytes())
    names = {s["Name"] for s in capture["Runs"][0]["SensorData2"].values()}
    assert {"frame", "decode", "infer", "display", "ingress:infer", "infer:display", "GPU Power"} <= names
    assert "SIMULATED: benchlab-1" in capture["Info"]["Comment"]
    run("convert", "s1", "--to", "capframex-csv", "--out", tmp_path / "c.csv", data_dir=recorded)
    assert csv_problems(tmp_path / "c.csv") == []


def test_several_sessions_become_several_runs(recorded: Path, tmp_path: Path) -> None:
    writer = create(recorded, anchor(), ["test"], "s2")
    for body in requests(make_run(60, seed=2)):
        writer.traces(body)
    writer.close()
    run("convert", "s1", "s2", "--to", "capframex-json", "--out", tmp_path / "c.json", data_dir=recorded)
    assert json_problems(tmp_path / "c.json") == []
    assert len(json.loads((tmp_path / "c.json").read_bytes())["Runs"]) == 2


def test_convert_refuses_in_words(recorded: Path, tmp_path: Path) -> None:
    def refused(*arguments: str | Path) -> str:
        return run("convert", "s1", *arguments, data_dir=recorded, code=2).stderr

    as_json = ("--to", "capframex-json", "--out", tmp_path / "c.json")
    assert "capframex-json" in refused("--to", "gif")
    assert "no mark 'x'" in refused(*as_json, "--pair", "x:infer")
    assert "no stage 'x'" in refused(*as_json, "--accelerator", "x")
    assert "no pipeline 'x' in it; there is cam0" in refused(*as_json, "--pipeline", "x")
    assert "ends with .json" in refused("--to", "capframex-json", "--out", tmp_path / "c.txt")
    assert not (tmp_path / "c.json").exists()


def test_a_folder_that_cannot_be_written_ends_with_1(recorded: Path) -> None:
    done = run("convert", "s1", "--to", "capframex-json", "--out", "/proc/none", data_dir=recorded, code=1)
    assert done.stderr.startswith("benchlab-otel: /proc/none: ")


@pytest.mark.parametrize(
    "arguments",
    [
        ("report",),
        ("align", "--out", "out"),
        ("convert", "--to", "csv", "--out", "out"),
        ("convert", "--to", "capframex-json", "--out", "out"),
        ("replay",),
        ("sessions", "show"),
    ],
)
def test_a_file_that_is_no_otlp_is_refused_in_one_line(arguments: tuple[str, ...], tmp_path: Path) -> None:
    file = tmp_path / "noise.otlp"
    file.write_bytes(random.Random(1).randbytes(2000))
    done = run(*arguments, file, data_dir=tmp_path, code=2, cwd=tmp_path)
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith(f"benchlab-otel: {file}: no OTLP in it (byte 0: ")
    assert "benchlab-otel import FILE" in done.stderr
    assert done.stdout == ""
    assert not (tmp_path / "out").exists()


def test_a_foreign_file_without_frames_is_reported_so(tmp_path: Path) -> None:
    file = tmp_path / "others.jsonl"
    file.write_text('{"resourceSpans":[]}\n{"resourceMetrics":[]}\n')
    done = run("report", file, data_dir=tmp_path)
    assert "No frame in it" in done.stdout
    assert "benchlab-otel import FILE" in done.stdout
    assert done.stderr == ""
    assert "no such file" in run("report", tmp_path / "gone.otlp", data_dir=tmp_path, code=2).stderr


def test_what_an_exporter_could_not_deliver_is_said() -> None:
    done = run("export", "host", "--otlp", "http://127.0.0.1:9", "--for", "1", code=1)
    assert re.search(r"lost: \d+ spans and points \(no receiver took them before the end\)", done.stderr)


def test_names_from_files_are_text_to_the_terminal(tmp_path: Path) -> None:
    """Brackets are no markup, which failed or vanished, and escapes of somebody's archive steer nothing."""
    writer = create(tmp_path, anchor(), ["run", "photos[/2026] [red]x"], "s1")
    made = make_run(60)
    made.frames.pipeline, made.frames.stage_names = "cam\x1b[2J", ["a[/y]", "b[red]", "\x1b]0;title\x07"]
    made.readings[0].meter = "m[/z]\x9b31m"
    for body in requests(made):
        writer.traces(body)
    writer.close()
    run("note", "--session", "s1", "\x1b[31m[/n]", data_dir=tmp_path)
    shown = {
        "sessions list": "run 'photos[/2026] [red]x'",
        "sessions show": "␛[31m[/n]",
        "report": "a[/y]",
        "report --explain 5": "b[red]",
        "report --capframex": "cam␛[2J: 59 frame times",
        "compare s1 s1": "latency.b[red].mean",
    }
    for command, expected in shown.items():
        told = run(*command.split(), data_dir=tmp_path).stdout
        assert expected in told
        assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", told)
    wrong = ("--pipeline", "x", "--out", tmp_path / "out")
    refused = run("convert", "s1", "--to", "csv", *wrong, data_dir=tmp_path, code=2).stderr
    assert "there is cam␛[2J" in refused
