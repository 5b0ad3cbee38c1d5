"""Images in each form that callers have them."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from alignserve._images import as_list, encoded_image
from alignserve._png import encode_png
from PIL import Image

GRADIENT = np.arange(6 * 5 * 3, dtype=np.uint8).reshape(6, 5, 3) * 7


def decoded(file: bytes) -> Image.Image:
    return Image.open(io.BytesIO(file))


@pytest.mark.parametrize(
    "pixels",
    [GRADIENT, GRADIENT[:, :, 0], GRADIENT[:1, :1], GRADIENT[::-1, ::2]],
    ids=["rgb", "gray", "one pixel", "not contiguous"],
)
def test_png_holds_the_pixels_exactly(pixels: np.ndarray) -> None:
    """Pillow reads back what the encoder wrote."""
    image = decoded(encode_png(pixels))

    assert image.mode == ("RGB" if pixels.ndim == 3 else "L")
    assert np.array_equal(np.asarray(image), pixels)


def test_png_refuses_other_types() -> None:
    """Floats are refused, since their range is anybody's guess."""
    with pytest.raises(TypeError, match="float64; convert them to uint8"):
        encode_png(np.zeros((2, 2)))


@pytest.mark.parametrize("shape", [(2,), (2, 2, 4), (0, 2), (2, 2, 3, 1)])
def test_png_refuses_other_shapes(shape: tuple[int, ...]) -> None:
    """What is not an image of one or three channels is refused with its shape."""
    with pytest.raises(ValueError, match="shape"):
        encode_png(np.zeros(shape, np.uint8))


def test_files_travel_as_they_are(photo: Path) -> None:
    """A path, as str or not, and the bytes in any container give the same bytes."""
    content = photo.read_bytes()

    forms = [photo, str(photo), content, bytearray(content), memoryview(content)]

    assert all(encoded_image(form) == content for form in forms)


def test_pillow_images_travel_without_loss(photo: Path) -> None:
    """The decoded file has the pixels of the Pillow image."""
    image = Image.open(photo)

    sent = decoded(encoded_image(image))

    assert np.array_equal(np.asarray(sent), np.asarray(image))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "HSV", "F", "YCbCr"])
def test_every_mode_of_pillow_can_travel(mode: str) -> None:
    """Modes that PNG lacks are sent as RGB."""
    image = Image.fromarray(GRADIENT).convert("RGB" if mode in {"HSV", "YCbCr"} else "L").convert(mode)

    sent = decoded(encoded_image(image))

    assert sent.size == image.size


def test_other_values_are_refused_with_what_to_give() -> None:
    """A value that is no image is a TypeError that names the accepted kinds."""
    with pytest.raises(TypeError, match="int is no image; give a path"):
        encoded_image(3)  # type: ignore[arg-type]


def test_pixels_of_four_axes_are_several_images() -> None:
    """An array of images is a list of images; one image is a list of one."""
    many, many_is_one = as_list(np.stack([GRADIENT, GRADIENT]))
    one, one_is_one = as_list(GRADIENT)

    assert (len(many), many_is_one) == (2, False)
    assert (len(one), one_is_one) == (1, True)
