"""Prints the spans that a collector receives for calls that share a batch.

python -m tests.load.trace
"""

from __future__ import annotations

import os
from unittest import mock

import grpc
from alignserve.v1 import align_service_pb2 as pb
from alignserve.v1 import align_service_pb2_grpc as pb_grpc
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from tests.collector import Collector, attributes, collecting
from tests.processes import server_process

_CALLERS = 3


def main() -> None:
    """Sends calls of several callers to a server that waits to fill a batch, and prints their spans."""
    with collecting() as collector:
        with mock.patch.dict(os.environ, OTEL_EXPORTER_OTLP_ENDPOINT=collector.endpoint):
            _call_together()
        _show(collector)


def _call_together() -> None:
    flags = ("--tracing", "--lanes", "1", "--max-queue-delay-seconds", "0.02")
    with server_process(*flags) as server, grpc.insecure_channel(server.address) as channel:
        stub = pb_grpc.AlignServiceStub(channel)
        requests = [pb.EmbedTextRequest(texts=[f"a photo of {number} cats"]) for number in range(_CALLERS)]
        for call in [stub.EmbedText.future(request) for request in requests]:
            call.result()


def _show(collector: Collector) -> None:
    batch = max(collector.named("batch"), key=lambda span: len(span.links))
    calls = [span for span in collector.spans if span.span_id in {link.span_id for link in batch.links}]
    start = min(call.start_time_unix_nano for call in calls)
    for call in sorted(calls, key=lambda span: span.start_time_unix_nano):
        print(f"trace {call.trace_id.hex()}")
        _print(call, start, "")
        steps = [span for span in collector.spans if span.parent_span_id == call.span_id]
        for step in sorted(steps, key=lambda span: (span.start_time_unix_nano, span.end_time_unix_nano)):
            _print(step, start, "  ")


def _print(span: Span, start: int, indent: str) -> None:
    begin, end = ((time - start) / 1e6 for time in (span.start_time_unix_nano, span.end_time_unix_nano))
    about = " ".join(
        f"{key}={value}" for key, value in attributes(span).items() if not key.startswith("rpc.")
    )
    links = "".join(f" -> {link.span_id.hex()}" for link in span.links)
    name = f"{indent}{span.name.rpartition('/')[2]}"
    print(f"  {name:12} {span.span_id.hex()} {begin:6.1f} to {end:5.1f} ms  {about}{links}".rstrip())


if __name__ == "__main__":
    main()
