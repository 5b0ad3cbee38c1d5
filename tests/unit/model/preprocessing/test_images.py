"""The image processor's configuration is read with its defaults, or refused with a reason."""

from __future__ import annotations

from io import BytesIO

import numpy as np
import pytest
from alignserve_server.errors import ImageTooLarge, ImageUnreadable
from alignserve_server.model.checkpoint import CheckpointError
from alignserve_server.model.preprocessing.decode import ImageDecoder
from alignserve_server.model.preprocessing.images import ImagePreprocessor, center_crop
from PIL import Image

DECODER = ImageDecoder(max_bytes=1 << 20, max_pixels=100_000)
CROP = {"do_center_crop": True, "crop_size": {"height": 8, "width": 8}}


def png(width: int, height: int) -> bytes:
    buffer = BytesIO()
    Image.new("RGB", (width, height), (10, 20, 30)).save(buffer, "PNG")
    return buffer.getvalue()


def test_missing_keys_take_the_defaults_of_the_class():
    """An empty configuration is 346 pixels without a crop, normalized twice to a quarter of the range."""
    preprocess = ImagePreprocessor({}, DECODER)

    assert preprocess.output_size == (346, 346)
    assert preprocess.scale == pytest.approx([4 / 255] * 3)
    assert preprocess.offset == pytest.approx([-2] * 3)


def test_the_affine_map_of_align_base_is_one_to_minus_one():
    """rescale_factor 1/127.5 with rescale_offset maps 0..255 to -1..1."""
    config = {
        "rescale_factor": 1 / 127.5,
        "rescale_offset": True,
        "do_normalize": False,
        "include_top": False,
    }
    preprocess = ImagePreprocessor(config, DECODER)

    values = np.array([[0] * 3, [255] * 3]) * preprocess.scale + preprocess.offset

    assert values.tolist() == [pytest.approx([-1] * 3), pytest.approx([1] * 3)]


@pytest.mark.parametrize("crop", [{}, CROP], ids=["resized", "cropped"])
def test_the_result_is_written_to_the_array_given_for_it(crop):
    """It may be in memory shared with another process."""
    preprocess = ImagePreprocessor({"size": {"height": 4, "width": 16}, **crop}, DECODER)
    expected = preprocess(png(20, 10))
    given = np.full(expected.shape, 99, np.uint8)
    preprocess.new_pixels = {expected.shape: given}.__getitem__

    assert preprocess(png(20, 10)) is given
    np.testing.assert_array_equal(given, expected)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"image_processor_type": "CLIPImageProcessor"}, "CLIPImageProcessor.*not supported"),
        ({"do_resize": False}, "different sizes"),
        ({"size": {"shortest_edge": 64}}, "different sizes"),
        ({"size": {"longest_edge": 64}, **CROP}, "invalid"),
        ({"size": {"max_height": 64}, **CROP}, "invalid"),
        ({"do_center_crop": True, "crop_size": {"shortest_edge": 9}}, "invalid"),
        ({"resample": 77}, "invalid"),
        ({"image_std": [1, 0, 1]}, "zero"),
        ({"image_mean": [1, 2]}, "invalid"),
        ({"rescale_factor": None}, "invalid"),
    ],
    ids=str,
)
def test_refuses_a_configuration_that_it_cannot_follow(config, message):
    """A processor that cannot be reproduced exactly is refused at startup."""
    with pytest.raises(CheckpointError, match=message):
        ImagePreprocessor(config, DECODER)


def test_the_result_is_contiguous_and_its_own():
    """Pixels are contiguous and writable."""
    pixels = ImagePreprocessor({"size": 20, **CROP}, DECODER)(png(30, 40))

    assert pixels.shape == (8, 8, 3)
    assert pixels.dtype == np.uint8
    assert pixels.flags.c_contiguous


@pytest.mark.parametrize(("width", "height"), [(9_000, 1), (1, 9_000)])
def test_resizing_cannot_enlarge_beyond_the_limit(width, height):
    """A thin picture that shortest_edge would enlarge too much is refused."""
    preprocess = ImagePreprocessor({"size": {"shortest_edge": 64}, **CROP}, DECODER)

    with pytest.raises(ImageTooLarge, match=r"resized image has .* limit 100000"):
        preprocess(png(width, height))


def test_resizing_cannot_shrink_to_nothing():
    """A thin picture of which max_height leaves nothing is refused."""
    preprocess = ImagePreprocessor({"size": {"max_height": 64, "max_width": 64}, **CROP}, DECODER)

    with pytest.raises(ImageUnreadable, match="resized image has no pixels: 64 x 0"):
        preprocess(png(9_000, 1))


@pytest.mark.parametrize("height", range(1, 7))
def test_center_crop_pads_and_cuts(height):
    """Cropping and padding are split in half; an odd row is cropped at the end and added first."""
    rows = np.arange(1, height + 1, dtype=np.uint8)
    pixels = np.broadcast_to(rows[:, None, None], (height, 3, 3))

    cropped = center_crop(pixels, (3, 3))[:, 0, 0]

    assert (
        cropped.tolist()
        == {
            1: [0, 1, 0],
            2: [0, 1, 2],
            3: [1, 2, 3],
            4: [1, 2, 3],
            5: [2, 3, 4],
            6: [2, 3, 4],
        }[height]
    )
