"""Measures the event loop lag of the largest valid requests: python -m tests.hostile.measure_requests.

The server runs a trivial model (`--checkpoint fake`). Each request is sent several times; the labels of
`known labels` are embedded beforehand. The figure is the median of the longest lags.
"""

from __future__ import annotations

import asyncio
import os
import platform
import statistics
from collections.abc import Awaitable, Callable, Sequence
from datetime import date

import grpc
from alignserve.v1 import align_service_pb2_grpc as pb_grpc

from tests.hostile.lag import TickingServer, ticking_server
from tests.hostile.test_neighbours import WORST, called, ended, streamed
from tests.load.report import table

_ROUNDS = 5
_AT_ONCE = 8


async def _lag_ms(ticking: TickingServer, attack: Callable[[], Awaitable[object]]) -> str:
    lags = []
    for _ in range(_ROUNDS):
        async with ticking.lag() as lag:
            await attack()
        lags.append(lag.seconds)
    return f"{1000 * statistics.median(lags):.1f}"


async def _row(ticking: TickingServer, name: str) -> Sequence[str]:
    method, make = WORST[name]
    request = make()
    options = [("grpc.max_receive_message_length", -1)]
    async with grpc.aio.insecure_channel(ticking.server.address, options=options) as channel:
        stub = pb_grpc.AlignServiceStub(channel)

        send = called(stub, method, request)

        async def call() -> None:
            await ended(send())

        async def calls() -> None:
            await asyncio.gather(*(call() for _ in range(_AT_ONCE)), return_exceptions=True)

        await call()  # embeds the labels
        item = streamed(stub, method, request)
        return name, *[await _lag_ms(ticking, each) for each in (call, lambda: ended(item()), calls)]


def main() -> None:
    """Measures and prints."""
    with ticking_server("--checkpoint", "fake") as ticking:
        rows = [asyncio.run(_row(ticking, name)) for name in WORST]
    print(table(("longest lag, ms", "by call", "by stream", f"{_AT_ONCE} calls at once"), rows))
    print(f"\n{os.cpu_count()} cores of {platform.machine()}, {date.today().isoformat()}.")  # noqa: DTZ011


if __name__ == "__main__":
    main()
