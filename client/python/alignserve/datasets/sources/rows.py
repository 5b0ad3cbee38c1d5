"""Builds rows of the values that a table has, and names what is wrong with those that cannot be used."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from alignserve.datasets.row import Row, RowFailure
from alignserve.datasets.sources.files import FileError, read_file
from alignserve.datasets.sources.keys import is_unicode

IMAGE, TEXT = "image", "text"
"""The columns of values that do not come from a table."""

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
_SHOWN_CHARACTERS = 80


class RowError(Exception):
    """A row cannot be used.

    Attributes:
        failure: Why.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.failure = RowFailure(reason, message)


def failed(key: str, reason: str, message: str) -> Row:
    """Returns a row that cannot be used."""
    return Row(key, failure=RowFailure(reason, message))


def shown(value: object) -> str:
    """Returns a value for a message, cut if it is long."""
    text = repr(value)
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}…"


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of the values of a row, in bytes."""

    image_bytes: int
    text_bytes: int


@dataclass(frozen=True, slots=True)
class RowBuilder:
    """Makes rows of values by column.

    An image is bytes, a path, or a mapping with `bytes` and `path` as Hugging Face datasets has it. A
    relative path starts at `image_root`; a path may lead anywhere, since the user who gives a table chooses
    its files. Nothing is fetched from a URL.

    Attributes:
        image: The column of images, or `None` if there is none.
        text: The column of texts, or `None`.
        key: The column of keys, or `None` for keys by position.
        kept: Other columns to keep.
        image_root: The folder below which relative paths are found.
        limits: Of images and texts.
        reads_images: Read image files; otherwise rows have their paths.
    """

    image: str | None
    text: str | None
    key: str | None
    kept: tuple[str, ...]
    image_root: str
    limits: Limits
    reads_images: bool = True
    needed: frozenset[str] = field(init=False)

    def __post_init__(self) -> None:
        named = (self.image, self.text, self.key, *self.kept)
        object.__setattr__(self, "needed", frozenset(name for name in named if name is not None))

    def build(self, place: str, values: Mapping[str, Any], kept: Mapping[str, Any] | None = None) -> Row:
        """Returns the row with these values; a column that is not there has the value `None`.

        Args:
            place: Where the row is, such as `photos.csv:17`: its key, unless there is a column of keys.
            values: Of the needed columns, by name. A `RowError` as a value fails the row.
            kept: Values of the kept columns, if they are not those in `values`.
        """
        key = place
        try:
            if self.key is not None:
                key = key_from(_value(values, self.key))
            text = None if self.text is None else text_from(_value(values, self.text), self.limits.text_bytes)
            image = None if self.image is None else self._image(_value(values, self.image))
            columns = {name: _value(values if kept is None else kept, name) for name in self.kept}
            if image is None:
                _check_downloaded(values)
            if image is None and text is None:
                raise RowError("ROW_EMPTY", "the row has neither image nor text")
        except RowError as error:
            return Row(key, failure=error.failure)
        return Row(key, image, text, columns)

    def _image(self, value: object) -> bytes | Path | None:
        if isinstance(value, Mapping):
            content = value.get("bytes")
            value = value.get("path") if content is None else content
            if content is not None and not isinstance(content, bytes):
                raise RowError("IMAGE_INVALID", f"the image's `bytes` are {shown(content)}, not bytes")
        if value is None or value == "":
            return None
        if isinstance(value, bytes):
            return checked_image(value, self.limits.image_bytes)
        if type(value) is str:  # numbers of JSON are a subclass
            return self._image_at(value)
        raise RowError("IMAGE_INVALID", f"{shown(value)} is neither bytes nor a path")

    def _image_at(self, path: str) -> bytes | Path:
        if _URL.match(path):
            raise RowError(
                "IMAGE_IS_URL", f"{shown(path)} is a URL; download it first, such as with img2dataset"
            )
        where = os.path.join(self.image_root, path)  # noqa: PTH118 — a `str`
        return image_in(where, self.limits.image_bytes) if self.reads_images else Path(where)


def image_in(path: str, max_bytes: int) -> bytes:
    """Returns the content of an image file.

    Raises:
        RowError: It cannot be read, is empty or too large.
    """
    try:
        return checked_image(read_file(path, max_bytes), max_bytes)
    except FileError as error:
        raise RowError(f"IMAGE_{error.reason}", f"{shown(path)}: {error.message}") from error


def checked_image(content: bytes, max_bytes: int) -> bytes:
    """Returns the bytes of an image file.

    Raises:
        RowError: There are none, or too many.
    """
    if not content:
        raise RowError("IMAGE_EMPTY", "the image has no bytes")
    if len(content) > max_bytes:
        raise RowError("IMAGE_TOO_LARGE", f"the image has {len(content)} bytes, limit {max_bytes}")
    return content


def text_from(value: object, max_bytes: int) -> str | None:
    """Returns a text exactly as its source has it.

    Raises:
        RowError: It is not a text, not UTF-8, or too long.
    """
    if value is None:
        return None
    if isinstance(value, bytes):
        value = decoded(value, "TEXT_INVALID")
    if type(value) is not str:  # numbers of JSON are a subclass
        raise RowError("TEXT_INVALID", f"{shown(value)} is not a text")
    if not is_unicode(value):
        raise RowError("TEXT_INVALID", f"{shown(value)} has a lone surrogate")
    if len(value) * 4 > max_bytes and (size := len(value.encode())) > max_bytes:
        raise RowError("TEXT_TOO_LARGE", f"the text has {size} bytes, limit {max_bytes}")
    return value


def key_from(value: object) -> str:
    """Returns a key of a column.

    Raises:
        RowError: It is missing, empty, or neither text nor a whole number.
    """
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if isinstance(value, str) and value and is_unicode(value):
        return str(value)
    raise RowError("KEY_INVALID", f"the key is {shown(value)}; it must be a text or a whole number")


def decoded(value: bytes, reason: str) -> str:
    """Returns bytes as text.

    Raises:
        RowError: They are not UTF-8; with this reason.
    """
    try:
        return value.decode()
    except UnicodeDecodeError as error:
        raise RowError(
            reason, f"{shown(value)} is not UTF-8: {error.reason} at byte {error.start}"
        ) from error


def _check_downloaded(values: Mapping[str, Any]) -> None:
    """Raises what img2dataset says of a row without an image; `status` is not there in rows of others."""
    status = values.get("status")
    if isinstance(status, str) and status not in ("", "success"):
        parts = ("img2dataset", status, values.get("error_message"))
        raise RowError("NOT_DOWNLOADED", ": ".join(str(part) for part in parts if part))


def _value(values: Mapping[str, Any], name: str) -> Any:
    value = values.get(name)
    if isinstance(value, RowError):
        raise value
    return value
