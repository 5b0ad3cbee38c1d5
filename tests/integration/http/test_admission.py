"""Keys, quotas, priorities, deadlines and bodies, over HTTP."""

from __future__ import annotations

import asyncio
import gzip
import zlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from alignserve.v1 import align_service_pb2 as pb
from alignserve_server.access.keys import Scope, changed_keys, new_key
from alignserve_server.model.fake import FakeEncoder
from structlog.testing import capture_logs

from tests.integration.http.ports import dialed, serving
from tests.integration.http.test_connect import SERVICE, reason_of
from tests.integration.serving import RunningServer, text_request, until

TEXTS = f"{SERVICE}/EmbedText"
HEAD = f"POST {TEXTS} HTTP/1.1\r\nhost: a\r\n"


def handled(served: RunningServer, code: str, service: str = "connect") -> float:
    """Returns how many calls of EmbedText have ended with a code."""
    labels = {"grpc_type": "unary", "grpc_service": service, "grpc_method": "EmbedText", "grpc_code": code}
    return served.sample("grpc_server_handled_total", **labels)


@asynccontextmanager
async def busy(served: RunningServer) -> AsyncIterator[None]:
    """Keeps the only lane busy, so that calls wait for the length of the block."""
    served.encoder.gate.clear()
    first = asyncio.ensure_future(served.stub.EmbedText(text_request("ahead of the others")))
    await until(lambda: len(served.encoder.batches) == 1)
    yield
    served.encoder.gate.set()
    await first


async def embedded(client: httpx.AsyncClient, *texts: str, **headers: str) -> httpx.Response:
    """Calls EmbedText."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return await client.post(TEXTS, json={"texts": texts}, headers=named)


async def test_keys_scopes_and_quotas_apply(tmp_path: Path) -> None:
    """One key is one caller at both ports, with one quota."""
    path = tmp_path / "keys.json"
    with changed_keys(path) as keys:
        key, keys["search"] = new_key("search", frozenset({Scope.EMBED}), max_requests_per_second=1)
        other, keys["labels"] = new_key("labels", frozenset({Scope.CLASSIFY}))
    async with serving(api_keys_file=path) as (served, client):
        answers = [
            await embedded(client, "a"),
            await embedded(client, "a", authorization="Bearer as_search_guess"),
            await embedded(client, "a", authorization=f"Bearer {other}"),
            await embedded(client, "a", authorization=f"bearer {key}"),
            await embedded(client, "a", authorization=f"Bearer {key}"),
        ]

        refusals = [(answer.status_code, answer.json().get("code")) for answer in answers]
        assert refusals == [
            (401, "unauthenticated"),
            (401, "unauthenticated"),
            (403, "permission_denied"),
            (200, None),
            (429, "resource_exhausted"),
        ]
        assert answers[0].headers["www-authenticate"] == "Bearer"
        assert 0 < int(answers[4].headers["retry-after-ms"]) <= 1250
        assert (answers[4].headers["retry-after"], answers[4].headers["x-should-retry"]) in (
            ("1", "true"),
            ("2", "true"),
        )
        assert served.sample("alignserve_caller_items_total", caller="search", outcome="accepted") == 1


async def test_a_key_is_checked_before_the_body_is_read(tmp_path: Path) -> None:
    """A stranger cannot make the server read megabytes."""
    path = tmp_path / "keys.json"
    with changed_keys(path):
        pass
    async with serving(api_keys_file=path) as (served, _), dialed(served) as wire:
        wire.writer.write(f"{HEAD}content-length: 1000000\r\n\r\n".encode())
        status, headers, _ = await wire.answer()

        assert (status, headers["connection"]) == (401, "close")


async def test_no_key_is_in_the_log(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Whatever a caller does with it."""
    path = tmp_path / "keys.json"
    with changed_keys(path) as keys:
        key, keys["search"] = new_key("search", frozenset({Scope.EMBED}))
    async with serving(api_keys_file=path, access_log_sample_ratio=1.0) as (served, client):
        for headers in ({"authorization": f"Bearer {key}"}, {"x-api-key": key}, {"alignserve-priority": key}):
            await client.post(f"{TEXTS}?key={key}", json={"texts": [key]}, headers=headers)
        async with dialed(served) as wire:
            wire.writer.write(f"GET /{key} HTTP/1.1\r\nauthorization: Bearer {key}\r\n bad\r\n\r\n".encode())
            await wire.answer()

    output = "".join(capfd.readouterr())
    secret = key.removeprefix("as_search_")
    assert "event" in output or "listening" in output
    assert secret.lower() not in output.lower()


async def test_a_full_queue_refuses_with_a_delay() -> None:
    """As over gRPC; the headers are those that HTTP clients obey."""
    async with serving(max_queue_size=2, max_client_batch_size=2) as (served, client), busy(served):
        waiting = asyncio.ensure_future(embedded(client, "a", "b"))
        await until(lambda: served.waiting("text") == 2)
        answer = await embedded(client, "one too many")
        served.encoder.gate.set()

        assert (answer.status_code, reason_of(answer)) == (429, "QUEUE_FULL")
        assert int(answer.headers["retry-after-ms"]) > 0
        assert (await waiting).status_code == 200


