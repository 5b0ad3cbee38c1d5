"""Writes a protobuf message as JSON in small parts, since a large one takes long.

`google.protobuf.json_format` takes half a second for the largest answers. Values of 0 and false are written
too, except in `Embedding`, where each field is a format.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import numpy as np
import orjson
from google.protobuf import json_format
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

_FLOAT = FieldDescriptor.CPPTYPE_FLOAT
_INT64 = FieldDescriptor.CPPTYPE_INT64

_SPARSE = frozenset({"alignserve.v1.Embedding"})  # whose fields of 0 or without bytes are left out
_STANDARD = frozenset({"google.protobuf.Duration", "google.rpc.Status"})  # with a form of their own; small


def json_parts(message: Message) -> Iterator[bytes]:
    """Yields a message as JSON; each part takes well under a millisecond."""
    of = message.DESCRIPTOR
    if of.full_name in _STANDARD or not _is_deep(of):
        yield dumped(_value(message))
        return
    separator = b"{"
    for field in _fields_of(of):
        if not _is_written(message, field):
            continue
        yield separator + dumped(field.json_name) + b":"
        separator = b","
        value = getattr(message, field.name)
        if field.message_type is None:
            yield dumped(_scalars(field, value) if field.is_repeated else _scalar(field, value))
        elif field.is_repeated:
            yield from _list_parts(value)
        else:
            yield from json_parts(value)
    yield b"{}" if separator == b"{" else b"}"


def dumped(value: Any) -> bytes:
    """Returns a value as JSON. Numbers of NumPy have as few digits as their precision needs."""
    return orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY)


def _list_parts(messages: Any) -> Iterator[bytes]:
    separator = b"["
    for message in messages:
        yield separator
        yield from json_parts(message)
        separator = b","
    yield b"[]" if separator == b"[" else b"]"


def _value(message: Message) -> Any:
    """Returns a message as a value for `dumped`."""
    of = message.DESCRIPTOR
    if of.full_name in _STANDARD:
        return json_format.MessageToDict(message)
    written: dict[str, Any] = {}
    for field in _fields_of(of):
        if not _is_written(message, field):
            continue
        value = getattr(message, field.name)
        if field.message_type is not None:
            written[field.json_name] = _value(value)
        else:
            written[field.json_name] = _scalars(field, value) if field.is_repeated else _scalar(field, value)
    return written


def _scalars(field: FieldDescriptor, values: Any) -> Any:
    if field.cpp_type == _FLOAT:
        return np.array(values, np.float32)
    return [_scalar(field, value) for value in values]


def _scalar(field: FieldDescriptor, value: Any) -> Any:
    if field.cpp_type == _FLOAT:
        return np.float32(value)
    if field.cpp_type == _INT64:
        return str(value)  # JavaScript's numbers have 53 bits
    if field.enum_type is not None:
        known = field.enum_type.values_by_number.get(value)
        return value if known is None else known.name
    return b64encode(value).decode() if isinstance(value, bytes) else value


def _is_written(message: Message, field: FieldDescriptor) -> bool:
    if field.is_repeated:
        return bool(getattr(message, field.name))
    if field.has_presence:
        return message.HasField(field.name)
    return message.DESCRIPTOR.full_name not in _SPARSE or bool(getattr(message, field.name))


@lru_cache(maxsize=64)  # the messages of the API
def _fields_of(of: Descriptor) -> tuple[FieldDescriptor, ...]:
    return tuple(of.fields)


@lru_cache(maxsize=64)
def _is_deep(of: Descriptor) -> bool:
    """Returns whether a message contains lists of messages, at any depth."""
    parts = [field for field in of.fields if field.message_type is not None]
    return any(field.is_repeated or _is_deep(field.message_type) for field in parts)
