"""Curation on a Ray cluster of several nodes on this machine."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from alignserve.testing import FakeServer

from tests.processes import ROOT

pytest.importorskip("ray", reason="needs the dependency group `ray`")
pytest.importorskip("textblob", reason="needs the extra `curate`")
clusters = pytest.importorskip("tests.deploy.ray_cluster")

pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]


def curated(
    command: list[str], folder: Path, environment: Mapping[str, str] | None = None
) -> tuple[Any, Any, Any]:
    """Runs a command, and returns its rows, its counts and its report."""
    run = [sys.executable, "-m", *command, "--to", str(folder)]
    done = subprocess.run(run, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr  # some rows fail
    rows = [row for part in sorted(folder.glob("part-*")) for row in pq.read_table(part).to_pylist()]
    manifest = json.loads((folder / "manifest.json").read_text())
    # NaN is not equal to itself, but its text is.
    return repr(rows), manifest["curation"], json.loads((folder / "report.json").read_text())


def test_a_cluster_curates_as_one_process_does(tmp_path: Path) -> None:
    """The same rows, counts, near-duplicates and report, with the source files shared out to two nodes."""
    from tests.client.curate.planted import Planted, write

    write(Planted(400), tmp_path / "source", rows_per_file=100)
    with FakeServer() as server, clusters.running_cluster(2) as cluster:
        source = [
            *(str(tmp_path / "source"), "--image-column", "image", "--text-column", "caption"),
            *("--key-column", "id", "--server", server.target),
        ]
        embed = [
            sys.executable,
            "-m",
            "alignserve.cli",
            "embed-dataset",
            *source,
            "--to",
            str(tmp_path / "v"),
        ]
        subprocess.run(embed, cwd=ROOT, capture_output=True, check=False)
        options = [
            *(*source, "--preset", "coyo", "--top", "0.5", "--processes", "1", "--rows-per-shard", "40"),
            *("--near-duplicates", str(tmp_path / "v"), "--min-cosine", "0.05"),
        ]
        on_ray = ["deploy.ray.curate", "--workers", "2", "--cluster", cluster.address, *options]

        here = curated(["alignserve.cli", "curate", *options], tmp_path / "here")
        there = curated(on_ray, tmp_path / "there", cluster.environment)

    assert there == here
    assert here[1]["first_reasons"]["NEAR_DUPLICATE"] > 0
