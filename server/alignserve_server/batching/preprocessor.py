"""Prepares inputs for the model: decodes images to uint8 pixels and tokenizes texts."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from functools import partial
from itertools import chain
from typing import NamedTuple, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from alignserve_server.batching.fair_queue import FairPool, Flow
from alignserve_server.batching.observer import BatchObserver
from alignserve_server.errors import InvalidArgument, as_value
from alignserve_server.model.encoder import ImageInput, PixelArray, PixelValues, TokenizedText

_S = TypeVar("_S")
_T = TypeVar("_T")

# Tokenizing fewer characters takes about 0.1 ms, as long as handing a job to a thread, and under 1 ms in the
# worst case: words of a hundred letters that match no token.
_INLINE_CHARACTERS = 256
# Maximum per tokenizing job, unless a single text is longer: about 0.5 ms, 7 ms at worst.
_CHARACTERS_AT_ONCE = 2048
_DECODES_PER_THREAD = 2  # the current and the next, so that no thread waits for the event loop
_SAMPLE_BYTES = 64  # of an image, that are compared before all of it is
_TOKENIZE_THREADS = 2  # separate from decoding, so that texts do not wait behind images; two for long texts


class InputReader(Protocol):
    """The part of an `Encoder` that prepares inputs."""

    def preprocess_image(self, image: ImageInput) -> PixelValues: ...

    def tokenize(self, text: str, *, truncate: bool) -> TokenizedText: ...


class DecodedImage(NamedTuple):
    """An image's pixels, or its embedding if it was in the cache."""

    key: bytes  # identifies the content
    pixels: PixelValues | None
    embedding: NDArray[np.float32] | None


class Preprocessor:
    """Prepares the inputs of all callers in turn. Use only on the event loop's thread."""

    def __init__(
        self, reader: InputReader, pool: Executor, observer: BatchObserver, *, decode_threads: int
    ) -> None:
        """Starts the threads for texts; `decode_threads` is the size of the pool, which decodes images."""
        self._reader = reader
        self._decoding = FairPool(pool, _DECODES_PER_THREAD * decode_threads)
        self._tokenize_threads = ThreadPoolExecutor(_TOKENIZE_THREADS, "tokenize")
        self._tokenizing = FairPool(self._tokenize_threads, _TOKENIZE_THREADS)
        self._observer = observer

    def close(self) -> None:
        """Stops the threads for texts."""
        self._tokenize_threads.shutdown(wait=False, cancel_futures=True)

    async def decode(
        self, images: list[ImageInput], flow: Flow, look_up: Callable[[bytes], NDArray[np.float32] | None]
    ) -> list[DecodedImage | InvalidArgument]:
        """Decodes images; returns the pixels or the error of each.

        Empties the list: each image is dropped once it is decoded. Equal images are usually decoded once.

        Args:
            images: Encoded images, or their pixels.
            flow: The flow whose turns the images take.
            look_up: Returns the cached embedding of an image by its key; called on the pool's threads.
        """

        prepare = partial(self._decode, look_up)

        def decode(position: int) -> DecodedImage | InvalidArgument:
            image, images[position] = images[position], b""
            return _attempt(prepare, image)

        try:
            firsts = _first_equals(images)
            distinct = sorted(set(firsts))
            images[:] = [images[first] for first in distinct]
            jobs = [partial(decode, position) for position in range(len(images))]
            decoded = dict(zip(distinct, await self._decoding.run(flow, jobs), strict=True))
            return [decoded[first] for first in firsts]
        finally:
            images.clear()  # if the call is cancelled, the pool keeps its jobs until their turn

    async def tokenize(
        self, texts: Sequence[str], flow: Flow, *, truncate: bool
    ) -> list[TokenizedText | InvalidArgument]:
        """Tokenizes texts at a flow's turns; returns the tokens or the error of each."""
        attempt = partial(_attempt, partial(self._reader.tokenize, truncate=truncate))

        if sum(map(len, texts)) <= _INLINE_CHARACTERS:
            tokenized = list(map(attempt, texts))
        else:
            jobs = [
                partial(list[TokenizedText | InvalidArgument], map(attempt, piece))
                for piece in _pieces(texts)
            ]
            tokenized = list(chain.from_iterable(await self._tokenizing.run(flow, jobs)))
        self._count_tokens(tokenized)
        return tokenized

    def _decode(
        self, look_up: Callable[[bytes], NDArray[np.float32] | None], image: ImageInput
    ) -> DecodedImage:
        key = _key(image)
        embedding = look_up(key)
        if embedding is not None:
            return DecodedImage(key, None, embedding)
        return DecodedImage(key, self._reader.preprocess_image(image), None)

    def _count_tokens(self, tokenized: Sequence[TokenizedText | InvalidArgument]) -> None:
        valid = [text for text in tokenized if isinstance(text, TokenizedText)]
        self._observer.tokenized(
            sum([len(text.input_ids) for text in valid]), sum([text.unknown_token_count for text in valid])
        )


def _key(image: ImageInput) -> bytes:
    """Returns what identifies an image's content. A file's key never equals that of pixels."""
    if not isinstance(image, PixelArray):
        return hashlib.blake2b(image, digest_size=16).digest()
    digest = hashlib.blake2b(b"%d %d " % (image.height, image.width), digest_size=16, person=b"pixels")
    digest.update(image.data)
    return digest.digest()


def _first_equals(images: Sequence[ImageInput]) -> list[int]:
    """Returns for each image the position of the first equal one, which may be itself.

    Compares each image with one other at most, so this takes no longer than to copy them all. It overlooks
    equal images if others in between have the same size and the same last bytes.
    """
    positions: dict[Hashable, int] = {}
    firsts = []
    for position, image in enumerate(images):
        sample = _sample(image)
        first = positions.get(sample)
        if first is None or images[first] != image:
            first = positions[sample] = position
        firsts.append(first)
    return firsts


def _sample(image: ImageInput) -> Hashable:
    """Returns the size and some bytes of an image, which distinguish it from most others."""
    if isinstance(image, PixelArray):
        return image.height, image.width, image.data[-_SAMPLE_BYTES:]
    return len(image), image[-_SAMPLE_BYTES:]


def _attempt(prepare: Callable[[_S], _T], given: _S) -> _T | InvalidArgument:
    """Prepares one input; returns its error if it is invalid, so that a call reports all invalid inputs."""
    try:
        return prepare(given)
    except InvalidArgument as error:
        return as_value(error)


def _pieces(texts: Sequence[str]) -> Iterator[Sequence[str]]:
    """Yields runs of texts whose total length is bounded; a longer text is a run by itself."""
    start = size = 0
    for position, text in enumerate(texts):
        if size and size + len(text) > _CHARACTERS_AT_ONCE:
            yield texts[start:position]
            start, size = position, 0
        size += len(text)
    yield texts[start:]
