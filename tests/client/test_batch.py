"""`alignserve batch`: a file of requests in OpenAI's batch form, answered line by line."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from alignserve._batch import source
from alignserve._batch.output import Outputs
from alignserve._batch.uniqueness import RepeatedIds
from alignserve.testing import FakeServer

from tests.client.batches import answers, batch, error_of, line, sent, write

PICTURE = b"a picture"
URI = f"data:image/png;base64,{base64.b64encode(PICTURE).decode()}"


@pytest.fixture
def requests(tmp_path: Path) -> Path:
    return tmp_path / "in.jsonl"


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out.jsonl"


def test_answers_have_the_documented_form(server: FakeServer, requests: Path, out: Path) -> None:
    """The fields are those of OpenAI's guide to batches, and the body is that of `POST /v1/embeddings`."""
    write(requests, line("one", model="fake", input=["a cat", URI], encoding_format="float"))

    code = batch(server, requests, out)

    (answer,) = answers(out)
    response = answer["response"]
    assert code == 0
    assert list(answer) == ["id", "custom_id", "response", "error"]
    assert answer["id"].startswith("batch_req_")
    assert (answer["custom_id"], answer["error"]) == ("one", None)
    assert list(response) == ["status_code", "request_id", "body"]
    assert response["status_code"] == 200
    assert response["request_id"].startswith("req_")
    assert list(response["body"]) == ["object", "data", "model", "usage"]
    assert [(each["object"], each["index"]) for each in response["body"]["data"]] == [
        ("embedding", 0),
        ("embedding", 1),
    ]
    assert response["body"]["usage"] == {"prompt_tokens": 4, "total_tokens": 4}  # none for an image
    contents: list[str | bytes] = ["a cat", PICTURE]
    for each, content in zip(response["body"]["data"], contents, strict=True):
        vector = np.array(each["embedding"], np.float32)
        np.testing.assert_array_equal(vector, server.embedding_of(content))  # not a bit is lost in writing


def test_bodies_are_read_by_the_types_of_the_openai_package(
    server: FakeServer, requests: Path, out: Path
) -> None:
    """Code that reads its files into these types continues to work."""
    types = pytest.importorskip("openai.types")
    write(requests, line("one", input=["a cat", "a dog"]))

    batch(server, requests, out)

    body = answers(out)[0]["response"]["body"]
    read = types.CreateEmbeddingResponse.model_validate(body, strict=True)
    assert [len(each.embedding) for each in read.data] == [8, 8]


def test_base64_is_of_little_endian_floats(server: FakeServer, requests: Path, out: Path) -> None:
    """As the official client asks for it."""
    write(requests, line("one", input="a cat", encoding_format="base64"))

    batch(server, requests, out)

    (answer,) = answers(out)
    encoded = answer["response"]["body"]["data"][0]["embedding"]
    np.testing.assert_array_equal(
        np.frombuffer(base64.b64decode(encoded), "<f4"), server.embedding_of("a cat")
    )


def test_answers_are_in_the_order_of_the_requests(server: FakeServer, requests: Path, out: Path) -> None:
    """Also between requests of many inputs, and refused ones, which are not sent."""
    lines = [
        line(str(number), input=[f"{number} {part}" for part in range(number % 7)]) for number in range(50)
    ]
    write(requests, *lines)

    code = batch(server, requests, out, "--window", "3")

    assert code == 1
    assert [each["custom_id"] for each in answers(out)] == [str(number) for number in range(50)]
    assert [each["response"]["status_code"] for each in answers(out)] == [
        200 if number % 7 else 400 for number in range(50)
    ]
    assert sent(server) == [f"{number} {part}" for number in range(50) for part in range(number % 7)]


def test_work_is_sent_as_bulk_and_in_a_window(server: FakeServer, requests: Path, out: Path) -> None:
    """Interactive callers of the same server go first, and memory is bounded."""
    write(requests, *(line(str(number), input=str(number)) for number in range(200)))

    batch(server, requests, out, "--window", "5")

    streams = {
        call.metadata.get("alignserve-priority") for call in server.received if call.method == "StreamInfer"
    }
    assert streams == {"bulk"}


