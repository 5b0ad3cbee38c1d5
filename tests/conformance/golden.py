"""Writes `golden.json` by real calls, with plain stubs: `python -m tests.conformance.golden`.

Run it when the embedded checkpoint changes. `tests/model` shows that the server's vectors are right.
"""

from __future__ import annotations

import base64
import io
import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import grpc
import numpy as np
from alignserve.testing import FakeServer
from alignserve.v1 import align_service_pb2 as pb
from alignserve.v1.align_service_pb2_grpc import AlignServiceStub
from PIL import Image

from tests.conformance.inputs import GOLDEN, PHOTOS, PIXELS_SHAPE, pixels
from tests.processes import server_process

_DIGITS = 7
_TEXTS = ("a cat", "a cup of coffee", "a rocket at night")
_FAKE_TEXTS = ("a cat", "a dog", "a rocket", "coffee", "x", "yy", "zzz")
_LABELS = ("cat", "coffee", "rocket")
_TEMPLATES = ("a photo of a {label}",)
_CAT = "cat.jpg"


def main() -> None:
    """Writes the file."""
    with server_process(program=(sys.executable, "-m", "alignserve_server")) as server:
        document = {**_model(_stub(server.address)), **_fake()}
    GOLDEN.write_text(json.dumps(document, separators=(",", ":"), ensure_ascii=False) + "\n", "utf-8")


def _stub(target: str) -> AlignServiceStub:
    return AlignServiceStub(grpc.insecure_channel(target))


def _model(stub: AlignServiceStub) -> dict[str, Any]:
    files = {path.name: path.read_bytes() for path in sorted(PHOTOS.glob("*.jpg"))} | {"pixels.png": _png()}
    cat = pb.Image(content=files[_CAT])
    classified = {name: _classified(stub, content) for name, content in files.items() if name != "pixels.png"}
    return {
        "images": {name: _image(stub, content) for name, content in files.items()},
        "texts": {text: _text(stub, text) for text in _TEXTS},
        "classifications": classified,
        "classify": {
            name: {each["label"]: each["score"] for each in labels} for name, labels in classified.items()
        },
        "compare": {_CAT: {text: _compared(stub, cat, text) for text in _TEXTS}},
        "queries": {
            "cat.jpg + 0.5 a rocket at night": _query(
                stub, [pb.QueryTerm(image=cat), pb.QueryTerm(text="a rocket at night", weight=0.5)]
            ),
            "a cat - a rocket at night": _query(
                stub, [pb.QueryTerm(text="a cat"), pb.QueryTerm(text="a rocket at night", weight=-1)]
            ),
        },
    }


def _fake() -> dict[str, Any]:
    """Returns vectors of the fake server, in every format."""
    with FakeServer() as server:
        stub = _stub(server.target)

        def embedded(text: str, form: pb.EmbeddingFormat.ValueType) -> pb.Embedding:
            options = pb.EmbeddingOptions(format=form)
            return stub.EmbedText(pb.EmbedTextRequest(texts=[text], embedding_options=options)).embeddings[0]

        eighths = {text: embedded(text, pb.EMBEDDING_FORMAT_PACKED_INT8) for text in _FAKE_TEXTS}
        bits = {text: embedded(text, pb.EMBEDDING_FORMAT_PACKED_BINARY) for text in _FAKE_TEXTS}
        return {
            "fake": {text: server.embedding_of(text).astype(float).tolist() for text in _FAKE_TEXTS},
            "fake_int8": {
                text: np.frombuffer(each.packed_int8, np.int8).tolist() for text, each in eighths.items()
            },
            "fake_int8_scale": {text: each.int8_scale for text, each in eighths.items()},
            "fake_binary": {
                text: base64.b64encode(each.packed_binary).decode() for text, each in bits.items()
            },
        }


def _png() -> bytes:
    height, width = PIXELS_SHAPE
    file = io.BytesIO()
    Image.frombytes("RGB", (width, height), pixels()).save(file, "PNG")
    return file.getvalue()


def _image(stub: AlignServiceStub, content: bytes) -> list[float]:
    response = stub.EmbedImage(pb.EmbedImageRequest(images=[pb.Image(content=content)]))
    return _rounded(response.embeddings[0].values)


def _text(stub: AlignServiceStub, text: str) -> list[float]:
    return _rounded(stub.EmbedText(pb.EmbedTextRequest(texts=[text])).embeddings[0].values)


def _query(stub: AlignServiceStub, terms: Sequence[pb.QueryTerm]) -> list[float]:
    request = pb.EmbedQueryRequest(queries=[pb.ComposedQuery(terms=terms)])
    return _rounded(stub.EmbedQuery(request).embeddings[0].values)


def _classified(stub: AlignServiceStub, content: bytes) -> list[dict[str, Any]]:
    request = pb.ClassifyRequest(
        images=[pb.Image(content=content)], labels=_LABELS, prompt_templates=_TEMPLATES
    )
    return [
        {"label": each.label, "score": each.score, "similarity": each.similarity}
        for each in stub.Classify(request).results[0].classifications
    ]


def _compared(stub: AlignServiceStub, image: pb.Image, text: str) -> Mapping[str, float]:
    pair = pb.ImageTextPair(image=image, text=text)
    found = stub.Compare(pb.CompareRequest(pairs=[pair])).comparisons[0]
    return {"similarity": found.similarity, "logit": found.logit}


def _rounded(values: Sequence[float]) -> list[float]:
    return [round(value, _DIGITS) for value in values]


if __name__ == "__main__":
    main()
