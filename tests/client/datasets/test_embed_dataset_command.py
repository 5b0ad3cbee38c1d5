"""The command `embed-dataset`: what it reads, writes, says and returns."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from alignserve import cli
from alignserve._cli import arguments, embedding_job
from alignserve._cli.job_progress import JobProgress
from alignserve.datasets.embedding import embed
from alignserve.testing import FakeServer

from tests.client.datasets.jobs import rows_of

Run = Callable[..., int]


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    file = tmp_path / "texts.csv"
    file.write_text("text,url\n" + "".join(f"text {row},u{row}\n" for row in range(30)))
    return file


@pytest.fixture
def run(server: FakeServer, tmp_path: Path) -> Run:
    """Runs the command into `out`, and returns its exit code."""

    def run_command(*args: str | Path, to: str = "out", target: str = server.target) -> int:
        return cli.main(["embed-dataset", *map(str, args), "--to", str(tmp_path / to), "--server", target])

    return run_command


def manifest_in(folder: Path) -> dict[str, Any]:
    manifest: dict[str, Any] = json.loads((folder / "manifest.json").read_text())
    return manifest


def test_the_last_line_is_the_account(run: Run, texts: Path, tmp_path: Path, capsys: Any) -> None:
    """The exit code says that every row has its embedding."""
    code = run(texts, "--columns", "url")

    assert code == 0
    assert capsys.readouterr().out.splitlines()[-1] == "30 rows in = 30 out + 0 failed"
    table = rows_of(tmp_path / "out")
    assert table.column_names == ["key", "text_embedding", "text", "url"]
    assert manifest_in(tmp_path / "out")["state"] == "complete"


@pytest.mark.parametrize("layout", ["parquet", "clip-retrieval"])
def test_the_output_may_have_any_name(
    run: Run, texts: Path, tmp_path: Path, capsys: Any, server: FakeServer, layout: str
) -> None:
    """One that is not UTF-8 too, of which the last line shows the bytes."""
    server.fail_input("text 3")
    name = os.fsdecode(b"out-\xff")

    code = run(texts, "--layout", layout, to=name)

    assert code == 1
    assert capsys.readouterr().out.rstrip().endswith(r"out-\xff/failures.jsonl")
    assert manifest_in(tmp_path / name)["ledger"]["rows_out"] == 29


def test_the_rows_are_bulk_work(run: Run, texts: Path, server: FakeServer) -> None:
    """Interactive callers of the server go first."""
    run(texts)
    first = server.received[-1]
    run(texts, "--priority", "interactive", to="other")
    second = server.received[-1]

    assert first.metadata["alignserve-priority"] == "bulk"
    assert "alignserve-priority" not in second.metadata


def test_failed_rows_are_counted_named_and_can_be_fed_back(
    run: Run, texts: Path, server: FakeServer, tmp_path: Path, capsys: Any
) -> None:
    """The second run embeds exactly those rows, with the same keys."""
    server.fail_input("text 3", reason="TEXT_TOO_LONG")
    server.fail_input("text 17", reason="TEXT_TOO_LONG")

    code = run(texts)
    last = capsys.readouterr().out.splitlines()[-1]
    server.reset()
    again = run(texts, "--only", tmp_path / "out/failures.jsonl", to="again")

    assert code == 1
    assert last.startswith("30 rows in = 28 out + 2 failed (2 TEXT_TOO_LONG); see ")
    assert again == 0
    assert rows_of(tmp_path / "again")["text"].to_pylist() == ["text 3", "text 17"]
    all_keys = {
        *rows_of(tmp_path / "out")["key"].to_pylist(),
        *rows_of(tmp_path / "again")["key"].to_pylist(),
    }
    assert len(all_keys) == 30


def test_keys_that_are_not_in_the_source_are_missed(run: Run, texts: Path, tmp_path: Path) -> None:
    """They belong to another source."""
    keys = tmp_path / "keys.jsonl"
    keys.write_text('{"key": "nowhere"}\n')

    code = run(texts, "--only", keys)

    assert code == 1
    assert "1 of the rows" in manifest_in(tmp_path / "out")["ledger"]["problems"][0]


def test_folders_of_images_and_what_is_skipped(
    run: Run, server: FakeServer, tmp_path: Path, capsys: Any
) -> None:
    """Upper-case suffixes are found, sidecar files are not rows, other kinds are said."""
    photos = tmp_path / "photos"
    (photos / "deep").mkdir(parents=True)
    for name in ("a.JPG", "deep/b.png", "._a.JPG", "c.heic", "notes.pdf"):
        (photos / name).write_bytes(name.encode())

    code = run(photos)

    assert code == 0
    assert rows_of(tmp_path / "out")["key"].to_pylist() == ["a.JPG", "deep/b.png"]
    said = capsys.readouterr()
    assert "1 .heic" in said.err
    assert "files skipped" in said.out


def test_a_tar_that_breaks_off_spoils_the_exit_code(run: Run, tmp_path: Path, capsys: Any) -> None:
    """It is named, and its whole part counts."""
    whole = tmp_path / "whole.tar"
    with tarfile.open(whole, "w") as tar:
        for number in range(5):
            file = tmp_path / f"{number}.txt"
            file.write_text(f"text {number} " * 100)
            tar.add(file, f"{number}.txt")
    broken = tmp_path / "broken.tar"
    broken.write_bytes(whole.read_bytes()[: 4 * 2048 - 700])

    code = run(broken, "--embed", "text")

    said = capsys.readouterr()
    assert code == 1
    assert str(broken) in said.err
    assert "1 source files break off" in said.out.splitlines()[-1]


def test_resume_does_the_rest_only(
    run: Run, texts: Path, server: FakeServer, tmp_path: Path, capsys: Any
) -> None:
    """And without --resume the folder is refused."""
    run(texts, "--rows-per-shard", "10")
    (tmp_path / "out/part-00000-00002.parquet").unlink()
    server.reset()

    refused = run(texts, "--rows-per-shard", "10")
    said = capsys.readouterr().err
    code = run(texts, "--rows-per-shard", "10", "--resume")

    assert (refused, code) == (4, 0)
    assert "--resume" in said
    assert len(rows_of(tmp_path / "out")) == 30
    assert (
        sum(call.method == "StreamInfer" and call.request.HasField("embed_text") for call in server.received)
        == 10
    )


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (["--dtype", "float16"], "dtype was float32"),
        (["--layout", "clip-retrieval"], "options.layout was parquet"),
        (["--rows-per-shard", "7"], "options.rows_per_shard was 10000"),
        (["--columns", "url"], "options.columns was"),
    ],
)
def test_resume_refuses_other_options(
    run: Run, texts: Path, change: list[str], named: str, capsys: Any
) -> None:
    """It says which."""
    run(texts)

    code = run(texts, *change, "--resume")

    assert code == 4
    assert named in capsys.readouterr().err


def test_resume_refuses_another_model(run: Run, texts: Path, capsys: Any) -> None:
    """Vectors of two models cannot be compared."""
    run(texts)

    with FakeServer(embedding_dimension=16) as other:
        code = run(texts, "--resume", target=other.target)

    assert code == 4
    assert "model.fingerprint was fake-8 and is now fake-16" in capsys.readouterr().err


def test_resume_refuses_a_changed_source(run: Run, texts: Path, capsys: Any) -> None:
    """It names the file."""
    run(texts)
    texts.write_text(texts.read_text().replace("text 3", "text x"))

    code = run(texts, "--resume")

    assert code == 4
    assert "source texts.csv has changed" in capsys.readouterr().err


def test_an_output_inside_the_source_is_refused(run: Run, tmp_path: Path, capsys: Any) -> None:
    """Through a link too."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out/a.jpg").write_bytes(b"a")
    (tmp_path / "link").symlink_to(tmp_path / "out")

    codes = [run(tmp_path / "out", to="out/vectors"), run(tmp_path / "link", to="out/vectors")]

    assert codes == [4, 4]
    assert "lies inside the source" in capsys.readouterr().err


