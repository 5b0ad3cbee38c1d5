"""Servers that are killed: the Python clients get every answer once, from the next server."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
import pytest
from alignserve import AsyncClient, Client, TextItem
from alignserve_server.model.fake import FakeEncoder

from tests.integration.serving import server_process

# One-word texts are answered and longer ones never are, so the kill interrupts a known set of calls.
_STUCK_AT_TWO_WORDS = (
    "def encode_texts(self, batch): "
    "return get_stuck() if any(len(text) > 3 * 4 for text in batch) else super().encode_texts(batch)"
)
_FLAGS = ("--lanes", "1")
_TEXTS = [f"answered{i}" for i in range(20)] + [f"interrupted {i}" for i in range(20)]

Results = list[tuple[str, np.ndarray]]


def _streamed(target: str) -> Results:
    with Client(target) as client:
        items = (TextItem(text, id=text) for text in _TEXTS)
        return [(result.id, result.embedding) for result in client.stream(items, ordered=True)]


async def _streamed_async(target: str) -> Results:
    async with AsyncClient(target) as client:
        items = (TextItem(text, id=text) for text in _TEXTS)
        return [(result.id, result.embedding) async for result in client.stream(items, ordered=True)]


def _embedded(target: str) -> Results:
    with Client(target, wait_for_ready=True) as client:
        return list(zip(_TEXTS, client.embed_text(_TEXTS), strict=True))


async def _embedded_async(target: str) -> Results:
    async with AsyncClient(target, wait_for_ready=True) as client:
        return list(zip(_TEXTS, await client.embed_text(_TEXTS), strict=True))


def _in_thread(work: Callable[[str], Results]) -> Callable[[str], Awaitable[Results]]:
    return lambda target: asyncio.to_thread(work, target)


@pytest.mark.parametrize(
    "work",
    [
        pytest.param(_in_thread(_streamed), id="stream", marks=pytest.mark.long),
        pytest.param(_streamed_async, id="stream_async"),
        pytest.param(_in_thread(_embedded), id="unary"),
        pytest.param(_embedded_async, id="unary_async", marks=pytest.mark.long),
    ],
)
async def test_a_server_killed_at_work_costs_no_answer(work: Callable[[str], Awaitable[Results]]) -> None:
    """The next server on the port answers the rest; nothing is lost, repeated or mixed up."""
    async with server_process(*_FLAGS, encoder=_STUCK_AT_TWO_WORDS, warms_up=False) as first:
        await first.event("ready")
        target = f"127.0.0.1:{first.port}"

        working = asyncio.ensure_future(work(target))
        await first.event("stuck")
        first.process.kill()
        await first.wait()
        async with server_process(*_FLAGS, "--listen", target) as second:
            await second.event("ready")
            results = await working

    assert [text for text, _ in results] == _TEXTS
    for text, embedding in results:
        expected = FakeEncoder(len(embedding)).embedding_of(text)
        np.testing.assert_allclose(embedding, expected, atol=1e-6)


@pytest.mark.long
async def test_a_replica_killed_at_work_costs_no_call() -> None:
    """The other replica answers the calls it had accepted, and later calls go there at once."""
    never = "def encode_texts(self, batch): get_stuck()"
    async with (
        server_process(*_FLAGS, encoder=never, warms_up=False) as doomed,
        server_process(*_FLAGS) as other,
    ):
        await doomed.event("ready")
        await other.event("ready")
        target = f"ipv4:127.0.0.1:{doomed.port},127.0.0.1:{other.port}"

        async with AsyncClient(target, wait_for_ready=True) as client:
            stuck = asyncio.ensure_future(doomed.event("stuck"))
            while not stuck.done():  # at first the client may have reached only the other replica
                calls = [asyncio.ensure_future(client.embed_text(text)) for text in _TEXTS]
                answered: asyncio.Future[Any] = asyncio.gather(*calls)
                await asyncio.wait({stuck, answered}, return_when=asyncio.FIRST_COMPLETED)
            doomed.process.kill()
            await doomed.wait()
            calls += [asyncio.ensure_future(client.embed_text(text)) for text in _TEXTS]
            embeddings = await asyncio.gather(*calls)

    assert len(embeddings) == 2 * len(_TEXTS)
