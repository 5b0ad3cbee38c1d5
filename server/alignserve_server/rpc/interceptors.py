"""The edge of every RPC: parses the request, counts, times, and turns exceptions into statuses.

gRPC's own edge answers malformed messages and unexpected exceptions with UNKNOWN and the exception's text.
Here the handlers get raw bytes, so that both become typed errors that leak nothing.
"""

from __future__ import annotations

import asyncio
import inspect
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, NoReturn

import grpc
from google.protobuf.message import DecodeError
from grpc._cython.cygrpc import (  # type: ignore[import-not-found]  # a C extension; exported nowhere else
    ExecuteBatchError,
)

from alignserve_server.errors import InternalError, RequestMalformed, ServingError
from alignserve_server.logs import get_logger
from alignserve_server.metrics import Metrics
from alignserve_server.rpc.status import to_grpc_status

_log = get_logger(__name__)

Context = grpc.aio.ServicerContext[Any, Any]
Handler = Callable[[Any, Context], Any]


def internal_error(where: str, error: BaseException) -> InternalError:
    """Logs an unexpected exception under a new id and returns what the caller may know of it."""
    error_id = secrets.token_hex(8)
    _log.error("unexpected_error", where=where, error_id=error_id, exc_info=error)
    return InternalError(
        f"the server failed; report error id {error_id} to the operator", metadata={"error_id": error_id}
    )


class ServingInterceptor(grpc.aio.ServerInterceptor):
    """Wraps every handler, health and reflection too."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._wrapped: dict[str, grpc.RpcMethodHandler[Any, Any]] = {}

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        """Returns the wrapped handler of the method; wraps each method once."""
        method = handler_call_details.method
        if method not in self._wrapped:
            handler = await continuation(handler_call_details)
            if handler is None:  # unknown methods are not kept: their names are the callers'
                return handler
            self._wrapped[method] = self._wrap(method, handler)
        return self._wrapped[method]

    def _wrap(self, method: str, handler: Any) -> grpc.RpcMethodHandler[Any, Any]:
        edge = _Edge(method, handler, self._metrics)
        serializer = handler.response_serializer
        if handler.unary_unary:
            return grpc.unary_unary_rpc_method_handler(edge.answer, None, serializer)
        if handler.unary_stream:
            return grpc.unary_stream_rpc_method_handler(edge.answer_in_stream, None, serializer)
        if handler.stream_unary:
            return grpc.stream_unary_rpc_method_handler(edge.answer_stream, None, serializer)
        return grpc.stream_stream_rpc_method_handler(edge.answer_stream_in_stream, None, serializer)


class _Edge:
    """The edge of one method."""

    def __init__(self, method: str, handler: Any, metrics: Metrics) -> None:
        self._method = method
        self._handler: Handler = (
            handler.unary_unary or handler.unary_stream or handler.stream_unary or handler.stream_stream
        )
        self._parse = handler.request_deserializer
        self._metrics = metrics
        _, service, name = method.split("/")
        self._labels = (_KINDS[handler.request_streaming, handler.response_streaming], service, name)
        self._started = metrics.rpcs_started.labels(*self._labels)
        self._seconds = metrics.rpc_seconds.labels(*self._labels)

    async def answer(self, request: bytes, context: Context) -> Any:
        async def work() -> Any:
            return await self._handler(self._parsed(request), context)

        return await self._guard(work, context)

    async def answer_in_stream(self, request: bytes, context: Context) -> None:
        async def work() -> None:
            await _write_all(self._handler(self._parsed(request), context), context)

        await self._guard(work, context)

    async def answer_stream(self, requests: AsyncIterator[bytes], context: Context) -> Any:
        async def work() -> Any:
            return await self._handler(self._all_parsed(requests), context)

        return await self._guard(work, context)

    async def answer_stream_in_stream(self, requests: AsyncIterator[bytes], context: Context) -> None:
        async def work() -> None:
            await _write_all(self._handler(self._all_parsed(requests), context), context)

        await self._guard(work, context)

    async def _guard(self, work: Callable[[], Awaitable[Any]], context: Context) -> Any:
        self._started.inc()
        start = time.perf_counter()
        code = "OK"
        try:
            return await work()
        except ServingError as error:
            code = error.code
            self._metrics.count_refusal(error)
            await _abort(context, error)
        except grpc.aio.AbortError:  # of handlers that are not ours
            code = _name(context.code())
            raise
        except asyncio.CancelledError:
            remaining = context.time_remaining()
            code = "CANCELLED" if remaining is None or remaining > 0 else "DEADLINE_EXCEEDED"
            raise
        except ExecuteBatchError:  # a write to a client that has left
            code = "CANCELLED"
            raise
        except Exception as error:  # noqa: BLE001 — nothing unexpected may reach gRPC, which would send its text
            code = "INTERNAL"
            await _abort(context, internal_error(self._method, error))
        finally:
            self._seconds.observe(time.perf_counter() - start)
            self._metrics.rpcs_handled.labels(*self._labels, code).inc()

    def _parsed(self, request: bytes) -> Any:
        try:
            return self._parse(request)
        except (DecodeError, UnicodeDecodeError) as error:
            raise RequestMalformed(
                f"the request is not a valid message of {self._method}; use stubs made from its protos"
            ) from error

    async def _all_parsed(self, requests: AsyncIterator[bytes]) -> AsyncIterator[Any]:
        async for request in requests:
            yield self._parsed(request)


_KINDS = {
    (False, False): "unary",
    (False, True): "server_stream",
    (True, False): "client_stream",
    (True, True): "bidi_stream",
}


async def _write_all(result: Any, context: Context) -> None:
    """Runs a streaming handler of either kind: one that yields responses, or one that writes them itself."""
    if not inspect.isasyncgen(result):
        await result
        return
    async for response in result:
        await context.write(response)


async def _abort(context: Context, error: ServingError) -> NoReturn:
    await context.abort_with_status(to_grpc_status(error))
    raise AssertionError("abort_with_status returned")


def _name(code: Any) -> str:
    return code.name if isinstance(code, grpc.StatusCode) else grpc.StatusCode(code).name
