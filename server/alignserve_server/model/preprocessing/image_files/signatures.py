"""Recognizes file formats by their first bytes: the supported ones, and others that users send."""

from __future__ import annotations

import struct

from alignserve_server.model.preprocessing.image_files import bmp, gif, isobmff, jpeg, png, tiff, webp

_READABLE = {
    "JPEG": (jpeg.SIGNATURE,),
    "PNG": (png.SIGNATURE,),
    "GIF": gif.SIGNATURES,
    "BMP": (bmp.SIGNATURE,),
    "TIFF": tiff.SIGNATURES,
}
_OTHERS = {
    "JPEG XL": (b"\xff\x0a", b"\0\0\0\x0cJXL "),
    "JPEG 2000": (b"\xff\x4f\xff\x51", b"\0\0\0\x0cjP  "),
    "ICO": (b"\0\0\1\0",),
    "PDF": (b"%PDF",),
    "PSD": (b"8BPS",),
    "SVG": (b"<svg", b"<?xml"),
    "gzip": (b"\x1f\x8b",),
    "HTML": (b"<!DOCTYPE", b"<!doctype", b"<html"),
}


def format_of(content: bytes) -> str | None:
    """Returns the name of the format with these first bytes; None if it is unknown."""
    for name, signatures in (*_READABLE.items(), *_OTHERS.items()):
        if content.startswith(signatures):
            return name
    if webp.is_webp(content):
        return "WEBP"
    try:
        return isobmff.format_of(content)
    except struct.error:
        return None
