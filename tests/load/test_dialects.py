"""Every server is asked for the same items, and its answers are read as embeddings."""

from __future__ import annotations

import json
from base64 import b64decode, b64encode
from collections.abc import Callable
from itertools import islice

import numpy as np
import pytest
from alignserve._bench.workload import UnaryRequest
from alignserve.v1 import align_service_pb2 as pb
from alignserve_server.kserve.messages import ModelInferRequest, ModelInferResponse

from tests.load import dialects
from tests.load.dialects import Dialect
from tests.load.inputs import MODALITIES, bodies

_EMBEDDING = np.array([0.5, -0.25, 2.0], np.float32)
_PACKED = _EMBEDDING.tobytes()
_BASE64 = b64encode(_PACKED).decode()


def _align_item(modality: str, request: bytes) -> bytes:
    if modality == "image":
        return pb.EmbedImageRequest.FromString(request).images[0].content
    return pb.EmbedTextRequest.FromString(request).texts[0].encode()


def _bentoml_item(modality: str, request: bytes) -> bytes:
    return _decoded(modality, json.loads(request)["contents"][0])


def _openai_item(modality: str, request: bytes) -> bytes:
    return _decoded(modality, json.loads(request)["input"][0].removeprefix("data:image/jpeg;base64,"))


def _triton_item(_: str, request: bytes) -> bytes:
    (element,) = ModelInferRequest.FromString(request).raw_input_contents
    assert int.from_bytes(element[:4], "little") == len(element) - 4
    return element[4:]


def _decoded(modality: str, content: str) -> bytes:
    return b64decode(content) if modality == "image" else content.encode()


_ITEMS: dict[str, tuple[Dialect, Callable[[str, bytes], bytes]]] = {
    "align": (dialects.ALIGN, _align_item),
    "raw": (dialects.RAW, lambda _, request: request),
    "litserve": (dialects.LITSERVE, lambda _, request: b64decode(json.loads(request)["content"])),
    "bentoml": (dialects.BENTOML, _bentoml_item),
    "openai": (dialects.OPENAI, _openai_item),
    "triton": (dialects.TRITON, _triton_item),
}
_RESPONSES = {
    "align": pb.EmbedTextResponse(embeddings=[pb.Embedding(packed_float32=_PACKED)]).SerializeToString(),
    "raw": _PACKED,
    "litserve": _PACKED,
    "bentoml": json.dumps([_BASE64]).encode(),
    "openai": json.dumps({"data": [{"index": 0, "embedding": _BASE64}]}).encode(),
    "triton": ModelInferResponse(raw_output_contents=[_PACKED]).SerializeToString(),
}


@pytest.mark.parametrize("modality", MODALITIES)
@pytest.mark.parametrize("name", _ITEMS)
def test_every_server_gets_the_same_items(name: str, modality: str) -> None:
    """With the same seed, the requests of all dialects have the same items, byte for byte."""
    dialect, item = _ITEMS[name]

    calls: list[UnaryRequest] = list(islice(dialect.calls(modality, seed=7), 20))

    assert [item(modality, call.request) for call in calls] == list(islice(bodies(modality, seed=7), 20))


@pytest.mark.parametrize("name", _ITEMS)
def test_the_embedding_is_read_from_the_response(name: str) -> None:
    """Whatever the response looks like, the embedding is exact."""
    dialect, _ = _ITEMS[name]

    np.testing.assert_array_equal(dialect.embedding(_RESPONSES[name]), _EMBEDDING)
