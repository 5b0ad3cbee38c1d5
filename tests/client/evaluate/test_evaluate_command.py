"""The command `alignserve evaluate`: what it reads, measures, writes and returns."""

from __future__ import annotations

import io
import json
import sys
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import numpy as np
import pytest
from alignserve import Client
from alignserve.cli import main
from alignserve.testing import FakeServer

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

Run = Callable[..., tuple[int, dict[str, Any], str]]
CAT, DOG, OX = np.eye(8)[:3]


@pytest.fixture
def run(server: FakeServer, capsys: pytest.CaptureFixture[str]) -> Run:
    """Evaluates a source; returns the exit code, the report and the complaints."""

    def evaluate(*arguments: object) -> tuple[int, dict[str, Any], str]:
        capsys.readouterr()
        code = main(["--server", server.target, "evaluate", *map(str, arguments), "--json"])
        captured = capsys.readouterr()
        return code, json.loads(captured.out or "{}"), captured.err

    return evaluate


@pytest.fixture
def picture(server: FakeServer) -> Callable[..., bytes]:
    """Makes images, each different, of which the server says that they show something."""
    count = 0

    def make(vector: np.ndarray) -> bytes:
        nonlocal count
        count += 1
        content = b"\xff\xd8\xff" + str(count).encode()
        server.set_embedding(content, vector)
        return content

    return make


@pytest.fixture
def words(server: FakeServer) -> None:
    """The server knows three words, and a sentence with each."""
    for word, vector in (("cat", CAT), ("dog", DOG), ("ox", OX)):
        for text in (word, f"a photo of a {word}.", f"{word} again"):
            server.set_embedding(text, vector)


