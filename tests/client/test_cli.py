"""The command: what it prints, where, and how it exits."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from alignserve import __version__
from alignserve._progress import Progress
from alignserve.cli import main
from alignserve.testing import FakeServer


@pytest.fixture
def run(server: FakeServer, capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs the command; gives exit code, stdout and stderr."""

    def call(*arguments: object) -> tuple[int, str, str]:
        code = main(["--server", server.target, *map(str, arguments)])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


@pytest.fixture
def folder(tmp_path: Path, photo: Path) -> Path:
    """A folder with two photos, one of them deeper, and a file that is no image by its name."""
    (tmp_path / "deeper").mkdir()
    shutil.copy(photo, tmp_path / "b.jpg")
    (tmp_path / "deeper" / "a.PNG").write_bytes(b"another image")
    (tmp_path / "notes.txt").write_text("no image")
    return tmp_path


def command(server: FakeServer, *arguments: object) -> list[str]:
    return [sys.executable, "-m", "alignserve.cli", "--server", server.target, *map(str, arguments)]


def test_classify_json_is_what_scripts_expect(run: Any, photo: Path) -> None:
    """One object with one list, best label first, and four facts for each."""
    code, out, _ = run(
        "classify", photo, "--label", "cat", "--label", "dog", "--template", "a {label}", "--json"
    )

    found = json.loads(out)["classifications"]
    assert code == 0
    assert [set(one) for one in found] == [{"label", "score", "similarity", "logit"}] * 2
    assert found[0]["score"] >= found[1]["score"]


def test_classify_takes_labels_from_a_file(run: Any, photo: Path, tmp_path: Path) -> None:
    """Blank lines are left out, and `--top-k` cuts the list."""
    (tmp_path / "labels").write_text("cat\n\n dog \n")

    code, out, _ = run(
        "classify", photo, "--labels-file", tmp_path / "labels", "--label", "cup", "--top-k", 2, "--json"
    )

    assert code == 0
    assert len(json.loads(out)["classifications"]) == 2


def test_classify_prints_an_aligned_table(run: Any, photo: Path) -> None:
    """Without --json the columns line up under a header."""
    _, out, _ = run("classify", photo, "--label", "cat", "--label", "a much longer label")

    lines = out.splitlines()
    assert lines[0].split() == ["label", "score", "similarity", "logit"]
    assert len({len(line) for line in lines}) == 1


@pytest.mark.parametrize("texts", [["--text", "a", "--text", "b"], ["--text", "a", "b"]])
def test_embed_json_has_files_then_texts(server: FakeServer, run: Any, photo: Path, texts: list[str]) -> None:
    """Texts may be given after one --text or several; the vector is exact."""
    code, out, _ = run("embed", photo, *texts, "--json")

    reply = json.loads(out)
    lines = reply["embeddings"]
    assert (code, reply["model"]) == (0, "fake-8")
    assert [(line["input"], line["kind"]) for line in lines] == [
        (str(photo), "image"),
        ("a", "text"),
        ("b", "text"),
    ]
    assert np.array_equal(np.float32(lines[1]["values"]), server.embedding_of("a"))


def test_embed_npy_has_a_row_for_every_input(
    server: FakeServer, run: Any, photo: Path, tmp_path: Path
) -> None:
    """Rows follow the inputs, and that of a failed one is NaN."""
    code, _, err = run("embed", "nowhere.jpg", photo, "--text", "a", "--npy", tmp_path / "out")

    rows = np.load(tmp_path / "out")
    assert code == 1
    assert (rows.shape, rows.dtype) == ((3, 8), np.float32)
    assert np.isnan(rows[0]).all()
    assert np.array_equal(rows[2], server.embedding_of("a"))
    assert "nowhere.jpg: cannot read the input" in err


def test_embed_prints_vectors_and_similarities(run: Any, photo: Path) -> None:
    """With images and texts there is a second table, of each against each."""
    code, out, _ = run("embed", photo, "--text", "a", "b")

    assert code == 0
    assert out.split("\n\n")[1].splitlines()[0].split() == ["cosine", "similarity", "a", "b"]


