"""Files that are reloaded when they change."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from alignserve_server.host.watched_files import WatchedFiles


class Clock:
    """A clock that the test advances."""

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
