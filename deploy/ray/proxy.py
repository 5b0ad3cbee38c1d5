"""Runs in Ray Serve's proxy: passes deadlines to replicas, and the status of ended streams to callers.

Ray Serve forwards metadata but no deadline, and a status with its details only together with a message. So
the deadline becomes metadata here, and the empty message that carries the status at the end of a stream is
dropped. `serve_config.yaml` names `add_services` among the `grpc_servicer_functions`.
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

from alignserve.v1.align_service_pb2_grpc import add_AlignServiceServicer_to_server
from grpc_health.v1.health_pb2_grpc import add_HealthServicer_to_server

SECONDS_LEFT_KEY = "alignserve-seconds-left"  # infinity if there is no deadline; only this proxy sends it

_MakeHandler = Callable[..., Callable[..., Any]]


def add_services(servicer: Any, server: Any) -> None:
    """Adds the API and its health service to the proxy's server.

    Args:
        servicer: Never called, because Ray Serve replaces all handlers with those of its factory.
        server: Ray Serve's `gRPCGenericServer`.
    """
    make_handler = server.service_handler_factory
    server.service_handler_factory = _wrapping(make_handler)
    try:
        add_AlignServiceServicer_to_server(servicer, server)
        add_HealthServicer_to_server(servicer, server)
    finally:
        server.service_handler_factory = make_handler


def _wrapping(make_handler: _MakeHandler) -> _MakeHandler:
    def make(**of_method: Any) -> Callable[..., Any]:
        handle = make_handler(**of_method)

        async def answer(request: Any, context: Any) -> Any:
            return await handle(request, _TimedContext(context))

        async def stream(requests: Any, context: Any) -> AsyncIterator[bytes]:
            async for message in handle(requests, _TimedContext(context)):
                if message:
                    yield message

        return stream if inspect.isasyncgenfunction(handle) else answer

    return make


class _TimedContext:
    """gRPC's context of a call, with the time until its deadline among the metadata."""

    def __init__(self, context: Any) -> None:
        left = context.time_remaining()
        sent = [entry for entry in context.invocation_metadata() or () if entry[0] != SECONDS_LEFT_KEY]
        self._context = context
        self._metadata = (*sent, (SECONDS_LEFT_KEY, str(float("inf") if left is None else left)))

    def invocation_metadata(self) -> Sequence[tuple[str, Any]]:
        return self._metadata

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)
