"""Pixels and tokens equal those of transformers' processors, bit for bit."""

from __future__ import annotations

from io import BytesIO
from typing import Any

import numpy as np
import pytest
from alignserve_server.model.preprocessing.decode import ImageDecoder
from alignserve_server.model.preprocessing.images import ImagePreprocessor
from PIL import ExifTags, Image, ImageCms
from transformers.image_utils import load_image
from transformers.models.efficientnet.image_processing_pil_efficientnet import EfficientNetImageProcessorPil

# Pillow's warnings about deliberately unusual files
pytestmark = [pytest.mark.model, pytest.mark.filterwarnings("ignore::UserWarning:PIL")]

SRGB_PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
DECODER = ImageDecoder(max_bytes=10 << 20, max_pixels=25_000_000)


def picture(mode: str = "RGB", size: tuple[int, int] = (97, 61)) -> Image.Image:
    rng = np.random.default_rng(7)
    noise = Image.fromarray(rng.integers(0, 256, (9, 13, 4), np.uint8)).resize(size, Image.Resampling.BICUBIC)
    return noise.convert("RGB").convert(mode) if mode in ("P", "1", "CMYK") else noise.convert(mode)


def encoded(image: Image.Image, file_format: str, **options: object) -> bytes:
    buffer = BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def with_orientation(orientation: int, file_format: str) -> bytes:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    return encoded(picture(), file_format, exif=exif)


def animation(file_format: str) -> bytes:
    frames = [picture().rotate(angle) for angle in (0, 90, 180)]
    return encoded(frames[0], file_format, save_all=True, append_images=frames[1:])


def transparent_palette(transparency: object) -> bytes:
    return encoded(picture("P"), "PNG", transparency=transparency)


IMAGES = {
    **{f"{mode}.png": encoded(picture(mode), "PNG") for mode in ("1", "L", "LA", "P", "RGB", "RGBA")},
    **{f"{mode}.jpg": encoded(picture(mode), "JPEG") for mode in ("L", "RGB", "CMYK")},
    **{f"{mode}.webp": encoded(picture(mode), "WEBP") for mode in ("RGB", "RGBA")},
    **{f"{mode}.bmp": encoded(picture(mode), "BMP") for mode in ("1", "L", "P", "RGB", "RGBA")},
    **{f"{mode}.gif": encoded(picture(mode), "GIF") for mode in ("L", "P", "RGBA")},
    **{f"orientation-{n}.jpg": with_orientation(n, "JPEG") for n in range(1, 9)},
    **{f"orientation-{n}.png": with_orientation(n, "PNG") for n in (3, 6)},
    **{f"orientation-{n}.webp": with_orientation(n, "WEBP") for n in (3, 6)},
    "orientation-of-no-meaning.jpg": with_orientation(42, "JPEG"),
    "progressive.jpg": encoded(picture(), "JPEG", progressive=True),
    "transparent-index.png": transparent_palette(3),
    "transparent-alphas.png": transparent_palette(bytes(range(256))),
    "transparent-grey.png": encoded(picture("L"), "PNG", transparency=9),
    "transparent-rgb.png": encoded(picture(), "PNG", transparency=(1, 2, 3)),
    "profile.jpg": encoded(picture(), "JPEG", icc_profile=SRGB_PROFILE),
    "animated.gif": animation("GIF"),
    "animated.webp": animation("WEBP"),
    "animated.png": animation("PNG"),
    "several.mpo": animation("MPO"),
    "one-pixel.png": encoded(picture(size=(1, 1)), "PNG"),
    "one-row.png": encoded(picture(size=(300, 1)), "PNG"),
    "large.jpg": encoded(picture(size=(1200, 900)), "JPEG"),
    "lossless.webp": encoded(picture(), "WEBP", lossless=True),
    "all-metadata.jpg": encoded(
        picture(),
        "JPEG",
        icc_profile=SRGB_PROFILE,
        comment=b"a",
        xmp=b'<a tiff:Orientation="6"/>',
        dpi=(9, 9),
    ),
    "all-metadata.webp": encoded(
        picture(), "WEBP", icc_profile=SRGB_PROFILE, xmp=b'<a tiff:Orientation="3"/>'
    ),
    "transparent.gif": encoded(picture("P"), "GIF", transparency=3, comment=b"a" * 999),
    "interlaced.gif": encoded(picture("P"), "GIF", interlace=True),
}


