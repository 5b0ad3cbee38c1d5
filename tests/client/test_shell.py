"""Mistakes of new users in the shell: typos, unsupported photos, meaningless labels."""

from __future__ import annotations

import io
import json
import os
import shutil
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from alignserve.cli import main
from alignserve.testing import FakeServer

HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(100)
AVIF = b"\0\0\0\x1cftypmif1\0\0\0\0mif1avifmiaf" + bytes(100)


@pytest.fixture
def run(server: FakeServer, capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs the command; returns its exit code, stdout and stderr."""

    def call(*arguments: object) -> tuple[int, str, str]:
        try:
            code = main(["--server", server.target, *map(str, arguments)])
        except SystemExit as ended:
            code = int(str(ended.code))
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


@pytest.fixture
def stdin(monkeypatch: pytest.MonkeyPatch) -> Any:
    def put(content: bytes) -> None:
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content)))

    return put


def labels_of(server: FakeServer) -> list[str]:
    return next(list(call.request.labels) for call in server.received if call.method == "Classify")


@pytest.mark.parametrize(
    "arguments",
    [
        ["{photo}", "--label", "cat", "dog"],
        ["{photo}", "--label", "cat", "--label", "dog"],
        ["--label", "cat", "dog", "--", "{photo}"],
        ["--label", "cat", "dog", "{photo}"],
        ["--label", "cat", "--label", "dog", "{photo}"],
    ],
)
def test_several_labels_may_follow_one_flag(
    server: FakeServer, run: Any, photo: Path, arguments: list[str]
) -> None:
    """Labels can follow one --label, and a file after them is the image."""
    code, _, _ = run("classify", *(word.format(photo=photo) for word in arguments))

    assert code == 0
    assert labels_of(server) == ["cat", "dog"]


def test_a_folder_after_labels_is_the_folder(
    server: FakeServer, run: Any, tmp_path: Path, photo: Path
) -> None:
    """`stream` also takes the paths after its labels."""
    shutil.copy(photo, tmp_path / "a.jpg")

    code, _, _ = run("stream", "--label", "cat", "dog", tmp_path)

    assert code == 0


def test_labels_named_like_folders_stay_labels(
    server: FakeServer, run: Any, tmp_path: Path, photo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A label is not taken for the folder of the same name."""
    (tmp_path / "dog").mkdir()
    monkeypatch.chdir(tmp_path)

    code, _, _ = run("classify", photo, "--label", "cat", "dog")

    assert code == 0
    assert labels_of(server) == ["cat", "dog"]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["classify", "--label", "cat", "dog"], "classify needs an IMAGE; put it before --label"),
        (["stream"], "stream needs a PATH\n"),
        (["classify", "{photo}", "--label", "cat", "{photo}"], "after --label is a file"),
        (["clasify", "{photo}"], "did you mean classify?"),
        (["classify", "{photo}", "--lable", "cat"], "unknown option --lable; did you mean --label?"),
        (["embed", "--tex", "cat"], "unknown option --tex; did you mean --text?"),
        (["--sever", "x", "info"], "unknown option --sever; did you mean --server?"),
        (["info", "--priority", "bulkk"], "did you mean bulk?"),
        (["bench", "--concurency", "1"], "did you mean --concurrency?"),
        (["classify", "-", "-", "--label", "cat"], "give it once"),
        (["classify", "-", "--labels-file", "-"], "give it once"),
        (["stream", "{photo}", "--resume"], "name it with --output"),
        (["embed", "-", "--resume", "--output", "x"], "has no name"),
        (["--server", "http://x/y", "info"], "has a path"),
        (["--server", "50051", "info"], "only a port"),
        (["--server", "http://x", "--tls", "info"], "turns TLS off"),
    ],
)
def test_a_wrong_command_line_suggests_a_correction(
    server: FakeServer, run: Any, photo: Path, arguments: list[str], told: str
) -> None:
    """The command exits with 2 before anything is sent."""
    code, _, err = run(*(word.format(photo=photo) for word in arguments))

    assert code == 2
    assert told in err
    assert server.received == []


