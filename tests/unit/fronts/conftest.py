"""A folder for sockets."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.processes import socket_folder


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """A new folder whose name is short enough for sockets."""
    with socket_folder() as folder:
        yield folder
