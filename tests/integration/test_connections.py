"""Connections and streams that reach their maximum age, and clients that ping."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeAlias

import grpc
import numpy as np
import pytest
from alignserve import AsyncClient, Client, RetryPolicy, StreamResult, TextItem
from alignserve_server.model.fake import FakeEncoder
from alignserve_server.serving.server import Server
from grpc._cython import cygrpc

from tests.integration.http2 import ACK, ENHANCE_YOUR_CALM, GOAWAY, NO_ERROR, PING, connected
from tests.integration.serving import RunningServer, running, settings, until

Collect: TypeAlias = "Callable[..., Awaitable[list[StreamResult]]]"
SOON = RetryPolicy(initial_backoff_seconds=0.01, max_stream_attempts=1000)


def streams(served: RunningServer, code: str | None = None) -> float:
    """Returns how many streams have started, or have ended with a code."""
    labels = {
        "grpc_type": "bidi_stream",
        "grpc_service": "alignserve.v1.AlignService",
        "grpc_method": "StreamInfer",
    }
    if code is None:
        return served.sample("grpc_server_started_total", **labels)
    return served.sample("grpc_server_handled_total", grpc_code=code, **labels)


def texts(count: int) -> list[TextItem]:
    return [TextItem(f"text {number}", id=number) for number in range(count)]


def grpc_library() -> bytes:
    """Returns the binary of grpcio, which has the names of all its channel options."""
    return Path(cygrpc.__file__).read_bytes()


async def collect_blocking(port: int, count: int, *, ordered: bool = False) -> list[StreamResult]:
    def collect() -> list[StreamResult]:
        with Client(f"127.0.0.1:{port}", retry=SOON) as client:
            return list(client.stream(texts(count), ordered=ordered))

    return await asyncio.to_thread(collect)


async def collect_async(port: int, count: int, *, ordered: bool = False) -> list[StreamResult]:
    async with AsyncClient(f"127.0.0.1:{port}", retry=SOON) as client:
        return [result async for result in client.stream(texts(count), ordered=ordered)]


@pytest.mark.parametrize(
    ("count", "age_seconds"), [(1_000, 0.05), pytest.param(5_000, 0.1, marks=pytest.mark.long)]
)
@pytest.mark.parametrize("ordered", [False, True], ids=["as completed", "ordered"])
@pytest.mark.parametrize("collect", [collect_blocking, collect_async], ids=["blocking", "asyncio"])
async def test_expiring_streams_lose_and_repeat_nothing(
    collect: Collect, ordered: bool, count: int, age_seconds: float
) -> None:
    """Over many reconnections each item is embedded and answered once, in order if requested."""
    encoder = FakeEncoder(seconds_per_entry=10 * age_seconds / count)
    async with running(encoder, max_stream_age_seconds=age_seconds) as served:
        results = await collect(served.server.port, count, ordered=ordered)

        ids = [result.id for result in results]
        assert (ids if ordered else sorted(ids)) == list(range(count))
        for result in results:
            expected = encoder.embedding_of(f"text {result.id}")
            np.testing.assert_allclose(result.embedding, expected, atol=1e-6)
        assert streams(served, "UNAVAILABLE") >= 5
        assert sum(len(batch.keys) for batch in encoder.batches) == count
        assert served.items("text") == {
            "accepted": count, "in_flight": 0, "ok": count, "failed": 0, "cancelled": 0, "expired": 0,
        }  # fmt: skip


@pytest.mark.parametrize("collect", [collect_blocking, collect_async], ids=["blocking", "asyncio"])
async def test_a_stream_that_outlives_its_connection_is_resumed(
    collect: Callable[..., Awaitable[list[StreamResult]]],
) -> None:
    """Items that outlast the grace period are cut off with the connection; the client resends them."""
    ages: dict[str, Any] = {"max_connection_age_grace_seconds": 0.1, "max_stream_age_seconds": 0.05}
    async with running(max_connection_age_seconds=0.05, **ages) as served:
        served.encoder.gate.clear()
        collecting = asyncio.ensure_future(collect(served.server.port, 3, ordered=True))
        await until(lambda: streams(served, "CANCELLED") >= 1 and streams(served) >= 2)

        served.encoder.gate.set()
        results = await collecting

        assert [result.id for result in results] == [0, 1, 2]
        assert [result.error for result in results] == [None] * 3


async def test_a_connection_at_its_maximum_age_gets_a_goaway() -> None:
    """The client learns that no call was lost, and reconnects."""
    async with (
        running(max_connection_age_seconds=0.05) as served,
        connected(served.server.port) as connection,
    ):
        goodbye = await connection.next(GOAWAY)

    assert goodbye.error_code == NO_ERROR


async def test_grpc_knows_every_option(monkeypatch: pytest.MonkeyPatch) -> None:
    """gRPC ignores unknown options, so a misspelt one would go unnoticed."""
    given: dict[str, int] = {}
    make = grpc.aio.server

    def record(**arguments: Any) -> grpc.aio.Server:
        given.update(arguments["options"])
        return make(**arguments)

    monkeypatch.setattr(grpc.aio, "server", record)

    Server(settings(), lambda _: FakeEncoder())

    assert [name for name in given if name.encode() not in grpc_library()] == []


async def test_occasional_pings_are_answered(served: RunningServer) -> None:
    """A client may ping an idle connection, to keep it alive or to detect that it is dead."""
    async with connected(served.server.port) as connection:
        answer = await connection.ping()

    assert (answer.kind, answer.flags) == (PING, ACK)


async def test_a_client_that_floods_pings_is_disconnected(served: RunningServer) -> None:
    """Pings less than ten seconds apart, without calls between them, count as a flood."""
    async with connected(served.server.port) as connection:
        while (goodbye := await connection.ping()).kind == PING:
            pass

    assert (goodbye.error_code, goodbye.message) == (ENHANCE_YOUR_CALM, "too_many_pings")