def square(edge: int) -> dict[str, int]:
    return {"height": edge, "width": edge}


def cropped(height: int, width: int) -> dict[str, object]:
    return {"do_center_crop": True, "crop_size": {"height": height, "width": width}}


CONFIGS = {
    "mini": {"size": square(256), **cropped(224, 224)},
    "align-base": {
        "resample": 2,
        "do_center_crop": True,
        "rescale_factor": 1 / 127.5,
        "rescale_offset": True,
        "do_normalize": False,
        "include_top": False,
    },
    "class defaults": {},
    "not square": {"size": {"height": 40, "width": 90}, "resample": 0},
    "numbers for sizes": {"size": 80, "do_center_crop": True, "crop_size": 64},
    "odd differences": {"size": [41, 52], "do_center_crop": True, "crop_size": [30, 31]},
    "crop larger": {"size": {"height": 40, "width": 41}, **cropped(65, 66)},
    "crop wider": {"size": {"height": 80, "width": 41}, **cropped(65, 66)},
    "no resize": {"do_resize": False, **cropped(50, 70)},
    "shortest edge": {"size": {"shortest_edge": 70}, **cropped(64, 64)},
    "both edges": {"size": {"shortest_edge": 70, "longest_edge": 90}, **cropped(64, 64)},
    "inside": {"size": {"max_height": 60, "max_width": 80}, **cropped(64, 64)},
    "own statistics": {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6], "include_top": True},
    "no rescale": {"do_rescale": False, "image_mean": [120, 110, 100], "image_std": [50, 60, 70]},
}


def upright(content: bytes) -> np.ndarray:
    return np.asarray(load_image(Image.open(BytesIO(content))))


@pytest.mark.parametrize("content", IMAGES.values(), ids=IMAGES.keys())
def test_decodes_as_load_image(content):
    """Every kind of image gives the pixels of transformers' load_image."""
    expected = upright(content)

    actual = np.asarray(DECODER.decode(content))

    np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
@pytest.mark.parametrize("size", [(97, 61), (61, 97), (50, 50), (31, 200)], ids=str)
def test_resizes_and_crops_as_the_image_processor(config, size):
    """Pixels equal EfficientNetImageProcessorPil's bit for bit, and its arithmetic on them to 1e-5."""
    content = encoded(picture(size=size), "PNG")
    image = load_image(Image.open(BytesIO(content)))
    geometry: dict[str, Any] = {"do_rescale": False, "do_normalize": False, "include_top": False}
    expected = EfficientNetImageProcessorPil(**config)(image, return_tensors="np", **geometry)[
        "pixel_values"
    ][0]
    expected_values = EfficientNetImageProcessorPil(**config)(image, return_tensors="np")["pixel_values"][0]
    preprocess = ImagePreprocessor(config, DECODER)

    pixels = preprocess(content)

    np.testing.assert_array_equal(pixels.transpose(2, 0, 1), expected)
    assert pixels.dtype == np.uint8
    assert pixels.shape == (*preprocess.output_size, 3)
    values = (pixels * preprocess.scale + preprocess.offset).transpose(2, 0, 1)
    np.testing.assert_allclose(values, expected_values, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "text",
    [
        "cat",
        "A Photo of THE dog!",
        "  spaces\tand\nlines  ",
        "Ünïcödé 猫 🚀",
        "nul\x00 and \u200b zero width",
        "photo " * 62,
        "photo " * 63,
        "of a cat and dogs, " * 200,
        "x" * 500,
    ],
    ids=lambda text: text[:12].strip(),
)
def test_tokenizes_as_the_processor(pair, text):
    """Token ids equal those of AlignProcessor with truncation."""
    expected = pair.reference.input_ids(text)

    actual = pair.encoder.tokenize(text, truncate=True)

    assert list(actual.input_ids) == expected
    assert len(expected) <= pair.encoder.info.max_text_tokens


def test_pixel_values_equal_the_processor_of_the_checkpoint(pair, photos):
    """Pixels of a photo equal those of the checkpoint's own AlignProcessor within 1e-6."""
    expected = pair.reference.pixel_values(photos["coffee"])
    preprocess = pair.encoder.preprocess_image

    pixels = preprocess(photos["coffee"])

    values = (pixels * preprocess.scale + preprocess.offset).transpose(2, 0, 1)
    np.testing.assert_allclose(values, expected, rtol=0, atol=1e-6)
