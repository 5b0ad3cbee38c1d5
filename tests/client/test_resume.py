"""Interrupted runs continue where they stopped, without missing or duplicate lines."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from alignserve.cli import main
from alignserve.testing import FakeServer


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(10):
        (folder / f"{number}.jpg").write_bytes(f"photo {number}".encode())
    return folder


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out.jsonl"


def stream(server: FakeServer, photos: Path, out: Path, *more: str) -> int:
    return main(["--server", server.target, "stream", str(photos), "--ordered", "--output", str(out), *more])


def inputs(out: Path) -> Counter[str]:
    return Counter(json.loads(line)["input"] for line in out.read_text().splitlines())


def sent_images(server: FakeServer) -> list[bytes]:
    requests = [call.request for call in server.received if call.method == "StreamInfer"]
    return [request.embed_image.images[0].content for request in requests if request.HasField("embed_image")]


@pytest.mark.parametrize("cut", [0, 1, 30])
def test_a_run_goes_on_after_its_last_whole_line(
    server: FakeServer, photos: Path, out: Path, cut: int
) -> None:
    """An incomplete line is redone, each input has one line in the end, and no other input is sent again."""
    stream(server, photos, out)
    complete = out.read_bytes()
    lines = complete.splitlines(keepends=True)
    out.write_bytes(b"".join(lines[:4]) + (lines[4][:-cut] if cut else b""))
    server.received.clear()

    code = stream(server, photos, out, "--resume")

    assert code == 0
    assert out.read_bytes() == complete
    assert len(sent_images(server)) == 6 + 1  # the last finished input is compared


def test_the_same_input_twice_needs_two_lines(server: FakeServer, photos: Path, out: Path) -> None:
    """An input given twice needs two lines."""
    twice = [str(photos / "1.jpg")] * 2
    arguments = ["--server", server.target, "stream", *twice, "--output", str(out)]
    main(arguments)
    out.write_bytes(out.read_bytes().splitlines(keepends=True)[0])

    main([*arguments, "--resume"])

    assert inputs(out) == {twice[0]: 2}


def test_failed_inputs_are_sent_again(server: FakeServer, photos: Path, out: Path) -> None:
    """Lines of errors are replaced, so that the file has one line per input."""
    server.fail_input(b"photo 3", times=1)
    first = stream(server, photos, out)

    second = stream(server, photos, out, "--resume")

    assert (first, second) == (1, 0)
    assert set(inputs(out).values()) == {1}
    assert len(inputs(out)) == 10
    assert '"error"' not in out.read_text()


def test_a_run_that_is_complete_does_nothing(server: FakeServer, photos: Path, out: Path) -> None:
    """A complete file needs no request, and a missing file is created."""
    begun = stream(server, photos, out, "--resume")
    before = out.read_bytes()

    again = stream(server, photos, out, "--resume")

    assert (begun, again) == (0, 0)
    assert out.read_bytes() == before


def test_a_comparison_that_fails_is_not_taken_for_another_result(
    server: FakeServer, photos: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The error is reported as it is, and the file is kept for another attempt."""
    stream(server, photos, out)
    before = b"".join(out.read_bytes().splitlines(keepends=True)[:4])
    out.write_bytes(before)
    server.fail_input(b"photo 3", times=1)

    code = stream(server, photos, out, "--resume")

    message = capsys.readouterr().err
    assert code != 0
    assert "failure injected by the test" in message
    assert "different result" not in message
    assert out.read_bytes() == before


def test_lines_of_another_model_are_not_mixed_in(
    server: FakeServer, photos: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Embeddings of different models are not mixed; the file stays unchanged."""
    stream(server, photos, out)
    before = b"".join(out.read_bytes().splitlines(keepends=True)[:4]) + b'{"cut'
    out.write_bytes(before)
    server.set_embedding(b"photo 3", np.arange(8))

    code = stream(server, photos, out, "--resume")

    assert code == 4
    assert out.read_bytes() == before
    assert "has a different result now" in capsys.readouterr().err


def test_lines_for_other_labels_are_not_mixed_in(server: FakeServer, photos: Path, out: Path) -> None:
    """Embeddings and classifications are not mixed."""
    stream(server, photos, out, "--label", "cat", "dog")
    out.write_bytes(b"".join(out.read_bytes().splitlines(keepends=True)[:4]))

    assert stream(server, photos, out, "--label", "cat", "bird", "--resume") == 4
    assert stream(server, photos, out, "--resume") == 4
    assert stream(server, photos, out, "--label", "cat", "dog", "--resume") == 0
    assert len(inputs(out)) == 10


def test_other_files_are_not_changed(
    server: FakeServer, photos: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file that alignserve did not write is left unchanged."""
    out.write_text("my notes\n")

    code = stream(server, photos, out, "--resume")

    assert code == 4
    assert out.read_text() == "my notes\n"
    assert "line 1 of" in capsys.readouterr().err


def test_a_file_is_not_touched_before_the_server_answers(server: FakeServer, photos: Path, out: Path) -> None:
    """If the server cannot be reached, the file stays unchanged, including its incomplete line."""
    stream(server, photos, out)
    out.write_bytes(out.read_bytes()[:-5])
    before = out.read_bytes()
    server.fail_next(grpc.StatusCode.PERMISSION_DENIED, "DENIED")

    assert stream(server, photos, out, "--resume") == 4
    assert out.read_bytes() == before


def test_embed_resumes_files_and_texts(server: FakeServer, photos: Path, out: Path) -> None:
    """A text that looks like a file name is a different input."""
    file = str(photos / "1.jpg")
    arguments = [
        "--server",
        server.target,
        "embed",
        file,
        "--text",
        "a",
        "x/1.jpg",
        file + " ",
        "--output",
        str(out),
    ]
    main(arguments)
    complete = [json.loads(line) for line in out.read_text().splitlines()]
    out.write_bytes(out.read_bytes().splitlines(keepends=True)[0])

    code = main([*arguments, "--resume"])

    assert code == 0
    assert [json.loads(line) for line in out.read_text().splitlines()] == complete
    assert [line.get("kind", "image") for line in complete] == ["image", "text", "text", "text"]


def test_an_interrupted_run_says_how_to_go_on(server: FakeServer, photos: Path, out: Path) -> None:
    """An interrupted run says how to continue and how much is done."""
    for number in range(10, 400):
        (photos / f"{number}.jpg").write_bytes(f"photo {number}".encode())
    arguments = ["--server", server.target, "stream", str(photos), "--output", str(out)]
    with subprocess.Popen(
        [sys.executable, "-m", "alignserve.cli", *arguments], stderr=subprocess.PIPE, text=True
    ) as process:
        server.wait_for_received(2)
        server.hold()
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=20)

    assert process.returncode == 130
    assert re.match(r"alignserve: interrupted: \d+/400 in ", err)
    assert err.endswith("run the same command with --resume to do the rest\n")


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_a_killed_run_is_resumed(
    server: FakeServer, tmp_path: Path, photos: Path, out: Path, how: Any
) -> None:
    """A line that was cut at any byte is redone."""
    for number in range(10, 400):
        (photos / f"{number}.jpg").write_bytes(f"photo {number}".encode())
    arguments = ["--server", server.target, "stream", str(photos), "--output", str(out)]
    process = subprocess.Popen(
        [sys.executable, "-m", "alignserve.cli", *arguments], stderr=subprocess.DEVNULL
    )
    server.wait_for_received(150)
    process.send_signal(how)
    process.wait(20)

    code = main([*arguments, "--resume"])

    assert code == 0
    assert set(inputs(out).values()) == {1}
    assert len(inputs(out)) == 400
