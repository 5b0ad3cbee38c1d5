"""One live server for all hostile tests, which must survive each of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Iterator

import pytest

from tests.hostile.lag import TickingServer, ticking_server
from tests.hostile.live import DECODE_THREADS, IMAGE_FORMATS, LiveServer
from tests.integration.serving import connect

_TALLIES = pytest.StashKey[dict[str, Counter[str]]]()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Prints how much hostile input was sent and how it ended."""
    for source, tally in config.stash.get(_TALLIES, {}).items():
        outcomes = ", ".join(f"{count} {outcome}" for outcome, count in tally.most_common())
        terminalreporter.write_line(f"hostile input, {source}: {tally.total()} sent: {outcomes}")


@pytest.fixture
def tallies(request: pytest.FixtureRequest) -> dict[str, Counter[str]]:
    """Outcomes by source, printed after the last test."""
    return request.config.stash.setdefault(_TALLIES, {})


@pytest.fixture(scope="package")  # not longer: looking at the event loop keeps a core busy
def ticking() -> Iterator[TickingServer]:
    """A server on the embedded checkpoint, shared by all tests, whose event loop lag is measured."""
    flags = ("--decode-threads", str(DECODE_THREADS), "--extra-image-formats", IMAGE_FORMATS)
    with ticking_server(*flags) as ticking:
        yield ticking


@pytest.fixture
async def live(ticking: TickingServer) -> AsyncIterator[LiveServer]:
    """The server; after the test it must still run, answer as before, and account for every item."""
    async with connect(ticking.server.port) as channel:
        live = LiveServer(ticking.server, channel)
        before = await live.good_embedding()
        yield live
    async with connect(ticking.server.port) as channel:
        live = LiveServer(ticking.server, channel)
        assert live.is_running
        assert await live.good_embedding() == before
        for account in await live.accounts():
            assert account.pop("accepted") == sum(account.values())
