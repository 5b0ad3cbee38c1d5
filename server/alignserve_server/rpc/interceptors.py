"""The edge of every RPC: parses the request, counts, times, and turns exceptions into statuses.

gRPC's own edge answers malformed messages and unexpected exceptions with UNKNOWN and the exception's text.
Here both become typed errors that leak nothing: to gRPC, every message can be parsed, and some turn out to be
an error.
"""

from __future__ import annotations

import asyncio
import inspect
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from types import TracebackType
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from grpc._cython.cygrpc import (  # type: ignore[import-not-found]  # a C extension; exported nowhere else
    ExecuteBatchError,
)

from alignserve_server.errors import InternalError, RequestMalformed, ServingError, ShuttingDown
from alignserve_server.instruments import Number
from alignserve_server.logs import get_logger
from alignserve_server.metrics import Metrics
from alignserve_server.rpc.access import Access, is_refused
from alignserve_server.rpc.health import SERVICE
from alignserve_server.rpc.status import to_grpc_status
from alignserve_server.tracing import CallTrace, Metadata, Tracing

_log = get_logger(__name__)

Context = grpc.aio.ServicerContext[Any, Any]
Handler = Callable[[Any, Context], Any]
_Follow = Callable[[Callable[[], Metadata | None]], CallTrace | None]

# A client's own timer runs from before the request was on its way, so at the deadline its reset comes first.
_DEADLINE_TOLERANCE_SECONDS = 0.02


def internal_error(where: str, error: BaseException) -> InternalError:
    """Logs an unexpected exception under a new id and returns what the caller may know of it."""
    error_id = secrets.token_hex(8)
    _log.error("unexpected_error", where=where, error_id=error_id, exc_info=error)
    return InternalError(
        f"the server failed; report error id {error_id} to the operator", metadata={"error_id": error_id}
    )


class ServingInterceptor(grpc.aio.ServerInterceptor):
    """Wraps every handler, health and reflection too."""

    def __init__(self, metrics: Metrics, access: Access, tracing: Tracing) -> None:
        self._metrics = metrics
        self._access = access
        self._tracing = tracing
        self._closing = asyncio.Event()
        self._wrapped: dict[str, grpc.RpcMethodHandler[Any, Any]] = {}

    def close_watches(self) -> None:
        """Ends health watches and reflection, now and from now on.

        Clients leave those streams open, so a shutdown that waited for them would last out its grace.
        """
        self._closing.set()

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        """Returns the wrapped handler of the method; wraps each method once."""
        method = handler_call_details.method
        self._access.identify(method, handler_call_details.invocation_metadata)
        if method not in self._wrapped:
            handler = await continuation(handler_call_details)
            if handler is None:  # unknown methods are not kept: their names are the callers'
                return handler
            self._wrapped[method] = self._wrap(method, handler)
        return self._wrapped[method]

    def _wrap(self, method: str, handler: Any) -> grpc.RpcMethodHandler[Any, Any]:
        edge = _Edge(method, handler, self._metrics, self._access, self._tracing, self._closing)
        make, answer = {
            (False, False): (grpc.unary_unary_rpc_method_handler, edge.answer),
            (False, True): (grpc.unary_stream_rpc_method_handler, edge.answer_in_stream),
            (True, False): (grpc.stream_unary_rpc_method_handler, edge.answer),
            (True, True): (grpc.stream_stream_rpc_method_handler, edge.answer_in_stream),
        }[handler.request_streaming, handler.response_streaming]
        return make(answer, edge.parse, handler.response_serializer)


