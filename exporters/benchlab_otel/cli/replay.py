"""`replay SESSION --to URL`: a recorded session sent once more, so that dashboards show an old run."""

from __future__ import annotations

import os
import secrets
import sys
import time
from collections import Counter
from typing import Annotated, Literal

import typer

from benchlab_otel.archive.reader import read_spans
from benchlab_otel.archive.records import Fault
from benchlab_otel.archive.replay import Move, Request, moved, requests
from benchlab_otel.archive.session import METRICS, Session
from benchlab_otel.cli import options
from benchlab_otel.cli.errors import Failure, UserError
from benchlab_otel.cli.finding import Reference, find
from benchlab_otel.cli.live import LiveAligner, own_resource
from benchlab_otel.cli.progress import progress
from benchlab_otel.config import Settings
from benchlab_otel.contract import REPLAYED
from benchlab_otel.otlp.client import SIGNALS, Signal, Transport, partial_success, target, transport
from benchlab_otel.otlp.decode import decode_traces
from benchlab_otel.timebase import CLOCK_ATTRIBUTE, anchor

GIVE_UP_SECONDS = 30.0  # that nobody answers
METRICS_SECONDS = 1.0


def command(
    session: Reference = "latest",
    to: Annotated[
        str | None,
        typer.Option(
            metavar="URL", help="Collector or hub (default: $OTEL_EXPORTER_OTLP_ENDPOINT, else localhost)."
        ),
    ] = None,
    speed: Annotated[
        float,
        typer.Option(
            metavar="TIMES", min=0.001, help="How many times as fast as it was; inf: without a pause."
        ),
    ] = 1.0,
    times: Annotated[
        Literal["now", "kept"], typer.Option(help="now: moved so that the run ends as the replay does.")
    ] = "now",
    with_alignment: Annotated[
        bool,
        typer.Option(
            "--align",
            help="Align on this side and send energy and its metrics too: for a receiver without an"
            " aligner, or another speed than 1 (a live aligner does not wait for what is long past).",
        ),
    ] = False,
    protocol: Annotated[
        Literal["grpc", "http/protobuf"] | None, typer.Option(help="Default: grpc for port 4317, else HTTP.")
    ] = None,
    config: options.ConfigFile = None,
) -> None:
    """Send a session's traces and metrics to a live Collector or hub, marked as replayed.

    \b
    Examples:
      benchlab-otel replay latest --to http://localhost:4318
      benchlab-otel replay 20261001T12 --speed 10 --align
      benchlab-otel replay traces.jsonl --to http://tempo:4318 --times kept
    """
    settings = options.settings(config)
    found = find(session, settings.session.data_dir)
    first, last = _extent(found)
    if not last:
        raise UserError(f"{session}: no span in it has a time, so there is nothing to replay")
    name = found.manifest.id if found.manifest else found.path.name
    begin = time.time_ns()
    ids = secrets.randbits(128) | 1
    duration = int((last - first) / speed)
    move = Move(name, begin + duration - last, ids) if times == "now" else Move(name)
    sender = _Sender(to, protocol)
    faults: list[Fault] = []
    try:
        _replay(found, faults, move, first, speed, sender, settings if with_alignment else None)
    finally:
        sender.close()
        for fault in faults:
            print(f"benchlab-otel: {fault}", file=sys.stderr)
    sent = ", ".join(f"{sender.sent[signal]:,} {signal} requests" for signal in SIGNALS)
    print(f"{name}: {sent} in {(time.time_ns() - begin) / 1e9:.1f} s")
    for reason, count in sender.refused.items():
        print(f"benchlab-otel: {count:,} refused: {reason}", file=sys.stderr)
    if sender.refused:
        raise typer.Exit(1)


def _extent(session: Session) -> tuple[int, int]:
    """The first and the last time (Unix ns) in a session's traces, 0 where there is none."""
    first, last = 1 << 63, 0
    for spans in read_spans(session.traces, [], as_arrived=True, attributes=False):
        valid = (spans.start > 0) & (spans.end >= spans.start)
        if valid.any():
            first, last = min(first, int(spans.start[valid].min())), max(last, int(spans.end[valid].max()))
    return first, last


def _replay(
    session: Session,
    faults: list[Fault],
    move: Move,
    first: int,
    speed: float,
    sender: _Sender,
    align: Settings | None,
) -> None:
    """Sends each request when its time has come. Raises Failure where nobody answers."""
    metrics = [session.path / METRICS] if (session.path / METRICS).is_file() else []
    aligner = _Aligning(align, sender, move.session_id) if align is not None else None
    begin = time.monotonic()
    with progress("Replaying") as advance:
        for request in requests(session.traces, metrics, faults):
            time.sleep(max(0.0, begin + (request.time_ns - first) / 1e9 / speed - time.monotonic()))
            _send(request, move, sender, aligner)
            advance(1)
    if aligner is not None:
        aligner.close()


def _send(request: Request, move: Move, sender: _Sender, aligner: _Aligning | None) -> None:
    body = moved(request, move)
    sender.send(request.signal, body)
    if aligner is not None and request.signal == "traces":
        aligner.take(body)


class _Aligning:
    """The aligner on this side: its energy spans and metrics go where the replay goes."""

    def __init__(self, settings: Settings, sender: _Sender, session_id: str) -> None:
        base = anchor()
        resource = {**own_resource(session_id, base), REPLAYED: session_id}
        resource.pop(CLOCK_ATTRIBUTE)  # as with all that is replayed: the receiver takes it for wall time
        self._live = LiveAligner(settings, resource, base, lambda body: sender.send("traces", body))
        self._sender, self._told = sender, time.monotonic()

    def take(self, body: bytes) -> None:
        self._live.take(decode_traces(body))
        if time.monotonic() - self._told >= METRICS_SECONDS:
            self._tell()

    def close(self) -> None:
        self._live.close()
        self._tell()

    def _tell(self) -> None:
        self._told = time.monotonic()
        self._live.show(lambda body: self._sender.send("metrics", body))


class _Sender:
    """Sends one request after the other, waiting for each answer: nothing is dropped for lack of room."""

    def __init__(self, url: str | None, protocol: str | None) -> None:
        self.sent: Counter[Signal] = Counter()
        self.refused: Counter[str] = Counter()
        if protocol is None and url is not None and url.rstrip("/").endswith(":4317"):
            protocol = "grpc"
        try:
            targets = {s: target(s, os.environ, endpoint=url, protocol=protocol) for s in SIGNALS}
            self._transports: dict[Signal, Transport] = {s: transport(s, targets[s]) for s in SIGNALS}
        except ValueError as error:
            raise UserError(f"--to: {error}") from None

    def send(self, signal: Signal, body: bytes) -> None:
        """Sends a request, again while the receiver is not to be had. Raises Failure after a while."""
        give_up = time.monotonic() + GIVE_UP_SECONDS
        while not (answer := self._transports[signal].send(body)).ok:
            if not answer.retry:
                self.refused[f"{answer.kind}: {answer.message}"] += 1
                return
            if time.monotonic() > give_up:
                raise Failure(f"{signal}: {answer.kind}: {answer.message}; is the receiver there (--to)?")
            time.sleep(answer.wait_s or 0.5)
        self.sent[signal] += 1
        rejected, message = partial_success(signal, answer.body)
        if rejected:
            self.refused[message] += rejected

    def close(self) -> None:
        for one in self._transports.values():
            one.close()
