"""The `Runtime` protocol, which executes the two networks of a checkpoint, and its comparison values.

When it is loaded, every runtime is compared with the reference on the same texts and image files:
transformers' own processors and AlignModel, on torch in float32 on a CPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from alignserve_server.model.encoder import TOKEN_BYTES, Embeddings, TokenIds, l2_normalize
from alignserve_server.model.probe import Reference

RuntimeName: TypeAlias = Literal["torch", "openvino"]
DtypeName: TypeAlias = Literal["float32", "bfloat16", "float16", "int8"]
TokenArray: TypeAlias = NDArray[np.int64]


class Runtime(Protocol):
    """The networks of one checkpoint on one device. Safe to call from several lanes at once."""

    name: RuntimeName
    dtype: DtypeName
    device: str
    lanes: int  # number of concurrent batches
    has_parallel_lanes: bool  # false if lanes take turns on one device, and overlap only the work around it
    gpu_uuid: str | None  # UUID of the NVIDIA GPU; None on a CPU

    @property
    def memory_bytes(self) -> int:
        """Memory that the networks use on the device."""
        ...

    def enter_lane(self) -> None:
        """Prepares the calling thread, once, for its calls."""
        ...

    def release_memory(self) -> None:
        """Releases memory used only for loading and measuring; no call may be running."""
        ...

    def embed_pixels(self, pixels: NDArray[np.uint8]) -> Embeddings:
        """Embeds (batch, height, width, 3) pixels. Raises `OutOfDeviceMemory` or the runtime's own errors."""
        ...

    def embed_tokens(self, input_ids: TokenArray, attention_mask: TokenArray) -> Embeddings:
        """Embeds (batch, length) tokens. Raises `OutOfDeviceMemory` or the runtime's own errors."""
        ...


@dataclass(frozen=True, slots=True)
class Rescaling:
    """The affine map, per channel, from pixels to the model's input: `pixels * scale + offset`."""

    scale: NDArray[np.float32]  # (3,)
    offset: NDArray[np.float32]  # (3,)


@dataclass(frozen=True, slots=True)
class ExecutionConfig:
    """The device, data type and concurrency of a runtime."""

    device: str  # cpu or cuda:N
    dtype: DtypeName
    lanes: int | None = None  # None lets the runtime decide
    threads_per_lane: int | None = None
    max_batch_size: int = 32
    max_text_tokens: int = 64
    cuda_graphs: bool = True


@dataclass(frozen=True, slots=True)
class LoadedRuntime:
    """A runtime with the reference that it must match."""

    runtime: Runtime
    reference: Reference
    fingerprint: str


def lowest_cosine(embeddings: Embeddings, reference: Embeddings) -> float:
    """Returns the lowest cosine similarity of any row to its counterpart; NaN if a number is not finite."""
    return float((l2_normalize(embeddings) * l2_normalize(reference)).sum(axis=1).min())


def padded(texts: Sequence[TokenIds]) -> tuple[TokenArray, TokenArray]:
    """Returns input_ids and attention_mask, (texts, length of the longest)."""
    lengths = np.array([len(text) for text in texts]) // TOKEN_BYTES
    is_token = np.arange(lengths.max()) < lengths[:, np.newaxis]
    # Attention masks padding, so any token will do; every model has token 0.
    input_ids = np.zeros(is_token.shape, np.int64)
    input_ids[is_token] = np.frombuffer(b"".join(texts), np.int32)
    return input_ids, is_token.astype(np.int64)
