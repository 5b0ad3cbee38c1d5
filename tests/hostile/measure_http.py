"""Measures the event loop lag of the worst bodies over HTTP: python -m tests.hostile.measure_http.

The server runs a trivial model (`--checkpoint fake`). Each body is sent five times. The figure is the median
of the longest lags.
"""

from __future__ import annotations

import asyncio
import os
import platform
import statistics
from collections.abc import Sequence
from datetime import date

import httpx

from tests.hostile.http_bodies import WORST, request_of
from tests.hostile.lag import TickingServer, ticking_server
from tests.load.report import table

_ROUNDS = 5


async def _row(ticking: TickingServer, name: str) -> Sequence[str]:
    path, headers, body = request_of(name)
    url = f"http://127.0.0.1:{ticking.server.http_port}{path}"
    lags, status = [], 0
    async with httpx.AsyncClient(timeout=60) as client:
        for _ in range(_ROUNDS):
            async with ticking.lag() as lag:
                status = (await client.post(url, content=body, headers=headers)).status_code
            lags.append(lag.seconds)
    return name, f"{len(body) / 1e6:.1f}", str(status), f"{1000 * statistics.median(lags):.1f}"


def main() -> None:
    """Measures and prints."""
    with ticking_server("--checkpoint", "fake", "--http-listen", "127.0.0.1:0") as ticking:
        rows = [asyncio.run(_row(ticking, name)) for name in WORST]
    print(table(("body", "MB", "status", "longest lag, ms"), rows))
    print(f"\n{os.cpu_count()} cores of {platform.machine()}, {date.today().isoformat()}.")  # noqa: DTZ011


if __name__ == "__main__":
    main()
