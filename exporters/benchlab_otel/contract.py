"""The names everybody relies on: spans, attributes and metrics (a public contract, held by golden files).

Units are UCUM as OpenTelemetry writes them. Prometheus names follow from name, unit and kind by
`prometheus_name`, the rule of the Collector's prometheus exporter, so both ways to run agree.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

# -- spans ------------------------------------------------------------------------------------

FRAME, SAMPLE, ENERGY, SESSION, CLOCK = "frame", "sample", "energy", "session", "clock"

PIPELINE_NAME = "pipeline.name"
PIPELINE_STAGE = "pipeline.stage"
FRAME_NUMBER = "frame.number"
FRAME_OUTCOME = "frame.outcome"
FIRST_MARK = "frame.first_mark"  # name of the mark that a frame begins with
PRESENTED = "presented"  # the mark where a game presents a frame, which is displayed later
HW_ID, HW_TYPE = "hw.id", "hw.type"
POWER_PREFIX, ENERGY_PREFIX = "hw.power.", "hw.energy."  # + domain; a domain has no dot in its name
METER_LAG, METER_WINDOW, METER_WRAP = "meter.lag_ns", "meter.window_ns", "meter.wrap_j"
CLOCK_OFFSET, CLOCK_UNCERTAINTY = "clock.offset_ns", "clock.uncertainty_ns"
CLOCK_WALL_OFFSET, CLOCK_SUSPENDED = "clock.wall_offset_ns", "clock.suspended_ns"
SIMULATED = "benchlab.simulated"  # a resource attribute; true wherever any input was simulated
TRANSPORT = "benchlab.transport"  # on samples and resource of readings that another program passed on
SESSION_ID = "session.id"
NOTE, NOTE_TEXT = "note", "note.text"
REPLAYED = "benchlab.replayed"  # a resource attribute: the id of the session that a replay comes from

# -- metrics ----------------------------------------------------------------------------------

Kind = Literal["gauge", "counter", "updown", "histogram"]


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric of the contract; `labels` are all attribute names its points may carry."""

    name: str
    unit: str
    kind: Kind
    description: str
    labels: tuple[str, ...] = ()
    bounds: tuple[float, ...] = ()  # of a histogram

    def __hash__(self) -> int:  # metrics are keys all over, and hashing all fields costs 1 us
        return hash(self.name)


SECONDS = (
    *(0.0005, 0.001, 0.002, 0.003, 0.004, 0.006, 0.008, 0.010, 0.013, 0.017, 0.021, 0.025, 0.033),
    *(0.042, 0.050, 0.067, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0),
)
JOULES = (
    *(0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 7.5),
    *(10.0, 15.0, 20.0, 30.0, 50.0, 100.0, 200.0, 500.0, 1000.0),
)

