"""The configuration: defaults here, one TOML file over them, the environment over both.

A key `sources.benchlab.rate_hz` is `rate_hz` in the table `[sources.benchlab]` of the file and
BENCHLAB_OTEL_SOURCES__BENCHLAB__RATE_HZ in the environment (lists with commas).
"""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args, get_origin, get_type_hints

import msgspec
from msgspec import Meta

PREFIX = "BENCHLAB_OTEL_"
FILE_VARIABLE = "BENCHLAB_OTEL_CONFIG"

_PORT = r"(\d{1,4}|[1-5]\d{4}|6[0-4]\d{3}|65[0-4]\d\d|655[0-2]\d|6553[0-5])"
Address = Annotated[str, Meta(pattern=rf"^\S+:{_PORT}$", description="host:port, such as 127.0.0.1:4317")]
Pair = Annotated[str, Meta(pattern=r"^[^:]+:[^:]+$", description="from:to, such as ingress:display")]
Positive = Annotated[float, Meta(gt=0, le=1e9)]  # the upper bounds are there to refuse infinity
NotNegative = Annotated[float, Meta(ge=0, le=1e9)]
Rate = Annotated[float, Meta(gt=0, le=100_000)]  # Hz; more than any source reaches
Timeout = Annotated[float, Meta(gt=0, le=3600)]  # s


def _state_directory() -> Path:
    return Path(os.environ.get("XDG_STATE_HOME") or "~/.local/state").expanduser() / "benchlab-otel"


@dataclass(frozen=True, slots=True)
class Session:
    """Where recorded sessions are kept; recording stops when less than `min_free_mib` are left there."""

    data_dir: Path = field(default_factory=_state_directory)
    min_free_mib: NotNegative = 256.0


@dataclass(frozen=True, slots=True)
class Retention:
    """What `sessions prune` keeps: raw data (samples, metrics), sessions, and GiB of all (0: no limit)."""

    raw_days: NotNegative = 7.0
    aligned_days: NotNegative = 90.0
    max_gib: NotNegative = 0.0


@dataclass(frozen=True, slots=True)
class Hub:
    """Where the embedded hub listens: OTLP over gRPC and HTTP, and /metrics."""

    grpc: Address = "127.0.0.1:4317"
    http: Address = "127.0.0.1:4318"
    metrics: Address = "127.0.0.1:9109"
    max_request_mib: Positive = 64.0


@dataclass(frozen=True, slots=True)
class Align:
    """`lateness_s`: how late a span may arrive; `pairs` of marks get a latency metric each."""

    lateness_s: Positive = 0.3
    calibration_interval_sec: Positive = 60.0
    pairs: tuple[Pair, ...] = ()


FanRule = Annotated[
    str,
    Meta(
        pattern=r"^[1-9] \S+ -?\d+(\.\d+)?:\d{1,3} -?\d+(\.\d+)?:\d{1,3}$",
        description="FAN QUANTITY LOW:DUTY HIGH:DUTY, such as 1 temperature.TS1 30:20 60:100",
    ),
]
Percent = Annotated[int, Meta(ge=0, le=100)]


@dataclass(frozen=True, slots=True)
class Control:
    """What a BENCHLAB is told while it is read; nothing unless asked for, and undone in the end.

    `light`: its RGB shows the mean latency of the latest frames (of `run` and `record`, which align
    them): green, yellow from `yellow_ms`, red from `red_ms`, and back `hysteresis` below. `fans`: from
    LOW to HIGH of a quantity (a sample's attribute without `hw.`, such as `power.gpu`) the duty goes from
    one to the other, never below `least_duty`; `failsafe_duty` where the quantity is not known, and from
    a failed reading to the next good one. An end puts back what was there also then; where the device does
    not answer, an error says what was left and what sets it back. After a `kill -9`:
    `benchlab-otel device restore`. ORIGINAL firmware before 4 and BENCHLAB 2 firmware before 5 can't do
    that: `benchlab-otel device fan` and `device rgb` set what was there, or take all power from the device.
    """

    light: bool = False
    yellow_ms: Positive = 20.0
    red_ms: Positive = 40.0
    hysteresis: Annotated[float, Meta(ge=0, lt=1)] = 0.1
    fans: tuple[FanRule, ...] = ()
    fan_profile: Annotated[int, Meta(ge=0, le=2)] = 0
    least_duty: Percent = 20
    failsafe_duty: Percent = 100


