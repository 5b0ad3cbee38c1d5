"""The way of a request through the endpoints of its path.

The key is checked before the body is read. Then the body is read, and the caller's connection and time are
watched while a dialect answers. Every error becomes an answer in the dialect's shape.
"""

from __future__ import annotations

import asyncio
import re
import secrets
from collections.abc import Mapping, Sequence
from contextlib import ExitStack

from starlette.datastructures import Headers
from starlette.types import Receive, Scope, Send

from alignserve_server.api import Accounting, MethodMetrics
from alignserve_server.errors import ServingError, as_value
from alignserve_server.host.waiting import first_of
from alignserve_server.http.answer import JSON, Answer
from alignserve_server.http.body import BodyReader
from alignserve_server.http.call import Disconnected, HttpCall
from alignserve_server.http.endpoint import Dialect, Endpoint
from alignserve_server.http.refusals import (
    DeadlineExceeded,
    MediaTypeUnsupported,
    MethodNotAllowed,
    PathUnknown,
    shortened,
)
from alignserve_server.http.request import HttpRequest
from alignserve_server.http.rooms import AnswerRooms
from alignserve_server.http.sending import send_answer
from alignserve_server.http.status import http_error

_REQUEST_ID = "x-request-id"
_ID = re.compile(r"[\w.:-]{1,128}", re.ASCII)
_LATE_SECONDS = 0.05  # after the timeout; items in the queue end by themselves, with a reason of their own


class Exchanges:
    """Answers requests: accounts for them, and turns every error into an answer."""

    def __init__(self, accounting: Accounting, reader: BodyReader, rooms: AnswerRooms) -> None:
        self._accounting = accounting
        self._reader = reader
        self._rooms = rooms

    def metrics_of(self, endpoint: Endpoint) -> MethodMetrics:
        """Prepares the metrics of an endpoint."""
        return self._accounting.method("unary", endpoint.dialect.name, endpoint.name, endpoint.rules)

    async def serve(
        self, endpoint: Endpoint, method: MethodMetrics, scope: Scope, receive: Receive, send: Send
    ) -> None:
        """Answers a request of an endpoint."""
        incoming = HttpCall(
            scope, timeout_header=endpoint.dialect.timeout_header, paths=endpoint.dialect.paths
        )
        request_id = request_id_of(incoming.headers)
        with ExitStack() as life:
            life.callback(self._accounting.in_progress.end)
            self._accounting.in_progress.begin()
            try:
                answer = await self._answer(endpoint, method, incoming, request_id, scope, receive, life)
            except Disconnected:
                return
            except ServingError as error:
                answer = refusal(endpoint.dialect, as_value(error), request_id)
            await send_answer(send, answer, request_id)

    async def refuse(self, dialect: Dialect, error: ServingError, scope: Scope, send: Send) -> None:
        """Answers a request that no endpoint takes."""
        request_id = request_id_of(Headers(scope=scope))
        await send_answer(send, refusal(dialect, error, request_id), request_id)

    async def _answer(
        self,
        endpoint: Endpoint,
        method: MethodMetrics,
        incoming: HttpCall,
        request_id: str,
        scope: Scope,
        receive: Receive,
        life: ExitStack,
    ) -> Answer:
        with self._accounting.call(method, incoming) as call:
            incoming.read_timeout()
            room = self._rooms.of_call(incoming.headers, call.caller_name)
            life.callback(room.give_back)
            body = await self._reader.read(incoming.headers, receive, call.caller_name)
            media_type = media_type_of(incoming.headers)
            request = HttpRequest(scope, incoming, media_type, body, room, request_id)
            answering = asyncio.ensure_future(endpoint.answer(request, call))
            interruption = await first_of(answering, _interruption(receive, incoming.seconds_left()))
            if interruption is not None:
                raise interruption
            return answering.result()


class PathApp:
    """The ASGI app of one path: passes a request to the endpoint for its HTTP method and type of body."""

    def __init__(self, endpoints: Sequence[Endpoint], exchanges: Exchanges) -> None:
        self._exchanges = exchanges
        self._by_method: dict[str, list[tuple[Endpoint, MethodMetrics]]] = {}
        self._first = endpoints[0].dialect
        for endpoint in endpoints:
            metrics = exchanges.metrics_of(endpoint)
            for method in _methods_of(endpoint):
                self._by_method.setdefault(method, []).append((endpoint, metrics))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        candidates = self._by_method.get(scope["method"])
        if candidates is None:
            refused = MethodNotAllowed(scope["method"], self._by_method)
            await self._exchanges.refuse(self._first, refused, scope, send)
            return
        media_type = media_type_of(Headers(scope=scope))
        has_body = scope["method"] not in ("GET", "HEAD")
        for endpoint, metrics in candidates:
            if not has_body or media_type in endpoint.media_types:
                await self._exchanges.serve(endpoint, metrics, scope, receive, send)
                return
        accepted = dict.fromkeys(name for endpoint, _ in candidates for name in sorted(endpoint.media_types))
        unsupported = MediaTypeUnsupported(
            f"content-type {shortened(media_type)!r} is not supported here; send {' or '.join(accepted)}"
        )
        await self._exchanges.refuse(candidates[0][0].dialect, unsupported, scope, send)


class UnknownPath:
    """The ASGI app of all other paths: refuses requests in the shape of the dialect that they belong to."""

    def __init__(self, dialects: Mapping[str, Dialect], exchanges: Exchanges) -> None:
        """Takes the dialects by the prefixes of their paths; the prefix "" is that of all others."""
        self._exchanges = exchanges
        self._dialects = sorted(dialects.items(), key=lambda prefixed: -len(prefixed[0]))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path: str = scope["path"]
        dialect = next(dialect for prefix, dialect in self._dialects if path.startswith(prefix))
        unknown = PathUnknown(f"nothing is served at {shortened(path)!r}")
        await self._exchanges.refuse(dialect, unknown, scope, send)


def refusal(dialect: Dialect, error: ServingError, request_id: str) -> Answer:
    """Returns an error as an answer, with the headers that all dialects send."""
    shown = http_error(error, request_id)
    answer = dialect.error(shown)
    return Answer(answer.body, answer.status, answer.media_type, (*answer.headers, *shown.headers))


def request_id_of(headers: Headers) -> str:
    """Returns the id that a request has, if it is short and plain, otherwise a new one."""
    given = headers.get(_REQUEST_ID, "")
    return given if _ID.fullmatch(given) else secrets.token_hex(8)


def media_type_of(headers: Headers) -> str:
    """Returns the type of the body, in lower case and without parameters; JSON if there is none."""
    return headers.get("content-type", "").partition(";")[0].strip().lower() or JSON


def _methods_of(endpoint: Endpoint) -> list[str]:
    methods = list(endpoint.http_methods)
    return [*methods, "HEAD"] if "GET" in methods else methods


async def _interruption(receive: Receive, seconds_left: float | None) -> Exception:
    """Waits until the client has gone or its time is over; returns what the call ends with."""
    try:
        async with asyncio.timeout(None if seconds_left is None else seconds_left + _LATE_SECONDS):
            while (await receive())["type"] != "http.disconnect":
                pass
    except TimeoutError:
        return DeadlineExceeded("the timeout of the call is over")
    return Disconnected()
