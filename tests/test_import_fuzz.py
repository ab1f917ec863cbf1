"""Truncated, garbled and hostile files of every format: an error that says where, or what could be read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from benchlab_otel import imports
from benchlab_otel.archive.reader import read_spans
from benchlab_otel.cli.errors import UserError
from benchlab_otel.cli.importing import FORMATS, WALL, Source, convert, detect
from foreign import (
    METRICS,
    OPERATIONS,
    SYSTEM,
    V1,
    V2,
    arrived,
    capture,
    component,
    element,
    event,
    mangohud,
    operation,
    v1,
    v2,
)
from test_tracerlog import element as gst_element
from test_tracerlog import sink as gst_sink

EXAMPLES: dict[str, list[list[str]]] = {
    "presentmon": [
        [V1, *(v1(1 + i / 100) for i in range(5))],
        [V2, *(v2(16.0 * i) for i in range(5))],
    ],
    "capframex": [
        [json.dumps(capture(SampleTime=5, PmdGpuPower=[1.0, 2.0]))],
        ["//GameName=x", "//CreationDate=2026-10-01", "//CreationTime=12:00:00", V1, v1(1), v1(2)],
        [V1.replace("Application", "//Comment=SIMULATED: x\nApplication"), v1(1).replace("DXGI", "OTel")],
    ],
    "mangohud": [[*SYSTEM, METRICS, *(mangohud(8 * i, 8) for i in range(5))]],
    "dlstreamer": [[element(1.0, "decode", 10, 1), arrived(1.1, 200, 1), arrived(1.2, 100, 2, "b")]],
    "deepstream": [
        [
            "BATCH-NUM = 1",
            component("d", 0, 5),
            component("m", 5, 9, 0),
            "Src id=0 Frame_no=8 Frame latency=9 (ms)",
        ]
    ],
    "bitnet": [
        [event(1, "runtime.execute.start"), event(2, "runtime.execute.complete", returncode=0, duration_ms=5)]
    ],
    "inference_log": [
        [OPERATIONS, operation(1, -1, "embedding"), operation(2, 0, "x"), operation(3, -1, "embedding")]
    ],
    "gstreamer": [[(gst_sink("out", 0, 90) + gst_element("enc", 0, 50)).decode()]],
}
FILES = [
    (name, "\n".join(lines).encode() + b"\n") for name, examples in EXAMPLES.items() for lines in examples
]
HOSTILE = [
    b"",
    b"\0",
    b"\n",
    b",",
    b'"',
    b"NaN",
    b"1e999",
    b"-1",
    b"\xff\xfe",
    b"9" * 30,
    b"]}",
    b"//",
    b"=",
    b"NA",
]


def check(path: Path, name: str) -> None:
    """Imports a file: either a one-line error, or spans that can all be read back."""
    out = path.with_suffix(".otlp")
    source = Source(path, name, None, None)
    try:
        done = convert(source, out, WALL, "s1")
    except UserError as error:
        problem = str(error)
    else:
        problem = ""
    if problem:
        assert "\n" not in problem
        assert str(path) in problem
        return
    faults = []
    spans = list(read_spans([out], faults))
    assert faults == []
    assert all(((s.end >= s.start) & (s.start > 0)).all() for s in spans)
    assert done.notes


@pytest.mark.parametrize(("name", "data"), FILES, ids=[f"{name}-{i}" for i, (name, _) in enumerate(FILES)])
def test_each_is_found_and_read(tmp_path: Path, name: str, data: bytes) -> None:
    path = tmp_path / "file"
    path.write_bytes(data)
    assert detect(path) == name
    convert(Source(path, name, None, None), tmp_path / "out", WALL, "s1")


def test_all_formats_are_here() -> None:
    assert set(EXAMPLES) == set(FORMATS)


@pytest.mark.parametrize(("name", "data"), FILES, ids=[f"{name}-{i}" for i, (name, _) in enumerate(FILES)])
def test_cut_off_anywhere(tmp_path: Path, name: str, data: bytes) -> None:
    path = tmp_path / "file"
    for size in range(0, len(data), max(1, len(data) // 40)):
        path.write_bytes(data[:size])
        check(path, name)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from(FILES),
    st.lists(
        st.tuples(st.integers(0, 3000), st.integers(0, 30), st.sampled_from(HOSTILE) | st.binary(max_size=8)),
        min_size=1,
        max_size=5,
    ),
)
def test_garbled(tmp_path: Path, file: tuple[str, bytes], damage: list[tuple[int, int, bytes]]) -> None:
    name, data = file
    for at, size, put in damage:
        at %= len(data) + 1
        data = data[:at] + put + data[at + size :]
    path = tmp_path / "file"
    path.write_bytes(data)
    check(path, name)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=400), name=st.sampled_from(FORMATS))
def test_anything_as_anything(tmp_path: Path, data: bytes, name: str) -> None:
    path = tmp_path / "file"
    path.write_bytes(data)
    check(path, name)
    imports.detect(data)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("of", EXAMPLES)
def test_one_format_taken_for_another(tmp_path: Path, name: str, of: str) -> None:
    path = tmp_path / "file"
    for lines in EXAMPLES[of]:
        path.write_text("\n".join(lines))
        check(path, name)


def test_a_line_without_end_does_not_fill_the_memory(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(
        "\n".join([V1, v1(1)]).encode() + b"\n" + b"x" * (8 << 20) + b"\n" + v1(2).encode() + b"\n"
    )
    done = convert(Source(path, "presentmon", None, None), tmp_path / "out", WALL, "s1")
    assert "2 frames" in done.notes[0]
    assert "line 3: expected 15 values" in "\n".join(done.notes)
