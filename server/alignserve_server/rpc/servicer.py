"""`alignserve.v1.AlignService` on grpc.aio: passes each call and its context on to `MessageApi`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable
from functools import partial
from typing import Any

import grpc
from alignserve.v1 import align_service_pb2 as pb
from alignserve.v1 import align_service_pb2_grpc as pb_grpc

from alignserve_server.rpc.callers import current_call, current_transport
from alignserve_server.rpc.message_api import MessageApi
from alignserve_server.rpc.response_room import ResponseRoom

Context = grpc.aio.ServicerContext[Any, Any]


class AlignServicer(pb_grpc.AlignServiceServicer):
    """Serves calls that `ServingInterceptor` has admitted. Returns serialized responses."""

    def __init__(self, messages: MessageApi) -> None:
        self._messages = messages

    async def EmbedImage(self, request: pb.EmbedImageRequest, context: Context) -> Any:
        return await self._answer("EmbedImage", request, context)

    async def EmbedText(self, request: pb.EmbedTextRequest, context: Context) -> Any:
        return await self._answer("EmbedText", request, context)

    async def Classify(self, request: pb.ClassifyRequest, context: Context) -> Any:
        return await self._answer("Classify", request, context)

    async def Compare(self, request: pb.CompareRequest, context: Context) -> Any:
        return await self._answer("Compare", request, context)

    async def EmbedQuery(self, request: pb.EmbedQueryRequest, context: Context) -> Any:
        return await self._answer("EmbedQuery", request, context)

    async def GetModelInfo(self, request: pb.GetModelInfoRequest, context: Context) -> Any:
        return await self._answer("GetModelInfo", request, context)

    async def StreamInfer(  # type: ignore[override]  # a coroutine that writes is gRPC's other kind of handler
        self, requests: AsyncIterator[pb.StreamInferRequest], context: Context
    ) -> None:
        await self._messages.stream(requests, context.write, current_transport(), current_call())

    def _answer(self, method: str, request: Any, context: Context) -> Awaitable[bytes]:
        return self._messages.answer(method, request, current_call(), partial(self._room, context))

    def _room(self, context: Context) -> ResponseRoom:
        """Returns the room for a unary call's response, which is given back when gRPC has written it."""
        room = self._messages.rooms.of_call(current_transport())
        context.add_done_callback(lambda _: room.give_back())  # type: ignore[arg-type]  # as gRPC calls it
        return room


def add_api_to(server: grpc.aio.Server, messages: MessageApi) -> None:
    """Adds the API to a server, which must use `ServingInterceptor`."""
    pb_grpc.add_AlignServiceServicer_to_server(AlignServicer(messages), server)
