"""Restarts replicas behind Envoy one after the other, under load, and counts the failures that callers see.

python -m tests.deploy.rolling [--seconds 60] [--kill]
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import signal
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import grpc
import numpy as np
from alignserve import AsyncClient, TextItem
from alignserve.v1 import align_service_pb2 as pb
from alignserve.v1 import align_service_pb2_grpc as pb_grpc
from alignserve_server.model.fake import FakeEncoder

from tests.deploy.envoy import Envoy, running_envoy
from tests.integration.serving import ServerProcess, image_request, server_process, text_request
from tests.processes import free_port

_CLIENTS, _CALLERS_PER_CLIENT = 4, 2
_WINDOW = 8  # items of the stream in flight
_PROOF = 200  # calls to a restarted replica before the next restart, so that no call meets both

# No retries, not even gRPC's transparent ones of unsent calls, and one connection per client.
_OPTIONS = [("grpc.enable_retries", 0), ("grpc.use_local_subchannel_pool", 1)]


class Replica:
    """A server that can restart at its address. Its model is fake, so the correct answers are known."""

    server: ServerProcess  # the current process

    def __init__(self, *flags: str, encoder: str | None = None) -> None:
        self.address = f"127.0.0.1:{free_port()}"
        self._flags = ("--listen", self.address, *flags)
        self._encoder = encoder  # see `server_process`
        self._life = AsyncExitStack()

    async def start(self) -> None:
        """Starts the server, and returns once it is ready."""
        starting = server_process(*self._flags, encoder=self._encoder, warms_up=self._encoder is None)
        self.server = await self._life.enter_async_context(starting)
        await self.server.event("ready")

    async def close(self) -> None:
        """Kills the server if it still runs."""
        await self._life.aclose()


class Load:
    """Unary calls of several clients without retries, and a stream of the Python client."""

    def __init__(self, port: int) -> None:
        self.answered = 0  # unary calls with the correct answer
        self.failed: Counter[str] = Counter()  # unary calls, by error
        self.wrong = 0  # wrong answers of either kind
        self.streamed = 0  # items answered, in the order sent
        self.sent = 0  # items passed to the stream
        self._port = port
        self._is_over = False

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Load]:
        """Runs the load for the length of the block; then waits for every call and item."""
        async with AsyncExitStack() as channels:
            working = [asyncio.ensure_future(self._stream())]
            for client in range(_CLIENTS):
                channel = grpc.aio.insecure_channel(f"127.0.0.1:{self._port}", _OPTIONS)
                stub = pb_grpc.AlignServiceStub(await channels.enter_async_context(channel))
                working += [
                    asyncio.ensure_future(self._call(stub, f"{client} {caller}"))
                    for caller in range(_CALLERS_PER_CLIENT)
                ]
            try:
                yield self
            finally:
                self._is_over = True
                await asyncio.gather(*working)

    async def _call(self, stub: pb_grpc.AlignServiceAsyncStub, name: str) -> None:
        for number in itertools.takewhile(lambda _: not self._is_over, itertools.count()):
            text = f"{name} {number}"
            try:
                if number % 2:
                    self._check(text, vector_of(await stub.EmbedText(text_request(text))))
                else:
                    self._check(text.encode(), vector_of(await stub.EmbedImage(image_request(text.encode()))))
                self.answered += 1
            except grpc.aio.AioRpcError as error:
                self.failed[f"{error.code().name} {error.details()}"] += 1

    def _check(self, payload: str | bytes, vector: np.ndarray) -> None:
        self.wrong += not np.allclose(vector, right_answer(payload), atol=1e-6)

    async def _stream(self) -> None:
        async with AsyncClient(f"127.0.0.1:{self._port}") as client:
            async for result in client.stream(self._items(), ordered=True, window=_WINDOW):
                self._check(f"streamed {result.id}", result.embedding)
                self.wrong += result.id != self.streamed
                self.streamed += 1

    def _items(self) -> Iterator[TextItem]:
        while not self._is_over:
            yield TextItem(f"streamed {self.sent}", id=self.sent)
            self.sent += 1


@asynccontextmanager
async def balanced(replicas: Sequence[Replica], folder: Path) -> AsyncIterator[Envoy]:
    """Runs replicas behind an Envoy that considers all of them healthy."""
    try:
        await asyncio.gather(*(replica.start() for replica in replicas))
        async with running_envoy([replica.address for replica in replicas], folder) as envoy:
            await envoy.wait_for_healthy()
            yield envoy
    finally:
        await asyncio.gather(*(replica.close() for replica in replicas))


async def restart(replica: Replica, envoy: Envoy, number: int = signal.SIGTERM) -> int:
    """Restarts a replica, waits until it answers calls again, and returns the old process's exit code."""
    code = await replica.server.stop(number)
    served = await envoy.served(replica.address)
    await replica.start()
    await envoy.wait_for_healthy()
    await envoy.wait_for_served(replica.address, served + _PROOF)
    return code


async def roll(seconds: float, number: int) -> str:
    """Restarts replicas in turn for this long, and returns a report."""
    codes: Counter[int] = Counter()
    replicas = [Replica(), Replica()]
    with tempfile.TemporaryDirectory() as folder:
        async with balanced(replicas, Path(folder)) as envoy:
            async with Load(envoy.port).running() as load:
                end = time.monotonic() + seconds
                turns = itertools.cycle(replicas)
                while time.monotonic() < end:
                    codes[await restart(next(turns), envoy, number)] += 1
            repeated = await envoy.count("upstream_rq_retry")
    failed = load.failed.total()
    return (
        f"{codes.total()} restarts, exit codes {dict(codes)}\n"
        f"{load.answered + failed} unary calls, {failed} failed {dict(load.failed)}\n"
        f"{load.sent} stream items, {load.sent - load.streamed} without an answer\n"
        f"{load.wrong} answers wrong or out of order; Envoy retried {repeated} calls"
    )


def right_answer(payload: str | bytes) -> np.ndarray:
    """Returns the embedding that `--checkpoint fake` serves for a text or an image."""
    return FakeEncoder(embedding_dimension=640, is_recording=False).embedding_of(payload)


def vector_of(response: pb.EmbedTextResponse | pb.EmbedImageResponse) -> np.ndarray:
    """Returns a response's only embedding, which is packed."""
    return np.frombuffer(response.embeddings[0].packed_float32, "<f4")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m tests.deploy.rolling", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0, help="duration (default: 60)")
    parser.add_argument("--kill", action="store_true", help="use SIGKILL instead of SIGTERM")
    arguments = parser.parse_args()
    print(asyncio.run(roll(arguments.seconds, signal.SIGKILL if arguments.kill else signal.SIGTERM)))
