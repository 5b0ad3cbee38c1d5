"""What Lite0 sees in the photographs: features of several views of each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor

from server.recipes.mini.vision import FEATURES, IMAGE_SIZE, Lite0

_SQUASHED = 256
_BATCH = 16
_ENOUGH = 512


def whole_view(photo: Image.Image) -> Image.Image:
    """What the tower is shown in use: the photo squashed to 256 x 256, its middle 224 x 224."""
    squashed = photo.resize((_SQUASHED, _SQUASHED), Image.Resampling.BICUBIC)
    edge = (_SQUASHED - IMAGE_SIZE) // 2
    return squashed.crop((edge, edge, edge + IMAGE_SIZE, edge + IMAGE_SIZE))


def random_view(photo: Image.Image, rng: np.random.Generator) -> Image.Image:
    """A large part of the photo, perhaps mirrored, a little brighter or darker."""
    area = rng.uniform(0.55, 1.0)
    stretch = np.sqrt(np.exp(rng.uniform(-0.25, 0.25)))
    width = int(photo.width * min(1.0, np.sqrt(area) * stretch))
    height = int(photo.height * min(1.0, np.sqrt(area) / stretch))
    left, top = (int(rng.integers(room + 1)) for room in (photo.width - width, photo.height - height))
    part = photo.resize(
        (IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BICUBIC, box=(left, top, left + width, top + height)
    )
    if rng.random() < 0.5:
        part = ImageOps.mirror(part)
    part = ImageEnhance.Brightness(part).enhance(rng.uniform(0.8, 1.2))
    return ImageEnhance.Contrast(part).enhance(rng.uniform(0.8, 1.2))


def pixels_of(view: Image.Image) -> NDArray[np.float32]:
    """(3, 224, 224) as the tower wants it."""
    values = (np.asarray(view, dtype=np.float32) - 127) / 128
    return np.ascontiguousarray(values.transpose(2, 0, 1))


def extract(
    model: Lite0, photos: Sequence[Path], views: int, seed: int, report: Callable[[int, int], None]
) -> Tensor:
    """(photos, views, FEATURES). The first view is the whole photo; the others are random by `seed`."""
    result = torch.empty(len(photos), views, FEATURES)
    pending: list[tuple[int, int, NDArray[np.float32]]] = []

    def flush() -> None:
        pixels = torch.from_numpy(np.stack([pixels for _, _, pixels in pending])).to(model.device)
        with torch.inference_mode():
            features = model(pixels).cpu()
        for (row, view, _), feature in zip(pending, features, strict=True):
            result[row, view] = feature
        pending.clear()

    for row, path in enumerate(photos):
        with Image.open(path) as opened:
            opened.draft("RGB", (_ENOUGH, _ENOUGH))  # several times faster, for a JPEG
            photo = ImageOps.exif_transpose(opened).convert("RGB")
        rng = np.random.default_rng([seed, row])
        for view in range(views):
            shown = whole_view(photo) if view == 0 else random_view(photo, rng)
            pending.append((row, view, pixels_of(shown)))
            if len(pending) == _BATCH:
                flush()
        report(row + 1, len(photos))
    if pending:
        flush()
    return result
