"""Validates the untrusted files of a checkpoint before any library loads them.

If a file is truncated or is not what its name says, libraries fail with a traceback from deep inside, or
hang. These checks raise a `CheckpointError` instead that names the file, the problem and what to do.
"""

from __future__ import annotations

import json
import math
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeAlias, TypeVar

from pydantic import TypeAdapter, ValidationError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_T = TypeVar("_T")
Json: TypeAlias = Mapping[str, Any]  # Any: the file is untrusted; each reader checks its own keys

_LFS_POINTER = b"version https://git-lfs.github.com/spec/"
_MAX_TEXT_BYTES = 256 << 20  # for JSON or vocabularies: tokenizers with millions of words have a tenth
_MAX_HEADER_BYTES = 100_000_000  # the safetensors library's own limit
_LENGTH_BYTES = 8
_BYTES_OF_DTYPES = {
    **dict.fromkeys(("F64", "I64", "U64"), 8),
    **dict.fromkeys(("F32", "I32", "U32"), 4),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 2),
    **dict.fromkeys(("F8_E4M3", "F8_E5M2", "I8", "U8", "BOOL"), 1),
}


class CheckpointError(Exception):
    """The checkpoint cannot be served; the message says what is missing and what to do."""


@dataclass(frozen=True, slots=True)
class StoredWeight:
    """A weight in a safetensors file.

    Attributes:
        path: The file.
        dtype: As safetensors names it, such as F32 or BF16.
        shape: Of the weight.
        start: Where its bytes begin in the file.
        end: Where they end.
    """

    path: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int

    def read(self) -> bytes:
        """Returns its bytes. Raises OSError."""
        with self.path.open("rb") as file:
            file.seek(self.start)
            return file.read(self.end - self.start)


def is_there(path: Path) -> bool:
    """Returns whether the path exists, even as a dangling link or a file that cannot be read."""
    try:
        path.lstat()
    except FileNotFoundError:
        return False
    except OSError:  # no permission to search its folder
        return True
    return True


def check_file(path: Path) -> int:
    """Checks that a path is a readable, non-empty file; returns its size in bytes.

    Raises:
        CheckpointError: It is not.
    """
    try:
        status = path.stat()  # without opening it: a named pipe would block until a writer comes
        if not stat.S_ISREG(status.st_mode):
            raise CheckpointError(f"{path} is {_kind(status.st_mode)}, not a file")
        with path.open("rb") as file:
            beginning = file.read(len(_LFS_POINTER))
    except FileNotFoundError as error:
        if path.is_symlink():
            raise CheckpointError(
                f"{path} is a link to {path.readlink()}, which is missing; copy the target of the link too"
            ) from error
        raise CheckpointError(f"{path} is missing; save_pretrained writes a complete folder") from error
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
        raise CheckpointError(f"{path} cannot be read: {_reason(error)}") from error
    if not status.st_size:
        raise CheckpointError(f"{path} is empty; copy or download it again")
    if beginning == _LFS_POINTER:
        raise CheckpointError(
            f"{path} is a Git LFS pointer, not the file itself; run 'git lfs install' and 'git lfs pull' in "
            "its repository, or download it again"
        )
    return status.st_size


def read_text(path: Path) -> str:
    """Reads a file of UTF-8.

    Raises:
        CheckpointError: As for `check_file`, or it is not UTF-8, or too large to be the right file.
    """
    size = check_file(path)
    if size > _MAX_TEXT_BYTES:
        raise CheckpointError(f"{path} has {size} bytes, limit {_MAX_TEXT_BYTES}; it is the wrong file")
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read as UTF-8 text: {_reason(error)}") from error


def read_json(path: Path) -> Json:
    """Reads a JSON object.

    Raises:
        CheckpointError: As for `read_text`, or it is corrupt, is not an object, or has numbers that JSON does
            not support, such as NaN.
    """
    text = read_text(path)
    try:
        content = json.loads(text, parse_constant=_refuse_constant, parse_float=_finite)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{path} is corrupt and cannot be read as JSON: {_reason(error)}; copy or download it again"
        ) from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} is not a JSON object; it starts with {text.strip()[:20]!r}")
    return content


