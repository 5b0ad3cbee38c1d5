"""The types of Parquet's columns: what they can hold, and one type for a column of several files."""

from __future__ import annotations

from collections.abc import Iterable

import pyarrow as pa
from pyarrow import types

from alignserve.datasets.source import SourceError


def is_text_type(type_: pa.DataType) -> bool:
    """Returns whether a column can hold texts: strings of any kind, or bytes, which have to be UTF-8."""
    return _is_string(_plain(type_)) or is_bytes_type(_plain(type_)) or types.is_null(type_)


def is_image_type(type_: pa.DataType) -> bool:
    """Returns whether a column can hold images: bytes, paths, or a struct of `bytes` or `path`."""
    plain = _plain(type_)
    if types.is_struct(plain):
        return any(plain.get_field_index(name) >= 0 for name in ("bytes", "path"))
    return is_bytes_type(plain) or _is_string(plain) or types.is_null(plain)


def has_paths(type_: pa.DataType) -> bool:
    """Returns whether images of a column are paths; in a struct of `bytes` and `path`, they are the bytes."""
    plain = _plain(type_)
    return _is_string(plain) or (types.is_struct(plain) and plain.get_field_index("bytes") < 0)


def kept_type(type_: pa.DataType) -> pa.DataType:
    """Returns the type in which a column is kept: without dictionaries, views and large offsets."""
    plain = _plain(type_)
    if types.is_struct(plain):
        return pa.struct([_kept_field(field) for field in plain])
    if types.is_map(plain):
        return pa.map_(kept_type(plain.key_type), kept_type(plain.item_type))
    if types.is_fixed_size_list(plain):
        return pa.list_(kept_type(plain.value_type), plain.list_size)
    if hasattr(plain, "value_type"):
        return pa.list_(kept_type(plain.value_type))
    if _is_string(plain):
        return pa.string()
    return pa.binary() if is_bytes_type(plain) and not types.is_fixed_size_binary(plain) else plain


def with_integers(type_: pa.DataType) -> pa.DataType:
    """Returns a type with integers in place of times in nanoseconds."""
    if types.is_struct(type_):
        return pa.struct([field.with_type(with_integers(field.type)) for field in type_])
    if types.is_map(type_):
        return pa.map_(with_integers(type_.key_type), with_integers(type_.item_type))
    if types.is_fixed_size_list(type_):
        return pa.list_(_integers_in(type_.value_field), type_.list_size)
    if types.is_list(type_):
        return pa.list_(_integers_in(type_.value_field))
    if types.is_large_list(type_):
        return pa.large_list(_integers_in(type_.value_field))
    is_time = types.is_timestamp(type_) or types.is_duration(type_) or types.is_time64(type_)
    return pa.int64() if is_time and type_.unit == "ns" else type_


def common_type(name: str, seen: Iterable[tuple[str, pa.DataType]]) -> pa.DataType:
    """Returns the one type that holds the values of a column in all files without loss.

    Integers take the wider type, floats too, and a column of nulls takes any.

    Args:
        name: Of the column.
        seen: Its files and types.

    Raises:
        SourceError: There is none, so the files cannot be one dataset.
    """
    common, first = pa.null(), ""
    for place, type_ in seen:
        if (wider := _wider(common, type_)) is None:
            raise SourceError(
                f"the column '{name}' is {common} in {first} and {type_} in {place}; convert one, or "
                "do not keep it"
            )
        if wider != common:
            common, first = wider, place
    return pa.string() if types.is_null(common) else common


def _wider(one: pa.DataType, other: pa.DataType) -> pa.DataType | None:
    if one == other or types.is_null(other):
        return one
    if types.is_null(one):
        return other
    if types.is_struct(one) and types.is_struct(other):
        return _wider_struct(one, other)
    if types.is_list(one) and types.is_list(other):
        value = _wider(one.value_type, other.value_type)
        return None if value is None else pa.list_(value)
    is_alike = any(
        test(one) and test(other)
        for test in (types.is_signed_integer, types.is_unsigned_integer, types.is_floating)
    )
    return max(one, other, key=lambda type_: type_.bit_width) if is_alike else None


def _wider_struct(one: pa.StructType, other: pa.StructType) -> pa.StructType | None:
    """Returns a struct with the fields of both, such as of `{a: null}` and `{a: string}`."""
    fields = {field.name: field.type for field in one}
    for field in other:
        wider = _wider(fields.get(field.name, pa.null()), field.type)
        if wider is None:
            return None
        fields[field.name] = wider
    return pa.struct(list(fields.items()))


def _plain(type_: pa.DataType) -> pa.DataType:
    if types.is_dictionary(type_):
        return _plain(type_.value_type)
    return _plain(type_.storage_type) if isinstance(type_, pa.BaseExtensionType) else type_


def _kept_field(field: pa.Field) -> pa.Field:
    return pa.field(field.name, kept_type(field.type), field.nullable)


def _integers_in(field: pa.Field) -> pa.Field:
    return field.with_type(with_integers(field.type))


def _is_string(type_: pa.DataType) -> bool:
    return any(test(type_) for test in (types.is_string, types.is_large_string, types.is_string_view))


def is_bytes_type(type_: pa.DataType) -> bool:
    """Returns whether a column has bytes."""
    tests = (types.is_binary, types.is_large_binary, types.is_binary_view, types.is_fixed_size_binary)
    return any(test(type_) for test in tests)
