"""Fixtures of the contract tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.processes import ServerProcess, server_process


@pytest.fixture(scope="session")
def server() -> Iterator[ServerProcess]:
    """A real server on the embedded checkpoint, shared by the tests of commands."""
    with server_process() as process:
        yield process
