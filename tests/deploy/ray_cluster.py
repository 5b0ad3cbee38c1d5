"""A Ray cluster of several nodes on this machine, each with its own raylet and workers.

python -m tests.deploy.ray_cluster NODES   # until standard input ends
"""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.processes import ROOT

_OBJECT_STORE_BYTES = 80 << 20  # about the minimum; the default is a third of the memory
_STOP_SECONDS = 60.0


@dataclass(frozen=True)
class RayCluster:
    """A running cluster.

    Attributes:
        address: For `ray.init`.
        environment: Of its processes, which drivers need too.
    """

    address: str
    environment: dict[str, str]
    _process: subprocess.Popen[str]

    def workers(self, name: str) -> list[psutil.Process]:
        """Returns the processes of actors of this class."""
        found = []
        for process in psutil.Process(self._process.pid).children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                if process.cmdline()[:1] and process.cmdline()[0].startswith(f"ray::{name}"):
                    found.append(process)
        return found


@contextmanager
def running_cluster(nodes: int) -> Iterator[RayCluster]:
    """Runs a cluster for the length of the block."""
    # Ray's socket paths would be too long in pytest's folders.
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:
        environment = {
            **os.environ,
            "RAY_AUTH_TOKEN": secrets.token_hex(32),  # otherwise Ray writes one to the home folder
            "RAY_TMPDIR": folder,
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_worker_register_timeout_seconds": "150",  # a busy machine starts them slowly
        }
        (Path(folder) / "ray").mkdir()  # Ray expects it
        command = [sys.executable, "-m", "tests.deploy.ray_cluster", str(nodes)]
        with subprocess.Popen(
            command, cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            try:
                address = _address(process.stdout)
                yield RayCluster(address, environment, process)
            finally:
                with suppress(BrokenPipeError):
                    process.stdin.close()
                with suppress(subprocess.TimeoutExpired):
                    process.wait(_STOP_SECONDS)
                process.kill()  # if it still runs; its child processes end with it


def main(nodes: str) -> None:
    """Starts the nodes, prints the address, and waits."""
    from ray._private import utils
    from ray.cluster_utils import Cluster

    # A raylet waits for its agent for 15 s. On a busy machine only a small one starts in that time.
    utils.get_dashboard_dependency_error = lambda: ImportError("not wanted")
    cluster = Cluster()
    for _ in range(int(nodes)):
        cluster.add_node(
            num_cpus=1,
            include_dashboard=False,
            include_log_monitor=False,
            no_monitor=True,
            object_store_memory=_OBJECT_STORE_BYTES,
        )
    print(f"address {cluster.address}", flush=True)
    sys.stdin.read()
    cluster.shutdown()


def _address(lines: Iterator[str]) -> str:
    seen = []
    for line in lines:
        seen.append(line)
        if line.startswith("address "):
            return line.split()[1]
    raise AssertionError(f"the cluster ended before it was ready:\n{''.join(seen)}")


if __name__ == "__main__":
    main(*sys.argv[1:])
