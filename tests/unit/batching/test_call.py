"""What batching knows of a call."""

from __future__ import annotations

from dataclasses import replace

from alignserve_server.batching.call import NO_TRACE, CallContext
from alignserve_server.batching.fair_queue import Flow, Priority


def test_an_item_of_a_stream_has_the_streams_context() -> None:
    """All but its admission and its trace, which are its own."""
    stream = CallContext(5.0, waits_for_room=True, flow=Flow("caller", Priority.BULK))
    admitted: list[bool] = []

    item = stream.for_item(lambda: admitted.append(True), NO_TRACE)
    item.on_admitted()

    assert replace(item, on_admitted=stream.on_admitted) == stream
    assert admitted == [True]


def test_a_call_that_is_not_sampled_has_a_trace_that_notes_nothing() -> None:
    """So have the items of its stream, and no caller of a trace has to ask."""
    trace = CallContext().trace

    trace.note("queue", 0.0, 1.0, modality="text")
    with trace.item() as item:
        item.follow(1)

    assert item is NO_TRACE
    assert not item.is_sampled
    assert item.exemplar is None
