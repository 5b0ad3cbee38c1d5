"""Images in every accepted form."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from alignserve._images import as_list, compressed, encoded_image, image_message, image_size
from alignserve._png import encode_png
from alignserve.v1 import align_service_pb2 as pb
from PIL import ExifTags, Image, ImageOps

GRADIENT = np.arange(6 * 5 * 3, dtype=np.uint8).reshape(6, 5, 3) * 7


def decoded(file: bytes) -> Image.Image:
    return Image.open(io.BytesIO(file))


@pytest.mark.parametrize(
    "pixels",
    [
        GRADIENT,
        GRADIENT[:, :, 0],
        GRADIENT[:1, :1],
        GRADIENT[::-1, ::2],
        np.dstack([GRADIENT, GRADIENT[..., 0]]),
    ],
    ids=["rgb", "gray", "one pixel", "not contiguous", "rgba"],
)
def test_png_holds_the_pixels_exactly(pixels: np.ndarray) -> None:
    """Pillow reads back what the encoder wrote."""
    image = decoded(encode_png(pixels))

    assert image.mode == {2: "L", 3: "RGB", 4: "RGBA"}[pixels.shape[-1] if pixels.ndim == 3 else 2]
    assert np.array_equal(np.asarray(image), pixels)


def test_one_channel_is_gray() -> None:
    """(height, width, 1), which many libraries use for gray, is sent like (height, width)."""
    assert encode_png(GRADIENT[:, :, :1]) == encode_png(GRADIENT[:, :, 0])


def test_png_refuses_other_types() -> None:
    """Floats are refused, since their range is unknown."""
    with pytest.raises(TypeError, match="float64; convert them to uint8"):
        encode_png(np.zeros((2, 2)))


@pytest.mark.parametrize("shape", [(2,), (2, 2, 2), (2, 2, 5), (0, 2), (2, 2, 3, 1)])
def test_png_refuses_other_shapes(shape: tuple[int, ...]) -> None:
    """Arrays without one, three or four channels are refused with their shape."""
    with pytest.raises(ValueError, match=r"shape .* with 1, 3 or 4 channels"):
        encode_png(np.zeros(shape, np.uint8))


def test_files_travel_as_they_are(photo: Path) -> None:
    """A path, as str or not, and the bytes in any container give the same bytes."""
    content = photo.read_bytes()

    forms: list[Any] = [photo, str(photo), content, bytearray(content), memoryview(content)]

    assert all(encoded_image(form) == content for form in forms)


def test_pillow_images_travel_without_loss(photo: Path) -> None:
    """The decoded file has the pixels of the Pillow image."""
    image = Image.open(photo)

    sent = decoded(encoded_image(image))

    assert np.array_equal(np.asarray(sent), np.asarray(image))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "HSV", "YCbCr"])
def test_every_mode_of_pillow_can_travel(mode: str) -> None:
    """Modes that PNG lacks are sent as RGB."""
    image = Image.fromarray(GRADIENT).convert("RGB" if mode in {"HSV", "YCbCr"} else "L").convert(mode)

    sent = decoded(encoded_image(image))

    assert sent.size == image.size


@pytest.mark.parametrize(("mode", "dtype"), [("F", "float32"), ("I", "int32")])
def test_modes_of_pillow_without_a_range_are_refused(mode: str, dtype: str) -> None:
    """Images with larger pixels, which Pillow would clip at 255, are refused like such arrays."""
    with pytest.raises(TypeError, match=f"pixels are {dtype}; convert them to uint8, from 0 to 255"):
        encoded_image(Image.new(mode, (2, 2)))


def turned(photo: Path, file_format: str, orientation: int) -> bytes:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    exif[ExifTags.Base.Artist] = "somebody"
    file = io.BytesIO()
    Image.open(photo).save(file, file_format, exif=exif)
    return file.getvalue()


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_an_opened_image_is_shown_as_its_file_is(photo: Path, file_format: str, orientation: int) -> None:
    """The EXIF orientation is sent with the pixels, which Pillow leaves unrotated."""
    file = turned(photo, file_format, orientation)

    sent = decoded(encoded_image(decoded(file)))

    shown, expected = ImageOps.exif_transpose(sent), ImageOps.exif_transpose(decoded(file))
    assert np.array_equal(np.asarray(shown), np.asarray(expected))


def test_nothing_of_exif_but_the_orientation_travels(photo: Path) -> None:
    """Other EXIF data, such as the photographer and the location, is not sent."""
    image = decoded(turned(photo, "JPEG", 6))

    sent = decoded(encoded_image(image))

    assert dict(sent.getexif()) == {ExifTags.Base.Orientation: 6}


@pytest.mark.parametrize(
    "transform",
    [ImageOps.exif_transpose, lambda image: image.convert("L"), lambda image: image.resize((9, 5))],
    ids=["transposed", "converted", "resized"],
)
def test_a_transformed_image_is_shown_as_it_is(photo: Path, transform: Any) -> None:
    """A transformed image is not rotated again."""
    image = transform(decoded(turned(photo, "JPEG", 6)))

    sent = decoded(encoded_image(image))

    assert np.array_equal(np.asarray(ImageOps.exif_transpose(sent)), np.asarray(image))


def test_open_files_are_read(photo: Path) -> None:
    """An open file or a buffer is one image, although both are iterable."""
    with photo.open("rb") as file:
        from_file, file_is_one = as_list(file)
    from_buffer, buffer_is_one = as_list(io.BytesIO(photo.read_bytes()))

    assert from_file == from_buffer == [photo.read_bytes()]
    assert file_is_one
    assert buffer_is_one


def test_a_file_opened_as_text_is_refused() -> None:
    """A file opened as text is refused; the message says how to open it."""
    with pytest.raises(TypeError, match=r"read\(\) returned str, not bytes; open the image in binary mode"):
        encoded_image(io.StringIO("x"))  # type: ignore[arg-type]


def test_other_values_are_refused_with_what_to_give() -> None:
    """Other values raise a TypeError that names the accepted kinds."""
    with pytest.raises(TypeError, match="int is not an image; give a path"):
        encoded_image(3)  # type: ignore[arg-type]


def test_pixels_of_four_axes_are_several_images() -> None:
    """An array of images is a list of images; one image is a list of one."""
    many, many_is_one = as_list(np.stack([GRADIENT, GRADIENT]))
    one, one_is_one = as_list(GRADIENT)

    assert (len(many), many_is_one) == (2, False)
    assert (len(one), one_is_one) == (1, True)


def as_array(image: pb.Image) -> np.ndarray:
    assert image.WhichOneof("source") == "pixels"
    pixels = image.pixels
    return np.frombuffer(pixels.data, np.uint8).reshape(pixels.height, pixels.width, 3)


@pytest.mark.parametrize(
    "pixels",
    [
        GRADIENT,
        GRADIENT[:, :, 0],
        GRADIENT[:, :, :1],
        GRADIENT[::-1, ::2],
        np.dstack([GRADIENT, GRADIENT[..., 0]]),
    ],
    ids=["rgb", "gray", "one channel", "not contiguous", "rgba"],
)
def test_arrays_travel_as_the_pixels_of_their_png(pixels: np.ndarray) -> None:
    """The server gets what it would read from a PNG: RGB, with gray three times and without alpha."""
    sent = as_array(image_message(pixels))

    assert np.array_equal(sent, np.asarray(decoded(encode_png(pixels)).convert("RGB")))


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA"])
def test_pillow_images_travel_as_pixels(mode: str) -> None:
    """Images in memory are not encoded."""
    image = Image.fromarray(GRADIENT).convert(mode)

    assert np.array_equal(as_array(image_message(image)), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("mode", ["1", "P", "LA", "I;16", "CMYK"])
def test_modes_that_the_server_converts_travel_as_png(mode: str) -> None:
    """Only the server knows how it reads palettes, 16 bits and the like."""
    image = Image.new(mode, (3, 2))

    assert image_message(image) == pb.Image(content=encoded_image(image))


def test_a_turned_image_travels_as_png(photo: Path) -> None:
    """Pixels have no EXIF, so an image with an orientation stays a file."""
    image = decoded(turned(photo, "JPEG", 6))

    assert image_message(image).WhichOneof("source") == "content"


def test_files_are_never_decoded(photo: Path) -> None:
    """A path, bytes or an open file is sent as it is."""
    content = photo.read_bytes()

    assert image_message(photo) == image_message(content) == pb.Image(content=content)


def test_pixels_can_be_compressed_without_loss() -> None:
    """PNG has the same pixels; a file stays as it is."""
    pixels, file = image_message(GRADIENT), pb.Image(content=b"file")

    smaller = compressed(pixels)

    assert np.array_equal(np.asarray(decoded(smaller.content)), GRADIENT)
    assert compressed(file) == file


@pytest.mark.parametrize("shape", [(1, 1, 3), (300, 500, 3), (2000, 3000, 3)])
def test_the_size_of_pixels_covers_their_message(shape: tuple[int, ...]) -> None:
    """Requests are built by this size, so it is never too small."""
    image = image_message(np.zeros(shape, np.uint8))

    assert 0 <= image_size(image) - image.ByteSize() < 32
