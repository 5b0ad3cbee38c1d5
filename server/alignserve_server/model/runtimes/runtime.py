"""What runs the two networks of a checkpoint: the `Runtime` protocol, and how a runtime proves itself.

Every runtime is compared, when it is loaded, with the reference: transformers' own processors and AlignModel
on torch in float32 on a CPU, on the same texts and image files.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from alignserve_server.model.encoder import Embeddings, l2_normalize
from alignserve_server.model.probe import Reference

RuntimeName: TypeAlias = Literal["torch", "openvino"]
DtypeName: TypeAlias = Literal["float32", "bfloat16", "float16", "int8"]
TokenArray: TypeAlias = NDArray[np.int64]


class Runtime(Protocol):
    """The networks of one checkpoint on one device. Safe to call from several lanes at once."""

    name: RuntimeName
    dtype: DtypeName
    device: str
    lanes: int  # batches that it runs at once
    has_parallel_lanes: bool  # false if lanes take turns at one device, and overlap only what is around it
    gpu_uuid: str | None  # NVIDIA's name of the GPU; None on a CPU

    @property
    def memory_bytes(self) -> int:
        """Memory that the networks hold on the device."""
        ...

    def enter_lane(self) -> None:
        """Prepares the calling thread, once, for the calls that it is going to make."""
        ...

    def release_memory(self) -> None:
        """Gives back what loading and measuring took and serving does not need; no call may be running."""
        ...

    def embed_pixels(self, pixels: NDArray[np.uint8]) -> Embeddings:
        """Embeds (batch, height, width, 3) pixels. Raises `OutOfDeviceMemory` or what the runtime raises."""
        ...

    def embed_tokens(self, input_ids: TokenArray, attention_mask: TokenArray) -> Embeddings:
        """Embeds (batch, length) tokens. Raises `OutOfDeviceMemory` or what the runtime raises."""
        ...


@dataclass(frozen=True, slots=True)
class Rescaling:
    """The affine map, per channel, from pixels to what the model reads: `pixels * scale + offset`."""

    scale: NDArray[np.float32]  # (3,)
    offset: NDArray[np.float32]  # (3,)


@dataclass(frozen=True, slots=True)
class Placement:
    """Where and how a runtime computes."""

    device: str  # cpu or cuda:N
    dtype: DtypeName
    lanes: int | None = None  # None leaves it to the runtime
    threads_per_lane: int | None = None
    max_batch_size: int = 32
    max_text_tokens: int = 64
    cuda_graphs: bool = True


@dataclass(frozen=True, slots=True)
class Loaded:
    """A runtime with what it has to equal."""

    runtime: Runtime
    reference: Reference
    fingerprint: str


def min_cosine(embeddings: Embeddings, reference: Embeddings) -> float:
    """Returns the lowest cosine of any row with its counterpart; NaN if a number is not finite."""
    return float((l2_normalize(embeddings) * l2_normalize(reference)).sum(axis=1).min())


def padded(texts: Sequence[Sequence[int]]) -> tuple[TokenArray, TokenArray]:
    """Returns input_ids and attention_mask, (texts, length of the longest)."""
    shape = len(texts), max(map(len, texts))
    # Attention leaves padding out, so any token does; 0 is one that every model has.
    input_ids = np.zeros(shape, np.int64)
    attention_mask = np.zeros(shape, np.int64)
    for row, text in enumerate(texts):
        input_ids[row, : len(text)] = text
        attention_mask[row, : len(text)] = 1
    return input_ids, attention_mask