def validated(schema: TypeAdapter[_T], content: object, path: Path) -> _T:
    """Returns the content of a file of a prepared checkpoint, with validated types.

    Raises:
        CheckpointError: A value has the wrong type or is missing.
    """
    try:
        return schema.validate_python(content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        where = ".".join(map(str, first["loc"]))[:80]
        reason = first["msg"].removeprefix("Value error, ")
        raise CheckpointError(
            f"{path} is not as 'alignserve-server prepare' writes it: {where or 'whole file'}: {reason}; "
            "prepare it again"
        ) from error


def parse_tokenizer(content: str, path: Path) -> Tokenizer:
    """Reads a tokenizer that was found in a file.

    Raises:
        CheckpointError: It is none, or of another version of the library.
    """
    from tokenizers import Tokenizer  # fingerprints do not need it

    try:
        return Tokenizer.from_str(content)
    except BaseException as error:
        # A panic in Rust is a BaseException whose type cannot be imported.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise CheckpointError(
            f"{path} is not a tokenizer: {_reason(error)}; save it again, or update tokenizers"
        ) from error


def stored_weights(path: Path) -> dict[str, StoredWeight]:
    """Reads the header of a weights file, and checks that the file has all bytes that the header promises.

    Returns:
        The weights by name.

    Raises:
        CheckpointError: As for `check_file`, or the file is truncated or is not safetensors.
    """
    size = check_file(path)
    with path.open("rb") as file:
        header_bytes = int.from_bytes(file.read(_LENGTH_BYTES), "little")
        if header_bytes > _MAX_HEADER_BYTES or file.read(1) != b"{":
            raise CheckpointError(f"{path} is not a safetensors file; it starts with {_beginning(path)!r}")
        if _LENGTH_BYTES + header_bytes > size:
            raise CheckpointError(_cut_off(path, size, f"more than {header_bytes}"))
        header = b"{" + file.read(header_bytes - 1)
    weights = _weights(path, header, _LENGTH_BYTES + header_bytes)
    end = max(weight.end for weight in weights.values())
    if size < end:
        raise CheckpointError(_cut_off(path, size, str(end)))
    if size > end:
        raise CheckpointError(
            f"{path} has {size} bytes, {size - end} more than its header says; copy or download it again"
        )
    return weights


def _weights(path: Path, header: bytes, offset: int) -> dict[str, StoredWeight]:
    """Returns the weights that a header lists; their bytes begin at the offset."""
    try:
        tensors = json.loads(header)
        tensors.pop("__metadata__", None)
        weights = {name: _weight(path, offset, name, tensor) for name, tensor in tensors.items()}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise CheckpointError(
            f"{path} has an invalid safetensors header: {_reason(error)}; copy or download it again"
        ) from error
    if not weights:
        raise CheckpointError(f"{path} has no weights; save them with save_pretrained")
    return weights


def _weight(path: Path, offset: int, name: str, tensor: Any) -> StoredWeight:
    """Returns a weight; raises ValueError if its size does not match its shape and type."""
    start, end = tensor["data_offsets"]
    size = math.prod(tensor["shape"]) * _BYTES_OF_DTYPES.get(tensor["dtype"], 0)
    if not 0 <= start <= end or (size and end - start != size):
        raise ValueError(f"the weight {name[:80]!r} has {end - start} bytes, but its shape requires {size}")
    return StoredWeight(
        path, tensor["dtype"], tuple(map(int, tensor["shape"])), offset + int(start), offset + int(end)
    )


def _cut_off(path: Path, size: int, expected: str) -> str:
    return f"{path} is truncated: it has {size} of {expected} bytes; copy or download it again"


def _beginning(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(20)


def _kind(mode: int) -> str:
    kinds = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a named pipe", stat.S_IFSOCK: "a socket"}
    return kinds.get(stat.S_IFMT(mode), "a device")


def _refuse_constant(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not a number in JSON")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text[:20]} is too large a number")
    return number


def _reason(error: BaseException) -> str:
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join((text or type(error).__name__).split())[:200]
