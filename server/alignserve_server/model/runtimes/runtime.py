"""The `Runtime` protocol, which executes the two networks of a checkpoint, and its comparison values.

When it is loaded, every runtime is compared with the reference on the same texts and image files:
transformers' own processors and AlignModel, on torch in float32 on a CPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from alignserve_server.model.encoder import (
    TOKEN_BYTES,
    Embeddings,
    GpuUse,
    OutOfDeviceMemory,
    PixelValues,
    TokenIds,
    l2_normalize,
)
from alignserve_server.model.probe import Reference

RuntimeName: TypeAlias = Literal["torch", "openvino"]
DtypeName: TypeAlias = Literal["float32", "bfloat16", "float16", "int8"]
KernelsName: TypeAlias = Literal["plain", "epilogues", "fused", "compiled"]  # of the image tower on a GPU
KernelsSetting: TypeAlias = KernelsName | Literal["auto"]
TokenArray: TypeAlias = NDArray[np.int64]


class PreparedShape(NamedTuple):
    """The shape of batches for which a runtime has prepared a forward of its own."""

    batch_size: int
    tokens: int | None = None  # length of the texts; None for images


class Runtime(Protocol):
    """The networks of one checkpoint on one device. Safe to call from several lanes at once."""

    name: RuntimeName
    dtype: DtypeName
    device: str
    lanes: int  # number of concurrent batches
    has_parallel_lanes: bool  # false if lanes take turns on one device, and overlap only the work around it
    lanes_per_modality: int | None  # maximum for one modality at once; None for all

    @property
    def gpu(self) -> GpuUse | None:
        """How the runtime uses its GPU; None on a CPU."""
        ...

    @property
    def memory_bytes(self) -> int:
        """Memory that the networks use on the device."""
        ...

    @property
    def prepared_shapes(self) -> Sequence[PreparedShape]:
        """The shapes that have forwards of their own, each to be verified; none on a CPU."""
        ...

    def drop(self, shape: PreparedShape) -> None:
        """Removes the forward of a prepared shape, whose batches then run in a larger one, or without."""
        ...

    def close(self) -> None:
        """Frees the networks and everything made from them; no call may be running or follow."""
        ...

    def enter_lane(self) -> None:
        """Prepares the calling thread, once, for its calls."""
        ...

    def release_memory(self) -> None:
        """Releases memory used only for loading and measuring; no call may be running."""
        ...

    def embed_pixels(self, batch: Sequence[PixelValues]) -> Embeddings:
        """Embeds images of one size.

        Raises `OutOfDeviceMemory`, `DeviceLost` or the runtime's own errors.
        """
        ...

    def embed_tokens(self, input_ids: TokenArray, attention_mask: TokenArray) -> Embeddings:
        """Embeds (batch, length) tokens. Raises as `embed_pixels` does."""
        ...

    def device_seconds(self) -> float | None:
        """Returns the device time of the calling thread's latest call; see `Encoder.device_seconds`."""
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
    max_image_batch_size: int = 32
    max_text_batch_size: int = 32
    max_text_tokens: int = 64
    cuda_graphs: bool = True
    cuda_kernels: KernelsSetting = "auto"
    cache_dir: Path | None = None  # for compiled kernels


@dataclass(frozen=True, slots=True)
class LoadedRuntime:
    """A runtime with the reference that it must match."""

    runtime: Runtime
    reference: Reference
    fingerprint: str


def lowest_cosine(embeddings: Embeddings, reference: Embeddings) -> float:
    """Returns the lowest cosine similarity of any row to its counterpart; NaN if a number is not finite."""
    return float((l2_normalize(embeddings) * l2_normalize(reference)).sum(axis=1).min())


def stacked(batch: Sequence[PixelValues]) -> NDArray[np.uint8]:
    """Returns images as (batch, height, width, 3), one image without a copy. Raises OutOfDeviceMemory."""
    try:
        return np.stack(batch) if len(batch) > 1 else batch[0][None]
    except MemoryError as error:
        raise OutOfDeviceMemory(str(error)) from error


def padded(texts: Sequence[TokenIds]) -> tuple[TokenArray, TokenArray]:
    """Returns input_ids and attention_mask, (texts, length of the longest)."""
    lengths = np.array([len(text) for text in texts]) // TOKEN_BYTES
    is_token = np.arange(lengths.max()) < lengths[:, np.newaxis]
    # Attention masks padding, so any token will do; every model has token 0.
    input_ids = np.zeros(is_token.shape, np.int64)
    input_ids[is_token] = np.frombuffer(b"".join(texts), np.int32)
    return input_ids, is_token.astype(np.int64)
