"""Shared fixtures of the `deploy` tests: Prometheus, metric names, the image's packages."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from alignserve_server.observability.metrics import Metrics
from prometheus_client import CollectorRegistry

from tests.deploy.container import can_run_containers
from tests.deploy.image import arguments, copy_sources, run_step, stages
from tests.deploy.prometheus import programs


@pytest.fixture(scope="session")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Installs both distributions from the files that the Dockerfile copies, as it does, but offline."""
    source = copy_sources("alignserve", tmp_path_factory.mktemp("build"))
    folder = tmp_path_factory.mktemp("packages")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run(
        [*pip, "--no-deps", "--no-build-isolation", "--target", folder, source, source / "server"],
        check=True,
        timeout=120,
    )
    return folder


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint of the image `cpu`, as its build prepares it."""
    folder = tmp_path_factory.mktemp("image")
    (step,) = [value for keyword, value in stages()["checkpoint"] if keyword == "RUN"]
    done = run_step(step, folder, arguments("checkpoint"))
    assert done.returncode == 0, done.stderr
    return folder / "checkpoint"


@pytest.fixture(scope="session")
def containers(packages: Path) -> Path:
    """The packages, for a test that starts containers; skips it if the kernel does not allow that."""
    if not can_run_containers():
        pytest.skip("needs user namespaces, and the programs unshare, nsenter and ip")
    return packages


@pytest.fixture(scope="session")
def prometheus_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Finds the folder with prometheus and promtool, or skips the test."""
    folder = programs(tmp_path_factory.mktemp("prometheus"))
    if folder is None:
        pytest.skip("prometheus is not installed, and Debian's package cannot be fetched")
    return folder


@pytest.fixture(scope="session")
def promtool(prometheus_folder: Path) -> Path:
    """Prometheus's command-line tool."""
    return prometheus_folder / "promtool"


@pytest.fixture(scope="session")
def metric_names() -> set[str]:
    """Returns the names of the server's metrics."""
    names = set()
    for family in Metrics(CollectorRegistry()).registry.collect():
        suffixes = {"counter": ["_total"], "histogram": ["_bucket", "_count", "_sum"]}.get(family.type, [""])
        names |= {family.name + suffix for suffix in suffixes}
    return names
