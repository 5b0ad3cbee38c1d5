"""grpc.health.v1: shows the state of the server to balancers and orchestrators.

The health service is ours, since the one of grpcio-health-checking writes to watchers while it holds the lock
that a change of the status needs: one watcher who does not read would stop the server. Here every watcher is
told in its own call, at its own pace, and whoever is slow misses what has been overtaken meanwhile.
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
    """grpc.health.v1 for the server, named "", and for the API: SERVING only when ready."""

    def __init__(self, readiness: Readiness) -> None:
        self._readiness = readiness

    async def Check(
        self,
        request: health_pb2.HealthCheckRequest,
        context: Context,  # noqa: ARG002 — gRPC passes it
    ) -> Response:
        status = self._status(request.service)
        if status == Response.SERVICE_UNKNOWN:
            raise HealthServiceUnknown(
                f"no service of that name here; ask for {SERVICE!r}, or for '' to mean the server"
            )
        response: Response = Response(status=status)
        return response

    async def Watch(self, request: health_pb2.HealthCheckRequest, context: Context) -> None:
        """Writes the status now and whenever it has changed; of several changes the last one."""
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
    """Adds the service to a server; `List` too, which the generated code may not know."""
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    if not hasattr(health_pb2, "HealthListResponse"):
        handler = grpc.unary_unary_rpc_method_handler(
            servicer.List, HealthListRequest.FromString, HealthListResponse.SerializeToString
        )
        handlers = {"List": handler}
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(HEALTH_SERVICE, handlers),))
        server.add_registered_method_handlers(HEALTH_SERVICE, handlers)
