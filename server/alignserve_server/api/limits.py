"""Request limits and their checks, with errors that use each door's field names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from alignserve_server.batching.call import FIELD_PATHS, FieldPaths, ItemPath
from alignserve_server.errors import (
    BatchTooLarge,
    InvalidArgument,
    LabelsInvalid,
    RequestEmpty,
    TemplateInvalid,
    TextTooLong,
    check_none,
)
from alignserve_server.model.encoder import ImageInput
from alignserve_server.model.zero_shot import PLACEHOLDER, LabelSet, is_template

_SHORT_LABELS = 64
_SHORT_LABEL_CHARACTERS = 16 << 10


@dataclass(frozen=True, slots=True)
class RequestLimits:
    """All request limits. Settings have the same names, and doors publish them."""

    max_client_batch_size: int
    max_labels: int
    max_prompt_templates: int
    max_image_bytes: int
    max_image_pixels: int
    max_text_bytes: int
    max_request_bytes: int
    max_response_bytes: int
    max_stream_in_flight: int
    image_formats: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class LabelQuery:
    """The labels and templates that images are scored against.

    Pass the repeated fields of a message without copying them, since reading long ones takes long.
    """

    labels: Sequence[str]
    prompt_templates: Sequence[str] = ()
    top_k: int = 0  # per image; 0 for all

    @property
    def is_short(self) -> bool:
        """Whether `checked_labels` takes well under a millisecond."""
        fields = (self.labels, self.prompt_templates)
        return sum(map(len, fields)) <= _SHORT_LABELS and (
            sum(len(text) for field in fields for text in field) <= _SHORT_LABEL_CHARACTERS
        )


def check_images(
    images: Sequence[ImageInput], limits: RequestLimits, paths: FieldPaths = FIELD_PATHS
) -> None:
    """Checks the number of images in a request, and that no encoded one is empty.

    Raises:
        InvalidArgument: There are none or too many, or some have no bytes; names all of these.
    """
    _check_count("images", len(images), limits.max_client_batch_size, paths.images)
    _check_not_empty(images, paths.image)


def check_texts(texts: Sequence[str], limits: RequestLimits, paths: FieldPaths = FIELD_PATHS) -> None:
    """Checks the number of texts in a request. Raises `InvalidArgument` if there are none or too many."""
    _check_count("texts", len(texts), limits.max_client_batch_size, paths.texts)


def check_pairs(images: Sequence[ImageInput], limits: RequestLimits, paths: FieldPaths = FIELD_PATHS) -> None:
    """Checks the number of pairs in a request, and that no encoded image is empty. See `check_images`."""
    _check_count("pairs", len(images), limits.max_client_batch_size, paths.pairs)
    _check_not_empty(images, paths.pair_image)


def checked_labels(query: LabelQuery, limits: RequestLimits, paths: FieldPaths = FIELD_PATHS) -> LabelSet:
    """Checks the labels and templates of a request and returns them.

    Takes tens of milliseconds for the largest requests; see `LabelQuery.is_short`.

    Raises:
        InvalidArgument: There are no labels, or too many labels or templates; one is blank or too long; a
            template does not have exactly one placeholder; a label is too long once it is in the longest
            template; or `top_k` is negative.
    """
    labels = _labels(query.labels, limits, paths)
    templates = _prompt_templates(query.prompt_templates, limits, paths)
    if query.top_k < 0:
        raise InvalidArgument.at(paths.top_k, f"{query.top_k} is negative; send 0 for every label")
    longest_template = max(map(_filled_size, templates), default=0)
    for position, label in enumerate(labels):
        size, what = _utf8_size(label) + longest_template, "label in the longest template"
        _check_prompt_bytes(paths.label(position), what, size, limits)
    return LabelSet.of(labels, templates)


def _labels(values: Sequence[str], limits: RequestLimits, paths: FieldPaths) -> list[str]:
    if not 1 <= len(values) <= limits.max_labels:
        raise LabelsInvalid.at(paths.labels, f"{len(values)} labels; send from 1 to {limits.max_labels}")
    labels = []  # not list(values), which would hold the GIL while it decodes megabytes
    for position, label in enumerate(values):
        if not label or label.isspace():
            raise LabelsInvalid.at(paths.label(position), "label is blank; omit it or give it a name")
        _check_prompt_bytes(paths.label(position), "label", _utf8_size(label), limits)
        labels.append(label)
    return labels


def _prompt_templates(values: Sequence[str], limits: RequestLimits, paths: FieldPaths) -> list[str]:
    if len(values) > limits.max_prompt_templates:
        raise TemplateInvalid.at(
            paths.prompt_templates,
            f"{len(values)} templates, limit {limits.max_prompt_templates}; send fewer",
        )
    for position, template in enumerate(values):
        path = paths.prompt_template(position)
        if not is_template(template):
            raise TemplateInvalid.at(
                path,
                f"template has {template.count(PLACEHOLDER)} placeholders; write {PLACEHOLDER} exactly once",
            )
        _check_prompt_bytes(path, "template", _filled_size(template), limits)
    return list(values)


def _check_count(what: str, count: int, limit: int, path: str) -> None:
    if count == 0:
        raise RequestEmpty.at(path, f"no {what}; send from 1 to {limit}")
    if count > limit:
        raise BatchTooLarge.at(path, f"{count} {what}, limit {limit}; send fewer per request")


def _check_not_empty(images: Sequence[ImageInput], path: ItemPath) -> None:
    check_none(
        RequestEmpty.at(path(position), "no bytes; send an encoded image file")
        for position, image in enumerate(images)
        if image == b""
    )


def _check_prompt_bytes(path: str, what: str, size: int, limits: RequestLimits) -> None:
    if size > limits.max_text_bytes:
        raise TextTooLong.at(path, f"{what} has {size} bytes, limit {limits.max_text_bytes}; shorten it")


def _filled_size(template: str) -> int:
    """Returns the number of bytes that a template adds to a label."""
    return _utf8_size(template) - len(PLACEHOLDER)


def _utf8_size(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode())
