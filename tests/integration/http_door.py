"""A minimal door: texts as JSON over HTTP/1.1. Its imports are all that a door needs."""

from __future__ import annotations

import asyncio
import io
import json
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from email.message import Message
from http.client import parse_headers
from typing import Any

from alignserve_server.api import (
    Accounting,
    FieldPaths,
    MethodRules,
    ModelInfo,
    ResponseBound,
    Scope,
    Service,
)
from alignserve_server.errors import BatchTooLarge, InvalidArgument, ServingError
from alignserve_server.host.waiting import first_of

PATHS = FieldPaths(texts="input", text="input[{}]".format, priority="header priority")
_MAX_RESPONSE_BYTES = 2000
_STATUSES = {"OK": 200, "INVALID_ARGUMENT": 400, "UNAUTHENTICATED": 401, "PERMISSION_DENIED": 403,
             "RESOURCE_EXHAUSTED": 429, "UNAVAILABLE": 503, "DEADLINE_EXCEEDED": 504}  # fmt: skip


@dataclass(frozen=True)
class HttpCall:
    """The facts in the headers of a request."""

    headers: Message
    host: str
    start: float = field(default_factory=time.monotonic)
    paths = PATHS

    def credentials(self) -> Iterable[str]:
        return self.headers.get_all("authorization", [])

    def peer(self) -> str:
        return self.host

    def priority(self) -> str | None:
        return self.headers.get("priority")

    def seconds_left(self) -> float | None:
        timeout = self.headers.get("timeout")
        return None if timeout is None else self.start + float(timeout) - time.monotonic()

    def metadata(self) -> Iterable[tuple[str, Any]]:
        return self.headers.items()

    def code_of(self, error: BaseException) -> str | None:
        return None


class HttpDoor:
    """Answers one call per connection."""

    def __init__(self, service: Service, accounting: Accounting) -> None:
        self._service, self._accounting = service, accounting
        rules = MethodRules(scopes=frozenset({Scope.EMBED}))
        self._embed = accounting.method("unary", "http", "embeddings", rules)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answers a call, unless its client leaves before."""
        self._accounting.in_progress.begin()
        try:
            _, _, head = (await reader.readuntil(b"\r\n\r\n")).partition(b"\r\n")
            call = HttpCall(parse_headers(io.BytesIO(head)), writer.get_extra_info("peername")[0])
            body = await reader.readexactly(int(call.headers["content-length"]))
            await first_of(self._respond(call, body, writer), reader.read(1))
        finally:
            writer.close()
            self._accounting.in_progress.end()

    async def _respond(self, incoming: HttpCall, body: bytes, writer: asyncio.StreamWriter) -> None:
        try:
            code, answer = "OK", await self._answer(incoming, body)
        except ServingError as error:
            fields = [each.field for each in error.violations] if isinstance(error, InvalidArgument) else []
            code, answer = error.code, {"reason": error.reason, "message": error.message, "fields": fields}
        content = json.dumps(answer).encode()
        status = _STATUSES.get(code, 500)
        writer.write(f"HTTP/1.1 {status} {code}\r\nContent-Length: {len(content)}\r\n\r\n".encode() + content)
        await writer.drain()

    async def _answer(self, incoming: HttpCall, body: bytes) -> dict[str, Any]:
        with self._accounting.call(self._embed, incoming) as call:
            texts = json.loads(body)["input"]
            call.items = len(texts)
            bound = ResponseBound(lambda info: _max_bytes(len(texts), info), _make_room)
            found = await self._service.embed_texts(texts, call.context(), bound=bound)
            return {"embeddings": found.embeddings.tolist()}


def _max_bytes(texts: int, model: ModelInfo) -> int:
    return texts * model.embedding_dimension * 25


async def _make_room(size: int) -> None:
    if size > _MAX_RESPONSE_BYTES:
        raise BatchTooLarge.at(PATHS.texts, f"the answer could take {size} bytes; send fewer texts")
