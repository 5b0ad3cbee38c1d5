"""Planted defects are counted exactly."""

from __future__ import annotations

from pathlib import Path

import pytest
from alignserve import Client
from alignserve.testing import FakeServer

from tests.client.curate.planted import Planted, counted, curate_as_coyo, write


@pytest.fixture
def planted(tmp_path: Path) -> Planted:
    return Planted(200)


@pytest.mark.long
def test_each_kind_of_defect_is_counted_exactly(tmp_path: Path, planted: Planted) -> None:
    """Real pictures and texts, decoders and language identifier, over several files and shards."""
    expected = write(planted, tmp_path / "source", rows_per_file=90)

    with FakeServer() as server, Client(server.target) as client:
        outcome = curate_as_coyo(
            tmp_path / "source", planted, tmp_path / "curated", client, rows_per_shard=40
        )

    assert counted(outcome) == expected
