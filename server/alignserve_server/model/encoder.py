"""The model's interface to the rest of the server: the `Encoder` protocol and its values."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from alignserve_server.errors import ImageUnreadable

PixelValues: TypeAlias = NDArray[np.uint8]  # (height, width, 3), resized and cropped, not yet rescaled
TokenIds: TypeAlias = bytes  # of a text, special tokens included: native int32, `TOKEN_BYTES` each
Embeddings: TypeAlias = NDArray[np.float32]  # (batch, embedding_dimension), not normalized

TOKEN_BYTES = 4

_TINY = np.float32(np.finfo(np.float32).tiny)
_MIN_SQUARED_LENGTH = 1e-30  # below this, float32 loses digits of the squares


@dataclass(frozen=True, slots=True)
class PixelArray:
    """A decoded image, as a caller sends it: 8 bits per channel, in sRGB."""

    height: int
    width: int
    data: bytes  # red, green and blue of each pixel, row by row from the top left

    def check_shape(self) -> None:
        """Raises ImageUnreadable, with the part at fault, if the data does not have the given shape."""
        for part, size in ((".height", self.height), (".width", self.width)):
            if size < 1:
                raise ImageUnreadable.in_part(part, f"image has no pixels: {self.width} x {self.height}")
        size = 3 * self.height * self.width
        if len(self.data) != size:
            raise ImageUnreadable.in_part(
                ".data",
                f"{len(self.data)} bytes; {self.height} rows of {self.width} pixels have 3 bytes each, "
                f"{size} in total",
            )


ImageInput: TypeAlias = bytes | PixelArray  # an encoded file, or its pixels


def image_bytes(image: ImageInput) -> int:
    """Returns the size of an image as the caller sent it."""
    return len(image.data if isinstance(image, PixelArray) else image)


def token_ids(ids: Iterable[int]) -> TokenIds:
    """Returns the ids of a text's tokens as an `Encoder` takes them."""
    return array("i", ids).tobytes()


class TokenizedText(NamedTuple):
    """A text as the model reads it."""

    input_ids: tuple[int, ...]  # with special tokens, without padding
    truncated: bool = False
    unknown_token_count: int = 0  # how many of them replace words and characters missing from the vocabulary

    @property
    def token_ids(self) -> TokenIds:
        """The tokens as an `Encoder` takes them."""
        return token_ids(self.input_ids)


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """The served model; the fields of `GetModelInfoResponse` that describe it."""

    model_id: str
    model_revision: str
    fingerprint: str  # of weights, preprocessing, tokenizer, runtime and dtype
    runtime: str
    dtype: str
    device: str
    embedding_dimension: int
    temperature: float
    max_text_tokens: int
    min_cosine_similarity: float  # to AlignModel in float32, on the inputs compared at startup


class GpuUse(NamedTuple):
    """How a model uses its GPU.

    Attributes:
        uuid: As CUDA names the GPU, such as `GPU-5c2ea1a0-…`.
        kernels: Of the image tower; see `--cuda-kernels`.
        graphs: The number of CUDA graphs by modality, 0 without them.
    """

    uuid: str
    kernels: str
    graphs: Mapping[str, int]


class Encoder(Protocol):
    """A loaded ALIGN model with its preprocessing.

    `preprocess_image` and `tokenize` are called from several threads at once; they release the GIL during
    their heavy part. `encode_images` and `encode_texts` are called from the lanes' threads, one call at a
    time per lane.
    """

    @property
    def info(self) -> ModelInfo: ...

    @property
    def lanes(self) -> int:
        """Default number of concurrent batches."""
        ...

    @property
    def has_parallel_lanes(self) -> bool:
        """Whether two lanes are faster than one batch of both; a GPU's lanes take turns."""
        ...

    @property
    def lanes_per_modality(self) -> int | None:
        """Maximum number of lanes that run batches of one modality at once; None for all of them."""
        ...

    @property
    def is_measurable(self) -> bool:
        """Whether measured forward times determine the best batch size."""
        ...

    @property
    def device_memory_bytes(self) -> int:
        """Memory that the model currently uses on its device."""
        ...

    @property
    def gpu(self) -> GpuUse | None:
        """How it uses an NVIDIA GPU, once it is loaded; None on a CPU."""
        ...

    def input_spec(self) -> bytes:
        """Returns what a process without the model needs to prepare inputs as this encoder does."""
        ...

    def enter_lane(self) -> None:
        """Prepares the calling thread, once, for its `encode_*` calls."""
        ...

    def release_memory(self) -> None:
        """Releases memory used only for loading and measuring; no batch may be running."""
        ...

    def preprocess_image(self, image: ImageInput) -> PixelValues:
        """Decodes an encoded image, then resizes and crops it.

        Raises:
            ImageUnreadable: The bytes are not an image of an accepted format, or the image is corrupt.
            ImageTooLarge: It exceeds the limits on bytes or pixels.
        """
        ...

    def tokenize(self, text: str, *, truncate: bool) -> TokenizedText:
        """Splits a text into the model's tokens, with special tokens.

        Raises:
            TextEmpty: The text is empty or blank.
            TextTooLong: It has more bytes than the limit, or more tokens and `truncate` is false.
        """
        ...

    def encode_images(self, batch: Sequence[PixelValues]) -> Embeddings:
        """Embeds images of one size. Raises `OutOfDeviceMemory`, `DeviceLost` or the runtime's own errors."""
        ...

    def encode_texts(self, batch: Sequence[TokenIds]) -> Embeddings:
        """Embeds texts, padded to the longest. Raises as `encode_images` does."""
        ...

    def device_seconds(self) -> float | None:
        """Returns the device time of the calling lane's latest `encode_*` call, if that call succeeded.

        It excludes copies and waiting for the batches of other lanes. None if the duration of the call is the
        device's time, as on a CPU.
        """
        ...


class OutOfDeviceMemory(Exception):
    """The batch did not fit the device; a smaller one may."""


class CaptureFailed(Exception):
    """CUDA graphs cannot be captured, for another reason than memory.

    The attempt may leave the device unusable for this process: load in a new one, without CUDA graphs.
    """


class DeviceLost(Exception):
    """The device fails every further call of this process, on any lane; only a new process can use it."""


def l2_normalize(embeddings: NDArray[np.float32]) -> NDArray[np.float32]:
    """Scales each vector (the last axis) to length 1; a zero vector stays zero."""
    # the same as np.linalg.norm, at a third of the time for a single vector
    norms: NDArray[np.float32] = np.sqrt(np.add.reduce(embeddings * embeddings, axis=-1, keepdims=True))
    normalized: NDArray[np.float32] = np.divide(embeddings, np.maximum(norms, _TINY))
    return normalized


def has_direction(embeddings: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Returns for each vector (the last axis) whether `l2_normalize` gives it length 1.

    It does not if a number is not finite, if all are zero, or if the squares overflow or underflow.
    """
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        # One call: each gives up the GIL, and a lane gets it back only when the event loop has nothing to do.
        squared_lengths = np.einsum("...i,...i->...", embeddings, embeddings)
    sound: NDArray[np.bool_] = (squared_lengths > _MIN_SQUARED_LENGTH) & np.isfinite(squared_lengths)
    return sound
