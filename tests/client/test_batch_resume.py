"""A batch that was interrupted goes on where it stopped: no request is lost, none has two answers."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import grpc
import pytest
from alignserve.testing import FakeServer

from tests.client.batches import answers, batch, line, sent, write

WINDOW = 8


@pytest.fixture
def requests(tmp_path: Path) -> Path:
    """Returns 40 requests of one to three texts; every tenth is refused."""
    path = tmp_path / "in.jsonl"
    write(path, *(_request(number) for number in range(40)))
    return path


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out.jsonl"


def _request(number: int) -> str:
    texts = [f"{number} {part}" for part in range(1 + number % 3)]
    return line(f"request {number}", input=" " if number % 10 == 9 else texts)


@pytest.mark.parametrize("cut", [0, 1, 30, 150])
def test_a_run_goes_on_after_its_last_whole_line(
    server: FakeServer, requests: Path, out: Path, cut: int
) -> None:
    """An incomplete line is removed, and nothing else is sent again."""
    batch(server, requests, out)
    complete = out.read_bytes()
    lines = complete.splitlines(keepends=True)
    out.write_bytes(b"".join(lines[:4]) + (lines[4][:cut]))
    server.received.clear()

    code = batch(server, requests, out, "--resume")

    assert code == 1
    assert out.read_bytes() == complete
    assert sent(server)[0] == "4 0"


def test_a_cut_is_found_in_both_files(server: FakeServer, requests: Path, out: Path, tmp_path: Path) -> None:
    """The requests behind it are answered again, in whichever file their answers were."""
    errors = tmp_path / "errors.jsonl"
    more = ("--error-file", str(errors))
    batch(server, requests, out, *more)
    complete = out.read_bytes(), errors.read_bytes()
    out.write_bytes(b"".join(complete[0].splitlines(keepends=True)[:15]))  # behind the 17th request

    batch(server, requests, out, *more, "--resume")

    assert (out.read_bytes(), errors.read_bytes()) == complete


def test_a_run_that_is_complete_sends_nothing(
    server: FakeServer, requests: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It needs no server, and gives the same account; a missing output is begun."""
    first = batch(server, requests, out, "--resume")
    account = capsys.readouterr().err.splitlines()[-1]
    before = out.read_bytes()
    server.received.clear()

    again = batch(server, requests, out, "--resume")

    assert (first, again) == (1, 1)
    assert out.read_bytes() == before
    assert server.received == []
    assert capsys.readouterr().err.splitlines()[-1] == account
    assert account == "alignserve: 40 requests = 36 answered + 4 failed (4 text_empty)"


def test_a_changed_input_is_refused(
    server: FakeServer, requests: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also if only the body of a request changed that has its answer."""
    batch(server, requests, out)
    out.write_bytes(b"".join(out.read_bytes().splitlines(keepends=True)[:4]))
    before = out.read_bytes()
    requests.write_text(requests.read_text().replace("1 1", "1 7"))

    assert batch(server, requests, out, "--resume") == 4
    assert "the input has changed" in capsys.readouterr().err
    assert out.read_bytes() == before


def test_another_model_is_refused(requests: Path, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Vectors of two models are not mixed."""
    with FakeServer(embedding_dimension=8) as server:
        batch(server, requests, out)
    out.write_bytes(b"".join(out.read_bytes().splitlines(keepends=True)[:4]))
    with FakeServer(embedding_dimension=16) as server:
        code = batch(server, requests, out, "--resume")

    assert code == 4
    assert "fake-8" in (message := capsys.readouterr().err)
    assert "fake-16" in message


def test_files_that_it_did_not_write_are_left_alone(
    server: FakeServer, requests: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nor is an error file added or left out in mid-run, since answers would be missing."""
    out.write_text("my notes\n")
    without_state = batch(server, requests, out, "--resume")
    message = capsys.readouterr().err
    out.unlink()
    batch(server, requests, out)
    out.write_bytes(out.read_bytes().splitlines(keepends=True)[0])

    with_errors = batch(server, requests, out, "--resume", "--error-file", str(out.with_name("errors")))

    assert (without_state, with_errors) == (4, 4)
    assert "was not written by `alignserve batch`" in message
    assert "without --error-file" in capsys.readouterr().err


def test_a_server_that_goes_away_fails_no_request(server: FakeServer, requests: Path, out: Path) -> None:
    """The answers so far are kept, and a later run does the rest."""
    server.break_stream(10, grpc.StatusCode.PERMISSION_DENIED, "DENIED")
    first = batch(server, requests, out)
    begun = answers(out)

    second = batch(server, requests, out, "--resume")

    assert (first, second) == (4, 1)
    assert 0 < len(begun) < 10
    assert answers(out)[: len(begun)] == begun
    assert [each["custom_id"] for each in answers(out)] == [f"request {number}" for number in range(40)]
    assert sum(each["response"]["status_code"] == 200 for each in answers(out)) == 36


def test_killed_runs_lose_nothing(server: FakeServer, tmp_path: Path, out: Path) -> None:
    """After `kill -9` at any time, each request has one answer, the same as in a run that was not killed."""
    requests = tmp_path / "in.jsonl"
    write(requests, *(_request(number) for number in range(2000)))
    errors, whole = tmp_path / "errors.jsonl", tmp_path / "whole.jsonl"
    more = ("--window", str(WINDOW), "--resume", "--error-file")
    batch(server, requests, whole, *more, str(tmp_path / "whole-errors.jsonl"))
    needed = len(sent(server))
    arguments = ["--server", server.target, "batch", str(requests), str(out), *more, str(errors)]
    server.received.clear()

    for kill in range(1, 6):
        process = subprocess.Popen(
            [sys.executable, "-m", "alignserve.cli", *arguments], stderr=subprocess.DEVNULL
        )
        server.wait_for_received(len(server.received) + 300 + kill, timeout_seconds=60.0)
        process.send_signal(signal.SIGKILL)
        process.wait(20)
    code = batch(server, requests, out, *more, str(errors))

    assert code == 1
    assert out.read_bytes() == whole.read_bytes()
    assert errors.read_bytes() == (tmp_path / "whole-errors.jsonl").read_bytes()
    assert len(answers(out)) + len(answers(errors)) == 2000
    # Inputs in flight are sent again: at most the window, and the first texts of a request.
    assert needed <= len(sent(server)) <= needed + 5 * (WINDOW + 3)
    assert json.loads(out.with_name("out.jsonl.state.json").read_text())["state"] == "complete"
