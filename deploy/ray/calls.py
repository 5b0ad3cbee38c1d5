"""Answers calls that came through Ray Serve's proxy, by the handlers and the interceptor of a server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any, NoReturn

import grpc
from alignserve_server.serving.server import Server
from google.protobuf import descriptor_pool, message_factory
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
        called = _Context(context, _only(request))
        try:
            answer = await handler.stream_unary(None, called)
        except grpc.aio.AbortError:
            return Empty()
        finally:
            called.end()
        return self._services.response(method, answer)

    async def stream(
        self, method: str, requests: gRPCInputStream[Message], context: RayServegRPCContext
    ) -> AsyncIterator[Message]:
        """Yields the answers of a stream.

        Raises:
            AbortError: It failed. Code and message are in the context; the details of the status are lost.
        """
        handler = await self._handler(method, context)
        answers: asyncio.Queue[Message | None] = asyncio.Queue()  # Ray Serve takes them without delay

        async def write(answer: bytes) -> None:
            await answers.put(self._services.response(method, answer))

        called = _Context(context, _read(requests), write)
        serving = asyncio.ensure_future(handler.stream_stream(None, called))
        serving.add_done_callback(lambda _: answers.put_nowait(None))
        try:
            while (answer := await answers.get()) is not None:
                yield answer
            await serving  # raises what ended it
        finally:
            serving.cancel()
            await asyncio.wait({serving})
            called.end()

    # Any: gRPC's stubs do not type a handler as what can be awaited.
    async def _handler(self, method: str, context: RayServegRPCContext) -> Any:
        details = _CallDetails(method, context.invocation_metadata())
        handler = await self._interceptor.intercept_service(self._services.find, details)
        assert handler is not None  # noqa: S101 — the proxy refuses unknown methods
        return handler


async def _only(request: Message) -> AsyncIterator[Message]:
    yield request


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
        self._responses: dict[str, type[Message]] = {}

    def add_generic_rpc_handlers(self, handlers: tuple[grpc.GenericRpcHandler, ...]) -> None:
        self._services.extend(handlers)

    def add_registered_method_handlers(self, service: str, handlers: dict[str, Any]) -> None:
        """Does nothing: they are the same handlers."""

    def response(self, method: str, answer: bytes) -> Message:
        """Returns an answer as the message that Ray Serve asks for; to the server's own gRPC it is bytes."""
        if method not in self._responses:
            self._responses[method] = _response_class(method)
        response: Message = self._responses[method].FromString(answer)
        return response

    async def find(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[Any, Any] | None:
        found = (service.service(details) for service in self._services)
        return next((handler for handler in found if handler is not None), None)


class _Context:
    """What the server uses of gRPC's context, on top of what Ray Serve passes on."""

    def __init__(
        self,
        context: RayServegRPCContext,
        requests: AsyncIterator[Message],
        write: Callable[[bytes], Awaitable[None]] | None = None,
    ) -> None:
        self.write = write
        self._requests = requests
        self._done_callbacks: list[Callable[[Any], object]] = []
        self.auth_context = context.auth_context
        self.code = context.code
        self.invocation_metadata = context.invocation_metadata
        self.peer = context.peer
        self._context = context

    async def read(self) -> bytes | object:
        """Returns the next request as it came to the proxy, or grpc.aio.EOF."""
        request = await anext(self._requests, None)
        return grpc.aio.EOF if request is None else request.SerializeToString()

    def add_done_callback(self, callback: Callable[[Any], object]) -> None:
        self._done_callbacks.append(callback)

    def end(self) -> None:
        """Tells those who wait for it that the call is over."""
        for callback in self._done_callbacks:
            callback(self)

    def time_remaining(self) -> None:
        """Returns none: Ray Serve keeps the deadline to itself and cancels the call when it comes."""

    async def abort(self, code: grpc.StatusCode, details: str = "") -> NoReturn:
        self._context.set_code(code)
        self._context.set_details(details)
        raise grpc.aio.AbortError(details)

    async def abort_with_status(self, status: grpc.Status) -> NoReturn:
        self._context.set_trailing_metadata(list(status.trailing_metadata))
        await self.abort(status.code, status.details)


def _response_class(method: str) -> type[Message]:
    _, service, name = method.split("/")
    descriptor = descriptor_pool.Default().FindServiceByName(service).methods_by_name[name].output_type
    response: type[Message] = message_factory.GetMessageClass(descriptor)
    return response
