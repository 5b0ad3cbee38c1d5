"""The suffixes of image files."""

from __future__ import annotations

IMAGE_SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".webp"})
"""Of formats that every server reads."""

OPTIONAL_IMAGE_SUFFIXES = {
    ".avif": ("AVIF",),
    ".heic": ("HEIC", "HEIF"),
    ".heif": ("HEIC", "HEIF"),
    ".tif": ("TIFF",),
    ".tiff": ("TIFF",),
}
"""Of formats that not every server reads, with their names in `ModelInfo.image_formats`."""
