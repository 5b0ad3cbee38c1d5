"""What requests are made of: the user's files and lines, or made-up ones."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from alignserve._bench.images import VariedImage, synthetic_photos, unvaried_image, varied_image
from alignserve._bench.sentences import TextLength, sentences
from alignserve._cli.files import image_files

_SENTENCES = 1000
_MOST_IMAGE_BYTES = 256 << 20  # kept in memory


@dataclass(frozen=True, slots=True)
class Inputs:
    """What requests are made of.

    Attributes:
        images: Files, in the order of their use.
        texts: Texts, in the order of their use.
        labels: What images are classified by.
        items_per_request: Images or texts in one request.
        is_unique: Whether no two images or texts are the same bytes. Labels repeat, as those of callers do.
    """

    images: Sequence[VariedImage] = ()
    texts: Sequence[str] = ()
    labels: Sequence[str] = ()
    items_per_request: int = 1
    is_unique: bool = True


def image_inputs(paths: Sequence[Path], seed: int, *, is_unique: bool) -> list[VariedImage]:
    """Returns the images below the paths, shuffled, or made-up ones if there are no paths.

    Of more than 256 MiB, it takes as many as fit.

    Raises:
        OSError: A file cannot be read.
        ValueError: There is no image, or one that cannot be made unique.
    """
    prepare = varied_image if is_unique else unvaried_image
    if not paths:
        return [prepare(content) for content in synthetic_photos()]
    files = image_files(paths).readable(())
    if not files:
        raise ValueError(f"no image files in {', '.join(map(str, paths))}")
    random.Random(seed).shuffle(files)  # noqa: S311 — no secret
    images: list[VariedImage] = []
    size = 0
    for file in files:
        content = file.read_bytes()
        size += len(content)
        if images and size > _MOST_IMAGE_BYTES:
            break
        try:
            images.append(prepare(content))
        except ValueError as error:
            raise ValueError(f"{file}: {error}") from error
    return images


def text_inputs(file: Path | None, length: TextLength, seed: int) -> list[str]:
    """Returns the lines of a file that are not blank, or made-up captions if there is no file.

    Raises:
        OSError: The file cannot be read.
        ValueError: It has no text.
    """
    if file is None:
        return sentences(_SENTENCES, length, seed)
    lines = file.read_text(encoding="utf-8").splitlines()
    texts = [line.strip() for line in lines if line.strip()]
    if not texts:
        raise ValueError(f"no text in {file}")
    return texts
