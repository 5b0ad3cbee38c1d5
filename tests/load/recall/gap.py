"""Measures the modality gap of a served model on captioned photos: the figures of `Cones`.

python -m tests.load.recall.gap FOLDER --server HOST:PORT

Each photo `koala.png` has its caption in the first line of `koala.txt`, as in Debian's package
`tuxpaint-stamps-default`:

    apt-get download tuxpaint-stamps-default && dpkg-deb -x tuxpaint-stamps-default_*.deb stamps
"""

from __future__ import annotations

import argparse
import io
import random
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from alignserve import Client
from numpy.typing import NDArray
from PIL import Image

_CROPS = 4
_SIZE = 224
_DRAWN = ("cartoon", "symbols")  # folders without photos


def captioned(folder: Path) -> Iterator[tuple[Path, str]]:
    """Yields photos with their captions."""
    for photo in sorted(folder.rglob("*.png")):
        caption = photo.with_suffix(".txt")
        if caption.is_file() and not set(_DRAWN) & set(photo.parts):
            yield photo, caption.read_text(errors="replace").splitlines()[0]


def crops(photo: Path, rng: random.Random) -> list[bytes]:
    """Returns the whole photo on white, and random crops of three quarters to all of its sides."""
    with Image.open(photo) as opened:
        cut = opened.convert("RGBA")
    image = Image.alpha_composite(Image.new("RGBA", cut.size, "white"), cut).convert("RGB")
    boxes = [(0.0, 0.0, float(image.width), float(image.height))]
    for _ in range(_CROPS - 1):
        share = rng.uniform(0.75, 1)
        width, height = share * image.width, share * image.height
        left, top = rng.uniform(0, image.width - width), rng.uniform(0, image.height - height)
        boxes.append((left, top, left + width, top + height))
    made = []
    for box in boxes:
        out = io.BytesIO()
        image.resize((_SIZE, _SIZE), box=box).save(out, "JPEG", quality=90)
        made.append(out.getvalue())
    return made


def decay_of(vectors: NDArray[np.float32]) -> float:
    """Returns the exponent of the power law of variances along the principal axes, without the first two."""
    variances = np.linalg.svd(vectors - vectors.mean(axis=0), compute_uv=False) ** 2
    kept = variances[2 : len(variances) // 2]  # the last ones are bounded by the number of photos
    slope, _ = np.polyfit(np.log(np.arange(len(kept)) + 12.0), np.log(kept), 1)
    return float(-slope)


def unrelated(one: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    """Returns the mean cosine of two sets' vectors, without those of the same number."""
    cosines = one @ other.T
    return float((cosines.sum() - np.trace(cosines)) / (len(one) * (len(one) - 1)))


def main(argv: Sequence[str] | None = None) -> None:
    """Prints the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--server", default="127.0.0.1:50051")
    args = parser.parse_args(argv)
    rng = random.Random(0)
    pairs = list(captioned(args.folder))
    with Client(args.server, timeout_seconds=600) as client:
        made = [content for photo, _ in pairs for content in crops(photo, rng)]
        images = np.reshape(client.embed_image(made), (len(pairs), _CROPS, -1))
        texts = np.asarray(client.embed_text([caption for _, caption in pairs]))
    whole = images[:, 0]
    cross = np.sort(texts @ whole.T, axis=1)
    inner = np.sort(whole @ whole.T, axis=1)
    print(f"{len(pairs)} photos with captions, {_CROPS} crops each")
    print(f"image_image {unrelated(whole, whole):.3f}, text_text {unrelated(texts, texts):.3f}")
    print(f"text_image {unrelated(texts, whole):.3f}, matched {np.sum(texts * whole, axis=1).mean():.3f}")
    print(f"best image of a text {cross[:, -1].mean():.3f}, tenth {cross[:, -10].mean():.3f}")
    print(f"best other image of an image {inner[:, -2].mean():.3f}, tenth {inner[:, -11].mean():.3f}")
    print(f"crops of a photo {np.mean([unrelated(group, group) for group in images]):.3f}")
    print(f"decay of images {decay_of(whole):.2f}, of texts {decay_of(texts):.2f}")


if __name__ == "__main__":
    main()