_PIPE = ("pipeline.name",)
FRAME_DURATION = Metric(
    "pipeline.frame.duration", "s", "histogram", "Time from a frame's first to its last mark.", _PIPE, SECONDS
)
STAGE_DURATION = Metric(
    "pipeline.stage.duration",
    "s",
    "histogram",
    "Time a frame spent in a stage.",
    (*_PIPE, "pipeline.stage"),
    SECONDS,
)
PAIR_LATENCY = Metric(
    "pipeline.latency",
    "s",
    "histogram",
    "Time between two marks of the same frame.",
    (*_PIPE, "from", "to"),
    SECONDS,
)
FRAME_INTERVAL = Metric(
    "pipeline.frame.interval",
    "s",
    "histogram",
    "Time between the ends of one completed frame and the next.",
    _PIPE,
    SECONDS,
)
FRAMES = Metric("pipeline.frames", "{frame}", "counter", "Frames that ended.", (*_PIPE, "frame.outcome"))
FRAME_ENERGY = Metric(
    "pipeline.frame.energy",
    "J",
    "histogram",
    "Energy a domain used while a frame was in flight.",
    (*_PIPE, "hw.id", "domain", "method"),
    JOULES,
)
_DOMAIN = ("hw.id", "domain")
FRAME_ENERGY_UNCERTAINTY = Metric(
    "pipeline.frame.energy.uncertainty",
    "J",
    "gauge",
    "95 % half width of a frame's conditioned energy: the mean of the latest frames.",
    (*_PIPE, *_DOMAIN),
)
_STAGE = (*_PIPE, "pipeline.stage", *_DOMAIN)
UNRESOLVED = Metric(
    "pipeline.energy.unresolved",
    "1",
    "gauge",
    "1 for what has no figures of its own, and why: a stage, or without its labels all that a domain shows.",
    (*_STAGE, "reason"),
)
STAGE_POWER = Metric(
    "pipeline.stage.power", "W", "gauge", "What a stage draws above base while it is active.", _STAGE
)
STAGE_POWER_UNCERTAINTY = Metric(
    "pipeline.stage.power.uncertainty", "W", "gauge", "95 % half width of pipeline.stage.power.", _STAGE
)
STAGE_ENERGY = Metric(
    "pipeline.stage.energy", "J", "gauge", "Mean energy of a stage above base in a frame.", _STAGE
)
STAGE_ENERGY_UNCERTAINTY = Metric(
    "pipeline.stage.energy.uncertainty", "J", "gauge", "95 % half width of pipeline.stage.energy.", _STAGE
)
BASE_POWER = Metric(
    "pipeline.base.power", "W", "gauge", "What a domain draws while no stage is active.", _DOMAIN
)
BASE_POWER_UNCERTAINTY = Metric(
    "pipeline.base.power.uncertainty", "W", "gauge", "95 % half width of pipeline.base.power.", _DOMAIN
)
METER_LAG_TIME = Metric("meter.lag", "s", "gauge", "How late a meter's readings are.", _DOMAIN)
METER_WINDOW_TIME = Metric("meter.window", "s", "gauge", "Time that a meter averages over.", _DOMAIN)
METER_REFRESH = Metric("meter.refresh", "s", "gauge", "Time between two new values of a meter.", _DOMAIN)
PREDICTION_ERROR = Metric(
    "pipeline.energy.prediction.error",
    "1",
    "gauge",
    "Mean miss of readings predicted from all others, with and without knowing the stages.",
    (*_DOMAIN, "model"),
)
PREDICTION_COVERAGE = Metric(
    "pipeline.energy.prediction.coverage",
    "1",
    "gauge",
    "Share of readings within their predictions' 95 % interval.",
    _DOMAIN,
)
ENERGY_RESIDUAL = Metric(
    "pipeline.energy.residual",
    "J",
    "gauge",
    "Measured energy less shares and idle, over the stretch that the model was fitted on.",
    _DOMAIN,
)
ENERGY_RESIDUAL_UNCERTAINTY = Metric(
    "pipeline.energy.residual.uncertainty", "J", "gauge", "95 % half width of the residual.", _DOMAIN
)
ALIGN_LATE = Metric(
    "align.late",
    "{item}",
    "counter",
    "Stages, frames and readings that came too late, twice or alone.",
    ("item",),
)
ALIGN_BEHIND = Metric(
    "align.behind", "s", "gauge", "How long ago the newest frame ended that the aligner is done with.", _PIPE
)
CLOCK_WALL = Metric(
    "clock.wall.offset", "s", "gauge", "How far the wall clock is ahead of the clock that spans carry."
)
PROBE_LOST = Metric(
    "pipeline.probe.lost",
    "{mark}",
    "counter",
    "Marks or spans that a probe had to give up.",
    (*_PIPE, "reason"),
)
COLLECT_SUCCESS = Metric(
    "exporter.collect.success",
    "1",
    "gauge",
    "1 when the source's last reading worked, else 0.",
    ("source", "hw.id"),
)
COLLECT_DURATION = Metric(
    "exporter.collect.duration", "s", "gauge", "Time the source's last reading took.", ("source", "hw.id")
)
COLLECT_LAST = Metric(
    "exporter.collect.last_success.timestamp",
    "s",
    "gauge",
    "Unix time of the source's last good reading.",
    ("source", "hw.id"),
)
COLLECT_UNCERTAINTY = Metric(
    "exporter.collect.time.uncertainty",
    "s",
    "gauge",
    "How well the times of readings are known: half of the longest round trip since the metrics before.",
    ("source", "hw.id"),
)
COLLECT_FAILURES = Metric(
    "exporter.collect.failures",
    "{failure}",
    "counter",
    "Readings that a source did not get, by reason.",
    ("source", "hw.id", "reason"),
)

