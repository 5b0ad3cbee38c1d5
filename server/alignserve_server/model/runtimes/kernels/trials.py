"""Remembers kernels whose trial has ended the process, so that the next start does not try them again.

A kernel that fails on some GPU or driver may lose the device or crash the process, and a supervisor would
restart it forever. A trial keeps a file while it lasts, so a file without its process means a crash, or that
the process was stopped: the second time, the kernel is given up.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path

import torch

from alignserve_server.model.encoder import CaptureFailed, DeviceLost
from alignserve_server.model.runtimes.kernels.unavailable import Unavailable

_MOST_DEATHS = 1  # of processes that may have been stopped
_LOST = "lost"  # in a file: a trial has made the device unusable for its process


class Trials:
    """Trials on one kind of device, with one version of the software."""

    def __init__(self, cache_dir: Path | None, device: torch.device) -> None:
        """Remembers nothing if the directory is None or not writable."""
        self._folder = cache_dir and cache_dir / "kernels"
        gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
        environment = f"{version('alignserve-server')} {torch.__version__} {gpu}"
        self._digest = hashlib.sha256(environment.encode()).hexdigest()[:16]

    @contextmanager
    def trying(self, name: str) -> Iterator[None]:
        """Marks a trial while the body runs. Raises Unavailable if earlier ones ended their processes."""
        if self._folder is None:
            yield
            return
        file = self._folder / f"{name}-{self._digest}.trying"
        if _has_failed(file):
            raise Unavailable(f"earlier processes died while they tried them; to try again, delete {file}")
        with suppress(OSError):
            self._folder.mkdir(parents=True, exist_ok=True)
            with file.open("a") as tried:
                print(os.getpid(), file=tried)
        try:
            yield
        except (CaptureFailed, DeviceLost):  # the process will end: keep the file
            with suppress(OSError):
                file.write_text(_LOST)
            raise
        except BaseException:
            _remove(file)
            raise
        _remove(file)


def _has_failed(file: Path) -> bool:
    try:
        lines = file.read_text().split()
    except (OSError, ValueError):
        return False
    return _LOST in lines or sum(map(_is_dead, lines)) > _MOST_DEATHS


def _is_dead(line: str) -> bool:
    if not line.isdecimal():
        return False
    pid = int(line)
    if pid == os.getpid():  # the same number in a new container
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except OSError:  # it runs as another user
        return False
    return False


def _remove(file: Path) -> None:
    with suppress(OSError):
        file.unlink()
