"""`inference.GRPCInferenceService` on grpc.aio, next to `alignserve.v1.AlignService`."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import grpc
from google.protobuf.message_factory import GetMessageClass

from alignserve_server.api import CallContext, Service, State
from alignserve_server.errors import ServingError
from alignserve_server.kserve.descriptions import EXTENSIONS, NAME, model_config, model_metadata
from alignserve_server.kserve.inference import Inference
from alignserve_server.kserve.messages import (
    SERVICE,
    ModelReadyResponse,
    ModelStatisticsResponse,
    ServerLiveResponse,
    ServerMetadataResponse,
    ServerReadyResponse,
)
from alignserve_server.kserve.models import MODELS, VERSION, find_model
from alignserve_server.kserve.problems import with_request_id
from alignserve_server.kserve.query import Query
from alignserve_server.kserve.statistics import Statistics
from alignserve_server.kserve.stream import ModelInferStream
from alignserve_server.observability.metrics import Metrics
from alignserve_server.rpc.callers import current_call, current_transport
from alignserve_server.rpc.message_api import MessageApi

Context = grpc.aio.ServicerContext[Any, Any]


class InferenceServicer:
    """Serves calls that `ServingInterceptor` has admitted. Each method has the name of its RPC."""

    def __init__(self, service: Service, messages: MessageApi, metrics: Metrics, version: str) -> None:
        """Starts with all statistics at zero.

        Args:
            service: Serves the requests.
            messages: Has the streams and the room for responses, which both services share.
            metrics: Where refused requests of streams are counted.
            version: The server's version.
        """
        self._service = service
        self._messages = messages
        self._metrics = metrics
        self._version = version
        self._statistics = Statistics(MODELS)
        self._inference = Inference(service, self._statistics)

    async def ServerLive(self, _: Any, __: Context) -> Any:
        return ServerLiveResponse(live=True)

    async def ServerReady(self, _: Any, __: Context) -> Any:
        return ServerReadyResponse(ready=self._is_ready)

    async def ModelReady(self, request: Any, _: Context) -> Any:
        """Like Triton, reports a model that does not exist as not ready, instead of failing."""
        exists = request.name in MODELS and request.version in ("", VERSION)
        return ModelReadyResponse(ready=exists and self._is_ready)

    async def ServerMetadata(self, _: Any, __: Context) -> Any:
        return ServerMetadataResponse(name=NAME, version=self._version, extensions=EXTENSIONS)

    async def ModelMetadata(self, request: Any, _: Context) -> Any:
        model = find_model(request.name, request.version)
        return model_metadata(model, self._service.model_info().model)

    async def ModelConfig(self, request: Any, _: Context) -> Any:
        model = find_model(request.name, request.version)
        return model_config(model, self._service.model_info().model, self._service.limits)

    async def ModelStatistics(self, request: Any, _: Context) -> Any:
        """Without a name, reports all models."""
        names = [find_model(request.name, request.version).name] if request.name else list(MODELS)
        return ModelStatisticsResponse(model_stats=self._statistics.of(names))

    async def ModelInfer(self, request: Any, context: Context) -> Any:
        room = self._messages.rooms.of_call(current_transport())
        context.add_done_callback(lambda _: room.give_back())  # type: ignore[arg-type]  # as gRPC calls it
        try:
            return await self._inference.infer(request, self._admit, room)
        except ServingError as error:
            raise with_request_id(error, request.id) from None

    async def ModelStreamInfer(self, requests: AsyncIterator[Any], context: Context) -> None:
        self._service.check_ready()
        stream = ModelInferStream(
            self._inference,
            self._service,
            context.write,
            self._messages.rooms.of_items(current_transport()),
            current_call(),
            self._metrics,
        )
        await self._messages.streams.run(stream, requests)

    @property
    def _is_ready(self) -> bool:
        return self._service.readiness.state is State.READY

    async def _admit(self, query: Query) -> CallContext:
        call = current_call()
        call.items = query.item_count(self._service.limits.max_client_batch_size)
        call.check_scopes(query.model.scopes)
        return call.context(query.priority)


def add_inference_to(server: grpc.aio.Server, servicer: InferenceServicer) -> None:
    """Adds the service to a server, which must use `ServingInterceptor` with `METHODS`."""
    handlers = {method.name: _handler(method, getattr(servicer, method.name)) for method in SERVICE.methods}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE.full_name, handlers),))
    server.add_registered_method_handlers(SERVICE.full_name, handlers)


def _handler(method: Any, answer: Any) -> grpc.RpcMethodHandler[Any, Any]:
    request, response = GetMessageClass(method.input_type), GetMessageClass(method.output_type)
    make = (
        grpc.stream_stream_rpc_method_handler
        if method.client_streaming
        else grpc.unary_unary_rpc_method_handler
    )
    return make(answer, request.FromString, response.SerializeToString)