@dataclass(frozen=True, slots=True)
class Benchlab:
    """`ports` (also /dev/tty*) empty = every BENCHLAB on USB; lag and averaging window only where known.

    An emulator says itself that it is simulated; `simulated` is for one that does not. With
    `compare_calibration` the factory's table is in force for a moment when a device is opened (after a
    `kill -9` in it until the device restarts); BENCHLAB 2 firmware before 7 is not compared.
    """

    rate_hz: Rate = 20.0
    ports: tuple[str, ...] = ()
    lag_ms: NotNegative | None = None
    window_ms: NotNegative | None = None
    timeout_s: Timeout = 0.25
    simulated: bool = False
    compare_calibration: bool = False
    sysfs: Path = Path("/sys")
    control: Control = field(default_factory=Control)


@dataclass(frozen=True, slots=True)
class BenchlabHttp:
    """BENCHLABs that LinuxSupportKit or pytools' FastAPI serves: URLs of servers, or of their devices.

    `stream` (NDJSON, WebSocket) or polled at `rate_hz`; of what is streamed faster than that, the newest
    reading counts. `key_file` holds the bearer key. A server that has nothing new for longer than
    `timeout_s` is asked anew; set it to more than the server's own period.
    """

    rate_hz: Rate = 10.0
    urls: tuple[str, ...] = ()
    stream: bool = True
    key_file: str = ""
    timeout_s: Timeout = 5.0


Topic = Annotated[
    str, Meta(pattern=r"^[^#+\x00]+$", description="a topic without wildcards, such as benchlab")
]
Uid = Annotated[str, Meta(pattern=r"^[^/#+\x00]+$", description="UIDs, such as 0102030405060708090A0B0C")]


@dataclass(frozen=True, slots=True)
class BenchlabMqtt:
    """BENCHLABs that pytools publishes; `uids` empty = the only one there is.

    Of what is published faster than `rate_hz`, the newest reading counts; where nothing is for longer than
    `timeout_s`, the broker is asked anew: set it to more than pytools' own period.
    """

    rate_hz: Rate = 10.0
    broker: str = ""
    uids: tuple[Uid, ...] = ()
    prefix: Topic = "benchlab"
    username: str = ""
    password_file: str = ""
    tls: bool = False
    timeout_s: Timeout = 5.0


@dataclass(frozen=True, slots=True)
class Rapl:
    """RAPL energy counters of the processor; `sysfs` is another path in containers (/host/sys)."""

    rate_hz: Rate = 100.0
    sysfs: Path = Path("/sys")


@dataclass(frozen=True, slots=True)
class Hwmon:
    """Temperatures, fans, voltages and power of the kernel's sensor chips; some chips are slow to read."""

    rate_hz: Rate = 1.0
    sysfs: Path = Path("/sys")


@dataclass(frozen=True, slots=True)
class Drm:
    """AMD and Intel GPUs by sysfs."""

    rate_hz: Rate = 20.0
    sysfs: Path = Path("/sys")


@dataclass(frozen=True, slots=True)
class PowerSupply:
    """Batteries and USB-PD ports."""

    rate_hz: Rate = 1.0
    sysfs: Path = Path("/sys")


@dataclass(frozen=True, slots=True)
class Host:
    """Load, memory, disks and network of the host; `procfs` is another path in containers (/host/proc).

    Processes get metrics of their own: those that this program started (the command of `record`) with
    all their children, and those of `pids` and `cgroups` (paths below /sys/fs/cgroup).
    """

    rate_hz: Rate = 1.0
    procfs: Path = Path("/proc")
    sysfs: Path = Path("/sys")
    pids: tuple[int, ...] = ()
    cgroups: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Nvml:
    """NVIDIA GPUs: energy and power at `rate_hz`, all else once a second."""

    rate_hz: Rate = 50.0