NOT_JSON = "is not valid JSON"
LINE_ERRORS: list[tuple[bytes, str | None, str, str]] = [
    (b"{", None, "invalid_json_line", NOT_JSON),
    (b'{"custom_id": "a", "method": "PO', "a", "invalid_json_line", NOT_JSON),
    (b"[1, 2]", None, "invalid_json_line", "is a list"),
    (b'"a cat"', None, "invalid_json_line", "is a string"),
    (b"null", None, "invalid_json_line", "is null"),
    (b'{"custom_id": "a", "n": NaN}', "a", "invalid_json_line", "NaN"),
    (b'{"custom_id": "a", "n": "\xff"}', "a", "invalid_json_line", "not UTF-8"),
    (b'{"custom_id": "a", "n": "\\ud800"}', "a", "invalid_json_line", "surrogate"),
    (b'{"custom_id": "\\ud800"}', None, "invalid_json_line", "surrogate"),
    (b"[" * 100_000, None, "invalid_json_line", NOT_JSON),
    (b"\xef\xbb\xbf{}", None, "invalid_json_line", "BOM"),  # it is one only at the beginning of the file
    (b"{}", None, "missing_required_parameter", "no custom_id"),
    (b'{"custom_id": null}', None, "missing_required_parameter", "no custom_id"),
    (b'{"custom_id": 7}', None, "invalid_type", "custom_id is a number"),
    (b'{"custom_id": "a"}', "a", "missing_required_parameter", "no method"),
    (b'{"custom_id": "a", "method": "POST"}', "a", "missing_required_parameter", "no url"),
    (b'{"custom_id": "a", "method": 1, "url": "/v1/embeddings"}', "a", "invalid_type", "method is a number"),
    (
        b'{"custom_id": "a", "method": "POST", "url": "/v1/embeddings"}',
        "a",
        "missing_required_parameter",
        "no body",
    ),
]  # fmt: skip


@pytest.mark.parametrize(
    ("bad", "custom_id", "code", "message"), LINE_ERRORS, ids=lambda value: repr(value)[:40]
)
def test_a_line_that_is_no_request_has_an_error(
    server: FakeServer, requests: Path, out: Path, bad: bytes, custom_id: str | None, code: str, message: str
) -> None:
    """It has no response, names the line, and the lines around it are answered."""
    good = line("good", input="a cat").encode()
    requests.write_bytes(good + b"\n" + bad + b"\n" + good.replace(b"good", b"also") + b"\n")

    exit_code = batch(server, requests, out)

    before, answer, after = answers(out)
    assert exit_code == 1
    assert (before["response"]["status_code"], after["response"]["status_code"]) == (200, 200)
    assert (answer["custom_id"], answer["response"], answer["error"]["code"]) == (custom_id, None, code)
    assert answer["error"]["message"].startswith("line 2")
    assert message in answer["error"]["message"]


REFUSED: list[tuple[dict[str, Any], int, str, str | None, str]] = [
    ({"url": "/v1/chat/completions"}, 404, "path_unknown", None, "'/v1/chat/completions'"),
    ({"method": "GET"}, 405, "method_not_allowed", None, "use POST"),
    ({"body": []}, 400, "request_malformed", None, "the body is a list"),
    ({"body": {"model": "gpt-4", "input": "a"}}, 404, "model_not_found", "model", "send 'fake'"),
    ({"body": {"input": "a", "dimensions": 3}}, 400, "argument_invalid", "dimensions", "the model has 8"),
    ({"body": {"input": "a", "encoding_format": "hex"}}, 400, "argument_invalid", "encoding_format", "'hex'"),
    ({"body": {}}, 400, "request_empty", "input", "is missing"),
    ({"body": {"input": ["a"] * 2049}}, 400, "batch_too_large", "input", "limit 2048"),
    ({"body": {"input": ["a", " ", ""]}}, 400, "text_empty", "input[1]", "(and 1 more)"),
    ({"body": {"input": ["a", "w " * 100]}}, 400, "text_too_long", "input[1]", "limit 64"),
    ({"body": {"input": [URI, "data:image/png;base64,a"]}}, 400, "image_unreadable", "input[1]", "base64"),
    ({"body": {"input": "x" * (20 << 20)}}, 413, "request_too_large", None, "more than 16777216 bytes"),
]


