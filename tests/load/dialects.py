"""How each kind of server is asked for the embedding of one item, and how it answers."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from alignserve._bench.workload import EMBED_IMAGE, EMBED_TEXT, UnaryRequest
from alignserve.v1 import align_service_pb2 as pb
from alignserve_server.kserve.messages import SERVICE, ModelInferRequest, ModelInferResponse
from numpy.typing import NDArray

from tests.load.inputs import bodies

_INFER = f"/{SERVICE.full_name}/ModelInfer"
_PACKED = pb.EmbeddingOptions(format=pb.EMBEDDING_FORMAT_PACKED_FLOAT32)


@dataclass(frozen=True)
class Dialect:
    """What a server understands.

    Attributes:
        request: Makes the request for an item of a modality: an image file, or a text in UTF-8.
        embedding: Reads the embedding, (dimension,), from a response.
    """

    request: Callable[[str, bytes], UnaryRequest]
    embedding: Callable[[bytes], NDArray[np.float32]]

    def calls(self, modality: str, seed: int | None = None) -> Iterator[UnaryRequest]:
        """Yields requests with the items of `bodies`."""
        return (self.request(modality, body) for body in bodies(modality, seed))


def _align_request(modality: str, body: bytes) -> UnaryRequest:
    if modality == "image":
        image = pb.EmbedImageRequest(images=[pb.Image(content=body)], embedding_options=_PACKED)
        return UnaryRequest(EMBED_IMAGE, image.SerializeToString())
    text = pb.EmbedTextRequest(texts=[body.decode()], embedding_options=_PACKED, truncate=True)
    return UnaryRequest(EMBED_TEXT, text.SerializeToString())


def _align_embedding(response: bytes) -> NDArray[np.float32]:
    # a response for images has its embeddings in the same field
    return _floats(pb.EmbedTextResponse.FromString(response).embeddings[0].packed_float32)


def _raw_request(modality: str, body: bytes) -> UnaryRequest:
    return UnaryRequest(f"/{modality}", body)


def _litserve_request(modality: str, body: bytes) -> UnaryRequest:
    return _json(f"/{modality}", {"content": _base64(body)})


def _bentoml_request(modality: str, body: bytes) -> UnaryRequest:
    return _json(f"/{modality}", {"contents": [_base64(body) if modality == "image" else body.decode()]})


def _openai_request(modality: str, body: bytes) -> UnaryRequest:
    content = f"data:image/jpeg;base64,{_base64(body)}" if modality == "image" else body.decode()
    rest = {"model": "align", "encoding_format": "base64", "modality": modality}
    return _json("/embeddings", {"input": [content], **rest})


def _triton_request(modality: str, body: bytes) -> UnaryRequest:
    content = ModelInferRequest.InferInputTensor(name="content", datatype="BYTES", shape=[1, 1])
    element = len(body).to_bytes(4, "little") + body
    request = ModelInferRequest(model_name=modality, inputs=[content], raw_input_contents=[element])
    return UnaryRequest(_INFER, request.SerializeToString())


def _json(path: str, content: object) -> UnaryRequest:
    return UnaryRequest(path, json.dumps(content).encode())


def _base64(body: bytes) -> str:
    return base64.b64encode(body).decode()


def _floats(packed: bytes | str) -> NDArray[np.float32]:
    return np.frombuffer(base64.b64decode(packed) if isinstance(packed, str) else packed, np.float32)


ALIGN = Dialect(_align_request, _align_embedding)
RAW = Dialect(_raw_request, _floats)
LITSERVE = Dialect(_litserve_request, _floats)
BENTOML = Dialect(_bentoml_request, lambda response: _floats(json.loads(response)[0]))
OPENAI = Dialect(_openai_request, lambda response: _floats(json.loads(response)["data"][0]["embedding"]))
TRITON = Dialect(
    _triton_request, lambda response: _floats(ModelInferResponse.FromString(response).raw_output_contents[0])
)
