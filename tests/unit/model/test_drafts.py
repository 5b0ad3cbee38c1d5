"""Folders appear complete, even if several processes create the same one."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from alignserve_server.model.drafts import draft_folder, install, move_into


@pytest.fixture
def damaged(tmp_path: Path) -> Path:
    """A folder that already exists at the destination."""
    folder = tmp_path / "cache" / "place"
    folder.mkdir(parents=True)
    (folder / "content").write_text("damaged")
    return folder


def another_moves_it(folder: Path) -> bool:
    folder.rename(folder.parent / "moved")
    return False


def another_replaces_it(folder: Path) -> bool:
    if not (folder.parent / "moved").exists():
        another_moves_it(folder)
        folder.mkdir()
        (folder / "content").write_text("damaged too")
    return False


@pytest.mark.parametrize(
    ("is_usable", "content"),
    [
        (lambda _: False, "ours"),
        (lambda _: True, "damaged"),
        (another_moves_it, "ours"),
        (another_replaces_it, "ours"),
    ],
    ids=["replaced", "kept", "moved away meanwhile", "replaced meanwhile"],
)
def test_a_folder_is_replaced_unless_it_is_usable(
    damaged: Path, is_usable: Callable[[Path], bool], content: str
) -> None:
    """A damaged folder is replaced, even while other processes replace it too."""
    with draft_folder(damaged.parent) as draft:
        (draft / "content").write_text("ours")
        install(draft, damaged, is_usable=is_usable)

    assert (damaged / "content").read_text() == content
    assert not list(damaged.parent.glob("alignserve-*"))


def test_drafts_that_were_left_are_removed(tmp_path: Path) -> None:
    """After a process is killed while writing, the next one removes its draft, but no draft in progress."""
    program = (
        "import sys\n"
        "from pathlib import Path\n"
        "from alignserve_server.model.drafts import draft_folder\n"
        "with draft_folder(Path(sys.argv[1])) as draft:\n"
        "    (draft / 'image.bin').write_bytes(bytes(1000))\n"
        "    print(draft, flush=True)\n"
        "    sys.stdin.read(1)\n"
    )
    killed, living = (
        subprocess.Popen(
            [sys.executable, "-c", program, tmp_path],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    )
    assert killed.stdout is not None
    assert living.stdout is not None
    left, kept = (Path(out.readline().strip()) for out in (killed.stdout, living.stdout))
    killed.kill()
    killed.communicate()

    with draft_folder(tmp_path):
        has_left, has_kept = left.exists(), kept.exists()

    living.communicate(input="x")
    assert (has_left, has_kept, kept.exists()) == (False, True, False)


def test_an_unfinished_volume_has_the_first_file_but_not_the_last(tmp_path: Path) -> None:
    """The first file comes first and the last one last, so that a partial folder is recognized."""
    (tmp_path / "last").touch()
    (tmp_path / "middle").touch()
    with draft_folder(tmp_path) as draft:
        (draft / "middle").mkdir()  # a folder cannot replace a file
        for name in ("first", "last"):
            (draft / name).touch()
        with pytest.raises(OSError, match="Not a directory"):
            move_into(draft, tmp_path, first="first", last="last")

    assert {path.name for path in tmp_path.iterdir()} == {"first", "middle"}
