"""GPUs by NVML: NVIDIA's own bindings load a library, built of nvml/stub.c, that tells what a script says."""

import json
import os
import re
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchlab_otel.align.attribution.counters import clean
from benchlab_otel.model import Readings
from benchlab_otel.sources import nvml
from conftest import need, wait_for
from test_cli_sources import PROGRAM

FOLDER = Path(__file__).parent / "nvml"
FULL = (FOLDER / "full.txt").read_text()
ID = "gpu-5a1c9f3e-77d2-4b0e-9d52-0c6f1e2a4b88"
GONE, UNKNOWN, NO_PERMISSION, NOT_SUPPORTED, HANGS = "!15", "!999", "!4", "!3", "~120000"


@pytest.fixture(scope="module")
def library(tmp_path_factory) -> Path:
    """The folder of the stub."""
    folder = tmp_path_factory.mktemp("nvml")
    command = [need("gcc"), "-shared", "-fPIC", "-O2", "-Wall", "-Wextra", "-Werror", "-pthread"]
    subprocess.run([*command, "-o", str(folder / "libnvidia-ml.so.1"), str(FOLDER / "stub.c")], check=True)
    return folder


def environment(library: Path, **extra) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("BENCHLAB_OTEL_", "NVML_"))}
    return kept | {"LD_LIBRARY_PATH": str(library)} | extra


@pytest.fixture(scope="module")
def child(library):
    """A process that has loaded the stub."""
    command = [sys.executable, str(FOLDER / "child.py")]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment(library)
    ) as process:
        yield process
        process.stdin.close()


@pytest.fixture
def ask(child, tmp_path):
    """Has the child read the GPUs of a script, or run the source on them."""

    def answer(script: str | bytes, do: str = "read", **arguments):
        path = tmp_path / "script.txt"
        path.write_bytes(script if isinstance(script, bytes) else script.encode())
        child.stdin.write(json.dumps({"path": str(path), "do": do} | arguments) + "\n")
        child.stdin.flush()
        return json.loads(child.stdout.readline())

    return answer


def gpu(*lines: str, uuid: str = "GPU-aa", name: str = "SIMULATED GPU") -> str:
    return "\n".join(("driver 580.65.06", f"gpu {uuid}", f"name {name}", *lines)) + "\n"


def changed(script: str, **values: str) -> str:
    """The script with other values; "" leaves the key out."""
    lines = [line for line in script.splitlines() if line.split(" ")[0] not in values]
    return "\n".join([*lines, *(f"{key} {value}" for key, value in values.items() if value)]) + "\n"


# -- what is told -----------------------------------------------------------------------------

