"""Answers calls that came through Ray Serve's proxy, by the handlers and the interceptor of a server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any, NoReturn

import grpc
from alignserve_server.server import Server
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message
from ray.exceptions import TaskCancelledError
from ray.serve.grpc_util import RayServegRPCContext, gRPCInputStream


class Calls:
    """Calls a server's handlers without a connection."""

    def __init__(self, server: Server) -> None:
        self._interceptor = server.interceptor
        self._services = _Services()
        server.add_services_to(self._services)  # type: ignore[arg-type]  # it has all that is called

    async def answer(self, method: str, request: Message, context: RayServegRPCContext) -> Message:
        """Answers a unary call. If it fails, the status is in the context and the answer is empty.

        Ray Serve loses the details of a status if the call ends by an exception.
        """
        handler = await self._handler(method, context)
        try:
            answer: Message = await handler.unary_unary(request, _Context(context))
        except grpc.aio.AbortError:
            return Empty()
        return answer

    async def stream(
        self, method: str, requests: gRPCInputStream[Message], context: RayServegRPCContext
    ) -> AsyncIterator[Message]:
        """Yields the answers of a stream.

        Raises:
            AbortError: It failed. Code and message are in the context; the details of the status are lost.
        """
        handler = await self._handler(method, context)
        answers: asyncio.Queue[Message | None] = asyncio.Queue()  # Ray Serve takes them without delay
        serving = asyncio.ensure_future(
            handler.stream_stream(_read(requests), _Context(context, answers.put))
        )
        serving.add_done_callback(lambda _: answers.put_nowait(None))
        try:
            while (answer := await answers.get()) is not None:
                yield answer
            await serving  # raises what ended it
        finally:
            serving.cancel()
            await asyncio.wait({serving})

    # Any: gRPC's stubs do not type a handler as what can be awaited.
    async def _handler(self, method: str, context: RayServegRPCContext) -> Any:
        details = _CallDetails(method, context.invocation_metadata())
        handler = await self._interceptor.intercept_service(self._services.find, details)
        assert handler is not None  # noqa: S101 — the proxy refuses unknown methods
        return handler


async def _read(requests: gRPCInputStream[Message]) -> AsyncIterator[Message]:
    """Yields the requests until the stream ends or is cancelled, which Ray Serve tells in two ways."""
    try:
        async for request in requests:
            yield request
    except TaskCancelledError:
        raise asyncio.CancelledError from None
    if requests.is_cancelled():
        raise asyncio.CancelledError


@dataclass(frozen=True)
class _CallDetails(grpc.HandlerCallDetails):
    method: str
    invocation_metadata: Any  # gRPC's types say less than what it passes


class _Services:
    """Takes the place of the gRPC server to which generated code adds its services."""

    def __init__(self) -> None:
        self._services: list[grpc.GenericRpcHandler] = []

    def add_generic_rpc_handlers(self, handlers: tuple[grpc.GenericRpcHandler, ...]) -> None:
        self._services.extend(handlers)

    def add_registered_method_handlers(self, service: str, handlers: dict[str, Any]) -> None:
        """Does nothing: they are the same handlers."""

    async def find(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[Any, Any] | None:
        found = (service.service(details) for service in self._services)
        return next((handler for handler in found if handler is not None), None)


class _Context:
    """What the server uses of gRPC's context, on top of what Ray Serve passes on."""

    def __init__(
        self,
        context: RayServegRPCContext,
        write: Callable[[Message], Awaitable[None]] | None = None,
    ) -> None:
        self.write = write
        self.auth_context = context.auth_context
        self.code = context.code
        self.invocation_metadata = context.invocation_metadata
        self.peer = context.peer
        self._context = context

    def time_remaining(self) -> None:
        """Returns none: Ray Serve keeps the deadline to itself and cancels the call when it comes."""

    async def abort(self, code: grpc.StatusCode, details: str = "") -> NoReturn:
        self._context.set_code(code)
        self._context.set_details(details)
        raise grpc.aio.AbortError(details)

    async def abort_with_status(self, status: grpc.Status) -> NoReturn:
        self._context.set_trailing_metadata(list(status.trailing_metadata))
        await self.abort(status.code, status.details)