def put(path: Path, content: bytes | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def tar(path: Path, members: Mapping[str, bytes | str]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as file:
        for name, content in members.items():
            data = content if isinstance(content, bytes) else content.encode()
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    return path


@pytest.fixture
def folders(tmp_path: Path, words: None, picture: Callable[..., bytes]) -> Path:
    """Three cats and a dog; a cat looks like a dog."""
    root = tmp_path / "animals"
    for number, vector in enumerate((CAT, CAT + 0.1 * DOG, DOG)):
        put(root / f"cat/{number}.jpg", picture(vector))
    put(root / "dog/0.jpg", picture(DOG))
    return root


def test_a_folder_for_each_class(run: Run, folders: Path) -> None:
    """Names of folders are classes; accuracy, mean per class, neighbours and calibration are reported."""
    code, report, _ = run(folders)

    assert code == 0
    found = report["classification"]
    assert (found["classes"], found["top_1"], found["top_5"]) == (2, 0.75, None)
    assert found["mean_per_class"] == pytest.approx((2 / 3 + 1) / 2)
    cats, dogs = found["by_class"]
    assert (cats["name"], cats["right"], cats["count"], cats["mistaken_for"]) == ("cat", 2, 3, "dog")
    assert (dogs["name"], dogs["right"], dogs["neighbour_right"]) == ("dog", 1, 0)
    assert report["neighbours"]["recall_at_1"] == 0.5
    assert report["calibration"]["accuracy"] == 0.75
    assert report["counts"]["images"] == 4
    assert report["dataset"]["task"] == "classification"


def test_classes_can_be_named_and_templates_given(run: Run, folders: Path, tmp_path: Path) -> None:
    """Synonyms and templates are averaged; a class without images is a label all the same."""
    classes = {"cat": ["cat", "cat again"], "dog": "dog", "cow": "ox"}
    names = put(tmp_path / "classes.json", json.dumps(classes))
    templates = put(tmp_path / "templates.txt", "a photo of a {c}.\n")

    code, report, _ = run(folders, "--classes", names, "--templates", templates)

    assert code == 0
    assert report["classification"]["classes"] == 3
    assert report["counts"]["texts"] == 4
    assert report["options"]["templates"] == ["a photo of a {label}."]


def test_names_in_order_follow_the_names_of_folders(run: Run, folders: Path, tmp_path: Path) -> None:
    """As ImageFolder of torchvision numbers classes. The wrong number of names is refused."""
    _, report, _ = run(folders, "--classes", put(tmp_path / "two.txt", "cat again\ndog again\n"))
    code, _, complaint = run(folders, "--classes", put(tmp_path / "one.txt", "cat\n"))

    assert [each["name"] for each in report["classification"]["by_class"]] == ["cat again", "dog again"]
    assert code == 4
    assert "1 names for 2 folders" in complaint


def test_failures_are_counted_and_named(run: Run, folders: Path, tmp_path: Path, server: FakeServer) -> None:
    """An image that cannot be decoded, an empty one and one outside the folders: the others are measured."""
    server.fail_input(put(folders / "cat/bad.jpg", "bad").read_bytes())
    put(folders / "cat/empty.jpg", "")
    put(folders / "stray.jpg", "stray")

    code, report, complaint = run(folders, "--to", tmp_path / "out")

    assert code == 1
    reasons = {"IMAGE_UNREADABLE": 1, "IMAGE_EMPTY": 1, "CLASS_MISSING": 1}
    assert report["counts"]["failed"] == reasons
    assert report["counts"]["images"] == 4
    assert "cat/bad.jpg: IMAGE_UNREADABLE" in complaint
    lines = (tmp_path / "out/failures.jsonl").read_text().splitlines()
    assert {json.loads(line)["key"] for line in lines} == {"cat/bad.jpg", "cat/empty.jpg", "stray.jpg"}


def test_files_are_written(run: Run, folders: Path, tmp_path: Path, server: FakeServer) -> None:
    """The report with its origin, each answer, and a diagram that a screen reader can read."""
    _, printed, _ = run(folders, "--to", tmp_path / "out")

    report = json.loads((tmp_path / "out/report.json").read_text())
    assert report == printed
    assert report["model"]["fingerprint"] == "fake-8"
    assert report["server"] == server.target
    answers = [json.loads(line) for line in (tmp_path / "out/answers.jsonl").read_text().splitlines()]
    assert answers[2]["key"] == "cat/2.jpg"
    assert (answers[2]["answer"], answers[2]["predicted"], answers[2]["right"]) == ("cat", "dog", False)
    svg = ET.fromstring((tmp_path / "out/reliability.svg").read_text())  # noqa: S314 — our own
    names = {"s": "http://www.w3.org/2000/svg"}
    assert svg.get("role") == "img"
    assert svg.findtext("s:title", namespaces=names) == "Reliability: fake on animals"
    assert "4 answers, 75.0% right" in str(svg.findtext("s:desc", namespaces=names))
    assert "prefers-color-scheme: dark" in str(svg.findtext("s:style", namespaces=names))


def test_reports_have_the_command_without_secrets(
    run: Run, folders: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Values of headers may be keys."""
    monkeypatch.setattr(
        sys, "argv", ["alignserve", "--header", "x-key=secret", "evaluate", "--header=a=b", "p q"]
    )

    _, report, _ = run(folders)

    assert report["command"] == "alignserve --header 'x-key=…' evaluate '--header=…' 'p q'"


def test_digest_is_of_the_data(run: Run, folders: Path, tmp_path: Path) -> None:
    """It is the same in another place, and another after a change of an image or a prompt."""
    _, before, _ = run(folders)
    folders.rename(tmp_path / "moved")
    _, moved, _ = run(tmp_path / "moved")
    _, prompted, _ = run(tmp_path / "moved", "--template", "a {label}")
    put(tmp_path / "moved/cat/0.jpg", "other")
    _, changed, _ = run(tmp_path / "moved")

    assert before["dataset"]["digest"] == moved["dataset"]["digest"]
    assert len({each["dataset"]["digest"] for each in (moved, prompted, changed)}) == 3


def test_neighbours_are_found_in_a_gallery(
    run: Run, folders: Path, tmp_path: Path, picture: Callable[..., bytes]
) -> None:
    """As ALIGN's figure for ImageNet: nearest training images of each validation image."""
    for name, vector in (("dog", DOG), ("cat", CAT), ("ox", OX)):
        put(tmp_path / f"train/{name}/1.jpg", picture(vector))

    _, report, _ = run(folders, "--gallery", tmp_path / "train")

    assert report["neighbours"]["searched"] == str(tmp_path / "train")
    assert report["neighbours"]["candidates"] == 3
    assert report["neighbours"]["recall_at_1"] == 0.75


def test_tables_with_a_column_of_classes(
    run: Run, tmp_path: Path, words: None, picture: Callable[..., bytes]
) -> None:
    """Parquet with images and numbers, as datasets of the hub have them, and a list of names."""
    rows = {
        "image": [{"bytes": picture(DOG), "path": None}, {"bytes": picture(CAT), "path": None}],
        "label": [1, 0],
    }
    pq.write_table(pa.table(rows), tmp_path / "test.parquet")
    names = put(tmp_path / "names.json", '["cat", "dog"]')

    code, report, _ = run(tmp_path / "test.parquet", "--class-column", "label", "--classes", names)

    assert code == 0
    assert report["classification"]["top_1"] == 1.0


def test_numbers_need_names(run: Run, tmp_path: Path, picture: Callable[..., bytes]) -> None:
    """A class 3 means nothing to a model. Without anything to measure, the command says why."""
    source = tar(tmp_path / "0.tar", {"s0.jpg": picture(CAT), "s0.cls": "3"})

    code, _, complaint = run(source)

    assert code == 4
    assert "CLASS_UNNAMED: its class is the number 3; name the classes with --classes" in complaint
    assert "no image could be embedded" in complaint


def test_sets_of_clip_benchmark(run: Run, tmp_path: Path, words: None, picture: Callable[..., bytes]) -> None:
    """Names and templates come with the tars; a number without a name fails."""
    root = tmp_path / "wds"
    put(root / "classnames.txt", "cat\ndog\nox\n")
    put(root / "zeroshot_classification_templates.txt", "a photo of a {c}.\n")
    put(root / "test/nshards.txt", "2\n")
    members: dict[str, bytes | str] = {"s0.jpg": picture(CAT), "s0.cls": "0"}
    tar(root / "test/0.tar", {**members, "s1.jpg": picture(DOG), "s1.cls": "1"})
    tar(root / "test/1.tar", {"s2.jpg": picture(OX), "s2.cls": "2", "s3.jpg": picture(OX), "s3.cls": "3"})

    code, report, complaint = run(root)

    assert code == 1
    assert report["classification"]["top_1"] == 1.0
    assert report["options"]["templates"] == ["a photo of a {label}."]
    assert report["counts"]["failed"] == {"CLASS_UNKNOWN": 1}
    assert "skipped" not in complaint


def test_retrieval_sets_of_clip_benchmark(
    run: Run, tmp_path: Path, words: None, picture: Callable[..., bytes]
) -> None:
    """A caption per line of the text."""
    put(tmp_path / "wds/dataset_type.txt", "retrieval\n")
    members: dict[str, bytes | str] = {"s0.jpg": picture(CAT), "s0.txt": "cat\ncat again"}
    tar(tmp_path / "wds/test/0.tar", {**members, "s1.jpg": picture(DOG), "s1.txt": "dog"})

    code, report, _ = run(tmp_path / "wds")

    assert code == 0
    assert report["retrieval"]["text_to_image"]["queries"] == 3
    assert report["retrieval"]["text_to_image"]["recall_at_1"] == 1.0
    assert report["retrieval"]["image_to_text"]["candidates"] == 3


def test_rows_with_the_same_image_are_one(
    run: Run, tmp_path: Path, words: None, picture: Callable[..., bytes], server: FakeServer
) -> None:
    """Flickr30k's CSV has a row for each caption; every image is sent once."""
    put(tmp_path / "1.jpg", picture(CAT))
    put(tmp_path / "2.jpg", picture(DOG))
    lines = ["image,caption", "1.jpg,cat", "1.jpg,cat again", "2.jpg,ox", "2.jpg,dog"]

    code, report, _ = run(put(tmp_path / "captions.csv", "\n".join(lines) + "\n"))

    assert code == 0
    assert (report["counts"]["images"], report["counts"]["texts"]) == (2, 4)
    assert report["retrieval"]["image_to_text"]["queries"] == 2
    assert report["retrieval"]["image_to_text"]["recall_at_1"] == 1.0
    assert report["retrieval"]["text_to_image"]["recall_at_1"] >= 0.75


def test_lists_of_captions(run: Run, tmp_path: Path, words: None, picture: Callable[..., bytes]) -> None:
    """In JSON Lines, and in Parquet under any name; the first N can be taken."""
    put(tmp_path / "1.jpg", picture(CAT))
    lines = put(tmp_path / "c.jsonl", '{"image": "1.jpg", "captions": ["cat", "cat again"]}\n')
    table = {"image": [picture(CAT)], "sentences": [["cat", "cat again", "dog"]]}
    pq.write_table(pa.table(table), tmp_path / "c.parquet")

    _, of_lines, _ = run(lines)
    _, of_parquet, _ = run(
        *(tmp_path / "c.parquet", "--captions-column", "sentences", "--captions-per-image", "2"),
        *("--task", "retrieval"),
    )

    assert of_lines["retrieval"]["text_to_image"]["queries"] == 2
    assert of_parquet["retrieval"]["text_to_image"]["queries"] == 2


def test_karpathys_splits(run: Run, tmp_path: Path, words: None, picture: Callable[..., bytes]) -> None:
    """The images of a split, in the folder that their entry names."""
    images = [
        {"filename": "1.jpg", "filepath": "val2014", "split": "test", "sentences": [{"raw": "cat"}]},
        {"filename": "2.jpg", "filepath": "val2014", "split": "test", "sentences": [{"raw": "dog"}]},
        {"filename": "3.jpg", "filepath": "val2014", "split": "train", "sentences": [{"raw": "ox"}]},
    ]
    source = put(tmp_path / "dataset_coco.json", json.dumps({"images": images, "dataset": "coco"}))
    put(tmp_path / "images/val2014/1.jpg", picture(CAT))
    put(tmp_path / "images/val2014/2.jpg", picture(DOG))

    code, report, _ = run(source, "--image-root", tmp_path / "images")
    refused, _, complaint = run(source, "--split", "val")

    assert code == 0
    assert report["retrieval"]["text_to_image"]["queries"] == 2
    assert refused == 4
    assert "choose one of test, train with --split" in complaint


def test_cocos_captions(run: Run, tmp_path: Path, words: None, picture: Callable[..., bytes]) -> None:
    """Captions name their images; those of an image that is missing are left out, and counted."""
    value = {
        "images": [{"id": 7, "file_name": "1.jpg"}, {"id": 8, "file_name": "gone.jpg"}],
        "annotations": [
            {"image_id": 7, "caption": "cat"},
            {"image_id": 8, "caption": "dog"},
            {"image_id": 7, "caption": "cat again"},
        ],
    }
    put(tmp_path / "1.jpg", picture(CAT))

    code, report, _ = run(put(tmp_path / "captions_val2017.json", json.dumps(value)))

    assert code == 1
    assert report["retrieval"]["text_to_image"]["queries"] == 2
    assert report["counts"]["failed"] == {"IMAGE_UNREADABLE": 1}
    assert report["counts"]["left_out"] == {"captions of images that failed": 1}


def question(**fields: Any) -> str:
    labels = {"image": "1.jpg", "labels": ["cat", "dog"], "answer": "cat"}
    return json.dumps({**labels, **fields}) + "\n"


def test_questions_by_kind(
    run: Run, tmp_path: Path, words: None, picture: Callable[..., bytes], client: Client
) -> None:
    """Each has its own labels; the scores are those of `Classify`, and each image is sent once."""
    put(tmp_path / "1.jpg", picture(CAT + 0.5 * DOG))
    lines = [
        question(kind="animals"),
        question(kind="animals", answer="dog", id="hard"),
        question(kind="names", labels=["ox", "cat"], templates=["a photo of a {label}."]),
    ]
    source = put(tmp_path / "questions.jsonl", "".join(lines))

    code, report, _ = run(source, "--to", tmp_path / "out")

    assert code == 0
    assert report["questions"]["accuracy"] == pytest.approx(2 / 3)
    animals, names = report["questions"]["by_kind"]
    assert (animals["name"], animals["right"], animals["count"]) == ("animals", 1, 2)
    assert animals["mistaken_for"] == "cat"
    assert (names["name"], names["accuracy"]) == ("names", 1.0)
    assert report["counts"]["images"] == 1
    first, hard, third = map(json.loads, (tmp_path / "out/answers.jsonl").read_text().splitlines())
    best = client.classify(tmp_path / "1.jpg", ["cat", "dog"])[0]
    assert first["score"] == pytest.approx(best.score, abs=1e-5)
    assert (hard["key"], hard["predicted"], hard["right"]) == ("hard", "cat", False)
    best = client.classify(tmp_path / "1.jpg", ["ox", "cat"], prompt_templates=["a photo of a {label}."])[0]
    assert third["score"] == pytest.approx(best.score, abs=1e-5)


@pytest.mark.parametrize(
    ("fields", "reason", "message"),
    [
        ({"answer": "ox"}, "QUESTION_INVALID", "the answer 'ox' is not one of the labels"),
        ({"labels": ["cat"]}, "QUESTION_INVALID", "a question needs two or more labels, not 1"),
        ({"labels": ["cat", "cat"]}, "QUESTION_INVALID", "'cat' comes twice"),
        ({"labels": "cat"}, "QUESTION_INVALID", "is not a list of texts"),
        ({"templates": ["photo"]}, "QUESTION_INVALID", "'photo' has no {label}"),
        ({"image": "gone.jpg"}, "IMAGE_UNREADABLE", "No such file or directory"),
    ],
)
def test_lines_that_are_not_questions_fail(
    run: Run,
    tmp_path: Path,
    words: None,
    picture: Callable[..., bytes],
    fields: dict[str, Any],
    reason: str,
    message: str,
) -> None:
    """They are named by their line, and the others are asked."""
    put(tmp_path / "1.jpg", picture(CAT))
    source = put(tmp_path / "questions.jsonl", question() + question(**fields))

    code, report, complaint = run(source)

    assert code == 1
    assert report["questions"]["accuracy"] == 1.0
    assert report["counts"]["failed"] == {reason: 1}
    assert "questions.jsonl:2" in complaint
    assert message in complaint


@pytest.mark.parametrize("fault", [{"labels": ["cat"]}, {"image": "gone.jpg"}])
def test_failures_have_the_id_of_the_question(
    run: Run, tmp_path: Path, words: None, picture: Callable[..., bytes], fault: dict[str, Any]
) -> None:
    """The name that the file gives a question is that of its failure too."""
    put(tmp_path / "1.jpg", picture(CAT))
    source = put(tmp_path / "questions.jsonl", question() + question(id="q2", **fault))

    run(source, "--to", tmp_path / "out")

    (line,) = (tmp_path / "out/failures.jsonl").read_text().splitlines()
    assert json.loads(line)["key"] == "q2"


def test_options_of_other_tasks_are_refused(
    run: Run, tmp_path: Path, picture: Callable[..., bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    """An option that would change nothing is a mistake of the caller."""
    put(tmp_path / "1.jpg", picture(CAT))
    source = put(tmp_path / "captions.csv", "image,text\n1.jpg,a cat\n")

    with pytest.raises(SystemExit) as exited:
        run(source, "--template", "a photo of a {label}.")

    assert exited.value.code == 2
    assert "--template is for classification and questions, not for retrieval" in capsys.readouterr().err


def test_an_output_that_is_not_a_folder_is_refused_first(
    run: Run, folders: Path, tmp_path: Path, server: FakeServer
) -> None:
    """Nothing is embedded for a report that could not be written."""
    code, _, complaint = run(folders, "--to", put(tmp_path / "file", ""))

    assert code == 4
    assert "file is not a folder" in complaint
    assert {call.method for call in server.received} <= {"GetModelInfo"}


def test_a_folder_has_the_files_of_one_run(run: Run, folders: Path, tmp_path: Path) -> None:
    """A report of retrieval does not lie next to the answers of a classification."""
    run(folders, "--to", tmp_path / "out")
    put(folders / "cat/0.txt", "a cat")

    run(folders, "--task", "retrieval", "--to", tmp_path / "out")

    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"report.json", "failures.jsonl"}


def test_people_read_tables(server: FakeServer, folders: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With the model, the figures, the calibration and the classes that are recognized worst."""
    code = main(["--server", server.target, "evaluate", str(folders)])

    out = capsys.readouterr().out
    assert code == 0
    assert out.startswith("fake (fake-8) on ")
    for line in ("zero-shot top-1", "kNN recall@1", "expected calibration error", "mistaken for"):
        assert line in out
    assert "the same, if perfectly calibrated" in out


def test_a_source_without_classes_is_refused(run: Run, tmp_path: Path, picture: Callable[..., bytes]) -> None:
    """The message says what to give instead."""
    put(tmp_path / "flat/1.jpg", picture(CAT))

    code, _, complaint = run(tmp_path / "flat")

    assert code == 4
    assert "give one with a folder for each class" in complaint


def test_a_server_that_is_away_is_reported(capsys: pytest.CaptureFixture[str], folders: Path) -> None:
    """The exit code says that trying again may help."""
    code = main(["--server", "127.0.0.1:1", "evaluate", str(folders)])

    assert code == 3
    assert "no server at 127.0.0.1:1" in capsys.readouterr().err