_HW = ("hw.id", "hw.type", "hw.sensor_location")
HW_POWER = Metric("hw.power", "W", "gauge", "Power of a component or rail.", _HW)
HW_ENERGY = Metric("hw.energy", "J", "counter", "Energy that a component used.", _HW)
HW_VOLTAGE = Metric("hw.voltage", "V", "gauge", "Voltage at a sensor.", _HW)
HW_CURRENT = Metric("hw.current", "A", "gauge", "Current through a rail.", _HW)
HW_TEMPERATURE = Metric("hw.temperature", "Cel", "gauge", "Temperature at a sensor.", _HW)
HW_HUMIDITY = Metric("hw.humidity", "1", "gauge", "Relative humidity at a sensor.", _HW)
HW_FAN_SPEED = Metric("hw.fan.speed", "rpm", "gauge", "Speed of a fan.", _HW)
HW_FAN_SPEED_RATIO = Metric("hw.fan.speed_ratio", "1", "gauge", "Speed that a fan is set to.", _HW)
HW_FAN_ENABLED = Metric(
    "hw.fan.enabled", "1", "updown", "1 where a fan is driven, else 0.", ("hw.id", "hw.sensor_location")
)
HW_POWER_LIMIT = Metric(
    "hw.power.limit", "W", "gauge", "Power limit that is set for a component.", (*_HW, "hw.limit_type")
)
HW_TEMPERATURE_LIMIT = Metric(
    "hw.temperature.limit", "Cel", "gauge", "Temperature limit of a sensor.", (*_HW, "hw.limit_type")
)
HW_ERRORS = Metric(
    "hw.errors", "{error}", "counter", "Errors that a component counted.", ("hw.id", "hw.type", "error.type")
)
HW_FAULT = Metric(
    "hw.fault",
    "1",
    "updown",
    "1 where a device reports a fault (live) or did since it was cleared (latched).",
    ("hw.id", "hw.fault", "hw.state"),
)
HW_STATUS = Metric(
    "hw.status",
    "1",
    "updown",
    "1 for the state that a part is in (the position of a switch, a plug detected), else 0.",
    ("hw.id", "hw.type", "hw.sensor_location", "hw.state"),
)
HW_INFO = Metric(
    "hw.info",
    "1",
    "updown",
    "1: what a device says of itself.",
    (
        *("hw.id", "hw.type", "hw.name", "hw.vendor", "hw.model", "hw.serial_number"),
        *("hw.firmware_version", "hw.driver_version"),
    ),
)
HW_CALIBRATION = Metric(
    "hw.calibration",
    "1",
    "updown",
    "1 for each state that a meter's calibration is in (valid, factory), else 0.",
    ("hw.id", "hw.state"),
)
BATTERY_CHARGE = Metric(
    "hw.battery.charge", "1", "gauge", "Charge of a battery.", ("hw.id", "hw.sensor_location")
)

