"""Recognizes the type of a file that the server could not read as an image, and says how to convert it."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from google.protobuf.message import Message

from alignserve.errors import AlignserveError, FieldViolation, InvalidArgumentError

_UNREADABLE = "IMAGE_UNREADABLE"
_HEAD_BYTES = 512
_STEP = re.compile(r"(\w+)(?:\[(\d+)\])?")

_CONVERT = "`magick IN OUT.jpg`, on a Mac `sips -s format jpeg IN --out OUT.jpg`"
_BY_PILLOW = "or open it with Pillow and pass that image"
_HEIC = (
    f"HEIC; convert it: `heif-convert IN OUT.jpg`, {_CONVERT}, or open it with Pillow and pillow-heif "
    "and pass that image"
)
_AVIF = f"AVIF; convert it: {_CONVERT}, {_BY_PILLOW}"
_TIFF = f"TIFF or a camera's raw format; convert it: {_CONVERT}, {_BY_PILLOW}"
_OTHER = "; convert it to JPEG or PNG"
_TEXT = "; give the bytes themselves"


@dataclass(frozen=True, slots=True)
class _Kind:
    test: Callable[[bytes], bool]
    description: str  # after "the file is"


def kind_of(content: bytes) -> str | None:
    """Returns the type of a file that servers cannot read, with advice, or `None` if it is not recognized."""
    head = content[:_HEAD_BYTES]
    return next((kind.description for kind in _KINDS if kind.test(head)), None)


def with_kind(error: AlignserveError, request: Message) -> AlignserveError:
    """Returns the error of a request with the file type of each image that the server could not read."""
    if not isinstance(error, InvalidArgumentError):
        return error
    violations = [
        _with_kind(violation, _content_at(request, violation.field)) for violation in error.violations
    ]
    if violations == list(error.violations):
        return error
    first = violations[0]
    message = f"{first.field}: {first.description}" if _is_of(error, error.violations[0]) else error.message
    description = type(error)(
        message, error.code, error.reason, violations, error.retry_delay_seconds, error.error_id
    )
    description.__cause__ = error.__cause__
    return description


def _with_kind(violation: FieldViolation, content: bytes | None) -> FieldViolation:
    if violation.reason != _UNREADABLE or content is None or (kind := kind_of(content)) is None:
        return violation
    if re.split("[,;]", kind)[0] in violation.description:  # the server names the format, with its own advice
        return violation
    refusal = violation.description.removesuffix(_OTHER)  # generic advice; `kind` has better
    return replace(violation, description=f"{refusal}; the file is {kind}")


def _content_at(request: Message, path: str) -> bytes | None:
    """Returns the file that a path such as `images[3].content` names, or `None` if there is none."""
    value: Any = request  # Any: the path decides
    try:
        for name, position in _STEP.findall(path):
            value = getattr(value, name)
            value = value[int(position)] if position else value
    except (AttributeError, IndexError, TypeError):
        return None
    return value if isinstance(value, bytes) else None


def _is_of(error: AlignserveError, violation: FieldViolation) -> bool:
    return error.message == f"{violation.field}: {violation.description}"


def _starts(*signatures: bytes) -> Callable[[bytes], bool]:
    return lambda head: head.startswith(signatures)


def _text_starts(*signatures: bytes) -> Callable[[bytes], bool]:
    return lambda head: head.removeprefix(b"\xef\xbb\xbf").lstrip().lower().startswith(signatures)


def _has_brand(*brands: bytes) -> Callable[[bytes], bool]:
    """Returns a test for ISO media files: the major brand, then the compatible brands."""

    def test(head: bytes) -> bool:
        if head[4:8] != b"ftyp":
            return False
        named = head[8 : min(int.from_bytes(head[:4], "big"), len(head))]
        return any(named[start : start + 4] in brands for start in range(0, len(named), 4) if start != 4)

    return test


def _is_svg(head: bytes) -> bool:
    return b"<svg" in head.lower()


_KINDS = (
    _Kind(_has_brand(b"avif", b"avis"), _AVIF),
    _Kind(_has_brand(b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"), _HEIC),
    _Kind(_has_brand(b"crx "), _TIFF),
    _Kind(lambda head: head[4:8] == b"ftyp", "a video; give one of its frames as a picture"),
    _Kind(_starts(b"II*\0", b"MM\0*", b"II+\0", b"MM\0+", b"FUJIFILM", b"IIRO", b"IIU\0"), _TIFF),
    _Kind(_starts(b"\xff\x0a", b"\0\0\0\x0cJXL "), f"JPEG XL{_OTHER}: `djxl IN OUT.jpg`"),
    _Kind(_starts(b"\0\0\0\x0cjP  ", b"\xff\x4f\xff\x51"), f"JPEG 2000{_OTHER}: {_CONVERT}"),
    _Kind(_starts(b"%PDF-"), "a PDF; convert its page: `pdftoppm -jpeg IN OUT`"),
    _Kind(_starts(b"%!PS"), f"PostScript{_OTHER}: {_CONVERT}"),
    _Kind(_starts(b"8BPS"), f"a Photoshop file{_OTHER}: {_CONVERT}"),
    _Kind(_starts(b"\0\0\1\0"), f"an icon (ICO){_OTHER}: {_CONVERT}"),
    _Kind(_starts(b"\x76\x2f\x31\x01"), f"OpenEXR{_OTHER}: {_CONVERT}"),
    _Kind(_starts(b"\x93NUMPY"), "a NumPy array; load it, and give the uint8 array"),
    _Kind(
        _starts(b"PK\3\4", b"\x1f\x8b", b"7z\xbc\xaf", b"Rar!", b"BZh", b"\xfd7zXZ"), "an archive; unpack it"
    ),
    _Kind(_starts(b"\x1aE\xdf\xa3", b"\0\0\1\xba"), "a video; give one of its frames as a picture"),
    _Kind(_text_starts(b"version https://git-lfs"), "a Git LFS pointer; run `git lfs pull`"),
    _Kind(_text_starts(b"data:image/", b"/9j/", b"ivborw0kggo"), f"text in base64{_TEXT}"),
    _Kind(_is_svg, "SVG; draw it as PNG: `rsvg-convert IN -o OUT.png`"),
    _Kind(
        _text_starts(b"<!doctype html", b"<html"), "a web page, as downloads leave it; get the image itself"
    ),
    _Kind(_text_starts(b"{", b"[", b"<?xml"), "JSON or XML, as downloads leave it; get the image itself"),
    _Kind(lambda head: not head.strip(b"\0"), "empty or only zeros; get it again"),
)
