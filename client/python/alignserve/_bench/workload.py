"""The workload: an endless series of serialized requests."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

from alignserve._bench.inputs import Inputs
from alignserve._bench.tags import COUNT, tags
from alignserve._bench.wire import framed
from alignserve._channel import SERVICE
from alignserve.v1 import align_service_pb2 as pb

EMBED_IMAGE = f"/{SERVICE.full_name}/EmbedImage"
EMBED_TEXT = f"/{SERVICE.full_name}/EmbedText"
CLASSIFY = f"/{SERVICE.full_name}/Classify"

_IMAGES = pb.EmbedImageRequest.IMAGES_FIELD_NUMBER  # the same in ClassifyRequest
_TEXTS = pb.EmbedTextRequest.TEXTS_FIELD_NUMBER
_CONTENT = pb.Image.CONTENT_FIELD_NUMBER
_OPTIONS = pb.EmbeddingOptions(format=pb.EMBEDDING_FORMAT_PACKED_FLOAT32)  # like the Python client


class UnaryRequest(NamedTuple):
    """One unary call.

    Attributes:
        method: Path of the method, such as `/alignserve.v1.AlignService/EmbedText`.
        request: The serialized request.
        items: Images or texts in it.
    """

    method: str
    request: bytes
    items: int = 1


def calls(weights: Mapping[str, float], inputs: Inputs, seed: int) -> Iterator[UnaryRequest]:
    """Yields calls endlessly, of the kinds `image`, `text` and `classify` in proportion to their weights.

    The same seed gives the same calls; if inputs are unique, other seeds give other images and texts.
    """
    rng = random.Random(seed)  # noqa: S311 — not a secret
    marks = tags(rng.randrange(COUNT))
    makers = {
        "image": _image_calls(EMBED_IMAGE, pb.EmbedImageRequest(embedding_options=_OPTIONS), inputs, marks),
        "text": _text_calls(pb.EmbedTextRequest(embedding_options=_OPTIONS, truncate=True), inputs, marks),
        "classify": _image_calls(CLASSIFY, pb.ClassifyRequest(labels=inputs.labels), inputs, marks),
    }
    kinds = list(weights)
    while True:
        (kind,) = rng.choices(kinds, list(weights.values()))
        yield next(makers[kind])


def _image_calls(
    method: str, rest: pb.EmbedImageRequest | pb.ClassifyRequest, inputs: Inputs, marks: Iterator[bytes]
) -> Iterator[UnaryRequest]:
    files = itertools.cycle(inputs.images)

    def item() -> list[bytes]:
        return framed(_IMAGES, framed(_CONTENT, next(files).pieces(next(marks))))

    return _calls(method, item, rest.SerializeToString(), inputs.items_per_request)


def _text_calls(rest: pb.EmbedTextRequest, inputs: Inputs, marks: Iterator[bytes]) -> Iterator[UnaryRequest]:
    texts = itertools.cycle([text.encode() for text in inputs.texts])

    def item() -> list[bytes]:
        suffix = b" " + next(marks) if inputs.is_unique else b""
        return framed(_TEXTS, (next(texts), suffix))

    return _calls(EMBED_TEXT, item, rest.SerializeToString(), inputs.items_per_request)


def _calls(method: str, item: Callable[[], list[bytes]], rest: bytes, items: int) -> Iterator[UnaryRequest]:
    # Fields of a message may be in any order, so the items come first and the shared fields last.
    while True:
        pieces = itertools.chain.from_iterable(item() for _ in range(items))
        yield UnaryRequest(method, b"".join((*pieces, rest)), items)
