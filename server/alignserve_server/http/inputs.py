"""Inputs of an embedding call, images and texts mixed, in the forms that several dialects share."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from alignserve_server.errors import BatchTooLarge, InvalidArgument, RequestEmpty
from alignserve_server.http.image_source import is_data_uri
from alignserve_server.http.json_fields import Fields, as_object, as_text, entries_of, wrong_type

MAX_INPUTS = 2048  # of one request, as OpenAI has it

_COMPOSED = (
    "an image and a text have one embedding each; send them as two inputs, or add them up with "
    "alignserve.v1.AlignService/EmbedQuery"
)


@dataclass(frozen=True, slots=True)
class TextInput:
    """A text to embed."""

    path: str  # what the caller calls it, in errors
    text: str


@dataclass(frozen=True, slots=True)
class ImageInput:
    """An image to embed."""

    path: str
    source: str  # base64 or a data URI


Input = TextInput | ImageInput


def one_or_many(value: object, path: str) -> Iterator[tuple[str, object]]:
    """Yields the path and value of each entry of a list, or of a single value that is not a list."""
    return input_entries(value, path) if isinstance(value, list) else iter([(path, value)])


def input_entries(value: object, path: str) -> Iterator[tuple[str, object]]:
    """Yields the path and value of each entry of a value that must be a list of inputs.

    Raises:
        InvalidArgument: It is something else.
        BatchTooLarge: It has more than `MAX_INPUTS` entries, which would take long to read.
    """
    if isinstance(value, list):
        check_count(len(value), path)
    return entries_of(value, path)


def check_count(count: int, path: str) -> None:
    """Checks that a request does not have too many inputs.

    Raises:
        BatchTooLarge: It has.
    """
    if count > MAX_INPUTS:
        raise BatchTooLarge.at(path, f"{count} inputs, limit {MAX_INPUTS}; send fewer per request")


def text_or_image(path: str, text: str) -> Input:
    """Returns what a string is: an image if it is a data URI, otherwise a text."""
    return ImageInput(path, text) if is_data_uri(text) else TextInput(path, text)


def texts_of(fields: Fields, name: str = "inputs") -> list[Input]:
    """Returns the inputs in a field that is a string or a list of strings; see `text_or_image`.

    Raises:
        InvalidArgument: They are missing, or something else.
    """
    path = fields.path_of(name)
    if name not in fields:
        raise RequestEmpty.at(path, "is missing; send a text or a list of texts")
    return [text_or_image(at, as_text(value, at)) for at, value in one_or_many(fields.value(name), path)]


def content_parts(content: object, path: str) -> list[Input]:
    """Returns the parts of a chat message's content: a string, or a list of OpenAI's parts.

    Raises:
        InvalidArgument: It has a part of an unknown type, or one without its value.
    """
    if isinstance(content, str):
        return [text_or_image(path, content)]
    return [_part(as_object(value, at), at) for at, value in input_entries(content, path)]


def only_part(parts: Sequence[Input], path: str) -> Input:
    """Returns the only part of an input.

    Raises:
        InvalidArgument: There is none, or more than one.
    """
    if len(parts) > 1:
        raise InvalidArgument.at(path, f"has {len(parts)} parts; {_COMPOSED}")
    if not parts:
        raise InvalidArgument.at(path, "has no parts; send one text or one image")
    return parts[0]


def item(values: Mapping[str, object], path: str) -> Input:
    """Returns an input that is an object: one of `text`, `image`, `image_url` and `content`.

    Raises:
        InvalidArgument: It has none of them, or more than one.
    """
    fields = Fields(values, path)
    if "content" in fields:
        return only_part(content_parts(fields.value("content"), fields.path_of("content")), path)
    given = [name for name in ("text", "image", "image_url") if name in fields]
    if len(given) > 1:
        raise InvalidArgument.at(path, f"has {' and '.join(given)}; {_COMPOSED}")
    if not given:
        raise InvalidArgument.at(path, "has neither text nor image; send one of them")
    return _named(fields, given[0])


def _part(values: Mapping[str, object], path: str) -> Input:
    fields = Fields(values, path)
    kind = fields.choice("type", ("text", "input_text", "image_url", "input_image", "image"), "")
    name = {"text": "text", "input_text": "text", "image": "image"}.get(kind, "image_url")
    if not kind:
        return item(values, path)
    if name not in fields:
        raise InvalidArgument.at(fields.path_of(name), f"is missing in a part of type {kind}")
    return _named(fields, name)


def _named(fields: Fields, name: str) -> Input:
    """Returns the input in a field, which may be an object with `url`, as OpenAI writes `image_url`."""
    value, path = fields.value(name), fields.path_of(name)
    if name == "text":
        return TextInput(path, as_text(value, path))
    if isinstance(value, dict):
        url = Fields(value, path)
        if "url" not in url:
            raise wrong_type(url.path_of("url"), "a data URI", None)
        return ImageInput(url.path_of("url"), as_text(url.value("url"), url.path_of("url")))
    return ImageInput(path, as_text(value, path))
