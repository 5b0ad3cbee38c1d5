"""The files of a checkpoint as a stranger may leave them: each is looked at before anything loads it.

Libraries answer to a file that is cut off, or is not what its name says, with a traceback from deep inside
or by waiting. Here the fault becomes a `CheckpointError` that names the file, what it is and what to do.
"""

from __future__ import annotations

import json
import math
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeAlias, TypeVar

from pydantic import TypeAdapter, ValidationError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

T = TypeVar("T")
Json: TypeAlias = Mapping[str, Any]  # Any: a file of a stranger's; each reader checks its own keys

_LFS_POINTER = b"version https://git-lfs.github.com/spec/"
_LARGEST_TEXT_BYTES = 256 << 20  # of JSON or vocabulary: tokenizers of millions of words have a tenth of it
_LARGEST_HEADER_BYTES = 100_000_000  # as the safetensors library has it
_LENGTH_BYTES = 8
_BYTES_OF_DTYPES = {
    **dict.fromkeys(("F64", "I64", "U64"), 8),
    **dict.fromkeys(("F32", "I32", "U32"), 4),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 2),
    **dict.fromkeys(("F8_E4M3", "F8_E5M2", "I8", "U8", "BOOL"), 1),
}


class CheckpointError(Exception):
    """The checkpoint cannot be served; the message says what is missing and what to do."""


def is_there(path: Path) -> bool:
    """Says whether there is anything of that name, also a link that leads nowhere or what may not be read."""
    try:
        path.lstat()
    except FileNotFoundError:
        return False
    except OSError:  # its folder may not be searched
        return True
    return True


def check_file(path: Path) -> int:
    """Checks that a path is a file with something in it that may be read; returns its size in bytes.

    Raises:
        CheckpointError: It is not.
    """
    try:
        status = path.stat()  # not opened first: a named pipe would wait for a writer
        if not stat.S_ISREG(status.st_mode):
            raise CheckpointError(f"{path} is {_kind(status.st_mode)}, not a file")
        with path.open("rb") as file:
            beginning = file.read(len(_LFS_POINTER))
    except FileNotFoundError as error:
        if path.is_symlink():
            raise CheckpointError(
                f"{path} is a link to {path.readlink()}, which is missing; copy what it leads to as well"
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
        CheckpointError: See `check_file`; also, it is not UTF-8 or too large to be what it should.
    """
    size = check_file(path)
    if size > _LARGEST_TEXT_BYTES:
        raise CheckpointError(f"{path} has {size} bytes, limit {_LARGEST_TEXT_BYTES}; it is another file's")
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read as text in UTF-8: {_reason(error)}") from error


def read_json(path: Path) -> Json:
    """Reads a JSON object.

    Raises:
        CheckpointError: See `read_text`; also, it is broken, is not an object, or has numbers that JSON has
            not, such as NaN.
    """
    text = read_text(path)
    try:
        content = json.loads(text, parse_constant=_refuse_constant, parse_float=_finite)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{path} is broken and cannot be read as JSON: {_reason(error)}; copy or download it again"
        ) from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} is not a JSON object; it begins with {text.strip()[:20]!r}")
    return content


def validated(schema: TypeAdapter[T], content: object, path: Path) -> T:
    """Returns what a file of a prepared checkpoint holds, with the types that it should have.

    Raises:
        CheckpointError: It has others, or lacks something.
    """
    try:
        return schema.validate_python(content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        where = ".".join(map(str, first["loc"]))[:80]
        reason = first["msg"].removeprefix("Value error, ")
        raise CheckpointError(
            f"{path} is not as 'alignserve-server prepare' writes it: {where or 'all of it'}: {reason}; "
            "prepare it again"
        ) from error


def parse_tokenizer(content: str, path: Path) -> Tokenizer:
    """Reads a tokenizer that was found in a file.

    Raises:
        CheckpointError: It is none, or of another version of the library.
    """
    from tokenizers import Tokenizer  # whoever only asks for a fingerprint does not need it

    try:
        return Tokenizer.from_str(content)
    except BaseException as error:
        # A panic in Rust is a BaseException, whose type cannot be imported.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise CheckpointError(
            f"{path} is not a tokenizer: {_reason(error)}; save it again, or update tokenizers"
        ) from error


def check_safetensors(path: Path) -> None:
    """Checks the header of a file of weights, and that the file has all the bytes that it names.

    Raises:
        CheckpointError: See `check_file`; also, the file is cut off, or is not safetensors.
    """
    size = check_file(path)
    with path.open("rb") as file:
        header_bytes = int.from_bytes(file.read(_LENGTH_BYTES), "little")
        if header_bytes > _LARGEST_HEADER_BYTES or file.read(1) != b"{":
            raise CheckpointError(f"{path} is not a file of safetensors; it begins with {_beginning(path)!r}")
        if _LENGTH_BYTES + header_bytes > size:
            raise CheckpointError(_cut_off(path, size, f"more than {header_bytes}"))
        header = b"{" + file.read(header_bytes - 1)
    end = _LENGTH_BYTES + header_bytes + _data_bytes(path, header)
    if size < end:
        raise CheckpointError(_cut_off(path, size, str(end)))
    if size > end:
        raise CheckpointError(
            f"{path} has {size} bytes, {size - end} more than its header says; copy or download it again"
        )


def _data_bytes(path: Path, header: bytes) -> int:
    """Returns how many bytes of weights follow a header."""
    try:
        tensors = json.loads(header)
        tensors.pop("__metadata__", None)
        ends = [_checked_end(name, tensor) for name, tensor in tensors.items()]
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise CheckpointError(
            f"{path} has a broken header and is not safetensors: {_reason(error)}; copy or download it again"
        ) from error
    if not ends:
        raise CheckpointError(f"{path} holds no weights; save them with save_pretrained")
    return max(ends)


def _checked_end(name: str, tensor: Any) -> int:
    """Returns where a weight ends; ValueError if that does not fit its shape and type."""
    start, end = tensor["data_offsets"]
    size = math.prod(tensor["shape"]) * _BYTES_OF_DTYPES.get(tensor["dtype"], 0)
    if not 0 <= start <= end or (size and end - start != size):
        raise ValueError(f"the weight {name[:80]!r} has {end - start} bytes, and its shape asks for {size}")
    return int(end)


def _cut_off(path: Path, size: int, expected: str) -> str:
    return f"{path} is cut off: it has {size} of {expected} bytes; copy or download it again"


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
