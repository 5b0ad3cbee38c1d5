"""The device's socket, to which only processes of the same user can connect."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import stat
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from alignserve_server.errors import StartupError
from alignserve_server.observability.logs import get_logger

_log = get_logger(__name__)

_BACKLOG = 128
_CHECK_SECONDS = 1.0
_PAUSE_SECONDS = 1.0  # without resources for another connection
_SCARCE = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}


class Listener:
    """Listens on a path, and again if the file is deleted. Use only on the event loop's thread."""

    def __init__(self, path: Path, on_connection: Callable[[socket.socket], object]) -> None:
        """Starts to listen. Replaces a socket left at the path, and makes its folder if it is missing.

        Raises:
            OSError: The path is longer than 107 bytes, is not a socket, or cannot be written.
            StartupError: The folder belongs to another user.
        """
        self._path = path
        self._on_connection = on_connection
        self._loop = asyncio.get_running_loop()
        self._listen()
        self._checking = self._loop.call_later(_CHECK_SECONDS, self._check)

    def close(self) -> None:
        """Stops listening and removes the socket; no effect if that is done."""
        if self._socket.fileno() >= 0:
            self._checking.cancel()
            if self._is_there():
                self._path.unlink()
            self._end()

    def _listen(self) -> None:
        _make_folder(self._path.parent)
        if _is_socket(self._path):
            self._path.unlink()
        made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            made.setblocking(False)
            made.bind(str(self._path))
            self._path.chmod(0o600)  # before it listens
            made.listen(_BACKLOG)
            self._file = _identity(self._path)
        except BaseException:
            made.close()
            raise
        self._socket = made
        self._loop.add_reader(made, self._accept)

    def _end(self) -> None:
        self._loop.remove_reader(self._socket)
        self._socket.close()

    def _check(self) -> None:
        """Listens again if the socket was deleted, as cleaners of temporary files do."""
        if not self._is_there() and _is_socket(self._path):
            return  # the next device has taken the path
        self._checking = self._loop.call_later(_CHECK_SECONDS, self._check)
        if self._is_there():
            return
        _log.warning("socket_deleted", path=str(self._path))
        deleted = self._socket
        try:
            self._listen()
        except (OSError, StartupError) as error:
            _log.error("socket_not_made", reason=str(error))
            return
        self._loop.remove_reader(deleted)
        deleted.close()

    def _is_there(self) -> bool:
        return _identity(self._path) == self._file

    def _accept(self) -> None:
        try:
            connected, _ = self._socket.accept()
        except OSError as error:
            if error.errno in _SCARCE:  # it would be called again at once, and fail again
                _log.error("connection_not_accepted", reason=str(error))
                self._loop.remove_reader(self._socket)
                self._loop.call_later(_PAUSE_SECONDS, self._resume)
            return  # otherwise the front has left
        self._on_connection(connected)

    def _resume(self) -> None:
        if self._socket.fileno() >= 0:
            self._loop.add_reader(self._socket, self._accept)


def _is_socket(path: Path) -> bool:
    try:
        return stat.S_ISSOCK(path.lstat().st_mode)
    except OSError:
        return False


def _identity(path: Path) -> tuple[int, int] | None:
    """Returns what identifies a file; None if there is none."""
    try:
        status = path.lstat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _make_folder(folder: Path) -> None:
    with suppress(FileExistsError):
        folder.mkdir(0o700)
    if folder.lstat().st_uid != os.geteuid():
        raise StartupError(f"{folder} belongs to another user; set TMPDIR")
