"""Logs of MangoHud, DL Streamer, DeepStream, BitNet and of a split inference program."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest

from benchlab_otel.archive.reader import read_spans
from benchlab_otel.archive.records import read_records
from benchlab_otel.cli.errors import UserError
from elsewhere import elsewhere
from foreign import (
    METRICS,
    OPERATIONS,
    SYSTEM,
    arrived,
    component,
    element,
    event,
    mangohud,
    operation,
    traced,
)
from imported import START, START_NS, Back, durations_ms, import_file, readings, stages


def imported(path: Path, *lines: str, start: datetime | None = START) -> Back:
    path.write_text("\n".join(lines) + "\n")
    return import_file(path, start=start)


# -- MangoHud -------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1, 1000], ids=["ms", "µs"])
def test_mangohud(tmp_path: Path, scale: int) -> None:
    rows = [mangohud(8 * i, 8 * scale) for i in range(1, 4)]
    back = imported(tmp_path / "a.csv", *SYSTEM, METRICS, *rows)
    assert (back.frames.end - START_NS).tolist() == [8_000_000, 16_000_000, 24_000_000]
    assert durations_ms(back.frames).tolist() == [8, 8, 8]
    assert ("µs" in back.notes()) == (scale == 1000)


def test_mangohud_with_versions_and_the_time_in_its_name(tmp_path: Path) -> None:
    path = tmp_path / "glxgears_2026-10-01_12-00-00.csv"
    head = ("v1", "v0.8.1", "-----SYSTEM INFO-----", *SYSTEM, "-----FRAME METRICS-----", METRICS)
    back = imported(path, *head, mangohud(8, 8), start=None)
    assert back.frames.pipeline == "glxgears"
    local = datetime(2026, 10, 1, 12).astimezone()
    assert int(back.frames.end[0]) == int(local.timestamp() * 1000 + 8) * 1_000_000


def test_mangohud_readings_are_where_a_value_changes(tmp_path: Path) -> None:
    rows = [mangohud(8 * i, 8, watts) for i, watts in enumerate((65, 65, 70, 70, 0), 1)]
    back = imported(tmp_path / "a.csv", *SYSTEM, METRICS, *rows)
    gpu = readings(back, "mangohud", "gpu")
    assert gpu.value.tolist() == [65, 70]
    assert (gpu.time - START_NS).tolist() == [8_000_000, 20_000_000]  # between the row before and this one
    assert {(r.meter, r.domain) for r in back.runs[0].readings} == {
        ("mangohud", "gpu")
    }  # cpu_power is 0: none


def test_a_reading_of_mangohud_beyond_reason_is_absent_and_said_so(tmp_path: Path) -> None:
    rows = [mangohud(8 * i, 8, watts) for i, watts in enumerate((65.0, 1e300, 70.0), 1)]
    back = imported(tmp_path / "a.csv", METRICS, *rows)
    assert readings(back, "mangohud", "gpu").value.tolist() == [65, 70]
    assert "1 could not be read: line 3: expected gpu_power up to 1e+09, found '1e+300'" in back.notes()


def test_mangohud_that_logged_only_some_frames_says_so(tmp_path: Path) -> None:
    rows = [mangohud(100 * i, 8) for i in range(1, 9)]
    assert "log_interval" in imported(tmp_path / "a.csv", *SYSTEM, METRICS, *rows).notes()


# -- DL Streamer ----------------------------------------------------------------------------------


def test_dlstreamer(tmp_path: Path) -> None:
    interval = traced(
        2,
        "latency_tracer_pipeline_interval, interval=(double)2000, avg=(double)1, fps=(double)3",
    )
    back = imported(
        tmp_path / "a.log",
        element(1.010, "decode", 10, 1),
        element(1.060, "detect", 50, 1),
        element(1.060, "bin", 60, 1, is_bin=1),
        element(0.500, "elsewhere", 10, 1),
        arrived(1.070, 70, 1),
        interval,
        arrived(1.170, 60, 2),
        element(1.200, "decode", 10, 3),
    )
    assert "2 records of elements belong to no frame of the log" in back.notes()
    frames = back.frames
    assert (frames.end - START_NS).tolist() == [1_070_000_000, 1_170_000_000]
    assert durations_ms(frames).tolist() == [70, 60]
    assert stages(frames, 0) == {"decode": (0, 10), "detect": (10, 60)}
    assert stages(frames, 1) == {}


def test_dlstreamer_of_two_pipelines_has_no_stages(tmp_path: Path) -> None:
    lines = [element(1.0, "decode", 10, 1), arrived(1.1, 200, 1, "a"), arrived(1.2, 300, 1, "b")]
    back = imported(tmp_path / "a.log", *lines)
    assert sorted(run.frames.pipeline for run in back.runs) == ["a/79459/p/s/a", "a/79459/p/s/b"]
    assert all(not len(run.frames.stage) for run in back.runs)
    assert "several pipelines" in back.notes()
    assert "belong to no frame" not in back.notes(), "nobody can tell"


def test_dlstreamer_garbled(tmp_path: Path) -> None:
    bad = arrived(1.2, 1, 2).replace("frame_num", "frame_nm")
    back = imported(tmp_path / "a.log", arrived(1.1, 200, 1), bad, arrived(1.3, 5, 3)[:-30])
    assert len(back.frames) == 1
    assert "2 could not be read: line 2: expected a time" in back.notes()


# -- DeepStream -----------------------------------------------------------------------------------


def test_deepstream(tmp_path: Path) -> None:
    back = imported(
        tmp_path / "a.log",
        "app starts",
        "************BATCH-NUM = 8**************",
        component("nvv4l2-decoder", 0, 18.5),
        component("nvstreammux", 18.5, 100.25, source=0),
        component("nvinfer", 100.25, 120),
        "Src id=0 Frame_no=8 Frame latency=1684240027012.419922 (ms)",
        "************BATCH-NUM = 9**************",
        component("nvv4l2-decoder", 40, 50),
        "Source id = 0 Frame_num = 9 Frame latency = 33.500000 (ms) ",
        start=None,
    )
    frames = back.frames
    order = np.argsort(frames.number)
    assert frames.number[order].tolist() == [8, 9]
    assert ((frames.begin - START_NS) / 1e6)[order].tolist() == [0, 40]
    assert durations_ms(frames)[order].tolist() == [120, 33.5]
    assert stages(frames, int(order[0])) == {
        "nvv4l2-decoder": (0, 18.5),
        "nvstreammux": (18.5, 100.25),
        "nvinfer": (100.25, 120),
    }
    assert "1 frame latencies as large as an epoch are discarded" in back.notes()


def test_deepstream_of_two_sources(tmp_path: Path) -> None:
    back = imported(
        tmp_path / "a.log",
        "BATCH-NUM = 1",
        component("decoder", 0, 10),
        component("mux", 10, 20, source=0),
        component("decoder", 1, 11),
        component("mux", 11, 21, source=1),
        component("infer", 21, 30),
        "Source id = 0 Frame_num = 1 Frame latency = 30 (ms)",
        "Source id = 1 Frame_num = 1 Frame latency = 29 (ms)",
        start=None,
    )
    found = {run.frames.pipeline: stages(run.frames, 0) for run in back.runs}
    assert found == {
        "a": {"decoder": (0, 10), "mux": (10, 20), "infer": (21, 30)},
        "a/source-1": {"decoder": (0, 10), "mux": (10, 20), "infer": (20, 29)},
    }


def test_start_is_refused_where_times_are_known(tmp_path: Path) -> None:
    lines = ["BATCH-NUM = 1", component("d", 0, 1), "Src id=0 Frame_no=1 Frame latency=1 (ms)"]
    with pytest.raises(UserError, match="leave --start out"):
        imported(tmp_path / "a.log", *lines)


# -- BitNet ---------------------------------------------------------------------------------------

SECRET = "tell me a secret"


def leaks(back: Back, archive: Path, text: str) -> bool:
    """Whether a text is in what was made of a file."""
    bodies = b"".join(record.body for record in read_records(archive, []))
    assert b"pipeline.name" in bodies
    return text.encode() in bodies or text in back.notes()


def test_bitnet(tmp_path: Path) -> None:
    command = ["build/bin/llama-cli", "-p", SECRET]
    rate = (
        "llama_perf_context_print:        eval time =    2000.00 ms /   100 runs   (  20.00 ms per token)\n"
    )
    back = imported(
        tmp_path / "t.jsonl",
        event(0, "telemetry.start", pid=7387, model="m.gguf"),
        event(1, "runtime.execute.start", command=command),
        event(2, "runtime.execute.stdout", command=command, chunk=SECRET),
        event(3, "runtime.execute.stderr", command=command, chunk=rate),
        event(3.5, "runtime.execute.complete", command=command, returncode=0, attempt=1, duration_ms=2400),
        event(4, "runtime.execute.failure", command=command),
        event(5, "runtime.execute.complete", command=command, returncode=1, duration_ms=500.0),
        event(6, "runtime.metrics", **{"metrics.power_watts": 55.5}),
        event(6.5, "runtime.metrics", metrics={"power_watts": 56}),
        start=None,
    )
    frames = back.frames
    assert durations_ms(frames) == pytest.approx([2500, 500], abs=0.01)
    assert frames.outcome.tolist() == [0, 2]
    spans = next(read_spans([tmp_path / "imported.otlp"], []))
    assert spans.attributes["runtime.tokens_per_second"].values.tolist() == [50.0]
    assert spans.attributes["hw.power.reported.total"].values.tolist()[-1] in (55.5, 56.0)
    assert back.runs[0].readings == []  # of what it is the power nobody says
    assert not leaks(back, tmp_path / "imported.otlp", SECRET)
    assert not leaks(back, tmp_path / "imported.otlp", "llama-cli")


def test_bitnet_garbled(tmp_path: Path) -> None:
    good = [event(1, "runtime.execute.start"), event(2, "runtime.execute.complete", returncode=0)]
    late = '{"timestamp": 1e300, "component": "c", "event": "e"}'
    bad = ["{", late, "[" * 5000, event(3, "runtime.execute.complete")]
    back = imported(tmp_path / "t.jsonl", *good, *bad, start=None)
    assert len(back.frames) == 1
    assert "4 could not be read: line 3: expected JSON" in back.notes()


# -- split inference ------------------------------------------------------------------------------


def test_inference_log(tmp_path: Path) -> None:
    back = imported(
        tmp_path / "ops.csv",
        OPERATIONS,
        operation(0.9, 3, "expert_ffn"),
        operation(1.0, -1, "embedding", "cpu"),
        operation(1.5, 0, "attention"),
        operation(2.0, -1, "embedding", "cpu"),
        operation(2.5, 0, "attention", end=f"False,1.0,{SECRET}"),
        start=None,
    )
    frames = back.frames
    assert durations_ms(frames).tolist() == [510, 510]
    assert frames.outcome.tolist() == [0, 2]
    assert stages(frames, 0) == {"cpu/embedding": (0, 10), "igpu/attention": (500, 510)}
    notes = back.notes()
    assert "1 operations ahead of the first embedding" in notes
    assert "add up to 3.1% of the time: igpu 1.9%, cpu 1.2%" in notes
    assert not leaks(back, tmp_path / "imported.otlp", SECRET)


def test_a_real_inference_log(tmp_path: Path) -> None:
    sample = elsewhere("inference/session_2025-11-17_00-04-29.csv")
    (tmp_path / "a.csv").write_bytes(sample.read_bytes())
    back = import_file(tmp_path / "a.csv")
    assert len(back.frames) == 5
    assert len(back.frames.stage) == 815
    summary = json.loads(sample.with_suffix(".json").read_text())
    assert summary["tokens_generated"] == len(back.frames)
    used = (back.frames.stage_end - back.frames.stage_begin).sum() / 1e6
    assert used == pytest.approx(summary["total_cpu_time_ms"] + summary["total_igpu_time_ms"], rel=0.01)


def test_a_log_of_only_a_header_makes_no_session(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no frame in it"):
        imported(tmp_path / "ops.csv", OPERATIONS, start=None)