_GPU = ("hw.id",)
GPU_UTILIZATION = Metric(
    "hw.gpu.utilization", "1", "gauge", "Share of time that a part of a GPU was busy.", (*_GPU, "hw.gpu.task")
)
GPU_MEMORY_USAGE = Metric("hw.gpu.memory.usage", "By", "updown", "Memory of a GPU in use.", _GPU)
GPU_MEMORY_LIMIT = Metric("hw.gpu.memory.limit", "By", "updown", "Memory of a GPU.", _GPU)
GPU_CLOCK = Metric("hw.gpu.clock", "Hz", "gauge", "Clock of a part of a GPU.", (*_GPU, "hw.gpu.part"))
GPU_CLOCK_LIMIT = Metric(
    "hw.gpu.clock.limit", "Hz", "gauge", "Highest clock of a part of a GPU.", (*_GPU, "hw.gpu.part")
)
GPU_THROTTLE = Metric(
    "hw.gpu.throttle", "1", "updown", "1 while a GPU is slowed for a reason, else 0.", (*_GPU, "reason")
)
GPU_PCIE = Metric(
    "hw.gpu.pcie.throughput",
    "By/s",
    "gauge",
    "Bytes over a GPU's PCIe link in a second.",
    (*_GPU, "network.io.direction"),
)
GPU_PCIE_GENERATION = Metric(
    "hw.gpu.pcie.generation", "1", "updown", "PCIe generation that a GPU's link runs at.", _GPU
)
GPU_PCIE_WIDTH = Metric("hw.gpu.pcie.width", "{lane}", "updown", "Lanes that a GPU's link uses.", _GPU)
GPU_PROCESS_MEMORY = Metric(
    "hw.gpu.process.memory.usage",
    "By",
    "updown",
    "Memory of a GPU that a process uses.",
    (*_GPU, "process.pid", "process.executable.name"),
)
HOST_POWER = Metric("hw.host.power", "W", "gauge", "Power of the whole host.", ("hw.id",))
HOST_AMBIENT = Metric(
    "hw.host.ambient_temperature", "Cel", "gauge", "Temperature around the host.", ("hw.id",)
)

CPU_TIME = Metric("system.cpu.time", "s", "counter", "Time of all processors by mode.", ("cpu.mode",))
CPU_UTILIZATION = Metric(
    "system.cpu.utilization", "1", "gauge", "Share of all processors' time by mode.", ("cpu.mode",)
)
CPU_FREQUENCY = Metric(
    "system.cpu.frequency", "Hz", "gauge", "Clock of a logical processor.", ("cpu.logical_number",)
)
MEMORY_LIMIT = Metric("system.memory.limit", "By", "updown", "Memory of the host.")
PAGING_USAGE = Metric("system.paging.usage", "By", "updown", "Swap by state.", ("system.paging.state",))
UPTIME = Metric("system.uptime", "s", "gauge", "Time since the host started.")
PRESSURE = Metric(
    "system.pressure.time",
    "s",
    "counter",
    "Time that some or all tasks waited for a resource (pressure stall information).",
    ("system.pressure.resource", "system.pressure.kind"),
)
_PROCESS = ("process.pid", "process.executable.name")
PROCESS_CPU_TIME = Metric(
    "process.cpu.time", "s", "counter", "Processor time of a pipeline's process.", (*_PROCESS, "cpu.mode")
)
PROCESS_MEMORY = Metric(
    "process.memory.usage", "By", "updown", "Memory that a pipeline's process holds.", _PROCESS
)
MEMORY_USAGE = Metric("system.memory.usage", "By", "updown", "Memory by state.", ("system.memory.state",))
DISK_IO = Metric(
    "system.disk.io", "By", "counter", "Bytes read and written.", ("system.device", "disk.io.direction")
)
DISK_OPERATIONS = Metric(
    "system.disk.operations",
    "{operation}",
    "counter",
    "Reads and writes.",
    ("system.device", "disk.io.direction"),
)
NETWORK_DROPPED = Metric(
    "system.network.packet.dropped",
    "{packet}",
    "counter",
    "Packets that were dropped.",
    ("network.interface.name", "network.io.direction"),
)
NETWORK_ERRORS = Metric(
    "system.network.errors",
    "{error}",
    "counter",
    "Packets with errors.",
    ("network.interface.name", "network.io.direction"),
)
NETWORK_IO = Metric(
    "system.network.io",
    "By",
    "counter",
    "Bytes received and transmitted.",
    ("network.interface.name", "network.io.direction"),
)