def test_words_that_look_like_flags_are_values(run: Any, photo: Path) -> None:
    """Words that look like flags are values after -- or with blanks."""
    code, _, _ = run("embed", "--text", "--a b", "--json")

    assert code == 0


def test_several_images_are_classified(server: FakeServer, run: Any, photo: Path, tmp_path: Path) -> None:
    """Each image has a table under its name, or a JSON object; a failure affects only its image."""
    (tmp_path / "b.jpg").write_bytes(b"b")
    (tmp_path / "c.jpg").write_bytes(b"c")
    server.fail_input(b"c", message="no image")

    images = [photo, tmp_path / "b.jpg", tmp_path / "c.jpg", tmp_path / "nowhere.jpg"]
    code, out, err = run("classify", *images, "--label", "cat", "dog")
    code_json, data, _ = run("classify", *images, "--label", "cat", "dog", "--json")

    assert (code, code_json) == (1, 1)
    assert [block.splitlines()[0] for block in out.split("\n\n")] == [str(photo), str(tmp_path / "b.jpg")]
    assert f"{tmp_path / 'c.jpg'}: images[2].content: no image" in err
    assert "nowhere.jpg: cannot read the input" in err
    results = json.loads(data)["results"]
    assert [one["input"] for one in results] == [str(image) for image in images]
    assert ["error" in one for one in results] == [False, False, True, True]


@pytest.mark.parametrize(
    "arguments", [["classify", "-", "--label", "cat", "dog"], ["embed", "-"], ["stream", "-"]]
)
def test_an_image_comes_on_standard_input(
    server: FakeServer, run: Any, stdin: Any, arguments: list[str]
) -> None:
    """`curl … | alignserve classify -` reads the image from standard input."""
    stdin(b"piped")

    code, out, _ = run(*arguments, *(["--json"] if arguments[0] != "stream" else []))

    assert code == 0
    sent = [call.request for call in server.received if call.method in ("Classify", "StreamInfer")]
    assert b"piped" in sent[-1].SerializeToString()
    assert out


def test_nothing_on_standard_input_is_said(run: Any, stdin: Any) -> None:
    """Empty standard input, as from a failed command, is reported."""
    stdin(b"")

    code, _, err = run("classify", "-", "--label", "cat")

    assert code == 4
    assert "standard input is empty" in err


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (HEIC, "the file is HEIC; convert it: `heif-convert IN OUT.jpg`"),
        (AVIF, "the file is AVIF; convert it: `magick IN OUT.jpg`"),
        (b"II*\0" + bytes(100), "the file is TIFF"),
        (
            b"version https://git-lfs.github.com/spec/v1\n",
            "the file is a Git LFS pointer; run `git lfs pull`",
        ),
        (b"\xef\xbb\xbf<!DOCTYPE html><html>", "the file is a web page"),
        (b"<?xml version='1.0'?><svg xmlns='x'/>", "the file is SVG"),
        (b"%PDF-1.7", "the file is a PDF"),
        (b"/9j/4AAQSkZJRg==", "the file is text in base64"),
    ],
)
@pytest.mark.parametrize("command", ["classify", "embed", "classify two"])
def test_a_refused_file_is_named_by_its_type(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, content: bytes, told: str, command: str
) -> None:
    """A refused file is named by its actual type, with how to convert it, whatever its suffix."""
    path = tmp_path / "photo.jpg"
    path.write_bytes(content)
    paths = [str(path)] * (2 if command.endswith("two") else 1)
    labels = ["--label", "a", "b"] if command.startswith("classify") else []

    with FakeServer(checks_images=True) as server:
        main(["--server", server.target, command.split()[0], *paths, *labels])

    err = capsys.readouterr().err
    assert "image is not one of JPEG, PNG" in err
    assert told in err


def test_a_broken_image_is_not_called_something_else(
    capsys: pytest.CaptureFixture[str], server: FakeServer, tmp_path: Path
) -> None:
    """For a truncated JPEG, the error has only the server's message."""
    path = tmp_path / "photo.jpg"
    path.write_bytes(b"\xff\xd8\xff")
    server.fail_input(b"\xff\xd8\xff", message="image is broken or incomplete")

    main(["--server", server.target, "classify", str(path), "--label", "a", "b"])

    assert "the file is" not in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [[], ["{photo}"]])
