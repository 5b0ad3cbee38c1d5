"""How a run of `embed-dataset` may end early, and that the next one completes it."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from alignserve.testing import FakeServer

from tests.client.datasets.jobs import rows_of

ROWS_PER_SHARD = 20

# Files can have 2 KiB; a write beyond is an error, as on a full disk, since the signal is ignored.
WITH_SMALL_FILES = ("bash", "-c", "trap '' XFSZ; ulimit -f 2; exec \"$@\"", "bash")

Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def rows() -> int:
    return 300


@pytest.fixture
def texts(tmp_path: Path, rows: int) -> Path:
    """A source in three files."""
    folder = tmp_path / "texts"
    folder.mkdir()
    for file in range(3):
        lines = (f"{row},text {row}\n" for row in range(file * rows // 3, (file + 1) * rows // 3))
        (folder / f"{file}.csv").write_text("number,text\n" + "".join(lines))
    return folder


@pytest.fixture
def start(server: FakeServer, texts: Path, tmp_path: Path) -> Iterator[Start]:
    """Starts the command in a process of its own."""
    started: list[subprocess.Popen[str]] = []

    def start_command(*args: str, before: Sequence[str] = ()) -> subprocess.Popen[str]:
        command = [
            sys.executable,
            "-m",
            "alignserve.cli",
            "embed-dataset",
            str(texts),
            "--to",
            str(tmp_path / "out"),
        ]
        command += ["--server", server.target, "--rows-per-shard", str(ROWS_PER_SHARD), "--columns", "number"]
        process = subprocess.Popen(
            [*before, *command, *args],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield start_command
    for process in started:
        process.kill()
        process.communicate()


def wait_for_records(folder: Path, count: int, process: subprocess.Popen[str]) -> None:
    """Waits until this many shards are committed, or the process has ended."""
    while len(list(folder.glob("records/*.json"))) < count and process.poll() is None:
        time.sleep(0.01)


def check_complete(folder: Path, rows: int, last_line: str) -> None:
    """Fails unless every row is in the output once, in order, and the account says so."""
    table = rows_of(folder)
    assert table["number"].to_pylist() == [str(row) for row in range(rows)]
    assert table["text"].to_pylist() == [f"text {row}" for row in range(rows)]
    assert len(set(table["key"].to_pylist())) == rows
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["state"] == "complete"
    assert (manifest["ledger"]["rows_in"], manifest["ledger"]["rows_out"]) == (rows, rows)
    assert last_line == f"{rows} rows in = {rows} out + 0 failed"


def texts_sent(server: FakeServer) -> Sequence[str]:
    return [
        call.request.embed_text.texts[0]
        for call in server.received
        if call.method == "StreamInfer" and call.request.HasField("embed_text")
    ]


@pytest.mark.parametrize(("kills", "rows"), [(1, 300), pytest.param(10, 3000, marks=pytest.mark.long)])
def test_a_killed_run_is_completed_by_the_next(
    start: Start, server: FakeServer, tmp_path: Path, kills: int, rows: int
) -> None:
    """However often: every row is there once, and only rows without a shard were sent again."""
    rng = random.Random(kills)
    folder = tmp_path / "out"
    for _ in range(kills):
        before = len(list(folder.glob("records/*.json")))
        process = start("--resume")
        wait_for_records(folder, before + 1, process)
        time.sleep(rng.uniform(0, 0.05))  # anywhere between two commits
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL

    out, _ = start("--resume").communicate()

    check_complete(folder, rows, out.splitlines()[-1])
    lost_per_kill = 3 * ROWS_PER_SHARD + 2 * 32 * 2  # rows of open shards, and in flight
    assert len(texts_sent(server)) <= rows + kills * lost_per_kill


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_stops_the_run_in_good_order(
    start: Start, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    """The finished shards are accounted for, and the advice is to resume."""
    process = start()
    wait_for_records(tmp_path / "out", 2, process)
    process.send_signal(number)
    out, err = process.communicate()

    assert process.returncode == code
    assert "--resume" in err.splitlines()[-1]
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    assert manifest["state"] == "incomplete"
    done = manifest["ledger"]["rows_in"]
    assert out.splitlines()[-1] == f"{done} rows in = {done} out + 0 failed"
    assert done == len(rows_of(tmp_path / "out"))


def test_a_second_run_on_the_same_output_is_refused(start: Start, tmp_path: Path, rows: int) -> None:
    """The first goes on undisturbed."""
    first = start()
    wait_for_records(tmp_path / "out", 1, first)
    first.send_signal(signal.SIGSTOP)
    second = start("--resume")
    _, err = second.communicate()
    first.send_signal(signal.SIGCONT)
    out, _ = first.communicate()

    assert second.returncode == 4
    assert f"is being written by process {first.pid}" in err
    check_complete(tmp_path / "out", rows, out.splitlines()[-1])


def test_a_full_disk_ends_the_run_and_fails_no_row(start: Start, tmp_path: Path, rows: int) -> None:
    """Once there is room again, the next run completes it."""
    full = start(before=WITH_SMALL_FILES)
    _, err = full.communicate()

    assert full.returncode == 4
    assert "File too large" in err
    assert "--resume" in err
    assert not list(tmp_path.glob("out/part-*"))

    out, _ = start("--resume").communicate()

    check_complete(tmp_path / "out", rows, out.splitlines()[-1])


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a file system")
def test_a_disk_without_space_keeps_the_shards_that_fit(start: Start, tmp_path: Path, rows: int) -> None:
    """They are not sent again."""
    folder = tmp_path / "out"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=100k", "tmpfs", str(folder)], check=False, capture_output=True
    )
    if mounted.returncode:
        pytest.skip("file systems cannot be mounted here")
    try:
        full = start()
        _, err = full.communicate()
        kept = len(list(folder.glob("records/*.json")))
        subprocess.run(["mount", "-o", "remount,size=20m", str(folder)], check=True)
        out, _ = start("--resume").communicate()

        assert full.returncode == 4
        assert "No space left on device" in err
        assert kept
        check_complete(folder, rows, out.splitlines()[-1])
    finally:
        subprocess.run(["umount", str(folder)], check=True)
