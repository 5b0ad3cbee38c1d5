"""A grpc.aio server that survives method names that are not UTF-8, and accepts calls at less cost.

From about 1.82 on, grpc.aio decodes the method name in the loop that accepts calls. A name that is not UTF-8
ends that loop, and with it the server: a single packet from anyone is enough. Only the names of unregistered
methods are decoded. Here every method is registered, and all other calls are refused without decoding.

For each call, that loop also starts to wait for the next call of every method, and asks the interceptors for
the handler. Here each method has a task that accepts all of its calls and knows their handler. With an
unexpected version of gRPC, its own loop is used.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
from functools import partial
from typing import Any, NoReturn

import grpc
from grpc._cython import cygrpc  # a C extension, which grpc.aio wraps

from alignserve_server.errors import as_value
from alignserve_server.rpc.interceptors import ServingInterceptor

_PARAMETERS = {  # of gRPC's functions that are used to start calls
    "_finish_handler_with_unary_response": 6,
    "_handle_stream_stream_rpc": 3,
    "_schedule_rpc_coro": 4,
}
_REGISTERS_METHODS = hasattr(cygrpc.AioServer, "_request_registered_call")


def aio_server(interceptor: ServingInterceptor, options: Sequence[tuple[str, Any]]) -> grpc.aio.Server:
    """Returns a server like `grpc.aio.server`. Handlers must be registered; generic handlers are ignored."""
    if not _REGISTERS_METHODS:
        return grpc.aio.server(interceptors=[interceptor], options=options)
    make = partial(_AcceptingServer, interceptor) if _can_start_calls() else _Server
    original, cygrpc.AioServer = cygrpc.AioServer, make  # there is no parameter for it
    try:
        return grpc.aio.server(interceptors=[interceptor], options=options)
    finally:
        cygrpc.AioServer = original


class _Server(cygrpc.AioServer):  # type: ignore[misc]  # has no types
    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._tasks: set[asyncio.Task[None]] = set()  # the loop itself keeps only weak references

    async def _request_call(self) -> NoReturn:
        """Refuses every call of an unregistered method before it reaches the accept loop."""
        while True:
            self._run(_refuse(await super()._request_call()))

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


class _AcceptingServer(_Server):
    """Starts calls itself, in the way of grpc.aio."""

    def __init__(self, interceptor: ServingInterceptor, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._interceptor = interceptor
        self._handlers: dict[str, Any] = {}

    def add_registered_method_handlers(self, method_handlers: Mapping[str, Any]) -> None:
        self._handlers.update(method_handlers)
        super().add_registered_method_handlers(method_handlers)

    async def _request_registered_call(self, method: bytes) -> NoReturn:
        """Starts every call of a method before it reaches the accept loop."""
        start = self._starter(method.decode())
        request_call = super()._request_registered_call
        while True:
            start(await request_call(method))

    def _starter(self, path: str) -> Callable[[Any], object]:
        """Returns the function that starts an accepted call of a method."""
        handler: Any = self._interceptor.wrap(path, self._handlers[path])
        loop = asyncio.get_running_loop()

        def refuse(call: Any) -> None:
            self._run(_refuse(call))

        def start(call: Any) -> None:
            if handler.response_streaming:
                serving = cygrpc._handle_stream_stream_rpc(handler, call, loop)
            else:
                context = cygrpc._ServicerContext(call, None, None, loop)
                serving = cygrpc._finish_handler_with_unary_response(
                    call, handler.stream_unary, None, context, None, loop
                )
            self._run(cygrpc._schedule_rpc_coro(serving, call, loop, path))

        return refuse if handler is None else start


def _can_start_calls() -> bool:
    """Returns whether gRPC's functions that start a call are the expected ones."""
    return all(
        hasattr(cygrpc, name) and getattr(cygrpc, name).__code__.co_argcount == parameters
        for name, parameters in _PARAMETERS.items()
    )


async def _refuse(call: Any) -> None:
    """Responds as grpc.aio does."""
    context = cygrpc._ServicerContext(call, None, None, asyncio.get_running_loop())
    try:
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, "Method not found!")
    except cygrpc.BaseError as error:  # abort always raises; a client that has gone raises another one
        as_value(error)  # the call keeps it, so its stream would stay open until garbage collection
