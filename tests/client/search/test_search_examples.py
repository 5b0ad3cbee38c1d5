"""The examples of client/docs/search-queries.md work when pasted."""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from alignserve.cli import main
from alignserve.search import Entry, create_store
from alignserve.search.queries import BadQuery, QueryDefaults, read_queries
from alignserve.testing import FakeServer

from tests.contract.documents import code_blocks, read

PAGE = read("client/docs/search-queries.md")
COMMANDS = [
    line
    for block in code_blocks(PAGE, "sh")
    for line in block.splitlines()
    if line.startswith("alignserve search ")
]
(PROGRAM,) = code_blocks(PAGE, "python")
(LINES,) = code_blocks(PAGE, "json")
PHOTO = Path(__file__).parents[2] / "data/photos/cat.jpg"


@pytest.fixture(scope="module")
def fake() -> Iterator[FakeServer]:
    with FakeServer(embedding_dimension=8) as server:
        yield server


@pytest.fixture
def folder(fake: FakeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a picture and a store."""
    shutil.copy(PHOTO, tmp_path / "bag.jpg")
    store = create_store(tmp_path / "photos.store", fingerprint="fake-8", model="fake", embedding_dimension=8)
    columns = {"license": "CC0", "width": 800, "path": str(tmp_path / "bag.jpg")}
    store.put(
        [Entry("bags/1.jpg", fake.embedding_of("a"), columns), Entry("b", fake.embedding_of("b"), columns)]
    )
    store.close()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ALIGNSERVE_TARGET", fake.target)
    return tmp_path


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_run(folder: Path, command: str, capsys: pytest.CaptureFixture[str]) -> None:
    """In a folder with a picture and a store."""
    code = main(shlex.split(command, comments=True)[1:])

    assert code == 0, capsys.readouterr().err


def test_the_program_runs(fake: FakeServer, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It prints the rows."""
    exec(compile(PROGRAM, "search-queries.md", "exec"), {})  # noqa: S102 — the page's own program

    assert "bags/1.jpg" in capsys.readouterr().out


def test_lines_of_a_file_are_queries() -> None:
    """Each is understood as it stands."""
    queries = list(read_queries(LINES.splitlines(), QueryDefaults()))

    assert len(queries) == len([line for line in LINES.splitlines() if json.loads(line)])
    assert not [query.error for query in queries if isinstance(query, BadQuery)]
