"""Converts images to the same uint8 pixels as the checkpoint's own image processor.

The processor is transformers' EfficientNetImageProcessorPil (the variant without torchvision). Resizing and
cropping here are bit-exact; rescaling and normalizing are one affine map per channel, which the device
applies to a whole batch: this needs a quarter of the memory and of the copying.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from alignserve_server.errors import ImageUnreadable
from alignserve_server.model.checkpoint import CheckpointError, Json
from alignserve_server.model.encoder import ImageInput, PixelArray, PixelValues
from alignserve_server.model.preprocessing.decode import ImageDecoder, draw
from alignserve_server.model.preprocessing.image_files import Picture
from alignserve_server.model.preprocessing.processes import PreprocessProcesses

_PROCESSOR_TYPES = (
    None,
    "EfficientNetImageProcessor",
    "EfficientNetImageProcessorFast",
    "EfficientNetImageProcessorPil",
)
_CLASS_DEFAULTS: Json = {  # transformers' defaults for keys missing from the checkpoint's file
    "do_resize": True,
    "size": {"height": 346, "width": 346},
    "resample": Image.Resampling.BICUBIC,
    "default_to_square": True,
    "do_center_crop": False,
    "crop_size": {"height": 289, "width": 289},
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "rescale_offset": False,
    "do_normalize": True,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
    "include_top": True,
}

# The event loop stalls while a thread holds the GIL. Pillow allocates under the GIL, which takes 2 ms for a
# million pixels, and decodes some formats under it, which takes 20 ms for a million pixels and 2 ms for
# these.
_INLINE_PIXELS = 1 << 22
_INLINE_UNDER_GIL = 1 << 16  # pixels, and bytes

CONFIGURATION = "preprocessor_config.json (or image_processor in processor_config.json)"
_BROKEN = (AttributeError, LookupError, OverflowError, TypeError, ValueError)
_MAX_EDGE = 4096  # pixels; the largest ALIGN reads 600

_Size: TypeAlias = tuple[int, int]  # height, width
_Sizing: TypeAlias = Callable[[_Size], _Size]  # from an image's size to its size after resizing


class ImagePreprocessor:
    """Decodes, resizes and crops one image; safe to call from several threads.

    Attributes:
        output_size: (height, width) of every result.
        scale: (3,), float32; see `offset`.
        offset: (3,), float32; `pixels * scale + offset` is the model's input.
        new_pixels: Returns the uninitialized array of the given shape that a result is written to.
    """

    def __init__(self, config: Json, decoder: ImageDecoder) -> None:
        """Reads the checkpoint's image processor configuration.

        Raises:
            CheckpointError: It belongs to another kind of processor, is invalid, or gives images of different
                sizes.
        """
        if config.get("image_processor_type") not in _PROCESSOR_TYPES:
            raise CheckpointError(
                f"{CONFIGURATION}: image processor {config['image_processor_type']!r} is not supported; "
                f"supported is {_PROCESSOR_TYPES[1]}"
            )
        self._decoder = decoder
        given = config
        try:
            config = {**_CLASS_DEFAULTS, **config}
            self._crop = _pair(config["crop_size"]) if config["do_center_crop"] else None
            self._sizing = _sizing(_size_mapping(config)) if config["do_resize"] else None
            self._resample = _resample(config["resample"])
            self.output_size = _output_size(config, self._crop)
            self.scale, self.offset = _affine(config)
        except _BROKEN as error:
            raise CheckpointError(
                f"{CONFIGURATION} is invalid: {type(error).__name__}: {error}; save it again with "
                "AlignProcessor.save_pretrained"
            ) from error
        self.new_pixels: Callable[[tuple[int, ...]], PixelValues] = _new_pixels
        self._processes = PreprocessProcesses(
            {"config": given, "max_bytes": decoder.max_bytes, "max_pixels": decoder.max_pixels},
            self.output_size,
        )

    @property
    def resampling(self) -> str:
        """The name of Pillow's filter for resizing, such as bicubic; empty if images are not resized."""
        return "" if self._sizing is None else self._resample.name.lower()

    def __call__(self, image: ImageInput) -> PixelValues:
        """Returns (height, width, 3) pixels of `output_size`, contiguous.

        Raises:
            ImageUnreadable: As for `ImageDecoder.decode`, or resizing leaves no pixel of a narrow picture.
            ImageTooLarge: As for `ImageDecoder.decode`, or resizing would make the picture too large.
        """
        picture = self.find(image)
        if self._needs_process(picture):
            return self._copied(self._processes(picture))
        return self.preprocess(picture)

    def find(self, image: ImageInput) -> Picture:
        """Finds the picture in a file, or that of decoded pixels; raises like `ImageDecoder.read`."""
        if isinstance(image, PixelArray):
            return self._decoder.picture_of(image)
        return self._decoder.read(image)

    def preprocess(self, picture: Picture) -> PixelValues:
        """Preprocesses a picture that `find` returned, in this process."""
        height, width = self._resized_size(picture)
        self._decoder.check_size(width, height, "resized image")  # it may be long and thin
        image = draw(picture)
        if self._sizing is not None:
            image = self._resized(image, (width, height))
        pixels = np.asarray(image)
        # Always a copy: the image's memory is read-only, and torch warns about read-only arrays.
        return self._copied(pixels if self._crop is None else center_crop(pixels, self._crop))

    def peak_pixels(self, picture: Picture) -> int:
        """Returns the number of pixels of a picture before or after resizing, whichever is larger."""
        return max(picture.pixels, math.prod(self._resized_size(picture)))

    def _copied(self, pixels: PixelValues) -> PixelValues:
        copy = self.new_pixels(pixels.shape)
        copy[:] = pixels
        return copy

    def _needs_process(self, picture: Picture) -> bool:
        if picture.needs_process:
            return True
        if picture.holds_gil and max(picture.pixels, len(picture.content)) > _INLINE_UNDER_GIL:
            return True
        return self.peak_pixels(picture) > _INLINE_PIXELS

    def _resized_size(self, picture: Picture) -> _Size:
        return picture.upright_size if self._sizing is None else self._sizing(picture.upright_size)

    def _resized(self, image: Image.Image, width_height: tuple[int, int]) -> Image.Image:
        try:
            return image.resize(width_height, self._resample)
        except MemoryError:
            image.close()
        raise ImageUnreadable("image needs more memory than available")


