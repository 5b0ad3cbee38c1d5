"""The command: what it prints, where, and how it exits."""

from __future__ import annotations

import io
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent import futures
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from alignserve import __version__
from alignserve._cli import arguments
from alignserve._cli.progress import Progress
from alignserve.cli import main
from alignserve.testing import FakeServer
from alignserve.v1 import align_service_pb2 as pb


@pytest.fixture
def run(server: FakeServer, capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs the command; returns its exit code, stdout and stderr."""

    def call(*arguments: object) -> tuple[int, str, str]:
        code = main(["--server", server.target, *map(str, arguments)])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


@pytest.fixture
def folder(tmp_path: Path, photo: Path) -> Path:
    """A folder with two photos, one in a subfolder, and a file that does not have an image's suffix."""
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
    """Texts follow one --text or several; the vectors are exact."""
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
    """Rows are in input order, and the row of a failed input is NaN."""
    code, _, err = run("embed", "nowhere.jpg", photo, "--text", "a", "--npy", tmp_path / "out")

    rows = np.load(tmp_path / "out")
    assert code == 1
    assert (rows.shape, rows.dtype) == ((3, 8), np.float32)
    assert np.isnan(rows[0]).all()
    assert np.array_equal(rows[2], server.embedding_of("a"))
    assert "nowhere.jpg: cannot read the input" in err


@pytest.mark.parametrize(
    "command_line", ["embed {folder}/b.jpg {folder}/c.jpg {folder}/d.jpg", "stream {folder}"]
)
def test_results_are_saved_if_the_server_goes_away(
    server: FakeServer, run: Any, tmp_path: Path, command_line: str
) -> None:
    """Unanswered files are named one by one, have rows of NaN, and give exit code 1."""
    for name in ("b.jpg", "c.jpg", "d.jpg"):
        (tmp_path / name).write_bytes(name.encode())
    denied = grpc.StatusCode.PERMISSION_DENIED
    server.break_stream(1, denied, "KEY_REVOKED")
    server.break_stream(0, denied, "KEY_REVOKED", times=9)  # grpc.aio loses a status while it sends
    out = tmp_path / "out.npy"

    code, _, err = run(*command_line.format(folder=tmp_path).split(), "--npy", out)

    rows = np.load(out)
    assert code == 1
    assert np.array_equal(rows[0], server.embedding_of(b"b.jpg"))
    assert np.isnan(rows[1:]).all()
    assert [f"{name}: " in err for name in ("b.jpg", "c.jpg", "d.jpg")] == [False, True, True]


def test_embed_skips_unreadable_inputs_and_writes_the_rest(
    server: FakeServer, run: Any, tmp_path: Path
) -> None:
    """One bad file among many is a line on stderr, whether the server or the disk reports it."""
    files = [tmp_path / f"{number}.jpg" for number in range(50)]
    for file in files[:49]:
        file.write_bytes(file.name.encode())
    server.fail_input(b"7.jpg", message="no image")

    code, _, err = run("embed", *files, "--npy", tmp_path / "out.npy")

    rows = np.load(tmp_path / "out.npy")
    assert code == 1
    assert np.flatnonzero(np.isnan(rows).any(axis=1)).tolist() == [7, 49]
    assert err.count("\n") == 2


def test_embed_prints_vectors_and_similarities(run: Any, photo: Path) -> None:
    """With images and texts, a second table compares each image with each text."""
    code, out, _ = run("embed", photo, "--text", "a", "b")

    assert code == 0
    assert out.split("\n\n")[1].splitlines()[0].split() == ["cosine", "similarity", "a", "b"]


def test_stream_writes_a_line_for_every_image_of_a_folder(run: Any, folder: Path) -> None:
    """Folders are searched recursively; --ordered keeps the order of the names."""
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


@pytest.mark.parametrize("out", ["out.npy", "out.txt"])
def test_stream_npy_comes_with_the_names(
    server: FakeServer, run: Any, folder: Path, tmp_path: Path, out: str
) -> None:
    """Rows match the names in the text file."""
    code, _, _ = run("stream", folder, "--npy", tmp_path / out)

    names = (tmp_path / f"{out}.txt").read_text().splitlines()
    rows = np.load(tmp_path / out)
    assert code == 0
    for name, row in zip(names, rows, strict=True):
        assert np.array_equal(row, server.embedding_of(Path(name).read_bytes()))


def test_embed_has_no_limit_as_a_whole(server: FakeServer, monkeypatch: pytest.MonkeyPatch, run: Any) -> None:
    """--timeout-seconds applies to each request, not to all inputs together."""
    code, _, _ = run("embed", "--text", "a", "--timeout-seconds", 20)

    assert code == 0
    assert server.received[0].remaining_seconds is not None
    assert server.received[-1].remaining_seconds is None


def test_embed_takes_texts_from_a_file_or_stdin(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Texts of --text come first, then one per non-blank line of the file."""
    (tmp_path / "texts").write_text("b\n\n c d \n")
    monkeypatch.setattr("sys.stdin", io.StringIO("e\n"))

    _, from_file, _ = run("embed", "--text", "a", "--texts-file", tmp_path / "texts", "--json")
    _, from_stdin, _ = run("embed", "--texts-file", "-", "--json")

    assert [line["input"] for line in json.loads(from_file)["embeddings"]] == ["a", "b", "c d"]
    assert [line["input"] for line in json.loads(from_stdin)["embeddings"]] == ["e"]


@pytest.mark.parametrize(
    ("command", "out"),
    [
        (["embed", "--text", "a", "--npy", "OUT"], "out.npy"),
        (["stream", "FOLDER", "--npy", "OUT"], "out.npy"),
        (["stream", "FOLDER", "--output", "OUT"], "out.jsonl"),
    ],
    ids=["embed", "stream rows", "stream lines"],
)
def test_a_file_is_kept_until_the_server_has_answered(
    server: FakeServer, run: Any, folder: Path, command: list[str], out: str
) -> None:
    """An output file keeps its content if there is no server, and is replaced once it answers."""
    path = folder / out
    path.write_bytes(b"yesterday" * 1000)
    arguments = [{"OUT": str(path), "FOLDER": str(folder)}.get(word, word) for word in command]
    server.fail_next(grpc.StatusCode.PERMISSION_DENIED, "DENIED")

    refused, _, _ = run(*arguments)
    kept = path.read_bytes()
    done, _, _ = run(*arguments)

    assert (refused, done) == (4, 0)
    assert kept == b"yesterday" * 1000
    assert b"yesterday" not in path.read_bytes()


@pytest.mark.parametrize("option", ["--npy", "--output"])
def test_a_file_that_cannot_be_written_is_found_before_anything_is_sent(
    server: FakeServer, run: Any, folder: Path, option: str
) -> None:
    """A mistyped output folder is reported before the run."""
    code, _, err = run("stream", folder, option, folder / "nowhere" / "out")

    assert code == 4
    assert "No such file" in err
    assert server.received == []


def test_names_that_are_not_unicode_are_written_as_they_are(server: FakeServer, folder: Path) -> None:
    """File names with arbitrary bytes, which Linux allows, are written unchanged."""
    name = os.fsencode(folder) + b"/\xff.jpg"
    Path(os.fsdecode(name)).write_bytes(b"odd")

    subprocess.run(command(server, "stream", folder, "--npy", folder / "out"), check=True)
    subprocess.run(command(server, "stream", folder, "--output", folder / "lines"), check=True)
    done = subprocess.run(command(server, "stream", folder), stdout=subprocess.PIPE, check=True)

    assert name in (folder / "out.txt").read_bytes().splitlines()
    assert name in (folder / "lines").read_bytes()
    assert name in done.stdout


def test_a_terminal_without_unicode_gets_question_marks(server: FakeServer, photo: Path) -> None:
    """JSON is exact in ASCII; a table has question marks where a character is missing."""
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    embed = ["embed", photo, "--text", "Käse"]

    table = subprocess.run(command(server, *embed), env=environment, capture_output=True, check=True)
    data = subprocess.run(command(server, *embed, "--json"), env=environment, capture_output=True, check=True)

    assert b"K?se" in table.stdout
    assert json.loads(data.stdout)["embeddings"][1]["input"] == "Käse"


def test_a_closed_stdout_is_not_an_error(server: FakeServer, folder: Path) -> None:
    """A job that is started without a stdout still writes its files."""
    out = folder / "lines"
    script = shlex.join(command(server, "stream", folder, "--output", out)) + " >&- 2>&-"

    done = subprocess.run(["sh", "-c", script], check=False)

    assert done.returncode == 0
    assert len(out.read_text().splitlines()) == 2


def test_a_folder_with_an_images_name_is_not_an_image(run: Any, folder: Path) -> None:
    """A folder whose name ends like an image's is not an image."""
    (folder / "x.jpg").mkdir()

    code, out, _ = run("stream", folder)

    assert code == 0
    assert len(out.splitlines()) == 2


def test_embed_warns_of_texts_with_unknown_tokens(run: Any) -> None:
    """Each text with unknown tokens gets one warning with its counts; the output is unchanged."""
    code, out, err = run("embed", "--json", "--text", "a [UNK] b", "fine", "a [UNK] b", "[UNK]")

    assert code == 0
    assert len(json.loads(out)["embeddings"]) == 4
    consequence = "are unknown to the model's vocabulary; its embedding means little"
    assert err.splitlines() == [
        f"alignserve: 1 of 5 tokens of 'a [UNK] b' {consequence}",
        f"alignserve: 1 of 3 tokens of '[UNK]' {consequence}",
    ]


def test_warnings_of_unknown_tokens_are_few_and_short(run: Any) -> None:
    """With many such texts, five are named, shortened, and the rest are counted."""
    texts = [f"[UNK] {number} {'long ' * 20}" for number in range(50)]

    code, _, err = run("embed", "--text", *texts)

    assert code == 0
    assert len(err.splitlines()) == 6
    assert max(map(len, err.splitlines())) < 160
    assert err.endswith("alignserve: 45 more texts have unknown tokens\n")


@pytest.mark.parametrize("command", ["classify", "stream"])
def test_labels_with_unknown_tokens_are_warned_of(
    server: FakeServer, run: Any, photo: Path, command: str
) -> None:
    """Only labels with non-ASCII characters are checked with EmbedText, each once."""
    code, _, err = run(command, photo, "--label", "Katze", "--label", "[UNK] ü", "--label", "[UNK] ü")

    asked = [call.request.texts for call in server.received if call.method == "EmbedText"]
    assert code == 0
    assert asked == [["[UNK] ü"]]
    assert "1 of 4 tokens of '[UNK] ü' are unknown to the model's vocabulary; its scores mean little" in err


def test_a_key_for_only_classify_still_classifies(server: FakeServer, run: Any, photo: Path) -> None:
    """If the key does not permit EmbedText, labels are not checked."""
    server.fail_input("猫", grpc.StatusCode.PERMISSION_DENIED, "SCOPE_MISSING")

    code, out, err = run("classify", photo, "--label", "猫", "cat")

    assert code == 0
    assert "tokens" not in err
    assert "猫" in out


def test_a_priority_goes_with_every_call(server: FakeServer, run: Any) -> None:
    """--priority bulk is sent with every call."""
    code, _, _ = run("embed", "--priority", "bulk", "--text", "x")

    assert code == 0
    assert all(call.metadata["alignserve-priority"] == "bulk" for call in server.received)


@pytest.mark.parametrize("source", ["file", "environment"])
def test_an_api_key_goes_with_every_call(
    server: FakeServer, run: Any, source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The key comes from a file or the environment; on the command line, other users would see it."""
    options = []
    if source == "file":
        (tmp_path / "key").write_text("as_search_secret\n")
        options = ["--api-key-file", tmp_path / "key"]
    else:
        monkeypatch.setenv("ALIGNSERVE_API_KEY", "as_search_secret")

    code, _, _ = run(*options, "embed", "--text", "x")

    assert code == 0
    assert all(call.metadata["authorization"] == "Bearer as_search_secret" for call in server.received)


def test_a_certificate_needs_its_key(server: FakeServer, run: Any, tmp_path: Path) -> None:
    """A certificate without its key, or a key without its certificate, is a usage error."""
    with pytest.raises(SystemExit) as ended:
        run("--certificate-file", tmp_path / "c.pem", "embed", "--text", "x")

    assert ended.value.code == 2
    assert server.received == []


def test_headers_go_with_every_call(server: FakeServer, run: Any) -> None:
    """--header may be repeated, before and after the command, and its value may contain a =."""
    code, _, _ = run("--header", "a=1", "embed", "--text", "x", "--header", "Authorization=Bearer k=")

    assert code == 0
    assert all(call.metadata["a"] == "1" for call in server.received)
    assert all(call.metadata["authorization"] == "Bearer k=" for call in server.received)


@contextmanager
def encrypted_server() -> Iterator[tuple[str, Path]]:
    """Runs a TLS server; yields its port and the authority of its certificate."""
    folder = Path(__file__).parent / "tls"
    certificate = folder / "certificate.pem"
    info = pb.GetModelInfoResponse(model_id="encrypted").SerializeToString()
    handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
        "GetModelInfo": grpc.unary_unary_rpc_method_handler(lambda _, __: info)
    }
    pair = ((folder / "key.pem").read_bytes(), certificate.read_bytes())
    server = grpc.server(futures.ThreadPoolExecutor(2))
    server.add_generic_rpc_handlers(
        [grpc.method_handlers_generic_handler("alignserve.v1.AlignService", handlers)]
    )
    port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([pair]))
    server.start()
    try:
        yield f"127.0.0.1:{port}", certificate
    finally:
        server.stop(None).wait()


def test_connections_are_encrypted_on_request(capsys: pytest.CaptureFixture[str]) -> None:
    """--ca-file sets the trusted authority; with --tls only, a private authority is not trusted."""
    with encrypted_server() as (target, authority):
        trusted = main(["--server", target, "--ca-file", str(authority), "info"])
        out = capsys.readouterr().out
        untrusted = main(["--server", target, "--tls", "info"])

    assert (trusted, untrusted) == (0, 3)
    assert "encrypted" in out


def test_info_prints_facts_or_json(run: Any) -> None:
    """Both forms name the model."""
    _, table, _ = run("info")
    _, data, _ = run("info", "--json")

    assert table.splitlines()[0].split() == ["model_id", "fake"]
    assert json.loads(data)["embedding_dimension"] == 8


def test_the_server_comes_from_flag_or_environment(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The flag overrides the variable, and is accepted after the command too."""
    monkeypatch.setenv("ALIGNSERVE_SERVER", server.target)
    by_variable = main(["info"])
    monkeypatch.setenv("ALIGNSERVE_SERVER", "127.0.0.1:1")
    by_flag = main(["info", "--server", server.target])

    assert (by_variable, by_flag) == (0, 0)


def test_an_empty_variable_names_no_server(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """An empty variable counts as unset, as usual in shells."""
    monkeypatch.setenv("ALIGNSERVE_SERVER", "")

    args = arguments.parser().parse_args(["info"])

    assert args.server == "127.0.0.1:50051"


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
    """A busy server exits with 3, a refusal with 4, an internal error with 5, with a one-line message."""
    server.fail_next(code, reason, retry_delay_seconds=delay)

    exit_code, out, err = run("info")

    assert (exit_code, out) == (expected, "")
    assert err.startswith("alignserve: ")
    assert err.count("\n") == 1


def test_no_server_says_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    """The error names the address, and how to change it."""
    with FakeServer() as gone:
        target = gone.target

    code = main(["--server", target, "info"])

    assert code == 3
    assert f"no server at {target}" in capsys.readouterr().err


def test_a_missing_image_is_one_line_and_code_4(run: Any) -> None:
    """A mistyped file name gives no traceback."""
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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["embed"], "embed needs a FILE, --text or --texts-file"),
        (["embed", "--text", "a cat", "PHOTO"], "PHOTO' after --text is a file; put files before --text"),
        (["stream", "x.jpg", "--window", "abc"], "argument --window: 'abc' is not a whole number above 0"),
        (["info", "--timeout-seconds", "abc"], "argument --timeout-seconds: 'abc' is not a number above 0"),
        (["info", "--header", "abc"], "argument --header: 'abc' is not KEY=VALUE"),
    ],
)
def test_a_wrong_command_line_is_explained_with_the_commands_usage(
    photo: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    """The message is readable, and the usage above it is that of the command."""
    with pytest.raises(SystemExit):
        main([argument.replace("PHOTO", str(photo)) for argument in arguments])

    err = capsys.readouterr().err
    assert err.startswith(f"usage: alignserve {arguments[0]} [options]")
    assert message.replace("PHOTO", str(photo)) in err
    assert err.count("\n") == 2


def test_a_text_that_looks_like_a_file_is_a_text(run: Any) -> None:
    """After --text, only the name of an existing image is treated as a mistake."""
    code, out, _ = run("embed", "--text", "nowhere.jpg", "x" * 300 + ".jpg", "--json")

    assert code == 0
    assert len(json.loads(out)["embeddings"]) == 2


def test_the_command_runs_as_a_process(server: FakeServer) -> None:
    """The module is executable, and --version prints the package's version."""
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
    """Records the output."""

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
    """A thousand items in a second draw about ten bars, and the last bar is full."""
    now = iter(number / 1000 for number in range(10_000))
    terminal = Terminal(True)
    progress = Progress(1000, terminal, lambda: next(now))  # type: ignore[arg-type]

    for number in range(1000):
        progress.advance(failed=number == 3)

    assert 9 <= len(terminal.drawn) <= 12
    assert "█" * 30 in terminal.drawn[-1]
    assert "1 failed" in terminal.drawn[-1]


def test_progress_leaves_a_terminal_to_the_results() -> None:
    """If results go to the same terminal, no bars appear between them."""
    terminal = Terminal(True)
    progress = Progress(1, terminal, is_hidden=True)  # type: ignore[arg-type]

    progress.advance(failed=False)
    progress.finish()

    assert terminal.drawn == []


def test_no_bar_is_drawn_between_lines_on_a_terminal(
    run: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With stdout and stderr on one terminal, each result has its own line."""
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)

    _, _, err = run("stream", folder)

    assert "█" not in err


def test_progress_is_silent_elsewhere() -> None:
    """A log file gets no bars."""
    log = Terminal(False)
    progress = Progress(1, log)  # type: ignore[arg-type]

    progress.advance(failed=False)
    progress.finish()

    assert log.drawn == []
