"""A door for calls from Ray Serve's proxy: requests and answers are messages."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator
from contextlib import ExitStack

from alignserve.v1 import align_service_pb2 as pb
from alignserve_server.errors import ServingError, as_value
from alignserve_server.rpc.callers import GrpcCall
from alignserve_server.rpc.convert import item_count
from alignserve_server.rpc.health import HealthServicer
from alignserve_server.rpc.method_metrics import methods_of
from alignserve_server.rpc.methods import API, HEALTH
from alignserve_server.rpc.shares import open_stream
from alignserve_server.rpc.status import to_grpc_status
from alignserve_server.serving.server import CallServer
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from ray.exceptions import TaskCancelledError
from ray.serve.grpc_util import RayServegRPCContext, gRPCInputStream

from deploy.ray.proxy import SECONDS_LEFT_KEY

_RESPONSES = {method.name: GetMessageClass(method.output_type) for method in API.methods}


class RayCall(GrpcCall):
    """Ray Serve's context of a call, with the deadline that `proxy` adds."""

    def __init__(self, context: RayServegRPCContext) -> None:
        super().__init__(context)
        self._start = time.monotonic()

    def seconds_left(self) -> float:
        given = next((float(value) for key, value in self.metadata() if key == SECONDS_LEFT_KEY), math.inf)
        return given - (time.monotonic() - self._start)


class RayBridge:
    """Answers calls with the API of a server in this process. A failed call ends with an empty message.

    Its status is in the context; Ray Serve loses the details if a call ends with an exception.
    """

    def __init__(self, server: CallServer) -> None:
        self._accounting, self._messages = server.accounting, server.messages
        self._streams = server.interceptor.streams
        self._health = HealthServicer(server.service.readiness)
        self._methods = methods_of(self._accounting, API) | methods_of(self._accounting, HEALTH)

    async def answer(self, method: str, request: Message, context: RayServegRPCContext) -> Message:
        """Answers a unary call."""
        try:
            with self._accounting.call(self._methods[method], RayCall(context)) as call, ExitStack() as rooms:
                call.items = item_count(request)
                if method == "Check":
                    health: Message = await self._health.Check(request, context)
                    return health
                serialized = await self._messages.answer(
                    method, request, call, lambda: rooms.enter_context(self._messages.rooms.of_call(context))
                )
                response: Message = _RESPONSES[method].FromString(serialized)
                return response
        except ServingError as error:
            return _failed(context, error)

    async def stream(
        self, requests: gRPCInputStream[pb.StreamInferRequest], context: RayServegRPCContext
    ) -> AsyncIterator[Message]:
        """Yields the answers of a stream."""
        answers: asyncio.Queue[bytes | None] = asyncio.Queue()  # Ray Serve reads them without delay

        async def serve() -> None:
            with (
                self._accounting.call(self._methods["StreamInfer"], RayCall(context)) as call,
                open_stream(self._streams, context.peer()),
            ):
                await self._messages.stream(_read(requests), answers.put, context, call)

        serving = asyncio.ensure_future(serve())
        serving.add_done_callback(lambda _: answers.put_nowait(None))
        try:
            while (answer := await answers.get()) is not None:
                yield pb.StreamInferResponse.FromString(answer)
            await serving  # raises the error that ended it
        except ServingError as error:
            yield _failed(context, error)
        finally:
            serving.cancel()
            await asyncio.wait({serving})


async def _read(requests: gRPCInputStream[pb.StreamInferRequest]) -> AsyncIterator[pb.StreamInferRequest]:
    """Yields the requests until the stream ends or is cancelled, which Ray Serve signals in two ways."""
    try:
        async for request in requests:
            yield request
    except TaskCancelledError:
        raise asyncio.CancelledError from None
    if requests.is_cancelled():
        raise asyncio.CancelledError


def _failed(context: RayServegRPCContext, error: ServingError) -> Empty:
    status = to_grpc_status(as_value(error))
    context.set_code(status.code)
    context.set_details(status.details)
    context.set_trailing_metadata(list(status.trailing_metadata))
    return Empty()
