"""Options of one call override the client's, and retries are logged."""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator
from typing import Any

import grpc
import pytest
from alignserve import AsyncClient, Client, ImageItem, RetryPolicy, TextItem
from alignserve.testing import FakeServer

TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
OPTIONS: dict[str, Any] = {"metadata": [("X-Team", "two")], "priority": "bulk", "traceparent": TRACE}

CALLS: list[Callable[[Any], Any]] = [
    lambda client: client.embed_image(b"a", **OPTIONS),
    lambda client: client.embed_image_detailed([b"a", b"b"], **OPTIONS),
    lambda client: client.embed_text(["a"] * 9, **OPTIONS),
    lambda client: client.embed_text_detailed("a", **OPTIONS),
    lambda client: client.classify(b"a", ["cat"], **OPTIONS),
    lambda client: client.classify_detailed([b"a"], ["cat"], **OPTIONS),
    lambda client: client.model_info(**OPTIONS),
    lambda client: client.stream([ImageItem(b"a"), TextItem("b")], **OPTIONS),
]


@pytest.mark.parametrize("call", CALLS)
def test_options_go_with_one_call(server: FakeServer, call: Callable[[Any], Any]) -> None:
    """Metadata of a call replaces the client's in all its requests, and does not affect other calls."""
    with Client(server.target, metadata=[("x-team", "one"), ("x-other", "1")]) as client:
        finished(call(client))
        during = list(server.received)
        client.embed_text("after")

    sent = [each.metadata for each in during]
    assert {each["x-team"] for each in sent} == {"two"}
    assert {each["x-other"] for each in sent} == {"1"}
    assert {each["alignserve-priority"] for each in sent} == {"bulk"}
    assert {each["traceparent"] for each in sent} == {TRACE}
    assert server.received[-1].metadata["x-team"] == "one"
    assert "traceparent" not in server.received[-1].metadata


@pytest.mark.parametrize("call", CALLS)
async def test_options_go_with_one_call_in_asyncio(server: FakeServer, call: Callable[[Any], Any]) -> None:
    """The asyncio client behaves like the blocking one."""
    async with AsyncClient(server.target, metadata=[("x-team", "one")]) as client:
        began = call(client)
        if hasattr(began, "__aiter__"):
            assert len([result async for result in began]) == 2
        else:
            await began

    assert {each.metadata["x-team"] for each in server.received} == {"two"}
    assert {each.metadata["traceparent"] for each in server.received} == {TRACE}


def finished(began: Any) -> None:
    """Consumes a stream; other results are complete already."""
    if isinstance(began, Generator):
        assert len(list(began)) == 2


def test_a_call_can_be_interactive_at_a_client_for_bulk(server: FakeServer) -> None:
    """The default priority is sent as no metadata, so the client's is removed."""
    with Client(server.target, priority="bulk") as client:
        client.embed_text("a", priority="interactive")
        client.embed_text("a")

    assert ["alignserve-priority" in call.metadata for call in server.received] == [False, True]


@pytest.mark.parametrize(
    "options",
    [
        {"priority": "urgent"},
        {"traceparent": "abc"},
        {"traceparent": TRACE.replace("0af7651916cd43dd8448eb211c80319c", "0" * 32)},
        {"metadata": [("x", "ü")]},
    ],
)
def test_options_are_checked_before_anything_is_sent(server: FakeServer, options: dict[str, Any]) -> None:
    """Invalid options are refused at the call, even for streams, which are otherwise lazy."""
    with Client(server.target) as client:
        with pytest.raises(ValueError, match=r"priority|traceparent|metadata"):
            client.embed_text("a", **options)
        with pytest.raises(ValueError, match=r"priority|traceparent|metadata"):
            client.stream([], **options)

    assert server.received == []


def test_an_option_that_is_unknown_is_a_type_error(client: Client) -> None:
    """A mistyped argument is a TypeError."""
    with pytest.raises(TypeError, match="timeout_second"):
        client.embed_text("a", timeout_second=1)  # type: ignore[call-overload]


def test_retries_are_logged(server: FakeServer, client: Client, caplog: pytest.LogCaptureFixture) -> None:
    """Retries of calls, lists and streams are logged with their cause, under the package's name."""
    caplog.set_level(logging.INFO, "alignserve")
    server.fail_next(grpc.StatusCode.UNAVAILABLE, "SHUTTING_DOWN", message="stops")
    client.embed_text("a")
    client.model_info()
    server.fail_next(grpc.StatusCode.RESOURCE_EXHAUSTED, "QUEUE_FULL", retry_delay_seconds=0.5)
    client.embed_text(["a"] * 8)  # two requests of 4: either may be the one that fails
    server.break_stream(1)
    list(client.stream([TextItem("a"), TextItem("b")]))

    assert [record.name for record in caplog.records] == ["alignserve"] * 3
    assert [record.levelname for record in caplog.records] == ["INFO"] * 3
    assert "stops [UNAVAILABLE SHUTTING_DOWN]" in caplog.messages[0]
    assert "request of 4 items: attempt 1 failed, next in 0.50 s" in caplog.messages[1]
    assert caplog.messages[2].startswith("stream: attempt 1 failed")


async def test_retries_are_logged_in_asyncio(
    server: FakeServer, async_client: AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    """The asyncio client behaves like the blocking one."""
    caplog.set_level(logging.INFO, "alignserve")
    server.fail_next(grpc.StatusCode.UNAVAILABLE, "SHUTTING_DOWN")

    await async_client.embed_text("a")

    assert len(caplog.records) == 1


def test_a_failure_without_a_retry_is_not_logged(
    server: FakeServer, caplog: pytest.LogCaptureFixture
) -> None:
    """A final failure is not logged: the exception reports it."""
    caplog.set_level(logging.DEBUG, "alignserve")
    server.fail_next(grpc.StatusCode.UNAVAILABLE, "SHUTTING_DOWN")

    with (
        Client(server.target, retry=RetryPolicy(max_attempts=1)) as client,
        pytest.raises(Exception, match="SHUTTING_DOWN"),
    ):
        client.embed_text("a")

    assert caplog.records == []
