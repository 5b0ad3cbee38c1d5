"""The decoder of HEIC, an optional package: pi-heif, or pillow-heif where that is installed.

pi-heif is libheif with libde265, and cannot encode (LGPL, 4 MB); pillow-heif has x265 too (GPL, 27 MB) and is
released more often. Their functions are the same.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from importlib.util import find_spec

_PACKAGES = ("pillow_heif", "pi_heif")


def is_installed() -> bool:
    """Says whether there is one, without importing it."""
    return any(map(find_spec, _PACKAGES))


@cache
def register() -> None:
    """Makes Pillow read HEIC, in this process.

    Raises:
        ModuleNotFoundError: Neither package is installed.
    """
    package = import_module(next(filter(find_spec, _PACKAGES), _PACKAGES[-1]))
    package.register_heif_opener(thumbnails=False, depth_images=False, aux_images=False, decode_threads=1)
