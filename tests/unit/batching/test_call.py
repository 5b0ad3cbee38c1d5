"""The context of a call."""

from __future__ import annotations

from dataclasses import replace

from alignserve_server.batching.call import NO_TRACE, CallContext
from alignserve_server.batching.fair_queue import Flow, Priority


def test_an_item_of_a_stream_has_the_streams_context() -> None:
    """An item inherits everything except its admission callback and its trace."""
    stream = CallContext(5.0, waits_for_room=True, flow=Flow("caller", Priority.BULK))
    admitted: list[bool] = []

    item = stream.for_item(lambda: admitted.append(True), NO_TRACE)
    item.on_admitted()

    assert replace(item, on_admitted=stream.on_admitted) == stream
    assert admitted == [True]


def test_the_trace_of_an_unsampled_call_records_nothing() -> None:
    """The same holds for the items of its stream, so that callers of a trace need no check."""
    trace = CallContext().trace

    trace.note("queue", 0.0, 1.0, modality="text")
    with trace.item() as item:
        item.follow(1)

    assert item is NO_TRACE
    assert not item.is_sampled
    assert item.exemplar is None