@pytest.mark.parametrize(
    ("change", "status", "code", "param", "message"), REFUSED, ids=lambda v: repr(v)[:40]
)
def test_a_request_is_refused_as_over_http(
    server: FakeServer,
    requests: Path,
    out: Path,
    change: dict[str, Any],
    status: int,
    code: str,
    param: str | None,
    message: str,
) -> None:
    """It has a response with that status; `tests/integration/http/test_batch.py` has more."""
    whole = {"custom_id": "a", "method": "POST", "url": "/v1/embeddings", "body": {"input": "a"}, **change}
    write(requests, line("before", input="a cat"), json.dumps(whole))

    exit_code = batch(server, requests, out)

    before, answer = answers(out)
    error = error_of(answer)
    assert exit_code == 1
    assert before["response"]["status_code"] == 200
    assert (answer["custom_id"], answer["error"]) == ("a", None)
    assert (answer["response"]["status_code"], error["code"], error["param"]) == (status, code, param)
    assert error["type"] == "invalid_request_error"
    assert message in error["message"]


def test_a_failure_of_the_model_is_that_of_its_request(server: FakeServer, requests: Path, out: Path) -> None:
    """The others have embeddings."""
    server.fail_input("b", grpc.StatusCode.INTERNAL, "INFERENCE_FAILED")
    write(requests, *(line(each, input=each) for each in "abc"))

    batch(server, requests, out)

    assert [each["response"]["status_code"] for each in answers(out)] == [200, 500, 200]
    assert error_of(answers(out)[1])["type"] == "server_error"
    assert error_of(answers(out)[1])["code"] == "inference_failed"


def test_lines_end_at_line_breaks_only(server: FakeServer, requests: Path, out: Path) -> None:
    """A byte order mark, CRLF, blank lines, U+2028 and a missing last line break change nothing."""
    text = "a\u2028b\u0085c\x0cd"
    raw = json.dumps(
        {"custom_id": text, "method": "POST", "url": "/v1/embeddings", "body": {"input": text}},
        ensure_ascii=False,
    )
    content = f"\ufeff{line('first', input='a')}\r\n\r\n  \n{raw}\n\n{line('last', input='b')}"
    requests.write_text(content, newline="")

    code = batch(server, requests, out)

    assert code == 0
    assert [each["custom_id"] for each in answers(out)] == ["first", text, "last"]
    assert sent(server) == ["a", text, "b"]


def test_a_last_line_that_is_cut_off_fails(server: FakeServer, requests: Path, out: Path) -> None:
    """The file may have been cut off while it was copied, so the message says that it ends there."""
    requests.write_text(f"{line('first', input='a')}\n{line('last', input='b')[:-10]}")

    code = batch(server, requests, out)

    assert code == 1
    assert answers(out)[1]["custom_id"] == "last"
    assert answers(out)[1]["error"]["message"].endswith("the file ends here, without a line break")


