"""Programs that several tests of `deploy` run."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.deploy.prometheus import programs


@pytest.fixture(scope="session")
def prometheus_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Finds prometheus and promtool, or skips the test."""
    folder = programs(tmp_path_factory.mktemp("prometheus"))
    if folder is None:
        pytest.skip("prometheus is not installed, and Debian's package cannot be fetched here")
    return folder
