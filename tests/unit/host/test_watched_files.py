"""Files that are reread when they change: in limited time and memory, or refused."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from threading import Thread

import pytest
from alignserve_server.access.keys import KeyRing, KeysError, Scope, changed_keys, new_key, read_keys
from alignserve_server.host.watched_files import WatchedFiles, read_whole


class Clock:
    """Seconds that pass when the test says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_text("before")
    return path


def _have_changed(files: WatchedFiles, clock: Clock) -> bool:
    clock.now += 1.0
    return files.have_changed()


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


def test_a_change_is_found_once(path: Path) -> None:
    """It is found at the next check, a second later."""
    clock = Clock()
    files = WatchedFiles([path], clock)
    path.write_text("after")

    assert not files.have_changed()
    assert _have_changed(files, clock)
    assert not _have_changed(files, clock)


def test_a_change_of_equal_size_and_time_is_found(path: Path) -> None:
    """It may happen within a tick of the file system's clock, or a tool may preserve times."""
    clock = Clock()
    files = WatchedFiles([path], clock)
    found = path.stat()
    path.write_text("behind")
    os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns))

    assert _have_changed(files, clock)


def test_a_replaced_link_is_found(tmp_path: Path) -> None:
    """Kubernetes renews a secret in this way: `..data` is a link to a folder."""
    clock = Clock()
    for version in ("1", "2"):
        (tmp_path / version).mkdir()
        (tmp_path / version / "file").write_text(version)
    (tmp_path / "..data").symlink_to("1")
    (tmp_path / "file").symlink_to("..data/file")
    files = WatchedFiles([tmp_path / "file"], clock)

    (tmp_path / "..data_tmp").symlink_to("2")
    (tmp_path / "..data_tmp").replace(tmp_path / "..data")

    assert _have_changed(files, clock)
    assert not _have_changed(files, clock)


def test_a_file_that_vanishes_and_returns_has_changed_twice(path: Path) -> None:
    """The reader decides what to do without it."""
    clock = Clock()
    files = WatchedFiles([path], clock)

    path.unlink()
    assert _have_changed(files, clock)
    path.write_text("before")
    assert _have_changed(files, clock)


def test_a_file_that_could_not_be_used_is_found_again(path: Path) -> None:
    """It is found again even if it has not changed."""
    clock = Clock()
    files = WatchedFiles([path], clock)

    files.invalidate()

    assert _have_changed(files, clock)
    assert not _have_changed(files, clock)


def test_a_pipe_is_not_read_by_the_check() -> None:
    """In `--api-keys-file <(vault read …)`, for example, the content can be read only once."""
    clock = Clock()
    reading, writing = os.pipe()
    os.write(writing, b"content")
    files = WatchedFiles([Path(f"/dev/fd/{reading}")], clock)

    assert not _have_changed(files, clock)
    assert os.read(reading, 100) == b"content"
    os.close(reading)
    os.close(writing)
