"""One `ModelStreamInfer` call: each message is a request, and responses have the order of the requests."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from alignserve_server.api import CallContext, CallScope, Service, internal_error
from alignserve_server.errors import ServingError
from alignserve_server.kserve.inference import Inference
from alignserve_server.kserve.messages import ModelInferResponse, ModelStreamInferResponse
from alignserve_server.kserve.models import scopes_of
from alignserve_server.kserve.problems import MAX_ID_CHARACTERS, with_request_id
from alignserve_server.kserve.query import Query
from alignserve_server.observability.metrics import Metrics
from alignserve_server.rpc.item_stream import ItemStream
from alignserve_server.rpc.response_room import ResponseRoom
from alignserve_server.rpc.status import to_text


class ModelInferStream(ItemStream[Any]):
    """Runs the requests of one stream. A request that fails is answered by its error; the stream goes on."""

    def __init__(
        self,
        inference: Inference,
        service: Service,
        write: Callable[[bytes], Awaitable[None]],
        make_room: Callable[[str], ResponseRoom],
        scope: CallScope,
        metrics: Metrics,
    ) -> None:
        super().__init__(write, max_in_flight=service.limits.max_stream_in_flight)
        self._is_ordered = True
        self._inference = inference
        self._service = service
        self._make_room = make_room
        self._scope = scope
        self._call = scope.context()
        self._metrics = metrics

    def _room(self, request: Any) -> ResponseRoom:  # noqa: ARG002 — no part of the request is in the wrapper
        return self._make_room("")

    async def _answer(
        self,
        request: Any,
        on_admitted: Callable[[], None],
        room: ResponseRoom,
        *,
        is_first: bool,  # noqa: ARG002 — this protocol's streams have no options
    ) -> bytes:
        items, marks_final = 0, False

        async def admit(query: Query) -> CallContext:
            nonlocal items, marks_final
            marks_final = query.marks_final_response
            items = query.item_count(self._service.limits.max_client_batch_size)
            call = self._call if query.priority is None else self._scope.context(query.priority)
            return call.for_item(on_admitted, trace)

        try:
            with self._call.trace.item() as trace:
                self._service.check_model()
                # The stream is not read while this waits. Requests that turn out to be invalid count as well.
                await self._scope.admit_item(scopes_of(request.model_name))
                response = await self._inference.infer(request, admit, room)
        except ServingError as error:
            self._metrics.count_refusal(error, self._call.flow.caller, items)
            return _error(request, error)
        except Exception as error:  # noqa: BLE001 — one request's bug must not end the stream
            return _error(request, internal_error("ModelStreamInfer", error))
        if marks_final:
            response.parameters["triton_final_response"].bool_param = True
        return bytes(ModelStreamInferResponse(infer_response=response).SerializeToString())


def _error(request: Any, error: ServingError) -> bytes:
    """Returns the response to a request that failed. Its text has everything, as clients see only that."""
    response = ModelStreamInferResponse(
        error_message=to_text(with_request_id(error, request.id)),
        infer_response=ModelInferResponse(id=request.id[:MAX_ID_CHARACTERS]),
    )
    return bytes(response.SerializeToString())