def test_a_refusal_names_the_file(
    server: FakeServer, run: Any, photo: Path, tmp_path: Path, arguments: list[str]
) -> None:
    """Errors name the file instead of `images[0]`, for one image and for several."""
    bad = tmp_path / "cut.jpg"
    bad.write_bytes(b"\xff\xd8\xff")
    server.fail_input(bad.read_bytes(), message="image is broken or incomplete")

    _, _, err = run("classify", bad, *(word.format(photo=photo) for word in arguments), "--label", "a", "b")

    assert f"alignserve: {bad}: images[0]" in err


@pytest.mark.parametrize(
    ("content", "server_says", "told"),
    [
        (
            b"%PDF-1.7",
            "image is PDF, but this server reads JPEG; convert it to JPEG or PNG",
            "image is PDF, but this server reads JPEG; the file is a PDF; convert its page: `pdftoppm",
        ),
        (
            b"<!DOCTYPE html><html>",
            "image is HTML, a web page; send the image itself",
            "image is HTML, a web page; send the image itself [",
        ),
    ],
)
def test_advice_is_given_once(
    server: FakeServer, run: Any, tmp_path: Path, content: bytes, server_says: str, told: str
) -> None:
    """If server and client both have advice, the client's is shown."""
    path = tmp_path / "photo.jpg"
    path.write_bytes(content)
    server.fail_input(content, reason="IMAGE_UNREADABLE", message=server_says)

    _, _, err = run("classify", path, "--label", "a", "b")

    assert told in err


def test_a_folder_given_to_classify_is_called_one(run: Any, tmp_path: Path) -> None:
    """The error suggests the command that accepts folders."""
    code, _, err = run("classify", tmp_path, "--label", "a", "b")

    assert code == 4
    assert err == f"alignserve: {tmp_path} is a folder; use alignserve stream to process the images in it\n"


def test_a_folder_given_to_batch_is_not_sent_elsewhere(run: Any, tmp_path: Path) -> None:
    """It has no images to stream; the command needs a file."""
    code, _, err = run("batch", tmp_path, tmp_path / "out")

    assert (code, err) == (4, f"alignserve: {tmp_path} is a folder; give a file\n")


def test_labels_may_be_longer_than_names_of_files(run: Any, photo: Path) -> None:
    """They are looked up on the disk, since files may follow them by mistake."""
    code, out, _ = run("classify", "--label", "cat", "y" * 300, photo)

    assert code == 0
    assert "yyy" in out


def test_a_missing_key_names_the_option(capsys: pytest.CaptureFixture[str]) -> None:
    """The error names the command's options, besides the metadata for other clients."""
    with FakeServer(api_keys=["as_a"]) as server:
        code = main(["--server", server.target, "embed", "--text", "a", "--npy", os.devnull])

    assert code == 4
    assert "--api-key-file FILE or ALIGNSERVE_API_KEY" in capsys.readouterr().err


def test_skipped_files_are_reported(run: Any, tmp_path: Path, photo: Path) -> None:
    """Skipped files are counted by suffix, with advice for photos; hidden files are ignored."""
    shutil.copy(photo, tmp_path / "a.jpg")
    for name in ("b.HEIC", "c.heic", "d.tif", "notes.txt", ".DS_Store", "README"):
        (tmp_path / name).write_bytes(b"x")

    code, out, err = run("stream", tmp_path)

    assert (code, len(out.splitlines())) == (0, 1)
    assert (
        "skipped, since this server does not read them: 2 .heic, 1 .tif, 1 .txt, 1 without suffix; "
        "convert those that are images to JPEG"
    ) in err


def test_folders_of_photos_that_no_server_reads_are_explained(run: Any, tmp_path: Path) -> None:
    """If every file is skipped, the command fails and says so."""
    (tmp_path / "b.avif").write_bytes(b"x")

    code, out, err = run("stream", tmp_path)

    assert (code, out) == (4, "")
    assert "1 .avif" in err


