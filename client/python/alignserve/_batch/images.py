"""Images within JSON: base64, by itself or in a data URI (RFC 2397). Images by URL are not fetched."""

from __future__ import annotations

import binascii
import re

from alignserve._batch.fields import shown
from alignserve._batch.refusals import Refusal

_ESCAPES = (("%2B", "+"), ("%2b", "+"), ("%2F", "/"), ("%2f", "/"), ("%3D", "="), ("%3d", "="))
_BLANKS = b" \t\r\n\f\v"
_TO_STANDARD = bytes.maketrans(b"-_", b"+/")
_LEADING_BLANKS = r"\s{0,100}"
_HEAD = re.compile(_LEADING_BLANKS + r"data:([^,]{0,1000}),", re.IGNORECASE)
# A comma after `data:` is common in prose. These are the registered top-level types.
_MEDIA_TYPE = re.compile(
    r"(application|audio|example|font|haptics|image|message|model|multipart|text|video)/[^\s/;]+",
    re.IGNORECASE,
)
_BASE64_MARKER = re.compile(r"; *base64 *$", re.IGNORECASE)
_SCHEME = re.compile(_LEADING_BLANKS + r"([a-z][a-z0-9+.-]{0,30}):/", re.IGNORECASE)
_UNREADABLE = "image_unreadable"


def is_data_uri(text: str) -> bool:
    """Returns whether a string is a data URI, as opposed to a text that begins with `data:`."""
    return _head_of(text) is not None


def decode_image(source: str, path: str) -> bytes:
    """Decodes an image that is at `path`: base64 in either alphabet, or a data URI of it.

    Blanks and line breaks are skipped, and padding may be missing.

    Raises:
        Refusal: It is neither, the data URI declares something other than an image, or it is a URL.
    """
    if head := _head_of(source):
        _check_head(_without_breaks(head[1]), path)
        return _decoded(_unescaped(source[head.end() :]), path)
    if scheme := _SCHEME.match(source):
        raise Refusal.at(
            path,
            f"{scheme[1].lower()} URLs are not fetched; send the image in base64 or as a data URI",
        )
    return _decoded(source, path)


def _head_of(text: str) -> re.Match[str] | None:
    head = _HEAD.match(text)
    if head is None:
        return None
    declared = _without_breaks(head[1])
    return head if _BASE64_MARKER.search(declared) or _MEDIA_TYPE.match(declared) else None


def _check_head(head: str, path: str) -> None:
    media_type = head.partition(";")[0].lower()
    if media_type not in ("", "application/octet-stream") and not media_type.startswith("image/"):
        raise Refusal.at(path, f"the data URI declares {shown(media_type)}; send an image", _UNREADABLE)
    if _BASE64_MARKER.search(head) is None:
        raise Refusal.at(path, "the data URI is not in base64; send data:image/…;base64,…", _UNREADABLE)


def _decoded(text: str, path: str) -> bytes:
    try:
        plain = text.encode("ascii").translate(_TO_STANDARD, _BLANKS).rstrip(b"=")
        return binascii.a2b_base64(plain + b"=" * (-len(plain) % 4), strict_mode=True)
    except ValueError:
        raise Refusal.at(path, "the image is not valid base64", _UNREADABLE) from None


def _unescaped(data: str) -> str:
    """Returns the data of a URI, in which characters of base64 may be percent-encoded."""
    for escape, character in _ESCAPES:
        data = data.replace(escape, character)
    return data


def _without_breaks(head: str) -> str:
    return re.sub(r"[\t\r\n]", "", head)
