"""grpc.health.v1: reports the state of the server to load balancers and orchestrators.

This replaces the servicer of grpcio-health-checking, which writes to watchers while it holds the lock that a
status change needs: a single watcher that does not read would block the server. Here each watcher is updated
by its own call, at its own pace, and a slow one skips statuses that have changed again in the meantime.
https://github.com/grpc/grpc/blob/master/doc/health-checking.md
"""

from __future__ import annotations

from typing import Any, TypeAlias

import grpc
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2, health_pb2_grpc

from alignserve_server.api import Readiness, State
from alignserve_server.errors import HealthServiceUnknown
from alignserve_server.rpc.health_list import HealthListRequest, HealthListResponse
from alignserve_server.rpc.methods import HEALTH_SERVICE, SERVICE

_SERVICES = ("", SERVICE)

Context = grpc.aio.ServicerContext[Any, Any]
Response: TypeAlias = health_pb2.HealthCheckResponse


class HealthServicer(health_pb2_grpc.HealthServicer):  # type: ignore[misc]  # ships no types
    """Reports the server, named "", and the API as SERVING only when ready."""

    def __init__(self, readiness: Readiness) -> None:
        self._readiness = readiness

    async def Check(
        self,
        request: health_pb2.HealthCheckRequest,
        context: Context,  # noqa: ARG002 — gRPC passes it
    ) -> Response:
        status = self._status(request.service)
        if status == Response.SERVICE_UNKNOWN:
            raise HealthServiceUnknown(f"unknown service; use {SERVICE!r}, or '' for the whole server")
        response: Response = Response(status=status)
        return response

    async def Watch(self, request: health_pb2.HealthCheckRequest, context: Context) -> None:
        """Writes the status now and after changes; of several quick changes, only the last one."""
        told = None
        while True:
            changed, status = self._readiness.changed, self._status(request.service)
            if status != told:
                await context.write(Response(status=status))
                told = status
            else:
                await changed.wait()

    async def List(
        self,
        request: Message,  # noqa: ARG002 — the message is empty
        context: Context,  # noqa: ARG002 — gRPC passes it
    ) -> Message:
        statuses = {service: {"status": self._status(service)} for service in _SERVICES}
        response: Message = HealthListResponse(statuses=statuses)
        return response

    def _status(self, service: str) -> int:
        if service not in _SERVICES:
            return int(Response.SERVICE_UNKNOWN)
        is_ready = self._readiness.state is State.READY
        return int(Response.SERVING if is_ready else Response.NOT_SERVING)


def add_health_to(server: grpc.aio.Server, servicer: HealthServicer) -> None:
    """Adds the service to a server, including `List`, which the generated code may lack."""
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    if not hasattr(health_pb2, "HealthListResponse"):
        handler = grpc.unary_unary_rpc_method_handler(
            servicer.List, HealthListRequest.FromString, HealthListResponse.SerializeToString
        )
        handlers = {"List": handler}
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(HEALTH_SERVICE, handlers),))
        server.add_registered_method_handlers(HEALTH_SERVICE, handlers)
