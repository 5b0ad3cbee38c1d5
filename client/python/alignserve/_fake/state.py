"""The fake's configuration and current state, and the embeddings that it derives from inputs."""

from __future__ import annotations

import hashlib
import struct
import threading
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alignserve._fake.script import Script
from alignserve.v1 import align_service_pb2 as pb


@dataclass(frozen=True, slots=True)
class ReceivedCall:
    """A message that the fake received.

    Attributes:
        method: Name of the RPC, such as `EmbedText`. Each message of a stream counts as one.
        request: The message.
        metadata: What the client sent with the call.
        remaining_seconds: Time left for the call, or `None` if the client set no deadline.
        at_seconds: When it arrived, by `time.monotonic()`.
    """

    method: str
    request: Any  # one of the request messages
    metadata: dict[str, str | bytes]
    remaining_seconds: float | None
    at_seconds: float


@dataclass(slots=True)
class FakeState:
    """The fake's configuration and current state. Contents are texts, or the keys of images."""

    info: pb.GetModelInfoResponse
    script: Script = field(default_factory=Script)
    received: list[ReceivedCall] = field(default_factory=list)
    arrived: threading.Condition = field(default_factory=threading.Condition)  # guards `received`
    gate: threading.Event = field(default_factory=threading.Event)  # set while answers may be sent
    stopped: threading.Event = field(default_factory=threading.Event)  # ends delays
    is_ready: bool = True
    reverse_count: int = 0  # items of a stream that are answered last first
    api_keys: frozenset[str] = frozenset()  # if empty, calls need no key
    checks_images: bool = False
    vectors: dict[str | bytes, NDArray[np.float32]] = field(default_factory=dict)  # set by the test
    scores: dict[str | bytes, dict[str, float]] = field(default_factory=dict)  # by image and label

    def vector_of(self, content: str | bytes) -> NDArray[np.float32]:
        """Returns the embedding of an input, with length 1: set by the test, or derived from the input."""
        vector = self.vectors.get(content)
        return fake_embedding(content, self.info.embedding_dimension) if vector is None else vector


def fake_embedding(content: str | bytes, dimension: int) -> NDArray[np.float32]:
    """Returns a vector of length 1, (dimension,), derived from a hash of the content."""
    data = content.encode() if isinstance(content, str) else content
    seed = int.from_bytes(hashlib.sha256(data).digest()[:8], "little")
    vector = np.random.default_rng(seed).standard_normal(dimension)
    return np.asarray(vector / np.linalg.norm(vector), np.float32)


def image_key(image: pb.Image) -> bytes:
    """Returns what identifies an image: the bytes of its file, or its size and pixels."""
    if image.WhichOneof("source") == "pixels":
        return pixels_key(image.pixels.height, image.pixels.width, image.pixels.data)
    return image.content


def pixels_key(height: int, width: int, data: bytes) -> bytes:
    """Returns what identifies pixels, RGB, of height times width times 3 bytes."""
    return struct.pack(">II", height, width) + data