def test_a_server_that_reads_a_format_gets_its_files(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Formats that the server supports, according to GetModelInfo, are sent."""
    (tmp_path / "b.heic").write_bytes(b"x")

    with FakeServer(image_formats=("JPEG", "HEIC")) as server:
        code = main(["--server", server.target, "stream", str(tmp_path)])

    assert code == 0
    assert "skipped" not in capsys.readouterr().err


@pytest.mark.parametrize("command", ["classify", "stream"])
def test_labels_that_are_the_same_to_the_model_are_named(
    server: FakeServer, run: Any, photo: Path, command: str
) -> None:
    """Labels that are equal to the model, which share one score, are warned about."""
    for label in ("cat", "Cat", " CAT"):
        server.set_embedding(label, np.arange(8) + 1)
    for label in ("🐱", "🐶"):
        server.set_embedding(label, np.arange(8)[::-1])

    code, _, err = run(command, photo, "--label", "cat", "Cat", " CAT", "dog", "dog", "🐱", "🐶", "house")

    assert code == 0
    assert "labels 'dog' and 'dog' are the same to the model and share their score" in err
    assert "labels 'cat' and 'Cat' and ' CAT' are the same" in err
    assert "labels '🐱' and '🐶' are the same" in err
    assert err.count("are the same") == 3


def test_labels_that_a_cased_model_tells_apart_are_not_named(run: Any, photo: Path) -> None:
    """Whether labels are equal is checked with the server, not guessed."""
    _, _, err = run("classify", photo, "--label", "us", "US")

    assert "are the same" not in err


def test_scores_that_say_nothing_are_warned_of(server: FakeServer, run: Any, photo: Path) -> None:
    """A single label, and labels of which none fits, are warned about: softmax always has a winner."""
    image = photo.read_bytes()
    server.set_embedding(image, [1] + [0] * 7)
    server.set_embedding("far", [0, 1] + [0] * 6)
    server.set_embedding("off", [0, 0, 1] + [0] * 5)
    server.set_embedding("near", [1, 1] + [0] * 6)

    single = run("classify", photo, "--label", "near")[2]
    none_fits = run("classify", photo, "--label", "far", "off")[2]
    fits = run("classify", photo, "--label", "far", "near")[2]
    several = run("classify", photo, photo, "--label", "far", "off")[2]
    many = run("stream", *[photo] * 5, "--label", "far", "off")[2]

    assert "the score of a single label is always 1" in single
    assert f"no label fits {photo}: " in none_fits
    assert "some label always wins" in none_fits
    assert fits == ""
    assert f"no label fits {photo}, {photo}: " in several
    assert f"no label fits 5 images ({photo}, {photo}, {photo} and 2 more): " in many


def test_health_says_whether_the_server_is_ready(server: FakeServer, run: Any) -> None:
    """`health` exits with 0 if the server is ready, otherwise with 3; --wait waits."""
    ready = run("health")
    waited = run("health", "--wait", 5)
    server.set_ready(False)
    loading = run("health")
    in_vain = run("health", "--wait", 0.1)
    server.stop()
    gone = run("health")

    assert (ready[0], ready[1]) == (0, f"{server.target} is ready\n")
    assert waited[0] == 0
    assert (loading[0], loading[1]) == (3, "")
    assert "is not ready" in loading[2]
    assert in_vain[0] == 3
    assert gone[0] == 3
    assert "connection refused" in gone[2]


def test_an_empty_key_of_the_environment_is_refused(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty ALIGNSERVE_API_KEY is an error, and nothing is sent."""
    monkeypatch.setenv("ALIGNSERVE_API_KEY", "")

    code, _, err = run("info")

    assert code == 4
    assert "ALIGNSERVE_API_KEY is empty" in err


def test_an_unauthenticated_call_is_refused(run: Any, server: FakeServer) -> None:
    """Errors include the server's advice."""
    server.fail_next(grpc.StatusCode.UNAUTHENTICATED, "KEY_MISSING", message="no API key")

    assert run("info")[0] == 4
