"""Raw pixels are preprocessed exactly as a lossless file with the same pixels."""

from __future__ import annotations

from io import BytesIO

import numpy as np
import pytest
from alignserve_server.errors import ImageTooLarge
from alignserve_server.model.encoder import PixelArray
from alignserve_server.model.preprocessing.decode import ImageDecoder
from alignserve_server.model.preprocessing.images import ImagePreprocessor
from PIL import Image

from tests.model.conftest import Pair

pytestmark = pytest.mark.model

SQUARE = {"size": {"height": 289, "width": 289}}
SHORTEST = {"size": {"shortest_edge": 64}, "do_center_crop": True, "crop_size": {"height": 64, "width": 64}}
DECODER = ImageDecoder(max_bytes=50 << 20, max_pixels=8_000_000)


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(height * width).integers(0, 256, (height, width, 3), np.uint8)


def as_png(array: np.ndarray) -> bytes:
    buffer = BytesIO()
    Image.fromarray(array).save(buffer, "PNG", compress_level=0)
    return buffer.getvalue()


def as_pixels(array: np.ndarray) -> PixelArray:
    return PixelArray(array.shape[0], array.shape[1], array.tobytes())


@pytest.mark.parametrize("config", [SQUARE, SHORTEST], ids=["square", "shortest edge"])
@pytest.mark.parametrize(
    "size",
    [(1, 1), (1, 300), (300, 1), (97, 61), (289, 289), (720, 1280), (2100, 2100)],
    ids=lambda size: "x".join(map(str, size)),
)
def test_pixels_equal_a_png(config: dict[str, object], size: tuple[int, int]) -> None:
    """This holds for enlarged and reduced images, and for those that a decoder process resizes."""
    preprocess = ImagePreprocessor(config, DECODER)
    array = noise(*size)

    from_pixels = preprocess(as_pixels(array))

    assert (from_pixels == preprocess(as_png(array))).all()


def test_photos_equal_as_pixels(pair: Pair, photos: dict[str, bytes]) -> None:
    """Also with the checkpoint's own preprocessing."""
    for photo in photos.values():
        array = np.asarray(Image.open(BytesIO(photo)).convert("RGB"))

        pixels = pair.encoder.preprocess_image(as_pixels(array))

        assert (pixels == pair.encoder.preprocess_image(photo)).all()


@pytest.mark.parametrize(
    ("height", "width", "limit"),
    [(2829, 2829, "8003241 pixels, limit 8000000"), (1, 65_536, "a width of 65536, limit 65535")],
)
def test_pixels_have_the_limits_of_files(height: int, width: int, limit: str) -> None:
    """The pixels and the longer side are bounded; the bytes of a file are not theirs."""
    with pytest.raises(ImageTooLarge, match=limit):
        ImagePreprocessor(SQUARE, DECODER)(PixelArray(height, width, bytes(3 * height * width)))
