"""From what callers send to what the model takes: images to uint8 pixels, texts to tokens."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from alignserve_server.batching.fair_queue import FairPool, Flow
from alignserve_server.batching.observer import BatchObserver
from alignserve_server.errors import InvalidArgument, as_value
from alignserve_server.model.encoder import PixelValues, TokenizedText

_S = TypeVar("_S")
_T = TypeVar("_T")

# Tokenizing less than this takes under 1 ms at worst, with words of a hundred letters of which none makes a
# token, and some 0.1 ms otherwise, as the way to a thread does.
_INLINE_CHARACTERS = 256
# Per tokenizing job: texts up to here, or a longer one; some 0.5 ms, 7 at worst.
_CHARACTERS_AT_ONCE = 2048
_DECODES_PER_THREAD = 2  # one, and the next, so that no thread waits for the event loop
_TOKENIZE_THREADS = 2  # apart from decoding, so that a text does not wait behind images; two, for the longest


class InputReader(Protocol):
    """The part of an `Encoder` that reads inputs."""

    def preprocess_image(self, content: bytes) -> PixelValues: ...

    def tokenize(self, text: str, *, truncate: bool) -> TokenizedText: ...


@dataclass(frozen=True, slots=True)
class DecodedImage:
    """An image's pixels, or its embedding if that was in the cache."""

    key: bytes  # names its content
    pixels: PixelValues | None
    embedding: NDArray[np.float32] | None


class Preprocessor:
    """Prepares the inputs of all callers, by turns. Belongs to the event loop's thread."""

    def __init__(
        self, reader: InputReader, pool: Executor, observer: BatchObserver, *, decode_threads: int
    ) -> None:
        """Starts the threads for texts; `decode_threads` are those of the pool, which decode images."""
        self._reader = reader
        self._decoding = FairPool(pool, _DECODES_PER_THREAD * decode_threads)
        self._tokenize_threads = ThreadPoolExecutor(_TOKENIZE_THREADS, "tokenize")
        self._tokenizing = FairPool(self._tokenize_threads, _TOKENIZE_THREADS)
        self._observer = observer

    def close(self) -> None:
        """Ends the threads for texts."""
        self._tokenize_threads.shutdown(wait=False, cancel_futures=True)

    async def decode(
        self, contents: list[bytes], flow: Flow, look_up: Callable[[bytes], NDArray[np.float32] | None]
    ) -> list[DecodedImage | InvalidArgument]:
        """Decodes images; for each it returns the pixels or what is wrong with it.

        Empties the list: each image is dropped when it is decoded.

        Args:
            contents: Encoded images.
            flow: At whose turns.
            look_up: Returns the cached embedding of an image by its key; called on the pool's threads.
        """

        def decode(position: int) -> DecodedImage | InvalidArgument:
            content, contents[position] = contents[position], b""
            return _attempt(partial(self._decode, look_up), content)

        try:
            jobs = [partial(decode, position) for position in range(len(contents))]
            return await self._decoding.run(flow, jobs)
        finally:
            contents.clear()  # if the call is cancelled: the pool keeps cancelled jobs until their turn

    async def tokenize(
        self, texts: Sequence[str], flow: Flow, *, truncate: bool
    ) -> list[TokenizedText | InvalidArgument]:
        """Tokenizes texts at the turns of a flow; for each it returns the tokens or what is wrong with it."""
        attempt = partial(_attempt, partial(self._reader.tokenize, truncate=truncate))

        def tokenize(piece: Sequence[str]) -> list[TokenizedText | InvalidArgument]:
            return list(map(attempt, piece))

        if sum(map(len, texts)) <= _INLINE_CHARACTERS:
            tokenized = tokenize(texts)
        else:
            jobs = [partial(tokenize, piece) for piece in _pieces(texts)]
            tokenized = list(chain.from_iterable(await self._tokenizing.run(flow, jobs)))
        self._count_tokens(tokenized)
        return tokenized

    def _decode(self, look_up: Callable[[bytes], NDArray[np.float32] | None], content: bytes) -> DecodedImage:
        key = hashlib.blake2b(content, digest_size=16).digest()
        embedding = look_up(key)
        if embedding is not None:
            return DecodedImage(key, None, embedding)
        return DecodedImage(key, self._reader.preprocess_image(content), None)

    def _count_tokens(self, tokenized: Sequence[TokenizedText | InvalidArgument]) -> None:
        valid = [text for text in tokenized if isinstance(text, TokenizedText)]
        self._observer.tokenized(
            sum(len(text.input_ids) for text in valid), sum(text.unknown_token_count for text in valid)
        )


def _attempt(prepare: Callable[[_S], _T], given: _S) -> _T | InvalidArgument:
    """Prepares one input; a bad one is an answer, so that all bad ones of a call are found."""
    try:
        return prepare(given)
    except InvalidArgument as error:
        return as_value(error)


def _pieces(texts: Sequence[str]) -> Iterator[Sequence[str]]:
    """Yields runs of texts that are short together, and long ones each on its own."""
    start = size = 0
    for position, text in enumerate(texts):
        if size and size + len(text) > _CHARACTERS_AT_ONCE:
            yield texts[start:position]
            start, size = position, 0
        size += len(text)
    yield texts[start:]
