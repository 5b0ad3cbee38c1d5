"""The HEIC decoder, an optional package: pi-heif, or pillow-heif if that is installed.

pi-heif is libheif with libde265, and cannot encode (LGPL, 4 MB); pillow-heif also has x265 (GPL, 27 MB) and
is released more often. They have the same functions.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from importlib.util import find_spec

_PACKAGES = ("pillow_heif", "pi_heif")


def is_installed() -> bool:
    """Returns whether a decoder is installed, without importing it."""
    return any(map(find_spec, _PACKAGES))


@cache
def register() -> None:
    """Registers HEIC with Pillow, in this process.

    Raises:
        ModuleNotFoundError: Neither package is installed.
    """
    package = import_module(next(filter(find_spec, _PACKAGES), _PACKAGES[-1]))
    package.register_heif_opener(thumbnails=False, depth_images=False, aux_images=False, decode_threads=1)
