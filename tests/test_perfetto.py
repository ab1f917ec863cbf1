"""Perfetto traces: what the packets say, and what trace_processor makes of them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from perfetto.protos.perfetto.trace.perfetto_trace_pb2 import Trace, TrackEvent

from benchlab_otel.align.aligner import Aligned
from benchlab_otel.archive.session import Session
from benchlab_otel.export.perfetto import write_perfetto
from benchlab_otel.export.recording import Recording, load
from benchlab_otel.export.stream import stream
from frames_of import MS, START, make_run
from sessions_of import recorded
from trace_processor import Processor, opened


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Session:
    return recorded(tmp_path_factory.mktemp("data"), "s1")


@pytest.fixture(scope="module")
def known(session: Session) -> Recording:
    return load(session, [])


@pytest.fixture(scope="module")
def path(session: Session, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("trace") / "s1.pftrace"
    write_perfetto(out, stream(session, []))
    return out


class Slices:
    """A trace as its rules make slices and counters of it: events by time, ends close what is open."""

    def __init__(self, path: Path) -> None:
        trace = Trace()
        trace.ParseFromString(path.read_bytes())
        self.tracks: dict[int, Any] = {}
        self.names: dict[int, str] = {}
        self.notes: dict[int, str] = {}
        self.clocks = [p.clock_snapshot for p in trace.packet if p.HasField("clock_snapshot")]
        self.slices: list[tuple[str, str, int, int, dict[str, float], tuple[int, ...]]] = []
        self.counters: dict[str, list[tuple[int, float]]] = defaultdict(list)
        for packet in trace.packet:
            assert packet.trusted_packet_sequence_id == 1 or packet.HasField("clock_snapshot")
            if packet.HasField("track_descriptor"):
                parent = packet.track_descriptor.parent_uuid
                assert not parent or parent in self.tracks
                self.tracks[packet.track_descriptor.uuid] = packet.track_descriptor
            for entries, known in (
                (packet.interned_data.event_names, self.names),
                (packet.interned_data.debug_annotation_names, self.notes),
            ):
                known.update({entry.iid: entry.name for entry in entries})
        events = [p for p in trace.packet if p.HasField("track_event")]
        self._play(sorted(events, key=lambda p: p.timestamp))  # stable, as trace_processor sorts

    def _play(self, packets: list[Any]) -> None:
        open_slices: dict[int, Any] = {}
        for packet in packets:
            event = packet.track_event
            track = self.tracks[event.track_uuid]
            if event.type == TrackEvent.TYPE_COUNTER:
                self.counters[track.name].append((packet.timestamp, event.double_counter_value))
            elif event.type == TrackEvent.TYPE_SLICE_BEGIN:
                assert event.track_uuid not in open_slices, "slices of a track overlap"
                open_slices[event.track_uuid] = packet
            else:
                begin = open_slices.pop(event.track_uuid)
                notes = {self.notes[n.name_iid]: n.double_value for n in begin.track_event.debug_annotations}
                name = self.names[begin.track_event.name_iid]
                flows = tuple(begin.track_event.flow_ids)
                self.slices.append((track.name, name, begin.timestamp, packet.timestamp, notes, flows))
        assert not open_slices


def test_stages_are_slices_with_their_joules(path: Path, known: Recording) -> None:
    found, f = Slices(path), known.runs[0].frames
    figures = known.attributions[0].pipelines[0]
    for code, stage in enumerate(f.stage_names):
        rows = np.flatnonzero(f.stage == code)
        mine = sorted((s for s in found.slices if s[0] == stage), key=lambda s: s[4]["frame number"])
        assert [s[2] for s in mine] == f.stage_begin[rows].tolist()
        assert [s[3] for s in mine] == f.stage_end[rows].tolist()
        joules = [s[4].get("system J", np.nan) for s in mine]
        assert joules == pytest.approx(figures.stage[rows], nan_ok=True)
        assert [s[5] for s in mine] == [(int(f.span[k]),) for k in f.stage_frame[rows]]
    frames = [s for s in found.slices if s[0] == "frame"]
    assert len(frames) == len(f)
    assert {s[1] for s in frames} == {"cam0"}
    assert any(track.name == "cam0 (simulated)" for track in found.tracks.values())


def test_meters_and_attributed_watts_are_counters(path: Path, known: Recording) -> None:
    found, run = Slices(path), known.runs[0]
    readings, figures = run.readings[0], known.attributions[0].pipelines[0]
    assert found.counters["system W"] == list(
        zip(readings.time.tolist(), readings.value.tolist(), strict=True)
    )
    f = run.frames
    code = f.stage_names.index("infer")
    rows = np.flatnonzero((f.stage == code) & np.isfinite(figures.stage))
    time, watts = np.array(found.counters["infer: system W"]).T
    drawn = float(np.sum(watts[:-1] * np.diff(time)) / 1e9)
    assert drawn == pytest.approx(figures.stage[rows].sum(), rel=1e-6)
    assert watts[-1] == 0
    assert found.tracks[1].parent_uuid == 0
    assert (
        found.clocks[0].clocks[0].timestamp == found.clocks[0].clocks[1].timestamp
    )  # boot time is Unix time


def test_frames_that_overlap_get_lanes_and_those_in_a_row_one(tmp_path: Path) -> None:
    run = make_run(50, dropped=(7,))
    f = run.frames
    block = Aligned(f, [], [], [])
    write_perfetto(tmp_path / "row.pftrace", [block])
    lanes = [t for t in Slices(tmp_path / "row.pftrace").tracks.values() if t.name == "infer"]
    assert len(lanes) == 1
    f.end += 20 * MS  # each frame now reaches into the next two
    write_perfetto(tmp_path / "overlap.pftrace", [block])
    found = Slices(tmp_path / "overlap.pftrace")
    assert len([t for t in found.tracks.values() if t.name == "frame"]) == 2
    assert sum(s[1] == "cam0 dropped" for s in found.slices) == 1


def test_slices_that_touch_or_take_no_time_stay_in_order(tmp_path: Path) -> None:
    f = make_run(4).frames
    f.begin[:] = START + np.array([0, 10, 20, 20]) * MS
    f.end[:] = START + np.array([10, 20, 20, 30]) * MS  # the third takes no time
    f.stage_frame, f.stage_begin, f.stage_end = (a[:0] for a in (f.stage_frame, f.stage_begin, f.stage_end))
    f.stage = f.stage[:0]
    write_perfetto(tmp_path / "t.pftrace", [Aligned(f, [], [], [])])
    found = Slices(tmp_path / "t.pftrace")
    assert [(s[2] - START, s[3] - START) for s in found.slices] == [
        (0, 10 * MS),
        (10 * MS, 20 * MS),
        (20 * MS, 20 * MS),
        (20 * MS, 30 * MS),
    ]


@pytest.fixture(scope="module")
def processor(path: Path) -> Iterator[Processor]:
    with opened(path) as processor:
        yield processor


def test_trace_processor_opens_it(processor: Processor, known: Recording) -> None:
    asked = processor.query
    f = known.runs[0].frames
    counts = dict(asked("select t.name, count(*) from slice s join track t on s.track_id = t.id group by 1"))
    assert counts == {"frame": len(f)} | {
        name: int((f.stage == code).sum()) for code, name in enumerate(f.stage_names)
    }
    ((slowest,),) = asked("select max(dur) from slice s join track t on s.track_id=t.id where t.name='infer'")
    infer = f.stage == f.stage_names.index("infer")
    assert slowest == int((f.stage_end - f.stage_begin)[infer].max())
    ((flows,),) = asked("select count(*) from flow")
    assert flows == 2 * len(f)
    ((watts,),) = asked(
        "select avg(value) from counter c join track t on c.track_id=t.id where t.name='system W'"
    )
    assert watts == pytest.approx(known.runs[0].readings[0].value.mean())
    ((errors,),) = asked("select sum(value) from stats where severity in ('error', 'data_loss')")
    assert errors == 0
