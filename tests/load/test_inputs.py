"""The benchmarks' inputs are fair to all servers."""

from __future__ import annotations

import json
from base64 import b64decode
from itertools import islice

import pytest
from alignserve.v1 import align_service_pb2 as pb

from tests.load.http_route import http_calls
from tests.load.inputs import MODALITIES, bodies, grpc_calls


@pytest.mark.parametrize("modality", MODALITIES)
def test_no_input_occurs_twice(modality: str) -> None:
    """Two rounds share no input and neither repeats one, so no server gains from a cache."""
    sent = [body for _ in range(2) for body in islice(bodies(modality), 500)]

    assert len(set(sent)) == 1000


@pytest.mark.parametrize("modality", MODALITIES)
def test_http_servers_get_the_bytes_that_grpc_servers_get(modality: str) -> None:
    """With the same seed, all forms of a call have the same items."""
    of_grpc = [_items(modality, call.request) for call in islice(grpc_calls(modality, seed=7), 20)]

    bare = [[call.request] for call in islice(http_calls(modality, as_json=False, seed=7), 20)]
    as_json = [
        [b64decode(json.loads(call.request)["content"])]
        for call in islice(http_calls(modality, as_json=True, seed=7), 20)
    ]

    assert bare == as_json == of_grpc


def test_rounds_have_texts_of_the_same_length() -> None:
    """No round is easier than another: captions and tags have the same mix of lengths."""
    means = [sum(map(len, islice(bodies("text", seed), 2000))) / 2000 for seed in range(10)]

    assert max(means) / min(means) < 1.03


def _items(modality: str, request: bytes) -> list[bytes]:
    if modality == "image":
        return [image.content for image in pb.EmbedImageRequest.FromString(request).images]
    return [text.encode() for text in pb.EmbedTextRequest.FromString(request).texts]
