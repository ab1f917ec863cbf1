"""GPU and CPU: load, clocks, power against its limit, and what slows them."""

from __future__ import annotations

from benchlab_dashboards.board import DEVICE, Board, Row
from benchlab_dashboards.colours import DIRECTIONS, GREEN, MODES, VERMILLION
from benchlab_dashboards.panels import Query, lines, rows, states
from benchlab_dashboards.promql import by_device, by_host, rate, scoped, series
from benchlab_otel import contract

NO_GPU = "no GPU is read: `benchlab-otel doctor` tells why"
NO_RAPL = "no RAPL counter is read: `benchlab-otel doctor` tells why"
NO_SENSOR = "no such sensor is read"
IS_GPU, NOT_GPU = (f'instance{match}".*/(nvml|drm)/.*"' for match in ("=~", "!~"))
HWMON = 'instance=~".*/hwmon/.*"'
NOT_IDLE = 'cpu_mode!="idle"'


GPU = Row(
    "GPU",
    [
        lines(
            "Load",
            "Share of time that a part of the GPU was busy.",
            "percentunit",
            Query(by_device(series(contract.GPU_UTILIZATION)), "{{device}} {{hw_gpu_task}}"),
            most=1,
            absent=NO_GPU,
        ),
        lines(
            "Power and limit",
            "What the GPU draws, and the limit that is set: at the limit it slows down.",
            "watt",
            Query(by_device(series(contract.HW_POWER, IS_GPU)), "{{device}} {{hw_sensor_location}}"),
            Query(by_device(series(contract.HW_POWER_LIMIT, IS_GPU)), "{{device}} limit {{hw_limit_type}}"),
            absent=NO_GPU,
        ),
        lines(
            "Clocks",
            "Clock of each part of the GPU, and the highest it may have.",
            "hertz",
            Query(by_device(series(contract.GPU_CLOCK)), "{{device}} {{hw_gpu_part}}"),
            Query(by_device(series(contract.GPU_CLOCK_LIMIT)), "{{device}} limit {{hw_gpu_part}}"),
            absent=NO_GPU,
        ),
        states(
            "Slowed down by",
            "Why the GPU is slower than it could be. Idle is no fault.",
            Query(by_device(series(contract.GPU_THROTTLE)), "{{device}} {{reason}}"),
            {0: ("no", GREEN), 1: ("slowed", VERMILLION)},
            absent=NO_GPU,
        ),
        lines(
            "Temperature and limit",
            "Sensors of the GPU and the temperatures at which it slows down or stops.",
            "celsius",
            Query(by_device(series(contract.HW_TEMPERATURE, IS_GPU)), "{{device}} {{hw_sensor_location}}"),
            Query(
                by_device(series(contract.HW_TEMPERATURE_LIMIT, IS_GPU)), "{{device}} limit {{hw_limit_type}}"
            ),
            width=12,
            least=20,
            absent=NO_GPU,
        ),
        lines(
            "Memory",
            "Memory in use, and all there is.",
            "bytes",
            Query(by_device(series(contract.GPU_MEMORY_USAGE)), "{{device}} used"),
            Query(by_device(series(contract.GPU_MEMORY_LIMIT)), "{{device}} all"),
            width=6,
            absent=NO_GPU,
        ),
        lines(
            "PCIe",
            "Bytes a second over the GPU's link.",
            "binBps",
            Query(by_device(series(contract.GPU_PCIE)), "{{device}} {{network_io_direction}}"),
            styles=DIRECTIONS,
            width=6,
            absent=NO_GPU,
        ),
        rows(
            "Processes",
            "Memory of the GPU by process.",
            "none",
            {"memory": series(contract.GPU_PROCESS_MEMORY)},
            {"hw_id": "GPU", "process_pid": "pid", "process_executable_name": "program"},
            {"memory": "bytes"},
            width=6,
            absent="no process uses a GPU",
        ),
        rows(
            "Link",
            "PCIe generation and lanes that the GPU's link runs at: less than the slot has is a fault.",
            "none",
            {"generation": series(contract.GPU_PCIE_GENERATION), "lanes": series(contract.GPU_PCIE_WIDTH)},
            {"hw_id": "GPU"},
            width=6,
            absent=NO_GPU,
        ),
    ],
)

LIMIT = series(contract.HW_POWER_LIMIT, NOT_GPU)
CPU = Row(
    "CPU",
    [
        lines(
            "Load by mode",
            "Share of all processors' time, by mode.",
            "percentunit",
            Query(f"sum by (cpu_mode) ({scoped(contract.CPU_UTILIZATION, NOT_IDLE)})", "{{cpu_mode}}"),
            styles=MODES,
            stacked=True,
            most=1,
            absent="the host source does not run",
        ),
        lines(
            "Power by energy counter",
            "What RAPL's counters gain in a second, and the limits that are set.",
            "watt",
            Query(rate(contract.HW_ENERGY, NOT_GPU), "{{hw_sensor_location}}"),
            Query(LIMIT, "limit {{hw_sensor_location}} {{hw_limit_type}}"),
            absent=NO_RAPL,
        ),
        lines(
            "Clocks",
            "Of the fastest and the slowest logical processor, and their mean.",
            "hertz",
            *(
                Query(f"{kind} by (host) ({by_host(scoped(contract.CPU_FREQUENCY))})", f"{{{{host}}}} {name}")
                for kind, name in (("max", "fastest"), ("avg", "mean"), ("min", "slowest"))
            ),
            absent="this machine tells no clocks",
        ),
        lines(
            "Temperatures",
            "Sensors of the board and the processor (hwmon).",
            "celsius",
            Query(series(contract.HW_TEMPERATURE, HWMON), "{{hw_id}} {{hw_sensor_location}}"),
            width=12,
            least=20,
            absent=NO_SENSOR,
        ),
        lines(
            "Fans",
            "Fans that the board (hwmon), a power meter or a GPU reports.",
            "rotrpm",
            Query(by_device(series(contract.HW_FAN_SPEED)), "{{device}} {{hw_sensor_location}}"),
            width=12,
            absent=NO_SENSOR,
        ),
    ],
)

BOARD = Board(
    "benchlab-processors",
    "benchlab-otel / GPU and CPU",
    "Load, clocks, power against its limit, temperatures and throttling.",
    [GPU, CPU],
    [DEVICE],
)