@pytest.mark.parametrize(
    ("headers", "kind", "service"),
    [
        ({"connect-timeout-ms": "50"}, "application/json", "connect"),
        ({"grpc-timeout": "50m"}, "application/grpc-web+proto", "grpc-web"),
    ],
)
async def test_a_deadline_ends_the_wait(headers: dict[str, str], kind: str, service: str) -> None:
    """A call that expires in the queue never reaches the model."""
    body = (
        b'{"texts":["a"]}' if kind.endswith("json") else b"\0\0\0\0\3" + text_request("a").texts[0].encode()
    )
    if service == "grpc-web":
        message = pb.EmbedTextRequest(texts=["a"]).SerializeToString()
        body = b"\0" + len(message).to_bytes(4, "big") + message
    async with serving() as (served, client), busy(served):
        answer = await client.post(TEXTS, content=body, headers={"content-type": kind, **headers})

        assert answer.headers.get("grpc-status", "4") == "4"
        assert answer.status_code == (504 if service == "connect" else 200)
        assert served.items("text")["expired"] == 1
        assert handled(served, "DEADLINE_EXCEEDED", service) == 1


async def test_a_deadline_ends_the_wait_for_the_model() -> None:
    """The caller learns in time that the answer will not come."""
    async with serving() as (served, client):
        served.encoder.gate.clear()
        answer = await embedded(client, "a", connect_timeout_ms="100")
        served.encoder.gate.set()

    assert (answer.status_code, answer.json()["code"]) == (504, "deadline_exceeded")


async def test_a_deadline_ends_the_wait_for_a_body() -> None:
    """It counts from the headers."""
    async with serving() as (served, _), dialed(served) as wire:
        wire.writer.write(f"{HEAD}content-length: 100\r\nconnect-timeout-ms: 50\r\n\r\n".encode())

        assert (await wire.answer())[0] == 504


async def test_a_client_that_leaves_leaves_the_queue() -> None:
    """Its call is cancelled, and the log has no error."""
    with capture_logs() as lines:
        async with serving() as (served, _), busy(served):
            async with dialed(served) as wire:
                body = b'{"texts":["a"]}'
                wire.writer.write(f"{HEAD}content-length: {len(body)}\r\n\r\n".encode() + body)
                await until(lambda: served.waiting("text") == 1)

            await until(lambda: handled(served, "CANCELLED") == 1)
            assert served.waiting("text") == 0

    assert [line for line in lines if line["log_level"] in ("error", "warning")] == []


async def test_bulk_calls_are_counted_apart() -> None:
    """The priority is a header."""
    async with serving() as (served, client):
        await embedded(client, "a", alignserve_priority="bulk")

        labels = {"grpc_type": "unary", "grpc_service": "connect", "grpc_method": "EmbedText"}
        labels |= {"priority": "bulk", "size": "single"}
        assert served.sample("grpc_server_handling_seconds_count", **labels) == 1


@pytest.mark.parametrize("is_chunked", [True, False])
async def test_a_large_body_is_refused(is_chunked: bool) -> None:
    """By its length, or once it has more bytes."""
    body = b'{"texts":["' + b"a" * 200_000 + b'"]}'

    async def chunks() -> AsyncIterator[bytes]:
        for start in range(0, len(body), 10_000):
            yield body[start : start + 10_000]

    async with serving(max_request_bytes=100_000, max_image_bytes=100_000) as (served, client):
        answer = await client.post(
            TEXTS, content=chunks() if is_chunked else body, headers={"content-type": "application/json"}
        )
        assert served.sample("alignserve_uploads") == 0

    assert (answer.status_code, reason_of(answer)) == (413, "REQUEST_TOO_LARGE")
    assert answer.headers["connection"] == "close"


BODY = b'{"texts":["a cat"]}'
GZIP = gzip.compress(BODY)


@pytest.mark.parametrize(
    ("body", "encoding", "status"),
    [
        pytest.param(GZIP, "gzip", 200, id="gzip"),
        pytest.param(gzip.compress(BODY[:7]) + gzip.compress(BODY[7:]), "gzip", 200, id="two members"),
        pytest.param(GZIP, "GZIP", 200, id="capitals"),
        pytest.param(BODY, "identity", 200, id="identity"),
        pytest.param(GZIP[:-5], "gzip", 400, id="cut"),
        pytest.param(BODY, "gzip", 400, id="not packed"),
        pytest.param(b"", "gzip", 400, id="empty"),
        pytest.param(gzip.compress(b"a" * 20_000_000), "gzip", 413, id="bomb"),
        pytest.param(gzip.compress(GZIP), "gzip", 400, id="packed twice"),
        pytest.param(zlib.compress(BODY), "deflate", 415, id="deflate"),
        pytest.param(BODY, "br", 415, id="br"),
        pytest.param(gzip.compress(GZIP), "gzip, gzip", 415, id="two encodings"),
    ],
)
async def test_gzip_is_unpacked_up_to_the_limit(body: bytes, encoding: str, status: int) -> None:
    """20 MB of one letter have 20 kB; other encodings are refused."""
    headers = {"content-encoding": encoding, "content-type": "application/json"}
    async with serving() as (_, client):
        answer = await client.post(TEXTS, content=body, headers=headers)

    assert answer.status_code == status


