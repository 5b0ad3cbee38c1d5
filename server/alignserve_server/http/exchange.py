"""The way of a request through the endpoints of its path.

The key is checked before the body is read. Then the body is read, and the caller's connection and time are
watched while a dialect answers. Every error becomes an answer in the dialect's shape.
"""

from __future__ import annotations

import asyncio
import re
import secrets
from collections.abc import Awaitable, Coroutine, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Any, TypeVar

from starlette.datastructures import Headers
from starlette.types import Receive, Scope, Send

from alignserve_server.api import Accounting, MethodMetrics, kinds_of_calls
from alignserve_server.errors import ServingError, as_value
from alignserve_server.host.waiting import first_of
from alignserve_server.http.answer import JSON, Answer
from alignserve_server.http.body import BodyReader
from alignserve_server.http.call import Disconnected, HttpCall
from alignserve_server.http.endpoint import Dialect, Endpoint, StreamEndpoint
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
from alignserve_server.http.stream import HttpStream
from alignserve_server.rpc.method_metrics import codes_of, rpc_type
from alignserve_server.rpc.shares import ConnectionShares, open_stream

_REQUEST_ID = "x-request-id"
_ID = re.compile(r"[\w.:-]{1,128}", re.ASCII)
_LATE_SECONDS = 0.05  # after the timeout; items in the queue end by themselves, with a reason of their own


_T = TypeVar("_T")
_Endpoint = Endpoint | StreamEndpoint


@dataclass(frozen=True, slots=True)
class ExchangeLimits:
    """Limits of the requests to all endpoints."""

    max_request_bytes: int
    idle_timeout_seconds: float  # of a stream that sends nothing


class Exchanges:
    """Answers requests: accounts for them, and turns every error into an answer."""

    def __init__(
        self,
        accounting: Accounting,
        reader: BodyReader,
        rooms: AnswerRooms,
        streams: ConnectionShares,
        limits: ExchangeLimits,
    ) -> None:
        """Serves nothing by itself.

        Args:
            accounting: Accounts for the calls.
            reader: Reads the bodies of unary calls.
            rooms: Provides room for answers.
            streams: Shares of the streams that callers may have open.
            limits: The limits.
        """
        self._accounting = accounting
        self._reader = reader
        self._rooms = rooms
        self._streams = streams
        self._limits = limits

    def metrics_of(self, endpoint: _Endpoint) -> MethodMetrics:
        """Prepares the metrics of an endpoint, with their series."""
        kind = rpc_type(
            request_streaming=isinstance(endpoint, StreamEndpoint),
            response_streaming=isinstance(endpoint, StreamEndpoint),
        )
        rules, labels = endpoint.rules, (kind, endpoint.dialect.name, endpoint.name)
        self._accounting.metrics.expect_rpcs(labels, codes_of(rules), kinds_of_calls(rules))
        return self._accounting.method(*labels, rules)

    async def serve(
        self, endpoint: _Endpoint, method: MethodMetrics, scope: Scope, receive: Receive, send: Send
    ) -> None:
        """Answers a request of an endpoint, unless its client leaves before."""
        dialect = endpoint.dialect
        incoming = HttpCall(scope, timeout_header=dialect.timeout_header, paths=dialect.paths)
        request_id = request_id_of(incoming.headers)
        self._accounting.in_progress.begin()
        try:
            with suppress(Disconnected), ExitStack() as life:
                if isinstance(endpoint, StreamEndpoint):
                    await self._converse(endpoint, method, incoming, request_id, receive, send)
                    return
                try:
                    answer = await self._answer(endpoint, method, incoming, request_id, scope, receive, life)
                except ServingError as error:
                    answer = refusal(dialect, as_value(error), request_id, media_type_of(incoming.headers))
                await send_answer(send, answer, request_id)
        finally:
            self._accounting.in_progress.end()

    async def refuse(self, dialect: Dialect, error: ServingError, scope: Scope, send: Send) -> None:
        """Answers a request that no endpoint takes."""
        headers = Headers(scope=scope)
        request_id = request_id_of(headers)
        await send_answer(send, refusal(dialect, error, request_id, media_type_of(headers)), request_id)

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
            if call.trace is not None:
                call.trace.identify(request_id)
            incoming.read_timeout()
            room = self._rooms.of_call(incoming.headers, call.caller_name)
            life.callback(room.give_back)
            reading = self._reader.read(incoming.headers, receive, call.caller_name, life)
            body = await _until(reading, _timeout(incoming))
            request = HttpRequest(scope, incoming, media_type_of(incoming.headers), body, room, request_id)
            leaving = _timeout(incoming, _disconnection(receive))
            return await _until(endpoint.answer(request, call), leaving)

    async def _converse(
        self,
        endpoint: StreamEndpoint,
        method: MethodMetrics,
        incoming: HttpCall,
        request_id: str,
        receive: Receive,
        send: Send,
    ) -> None:
        media_type = media_type_of(incoming.headers)
        stream = HttpStream(
            incoming,
            media_type,
            request_id,
            receive,
            send,
            max_bytes=self._limits.max_request_bytes,
            idle_timeout_seconds=self._limits.idle_timeout_seconds,
        )
        try:
            with (
                self._accounting.call(method, incoming) as call,
                open_stream(self._streams, call.caller_name),
            ):
                if call.trace is not None:
                    call.trace.identify(request_id)
                incoming.read_timeout()
                await _until(endpoint.run(stream, call), _timeout(incoming, stream.take_in()))
        except ServingError as error:
            answer = refusal(endpoint.dialect, as_value(error), request_id, media_type)
            await stream.finish(answer.body, answer.headers)
        else:
            await stream.finish(endpoint.end)


