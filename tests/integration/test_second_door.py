"""A second door gets admission, keys, quotas, deadlines, metrics, traces and draining from the API."""

from __future__ import annotations

import ast
import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from alignserve_server.access.keys import Scope, changed_keys, new_key
from alignserve_server.model.fake import FakeEncoder
from alignserve_server.serving.server import CallServer, Server
from structlog.testing import capture_logs

from tests.integration import http_door
from tests.integration.http_door import HttpDoor
from tests.integration.serving import RunningServer, running, settings, text_request, until

TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"


@dataclass
class Door:
    """A client of the door."""

    port: int

    async def open(self, *texts: str, **headers: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Sends a request."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        body = json.dumps({"input": texts}).encode()
        named = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        head = f"POST /embeddings HTTP/1.1\r\n{named}Content-Length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + body)
        return reader, writer

    async def embed(self, *texts: str, **headers: str) -> tuple[int, dict[str, Any]]:
        """Returns status and answer."""
        reader, writer = await self.open(*texts, **headers)
        head, _, body = (await reader.read()).partition(b"\r\n\r\n")
        writer.close()
        return int(head.split()[1]), json.loads(body)


@asynccontextmanager
async def door_of(server: CallServer) -> AsyncIterator[Door]:
    """Opens the door next to the server's own."""
    listening = await asyncio.start_server(HttpDoor(server.service, server.accounting).serve, "127.0.0.1", 0)
    async with listening:
        yield Door(listening.sockets[0].getsockname()[1])


@asynccontextmanager
async def opened(**overrides: Any) -> AsyncIterator[tuple[RunningServer, Door]]:
    """Runs a server with both doors."""
    async with running(**overrides) as served, door_of(served.server) as door:
        yield served, door


@asynccontextmanager
async def busy(served: RunningServer) -> AsyncIterator[None]:
    """Keeps the only lane busy, so that calls wait for the length of the block."""
    served.encoder.gate.clear()
    first = asyncio.ensure_future(served.stub.EmbedText(text_request("ahead of the others")))
    await until(lambda: len(served.encoder.batches) == 1)
    yield
    served.encoder.gate.set()
    await first


def handled(served: RunningServer, code: str) -> float:
    """Returns how many calls of the door have ended with a code."""
    labels = {"grpc_type": "unary", "grpc_service": "http", "grpc_method": "embeddings", "grpc_code": code}
    return served.sample("grpc_server_handled_total", **labels)


def test_the_door_imports_only_the_api_and_the_ground_layer() -> None:
    """It imports none of batching, access and model, which the API wraps."""
    tree = ast.parse(Path(http_door.__file__).read_text())
    modules = {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}

    ours = {module.removeprefix("alignserve_server.") for module in modules if "alignserve" in module}
    assert ours == {"api", "errors", "host.waiting"}


async def test_texts_are_embedded_and_counted() -> None:
    """The answer equals gRPC's, and the call is counted under the door's own labels."""
    async with opened() as (served, door):
        status, answer = await door.embed("a cat", "a dog")

        expected = [served.encoder.embedding_of(text) for text in ("a cat", "a dog")]
        assert status == 200
        np.testing.assert_allclose(answer["embeddings"], expected, atol=1e-6)
        assert handled(served, "OK") == 1
        assert served.items("text")["ok"] == 2
        labels = {"grpc_type": "unary", "grpc_service": "http", "grpc_method": "embeddings"}
        batch = {**labels, "priority": "interactive", "size": "batch"}
        assert served.sample("grpc_server_handling_seconds_count", **batch) == 1


async def test_keys_scopes_and_quotas_apply(tmp_path: Path) -> None:
    """One key is one caller at both doors, with one quota."""
    path = tmp_path / "keys.json"
    with changed_keys(path) as keys:
        key, keys["search"] = new_key("search", frozenset({Scope.EMBED}), max_requests_per_second=1)
        other, keys["labels"] = new_key("labels", frozenset({Scope.CLASSIFY}))
    async with opened(api_keys_file=path) as (served, door):
        answers = [
            await door.embed("a"),
            await door.embed("a", authorization=f"Bearer {other}"),
            await door.embed("a", authorization=f"Bearer {key}"),
            await door.embed("a", "b", authorization=f"Bearer {key}"),
        ]

        refusals = [(status, answer.get("reason")) for status, answer in answers]
        assert refusals == [
            (401, "KEY_MISSING"),
            (403, "SCOPE_MISSING"),
            (200, None),
            (429, "QUOTA_EXCEEDED"),
        ]
        assert served.sample("alignserve_caller_items_total", caller="search", outcome="accepted") == 1
        assert served.sample("alignserve_caller_items_total", caller="labels", outcome="rejected") == 1
        assert served.sample("alignserve_rejected_total", reason="QUOTA_EXCEEDED") == 1


async def test_a_full_queue_refuses() -> None:
    """The door needs no code for it."""
    async with opened(max_queue_size=2, max_client_batch_size=2) as (served, door), busy(served):
        waiting = asyncio.ensure_future(door.embed("a", "b"))
        await until(lambda: served.waiting("text") == 2)

        status, answer = await door.embed("one too many")

        served.encoder.gate.set()
        assert (status, answer["reason"]) == (429, "QUEUE_FULL")
        assert (await waiting)[0] == 200


async def test_the_deadline_of_a_header_ends_the_wait() -> None:
    """A call that expires in the queue gets DEADLINE_EXCEEDED and counts as expired."""
    async with opened() as (served, door), busy(served):
        status, answer = await door.embed("a", timeout="0.05")

        assert (status, answer["reason"]) == (504, "EXPIRED_IN_QUEUE")
        assert served.items("text")["expired"] == 1
        assert handled(served, "DEADLINE_EXCEEDED") == 1


async def test_a_client_that_leaves_leaves_the_queue() -> None:
    """Its call is cancelled, and counts as cancelled."""
    async with opened() as (served, door), busy(served):
        _, writer = await door.open("a")
        await until(lambda: served.waiting("text") == 1)

        writer.close()

        await until(lambda: handled(served, "CANCELLED") == 1)
        assert served.waiting("text") == 0


@pytest.mark.parametrize(
    ("texts", "headers", "reason", "fields"),
    [
        ([], {}, "REQUEST_EMPTY", ["input"]),
        (["a", " ", "b", ""], {}, "TEXT_EMPTY", ["input[1]", "input[3]"]),
        (["a"] * 11, {}, "BATCH_TOO_LARGE", ["input"]),
        (["a"], {"priority": "urgent"}, "ARGUMENT_INVALID", []),
    ],
)
async def test_refusals_name_the_fields_of_the_caller(
    texts: list[str], headers: dict[str, str], reason: str, fields: list[str]
) -> None:
    """Errors name this door's fields and headers, whether the door, the API or the engine refuses."""
    async with opened() as (_, door):
        status, answer = await door.embed(*texts, **headers)

    assert (status, answer["reason"], answer["fields"]) == (400, reason, fields)
    if not fields:
        assert answer["message"].startswith("header priority: ")


async def test_a_call_is_traced() -> None:
    """Its access log line has its caller's trace id and the engine's timings."""
    with capture_logs() as lines:
        async with opened(access_log_sample_ratio=1.0) as (_, door):
            await door.embed("a cat", traceparent=f"00-{TRACE_ID}-00f067aa0ba902b7-01")

    (line,) = [line for line in lines if line["event"] == "call"]
    assert (line["method"], line["code"], line["trace_id"]) == ("embeddings", "OK", TRACE_ID)
    assert line["compute_seconds"] >= 0


async def test_an_unexpected_error_reveals_only_an_id(monkeypatch: pytest.MonkeyPatch) -> None:
    """The caller gets an id that is also in the log."""
    with capture_logs() as lines:
        async with opened() as (_, door):
            monkeypatch.delattr(FakeEncoder, "tokenize")
            status, answer = await door.embed("a cat")

    (line,) = [line for line in lines if line["event"] == "unexpected_error"]
    assert (status, answer["reason"]) == (500, "INTERNAL")
    assert answer["message"] == f"the server failed; report error id {line['error_id']} to the operator"


async def test_nothing_is_served_before_the_model_is_loaded() -> None:
    """Readiness is part of the API, so every door refuses in the same way."""
    server = Server(settings(), lambda _: FakeEncoder())
    await server.start()
    async with door_of(server) as door:
        status, answer = await door.embed("too early")
    await server.stop(0.0)

    assert (status, answer["reason"]) == (503, "MODEL_LOADING")


async def test_shutdown_waits_for_calls_of_every_door() -> None:
    """Accepted calls are answered, and later ones refused."""
    async with opened() as (served, door), busy(served):
        accepted = asyncio.ensure_future(door.embed("accepted"))
        await until(lambda: served.waiting("text") == 1)
        stopping = asyncio.ensure_future(served.server.stop(60.0))
        await asyncio.sleep(0)

        late = await door.embed("late")
        is_waiting = not stopping.done()
        served.encoder.gate.set()
        await stopping

        assert (late[0], late[1]["reason"]) == (503, "SHUTTING_DOWN")
        assert is_waiting
        assert (await accepted)[0] == 200
