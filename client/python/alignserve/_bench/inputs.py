"""The inputs of requests: the user's files and lines, or generated ones."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from alignserve._bench.images import VariedImage, synthetic_photos, unvaried_image, varied_image
from alignserve._bench.sentences import TextLength, sentences
from alignserve._cli.files import image_files

_SENTENCES = 1000
_MAX_IMAGE_BYTES = 256 << 20  # kept in memory


@dataclass(frozen=True, slots=True)
class Inputs:
    """The inputs of requests.

    Attributes:
        images: Files, in the order in which they are used.
        texts: Texts, in the order in which they are used.
        labels: Labels for classification.
        items_per_request: Images or texts in one request.
        is_unique: Whether every image and text has different bytes. Labels repeat, as in real use.
    """

    images: Sequence[VariedImage] = ()
    texts: Sequence[str] = ()
    labels: Sequence[str] = ()
    items_per_request: int = 1
    is_unique: bool = True


def image_inputs(paths: Sequence[Path], seed: int, *, is_unique: bool) -> list[VariedImage]:
    """Returns the images below the paths, shuffled, or generated ones if there are no paths.

    If they exceed 256 MiB, it takes as many as fit.

    Raises:
        OSError: A file cannot be read.
        ValueError: There are no images, or one cannot be made unique.
    """
    prepare = varied_image if is_unique else unvaried_image
    if not paths:
        return [prepare(content) for content in synthetic_photos()]
    files = image_files(paths).readable(())
    if not files:
        raise ValueError(f"no image files in {', '.join(map(str, paths))}")
    random.Random(seed).shuffle(files)  # noqa: S311 — not a secret
    images: list[VariedImage] = []
    size = 0
    for file in files:
        content = file.read_bytes()
        size += len(content)
        if images and size > _MAX_IMAGE_BYTES:
            break
        try:
            images.append(prepare(content))
        except ValueError as error:
            raise ValueError(f"{file}: {error}") from error
    return images


def text_inputs(file: Path | None, length: TextLength, seed: int) -> list[str]:
    """Returns the non-blank lines of a file, or generated captions if there is no file.

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
