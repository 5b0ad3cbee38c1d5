"""Measures the modality gap of a served model: the figures of `Cones`.

python -m tests.load.recall.gap --server HOST:PORT --images FOLDER… [--crops N]
"""

from __future__ import annotations

import argparse
import io
import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from alignserve import Client
from numpy.typing import NDArray
from PIL import Image

_SIZE = 224


def crops(photo: Path, count: int, rng: random.Random) -> list[bytes]:
    """Returns random crops of a photo, of a quarter to all of its sides, some of them mirrored."""
    made = []
    with Image.open(photo) as opened:
        image = opened.convert("RGB")
    for _ in range(count):
        side = rng.uniform(0.25, 1) * min(image.size)
        left, top = rng.uniform(0, image.width - side), rng.uniform(0, image.height - side)
        crop = image.resize((_SIZE, _SIZE), box=(left, top, left + side, top + side))
        if rng.random() < 0.5:
            crop = crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        out = io.BytesIO()
        crop.save(out, "JPEG", quality=90)
        made.append(out.getvalue())
    return made


def decay_of(vectors: NDArray[np.float32]) -> float:
    """Returns the exponent of the power law of the variances along the principal axes, without the first few."""
    centred = vectors - vectors.mean(axis=0)
    variances = np.linalg.svd(centred, compute_uv=False) ** 2
    kept = variances[variances > variances[0] * 1e-4][2:]
    slope, _ = np.polyfit(np.log(np.arange(len(kept)) + 12.0), np.log(kept), 1)
    return float(-slope)


def unrelated(one: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    """Returns the mean cosine of all pairs but those of a vector with itself."""
    cosines = one @ other.T
    if one is other:
        return float((cosines.sum() - len(one)) / (len(one) * (len(one) - 1)))
    return float(cosines.mean())


def main(argv: Sequence[str] | None = None) -> None:
    """Prints the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--server", default="127.0.0.1:50051")
    parser.add_argument("--images", type=Path, nargs="+", required=True)
    parser.add_argument("--texts", type=Path, required=True, help="captions, one per line")
    parser.add_argument("--crops", type=int, default=8)
    args = parser.parse_args(argv)
    rng = random.Random(0)
    photos = sorted(file for folder in args.images for file in folder.rglob("*") if file.suffix.lower() in _KINDS)
    groups = [made for photo in photos if (made := _crops(photo, args.crops, rng))]
    with Client(args.server) as client:
        images = np.stack([client.embed_images(group) for group in groups])  # (photos, crops, dim)
        texts = client.embed_texts(args.texts.read_text().splitlines())
    first = images[:, 0]
    same = [unrelated(group, group) for group in images]
    cross = texts @ first.T
    print(f"{len(groups)} photos with {args.crops} crops each, {len(texts)} texts")
    print(f"image_image {unrelated(first, first):.3f}, text_text {unrelated(texts, texts):.3f}")
    print(f"text_image {cross.mean():.3f}, its best per text {cross.max(axis=1).mean():.3f}")
    print(f"same photo {np.mean(same):.3f}")
    print(f"decay of images {decay_of(first):.2f}, of texts {decay_of(texts):.2f}")


_KINDS = {".jpg", ".jpeg", ".png"}


def _crops(photo: Path, count: int, rng: random.Random) -> list[bytes]:
    try:
        return crops(photo, count, rng)
    except (OSError, ValueError):
        return []


if __name__ == "__main__":
    main()
