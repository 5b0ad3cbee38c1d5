"""The inputs of the benchmarks: the test photos and generated captions, all different within a run."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from pathlib import Path

from alignserve._bench.images import varied_image
from alignserve._bench.inputs import Inputs
from alignserve._bench.sentences import sentences
from alignserve._bench.workload import UnaryRequest, calls
from alignserve.v1 import align_service_pb2 as pb

MODALITIES = ("image", "text")

PHOTOS = [path.read_bytes() for path in sorted((Path(__file__).parents[1] / "data" / "photos").glob("*.jpg"))]
TEXTS = sentences(2000, "mixed", seed=0)

_IMAGES = [varied_image(photo) for photo in PHOTOS]
_TEXTS_BY_LENGTH = sorted(TEXTS, key=len)
_CALLS_AT_A_TIME = 8
_SEEDS = itertools.count()


def grpc_calls(modality: str, items_per_request: int = 1, seed: int | None = None) -> Iterator[UnaryRequest]:
    """Yields endless calls of `EmbedImage` or `EmbedText`, different ones each time unless a seed is given.

    Photos and captions are drawn at random, and each has a tag. Texts have the same mix of lengths in every
    round: each eighth of the length range contributes the same number. Tags restart from a new value after a
    few calls: the load generator counts up from a tag whose first letters decide how many tokens all of its
    tags have.
    """
    rng = random.Random(next(_SEEDS) if seed is None else seed)
    count = _CALLS_AT_A_TIME * items_per_request
    while True:
        inputs = Inputs(
            images=rng.sample(_IMAGES, len(_IMAGES)),
            texts=_some_texts(rng, count),
            items_per_request=items_per_request,
        )
        yield from itertools.islice(calls({modality: 1.0}, inputs, rng.getrandbits(64)), _CALLS_AT_A_TIME)


def bodies(modality: str, seed: int | None = None) -> Iterator[bytes]:
    """Yields the raw items of the same calls, for servers without gRPC: image files, or texts in UTF-8."""
    for call in grpc_calls(modality, seed=seed):
        if modality == "image":
            yield pb.EmbedImageRequest.FromString(call.request).images[0].content
        else:
            yield pb.EmbedTextRequest.FromString(call.request).texts[0].encode()


def _some_texts(rng: random.Random, count: int) -> list[str]:
    eighth = len(TEXTS) // 8
    texts = [_TEXTS_BY_LENGTH[number % 8 * eighth + rng.randrange(eighth)] for number in range(count)]
    rng.shuffle(texts)
    return texts
