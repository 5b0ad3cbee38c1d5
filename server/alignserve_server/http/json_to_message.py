"""Fills a protobuf message from a JSON value, as https://protobuf.dev/programming-guides/json demands.

`google.protobuf.json_format` reads the name of an unknown enum value as the default when it is told to ignore
unknown fields, repeats all of a wrong value in its messages, and has no path for `BadRequest`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from alignserve_server.errors import RequestMalformed
from alignserve_server.http.base64_text import decode_base64
from alignserve_server.http.refusals import shortened

_INTEGER = re.compile(r"-?[0-9]{1,20}")


def fill_message(message: Message, value: Any, path: str = "") -> None:
    """Sets the fields of an empty message.

    Fields may have their names of the proto or of JSON. Unknown ones are ignored, as other implementations of
    the Connect protocol do, so that newer clients can call older servers; `null` means that a field is not
    given.

    Raises:
        RequestMalformed: A value does not fit its field.
    """
    if not isinstance(value, dict):
        raise _malformed(path, "send an object")
    fields = _fields_of(message.DESCRIPTOR)
    given_in_oneof: dict[str, str] = {}
    seen: set[str] = set()
    for name, given in value.items():
        field = fields.get(name)
        if field is None or given is None:
            continue
        if field.name in seen:
            raise _malformed(_join(path, field.name), "it is given twice")
        seen.add(field.name)
        oneof = field.containing_oneof
        if oneof is not None and given_in_oneof.setdefault(oneof.name, field.name) != field.name:
            raise _malformed(
                _join(path, field.name), f"send either this or {given_in_oneof[oneof.name]}, not both"
            )
        _set(message, field, given, _join(path, field.name))


def _set(message: Message, field: FieldDescriptor, value: Any, path: str) -> None:
    if field.is_repeated:
        if not isinstance(value, list):
            raise _malformed(path, "send a list")
        _add_all(getattr(message, field.name), field, value, path)
    elif field.message_type is not None:
        part = getattr(message, field.name)
        part.SetInParent()
        fill_message(part, value, path)
    else:
        setattr(message, field.name, _scalar(field, value, path))


def _add_all(target: Any, field: FieldDescriptor, values: list[Any], path: str) -> None:
    for position, value in enumerate(values):
        at = f"{path}[{position}]"
        if field.message_type is not None:
            fill_message(target.add(), value, at)
        else:
            target.append(_scalar(field, value, at))


def _scalar(field: FieldDescriptor, value: Any, path: str) -> Any:
    return _READERS[field.cpp_type, field.type == FieldDescriptor.TYPE_BYTES](field, value, path)


def _string(_: FieldDescriptor, value: Any, path: str) -> str:
    if not isinstance(value, str):
        raise _malformed(path, "send a string")
    return value


def _bytes(_: FieldDescriptor, value: Any, path: str) -> bytes:
    """Reads base64 of either alphabet, with or without padding."""
    if not isinstance(value, str) or not value.isascii():
        raise _malformed(path, "send a string of base64")
    try:
        return decode_base64(value.encode())
    except ValueError:
        raise _malformed(path, "the string is not base64") from None


def _bool(_: FieldDescriptor, value: Any, path: str) -> bool:
    if not isinstance(value, bool):
        raise _malformed(path, "send true or false")
    return value


def _int(field: FieldDescriptor, value: Any, path: str) -> int:
    if (isinstance(value, str) and _INTEGER.fullmatch(value)) or (
        isinstance(value, float) and value.is_integer()
    ):
        value = int(value)
    bits = 63 if field.cpp_type == FieldDescriptor.CPPTYPE_INT64 else 31
    if isinstance(value, bool) or not isinstance(value, int) or not -(1 << bits) <= value < 1 << bits:
        raise _malformed(path, f"send a whole number of {bits + 1} bits")
    return value


def _float(_: FieldDescriptor, value: Any, path: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise _malformed(path, "send a number")
    return float(value)


def _enum(field: FieldDescriptor, value: Any, path: str) -> int:
    kind = field.enum_type
    assert kind is not None  # noqa: S101 — by the field's type
    if isinstance(value, str):
        if (found := kind.values_by_name.get(value)) is None:
            known = ", ".join(kind.values_by_name)
            raise _malformed(path, f"{shortened(value)!r} is unknown; send one of {known}")
        return int(found.number)
    return _int(field, value, path)


_Reader = Callable[[FieldDescriptor, Any, str], Any]

# By the type in C++ and whether it is bytes. The messages of the API have no others.
_READERS: Mapping[tuple[int, bool], _Reader] = {
    (FieldDescriptor.CPPTYPE_STRING, False): _string,
    (FieldDescriptor.CPPTYPE_STRING, True): _bytes,
    (FieldDescriptor.CPPTYPE_BOOL, False): _bool,
    (FieldDescriptor.CPPTYPE_INT32, False): _int,
    (FieldDescriptor.CPPTYPE_INT64, False): _int,
    (FieldDescriptor.CPPTYPE_FLOAT, False): _float,
    (FieldDescriptor.CPPTYPE_ENUM, False): _enum,
}


@lru_cache(maxsize=64)  # the messages of the API
def _fields_of(of: Descriptor) -> Mapping[str, FieldDescriptor]:
    return {name: field for field in of.fields for name in (field.name, field.json_name)}


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _malformed(path: str, message: str) -> RequestMalformed:
    if not path:
        return RequestMalformed(f"the body: {message}")
    error = RequestMalformed.at(path, message)
    assert isinstance(error, RequestMalformed)  # noqa: S101 — `at` returns its own type
    return error
