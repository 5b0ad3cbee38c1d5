"""Every refusal of every dialect has its dialect's shape, and tells clients to retry or not."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from alignserve_server.access.keys import Scope, changed_keys, new_key
from alignserve_server.model.fake import FakeEncoder
from alignserve_server.serving.server import Server

from tests.integration.http.dialects import DIALECTS, IMAGE, KnownDialect, read_error
from tests.integration.http.ports import serving
from tests.integration.serving import RunningServer, settings, text_request, until

each_dialect = pytest.mark.parametrize("dialect", DIALECTS, ids=lambda dialect: dialect.name)

MALFORMED = {
    "empty": b"",
    "no JSON": b"{",
    "a list": b"[]",
    "a number": b"1",
    "null": b"null",
    "deep": b"[" * 100_000,
    "deep objects": b'{"a":' * 100_000,
    "lone surrogate": b'{"input":"\\ud800"}',
    "NaN": b'{"input":NaN}',
    "infinite": b'{"input":1e999}',
    "thousands of digits": b'{"input":%s}' % (b"9" * 5000),
    "not UTF-8": b'{"input":"\xff"}',
    "a mark of the byte order": b"\xef\xbb\xbf{}",
}


@each_dialect
async def test_malformed_bodies_are_refused_once_and_for_all(dialect: KnownDialect) -> None:
    """They are 400: clients would repeat 500."""
    async with serving() as (_, client):
        answers = {name: await client.post(dialect.path, content=body) for name, body in MALFORMED.items()}

    for name, answer in answers.items():
        assert read_error(dialect, answer) == (400, "REQUEST_MALFORMED"), name
        assert answer.headers["x-should-retry"] == "false"


@each_dialect
async def test_lists_longer_than_any_request_are_not_read(dialect: KnownDialect) -> None:
    """To find out what is wrong with their entries would take long."""
    (field,) = dialect.body
    async with serving() as (_, client):
        answer = await client.post(dialect.path, json={field: [None] * 2049})

    assert read_error(dialect, answer) == (400, "BATCH_TOO_LARGE")


@each_dialect
async def test_what_http_refuses_has_the_shape_of_the_dialect(dialect: KnownDialect) -> None:
    """Path, method, type, encoding and size of a body."""
    async with serving(max_request_bytes=1000, max_image_bytes=1000, http_page=False) as (_, client):
        body = json.dumps(dialect.body).encode()
        unknown = await client.post(dialect.unknown, content=body)
        method = await client.delete(dialect.path)
        refused = [
            (await client.post(dialect.path, content=body, headers={"content-type": kind}), 415)
            for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x")
        ]
        refused.append(
            (await client.post(dialect.path, content=body, headers={"content-encoding": "br"}), 415)
        )
        refused.append((await client.post(dialect.path, content=b" " * 1001), 413))

    assert read_error(dialect, unknown) == (404, "PATH_UNKNOWN")
    assert read_error(dialect, method) == (405, "METHOD_NOT_ALLOWED")
    assert method.headers["allow"] == "POST"
    for answer, status in refused:
        reason = "REQUEST_TOO_LARGE" if status == 413 else "MEDIA_TYPE_UNSUPPORTED"
        assert read_error(dialect, answer) == (status, reason)


@each_dialect
async def test_keys_are_checked_before_the_body(dialect: KnownDialect, tmp_path: Path) -> None:
    """A missing, an unknown and an insufficient key are refused, whatever the body is."""
    path = tmp_path / "keys.json"
    with changed_keys(path) as keys:
        key, keys["labels"] = new_key("labels", frozenset({Scope.CLASSIFY}))
    async with serving(api_keys_file=path) as (_, client):
        missing = await client.post(dialect.path, content=b"{")
        unknown = await client.post(dialect.path, content=b"{", headers={"authorization": "Bearer nothing"})
        scope = await client.post(dialect.path, json=dialect.body, headers={"authorization": f"Bearer {key}"})

    assert read_error(dialect, missing) == (401, "KEY_MISSING")
    assert read_error(dialect, unknown) == (401, "KEY_INVALID")
    assert read_error(dialect, scope) == (403, "SCOPE_MISSING")
    assert missing.headers["www-authenticate"].startswith("Bearer")


@asynccontextmanager
async def loading() -> AsyncIterator[httpx.AsyncClient]:
    """Runs a server whose model is never loaded."""
    server = Server(settings(http_listen="127.0.0.1:0"), lambda _: FakeEncoder())
    await server.start()
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{server.http_port}") as client:
        yield client
    await server.stop(0.0)


@each_dialect
async def test_calls_before_the_model_is_loaded_are_told_when_to_retry(dialect: KnownDialect) -> None:
    """The delay is in the headers that clients obey."""
    async with loading() as client:
        answer = await client.post(dialect.path, json=dialect.body)

    assert read_error(dialect, answer) == (503, "MODEL_LOADING")
    assert answer.headers["x-should-retry"] == "true"
    assert int(answer.headers["retry-after"]) >= 1
    assert int(answer.headers["retry-after-ms"]) >= 100


async def test_probes_answer_while_the_model_is_loaded() -> None:
    """Live but not ready; none needs a key or a body, and all answer HEAD."""
    async with loading() as client:
        live = await client.get("/.well-known/live")
        probes = [
            await client.request(method, path)
            for path in ("/health", "/.well-known/ready")
            for method in ("GET", "HEAD")
        ]

    assert live.status_code == 204
    assert [probe.status_code for probe in probes] == [503] * 4


@asynccontextmanager
async def busy(served: RunningServer) -> AsyncIterator[None]:
    """Keeps the only lane busy, so that calls wait for the length of the block."""
    served.encoder.gate.clear()
    first = asyncio.ensure_future(served.stub.EmbedText(text_request("ahead of the others")))
    await until(lambda: len(served.encoder.batches) == 1)
    yield
    served.encoder.gate.set()
    await first


@each_dialect
async def test_a_full_queue_is_429(dialect: KnownDialect) -> None:
    """With the time after which to retry."""
    async with serving(max_queue_size=1, max_client_batch_size=1) as (served, client), busy(served):
        waiting = asyncio.ensure_future(served.stub.EmbedText(text_request("fills the queue")))
        await until(lambda: served.waiting("text") == 1)

        answer = await client.post(dialect.path, json=dialect.body)

        served.encoder.gate.set()
        await waiting

    assert read_error(dialect, answer) == (429, "QUEUE_FULL")
    assert answer.headers["x-should-retry"] == "true"
    assert int(answer.headers["retry-after-ms"]) > 0


@each_dialect
async def test_a_timeout_is_504_or_refused_early(dialect: KnownDialect) -> None:
    """A call that expires in the queue says so; a malformed timeout is refused."""
    async with serving() as (served, client), busy(served):
        expired = await client.post(dialect.path, json=dialect.body, headers={"alignserve-timeout-ms": "50"})
        malformed = await client.post(
            dialect.path, json=dialect.body, headers={"alignserve-timeout-ms": "soon"}
        )

    assert read_error(dialect, expired) == (504, "EXPIRED_IN_QUEUE")
    assert read_error(dialect, malformed) == (400, "ARGUMENT_INVALID")


@each_dialect
async def test_a_bug_reveals_only_an_id(dialect: KnownDialect, monkeypatch: pytest.MonkeyPatch) -> None:
    """The message has the id that is in the log, and no trace of the exception."""
    async with serving() as (_, client):
        monkeypatch.delattr(FakeEncoder, "tokenize")
        answer = await client.post(dialect.path, json=dialect.body)

    assert read_error(dialect, answer) == (500, "INTERNAL")
    assert "report error id" in answer.text
    assert "tokenize" not in answer.text


@each_dialect
async def test_a_body_without_a_type_is_json(dialect: KnownDialect) -> None:
    """Weaviate's client sends none."""
    async with serving() as (_, client):
        answer = await client.post(dialect.path, content=json.dumps(dialect.body).encode())

    assert answer.status_code == 200, answer.text