def test_stream_writes_a_line_for_every_image_of_a_folder(run: Any, folder: Path) -> None:
    """Folders are walked to the bottom; --ordered keeps the order of the names."""
    code, out, err = run("stream", folder, "--ordered")

    lines = [json.loads(line) for line in out.splitlines()]
    assert code == 0
    assert [Path(line["input"]).name for line in lines] == ["b.jpg", "a.PNG"]
    assert all(len(line["embedding"]) == 8 for line in lines)
    assert "2/2 in" in err


def test_stream_classifies_if_there_are_labels(run: Any, folder: Path, tmp_path: Path) -> None:
    """With labels a line has classifications; --output writes to a file."""
    code, out, _ = run("stream", folder, "--label", "cat", "--output", tmp_path / "out.jsonl")

    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert (code, out) == (0, "")
    assert [line["classifications"][0]["label"] for line in lines] == ["cat", "cat"]


def test_stream_reports_failures_in_their_lines(server: FakeServer, run: Any, folder: Path) -> None:
    """A bad image costs its own line, and exit code 1."""
    server.fail_input(b"another image", reason="IMAGE_UNREADABLE", message="no image")

    code, out, err = run("stream", folder, "--ordered")

    error = json.loads(out.splitlines()[1])["error"]
    assert code == 1
    assert (error["code"], error["reason"]) == ("INVALID_ARGUMENT", "IMAGE_UNREADABLE")
    assert "1 failed" in err


def test_stream_npy_comes_with_the_names(server: FakeServer, run: Any, folder: Path, tmp_path: Path) -> None:
    """Rows are those of the names in the text file beside it."""
    code, _, _ = run("stream", folder, "--npy", tmp_path / "out.npy")

    names = (tmp_path / "out.txt").read_text().splitlines()
    rows = np.load(tmp_path / "out.npy")
    assert code == 0
    for name, row in zip(names, rows, strict=True):
        assert np.array_equal(row, server.embedding_of(Path(name).read_bytes()))


def test_info_prints_facts_or_json(run: Any) -> None:
    """Both forms name the model."""
    _, table, _ = run("info")
    _, data, _ = run("info", "--json")

    assert table.splitlines()[0].split() == ["model_id", "fake"]
    assert json.loads(data)["embedding_dimension"] == 8


