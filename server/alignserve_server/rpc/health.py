"""Whether calls can be served now, as the servicer and grpc.health.v1 see it."""

from __future__ import annotations

from enum import Enum

from alignserve.v1 import align_service_pb2 as pb
from grpc_health.v1 import health_pb2
from grpc_health.v1.health import aio

from alignserve_server.errors import ModelLoading, ModelStalled, ShuttingDown

SERVICE = pb.DESCRIPTOR.services_by_name["AlignService"].full_name
_SERVICES = ("", SERVICE)


class State(Enum):
    """Where the server is in its life."""

    LOADING = "loading"
    READY = "ready"
    STALLED = "stalled"
    DRAINING = "draining"  # on its way out, still serving
    STOPPING = "stopping"


class Readiness:
    """The state, and its view by grpc.health.v1: SERVING only when ready, for the server and per service."""

    def __init__(self) -> None:
        self.state = State.LOADING
        self.servicer = aio.HealthServicer()

    async def start(self) -> None:
        """Publishes NOT_SERVING, before the port opens."""
        await self._publish(health_pb2.HealthCheckResponse.NOT_SERVING)

    async def enter(self, state: State) -> None:
        """Changes the state. There is no way back from draining, nor from stopping."""
        if self.state is State.STOPPING or (self.state is State.DRAINING and state is not State.STOPPING):
            return
        self.state = state
        if state in (State.DRAINING, State.STOPPING):
            await self.servicer.enter_graceful_shutdown()
        elif state is State.READY:
            await self._publish(health_pb2.HealthCheckResponse.SERVING)
        else:
            await self._publish(health_pb2.HealthCheckResponse.NOT_SERVING)

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

    async def _publish(self, status: health_pb2.HealthCheckResponse.ServingStatus) -> None:
        for service in _SERVICES:
            await self.servicer.set(service, status)


def model_stalled() -> ModelStalled:
    """Returns the answer to calls while nothing moves."""
    return ModelStalled("the model is stuck; retry on another server", retry_delay_seconds=5.0)
