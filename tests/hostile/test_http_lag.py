"""Bodies over HTTP that take long hold up no other caller for long."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from tests.hostile.http_bodies import WORST, request_of
from tests.hostile.lag import TickingServer, ticking_server

pytestmark = [pytest.mark.hostile, pytest.mark.long]

_MAX_LAG_PARSES = 20.0  # 0.2 s where one takes 10 ms, twice what `server/docs/http.md` says


@pytest.fixture(scope="module")
def ticking_http() -> Iterator[TickingServer]:
    """A server with an HTTP port and a trivial model, whose event loop lag is measured."""
    with ticking_server("--checkpoint", "fake", "--http-listen", "127.0.0.1:0") as ticking:
        yield ticking


@pytest.mark.parametrize("name", WORST)
async def test_no_body_holds_up_others(ticking_http: TickingServer, name: str) -> None:
    """Whether it is refused or answered; never with a 500, which clients would repeat."""
    path, headers, body = request_of(name)
    url = f"http://127.0.0.1:{ticking_http.server.http_port}{path}"
    async with httpx.AsyncClient(timeout=60) as client:

        async def attack() -> None:
            answer = await client.post(url, content=body, headers=headers)
            assert answer.status_code in (200, 400)

        lag = await ticking_http.least_lag_in_parses(attack, bound=_MAX_LAG_PARSES)

    assert lag < _MAX_LAG_PARSES
