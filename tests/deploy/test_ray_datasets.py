"""`deploy/ray/embed_dataset.py` on a real cluster of two nodes: every row once, also if processes die."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import grpc
import pytest
from alignserve.cli import main
from alignserve.testing import FakeServer

from tests.deploy.ray_cluster import RayCluster, running_cluster
from tests.processes import ROOT

pytestmark = [
    pytest.mark.long,
    pytest.mark.timeout(600),  # Ray starts slowly
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # Ray's own
]

FILES, ROWS, BLANK_EVERY, ROWS_PER_SHARD = 4, 300, 50, 20
SHARDS = FILES * ROWS // ROWS_PER_SHARD
OUT, FAILED = FILES * ROWS * (BLANK_EVERY - 1) // BLANK_EVERY, FILES * ROWS // BLANK_EVERY


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayCluster]:
    if find_spec("ray") is None:
        pytest.skip("no ray; pip install --group ray")
    with running_cluster(nodes=2) as running:
        yield running


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with FakeServer(embedding_dimension=8) as fake:
        yield fake


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Returns a folder of tables; every fiftieth text is blank, so its row fails."""
    folder = tmp_path / "source"
    folder.mkdir()
    for file in range(FILES):
        with (folder / f"{file}.jsonl").open("w") as lines:
            for row in range(ROWS):
                text = f"text {file} {row}" if row % BLANK_EVERY else " "
                lines.write(json.dumps({"id": f"{file}-{row}", "text": text}) + "\n")
    return folder


def arguments(server: FakeServer, source: Path, to: Path, *more: str) -> list[str]:
    columns = ("--text-column", "text", "--key-column", "id", "--rows-per-shard", str(ROWS_PER_SHARD))
    return [str(source / "*.jsonl"), "--to", str(to), "--server", server.target, *columns, *more]


def start(cluster: RayCluster, *given: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "deploy.ray.embed_dataset", "--cluster", cluster.address]
    return subprocess.Popen(
        [*command, "--workers", "2", *given],
        cwd=ROOT,
        env=cluster.environment,
        stdout=subprocess.PIPE,
        text=True,
    )


def end(job: subprocess.Popen[str]) -> str:
    """Waits for a job whose rows partly fail, and returns its account; Ray may print something behind it."""
    out, _ = job.communicate()
    assert job.returncode == 1
    (line,) = [line for line in out.splitlines() if " rows in = " in line]
    return line


def wait_for_shards(job: subprocess.Popen[str], to: Path, count: int) -> None:
    while len(list((to / "records").glob("*.json"))) < count:
        assert job.poll() is None, "the job ended too early"


def keys(to: Path) -> Counter[str]:
    from pyarrow import parquet

    tables = (parquet.read_table(path, columns=["key"]) for path in to.glob("part-*.parquet"))
    return Counter(key for table in tables for key in table["key"].to_pylist())


def account(to: Path) -> dict[str, Any]:
    manifest = json.loads((to / "manifest.json").read_text())
    return {key: manifest[key] for key in ("state", "ledger", "sources", "options", "columns", "model")}


def check_all_rows_once(to: Path, last_line: str) -> None:
    found = keys(to)
    assert set(found.values()) == {1}
    assert len(found) == OUT
    assert last_line.startswith(f"{FILES * ROWS} rows in = {OUT} out + {FAILED} failed ({FAILED} TEXT_EMPTY)")


def test_the_output_is_that_of_the_command(
    cluster: RayCluster, server: FakeServer, source: Path, tmp_path: Path
) -> None:
    """Manifest, account, file names, keys and vectors are the same as without Ray."""
    from pyarrow import parquet

    here, there = tmp_path / "here", tmp_path / "there"
    main(["embed-dataset", *arguments(server, source, here)])
    line = end(start(cluster, *arguments(server, source, there)))

    check_all_rows_once(there, line)
    assert account(there) == account(here)
    names = sorted(path.name for path in here.glob("part-*"))
    assert sorted(path.name for path in there.glob("part-*")) == names
    for name in names:
        assert parquet.read_table(there / name).equals(parquet.read_table(here / name))


def test_a_worker_that_is_killed_loses_nothing(
    cluster: RayCluster, server: FakeServer, source: Path, tmp_path: Path
) -> None:
    """Ray starts it again, and its file goes on behind the last shard on the disk."""
    to = tmp_path / "to"
    job = start(cluster, *arguments(server, source, to))
    for kill in range(1, 4):
        wait_for_shards(job, to, kill * SHARDS // 6)
        cluster.workers("_Worker")[0].kill()

    check_all_rows_once(to, end(job))


def test_a_driver_that_is_killed_is_resumed(
    cluster: RayCluster, server: FakeServer, source: Path, tmp_path: Path
) -> None:
    """Its workers end with it, its lock does not block, and finished shards are kept."""
    to = tmp_path / "to"
    job = start(cluster, *arguments(server, source, to))
    wait_for_shards(job, to, SHARDS // 3)
    job.kill()
    job.communicate()
    kept = {path.name: path.stat().st_mtime_ns for path in (to / "records").iterdir()}

    line = end(start(cluster, *arguments(server, source, to, "--resume")))

    check_all_rows_once(to, line)
    now = {path.name: path.stat().st_mtime_ns for path in (to / "records").iterdir()}
    assert kept.items() <= now.items()


def test_a_server_that_refuses_ends_the_run(cluster: RayCluster, source: Path, tmp_path: Path) -> None:
    """The error of a worker is that of the run, with the same exit code, and fails no row."""
    to = tmp_path / "to"
    with FakeServer(embedding_dimension=8) as server:
        server.fail_input("text 0 299", grpc.StatusCode.PERMISSION_DENIED, "SCOPE_MISSING")
        job = start(cluster, *arguments(server, source, to))
        job.communicate()

    assert job.returncode == 4
    assert account(to)["state"] == "incomplete"
    assert set(account(to)["ledger"]["failed"]) <= {"TEXT_EMPTY"}
