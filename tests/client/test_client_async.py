"""Calls of the asyncio client, against the fake server over real gRPC."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import alignserve
import grpc
import numpy as np
import pytest
from alignserve import AsyncClient
from alignserve.testing import FakeServer


async def test_inputs_of_every_kind_are_embedded(
    server: FakeServer, async_client: AsyncClient, photo: Path
) -> None:
    """A file, bytes and a text give the same vectors as the blocking client."""
    content = await asyncio.to_thread(photo.read_bytes)

    from_file, from_bytes, text = await asyncio.gather(
        async_client.embed_image(photo),
        async_client.embed_image(b"image"),
        async_client.embed_text("a"),
    )

    assert np.array_equal(from_file, server.embedding_of(content))
    assert np.array_equal(from_bytes, server.embedding_of(b"image"))
    assert np.array_equal(text, server.embedding_of("a"))


async def test_long_lists_are_split_and_joined_in_order(
    server: FakeServer, async_client: AsyncClient
) -> None:
    """Thirty texts at four per request give one array in order."""
    texts = [str(number) for number in range(30)]

    rows = await async_client.embed_text(texts)

    assert np.array_equal(rows, np.stack([server.embedding_of(text) for text in texts]))


async def test_no_inputs_give_no_rows(async_client: AsyncClient) -> None:
    """An empty list is not an error, and its array has the right width."""
    assert (await async_client.embed_image([])).shape == (0, 8)
    assert (await async_client.embed_text([])).shape == (0, 8)


@pytest.mark.parametrize("knows_limits", [True, False])
async def test_an_image_that_fits_into_no_request_is_named(knows_limits: bool) -> None:
    """The error is the same whether the client or the server detects it."""
    with FakeServer(max_request_bytes=2000) as small:
        async with AsyncClient(small.target) as client:
            if knows_limits:
                await client.model_info()

            with pytest.raises(alignserve.InvalidArgumentError) as caught:
                await client.embed_image(bytes(3000))

    assert caught.value.reason == "IMAGE_TOO_LARGE"


async def test_a_client_without_a_deadline_sends_none(server: FakeServer) -> None:
    """`None` means no deadline."""
    async with AsyncClient(server.target, timeout_seconds=None) as client:
        await client.embed_text("a")

    assert server.received[0].remaining_seconds is None


async def test_classify_returns_labels_best_first(async_client: AsyncClient) -> None:
    """One image gives one list, several give several."""
    one = await async_client.classify(b"1", ["cat", "dog"])
    two = await async_client.classify([b"1", b"2"], ["cat", "dog"])

    assert one[0].score >= one[1].score
    assert two[0] == one


async def test_details_come_with_the_embeddings(async_client: AsyncClient) -> None:
    """Detailed calls return token counts and timings."""
    text = await async_client.embed_text_detailed("a b")
    image = await async_client.embed_image_detailed(b"image")

    assert text.tokenizations == (alignserve.Tokenization(4, False),)
    assert image.stats[0].batch_size == 1


async def test_a_full_server_is_asked_again_after_its_delay(
    server: FakeServer, async_client: AsyncClient, time: Any
) -> None:
    """The client waits exactly as long as RetryInfo says, every time."""
    server.fail_next(grpc.StatusCode.RESOURCE_EXHAUSTED, "QUEUE_FULL", retry_delay_seconds=7, times=2)

    await async_client.embed_text("a")

    assert time.sleeps == [7.0, 7.0]


async def test_an_unavailable_server_is_asked_again(server: FakeServer, async_client: AsyncClient) -> None:
    """gRPC itself retries the call after the server's pushback."""
    server.fail_next(grpc.StatusCode.UNAVAILABLE, "SHUTTING_DOWN", retry_delay_seconds=0.01, times=2)

    await async_client.embed_image(bytes(1 << 20))

    assert len(server.received) == 3


async def test_one_part_that_fails_fails_the_list(server: FakeServer, async_client: AsyncClient) -> None:
    """The error names the position in the whole list, and the other requests are cancelled."""
    server.fail_input("bad", reason="TEXT_TOO_LONG")

    with pytest.raises(alignserve.InvalidArgumentError) as caught:
        await async_client.embed_text(["ok"] * 9 + ["bad"] + ["ok"] * 40)

    assert caught.value.violations[0].field == "texts[9]"


async def test_a_cancelled_call_is_the_usual_cancellation(
    server: FakeServer, async_client: AsyncClient
) -> None:
    """Cancelling the waiting task raises CancelledError, not an error of the call."""
    server.hold()
    call = asyncio.create_task(async_client.embed_text("a"))
    await asyncio.to_thread(server.wait_for_received, 1)

    call.cancel()

    with pytest.raises(asyncio.CancelledError):
        await call


async def test_readiness_follows_the_server(server: FakeServer, async_client: AsyncClient, time: Any) -> None:
    """Readiness can be checked and awaited."""
    server.set_ready(False)
    before = await async_client.is_ready()
    with pytest.raises(alignserve.DeadlineExceededError, match="no ready server"):
        await async_client.wait_until_ready(5)
    server.set_ready(True)
    await async_client.wait_until_ready(5)

    assert before is False


async def test_the_server_is_told_how_large_responses_may_be(server: FakeServer) -> None:
    """Every call and stream tells the server the maximum response size of the channel."""
    options = [("grpc.max_receive_message_length", 1 << 20)]
    async with AsyncClient(server.target, options=options) as client:
        await client.embed_text("a")
        assert [result async for result in client.stream([alignserve.TextItem("b")])]

    sent = {call.metadata["alignserve-max-response-bytes"] for call in server.received}
    assert sent == {str(1 << 20)}
