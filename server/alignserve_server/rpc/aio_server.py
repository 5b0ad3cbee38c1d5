"""gRPC's server, proof against calls of methods whose name is no text.

From about 1.82 on, grpc.aio decodes that name in the loop that takes calls. One that is not UTF-8 ends the
loop and the server with it, so that a stranger needs a single packet. It does so only with methods that
nobody registered: here all are, and whatever else comes is answered without a look at its name.
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
    """Makes what `grpc.aio.server` makes. Handlers have to be registered; generic ones are never asked."""
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
        """Takes every call of a method that is not registered, and keeps it from the loop."""
        while True:
            refusal = asyncio.create_task(_refuse(await super()._request_call()))
            self._refusals.add(refusal)
            refusal.add_done_callback(self._refusals.discard)


async def _refuse(call: Any) -> None:
    """Answers as grpc.aio does."""
    context = cygrpc._ServicerContext(call, None, None, asyncio.get_running_loop())
    try:
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, "Method not found!")
    except cygrpc.BaseError as error:  # as every call that is aborted; or another, if its client has left
        as_value(error)  # the call keeps it, and its stream would stay open until the collector comes