@each_dialect
async def test_what_a_caller_sent_is_cut_in_messages(dialect: KnownDialect) -> None:
    """Names, values and URLs of 100 kB do not come back."""
    long = "x" * 100_000
    bodies: list[dict[str, Any]] = [
        {**dialect.body, name: long}
        for name in ("model", "truncate", "encoding_format", "modality", "truncation_direction", "input")
    ]
    bodies.append({next(iter(dialect.body)): f"https://{long}", "parameters": {"candidate_labels": [long]}})
    async with serving() as (_, client):
        answers = [await client.post(dialect.path, json=body) for body in bodies]
        answers.append(await client.post(f"{dialect.unknown}{long[:30_000]}"))

    assert all(len(answer.content) < 2000 for answer in answers if answer.status_code != 200)
    assert any(answer.status_code >= 400 for answer in answers)


async def test_a_task_needs_its_own_scope(tmp_path: Path) -> None:
    """The body of Hugging Face's request decides which one."""
    path = tmp_path / "keys.json"
    with changed_keys(path) as keys:
        key, keys["search"] = new_key("search", frozenset({Scope.EMBED}))
    classification = {"inputs": IMAGE, "parameters": {"candidate_labels": ["cat"]}}
    async with serving(api_keys_file=path) as (_, client):
        client.headers["authorization"] = f"Bearer {key}"
        embedded = await client.post("/", json={"inputs": "a cat"})
        classified = await client.post("/", json=classification)

    assert embedded.status_code == 200
    assert (classified.status_code, classified.json()["error_type"]) == (403, "SCOPE_MISSING")