STEPS = " ".join(str(7_000_000 + 6_000 * (i // 2)) for i in range(60))  # each value twice


def test_golden_of_a_gpu_that_tells_everything(ask, golden):
    until = [["meter.refresh", {}], ["hw.gpu.process.memory.usage", {}]]
    told = ask(changed(FULL, energy_mj=STEPS), "run", until=until)
    golden("nvml.json", told["outline"])
    assert set(told["simulated"]) == {True}
    names = {name for name, *_ in json.loads(told["outline"])["metrics"]}
    assert {n for n in names if not n.startswith("exporter.")} == {m.name for m in nvml.METRICS}


def test_golden_of_mig_instances_with_power_of_the_whole_card_only(ask, golden):
    script = changed(FULL, energy_mj="7000000", mig_mode="1", utilization="", encoder="", fans="0") + "".join(
        f"mig MIG-{i}\nname SIMULATED H200 MIG 1g.18gb\nmemory_total 19000\nmemory_used {i}\n{processes}\n"
        for i, processes in ((1, "compute 4194305:1000"), (2, "compute !4"))
    )
    (told,) = ask(script, readings=1)
    assert "energy and power of the whole card" in told["device"]["description"]
    memory = {labels["hw.id"]: v for name, labels, v in told["values"] if name == "hw.gpu.memory.usage"}
    assert memory == {ID: 90e9, "mig-1": 1.0, "mig-2": 2.0}
    golden("nvml-mig.json", ask(script, "run", until=[["hw.info", {"hw.id": "mig-2"}]])["outline"])


def test_golden_of_an_old_gpu_has_no_more_than_it_tells(ask, golden):
    script = gpu(
        *("power_mw 151000 152500", "capability 61", "utilization !999", "temperature_0 64", "field_82 !3"),
        *("memory_total 8589934592", "memory_used 1000000", "fans 1", "fan_0 33", "clock_1 1800"),
        *("throttle_reasons 8", "supported_reasons 0x0c", "compute !4", "serial !3"),
    )
    golden("nvml-old.json", ask(script, "run", until=[["hw.gpu.memory.usage", {}]])["outline"])


def test_values_in_units_of_the_contract(ask):
    (told,) = ask(changed(FULL, energy_mj="7000123"), readings=2)
    assert told["device"]["hw_id"] == ID
    assert told["device"]["description"] == "SIMULATED H200, driver 580.65.06, by its energy counter"
    energy = {"hw.energy.gpu": 7000.123, "hw.power.gpu.instant": 310.5, "hw.power.gpu.average": 298.0}
    assert told["samples"] == [pytest.approx(energy)] * 2
    values = {(name, *sorted(set(labels.values()) - {ID})): v for name, labels, v in told["values"]}
    expected = {
        ("hw.gpu.utilization", "general"): 0.87,
        ("hw.gpu.utilization", "encoder"): 0.12,
        ("hw.gpu.memory.limit",): 150754820096,
        ("hw.gpu.clock", "sm"): 1.755e9,
        ("hw.gpu.clock.limit", "memory"): 3.201e9,
        ("hw.temperature", "gpu", "temperature"): 61,
        ("hw.temperature", "memory", "temperature"): 72,
        ("hw.temperature.limit", "gpu", "high.critical", "temperature"): 95,
        ("hw.temperature.limit", "gpu", "temperature", "throttled"): 90,
        ("hw.gpu.throttle", "sw_power_cap"): 1,
        ("hw.gpu.throttle", "sw_thermal_slowdown"): 1,
        ("hw.gpu.throttle", "hw_slowdown"): 0,
        ("hw.gpu.pcie.generation",): 5,
        ("hw.gpu.pcie.width",): 16,
        ("hw.gpu.pcie.throughput", "transmit"): 120e6,
        ("hw.gpu.pcie.throughput", "receive"): 3.4e9,
        ("hw.fan.speed_ratio", "fan", "fan-1"): 0.42,
        ("hw.fan.speed", "fan", "fan-0"): 1530,
        ("hw.power.limit", "enforced", "gpu"): 650,
        ("hw.power.limit", "default", "gpu"): 700,
        ("hw.errors", "corrected", "gpu"): 5,
        ("hw.errors", "gpu", "uncorrected"): 0,
        ("hw.gpu.process.memory.usage", "4194305"): 8e9,  # in both lists, counted once
        ("hw.gpu.process.memory.usage", "4194306"): 250e6,
    }
    assert {key: values.get(key) for key in expected} == pytest.approx(expected)
    assert not [key for key in values if "idle" in key]


def test_a_gpu_that_tells_nothing_has_no_samples_and_no_zeros(ask):
    (told,) = ask(gpu(), readings=2)
    assert told["samples"] == [{}, {}]
    assert {name: v for name, _, v in told["values"]} == {"hw.info": 1.0}
    assert "without energy and power" in told["device"]["description"]


def test_new_functions_of_the_driver_are_used_where_the_old_ones_are_gone(ask):
    script = changed(FULL, temperature_0="", temperature_new="58", event_reasons="", throttle_reasons="8")
    (told,) = ask(script, readings=1)
    values = [(name, *labels.values(), v) for name, labels, v in told["values"]]
    assert ("hw.temperature", ID, "temperature", "gpu", 58.0) in values
    assert ("hw.gpu.throttle", ID, "hw_slowdown", 1.0) in values


def test_a_process_has_its_name_and_unknown_memory_is_absent(ask, child):
    script = changed(FULL, compute=f"{child.pid}:4096 {os.getpid()}:-1", graphics=NO_PERMISSION)
    (told,) = ask(script, readings=1)
    processes = [(labels, v) for name, labels, v in told["values"] if name == "hw.gpu.process.memory.usage"]
    ((labels, value),) = processes
    assert labels["process.pid"] == str(child.pid)
    assert labels["process.executable.name"] == Path(f"/proc/{child.pid}/comm").read_text().strip()
    assert value == 4096


def test_text_that_is_none_is_absent(ask):
    (told,) = ask(gpu("power_mw 5000").encode() + b"serial \xff\xfe\nvbios 96.00\n", readings=1)
    assert told["samples"] == [{"hw.power.gpu": 5.0}]
    ((_, info, _),) = [value for value in told["values"] if value[0] == "hw.info"]
    assert info["hw.firmware_version"] == "96.00"
    assert "hw.serial_number" not in info


# -- what is asked each second, and what seldom -----------------------------------------------


def told_in(rounds: list[list], name: str, *labels: str) -> list[float | None]:
    """The value of the one series with these labels in each round, None where it is absent."""
    found = [[v for n, had, v in values if n == name and {*labels} <= {*had.values()}] for values in rounds]
    assert all(len(values) < 2 for values in found)
    return [values[0] if values else None for values in found]


def test_what_hardly_changes_is_asked_for_each_minute_and_the_rest_each_second(ask):
    script = changed(
        FULL,
        max_clock_0="1980 1990",
        threshold_0="95 96",
        limit_default_mw="700000 710000",
        limit_max_mw="700000 710000",
        fans="1 2",
        clock_0="1755 1756 1757 1758",
        limit_enforced_mw="650000 640000 630000 620000",
        temperature_0="61 62 63 64",
    )
    told = ask(script, "rounds", times=[0, 1, 59, 60])
    assert told_in(told, "hw.gpu.clock.limit", "graphics") == [1980e6, 1980e6, 1980e6, 1990e6]
    assert told_in(told, "hw.temperature.limit", "high.critical") == [95, 95, 95, 96]
    for kind in ("default", "max"):
        assert told_in(told, "hw.power.limit", kind) == [700, 700, 700, 710]
    assert told_in(told, "hw.fan.speed_ratio", "fan-1") == [None, None, None, 0.42]
    assert told_in(told, "hw.gpu.clock", "graphics") == [1755e6, 1756e6, 1757e6, 1758e6]
    assert told_in(told, "hw.power.limit", "enforced") == [650, 640, 630, 620]
    assert told_in(told, "hw.temperature", "gpu") == [61, 62, 63, 64]


@pytest.mark.parametrize("error", [NOT_SUPPORTED, "!13"], ids=["not supported", "no such function"])
def test_what_a_gpu_does_not_have_is_asked_for_again_after_a_minute(ask, error):
    script = gpu(f"encoder {error} 50", f"max_clock_0 {error} 1980", f"fans {error} 1", "fan_0 40")
    told = ask(script, "rounds", times=[0, 1, 2, 60])
    assert told_in(told, "hw.gpu.utilization") == [None, None, None, 0.5]
    assert told_in(told, "hw.gpu.clock.limit") == [None, None, None, 1980e6]
    assert told_in(told, "hw.fan.speed_ratio") == [None, None, None, 0.4]


@pytest.mark.parametrize("error", [NO_PERMISSION, "!10", UNKNOWN])
def test_an_error_that_may_pass_leaves_a_value_out_until_the_next_second(ask, error):
    script = gpu(f"encoder {error} 50 {error} 60", f"max_clock_0 {error} 1980", "fan_0 40", f"fans {error} 1")
    told = ask(script, "rounds", times=[0, 1, 2, 3])
    assert told_in(told, "hw.gpu.utilization") == [None, 0.5, None, 0.6]
    assert told_in(told, "hw.gpu.clock.limit") == [None, 1980e6, 1980e6, 1980e6]
    assert told_in(told, "hw.fan.speed_ratio") == [None, 0.4, 0.4, 0.4]


def test_a_mig_instance_that_is_made_or_removed_is_noticed_in_the_next_second(ask):
    instance = "mig MIG-1\nhandle !6 0 0 !6\nmemory_total 19000\nmemory_used 7\ncompute 4194307:1000\n"
    script = gpu("mig_mode 1", "memory_total 80000", "memory_used 9", "compute 4194307:1000") + instance
    told = ask(script, "rounds", times=[0, 1, 2, 3])
    assert told_in(told, "hw.gpu.memory.usage", "mig-1") == [None, 7, 7, None]
    assert told_in(told, "hw.gpu.process.memory.usage", "mig-1") == [None, 1000, 1000, None]
    assert told_in(told, "hw.gpu.process.memory.usage", "gpu-aa") == [1000, None, None, 1000]


# -- power and energy -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lines", "sample", "window"),
    [
        (["field_186 310000", "field_185 290000"], {"": 310.0, ".average": 290.0}, None),
        (["field_185 290000"], {"": 290.0}, 1_000_000_000),
        (["power_mw 290000", "capability 86"], {"": 290.0}, 1_000_000_000),
        (["power_mw 290000", "capability 90"], {"": 290.0}, 1_000_000_000),
        (["power_mw 290000", "capability 80"], {"": 290.0}, None),
        (["power_mw 290000", "capability 61"], {"": 290.0}, None),
        (["power_mw 290000"], {"": 290.0}, None),
    ],
    ids=["both", "average only", "Ampere", "Hopper", "GA100", "Pascal", "not told"],
)
def test_without_a_counter_the_domain_is_a_power_whose_window_is_told_where_known(ask, lines, sample, window):
    (told,) = ask(gpu("energy_mj !3", *lines), readings=1)
    assert told["samples"] == [{f"hw.power.gpu{suffix}": watts for suffix, watts in sample.items()}]
    assert told["device"]["attributes"] == ({"meter.window_ns": window} if window else {})


@pytest.mark.parametrize(("capability", "name"), [("70", "instant"), ("86", "average")])
def test_beside_a_counter_the_one_power_of_an_old_driver_says_what_it_is(ask, capability, name):
    (told,) = ask(gpu("energy_mj 5000", "power_mw 290000", f"capability {capability}"), readings=1)
    assert told["samples"] == [{"hw.energy.gpu": 5.0, f"hw.power.gpu.{name}": 290.0}]
    assert told["device"]["attributes"] == {}


def test_a_counter_that_refreshes_slowly_is_recognized_and_timed(ask):
    (told,) = ask(gpu("energy_mj @5000:300000:50"), readings=250, pause_s=0.008)
    values = {name: v for name, _, v in told["values"]}
    assert values["meter.refresh"] == pytest.approx(0.05, rel=0.3)
    time = np.array(told["times"], np.int64)
    energy = np.array([sample["hw.energy.gpu"] for sample in told["samples"]])
    nothing = np.zeros(len(time), np.uint64)
    readings = Readings(
        *("gpu", "gpu", "energy", time, np.zeros(len(time), np.int64), energy),
        *(np.stack([nothing, nothing], axis=1), nothing),
    )
    cleaned = clean(readings, int(time[0]))
    assert cleaned.repeats > 100
    watts = np.polyfit(cleaned.time, cleaned.value, 1)[0]
    assert watts == pytest.approx(300.0, rel=0.05)


@given(
    refresh_ms=st.integers(5, 200),
    poll_ms=st.integers(1, 100),
    n=st.integers(0, 400),
    parts=st.integers(1, 9),
)
def test_refresh_is_found_where_polls_are_faster_and_not_told_where_not(refresh_ms, poll_ms, n, parts):
    time = np.arange(n, dtype=np.int64) * poll_ms * 1_000_000
    values = (time // (refresh_ms * 1_000_000)).astype(float)[:, None]
    refresh, found = nvml.Refresh(), np.nan
    for time_part, value_part in zip(np.array_split(time, parts), np.array_split(values, parts), strict=True):
        found = refresh.update(time_part, value_part)
    changes = len(np.unique(values)) - 2  # between the first new value and the last
    if changes < nvml.Refresh.LEAST or refresh_ms <= poll_ms:
        assert np.isnan(found)
    elif refresh_ms > 2 * poll_ms:
        # the first and last change are each seen up to a poll late
        assert found * 1e3 == pytest.approx(
            refresh_ms, abs=2 * poll_ms / min(changes, nvml.Refresh.MOST) + 1e-9
        )


@pytest.mark.parametrize(
    ("lines", "good", "reason", "message"),
    [
        (["energy_mj 5000 5000 6000 100"], [5.0, 6.0], "reset", "began again"),
        (["energy_mj 5000 5000 6000 99000000000"], [5.0, 6.0], "implausible", "rose by more"),
        (["power_mw 5000 5000 6000 4294967295"], [5.0, 6.0], "implausible", "above 5000"),
        (["energy_mj 5000 5000 6000 !15"], [], "lost", "GPU is lost"),
        (["energy_mj 5000 5000 6000 !3"], [], "unknown", "Not Supported"),
        (["energy_mj 5000 5000 6000 !10"], [], "late", "Timeout"),
        (["energy_mj 5000", "field_186 5000 5000 5000 !999"], [], "unknown", "Unknown"),
    ],
)
@pytest.mark.parametrize("at_once", [True, False])
def test_what_cannot_be_ends_the_readings_and_what_came_before_is_kept(
    ask, lines, good, reason, message, at_once
):
    (told,) = ask(gpu(*lines), readings=4, at_once=at_once)
    assert told["error"]["reason"] == reason
    assert message in told["error"]["message"]
    assert "GPU 0 (GPU-aa)" in told["error"]["message"]
    if good:
        assert [next(iter(sample.values())) for sample in told["samples"]] == good


# -- GPUs that come and go --------------------------------------------------------------------


def test_several_gpus_have_domains_by_index_and_one_that_is_lost_ends_alone(ask):
    first = gpu("energy_mj @5000:300000:20", uuid="GPU-aa")
    second = gpu("energy_mj " + "5000 " * 20 + GONE, uuid="GPU-bb")
    both = ask(first + second, readings=1)
    assert [list(one["samples"][0]) for one in both] == [["hw.energy.gpu-0"], ["hw.energy.gpu-1"]]
    lost = ["exporter.collect.failures", {"hw.id": "gpu-bb", "reason": "lost"}]
    series = ["hw.energy", {"hw.id": "gpu-bb"}]
    told = ask(first + second, "run", until=[lost, series])
    well, gone = told["health"]
    assert well["ok"]
    assert well["failures"] == {}
    assert not gone["ok"]
    assert gone["readings"] == 19  # all that were told, one of 20 on opening
    assert "GPU 1" in gone["message"]
    assert "GPU is lost" in gone["message"]
    assert told["values"][json.dumps(series)][-1] is None  # no last known value


def test_a_gpu_that_is_lost_before_it_is_opened_does_not_hide_the_others(ask):
    well, gone = ask(
        gpu("energy_mj 5000") + gpu("energy_mj 5000", f"handle {GONE}", uuid="GPU-bb"), readings=1
    )
    assert well["samples"] == [{"hw.energy.gpu-0": 5.0}]
    assert gone["address"] == "1"
    assert gone["error"]["reason"] == "lost"
    assert "dmesg" in gone["error"]["fix"]
    assert "a reset ends everything that runs on the GPU" in gone["error"]["risk"]


def test_a_gpu_without_meter_that_is_lost_is_noticed_too(ask):
    script = gpu("utilization 5 " + GONE, "memory_utilization 5")
    told = ask(script, "run", until=[["exporter.collect.failures", {"reason": "lost"}]])
    assert set(told["health"][0]["failures"]) == {"lost"}


def test_a_gpu_that_comes_back_is_read_again(ask):
    script = gpu("energy_mj 5000 5000 6000 " + GONE)  # from the start again when it is opened again
    told = ask(script, "run", until=[["exporter.collect.failures", {"reason": "lost"}], ["hw.energy", {}]])
    assert told["health"][0]["readings"] >= 2


def test_slow_values_go_on_and_do_not_hold_up_samples(ask):
    script = gpu("energy_mj @5000:300000:1", "utilization 10 20", "memory_utilization 1", "pcie_0 5 ~1500 6")
    (told,) = ask(script, readings=300, pause_s=0.01, at_once=False)
    values = {(name, *list(labels.values())[1:]): v for name, labels, v in told["values"]}
    assert len(told["samples"]) == 300
    assert values["hw.gpu.pcie.throughput", "transmit"] in (0.0, 6000.0)  # the call after the first
    assert values["hw.gpu.utilization", "general"] == 0.2
    gaps = np.diff(told["times"]) * 1e-9
    assert np.median(gaps) < 0.1
    assert gaps.max() < 1.5


def test_gpus_are_listed_without_initializing_nvml_again_while_one_is_read(ask):
    only_once = f"init 0 {UNKNOWN}\n" + gpu("energy_mj 5000")  # begins anew when nobody has it initialized
    told = ask(only_once, "list_", opened="0")
    assert told == [["0"], ["0"], ["0"]]


FIRST, SECOND, THIRD = (gpu("energy_mj 5000", uuid=uuid) for uuid in ("GPU-aa", "GPU-bb", "GPU-cc"))


def test_a_gpu_that_comes_while_another_is_read_is_found(ask):
    one, both = [FIRST, ["0000:01:00.0"]], [FIRST + SECOND, ["0000:01:00.0", "0000:02:00.0"]]
    told = ask(FIRST, "plug", steps=[one, both, both, one, both, both])
    assert told == [
        [None, ["0"]],
        ["busy", ["0", "1"]],
        [None, ["0", "1"]],
        [None, ["0", "1"]],  # one that went is NVML's to tell: its own reader notices
        ["busy", ["0", "1"]],  # the same one is back
        [None, ["0", "1"]],
    ]


def test_a_gpu_of_the_driver_that_nvml_never_lists_breaks_off_readings_once_only(ask):
    one, failed = [FIRST, ["0000:01:00.0"]], [FIRST, ["0000:01:00.0", "0000:02:00.0"]]
    told = ask(FIRST, "plug", steps=[one, failed, failed, failed, failed])
    assert told == [[None, ["0"]], ["busy", ["0"]], *[[None, ["0"]]] * 3]


def test_nvml_is_not_opened_again_before_all_have_let_go_of_it(ask):
    two, three = FIRST + SECOND, FIRST + SECOND + THIRD
    told = ask(two, "plug_third", two=two, three=three, let_go=[0, 1])
    assert told == [["busy", "busy"], "busy", None, ["0", "1", "2"]]


def test_a_reader_that_hangs_when_a_gpu_comes_does_not_end_the_others(ask):
    two, three = FIRST + SECOND, FIRST + SECOND + THIRD
    told = ask(two, "plug_third", two=two, three=three, let_go=[0])
    assert told == [["busy", "busy"], "busy", "busy", ["0", "1"]]


def test_a_gpu_that_comes_is_read_beside_the_first(ask):
    series = [["hw.energy", {"hw.id": "gpu-bb"}], ["exporter.collect.failures", {"hw.id": "gpu-aa"}]]
    told = ask(FIRST, "run", until=series, then=[FIRST + SECOND, ["0000:02:00.0"]])
    assert [(h["ok"], h["failures"]) for h in told["health"]] == [(True, {"busy": 1}), (True, {})]


@pytest.mark.parametrize(
    ("script", "what"),
    [
        (gpu("energy_mj " + "5000 " * 50 + HANGS), "gpu-aa"),
        (f"init {HANGS}\n" + gpu("energy_mj 5000"), "the device"),
    ],
    ids=["energy", "init"],
)
def test_a_driver_that_hangs_does_not_hold_up_the_end_and_is_told(library, tmp_path, script, what):
    path = tmp_path / "hangs.txt"
    path.write_text(script)
    own = environment(library, NVML_STUB=str(path))
    command = [*PROGRAM, "export", "nvml", "--metrics", "127.0.0.1:0"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=own
    ) as process:
        try:
            assert process.stdout.readline()  # it can be ended from now on
            wait_for(path.with_name("hangs.txt.waits").exists)
            process.send_signal(signal.SIGINT)
            _, told = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 0
    assert f"nvml: {what} does not answer any more: its thread is left behind" in told


def test_a_call_that_hangs_freezes_no_values_and_does_not_keep_the_command_from_ending(library, tmp_path):
    script = tmp_path / "hangs.txt"
    script.write_text(
        gpu("energy_mj @5000:300000:20", "utilization 5", "memory_utilization 5", "pcie_0 5 ~120000 6")
    )
    own = environment(library, NVML_STUB=str(script))
    command = [*PROGRAM, "export", "nvml", "--metrics", "127.0.0.1:0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=own) as process:
        url = process.stdout.readline().split()[1]

        def shown() -> set[str]:
            with urllib.request.urlopen(url) as answer:
                return set(re.findall(r"^hw_\w+", answer.read().decode(), re.M))

        try:
            wait_for(lambda: {"hw_energy_joules_total", "hw_gpu_utilization_ratio"} <= shown())
            wait_for(
                lambda: "hw_energy_joules_total" in shown() and "hw_gpu_utilization_ratio" not in shown()
            )
            process.send_signal(signal.SIGINT)
            assert process.wait(60) == 0
        finally:
            process.kill()


# -- no driver --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("script", "reason", "fix"),
    [
        ("init !9\n", "absent", "modprobe nvidia"),
        ("init !18\n", "unknown", "reboot"),
        ("init !4\n", "unreadable", "/dev/nvidiactl"),
        ("init !13\n", "unknown", "newer driver"),
        ("driver 580.65.06\n", "absent", "lspci"),
    ],
    ids=["not loaded", "updated", "no permission", "too old", "no GPU"],
)
def test_a_driver_that_gives_no_gpu_names_the_fix(ask, script, reason, fix):
    (told,) = ask(script, readings=1)
    assert told["error"]["reason"] == reason
    assert fix in told["error"]["fix"]
    if fix in ("modprobe nvidia", "/dev/nvidiactl"):
        assert told["error"]["risk"]
    assert not told["samples"]


def devices(folder: Path, **extra) -> subprocess.CompletedProcess[str]:
    program = [
        sys.executable,
        "-c",
        "from benchlab_otel.cli import main; main()",
        "devices",
        "nvml",
        "--json",
    ]
    return subprocess.run(
        program, capture_output=True, text=True, timeout=60, env=environment(folder, **extra)
    )


def test_devices_without_the_library_and_with_it(tmp_path, library):
    (tmp_path / "libnvidia-ml.so.1").write_text("not a library")  # found first, also where there is a driver
    (found,) = json.loads(devices(tmp_path).stdout)
    assert found["reason"] == "absent"
    assert "install NVIDIA's driver" in found["fix"]
    (found,) = json.loads(devices(library, NVML_STUB=str(FOLDER / "full.txt")).stdout)
    assert found["hw.id"] == ID
    assert found["simulated"]
    assert found["readings_per_second"] > 50
