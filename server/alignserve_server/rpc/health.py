"""Whether calls can be served now, as the servicer and grpc.health.v1 see it.

The health service is ours, since the one of grpcio-health-checking writes to watchers while it holds the lock
that a change of the status needs: one watcher who does not read would stop the server. Here every watcher is
told in its own call, at its own pace, and whoever is slow misses what has been overtaken meanwhile.
https://github.com/grpc/grpc/blob/master/doc/health-checking.md
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from enum import Enum
from typing import Any, TypeAlias

import grpc
from alignserve.v1 import align_service_pb2 as pb
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2, health_pb2_grpc

from alignserve_server.errors import HealthServiceUnknown, ModelLoading, ModelStalled, ShuttingDown
from alignserve_server.rpc.health_list import HealthListRequest, HealthListResponse

SERVICE = pb.DESCRIPTOR.services_by_name["AlignService"].full_name
HEALTH_SERVICE = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name
_SERVICES = ("", SERVICE)

Context = grpc.aio.ServicerContext[Any, Any]
Response: TypeAlias = health_pb2.HealthCheckResponse


class State(Enum):
    """Where the server is in its life."""

    LOADING = "loading"
    READY = "ready"
    STALLED = "stalled"
    DRAINING = "draining"  # on its way out, still serving
    STOPPING = "stopping"

    @property
    def word(self) -> str:
        """How it is shown, one of `metrics.STATES`: to whoever looks, what drains and what stops are one."""
        return _WORDS.get(self, self.value)


_WORDS = {State.READY: "serving", State.STOPPING: "draining"}


class Readiness:
    """The state of the server. Changing it waits for nobody."""

    def __init__(self, tell: Callable[[str], object] = lambda _: None) -> None:
        """Begins with loading; `tell` takes the word for each state that follows."""
        self._tell = tell
        self.state = State.LOADING
        self.changed = asyncio.Event()  # set, and replaced by a new one, with the next change

    def enter(self, state: State) -> None:
        """Changes the state. There is no way back from draining, nor from stopping."""
        if self.state is State.STOPPING or (self.state is State.DRAINING and state is not State.STOPPING):
            return
        self.state = state
        changed, self.changed = self.changed, asyncio.Event()
        changed.set()
        self._tell(state.word)

    def check(self) -> None:
        """Passes if a call that comes now can be served. A draining server still serves those that come.

        Raises:
            ModelLoading, ModelStalled: It cannot, for now.
            ShuttingDown: It cannot any more.
        """
        self.check_model()
        if self.state is State.STOPPING:
            raise ShuttingDown()

    def check_model(self) -> None:
        """Passes if what has been accepted can be served, which a stopping server still does.

        Raises:
            ModelLoading, ModelStalled: It cannot, for now.
        """
        if self.state is State.LOADING:
            raise ModelLoading("the model is loading; retry after the delay", retry_delay_seconds=1.0)
        if self.state is State.STALLED:
            raise model_stalled()


def model_stalled() -> ModelStalled:
    """Returns the answer to calls while nothing moves."""
    return ModelStalled("the model is stuck; retry on another server", retry_delay_seconds=5.0)


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
        context: Context,  # noqa: ARG002
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