@pytest.mark.parametrize(
    ("kind", "status"),
    [
        ("application/json; charset=utf-8", 200),
        ("Application/JSON", 200),
        ("", 200),
        ("text/plain", 415),
        ("application/x-www-form-urlencoded", 415),
        ("multipart/form-data; boundary=a", 415),
        ("application/grpc", 415),
    ],
)
async def test_other_types_of_bodies_are_refused(kind: str, status: int) -> None:
    """A page of another origin can send plain text and forms without asking."""
    async with serving() as (_, client):
        answer = await client.post(TEXTS, content=BODY, headers={"content-type": kind} if kind else {})

    assert answer.status_code == status
    if status == 415:
        assert reason_of(answer) == "MEDIA_TYPE_UNSUPPORTED"


async def test_a_page_must_name_the_type_of_its_body() -> None:
    """Otherwise a page of another origin could send it without asking."""
    async with serving() as (_, client):
        answer = await client.post(TEXTS, content=BODY, headers={"origin": "https://evil.example"})

    assert answer.status_code == 415


async def test_large_uploads_share_the_memory() -> None:
    """Above its share, a caller's bodies wait; small ones need none."""
    half = b'{"texts":["' + b"a" * 100_000
    async with (
        serving(max_uploads=2) as (served, client),
        dialed(served) as first,
        dialed(served) as second,
    ):
        for wire in (first, second):
            wire.writer.write(f"{HEAD}content-length: {len(half) + 3}\r\n\r\n".encode() + half)
        await until(lambda: served.sample("alignserve_uploads") == 1)
        assert (await embedded(client, "small")).status_code == 200

        for wire in (first, second):
            wire.writer.write(b'"]}')
        answers = [await first.answer(), await second.answer()]

    assert [status for status, *_ in answers] == [200, 200]


async def test_a_body_that_unpacks_to_megabytes_takes_a_share() -> None:
    """Otherwise a crowd of small bodies would fill the memory."""
    packed = gzip.compress(b" " * 1_000_000 + BODY)
    head = f"{HEAD}content-encoding: gzip\r\ncontent-length: {len(packed)}\r\n\r\n".encode()
    async with serving(max_uploads=2) as (served, _), dialed(served) as wire:
        wire.writer.write(head + packed[:-1])
        await until(lambda: served.sample("alignserve_uploads") == 1)

        wire.writer.write(packed[-1:])
        assert (await wire.answer())[0] == 200
        assert served.sample("alignserve_uploads") == 0


async def test_an_unexpected_error_reveals_only_an_id(monkeypatch: pytest.MonkeyPatch) -> None:
    """The caller gets an id that is also in the log."""
    with capture_logs() as lines:
        async with serving() as (_, client):
            monkeypatch.delattr(FakeEncoder, "tokenize")
            answer = await embedded(client, "a cat")

    (line,) = [line for line in lines if line["event"] == "unexpected_error"]
    assert (answer.status_code, answer.json()["code"], reason_of(answer)) == (500, "internal", "INTERNAL")
    assert line["error_id"] in answer.json()["message"]
    assert answer.headers["x-should-retry"] == "false"


async def test_a_call_is_traced() -> None:
    """Its access log line has its caller's trace id and the engine's timings."""
    trace_id = "4bf92f3577b34da6a3ce929d0e0e4736"
    with capture_logs() as lines:
        async with serving(access_log_sample_ratio=1.0) as (_, client):
            parent = f"00-{trace_id}-00f067aa0ba902b7-01"
            answer = await embedded(client, "a cat", traceparent=parent)

    (line,) = [line for line in lines if line["event"] == "call"]
    assert (line["method"], line["code"], line["trace_id"]) == ("EmbedText", "OK", trace_id)
    assert line["request_id"] == answer.headers["x-request-id"]


async def test_a_large_answer_is_sent_whole() -> None:
    """In pieces, to a client that reads slowly."""
    labels = [f"label {number} {'x' * 200}" for number in range(1000)]
    request: dict[str, Any] = {"images": [{"content": "YQ=="}] * 20, "labels": labels}
    async with (
        serving() as (_, client),
        client.stream("POST", f"{SERVICE}/Classify", json=request) as answer,
    ):
        content = await answer.aread()

    assert len(content) == int(answer.headers["content-length"]) > 4_000_000
    assert len(answer.json()["results"]) == 20
