"""What cases refer to by `${name}`: photos, pixels, long texts, certificates."""

from __future__ import annotations

import base64
import random
from dataclasses import asdict
from pathlib import Path

from tests.conformance.certificates import Certificates

ROOT = Path(__file__).parents[2]
PHOTOS = ROOT / "tests/data/photos"
GOLDEN = Path(__file__).parent / "golden.json"
PIXELS_SHAPE = (32, 48)  # height, width


def pixels() -> bytes:
    """Returns a gradient of `PIXELS_SHAPE`, in RGB, row by row."""
    height, width = PIXELS_SHAPE
    return bytes(
        value
        for row in range(height)
        for column in range(width)
        for value in (row * 8, column * 5, (row * column) % 256)
    )


def variables_of(certificates: Certificates) -> dict[str, str]:
    """Returns the variables of all cases, by name."""
    return {
        "photos": str(PHOTOS),
        "cat": _base64((PHOTOS / "cat.jpg").read_bytes()),
        "pixels": _base64(pixels()),
        "three_mib": _base64(random.Random(0).randbytes(3 << 20)),
        "words": " ".join(["word"] * 100),  # more than a text may have
        "long_label": "l" * 80,
        **{name: str(path) for name, path in asdict(certificates).items()},
    }


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()