def test_a_line_too_long_to_be_read_fails_alone(
    server: FakeServer, requests: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is skipped in pieces; its custom_id is found if it comes first."""
    monkeypatch.setattr(source, "MAX_LINE_BYTES", 1000)
    monkeypatch.setattr(source, "_PIECE_BYTES", 300)
    write(requests, line("long", input="x" * 5000), line("short", input="a"), line("last", input="x" * 2000))

    code = batch(server, requests, out)

    assert code == 1
    assert [each["custom_id"] for each in answers(out)] == ["long", "short", "last"]
    assert [each["response"]["status_code"] for each in answers(out)] == [413, 200, 413]


def test_an_id_that_comes_twice_is_refused_before_anything_is_sent(
    server: FakeServer, requests: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The message names both lines; a blank line counts as one, as in an editor."""
    write(requests, line("a", input="1"), "", line("b", input="2"), '{"custom_id": "a"}')

    code = batch(server, requests, out)

    assert code == 4
    assert "lines 1 and 4 have the same custom_id 'a'" in capsys.readouterr().err
    assert server.received == []
    assert out.read_bytes() == b""


def test_lines_without_an_id_are_not_the_same(server: FakeServer, requests: Path, out: Path) -> None:
    """Each has its own error."""
    write(requests, "{}", "{}", "[]", "[]")

    batch(server, requests, out)

    assert [each["error"]["code"] for each in answers(out)] == [
        "missing_required_parameter",
        "missing_required_parameter",
        "invalid_json_line",
        "invalid_json_line",
    ]


@pytest.mark.parametrize("part_hashes", [1 << 20, 1000, 10])
def test_repeated_ids_are_found_in_parts(tmp_path: Path, part_hashes: int) -> None:
    """Whatever fits into memory at a time, exactly the ids that come twice are found."""
    with RepeatedIds(tmp_path, part_hashes) as ids:
        for number in range(5000):
            ids.add(f"id {number}")
        none = ids.repeated()
        for number in (7, 4999, 4999):
            ids.add(f"id {number}")
        found = ids.repeated()

        assert none == set()
        assert found == {ids.digest("id 7"), ids.digest("id 4999")}
    assert list(tmp_path.iterdir()) == []


def test_one_id_in_every_line_is_found(tmp_path: Path) -> None:
    """All hashes fall into one part then."""
    with RepeatedIds(tmp_path, 1000) as ids:
        for _ in range(300_000):
            ids.add("the same")

        assert ids.repeated() == {ids.digest("the same")}


def test_failed_requests_may_have_a_file_of_their_own(
    server: FakeServer, requests: Path, out: Path, tmp_path: Path
) -> None:
    """As OpenAI's batches have an output file and an error file."""
    errors = tmp_path / "errors.jsonl"
    write(requests, line("a", input="1"), "{", line("b", input=" "), line("c", input="2"))

    code = batch(server, requests, out, "--error-file", str(errors))

    assert code == 1
    assert [each["custom_id"] for each in answers(out)] == ["a", "c"]
    assert [each["custom_id"] for each in answers(errors)] == [None, "b"]


def test_the_last_line_balances(
    server: FakeServer, requests: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Requests are answered or failed, by reason; the state file says the same."""
    write(requests, line("a", input="1"), "", "{", line("b", input=" "), line("c", input=" "))

    batch(server, requests, out)

    last = capsys.readouterr().err.splitlines()[-1]
    assert last == (
        "alignserve: 4 requests = 1 answered + 3 failed (1 invalid_json_line, 2 text_empty); "
        "1 blank line skipped"
    )
    state = json.loads(out.with_name("out.jsonl.state.json").read_text())
    assert (state["state"], state["answered"], state["failed"]) == (
        "complete",
        1,
        {"invalid_json_line": 1, "text_empty": 2},
    )


def test_the_input_is_not_overwritten(server: FakeServer, requests: Path, tmp_path: Path) -> None:
    """Neither by its name nor by another name of the same file."""
    write(requests, line("a", input="1"))
    linked = tmp_path / "linked.jsonl"
    linked.hardlink_to(requests)
    other = tmp_path / "other.jsonl"

    for arguments in ([requests], [linked], [other, "--error-file", str(other)]):
        with pytest.raises(SystemExit) as exit_:
            batch(server, requests, arguments[0], *arguments[1:])  # type: ignore[arg-type]
        assert exit_.value.code == 2

    assert requests.read_text() == line("a", input="1") + "\n"
    assert not other.exists()


def test_an_output_with_content_is_refused(
    server: FakeServer, requests: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run that is not resumed overwrites nothing."""
    write(requests, line("a", input="1"))
    out.write_text("my notes\n")

    assert batch(server, requests, out) == 4
    assert out.read_text() == "my notes\n"
    assert "continue with --resume, or remove it" in capsys.readouterr().err


def test_a_file_without_requests_is_refused(server: FakeServer, requests: Path, out: Path) -> None:
    """It is rather a mistake than work that is done."""
    requests.write_text("\n \n")

    assert batch(server, requests, out) == 4


def test_two_runs_do_not_write_one_output(
    server: FakeServer, requests: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The second is refused; the lock of a run that is over does not block."""
    write(requests, line("a", input="1"))
    with Outputs(out, None, resume=False):
        second = batch(server, requests, out)
    after = batch(server, requests, out)

    assert (second, after) == (4, 0)
    assert "is being written by another run" in capsys.readouterr().err


def test_a_server_that_cannot_be_reached_fails_no_request(requests: Path, out: Path) -> None:
    """The run fails, and writes no answer."""
    write(requests, line("a", input="1"))
    with FakeServer(embedding_dimension=8) as server:
        pass

    assert batch(server, requests, out) == 3
    assert out.read_bytes() == b""


@pytest.mark.parametrize(
    ("status", "exit_code"), [("PERMISSION_DENIED", 4), ("RESOURCE_EXHAUSTED", 4), ("DEADLINE_EXCEEDED", 3)]
)
def test_work_that_the_server_does_not_take_fails_no_request(
    server: FakeServer, requests: Path, out: Path, status: str, exit_code: int
) -> None:
    """A key without the scope, for one, is an affair of the run; earlier answers are kept."""
    server.fail_input("b", grpc.StatusCode[status], "SCOPE_MISSING")
    write(requests, *(line(each, input=each) for each in "abc"))

    assert batch(server, requests, out) == exit_code
    assert [each["custom_id"] for each in answers(out)] == ["a"]
