"""What the benchmarks send: the test photos and made-up captions, no two of a run alike."""

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
    """Yields calls of `EmbedImage` or `EmbedText`, without end; other ones each time, unless a seed is given.

    Photos and captions are drawn at random, and each carries a tag. Texts have the same mix of lengths in
    every round: as many come from each eighth of the lengths. Tags start anew after a few calls, since the
    load generator counts them up from one whose first letters decide how many tokens all of them have.
    """
    chance = random.Random(next(_SEEDS) if seed is None else seed)
    count = _CALLS_AT_A_TIME * items_per_request
    while True:
        inputs = Inputs(
            images=chance.sample(_IMAGES, len(_IMAGES)),
            texts=_some_texts(chance, count),
            items_per_request=items_per_request,
        )
        yield from itertools.islice(calls({modality: 1.0}, inputs, chance.getrandbits(64)), _CALLS_AT_A_TIME)


def bodies(modality: str, seed: int | None = None) -> Iterator[bytes]:
    """Yields the items of the same calls bare, for what is not served by gRPC: files, or texts in UTF-8."""
    for call in grpc_calls(modality, seed=seed):
        if modality == "image":
            yield pb.EmbedImageRequest.FromString(call.request).images[0].content
        else:
            yield pb.EmbedTextRequest.FromString(call.request).texts[0].encode()


def _some_texts(chance: random.Random, count: int) -> list[str]:
    eighth = len(TEXTS) // 8
    texts = [_TEXTS_BY_LENGTH[number % 8 * eighth + chance.randrange(eighth)] for number in range(count)]
    chance.shuffle(texts)
    return texts
