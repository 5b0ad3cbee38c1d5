"""What several tests of `deploy` need: Prometheus's tool, metrics' names, the package of the image."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from alignserve_server.metrics import Metrics
from prometheus_client import CollectorRegistry

from tests.deploy.container import can_run_containers
from tests.deploy.image import copy_sources


@pytest.fixture(scope="session")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Installs alignserve from nothing but what the Dockerfile copies, as it does but without the network."""
    source = copy_sources("alignserve", tmp_path_factory.mktemp("build"))
    folder = tmp_path_factory.mktemp("packages")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run(
        [*pip, "--no-deps", "--no-build-isolation", "--target", folder, source], check=True, timeout=120
    )
    return folder


@pytest.fixture(scope="session")
def containers(packages: Path) -> Path:
    """The same for a test that starts containers; skips it where the kernel does not allow that."""
    if not can_run_containers():
        pytest.skip("no user namespaces here, or no unshare, nsenter and ip")
    return packages


@pytest.fixture(scope="session")
def promtool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Finds promtool, or unpacks that of Debian's package; skips the test if there is neither."""
    if (found := shutil.which("promtool")) is not None:
        return Path(found)
    folder = tmp_path_factory.mktemp("prometheus")
    try:
        subprocess.run(["apt-get", "download", "-q", "prometheus"], cwd=folder, check=True, timeout=120)
        (package,) = folder.glob("*.deb")
        subprocess.run(["dpkg", "-x", package, folder], check=True, timeout=120)
    except (OSError, ValueError, subprocess.SubprocessError):
        pytest.skip("promtool is not installed, and Debian's package cannot be fetched here")
    return folder / "usr/bin/promtool"


@pytest.fixture(scope="session")
def metric_names() -> set[str]:
    """Returns the names under which the server shows its metrics."""
    names = set()
    for family in Metrics(CollectorRegistry()).registry.collect():
        suffixes = {"counter": ["_total"], "histogram": ["_bucket", "_count", "_sum"]}.get(family.type, [""])
        names |= {family.name + suffix for suffix in suffixes}
    return names
