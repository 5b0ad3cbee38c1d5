"""A lock on a folder that ends with its process, however that ends."""

from __future__ import annotations

import fcntl
import os
import socket
from pathlib import Path


class FolderLock:
    """Lets one process at a time write into a folder.

    The kernel holds the lock (flock), so it ends with the process, even after `kill -9`; the file stays. A
    child made by `fork` shares the lock for as long as it lives.

    Raises:
        BlockingIOError: Another process holds the lock; its message says which.
    """

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(self._descriptor, 200).decode(errors="replace").strip()
            os.close(self._descriptor)
            raise BlockingIOError(holder or "another process") from None
        except BaseException:
            os.close(self._descriptor)
            raise
        os.ftruncate(self._descriptor, 0)
        os.write(self._descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode())

    def release(self) -> None:
        """Releases the lock."""
        os.close(self._descriptor)