class _Edge:
    """The edge of one method."""

    def __init__(
        self,
        method: str,
        handler: Any,
        metrics: Metrics,
        access: Access,
        tracing: Tracing,
        closing: asyncio.Event,
    ) -> None:
        self._method = method
        self._handler: Handler = (
            handler.unary_unary or handler.unary_stream or handler.stream_unary or handler.stream_stream
        )
        self._reads_stream: bool = handler.request_streaming
        self._parse = handler.request_deserializer
        self._closing = closing
        _, service, name = method.split("/")
        self._is_watch: bool = handler.response_streaming and service != SERVICE
        counts_items = handler.request_streaming and service == SERVICE
        self._admitted = partial(access.call, counts_items=counts_items)
        kind = _KINDS[handler.request_streaming, handler.response_streaming]
        follow = partial(tracing.begin, service, name) if service == SERVICE else _follow_nothing
        self._calls = _Calls(method, metrics, (kind, service, name), follow)

    def parse(self, message: bytes) -> Any:
        """Returns the request, or why it is none; of a call that is refused, nothing is read."""
        if is_refused():
            return None
        try:
            return self._parse(message)
        except (DecodeError, UnicodeDecodeError):
            return RequestMalformed(
                f"the request is not a valid message of {self._method}; use stubs made from its protos"
            )

    async def answer(self, given: Any, context: Context) -> Any:
        try:
            with _Handling(self._calls, context), self._admitted():
                return await self._handler(self._checked(given), context)
        except ServingError as error:
            await context.abort_with_status(to_grpc_status(error))

    async def answer_in_stream(self, given: Any, context: Context) -> None:
        try:
            with _Handling(self._calls, context), self._admitted():
                writing = self._write_all(given, context)
                await (self._until_closing(writing) if self._is_watch else writing)
        except ServingError as error:
            await context.abort_with_status(to_grpc_status(error))

    async def _write_all(self, given: Any, context: Context) -> None:
        """Runs a streaming handler of either kind: one that yields, or one that writes by itself."""
        result = self._handler(self._checked(given), context)
        if not inspect.isasyncgen(result):
            await result
            return
        async for response in result:
            await context.write(response)

    async def _until_closing(self, writing: Awaitable[None]) -> None:
        working, closing = asyncio.ensure_future(writing), asyncio.ensure_future(self._closing.wait())
        try:
            await asyncio.wait({working, closing}, return_when=asyncio.FIRST_COMPLETED)
            if not working.done():
                raise ShuttingDown()
            working.result()
        finally:
            working.cancel()
            closing.cancel()

    def _checked(self, given: Any) -> Any:
        """Returns what the handler takes, the one request or an iterator; raises where a message is none."""
        return _valid_only(given) if self._reads_stream else _valid(given)


class _Calls:
    """The metrics of one method's calls; each series is looked up once."""

    def __init__(self, method: str, metrics: Metrics, labels: tuple[str, str, str], follow: _Follow) -> None:
        self.method = method
        self.follow = follow
        self.started = metrics.rpcs_started.labels(*labels)
        self.seconds = metrics.rpc_seconds.labels(*labels)
        self.count_refusal = metrics.count_refusal
        self._handled = metrics.rpcs_handled
        self._labels = labels
        self._handled_by_code: dict[str, Number] = {}

    def handled(self, code: str) -> Number:
        """Returns the counter of calls that end with a code."""
        if code not in self._handled_by_code:
            self._handled_by_code[code] = self._handled.labels(*self._labels, code)
        return self._handled_by_code[code]


class _Handling:
    """Counts and times a call; what its handler raises by mistake becomes an `InternalError`."""

    __slots__ = ("_calls", "_context", "_start", "_trace")

    def __init__(self, calls: _Calls, context: Context) -> None:
        self._calls = calls
        self._context = context

    def __enter__(self) -> None:
        self._calls.started.inc()
        self._trace = self._calls.follow(self._context.invocation_metadata)
        self._start = time.perf_counter()

    def __exit__(
        self, _: type[BaseException] | None, error: BaseException | None, __: TracebackType | None
    ) -> None:
        code = self._code(error)
        exemplar = None if self._trace is None else self._trace.exemplar
        self._calls.seconds.observe(time.perf_counter() - self._start, exemplar)
        self._calls.handled(code or "INTERNAL").inc()
        if self._trace is not None:
            self._trace.end(code or "INTERNAL", error)
        if code is None:  # nothing unexpected may reach gRPC, which would send its text
            assert isinstance(error, Exception)  # noqa: S101 — `_code` knows all others
            raise internal_error(self._calls.method, error) from error

    def _code(self, error: BaseException | None) -> str | None:
        """Names the code with which the call ends, or None if the error is unexpected."""
        if error is None:
            return "OK"
        if isinstance(error, ServingError):
            self._calls.count_refusal(error)
            return error.code
        if isinstance(error, grpc.aio.AbortError):  # of handlers that are not ours
            return _name(self._context.code())
        if isinstance(error, ExecuteBatchError):  # a write to a client that has left
            return "CANCELLED"
        if isinstance(error, Exception):
            return None
        return code_of_cancellation(self._context.time_remaining())


def _follow_nothing(_: Callable[[], Metadata | None]) -> None:
    """Health checks and reflection would crowd out what is worth following."""


_KINDS = {
    (False, False): "unary",
    (False, True): "server_stream",
    (True, False): "client_stream",
    (True, True): "bidi_stream",
}


def code_of_cancellation(seconds_remaining: float | None) -> str:
    """Names what ended a call that gRPC cancelled: its client, or its deadline."""
    if seconds_remaining is None or seconds_remaining > _DEADLINE_TOLERANCE_SECONDS:
        return "CANCELLED"
    return "DEADLINE_EXCEEDED"


def _valid(request: Any) -> Any:
    if isinstance(request, ServingError):
        raise request
    return request


async def _valid_only(requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
    async for request in requests:
        yield _valid(request)


def _name(code: Any) -> str:
    return code.name if isinstance(code, grpc.StatusCode) else grpc.StatusCode(code).name