HUB_REQUESTS = Metric("hub.requests", "{request}", "counter", "OTLP requests that arrived.", ("signal",))
HUB_RECEIVED = Metric("hub.received", "By", "counter", "Bytes of OTLP requests, decompressed.", ("signal",))
HUB_SPANS = Metric("hub.spans", "{span}", "counter", "Spans that were taken.")
HUB_REJECTED = Metric(
    "hub.rejected",
    "{item}",
    "counter",
    "Requests, spans and points that were not taken, by reason.",
    ("signal", "reason"),
)
HUB_LIVE_SKIPPED = Metric(
    "hub.live.skipped",
    "{span}",
    "counter",
    "Spans that the live view skipped because the aligner was behind; the archive has them.",
)
ARCHIVE_LOST = Metric(
    "archive.lost", "{record}", "counter", "Records that could not be written to disk.", ("file",)
)

ALL: tuple[Metric, ...] = tuple(value for value in tuple(globals().values()) if isinstance(value, Metric))

# Units and names as prometheus/otlptranslator has them, which the Collector's exporter calls.
_UNIT_WORDS = {
    "d": "days", "h": "hours", "min": "minutes", "s": "seconds", "ms": "milliseconds", "us": "microseconds",
    "ns": "nanoseconds", "By": "bytes", "KiBy": "kibibytes", "MiBy": "mebibytes", "GiBy": "gibibytes",
    "TiBy": "tibibytes", "KBy": "kilobytes", "MBy": "megabytes", "GBy": "gigabytes", "TBy": "terabytes",
    "m": "meters", "V": "volts", "A": "amperes", "J": "joules", "W": "watts", "g": "grams", "Cel": "celsius",
    "Hz": "hertz", "%": "percent", "1": "",
}  # fmt: skip
_PER_WORDS = {
    "s": "second", "m": "minute", "h": "hour", "d": "day", "w": "week", "mo": "month", "y": "year",
}  # fmt: skip


def prometheus_name(name: str, unit: str, kind: Kind) -> str:
    """The Prometheus metric name that the Collector's exporter gives (counters with `_total`).

    Words of the name, then the unit's unless it is there already, then `_total` of a counter or
    `_ratio` of a gauge without unit; "" where nothing is left of the name.
    """
    words = [word for word in re.split(r"[^a-zA-Z0-9:]+", name) if word]
    main, _, per = (part.strip() for part in unit.partition("/"))
    main = "" if set(main) & set("{}") else _unit_word(_UNIT_WORDS.get(main, main))
    per = "" if set(per) & set("{}") else _unit_word(_PER_WORDS.get(per, per)).strip("_")
    per = f"per_{per}" if per else ""
    if per and per not in words:
        main = main.removesuffix("_")
    words += [word for word in (main, per) if word and word not in words]
    if kind == "counter":
        words = [word for word in words if word != "total"] + ["total"]
    if kind == "gauge" and unit == "1":
        words = [word for word in words if word != "ratio"] + ["ratio"]
    joined = "_".join(words)
    return f"_{joined}" if joined[:1].isdigit() else joined


def _unit_word(unit: str) -> str:
    return re.sub(r"[^a-zA-Z0-9:]+", "_", unit).removeprefix("_")


def prometheus_label(name: str) -> str:
    """The Prometheus label name of an attribute; "" where nothing is left of the name."""
    label = re.sub(r"[^a-zA-Z0-9_]", "_", name)
    if not label.strip("_"):
        return ""
    return f"key_{label}" if label[0].isdigit() else label
