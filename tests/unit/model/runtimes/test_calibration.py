"""Images for int8 are found, digested and prepared."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from alignserve_server.errors import ImageUnreadable
from alignserve_server.model.encoder import PixelValues
from alignserve_server.model.runtimes.calibration import CalibrationImages


def preprocess(content: bytes) -> PixelValues:
    """Returns one pixel, from the first byte."""
    if content == b"broken":
        raise ImageUnreadable("broken")
    return np.full((1, 1, 3), content[0], np.uint8)


def _write(folder: Path, **contents: bytes) -> Path:
    for name, content in contents.items():
        (folder / f"{name}.jpg").write_bytes(content)
    return folder


def test_images_are_found_in_folders_inside_too(tmp_path: Path) -> None:
    """Images in subfolders are found, among other files."""
    _write(tmp_path, a=b"\x01")
    (tmp_path / "inside").mkdir()
    (tmp_path / "inside" / "b.PNG").write_bytes(b"\x02")
    (tmp_path / "notes.txt").write_text("notes")

    pixels = CalibrationImages(tmp_path, preprocess).pixels()

    assert pixels[:, 0, 0, 0].tolist() == [1, 2]


def test_broken_images_are_left_out(tmp_path: Path) -> None:
    """One corrupt file among many does not prevent startup."""
    folder = _write(tmp_path, a=b"broken", b=b"\x02")

    pixels = CalibrationImages(folder, preprocess).pixels()

    assert pixels.shape == (1, 1, 1, 3)


def test_a_folder_without_images_is_refused(tmp_path: Path) -> None:
    """A folder without images is refused by name, before anything else is done."""
    with pytest.raises(ValueError, match=f"{tmp_path} has no images"):
        CalibrationImages(tmp_path, preprocess)


def test_a_folder_without_readable_images_is_refused(tmp_path: Path) -> None:
    """A folder with only unreadable images is refused."""
    images = CalibrationImages(_write(tmp_path, a=b"broken"), preprocess)

    with pytest.raises(ValueError, match="no image that can be read"):
        images.pixels()


def test_of_many_images_some_from_everywhere_are_taken(tmp_path: Path) -> None:
    """The sample of a large folder covers all of it, not just its first subfolder."""
    folder = _write(tmp_path, **{f"{number:04}": bytes([number // 100]) for number in range(700)})

    pixels = CalibrationImages(folder, preprocess).pixels()

    assert 200 <= len(pixels) <= 300
    assert set(pixels[:, 0, 0, 0].tolist()) == {0, 1, 2, 3, 4, 5, 6}


def test_the_digest_goes_by_contents(tmp_path: Path) -> None:
    """Moving images keeps the digest; changing them does not."""
    digests = []
    for name, content in (("one", b"\x01"), ("two", b"\x01"), ("three", b"\x03")):
        (tmp_path / name).mkdir()
        folder = _write(tmp_path / name, a=content)
        digests.append(CalibrationImages(folder, preprocess).digest)

    assert digests[0] == digests[1] != digests[2]
