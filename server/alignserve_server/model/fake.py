"""An `Encoder` without a model: deterministic embeddings, and injected faults.

It is used by tests of the batcher and of the server, and by load tests of everything except the model
(`--checkpoint fake`).
"""

from __future__ import annotations

import hashlib
import threading
import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from alignserve_server.errors import ImageUnreadable, TextEmpty, TextTooLong
from alignserve_server.model.encoder import (
    Embeddings,
    GpuUse,
    ImageInput,
    ModelInfo,
    OutOfDeviceMemory,
    PixelArray,
    PixelValues,
    TokenIds,
    TokenizedText,
    l2_normalize,
)

_SIDE = 4  # of an image, in pixels; its 48 bytes are one digest
_MAX_TEXT_TOKENS = 64
_START, _END = 1, 2  # special tokens
_FIRST_WORD, _WORDS = 3, 2**31 - 3
_UNKNOWN_WORD = b"[UNK]"


@dataclass(frozen=True, slots=True)
class FakeBatch:
    """A batch that reached the device."""

    modality: str  # image or text
    keys: tuple[bytes, ...]  # of its entries, in order; see `FakeEncoder.key`


class FakeEncoder:
    """Embeds by hashing: equal inputs have equal embeddings, others unrelated ones.

    Any bytes and pixels are an image, except empty ones and bytes that start with `broken`. A text has a
    token per word, and the word `[UNK]` is unknown.

    Attributes:
        gate: Forwards wait until it is set; initially it is set.
        max_batch_size: Larger batches raise `OutOfDeviceMemory`; None for no limit.
        failing: Keys of entries whose batch raises RuntimeError.
        not_finite: Keys of entries whose embedding is NaN.
        batches: Every batch that reached the device, in order, if `is_recording`.
    """

    def __init__(
        self,
        embedding_dimension: int = 8,
        *,
        is_recording: bool = True,
        seconds_per_batch: float = 0.0,
        seconds_per_entry: float = 0.0,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        """Simulates the time of a forward with `sleep`; recording is for tests, as it grows without bound."""
        self.info = ModelInfo(
            model_id="fake",
            model_revision="",
            fingerprint=f"fake-{embedding_dimension}",
            runtime="fake",
            dtype="float32",
            device="cpu",
            embedding_dimension=embedding_dimension,
            temperature=0.1,
            max_text_tokens=_MAX_TEXT_TOKENS,
            min_cosine_similarity=1.0,
        )
        self.lanes = 1
        self.has_parallel_lanes = True
        self.lanes_per_modality: int | None = None
        self.is_measurable = False
        self.gpu: GpuUse | None = None
        self.gate = threading.Event()
        self.gate.set()
        self.max_batch_size: int | None = None
        self.failing: set[bytes] = set()
        self.not_finite: set[bytes] = set()
        self.batches: list[FakeBatch] = []
        self._is_recording = is_recording
        self._seconds_per_batch = seconds_per_batch
        self._seconds_per_entry = seconds_per_entry
        self._sleep = sleep

    @property
    def device_memory_bytes(self) -> int:
        return 0

    def input_spec(self) -> bytes:
        """Returns nothing: any `FakeEncoder` prepares inputs as this one does."""
        return b""

    def enter_lane(self) -> None:
        """Does nothing: hashing has no threads."""

    def release_memory(self) -> None:
        """Does nothing: hashing uses no memory."""

    def preprocess_image(self, image: ImageInput) -> PixelValues:
        """Returns (4, 4, 3) pixels derived from the bytes."""
        if isinstance(image, PixelArray):
            image.check_shape()
            image = b"%d x %d: %b" % (image.height, image.width, image.data)
        if not image or image.startswith(b"broken"):
            raise ImageUnreadable("image is empty or broken")
        digest = hashlib.blake2b(image, digest_size=_SIDE * _SIDE * 3).digest()
        return np.frombuffer(digest, np.uint8).reshape(_SIDE, _SIDE, 3)

    def tokenize(self, text: str, *, truncate: bool) -> TokenizedText:
        """Returns a token per word, between two special tokens."""
        words = text.encode(errors="replace").split()
        room = _MAX_TEXT_TOKENS - 2
        if not words:
            raise TextEmpty("text is empty or blank")
        if len(words) > room and not truncate:
            raise TextTooLong(f"text has {len(words) + 2} tokens, limit {_MAX_TEXT_TOKENS}")
        ids = (_START, *[_FIRST_WORD + zlib.crc32(word) % _WORDS for word in words[:room]], _END)
        return TokenizedText(
            ids, truncated=len(words) > room, unknown_token_count=words[:room].count(_UNKNOWN_WORD)
        )

    def encode_images(self, batch: Sequence[PixelValues]) -> Embeddings:
        return self._forward("image", [pixels.tobytes() for pixels in batch])

    def encode_texts(self, batch: Sequence[TokenIds]) -> Embeddings:
        return self._forward("text", batch)

    def device_seconds(self) -> float | None:
        """Returns None: a call's duration is its device time."""
        return None

    def key(self, payload: ImageInput | str) -> bytes:
        """Returns the key of an input in `failing`, `not_finite` and `batches`."""
        if isinstance(payload, str):
            return self.tokenize(payload, truncate=True).token_ids
        return self.preprocess_image(payload).tobytes()

    def embedding_of(self, payload: ImageInput | str) -> Embeddings:
        """Returns the expected embedding of an image or a text: (embedding_dimension,), length 1."""
        embeddings: Embeddings = self._embed([self.key(payload)])[0]
        return embeddings

    def _forward(self, modality: str, keys: Sequence[bytes]) -> Embeddings:
        if self._is_recording:
            self.batches.append(FakeBatch(modality, tuple(keys)))
        self.gate.wait()
        self._spend(len(keys))
        if self.max_batch_size is not None and len(keys) > self.max_batch_size:
            raise OutOfDeviceMemory(f"{len(keys)} entries, room for {self.max_batch_size}")
        if self.failing.intersection(keys):
            raise RuntimeError("poisonous entry in the batch")
        embeddings = self._embed(keys)
        embeddings[[key in self.not_finite for key in keys]] = np.nan
        return embeddings

    def _spend(self, entries: int) -> None:
        seconds = self._seconds_per_batch + entries * self._seconds_per_entry
        if seconds:
            self._sleep(seconds)

    def _embed(self, keys: Sequence[bytes]) -> Embeddings:
        size = 4 * self.info.embedding_dimension
        raw = b"".join([hashlib.shake_256(key).digest(size) for key in keys])
        return l2_normalize(np.frombuffer(raw, np.int32).reshape(len(keys), -1).astype(np.float32))
