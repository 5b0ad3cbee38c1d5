"""A container like that of the image, without a container engine.

The container is made of Linux namespaces: its own network with only a loopback interface, a read-only root
filesystem, user 10001 without capabilities, and the server as process 1. Its packages are this environment's,
except alignserve, which is installed from the files that the Dockerfile copies.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from tests.deploy.image import Image
from tests.processes import BIN

_PREFIX = "/opt/alignserve"  # /usr/local in the image, but here that has more than its packages
_NAMESPACES = ("unshare", "--user", "--map-root-user", "--net", "--mount", "--pid", "--mount-proc", "--fork")
_USER = "10001:10001"
_INSIDE = ("nsenter", "--user", "--preserve-credentials", "--net", "--mount", "--pid", "--wd=/")
_SCAFFOLDS = ("/opt", "/run", "/srv", "/tmp", "/var/cache")  # parents of mount points


@dataclass
class Container:
    """A running container."""

    process: subprocess.Popen[str]
    environment: Mapping[str, str]

    def event(self, name: str) -> dict[str, Any]:
        """Reads the server's log up to an event, and returns it."""
        assert self.process.stderr is not None
        seen = []
        for line in self.process.stderr:
            seen.append(line)
            event: dict[str, Any] = json.loads(line)
            if event["event"] == name:
                return event
        raise AssertionError(f"the server ended before {name!r}:\n{''.join(seen)}")

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Runs a command inside, as an engine does for a probe; the server must be listening."""
        return subprocess.run(
            [*_INSIDE, f"--target={self._pid()}", "--", *command],
            env=dict(self.environment),
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )

    def health(self, port: int, service: str) -> str:
        """Returns the health status that a gRPC probe of the kubelet sees."""
        done = self.run(sys.executable, "-c", _HEALTH, str(port), service)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def stop(self) -> int:
        """Sends SIGTERM to process 1, and returns its exit code."""
        os.kill(self._pid(), signal.SIGTERM)
        self.process.communicate(timeout=60)
        return self.process.returncode

    def _pid(self) -> int:
        (server,) = psutil.Process(self.process.pid).children()
        return server.pid


@contextmanager
def running_container(
    packages: Path,
    image: Image,
    environment: Mapping[str, str] | None = None,
    *,
    writable: Sequence[str],
    files: Mapping[str, Path] | None = None,
    user: str = _USER,
) -> Iterator[Container]:
    """Runs an image's entrypoint for the length of the block.

    Args:
        packages: The folder in which alignserve is installed.
        image: Gives the entrypoint and the variables; those of `environment` override them.
        writable: The mount points of writable volumes.
        files: Folders of this machine by mount point.
        user: The user id and group id.
    """
    variables = {
        "HOME": "/nonexistent",
        "PATH": f"{_PREFIX}/bin:{BIN}:/usr/sbin:/usr/bin:/sbin:/bin",
        "PYTHONPATH": _PREFIX,
        **image.environment,
        **(environment or {}),
    }
    # Includes this environment's own folders, which may be below a scaffold.
    own = {folder: Path(folder) for folder in (sys.base_prefix, sys.prefix)}
    script = _script(
        {**own, _PREFIX: packages, **_checkpoint(image, packages), **(files or {})}, writable, user
    )
    with subprocess.Popen(
        [*_NAMESPACES, "--kill-child", "sh", "-euc", script, "sh", *image.entrypoint],
        env=variables,
        cwd="/",
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield Container(process, variables)
        finally:
            process.kill()


def _checkpoint(image: Image, packages: Path) -> dict[str, Path]:
    """Returns the checkpoint of the image's build: for the embedded one, a copy of the shipped files."""
    shipped = packages / "alignserve_server/model/checkpoints/mini/prepared"
    folder = image.environment.get("ALIGNSERVE_CHECKPOINT")
    return {} if folder is None else {folder: shipped}


def can_run_containers() -> bool:
    """Returns whether this machine has the tools, and allows its user a container's namespaces."""
    if not all(map(shutil.which, ("unshare", "nsenter", "ip"))):
        return False
    return (
        subprocess.run([*_NAMESPACES, *_as_user(_USER), "true"], capture_output=True, check=False).returncode
        == 0
    )


def _as_user(user: str) -> tuple[str, ...]:
    number, _, group = user.partition(":")
    return ("unshare", "--user", f"--map-user={number}", f"--map-group={group}")


def _script(files: Mapping[str, Path], writable: Sequence[str], user: str) -> str:
    """Returns a script that lays out the filesystem and then runs the command."""
    held = "/mnt"  # keeps the sources of mounts, which scaffolds would hide
    lines = ["ip link set lo up", f"mount -t tmpfs none {held}"]
    for number, source in enumerate(files.values()):
        lines += [f"mkdir {held}/{number}", f"mount --bind {shlex.quote(str(source))} {held}/{number}"]
    lines += [f"mount -t tmpfs -o mode=0755 none {scaffold}" for scaffold in _SCAFFOLDS]
    for target in writable:
        lines += [f"mkdir -p {target}", f"mount -t tmpfs none {target}"]
    for number, target in enumerate(files):  # last, since they may be below a writable volume
        lines += [f"mkdir -p {target}", f"mount --bind -o ro {held}/{number} {target}"]
    read_only = [path for path in ("/", held, *_SCAFFOLDS) if path not in writable]
    lines += [f"mount -o bind,remount,ro {path}" for path in read_only]
    return "\n".join([*lines, f'exec {" ".join(_as_user(user))} "$@"'])


_HEALTH = """
import sys
import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

with grpc.insecure_channel(f"127.0.0.1:{sys.argv[1]}") as channel:
    request = health_pb2.HealthCheckRequest(service=sys.argv[2])
    status = health_pb2_grpc.HealthStub(channel).Check(request, timeout=10).status
print(health_pb2.HealthCheckResponse.ServingStatus.Name(status))
"""
