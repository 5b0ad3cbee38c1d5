"""The photographs of the recipe: fetched by pin, verified, resumed; and the lists that name them."""

import hashlib
import json
import struct
import subprocess
from pathlib import Path
from typing import Any

import pytest

from server.recipes.mini import photos

RECIPE = Path(photos.__file__).parent
SHARE_ALIKE = {"AGPL-3.0", "CC-BY-SA-3.0", "GPL-3+"}


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _git(folder: Path, *command: str) -> str:
    who = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false")
    return subprocess.run(
        ["git", *who, *command], cwd=folder, check=True, capture_output=True, text=True
    ).stdout


@pytest.fixture
def mirror(tmp_path: Path) -> Path:
    """A folder of repositories with one, whose newest commit no longer has the photographs."""
    repository = tmp_path / "mirror/somebody+pictures/repo"
    (repository / "in a [folder]").mkdir(parents=True)
    (repository / "a.jpg").write_bytes(b"a picture")
    (repository / "in a [folder]/b.jpg").write_bytes(b"another")
    (repository / "code.py").write_bytes(b"raise SystemExit")
    _git(repository, "init", "--quiet")
    _git(repository, "add", ".")
    _git(repository, "commit", "--quiet", "-m", "add")
    return tmp_path / "mirror"


@pytest.fixture
def source(mirror: Path) -> photos.Source:
    repository = mirror / "somebody+pictures/repo"
    pin = _git(repository, "rev-parse", "HEAD").strip()
    _git(repository, "rm", "--quiet", "-r", ".")
    _git(repository, "commit", "--quiet", "-m", "remove")
    files = {"a.jpg": _digest(b"a picture"), "in a [folder]/b.jpg": _digest(b"another")}
    return photos.Source("shelf", "github", "somebody/pictures", pin, "", "", files)


def test_brings_the_listed_files_of_the_pinned_commit_only(
    source: photos.Source, mirror: Path, tmp_path: Path
) -> None:
    assert photos.bring(source, tmp_path / "out", mirror) == []
    found = {path.relative_to(tmp_path / "out") for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert found == {Path("shelf/a.jpg"), Path("shelf/in a [folder]/b.jpg")}
    assert not (mirror / "somebody+pictures/repo/a.jpg").exists()


def test_the_folder_may_be_relative(
    source: photos.Source, mirror: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The recipe's default is."""
    monkeypatch.chdir(tmp_path)

    assert photos.bring(source, Path("out"), Path("mirror")) == []
    assert (tmp_path / "out/shelf/a.jpg").exists()


def test_a_filled_folder_needs_no_source(source: photos.Source, mirror: Path, tmp_path: Path) -> None:
    photos.bring(source, tmp_path / "out", mirror)
    assert photos.bring(source, tmp_path / "out", tmp_path / "nowhere") == []


def test_a_damaged_file_is_fetched_again(source: photos.Source, mirror: Path, tmp_path: Path) -> None:
    photos.bring(source, tmp_path / "out", mirror)
    (tmp_path / "out/shelf/a.jpg").write_bytes(b"half a pic")
    assert photos.missing(source, tmp_path / "out") == ["a.jpg"]
    assert photos.bring(source, tmp_path / "out", mirror) == []


def test_a_file_that_differs_from_the_list_is_not_kept(
    source: photos.Source, mirror: Path, tmp_path: Path
) -> None:
    source.files["a.jpg"] = _digest(b"the listed picture")
    assert photos.bring(source, tmp_path / "out", mirror) == ["a.jpg"]
    assert not (tmp_path / "out/shelf/a.jpg").exists()


def test_the_command_names_what_is_missing_and_fails(
    source: photos.Source, mirror: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pictures = [{"path": path, "sha256": digest} for path, digest in source.files.items()]
    pictures[0]["sha256"] = _digest(b"the listed picture")
    listed = {
        "id": "shelf",
        "kind": "github",
        "name": source.name,
        "commit": source.pin,
        "pictures": pictures,
    }
    (tmp_path / "list.json").write_text(json.dumps({"sources": [listed]}))
    arguments = [str(tmp_path / "out"), "--mirror", str(mirror), "--sources", str(tmp_path / "list.json")]
    assert photos.main(arguments) == 1
    told = capsys.readouterr()
    assert "1/1 shelf: 1 of 2 photographs" in told.out
    assert "missing: a.jpg" in told.err


def test_reads_a_resource_archive_of_qt() -> None:
    names = b"".join(
        struct.pack(">HI", len(name), 0) + name.encode("utf-16-be") for name in ("cow", "x.webp")
    )
    content = struct.pack(">I", 3) + b"moo"
    nodes = [(0, 2, 1, 1), (0, 2, 1, 2), (12, 0, 0, 0)]  # root -> cow -> x.webp
    tree = b"".join(struct.pack(">IHII", *node) for node in nodes)
    start = 20
    header = b"qres" + struct.pack(">IIII", 1, start, start + len(tree), start + len(tree) + len(content))
    assert dict(photos.resources(header + tree + content + names)) == {"cow/x.webp": b"moo"}


@pytest.fixture(scope="module")
def listed() -> list[dict[str, Any]]:
    sources: list[dict[str, Any]] = json.loads((RECIPE / "sources.json").read_text("utf-8"))["sources"]
    return sources


@pytest.fixture(scope="module")
def questions() -> list[dict[str, Any]]:
    return [json.loads(line) for line in (RECIPE / "questions.jsonl").read_text("utf-8").splitlines()]


def test_no_photograph_is_listed_twice(listed: list[dict[str, Any]]) -> None:
    digests = [picture["sha256"] for source in listed for picture in source["pictures"]]
    assert len(digests) == len(set(digests))


def test_what_may_only_be_measured_with_does_not_train(listed: list[dict[str, Any]]) -> None:
    for source in listed:
        for picture in source["pictures"]:
            licence = picture.get("licence", source["licence"])
            if licence in SHARE_ALIKE or source.get("measure_only"):
                assert picture["split"] == "held-out", (source["id"], picture["path"])


def test_no_photograph_of_the_tests_is_learnt_from(listed: list[dict[str, Any]]) -> None:
    tested = {_digest(path.read_bytes()) for path in Path("tests/data/photos").iterdir()}
    assert tested.isdisjoint(picture["sha256"] for source in listed for picture in source["pictures"])


def test_questions_are_of_held_out_photographs_and_have_their_answer(
    listed: list[dict[str, Any]], questions: list[dict[str, Any]]
) -> None:
    held = {
        f"{source['id']}/{picture['path']}"
        for source in listed
        for picture in source["pictures"]
        if picture["split"] == "held-out"
    }
    for question in questions:
        assert question["image"] in held
        assert question["answer"] in question["labels"]
        assert len(set(question["labels"])) == len(question["labels"])


def test_every_kind_has_ten_questions(questions: list[dict[str, Any]]) -> None:
    kinds = [question["kind"] for question in questions]
    assert len(kinds) >= 150
    assert min(kinds.count(kind) for kind in kinds) >= 10
