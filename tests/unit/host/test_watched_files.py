"""Files of keys and certificates that are not files: read in limited time and memory, or refused."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from threading import Thread

import pytest
from alignserve_server.access.keys import KeyRing, KeysError, Scope, changed_keys, new_key, read_keys
from alignserve_server.host.watched_files import WatchedFiles, read_whole


def sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(1 << 40)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (os.mkfifo, "nothing was written to the pipe"),
        (sparse, "larger than"),
        (Path.mkdir, "Is a directory"),
        (lambda path: path.symlink_to("/dev/zero"), "device"),
    ],
    ids=["pipe", "terabyte", "folder", "device"],
)
def test_endless_files_are_refused(make: Callable[[Path], object], reason: str, tmp_path: Path) -> None:
    """A pipe without a writer, a device and a file larger than memory are errors, like a missing file."""
    path = tmp_path / "keys.json"
    make(path)

    with pytest.raises(KeysError, match=reason):
        read_keys(path, pipe_seconds=0.0)


def test_a_pipe_is_read_to_its_end(tmp_path: Path) -> None:
    """A shell passes the output of a command that fetches a secret in this way."""
    path = tmp_path / "pipe"
    os.mkfifo(path)
    writer = Thread(target=lambda: path.write_bytes(b"x" * 200_000))
    writer.start()

    content = read_whole(path, pipe_seconds=20.0)

    writer.join()
    assert len(content) == 200_000


def test_keys_stay_in_use_if_their_file_becomes_a_pipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The event loop checks the file, and must not wait for a writer."""
    monkeypatch.setattr("alignserve_server.host.watched_files._INTERVAL_SECONDS", 0.0)
    path = tmp_path / "keys.json"
    with changed_keys(path) as keys:
        key, keys["a"] = new_key("a", frozenset({Scope.EMBED}))
    ring = KeyRing(path)
    path.unlink()
    os.mkfifo(path)

    assert ring.find(key) is not None


def test_a_file_that_becomes_huge_counts_as_missing(tmp_path: Path) -> None:
    """It is not read into memory to find out whether it has changed."""
    path = tmp_path / "file"
    path.write_text("small")
    now = iter(range(100))
    watched = WatchedFiles([path], lambda: float(next(now)))
    sparse(path)

    assert watched.have_changed()
