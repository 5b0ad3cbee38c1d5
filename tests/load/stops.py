"""Restarts two servers in turn while callers use both without a proxy, and counts failed calls.

python -m tests.load.stops [--callers 256] [--calls 200000] [--stops 20] [--client alignserve|bare]

The client `bare` is a stub without gRPC's retries, whose callers retry only UNAVAILABLE.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import TypeAlias

import grpc
from alignserve import AlignserveError, AsyncClient
from alignserve.v1 import align_service_pb2_grpc as pb_grpc

from tests.deploy.rolling import Replica
from tests.integration.serving import text_request

_CLIENTS = 8  # each with its own connection to each server
_PAUSE_SECONDS = 0.01  # of a bare caller before it retries
_BETWEEN_STOPS_SECONDS = 1.0

Embed: TypeAlias = Callable[[str], Awaitable[object]]  # raises the error that the caller finally gets


class Load:
    """Callers that run until told to stop, and the outcomes of their calls."""

    def __init__(self) -> None:
        self.answered = 0
        self.repeated = 0  # retried by bare callers
        self.failed: Counter[str] = Counter()
        self._is_over = False

    @asynccontextmanager
    async def running(self, embeds: list[Embed], callers: int) -> AsyncIterator[Load]:
        """Sends calls during the block; when it ends, every call has its answer."""
        working = [
            asyncio.ensure_future(self._call(embeds[number % len(embeds)], number))
            for number in range(callers)
        ]
        try:
            yield self
        finally:
            self._is_over = True
            await asyncio.gather(*working)

    async def _call(self, embed: Embed, caller: int) -> None:
        for number in itertools.takewhile(lambda _: not self._is_over, itertools.count()):
            try:
                await embed(f"{caller} {number}")
                self.answered += 1
            except AlignserveError as error:
                self.failed[f"{type(error).__name__} {error}"] += 1
            except grpc.aio.AioRpcError as error:
                self.failed[f"{error.code().name} {error.details()}"] += 1

    def bare(self, stub: pb_grpc.AlignServiceAsyncStub) -> Embed:
        """Returns a function that calls a stub and retries while the call fails with UNAVAILABLE."""

        async def embed(text: str) -> object:
            while True:
                try:
                    return await stub.EmbedText(text_request(text))
                except grpc.aio.AioRpcError as error:
                    if error.code() is not grpc.StatusCode.UNAVAILABLE:
                        raise
                self.repeated += 1
                await asyncio.sleep(_PAUSE_SECONDS)

        return embed


async def _embeds(load: Load, client: str, target: str, clients: AsyncExitStack) -> list[Embed]:
    embeds: list[Embed] = []
    for _ in range(_CLIENTS):
        if client == "alignserve":
            own_pool = [("grpc.use_local_subchannel_pool", 1)]
            ours = await clients.enter_async_context(AsyncClient(target, options=own_pool))
            embeds.append(ours.embed_text)
        else:
            options = [
                ("grpc.enable_retries", 0),
                ("grpc.use_local_subchannel_pool", 1),
                ("grpc.service_config", json.dumps({"loadBalancingConfig": [{"round_robin": {}}]})),
            ]
            channel = await clients.enter_async_context(grpc.aio.insecure_channel(target, options))
            embeds.append(load.bare(pb_grpc.AlignServiceStub(channel)))
    return embeds


async def _run(arguments: argparse.Namespace) -> None:
    replicas = [Replica("--drain-delay-seconds", "0.2") for _ in range(2)]
    load, stops, began = Load(), 0, time.monotonic()
    async with AsyncExitStack() as clients:
        for replica in replicas:
            clients.push_async_callback(replica.close)
            await replica.start()
        target = "ipv4:" + ",".join(replica.address for replica in replicas)
        embeds = await _embeds(load, arguments.client, target, clients)
        async with load.running(embeds, arguments.callers):
            while stops < arguments.stops or load.answered < arguments.calls:
                await asyncio.sleep(_BETWEEN_STOPS_SECONDS)
                if stops < arguments.stops:
                    replica = replicas[stops % 2]
                    code = await replica.server.stop(signal.SIGTERM)
                    assert code == 0
                    stops += 1
                    await replica.close()
                    await replica.start()
                print(f"{stops} stops, {load.answered} answered, {_listed(load.failed)}")
    seconds = time.monotonic() - began
    print(
        f"client {arguments.client}, {arguments.callers} callers, {stops} stops in {seconds:.0f} s: "
        f"{load.answered} answered, {load.repeated} retried by callers, {_listed(load.failed)}"
    )


def _listed(failed: Counter[str]) -> str:
    return f"{failed.total()} failed {dict(failed) or ''}"


def main() -> None:
    """Runs the load and prints the failed calls."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--callers", type=int, default=256)
    parser.add_argument("--calls", type=int, default=200_000)
    parser.add_argument("--stops", type=int, default=20)
    parser.add_argument("--client", choices=["alignserve", "bare"], default="alignserve")
    with suppress(KeyboardInterrupt):
        asyncio.run(_run(parser.parse_args()))


if __name__ == "__main__":
    main()
