"""Writes the answer to a request as a line of OpenAI's output file."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from alignserve._batch.embeddings import Embeddings, ImageInput, TextInput
from alignserve._batch.refusals import LineError, Refusal
from alignserve._batch.request import Request
from alignserve._items import StreamResult
from alignserve._results import EmbeddingArray, ModelInfo
from alignserve.errors import InvalidArgumentError


@dataclass(frozen=True, slots=True)
class Answer:
    """The line of a request.

    Attributes:
        line: With its line break.
        reason: Why the request failed, such as `text_too_long`; empty if it did not.
    """

    line: bytes
    reason: str = ""


def answer_of(request: Request, results: Sequence[StreamResult], batch: str, model: ModelInfo) -> Answer:
    """Returns the answer to a request.

    Args:
        request: The request.
        results: Of its inputs, in order; of a request that was not sent, anything.
        batch: Name of the batch, in the ids.
        model: Of the server.
    """
    wanted = request.wanted
    if isinstance(wanted, Embeddings):
        refusal = _refusal(wanted, results, model)
        if refusal is None:
            return Answer(
                _line(request, batch, _response(request, batch, 200, _body(wanted, results, model)))
            )
        wanted = refusal
    if isinstance(wanted, LineError):
        error = json.dumps({"code": wanted.code, "message": wanted.message})
        return Answer(_line(request, batch, error=error), wanted.code)
    return Answer(
        _line(request, batch, _response(request, batch, wanted.status, json.dumps(wanted.body))), wanted.code
    )


def _refusal(wanted: Embeddings, results: Sequence[StreamResult], model: ModelInfo) -> Refusal | None:
    """Returns the refusal of a request as the HTTP port has it, or `None` if all inputs succeeded.

    The port embeds texts before images, in parts. Within a part it names the first input at fault, and counts
    the others.
    """
    for kind in (TextInput, ImageInput):
        positions = [at for at, each in enumerate(wanted.inputs) if isinstance(each, kind)]
        for start in range(0, len(positions), model.max_client_batch_size):
            part = positions[start : start + model.max_client_batch_size]
            if refusal := _of_part([(wanted.inputs[at].path, results[at]) for at in part]):
                return refusal
    return None


def _of_part(part: Sequence[tuple[str, StreamResult]]) -> Refusal | None:
    failed = [(path, result.error) for path, result in part if result.error is not None]
    for _, error in failed:
        if isinstance(error.__cause__, Refusal):  # not base64, so the part is not sent
            return error.__cause__
    for path, error in failed:
        if not isinstance(error, InvalidArgumentError):
            return Refusal.of(error, path)
    if not failed:
        return None
    first = Refusal.of(failed[0][1], failed[0][0])
    others = f" (and {len(failed) - 1} more)" if len(failed) > 1 else ""
    return Refusal(first.message + others, code=first.code, param=first.param, status=first.status)


def _body(wanted: Embeddings, results: Sequence[StreamResult], model: ModelInfo) -> str:
    write = _base64 if wanted.is_base64 else _numbers
    data = ",".join(
        f'{{"object":"embedding","index":{index},"embedding":{write(result.embedding)}}}'
        for index, result in enumerate(results)
    )
    tokens = sum(result.tokenization.token_count for result in results if result.tokenization is not None)
    usage = f'{{"prompt_tokens":{tokens},"total_tokens":{tokens}}}'
    return f'{{"object":"list","data":[{data}],"model":{json.dumps(model.model_id)},"usage":{usage}}}'


def _response(request: Request, batch: str, status: int, body: str) -> str:
    return f'{{"status_code":{status},"request_id":"req_{batch}_{request.number}","body":{body}}}'


def _line(request: Request, batch: str, response: str = "null", error: str = "null") -> bytes:
    # Escaped, since some tools break lines at characters such as U+2028.
    custom_id = json.dumps(request.custom_id)
    return (
        f'{{"id":"batch_req_{batch}_{request.number}","custom_id":{custom_id},'
        f'"response":{response},"error":{error}}}\n'
    ).encode()


def _numbers(embedding: EmbeddingArray) -> str:
    # Nine digits identify a single-precision number. One format for all is several times as fast as one each.
    return "[" + ",".join(["%.9g"] * embedding.size) % tuple(embedding.tolist()) + "]"


def _base64(embedding: EmbeddingArray) -> str:
    return f'"{base64.b64encode(embedding.astype(np.dtype("<f4")).tobytes()).decode()}"'