class PathApp:
    """The ASGI app of one path: passes a request to the endpoint for its HTTP method and type of body."""

    def __init__(self, endpoints: Sequence[_Endpoint], exchanges: Exchanges) -> None:
        self._exchanges = exchanges
        self._by_method: dict[str, list[tuple[_Endpoint, MethodMetrics]]] = {}
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

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 — ASGI
        path: str = scope["path"]
        dialect = next(dialect for prefix, dialect in self._dialects if path.startswith(prefix))
        unknown = PathUnknown(f"nothing is served at {shortened(path)!r}")
        await self._exchanges.refuse(dialect, unknown, scope, send)


def refusal(dialect: Dialect, error: ServingError, request_id: str, media_type: str) -> Answer:
    """Returns an error as an answer, with the headers that all dialects send."""
    shown = http_error(error, request_id, media_type)
    answer = dialect.error(shown)
    return Answer(answer.body, answer.status, answer.media_type, (*answer.headers, *shown.headers))


def request_id_of(headers: Headers) -> str:
    """Returns the id that a request has, if it is short and plain, otherwise a new one."""
    given = headers.get(_REQUEST_ID, "")
    return given if _ID.fullmatch(given) else secrets.token_hex(8)


def media_type_of(headers: Headers) -> str:
    """Returns the type of the body, in lower case and without parameters.

    Without one it counts as JSON, as some clients send it, but not from a web page: a browser sends such a
    request for any page, without asking the server first.
    """
    named = headers.get("content-type", "").partition(";")[0].strip().lower()
    return named or ("" if "origin" in headers else JSON)


def _methods_of(endpoint: _Endpoint) -> list[str]:
    methods = list(endpoint.http_methods)
    return [*methods, "HEAD"] if "GET" in methods else methods


async def _until(work: Awaitable[_T], interruption: Coroutine[Any, Any, Exception]) -> _T:
    """Returns the result of the work, or raises what interrupts it once the work has been cancelled."""
    working = asyncio.ensure_future(work)
    error: Exception | None = None
    try:
        error = await first_of(working, interruption)
        if error is None:
            return working.result()
        await asyncio.wait([working])
        raise error
    finally:
        # The exception has this frame in its traceback; references to it would form a cycle.
        del work, working, error


async def _timeout(incoming: HttpCall, event: Awaitable[Exception] | None = None) -> Exception:
    """Returns what an event returns, or the error of a call whose time is over before that."""
    left = incoming.seconds_left()
    try:
        async with asyncio.timeout(None if left is None else left + _LATE_SECONDS):
            return await (event or asyncio.get_running_loop().create_future())
    except TimeoutError:
        return DeadlineExceeded("the timeout of the call is over")


async def _disconnection(receive: Receive) -> Exception:
    while (await receive())["type"] != "http.disconnect":
        pass
    return Disconnected()