def test_without_a_server_nothing_is_written(run: Run, texts: Path, tmp_path: Path) -> None:
    """The exit code says that trying again may help."""
    code = run(texts, target="127.0.0.1:1")

    assert code == 3
    assert not (tmp_path / "out").exists()


def test_several_servers_share_the_rows(run: Run, texts: Path, server: FakeServer, tmp_path: Path) -> None:
    """Given one by one, or in one list."""
    with FakeServer(embedding_dimension=8) as other:
        codes = [
            run(texts, "--server", other.target),
            run(texts, target=f"{server.target},{other.target}", to="list"),
        ]
        assert {call.method for call in other.received} == {"GetModelInfo", "StreamInfer"}

    assert codes == [0, 0]
    assert len(rows_of(tmp_path / "list")) == 30


def test_a_dry_run_only_counts(texts: Path, tmp_path: Path, capsys: Any) -> None:
    """It needs neither a server nor a folder."""
    texts.write_text(texts.read_text() + "too,many,cells\n")

    code = cli.main(["embed-dataset", str(texts), "--dry-run", "--server", "127.0.0.1:1"])

    assert code == 1
    assert capsys.readouterr().out.startswith("31 rows, 30 of them can be sent; not 1 ")


def test_the_embedded_kinds_must_be_in_the_source(run: Run, texts: Path, capsys: Any) -> None:
    """The message says how to name the column."""
    assert run(texts, "--embed", "image,text") == 4
    assert "--image-column" in capsys.readouterr().err


def test_a_row_without_a_text_fails(run: Run, tmp_path: Path) -> None:
    """A null in Parquet is not an empty text."""
    file = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"text": ["a", None, "c"]}), file)

    code = run(file)

    assert code == 1
    assert manifest_in(tmp_path / "out")["ledger"]["failed"] == {"ROW_EMPTY": 1}


