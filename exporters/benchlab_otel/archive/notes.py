"""Notes and bookmarks of a session: spans `note` in a file of their own, so that anyone may add them.

The session's writer holds the other files; a note is one record appended in one write, on the
session's own time base, while it is recorded or after.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchlab_otel.archive.reader import read_spans
from benchlab_otel.archive.records import Fault, compressor, frame
from benchlab_otel.contract import NOTE, NOTE_TEXT, SESSION_ID
from benchlab_otel.otlp.encode import SpanBatch, encode_request
from benchlab_otel.otlp.ids import random64

NOTES = "notes.otlp"


@dataclass(frozen=True, slots=True)
class Note:
    """A text and the moment it belongs to, Unix ns."""

    time_ns: int
    text: str


def add_note(session: Path, note: Note, session_id: str) -> None:
    """Appends a note to the folder of a session. Raises OSError."""
    moment = np.array([note.time_ns], np.int64)
    span = SpanBatch(
        name=NOTE,
        trace=np.array([[random64(), random64()]], np.uint64),
        span=np.array([random64()], np.uint64),
        start=moment,
        end=moment,
        attributes={NOTE_TEXT: note.text},
    )
    body = encode_request({"service.name": "benchlab-otel", SESSION_ID: session_id}, [span])
    file = os.open(session / NOTES, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
    try:
        os.write(file, frame(body, compressor()))
    finally:
        os.close(file)


def read_notes(session: Path, faults: list[Fault]) -> list[Note]:
    """The notes of a session by their time; what can't be read goes to `faults`."""
    path = session / NOTES
    if not path.is_file():
        return []
    found = []
    for spans in read_spans([path], faults):
        texts = spans.attributes.get(NOTE_TEXT)
        if texts is not None:
            found += [Note(int(spans.end[r]), str(v)) for r, v in zip(texts.rows, texts.values, strict=True)]
    return sorted(found, key=lambda note: note.time_ns)