def test_the_server_comes_from_flag_or_environment(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The flag wins over the variable, and may stand after the command too."""
    monkeypatch.setenv("ALIGNSERVE_SERVER", server.target)
    by_variable = main(["info"])
    monkeypatch.setenv("ALIGNSERVE_SERVER", "127.0.0.1:1")
    by_flag = main(["info", "--server", server.target])

    assert (by_variable, by_flag) == (0, 0)


@pytest.mark.parametrize(
    ("code", "reason", "delay", "expected"),
    [
        (grpc.StatusCode.INVALID_ARGUMENT, "TEXT_EMPTY", None, 4),
        (grpc.StatusCode.UNAUTHENTICATED, "KEY_MISSING", None, 4),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, "", None, 4),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, "QUEUE_FULL", 60.0, 3),
        (grpc.StatusCode.DEADLINE_EXCEEDED, "", None, 3),
        (grpc.StatusCode.INTERNAL, "INFERENCE_FAILED", None, 5),
        (grpc.StatusCode.UNIMPLEMENTED, "", None, 5),
    ],
)
def test_exit_codes_tell_whether_to_try_again(
    server: FakeServer, run: Any, code: grpc.StatusCode, reason: str, delay: float | None, expected: int
) -> None:
    """Busy is 3, refused is 4, broken is 5, and the message is one line."""
    server.fail_next(code, reason, retry_delay_seconds=delay)

    exit_code, out, err = run("info")

    assert (exit_code, out) == (expected, "")
    assert err.startswith("alignserve: ")
    assert err.count("\n") == 1


def test_no_server_says_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    """The address is named, and how to give another one."""
    with FakeServer() as gone:
        target = gone.target

    code = main(["--server", target, "info"])

    assert code == 3
    assert f"no server at {target}" in capsys.readouterr().err


def test_a_missing_image_is_one_line_and_code_4(run: Any) -> None:
    """No traceback for a mistyped name."""
    code, _, err = run("classify", "nowhere.jpg", "--label", "cat")

    assert code == 4
    assert "No such file" in err
    assert "Traceback" not in err


def test_waiting_lets_a_starting_server_come_up(server: FakeServer, run: Any) -> None:
    """--wait-seconds passes at once when the server is ready, and fails with 3 when it never is."""
    ready, _, _ = run("info", "--wait-seconds", 5)
    server.set_ready(False)
    never, _, err = run("info", "--wait-seconds", 0.1)

    assert (ready, never) == (0, 3)
    assert "no ready server" in err


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["embed"],
        ["classify", "x.jpg"],
        ["stream", "FOLDER"],
        ["stream", "x.jpg", "--npy", "o", "--label", "a"],
        ["info", "--timeout-seconds", "0"],
        ["stream", "x.jpg", "--window", "0"],
    ],
    ids=["no command", "no input", "no labels", "no images", "npy of labels", "no time", "no window"],
)
def test_a_wrong_command_line_exits_with_2(arguments: list[str], tmp_path: Path) -> None:
    """Mistakes in the command line are argparse's code 2, before anything is sent."""
    with pytest.raises(SystemExit) as caught:
        main([argument.replace("FOLDER", str(tmp_path)) for argument in arguments])

    assert caught.value.code == 2


def test_the_command_runs_as_a_process(server: FakeServer) -> None:
    """The module is executable, and --version is that of the package."""
    done = subprocess.run(command(server, "--version"), capture_output=True, text=True, check=True)

    assert done.stdout == f"alignserve {__version__}\n"


def test_interrupting_exits_with_130(server: FakeServer) -> None:
    """Ctrl-C while waiting for an answer ends the command without a traceback."""
    server.hold()
    process = subprocess.Popen(command(server, "info"), stderr=subprocess.PIPE, text=True)
    server.wait_for_received(1)

    process.send_signal(signal.SIGINT)

    _, err = process.communicate(timeout=20)
    assert (process.returncode, err) == (130, "")


def test_a_reader_that_leaves_ends_the_command_quietly(server: FakeServer) -> None:
    """`alignserve … | head -0` does not end in a traceback."""
    server.hold()
    process = subprocess.Popen(
        command(server, "info"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    server.wait_for_received(1)
    assert process.stdout is not None
    assert process.stderr is not None

    process.stdout.close()
    server.release()

    with process.stderr as stderr:
        err = stderr.read()
    assert (process.wait(20), err) == (141, "")


class Terminal:
    """Takes what is drawn."""

    def __init__(self, is_terminal: bool) -> None:
        self.is_terminal = is_terminal
        self.drawn: list[str] = []

    def isatty(self) -> bool:
        return self.is_terminal

    def write(self, text: str) -> int:
        self.drawn.append(text)
        return len(text)

    def flush(self) -> None:
        pass


def test_progress_is_drawn_on_a_terminal_ten_times_a_second() -> None:
    """A thousand items in a second draw about ten bars, and the last one is full."""
    now = iter(number / 1000 for number in range(10_000))
    terminal = Terminal(True)
    progress = Progress(1000, terminal, lambda: next(now))  # type: ignore[arg-type]

    for number in range(1000):
        progress.advance(failed=number == 3)

    assert 9 <= len(terminal.drawn) <= 12
    assert "█" * 30 in terminal.drawn[-1]
    assert "1 failed" in terminal.drawn[-1]


def test_progress_is_silent_elsewhere() -> None:
    """A log file gets no bars."""
    log = Terminal(False)
    progress = Progress(1, log)  # type: ignore[arg-type]

    progress.advance(failed=False)
    progress.finish()

    assert log.drawn == []
