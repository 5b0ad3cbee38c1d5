"""Reads the body of a request for embeddings, in every form that the HTTP port takes.

These are OpenAI's, with images as data URIs among the inputs (NVIDIA NIM), `modality` (infinity), objects
with `text` or `image` (Jina), and `messages` (vLLM).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from alignserve._batch.fields import Fields, as_object, as_text, entries_of, shown, wrong_type
from alignserve._batch.images import decode_image, is_data_uri
from alignserve._batch.refusals import Refusal
from alignserve._results import ModelInfo

MAX_INPUTS = 2048  # of one request, as OpenAI has it

_EMPTY = "request_empty"
_NO_MODEL = "default/not-specified"  # as infinity's client sends it
_FORMATS = ("float", "base64")
_COMPOSED = (
    "an image and a text have one embedding each; send them as two inputs, or add them up with "
    "alignserve.v1.AlignService/EmbedQuery"
)


@dataclass(frozen=True, slots=True)
class TextInput:
    """A text to embed."""

    path: str  # in the body, for messages
    text: str


@dataclass(frozen=True, slots=True)
class ImageInput:
    """An image to embed; it reads like an open file, so that it is decoded only when it is sent."""

    path: str
    source: str  # base64 or a data URI

    def read(self, _: int = -1, /) -> bytes:
        """Returns the file's bytes.

        Raises:
            Refusal: It is not an image in base64.
        """
        return decode_image(self.source, self.path)


Input = TextInput | ImageInput

_STRINGS: dict[str, Callable[[str, str], Input]] = {
    "": lambda path, text: _text_or_image(path, text),
    "text": TextInput,
    "image": ImageInput,
}  # by modality; take path and string


@dataclass(frozen=True, slots=True)
class Embeddings:
    """What a request asks for.

    Attributes:
        inputs: At least one.
        truncate: Truncate texts that are too long.
        normalize: Scale embeddings to length 1.
        is_base64: Write embeddings as base64 of little-endian float32, instead of lists.
    """

    inputs: Sequence[Input]
    truncate: bool
    normalize: bool
    is_base64: bool


def read_embeddings(fields: Fields, model: ModelInfo) -> Embeddings:
    """Reads the body of a request.

    Raises:
        Refusal: A field is invalid or not supported, or the request is for another model.
    """
    _check_model(fields, model)
    _check_dimensions(fields, "dimensions", model)
    _check_dimensions(fields, "output_dimension", model)
    fields.choice("output_dtype", ("float",), "float")
    if fields.flag("late_chunking"):
        raise Refusal.at("late_chunking", "is not supported: each input has one embedding")
    choice = fields.choice("embedding_type", _FORMATS, "float")
    modality = fields.choice("modality", ("text", "image"), "")
    inputs = [_message_input(fields)] if "messages" in fields else _inputs(fields, modality)
    wanted = Embeddings(
        inputs,
        _truncates(fields),
        all([fields.flag("normalize", True), fields.flag("normalized", True)]),
        fields.choice("encoding_format", _FORMATS, choice) == "base64",
    )
    if not inputs:
        raise Refusal.at("input", f"no inputs; send from 1 to {MAX_INPUTS}", _EMPTY)
    return wanted


def _check_model(fields: Fields, model: ModelInfo) -> None:
    name = fields.text("model")
    served = (model.model_id.casefold(), model.model_id.rstrip("/").rpartition("/")[2].casefold())
    if name and name != _NO_MODEL and name.casefold() not in served:
        message = f"model: {shown(name)} is not served; send {shown(model.model_id)}, or no model"
        raise Refusal(message, code="model_not_found", param="model", status=404)


def _check_dimensions(fields: Fields, name: str, model: ModelInfo) -> None:
    wanted = fields.integer(name)
    if wanted not in (None, 0, model.embedding_dimension):  # infinity's client sends 0
        raise Refusal.at(
            name,
            f"{wanted} dimensions; the model has {model.embedding_dimension}, which cannot be changed",
        )


def _truncates(fields: Fields) -> bool:
    tokens = fields.integer("truncate_prompt_tokens")
    if tokens not in (None, -1):
        raise Refusal.at(
            "truncate_prompt_tokens", f"{tokens} is not supported; send -1 for the model's limit"
        )
    return any([tokens == -1, _truncate(fields), fields.flag("truncation")])


def _truncate(fields: Fields) -> bool:
    value = fields.value("truncate")
    if value is None or isinstance(value, bool):
        return bool(value)
    if not isinstance(value, str):
        raise wrong_type("truncate", "a boolean, NONE or END", value)
    if value not in ("NONE", "END"):
        raise Refusal.at("truncate", f"{shown(value)} is not supported; send NONE or END")
    return value == "END"


def _inputs(fields: Fields, modality: str) -> list[Input]:
    if "input" not in fields:
        message = "is missing; send a text, an image as a data URI, or a list of them"
        raise Refusal.at("input", message, _EMPTY)
    value = fields.value("input")
    listed = _entries(value, "input") if isinstance(value, list) else iter([("input", value)])
    return [_input(each, path, modality) for path, each in listed]


def _input(value: object, path: str, modality: str) -> Input:
    if isinstance(value, str):
        return _STRINGS[modality](path, value)
    if isinstance(value, dict):
        return _item(Fields(value, path), path)
    if isinstance(value, list | int | float) and not isinstance(value, bool):
        raise Refusal.at(
            path,
            "is part of a token array, which only the model that it was made for can read; send strings (in "
            "LangChain, set check_embedding_ctx_length=False)",
        )
    raise wrong_type(path, "a string or an object", value)


def _message_input(fields: Fields) -> Input:
    if "input" in fields:
        raise Refusal.at("input", "is given along with messages; send one of them")
    messages = [as_object(value, path) for path, value in _entries(fields.value("messages"), "messages")]
    return _only([part for message in messages for part in _parts_of(message)], "messages")


def _parts_of(message: Fields) -> list[Input]:
    path = message.path_of("content")
    if "content" not in message:
        raise Refusal.at(path, "is missing; send one text or one image", _EMPTY)
    return _content(message.value("content"), path) or [_only([], path)]


def _content(content: object, path: str) -> list[Input]:
    """Returns the parts of a message's content: a string, or a list of OpenAI's parts."""
    if isinstance(content, str):
        return [_text_or_image(path, content)]
    return [_part(as_object(value, at), at) for at, value in _entries(content, path)]


def _part(fields: Fields, path: str) -> Input:
    kind = fields.choice("type", ("text", "input_text", "image_url", "input_image", "image"), "")
    name = {"text": "text", "input_text": "text", "image": "image"}.get(kind, "image_url")
    if not kind:
        return _item(fields, path)
    if name not in fields:
        raise Refusal.at(fields.path_of(name), f"is missing in a part of type {kind}")
    return _named(fields, name)


def _item(fields: Fields, path: str) -> Input:
    """Returns an input that is an object: one of `text`, `image`, `image_url` and `content`."""
    if "content" in fields:
        return _only(_content(fields.value("content"), fields.path_of("content")), path)
    given = [name for name in ("text", "image", "image_url") if name in fields]
    if len(given) > 1:
        raise Refusal.at(path, f"has {' and '.join(given)}; {_COMPOSED}")
    if not given:
        raise Refusal.at(path, "has neither text nor image; send one of them")
    return _named(fields, given[0])


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


def _only(parts: Sequence[Input], path: str) -> Input:
    if len(parts) > 1:
        raise Refusal.at(path, f"has {len(parts)} parts; {_COMPOSED}")
    if not parts:
        raise Refusal.at(path, "has no parts; send one text or one image")
    return parts[0]


def _text_or_image(path: str, text: str) -> Input:
    return ImageInput(path, text) if is_data_uri(text) else TextInput(path, text)


def _entries(value: object, path: str) -> Iterator[tuple[str, object]]:
    if isinstance(value, list) and len(value) > MAX_INPUTS:
        message = f"{len(value)} inputs, limit {MAX_INPUTS}; send fewer per request"
        raise Refusal.at(path, message, "batch_too_large")
    return entries_of(value, path)
