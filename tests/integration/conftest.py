"""Fixtures of the integration tests, and the shapes of the servers that they run."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.integration import serving
from tests.integration.serving import FRONTS, WHOLE, RunningServer, running


def pytest_configure(config: pytest.Config) -> None:
    """Chooses the shape of servers that several tests share."""
    serving.shape = config.getoption("shape")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves out tests of the other shape."""
    if config.getoption("shape") == WHOLE:
        return
    skip = pytest.mark.skip(reason="about a server with its own model")
    for item in items:
        if item.get_closest_marker("whole"):
            item.add_marker(skip)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Runs tests marked `shapes` with either shape."""
    if metafunc.definition.get_closest_marker("shapes"):
        metafunc.parametrize("shape", [WHOLE, FRONTS], indirect=True)


@pytest.fixture(autouse=True)
def shape(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The shape of the servers that `running` starts."""
    shape: str = getattr(request, "param", serving.shape)
    monkeypatch.setattr(serving, "shape", shape)
    return shape


@pytest.fixture
async def served() -> AsyncIterator[RunningServer]:
    """A server with one lane and default settings."""
    async with running() as server:
        yield server
