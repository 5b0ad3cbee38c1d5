"""Files of named arrays, with facts about them and a digest: what rotations and maps are stored in."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, TypeVar
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from alignserve.search.vectors import VectorsError

_ABOUT = "about"


class Stored(Protocol):
    """What a file stores; its digest is in the file too."""

    def digest(self) -> str:
        """Returns the digest of facts and arrays."""


_Stored = TypeVar("_Stored", bound=Stored)


def digest_of(facts: str, arrays: Mapping[str, NDArray[np.float32]]) -> str:
    """Returns the SHA-256 of arrays and of what they are, in hexadecimal."""
    digest = hashlib.sha256(facts.encode())
    for name, array in sorted(arrays.items()):
        digest.update(f"\n{name} {array.shape}\n".encode())
        digest.update(np.ascontiguousarray(array, "<f4").tobytes())
    return digest.hexdigest()


def pack(about: Mapping[str, Any], arrays: Mapping[str, NDArray[np.float32]]) -> bytes:
    """Returns the content of a file, in NumPy's format npz; the same for the same arguments."""
    file = io.BytesIO()
    facts = np.frombuffer(json.dumps(about).encode(), np.uint8)
    named: dict[str, Any] = {**arrays, _ABOUT: facts}  # Any: savez has options of other types
    np.savez(file, **named)
    return file.getvalue()


def content_of(file: Path) -> bytes:
    """Returns the content of a file that `pack` made.

    Raises:
        VectorsError: The file is missing or unreadable.
    """
    try:
        return file.read_bytes()
    except FileNotFoundError as error:
        raise VectorsError(f"{file} is missing") from error
    except OSError as error:
        raise VectorsError(f"{file} is damaged: {error}") from error


def unpack(
    content: bytes, name: object, form: str, version: int
) -> tuple[dict[str, Any], dict[str, NDArray[np.float32]]]:
    """Reads the content of a file.

    Args:
        content: As `pack` made it.
        name: Of the file, for messages.
        form: The `format` that `about` must have.
        version: The `version` that `about` must have.

    Raises:
        VectorsError: It is damaged, or has another format or version.
    """
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as data:
            arrays = {name: data[name] for name in data.files}
        about: dict[str, Any] = json.loads(arrays.pop(_ABOUT).tobytes())
        found = (about["format"], about["version"])
    except (OSError, ValueError, KeyError, TypeError, EOFError, BadZipFile) as error:
        raise VectorsError(f"{name} is damaged: {error}") from error
    if found != (form, version):
        raise VectorsError(f"{name} has format {found[0]} {found[1]}; this version reads {form} {version}")
    return about, arrays


def restored(name: object, about: Mapping[str, Any], make: Callable[[], _Stored]) -> _Stored:
    """Makes what a file stores, and compares its digest with that in `about`.

    Raises:
        VectorsError: The file lacks a part or has been changed.
    """
    try:
        found = make()
        is_intact = about["digest"] == found.digest()
    except (KeyError, TypeError) as error:
        raise VectorsError(f"{name} is damaged: {error!r}") from error
    if not is_intact:
        raise VectorsError(f"{name} is damaged: its digest does not match its content")
    return found