def test_a_missing_extra_is_named(texts: Path, tmp_path: Path) -> None:
    """In one line, with the command that installs it."""
    program = (
        "import sys\n"
        "sys.modules['pyarrow'] = None\n"
        "from alignserve import cli\n"
        f"sys.exit(cli.main(['embed-dataset', {str(texts)!r}, '--to', 'x']))"
    )

    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)

    assert ended.returncode == 2
    assert ended.stderr == "alignserve: this command needs pyarrow; run: pip install 'alignserve[datasets]'\n"


def test_other_commands_do_not_import_pyarrow() -> None:
    """They start as fast as before, and need no extra."""
    program = (
        "import sys\nfrom alignserve import cli\ncli.arguments.parser()\nprint('pyarrow' in sys.modules)"
    )

    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert ended.stdout == "False\n"


class _Out:
    def __init__(self, *, terminal: bool) -> None:
        self.text = ""
        self._terminal = terminal

    def isatty(self) -> bool:
        return self._terminal

    def write(self, text: str) -> int:
        self.text += text
        return len(text)

    def flush(self) -> None:
        pass


def test_progress_off_a_terminal_is_a_line_now_and_then() -> None:
    """With rate, failures and the time left."""
    seconds = iter(range(0, 1000, 10))
    out = _Out(terminal=False)
    progress = JobProgress(out, files=1, total=100, clock=lambda: float(next(seconds)))  # type: ignore[arg-type]

    for row in range(3):
        progress.row(failed=row == 0)

    assert out.text == "3/100 rows, 0.1/s, 1 failed, ETA 0:21:33\n"


def test_progress_on_a_terminal_is_one_line() -> None:
    """It is redrawn; without a total the files give the time left."""
    seconds = iter(range(100))
    out = _Out(terminal=True)
    progress = JobProgress(out, files=4, clock=lambda: float(next(seconds)))  # type: ignore[arg-type]

    progress.file()
    progress.row(failed=False)
    progress.finish()

    assert out.text == "\r\x1b[K1 rows, 0.5/s, 0 failed, 1/4 files, ETA 0:00:06\r\x1b[K"


def test_paths_of_image_files_are_kept(run: Run, tmp_path: Path) -> None:
    """Absolute, so that a contact sheet finds the pictures; a name that is not UTF-8 is a URL."""
    photos = tmp_path / "photos"
    photos.mkdir()
    for name in (b"a.jpg", b"b\xff.jpg"):
        (photos / os.fsdecode(name)).write_bytes(name)

    code = run(photos)

    assert code == 0
    table = rows_of(tmp_path / "out")
    assert table.column_names == ["key", "image_embedding", "path"]
    assert table["path"].to_pylist() == [f"{photos}/a.jpg", f"file://{photos}/b%FF.jpg"]


def test_a_column_that_is_called_path_is_kept_beside_it(run: Run, tmp_path: Path) -> None:
    """It is renamed as others whose name is taken."""
    (tmp_path / "a.jpg").write_bytes(b"image")
    (tmp_path / "t.csv").write_text("image,path\na.jpg,kept\n")

    run(tmp_path / "t.csv", "--columns", "path")

    table = rows_of(tmp_path / "out")
    assert table["path"].to_pylist() == [str(tmp_path / "a.jpg")]
    assert table["source_path"].to_pylist() == ["kept"]


def test_a_server_that_stays_away_is_named_once(
    run: Run, texts: Path, server: FakeServer, capsys: Any
) -> None:
    """With what the connection said, and advice, in one sentence each."""
    server.break_stream(0, times=1000)

    code = run(texts, "--max-outage-seconds", "0.3")

    last = capsys.readouterr().err.splitlines()[-1]
    assert code == 3
    assert last.startswith("alignserve: no server has answered for 0.3 s; the last error is: ")
    assert "start alignserve-server" not in last


def test_a_source_that_changes_during_the_run_is_a_problem(
    texts: Path, server: FakeServer, tmp_path: Path, capsys: Any
) -> None:
    """Its rows may be of both versions, so the run is not a success."""
    args = arguments.parser().parse_args(
        ["embed-dataset", str(texts), "--to", str(tmp_path / "out"), "--server", server.target]
    )

    async def embed_and_change(*given: Any, **options: Any) -> None:
        await embed(*given, **options)
        with texts.open("a") as file:
            file.write("late,u30\n")

    code = embedding_job.run(args, embed_and_change)

    assert code == 1
    assert "source texts.csv has changed during the run" in capsys.readouterr().err
    assert len(manifest_in(tmp_path / "out")["ledger"]["problems"]) == 1


@pytest.mark.parametrize("source", ["out", "out/*"])
def test_an_output_can_be_a_source(run: Run, texts: Path, tmp_path: Path, source: str) -> None:
    """Of this command, or of `curate`: its account is not taken for rows of another kind."""
    run(texts)

    code = run(tmp_path / source, to="again")

    assert code == 0
    assert rows_of(tmp_path / "again")["text"].to_pylist() == rows_of(tmp_path / "out")["text"].to_pylist()
