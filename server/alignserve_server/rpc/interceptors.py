"""Wraps every RPC: parses the request, counts, measures, and turns exceptions into statuses.

By default, gRPC responds to malformed messages and unexpected exceptions with UNKNOWN and the exception's
text. Here both become typed errors that leak nothing. For gRPC, every method reads a stream of bytes: the
request of a unary call is read here, once its key has been checked, with a timeout, and must be the only one.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import grpc
from grpc._cython.cygrpc import (  # not exported anywhere else
    ExecuteBatchError,
    _ServerStoppedError,
)

from alignserve_server.api import Accounting, MethodMetrics
from alignserve_server.errors import ServingError, ShuttingDown, as_value
from alignserve_server.host.waiting import first_of
from alignserve_server.rpc.callers import GrpcCall, KnownTransport, enter_call
from alignserve_server.rpc.convert import item_count
from alignserve_server.rpc.method_metrics import rpc_type
from alignserve_server.rpc.methods import METHODS, Methods, rules_of, split_path
from alignserve_server.rpc.request_parser import RequestParser
from alignserve_server.rpc.request_reader import Messages, RequestReader, SmallRequestReader
from alignserve_server.rpc.shares import ConnectionShares, open_stream
from alignserve_server.rpc.status import to_grpc_status

Context = grpc.aio.ServicerContext[Any, Any]
Handler = Callable[[Any, Context], Any]


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """Limits that all connections share."""

    request_timeout_seconds: float  # for the request of a unary call to arrive
    max_uploads: int  # unary calls whose request is arriving; each can use the memory of a request
    max_streams: int  # of the API and of reflection; each can use the memory of a request
    max_watches: int = 1000  # of health
    max_health_uploads: int = 16  # calls of the health service whose request is arriving
    max_request_fields: int = 1 << 13  # per message, unless it is small


class ServingInterceptor(grpc.aio.ServerInterceptor):
    """Wraps every handler, including those of health and reflection."""

    def __init__(self, accounting: Accounting, limits: ConnectionLimits, methods: Methods = METHODS) -> None:
        self._accounting = accounting
        self._methods = methods
        self._max_request_fields = limits.max_request_fields
        self._closing = asyncio.Event()
        metrics = accounting.metrics
        self.uploads = ConnectionShares(limits.max_uploads, metrics.uploads.labels().set)
        self._reader = RequestReader(self.uploads, limits.request_timeout_seconds)
        self._open_reader = SmallRequestReader(limits.max_health_uploads, limits.request_timeout_seconds)
        self.streams = ConnectionShares(limits.max_streams, metrics.streams.labels().set)
        self._open_streams = ConnectionShares(limits.max_watches)
        self._wrapped: dict[str, grpc.RpcMethodHandler[Any, Any] | None] = {}

    def refuse_uploads(self) -> None:
        """Refuses calls whose request has not arrived."""
        self._reader.interrupt(ShuttingDown)
        self._open_reader.interrupt(ShuttingDown)

    def close_watches(self) -> None:
        """Ends all health watches and reflection streams, including those that start later.

        Clients keep these streams open, so a shutdown that waited for them would take the whole grace period.
        """
        self._closing.set()

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        """Returns the wrapped handler of the method; wraps each method only once."""
        method = handler_call_details.method
        if method not in self._wrapped:
            handler = await continuation(handler_call_details)
            if handler is None:  # not cached: clients choose the names of unknown methods
                return handler
            self._wrapped[method] = self.wrap(method, handler)
        return self._wrapped[method]

    def wrap(self, method: str, handler: Any) -> grpc.RpcMethodHandler[Any, Any] | None:
        """Returns a handler that reads the request itself, so that nothing of a refused call is read.

        The handler returns bytes: otherwise the message too would stay in memory until the client reads.
        Returns None, which gRPC treats as an unknown method, if the method has no row in a table.
        """
        rules = rules_of(method, self._methods)
        if rules is None:
            return None
        is_open = rules.scopes is None
        handling = _MethodHandler(
            handler,
            self._accounting,
            self._accounting.method(_kind(handler), *split_path(method), rules),
            self._open_reader if is_open else self._reader,
            self._max_request_fields,
        )
        if not handler.response_streaming:
            return grpc.stream_unary_rpc_method_handler(handling.answer)
        answer = partial(
            handling.answer_in_stream,
            open_streams=self._open_streams if is_open else self.streams,
            closing=self._closing if rules.ends_at_drain else None,
        )
        return grpc.stream_stream_rpc_method_handler(answer, None, handling.serialize)


class _MethodHandler:
    """Handles the calls of one method."""

    def __init__(
        self,
        handler: Any,
        accounting: Accounting,
        method: MethodMetrics,
        reader: RequestReader | SmallRequestReader,
        max_request_fields: int,
    ) -> None:
        self._handler: Handler = (
            handler.unary_unary or handler.unary_stream or handler.stream_unary or handler.stream_stream
        )
        self._reads_stream: bool = handler.request_streaming
        self._parser = RequestParser(handler.request_deserializer, method.path, max_request_fields)
        self._serialize_message = handler.response_serializer
        self._reader = reader
        self._accounting = accounting
        self._method = method

    async def answer(self, _: object, context: Context) -> bytes:
        self._track(context)
        answer = await self._answer(context)
        if isinstance(answer, bytes):
            return answer
        # The call keeps the exception that this raises, and its frames, so this frame must not refer to it.
        aborting = context.abort_with_status(answer)
        del context
        await aborting
        raise AssertionError  # abort raises

    async def answer_in_stream(
        self, _: object, context: Context, open_streams: ConnectionShares, closing: asyncio.Event | None
    ) -> None:
        if closing is None:
            self._track(context)
        status = await self._answer_in_stream(context, open_streams, closing)
        if status is not None:
            await context.abort_with_status(status)

    def serialize(self, response: Any) -> bytes:
        """Returns a response as bytes, unless it is serialized already."""
        if isinstance(response, bytes):
            return response
        serialized: bytes = self._serialize_message(response)
        return serialized

    async def _answer(self, context: Context) -> Any:
        """Returns the response as bytes, or the status if the call fails."""
        try:
            transport = KnownTransport(context)
            with self._accounting.call(self._method, _AioCall(context, transport)) as call:
                enter_call(call, transport)
                request = await self._request(context, transport)
                call.items = item_count(request)
                return self.serialize(await self._handler(request, context))
        except ServingError as error:
            return self._status(error)

    async def _answer_in_stream(
        self, context: Context, open_streams: ConnectionShares, closing: asyncio.Event | None
    ) -> Any:
        """Writes the responses; returns the status if the stream fails, or None."""
        try:
            transport = KnownTransport(context)
            with (
                self._accounting.call(self._method, _AioCall(context, transport)) as call,
                open_stream(open_streams, transport.peer()),
            ):
                enter_call(call, transport)
                given = await self._request(context, transport)
                if closing is None:
                    await self._write_all(given, context)
                else:
                    # A first response sends these too, and while gRPC sends them it can send no status.
                    await context.send_initial_metadata(())
                    await _until(closing, self._write_all(given, context))
        except ServingError as error:
            return self._status(error)
        return None

    def _status(self, error: ServingError) -> Any:
        return to_grpc_status(as_value(error), names_reason=self._method.rules.names_reason)

    def _track(self, context: Context) -> None:
        """Counts the call as in progress until gRPC has finished it."""
        in_progress = self._accounting.in_progress
        in_progress.begin()
        context.add_done_callback(lambda _: in_progress.end())  # type: ignore[arg-type]  # as gRPC calls it

    async def _request(self, context: Context, transport: KnownTransport) -> Any:
        """Returns the handler's argument: the request, or an iterator over the requests of a stream."""
        if self._reads_stream:
            return Messages(context, self._parse)
        return self._parse(await self._reader.read(context, transport.peer()))

    def _parse(self, message: bytes) -> Any:
        return self._parser.parse(message)

    async def _write_all(self, given: Any, context: Context) -> None:
        """Runs a streaming handler of either kind: one that yields, or one that writes."""
        result = self._handler(given, context)
        if not inspect.isasyncgen(result):
            await result
            return
        async for response in result:
            await context.write(response)


async def _until(closing: asyncio.Event, writing: Awaitable[None]) -> None:
    if await first_of(writing, closing.wait()):
        raise ShuttingDown()


class _AioCall(GrpcCall):
    """A call served by grpc.aio."""

    def __init__(self, context: Context, transport: KnownTransport) -> None:
        super().__init__(transport)
        self._context = context

    def seconds_left(self) -> float | None:
        return self._context.time_remaining()

    def code_of(self, error: BaseException) -> str | None:
        if isinstance(error, grpc.aio.AbortError):  # from a handler that is not ours
            return _name(self._context.code())
        # The client has gone; or the call began while gRPC stopped, and its client knows that it is lost.
        return "CANCELLED" if isinstance(error, (ExecuteBatchError, _ServerStoppedError)) else None


def _kind(handler: Any) -> str:
    return rpc_type(
        request_streaming=handler.request_streaming, response_streaming=handler.response_streaming
    )


def _name(code: Any) -> str:
    return code.name if isinstance(code, grpc.StatusCode) else grpc.StatusCode(code).name