@dataclass(frozen=True, slots=True)
class Sources:
    """`enabled`: the sources that `run` and `record` start."""

    enabled: tuple[str, ...] = ("benchlab", "nvml", "rapl", "drm", "hwmon", "power_supply", "host")
    benchlab: Benchlab = field(default_factory=Benchlab)
    benchlab_http: BenchlabHttp = field(default_factory=BenchlabHttp)
    benchlab_mqtt: BenchlabMqtt = field(default_factory=BenchlabMqtt)
    rapl: Rapl = field(default_factory=Rapl)
    nvml: Nvml = field(default_factory=Nvml)
    hwmon: Hwmon = field(default_factory=Hwmon)
    drm: Drm = field(default_factory=Drm)
    power_supply: PowerSupply = field(default_factory=PowerSupply)
    host: Host = field(default_factory=Host)


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything that can be configured."""

    session: Session = field(default_factory=Session)
    retention: Retention = field(default_factory=Retention)
    hub: Hub = field(default_factory=Hub)
    align: Align = field(default_factory=Align)
    sources: Sources = field(default_factory=Sources)


def flat(settings: Settings) -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of every setting."""
    return ((key, value) for key, (_, value) in _keys(settings, ""))


class ConfigError(ValueError):
    """A file or variable that can't be used; each line names file and line, key, and what was expected."""


@dataclass(frozen=True, slots=True)
class Value:
    """What is in force for a key, and where it comes from: `default`, `FILE:LINE` or `$NAME`."""

    value: Any
    origin: str


def load(path: Path | None = None) -> Settings:
    """The settings in force; `path` is the file to read instead of the first one found.

    Raises ConfigError for an unknown key, a wrong type and a file that is not TOML, OSError for a
    file that can't be read.
    """
    return _build(Settings, {key: found.value for key, found in resolve(path).items()}, "")


def resolve(path: Path | None = None) -> dict[str, Value]:
    """Every dotted key with its value and origin; raises like `load`."""
    known = dict(_keys(Settings(), ""))
    values = {key: Value(default, "default") for key, (_, default) in known.items()}
    types = {key: type_ for key, (type_, _) in known.items()}
    problems: list[str] = []
    file = path or _file_in_force()
    if file is not None:
        values.update(_from_file(file, types, problems))
    values.update(_from_environment(types, problems))
    if problems:
        raise ConfigError("\n".join(problems))
    return values


def candidates() -> list[Path]:
    """The places where a configuration file is looked for, first one first."""
    home = Path(os.environ.get("XDG_CONFIG_HOME") or "~/.config").expanduser()
    return [home / "benchlab-otel" / "config.toml", Path("/etc/benchlab-otel/config.toml")]


def variable(key: str) -> str:
    """The environment variable of a dotted key."""
    return PREFIX + key.upper().replace(".", "__")


def _file_in_force() -> Path | None:
    if named := os.environ.get(FILE_VARIABLE):
        return Path(named)
    return next((p for p in candidates() if p.is_file()), None)


def _keys(section: Any, prefix: str) -> Iterator[tuple[str, tuple[Any, Any]]]:
    """(dotted key, (type, default)) of every key below a section."""
    types = get_type_hints(type(section), include_extras=True)
    for f in fields(section):
        value = getattr(section, f.name)
        if is_dataclass(value):
            yield from _keys(value, f"{prefix}{f.name}.")
        else:
            yield prefix + f.name, (types[f.name], value)


_T = TypeVar("_T")


def _build(section: type[_T], values: Mapping[str, Any], prefix: str) -> _T:
    arguments = {}
    for name, type_ in get_type_hints(section).items():
        key = prefix + name
        arguments[name] = values[key] if key in values else _build(type_, values, f"{key}.")
    return section(**arguments)


# -- the file ---------------------------------------------------------------------------------


