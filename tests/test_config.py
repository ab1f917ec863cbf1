"""The configuration: precedence, origins, and mistakes named by place, expectation and nearest key."""

from __future__ import annotations

import json
import os
import re
from contextlib import suppress
from dataclasses import fields, is_dataclass
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchlab_otel.cli import main
from benchlab_otel.config import ConfigError, Settings, load, resolve, variable


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No configuration but that of the test."""
    for name in os.environ:
        if name.startswith("BENCHLAB_OTEL_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "xdg"))
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "c.toml"
    path.write_text(text)
    return path


def problems(path: Path) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(path)
    return str(caught.value).splitlines()


def test_defaults_are_the_dataclasses() -> None:
    assert load() == Settings()
    assert all(v.origin == "default" for v in resolve().values())
    assert str(load().session.data_dir).endswith(".local/state/benchlab-otel")


def test_environment_over_file_over_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(
        tmp_path,
        "[sources.benchlab]\nrate_hz = 10\nlag_ms = 4\n# below\n[hub]\ngrpc = '0.0.0.0:1'  # all\n"
        "[align]\npairs = ['a:b']\n",
    )
    monkeypatch.setenv("BENCHLAB_OTEL_SOURCES__BENCHLAB__RATE_HZ", "50")
    monkeypatch.setenv("BENCHLAB_OTEL_SOURCES__ENABLED", "rapl, host")
    found = load(path)
    assert found.sources.benchlab.rate_hz == 50
    assert found.sources.benchlab.lag_ms == 4
    assert found.sources.enabled == ("rapl", "host")
    assert found.hub.grpc == "0.0.0.0:1"
    assert found.align.pairs == ("a:b",)
    origins = {key: v.origin for key, v in resolve(path).items()}
    assert origins["sources.benchlab.rate_hz"] == "$BENCHLAB_OTEL_SOURCES__BENCHLAB__RATE_HZ"
    assert origins["sources.benchlab.lag_ms"] == f"{path}:3"
    assert origins["hub.grpc"] == f"{path}:6"
    assert origins["hub.http"] == "default"


@pytest.mark.parametrize("account", ["lab:hunter2", "lab:hu@/nter2", "hunter2"])
def test_an_account_of_a_broker_is_not_shown(
    account: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("BENCHLAB_OTEL_SOURCES__BENCHLAB_MQTT__BROKER", f"{account}@broker:1883")
    monkeypatch.setattr("sys.argv", ["benchlab-otel", "config", "show", "--json"])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["sources.benchlab_mqtt.broker"]["value"] == "***@broker:1883"
    assert shown["hub.grpc"]["value"] == "127.0.0.1:4317"


def test_a_list_with_brackets_in_a_variable_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """As `config show` writes it, a port would else be called `["/dev/a"]`."""
    monkeypatch.setenv("BENCHLAB_OTEL_SOURCES__BENCHLAB__PORTS", '["/dev/a"]')
    with pytest.raises(ConfigError, match=r"PORTS: sources.benchlab.ports: write a list as a,b without"):
        load()


def test_every_key_can_be_set_by_its_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    samples = {
        "Path": "/x",
        "str": "1.2.3.4:5",
        "float": "0.7",
        "int": "1",
        "bool": "true",
        "tuple": "a:b,c:d",
        "NoneType": "7",
    }
    by_key = {
        "sources.host.pids": "7,8",
        "sources.benchlab.control.fans": "1 temperature.TS1 30:20 60:100,2 power.gpu 100:30 400:100",
    }
    for key, found in resolve().items():
        by_type = samples[type(found.value).__name__.replace("Posix", "")]
        monkeypatch.setenv(variable(key), by_key.get(key, by_type))
    assert {v.origin[0] for v in resolve().values()} == {"$"}
    assert is_dataclass(load())


def test_the_first_file_found_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "xdg" / "benchlab-otel" / "config.toml"
    home.parent.mkdir(parents=True)
    home.write_text("[align]\nlateness_s = 1\n")
    assert load().align.lateness_s == 1
    named = written(tmp_path, "[align]\nlateness_s = 2\n")
    monkeypatch.setenv("BENCHLAB_OTEL_CONFIG", str(named))
    assert load().align.lateness_s == 2
    given_file = tmp_path / "given.toml"
    given_file.write_text("[align]\nlateness_s = 3\n")
    assert load(given_file).align.lateness_s == 3
    with pytest.raises(OSError, match="gone"):
        load(tmp_path / "gone.toml")


@pytest.mark.parametrize(
    ("text", "line", "expected"),
    [
        ("[hub]\ngrcp = 'x:1'", 2, "unknown key hub.grcp; did you mean hub.grpc[?]"),
        ("\n[sorces]\nenabled = []", 2, "unknown key sorces.*"),
        ("[hub]\ngrpc = 'here'", 2, "hub.grpc: expected host:port, such as 127.0.0.1:4317, not 'here'"),
        ("[align]\n\nlateness_s = '2'", 3, "align.lateness_s: expected number, not '2'"),
        ("[align]\npairs = ['a']", 2, "align.pairs: expected a list of from:to, .*"),
        ("[sources]\nenabled = 'rapl'", 2, "sources.enabled: expected a list of text, not 'rapl'"),
        ("[sources]\nbenchlab = {rate_hz = 0}", 2, "sources.benchlab.rate_hz: expected number > 0.0, not 0"),
        ("sources.rapl = 3", 1, r"sources.rapl is a table, not a value; write \[sources.rapl\].*"),
        ("[sources.rapl]\nrate_hz = inf", 2, "sources.rapl.rate_hz: expected number <= 100000.0, not inf"),
        ("[sources.nvml]\nrate_hz = nan", 2, "sources.nvml.rate_hz: expected number > 0.0, not nan"),
        (
            "[sources.benchlab]\ntimeout_s = 1e9",
            2,
            "sources.benchlab.timeout_s: expected number <= 3600.0, .*",
        ),
        (
            "[sources.benchlab]\nlag_ms = inf",
            2,
            "sources.benchlab.lag_ms: expected number <= 1000000000.0, not inf",
        ),
        ("[hub]\ngrpc = 'localhost:65536'", 2, "hub.grpc: expected host:port, .*"),
        ("[sources.benchlab_mqtt]\nprefix = 'lab/#'", 2, ".*prefix: expected a topic without wildcards, .*"),
        ("[sources.benchlab_mqtt]\nuids = ['+']", 2, ".*uids: expected a list of UIDs, .*"),
        (
            "[sources.benchlab.control]\nfans = ['1 power.gpu 1.2.3:20 60:100']",
            2,
            ".*fans: expected a list of FAN QUANTITY LOW:DUTY .*",
        ),
        ("[session]\ndata_dir = 3", 2, "session.data_dir: expected text, not 3"),
        ("[align]\nlateness_s = true", 2, "align.lateness_s: expected number, not True"),
    ],
)
def test_mistakes_name_line_key_and_expectation(text: str, line: int, expected: str, tmp_path: Path) -> None:
    path = written(tmp_path, text)
    (problem,) = problems(path)
    assert re.fullmatch(f"{re.escape(str(path))}:{line}: {expected}", problem)


def test_all_mistakes_are_told_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BENCHLAB_OTEL_ALIGN__LATENESS", "3")
    monkeypatch.setenv("BENCHLAB_OTEL_SOURCES__RAPL__RATE_HZ", "fast")
    found = problems(written(tmp_path, "[hub]\ngrpc = 1\nx = 2\n"))
    assert len(found) == 4
    assert found[2].endswith("unknown key align.lateness; did you mean align.lateness_s?")
    assert found[3].endswith("__RATE_HZ: sources.rapl.rate_hz: expected number, not 'fast'")


def test_what_is_not_toml(tmp_path: Path) -> None:
    (problem,) = problems(written(tmp_path, "[hub]\ngrpc = \n"))
    assert "not a TOML file" in problem
    assert "line 2" in problem
    path = tmp_path / "c.toml"
    path.write_bytes(b"\xff\xfe\x00")
    assert "not a TOML file" in problems(path)[0]


@settings(deadline=None)
@given(st.text(max_size=80))
def test_any_text_is_read_or_refused_in_words(text: str) -> None:
    path = Path(os.environ["XDG_CONFIG_HOME"]).parent / "fuzz.toml"
    path.write_text(text, "utf-8", newline="")
    with suppress(ConfigError):  # anything else fails the test
        load(path)


def test_every_section_says_what_it_is() -> None:
    assert all(type(getattr(Settings(), f.name)).__doc__ for f in fields(Settings))