def _new_pixels(shape: tuple[int, ...]) -> PixelValues:
    return np.empty(shape, np.uint8)


def center_crop(pixels: PixelValues, size: tuple[int, int]) -> PixelValues:
    """Crops (height, width) from the center; areas outside the image are black.

    Odd differences round as in transformers.image_transforms.center_crop.
    """
    for axis, length in enumerate(size):
        pixels = _crop_axis(pixels, axis, length)
    return pixels


def _crop_axis(pixels: PixelValues, axis: int, length: int) -> PixelValues:
    surplus = pixels.shape[axis] - length
    if surplus >= 0:
        start = surplus // 2
        return pixels[(slice(None),) * axis + (slice(start, start + length),)]
    before = (1 - surplus) // 2
    padding = [(0, 0)] * pixels.ndim
    padding[axis] = (before, -surplus - before)
    return np.pad(pixels, padding)


@np.errstate(divide="ignore", invalid="ignore", over="ignore")  # the check below covers them
def _affine(config: Json) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Combines rescaling, normalizing and, with include_top, the second division by the deviation."""
    mean, std = (
        np.broadcast_to(np.asarray(config[key], np.float64), 3) for key in ("image_mean", "image_std")
    )
    scale, offset = np.ones(3), np.zeros(3)
    if config["do_rescale"]:
        scale, offset = scale * config["rescale_factor"], offset - bool(config["rescale_offset"])
    if config["do_normalize"]:
        scale, offset = scale / std, (offset - mean) / std
    if config["include_top"]:
        scale, offset = scale / std, offset / std
    affine = scale.astype(np.float32), offset.astype(np.float32)
    if not np.isfinite(affine).all():
        raise ValueError("image_mean, image_std or rescale_factor is missing, zero or too large")
    return affine


def _output_size(config: Json, crop: _Size | None) -> _Size:
    if crop is not None:
        return crop
    if config["do_resize"] and "height" in _size_mapping(config):
        return _pair(config["size"])
    raise CheckpointError(
        f"{CONFIGURATION} gives images of different sizes, which cannot share a batch; "
        "it needs do_center_crop, or do_resize with height and width"
    )


def _resample(value: int | None) -> Image.Resampling:
    return Image.Resampling.BILINEAR if value is None else Image.Resampling(value)


def _size_mapping(config: Json) -> Json:
    size = config["size"]
    if isinstance(size, int):
        return {"height": size, "width": size} if config["default_to_square"] else {"shortest_edge": size}
    if isinstance(size, list):
        return {"height": size[0], "width": size[1]}
    return {key: value for key, value in dict(size).items() if value is not None}


def _pair(size: object) -> _Size:
    """Returns height and width. Raises ValueError if they are not valid for an image."""
    mapping = _size_mapping({"size": size, "default_to_square": True})
    return _edge(mapping, "height"), _edge(mapping, "width")


def _edge(size: Json, name: str) -> int:
    edge = int(size[name])
    if not 1 <= edge <= _MAX_EDGE:
        raise ValueError(f"{name} is {size[name]!r}; supported: 1 to {_MAX_EDGE} pixels")
    return edge


def _sizing(size: Json) -> _Sizing:
    """Returns the sizing rule, chosen in the same order as in PilBackend.resize."""
    if "shortest_edge" in size and "longest_edge" in size:
        return partial(_fit_edges, shortest=_edge(size, "shortest_edge"), longest=_edge(size, "longest_edge"))
    if "shortest_edge" in size:
        return partial(_fit_shortest, shortest=_edge(size, "shortest_edge"))
    if "max_height" in size:
        return partial(_fit_inside, max_height=_edge(size, "max_height"), max_width=_edge(size, "max_width"))
    return partial(_fixed, size=_pair(size))


def _fixed(given: _Size, size: _Size) -> _Size:  # noqa: ARG001 — one of the rules of _sizing
    return size


def _fit_shortest(given: _Size, shortest: int) -> _Size:
    height, width = given
    longest = int(shortest * max(given) / min(given))
    return (longest, shortest) if width <= height else (shortest, longest)


def _fit_edges(given: _Size, shortest: int, longest: int) -> _Size:
    height, width = given
    edge: float = shortest
    if max(given) / min(given) * shortest > longest:
        edge = longest * min(given) / max(given)
        shortest = round(edge)
    if min(given) == shortest:
        return given
    if width < height:
        return int(edge * height / width), shortest
    return shortest, int(edge * width / height)


def _fit_inside(given: _Size, max_height: int, max_width: int) -> _Size:
    height, width = given
    ratio = min(max_height / height, max_width / width)
    return int(height * ratio), int(width * ratio)