def _from_file(path: Path, types: Mapping[str, Any], problems: list[str]) -> dict[str, Value]:
    try:
        text = path.read_text("utf-8")
        table = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        problems.append(f"{path}: not a TOML file: {error}")
        return {}
    lines = _lines(text)
    values = {}
    for key, raw in _leaves(table, "", types):
        origin = f"{path}:{_line(lines, key)}"
        if key not in types:
            problems.append(f"{origin}: {_unknown(key, types)}")
            continue
        try:
            values[key] = Value(_convert(raw, types[key], strict=True), origin)
        except msgspec.ValidationError as error:
            problems.append(f"{origin}: {key}: {_expected(types[key], error)}, not {raw!r}")
    return values


def _leaves(table: Mapping[str, Any], prefix: str, types: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """(dotted key, value) down to known keys and to whatever is not known."""
    for name, value in table.items():
        key = prefix + name
        if isinstance(value, dict) and any(k.startswith(f"{key}.") for k in types):
            yield from _leaves(value, f"{key}.", types)
        else:
            yield key, value


_TABLE = re.compile(r"\s*\[\s*([^\[\]]+?)\s*\]\s*(?:#.*)?\Z")
_KEY = re.compile(r"\s*([A-Za-z0-9_\-.\"' ]+?)\s*=")


def _lines(text: str) -> dict[str, int]:
    """The line of each key and table (tomllib does not tell)."""
    lines: dict[str, int] = {}
    prefix = ""
    for number, line in enumerate(text.splitlines(), 1):
        if match := _TABLE.match(line):
            prefix = _plain(match[1]) + "."
            lines.setdefault(_plain(match[1]), number)
        elif match := _KEY.match(line):
            lines.setdefault(prefix + _plain(match[1]), number)
    return lines


def _plain(key: str) -> str:
    return re.sub(r"[\s\"']", "", key)


def _line(lines: Mapping[str, int], key: str) -> int:
    """The key's line, or that of the table or inline table it is in."""
    while key not in lines and "." in key:
        key = key.rpartition(".")[0]
    return lines.get(key, 1)


# -- the environment --------------------------------------------------------------------------


def _from_environment(types: Mapping[str, Any], problems: list[str]) -> dict[str, Value]:
    values = {}
    for name, text in sorted(os.environ.items()):
        if not name.startswith(PREFIX) or "__" not in name:
            continue
        key = name.removeprefix(PREFIX).lower().replace("__", ".")
        if key not in types:
            problems.append(f"${name}: {_unknown(key, types)}")
            continue
        is_list = get_origin(types[key]) is tuple
        raw = [part.strip() for part in text.split(",") if part.strip()] if is_list else text
        if is_list and text.lstrip().startswith("["):
            problems.append(f"${name}: {key}: write a list as a,b without brackets, not {text!r}")
            continue
        try:
            values[key] = Value(_convert(raw, types[key], strict=False), f"${name}")
        except msgspec.ValidationError as error:
            problems.append(f"${name}: {key}: {_expected(types[key], error)}, not {text!r}")
    return values


# -- values and messages ----------------------------------------------------------------------


def _convert(raw: Any, type_: Any, strict: bool) -> Any:
    if type_ is Path:
        return Path(msgspec.convert(raw, str)).expanduser()
    return msgspec.convert(raw, type_, strict=strict)


def _expected(type_: Any, error: msgspec.ValidationError) -> str:
    """What the key takes: its own description where it has one, else msgspec's words."""
    is_list = get_origin(type_) is tuple
    inner = get_args(type_)[0] if is_list else type_
    described = [m.description for m in getattr(inner, "__metadata__", ()) if m.description]
    what = described[0] if described else re.sub(r"Expected |, got .*| - at .*|`", "", str(error))
    for name, word in (("array", "list"), ("float", "number"), ("str", "text")):
        what = what.replace(name, word)
    return f"expected a list of {'text' if what == 'list' else what}" if is_list else f"expected {what}"


def _unknown(key: str, types: Mapping[str, Any]) -> str:
    if any(k.startswith(f"{key}.") for k in types):
        return f"{key} is a table, not a value; write [{key}] and its keys below"
    near = difflib.get_close_matches(key, types, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]}?" if near else "; `benchlab-otel config show` lists all keys"
    return f"unknown key {key}{hint}"
