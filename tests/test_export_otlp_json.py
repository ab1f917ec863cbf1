"""OTLP/JSON lines: the same requests, in the encoding that the Collector and protobuf agree on."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from benchlab_otel.archive.records import Fault, read_records
from benchlab_otel.archive.session import create, open_session
from benchlab_otel.export.otlp_json import to_json, write_otlp_json
from benchlab_otel.export.recording import load_runs
from benchlab_otel.otlp.json import metrics_to_protobuf, traces_to_protobuf
from benchlab_otel.timebase import anchor
from frames_of import make_run, requests


def test_every_request_comes_back(tmp_path: Path) -> None:
    writer = create(tmp_path, anchor(), ["test"], "s1")
    metrics = ExportMetricsServiceRequest()
    point = metrics.resource_metrics.add().scope_metrics.add().metrics.add(name="m").gauge.data_points.add()
    point.as_double, point.time_unix_nano = math.nan, 1 << 60
    for body in requests(make_run(60)):
        writer.traces(body)
        writer.energy(body)
    writer.metrics(metrics.SerializeToString())
    writer.close()
    session, faults = open_session("s1", tmp_path), list[Fault]()
    counts = write_otlp_json(tmp_path / "out", session, faults)
    assert faults == []
    assert counts == {"traces": 2, "energy": 2, "metrics": 1}
    for name, decode, kind in (
        ("traces", traces_to_protobuf, ExportTraceServiceRequest),
        ("metrics", metrics_to_protobuf, ExportMetricsServiceRequest),
    ):
        lines = (tmp_path / "out" / f"{name}.jsonl").read_bytes().splitlines()
        bodies = [record.body for record in read_records(session.path / f"{name}.otlp", faults)]
        for line, body in zip(lines, bodies, strict=True):
            again, before = kind.FromString(decode(line)), kind.FromString(body)
            assert again.SerializeToString(deterministic=True) == before.SerializeToString(deterministic=True)
    (run,) = load_runs(open_session(str(tmp_path / "out" / "traces.jsonl"), tmp_path), faults)
    assert len(run.frames) == 60


def test_values_are_spelled_as_the_specification_says() -> None:
    request = ExportTraceServiceRequest()
    span = request.resource_spans.add().scope_spans.add().spans.add()
    span.trace_id, span.span_id, span.name = bytes(range(16)), bytes(8), "ü"
    span.start_time_unix_nano, span.kind, span.status.code = 1_790_000_000_000_000_001, 2, 2
    values = span.attributes
    values.add(key="i").value.int_value = -5
    values.add(key="d").value.double_value = -math.inf
    values.add(key="y").value.bytes_value = b"\xff"
    values.add(key="a").value.array_value.values.add().bool_value = False
    (plain,) = json.loads(to_json(request))["resourceSpans"][0]["scopeSpans"][0]["spans"]
    assert plain["traceId"] == "000102030405060708090a0b0c0d0e0f"
    assert plain["startTimeUnixNano"] == "1790000000000000001"
    assert (plain["kind"], plain["status"], plain["name"]) == (2, {"code": 2}, "ü")
    assert [a["value"] for a in plain["attributes"]] == [
        {"intValue": "-5"},
        {"doubleValue": "-Infinity"},
        {"bytesValue": "/w=="},
        {"arrayValue": {"values": [{"boolValue": False}]}},
    ]


def test_what_is_no_request_is_noted(tmp_path: Path) -> None:
    writer = create(tmp_path, anchor(), ["test"], "s1")
    writer.traces(b"\xff\xff\xff")
    for body in requests(make_run(3)):
        writer.traces(body)
    writer.close()
    faults: list[Fault] = []
    assert write_otlp_json(tmp_path / "out", open_session("s1", tmp_path), faults)["traces"] == 2
    (fault,) = faults
    assert fault.offset == 0
    with pytest.raises(OSError, match="file"):
        write_otlp_json(Path("/proc/none"), open_session("s1", tmp_path), faults)
