"""Host: processor, memory, disks, network and pressure of the machine."""

from __future__ import annotations

from benchlab_dashboards.board import Board, Row
from benchlab_dashboards.colours import MODES, PRESSURES, STATES
from benchlab_dashboards.panels import Query, lines, number
from benchlab_dashboards.promql import by_host, rate, series, total
from benchlab_otel import contract

NO_HOST = "the host source does not run"
NOT_TOLD = "this machine does not tell"

USED = series(contract.MEMORY_USAGE, 'system_memory_state="used"')
IN_USE = f"sum({USED}) / sum({series(contract.MEMORY_USAGE)})"

NOW = Row(
    "Now",
    [
        number(
            "Hosts",
            "Hosts whose host source runs.",
            "none",
            Query(f"count(count by (host) ({by_host(series(contract.CPU_UTILIZATION))}))"),
            absent=NO_HOST,
        ),
        number(
            "Up for",
            "Of the host that started last.",
            "dtdurations",
            Query(f"min({series(contract.UPTIME)})"),
            absent=NOT_TOLD,
        ),
        number(
            "Memory in use",
            "Of all memory of the chosen hosts.",
            "percentunit",
            Query(IN_USE),
            absent=NO_HOST,
            bad_above=0.9,
        ),
        number(
            "Packets lost",
            "Packets dropped or with errors, a second.",
            "pps",
            Query(f"sum({rate(contract.NETWORK_DROPPED)}) + sum({rate(contract.NETWORK_ERRORS)})"),
            absent=NOT_TOLD,
            bad_above=1,
        ),
    ],
)

COMPUTE = Row(
    "Processor and memory",
    [
        lines(
            "Processor",
            "Time of all processors by mode, a second: 1 is one processor busy.",
            "none",
            Query(total("cpu_mode", rate(contract.CPU_TIME, 'cpu_mode!="idle"')), "{{cpu_mode}}"),
            styles=MODES,
            stacked=True,
            absent=NO_HOST,
        ),
        lines(
            "Memory",
            "By state.",
            "bytes",
            Query(total("system_memory_state", series(contract.MEMORY_USAGE)), "{{system_memory_state}}"),
            styles=STATES,
            stacked=True,
            absent=NO_HOST,
        ),
        lines(
            "Swap",
            "By state.",
            "bytes",
            Query(total("system_paging_state", series(contract.PAGING_USAGE)), "{{system_paging_state}}"),
            styles=STATES,
            absent="this machine has no swap",
        ),
        lines(
            "Pressure",
            "Share of time that tasks waited for a resource: some of them, or all (full).",
            "percentunit",
            Query(rate(contract.PRESSURE), "{{system_pressure_kind}} {{system_pressure_resource}}"),
            styles=PRESSURES,
            width=12,
            absent="this kernel tells no pressure (PSI)",
        ),
        lines(
            "Pipelines' processes",
            "Processor time of each, a second.",
            "none",
            Query(
                total("process_executable_name, process_pid", rate(contract.PROCESS_CPU_TIME)),
                "{{process_executable_name}} {{process_pid}}",
            ),
            width=12,
            absent="no pipeline's process is known",
        ),
    ],
)

TRANSFER = Row(
    "Disks and network",
    [
        lines(
            "Disks",
            "Bytes a second.",
            "binBps",
            Query(f"{rate(contract.DISK_IO)} > 0", "{{system_device}} {{disk_io_direction}}"),
            absent="no disk is read or written",
        ),
        lines(
            "Disk operations",
            "Reads and writes a second.",
            "iops",
            Query(f"{rate(contract.DISK_OPERATIONS)} > 0", "{{system_device}} {{disk_io_direction}}"),
            absent="no disk is read or written",
        ),
        lines(
            "Network",
            "Bytes a second.",
            "binBps",
            Query(f"{rate(contract.NETWORK_IO)} > 0", "{{network_interface_name}} {{network_io_direction}}"),
            absent="nothing is sent or received",
        ),
    ],
)

BOARD = Board(
    "benchlab-host",
    "benchlab-otel / Host",
    "Processor, memory, disks, network and pressure of the hosts.",
    [NOW, COMPUTE, TRANSFER],
)
