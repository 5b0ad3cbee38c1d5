"""A grpc.aio server that survives method names that are not UTF-8.

From about 1.82 on, grpc.aio decodes the method name in the loop that accepts calls. A name that is not UTF-8
ends that loop, and with it the server: a single packet from anyone is enough. Only the names of unregistered
methods are decoded. Here every method is registered, and all other calls are refused without decoding.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, NoReturn

import grpc
from grpc._cython import cygrpc  # a C extension, which grpc.aio wraps

from alignserve_server.errors import as_value

_REGISTERS_METHODS = hasattr(cygrpc.AioServer, "_request_registered_call")


def aio_server(
    interceptors: Sequence[grpc.aio.ServerInterceptor], options: Sequence[tuple[str, Any]]
) -> grpc.aio.Server:
    """Returns a server like `grpc.aio.server`. Handlers must be registered; generic handlers are ignored."""
    if not _REGISTERS_METHODS:
        return grpc.aio.server(interceptors=interceptors, options=options)
    original, cygrpc.AioServer = cygrpc.AioServer, _Server  # there is no parameter for it
    try:
        return grpc.aio.server(interceptors=interceptors, options=options)
    finally:
        cygrpc.AioServer = original


class _Server(cygrpc.AioServer):  # type: ignore[misc]  # has no types
    def __init__(self, *arguments: object) -> None:
        super().__init__(*arguments)
        self._refusals: set[asyncio.Task[None]] = set()

    async def _request_call(self) -> NoReturn:
        """Refuses every call of an unregistered method before it reaches the accept loop."""
        while True:
            refusal = asyncio.create_task(_refuse(await super()._request_call()))
            self._refusals.add(refusal)
            refusal.add_done_callback(self._refusals.discard)


async def _refuse(call: Any) -> None:
    """Responds as grpc.aio does."""
    context = cygrpc._ServicerContext(call, None, None, asyncio.get_running_loop())
    try:
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, "Method not found!")
    except cygrpc.BaseError as error:  # abort always raises; a client that has gone raises another one
        as_value(error)  # the call keeps it, so its stream would stay open until garbage collection
