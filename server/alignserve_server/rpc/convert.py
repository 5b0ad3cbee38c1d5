"""Messages to plain values, with the checks of a request's shape and limits, and results to messages."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from alignserve.v1 import align_service_pb2 as pb
from numpy.typing import NDArray

from alignserve_server.batching.call import Timings
from alignserve_server.errors import (
    BatchTooLarge,
    InvalidArgument,
    LabelsInvalid,
    RequestEmpty,
    TemplateInvalid,
    TextTooLong,
)
from alignserve_server.model.encoder import ModelInfo, TokenizedText, l2_normalize
from alignserve_server.model.zero_shot import PLACEHOLDER, LabelSet, ScoredLabel, is_template

_SHORT_LABELS = 64
_SHORT_LABEL_CHARACTERS = 16 << 10


@dataclass(frozen=True, slots=True)
class RequestLimits:
    """What a request may hold; `GetModelInfo` publishes it."""

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


def image_contents(images: Sequence[pb.Image], limits: RequestLimits) -> list[bytes]:
    """Returns the encoded images of a request.

    Raises:
        InvalidArgument: There are none or too many, or one has no content.
    """
    _check_count("images", len(images), limits.max_client_batch_size)
    contents = [image.content for image in images]  # once: each reading of the field copies it
    for position, content in enumerate(contents):
        if not content:
            raise RequestEmpty.at(f"images[{position}].content", "no bytes; send an encoded image file")
    return contents


def texts(values: Sequence[str], limits: RequestLimits) -> list[str]:
    """Returns the texts of a request.

    Raises:
        InvalidArgument: There are none or too many.
    """
    _check_count("texts", len(values), limits.max_client_batch_size)
    return list(values)


def labels(values: Sequence[str], limits: RequestLimits) -> list[str]:
    """Returns the labels of a request.

    Raises:
        InvalidArgument: There are none or too many, or one is blank or too long.
    """
    if not 1 <= len(values) <= limits.max_labels:
        raise LabelsInvalid.at("labels", f"{len(values)} labels; send from 1 to {limits.max_labels}")
    texts = []  # not list(values), which holds the GIL until megabytes are decoded
    for position, label in enumerate(values):
        if not label or label.isspace():
            raise LabelsInvalid.at(f"labels[{position}]", "label is blank; leave it out or name it")
        _check_prompt_bytes(f"labels[{position}]", "label", _utf8_size(label), limits)
        texts.append(label)
    return texts


def prompt_templates(values: Sequence[str], limits: RequestLimits) -> list[str]:
    """Returns the prompt templates of a request.

    Raises:
        InvalidArgument: There are too many, or one is too long or has not exactly one placeholder.
    """
    if len(values) > limits.max_prompt_templates:
        raise TemplateInvalid.at(
            "prompt_templates", f"{len(values)} templates, limit {limits.max_prompt_templates}; send fewer"
        )
    for position, template in enumerate(values):
        if not is_template(template):
            raise TemplateInvalid.at(
                f"prompt_templates[{position}]",
                f"template has {template.count(PLACEHOLDER)} placeholders; write {PLACEHOLDER} exactly once",
            )
        _check_prompt_bytes(f"prompt_templates[{position}]", "template", _filled_size(template), limits)
    return list(values)


def top_k(value: int) -> int:
    """Returns the number of labels wanted; 0 is all. Raises `InvalidArgument` if negative."""
    if value < 0:
        raise InvalidArgument.at("top_k", f"{value} is negative; send 0 for every label")
    return value


def check_classification(request: pb.ClassifyRequest, limits: RequestLimits) -> None:
    """Checks what labels make together with templates; each has passed its own checks.

    Raises:
        InvalidArgument: A label in a template is too long.
    """
    longest_template = max(map(_filled_size, request.prompt_templates), default=0)
    for position, label in enumerate(request.labels):
        what = "label in the longest template"
        _check_prompt_bytes(f"labels[{position}]", what, _utf8_size(label) + longest_template, limits)


def label_set(request: pb.ClassifyRequest, limits: RequestLimits) -> LabelSet:
    """Returns the labels and templates of a request, after all checks of them.

    Takes tens of milliseconds for the largest requests; see `has_short_labels`.

    Raises:
        InvalidArgument: One of the checks of `labels`, `prompt_templates`, `top_k` and `check_classification`
            fails.
    """
    names = labels(request.labels, limits)
    templates = prompt_templates(request.prompt_templates, limits)
    top_k(request.top_k)
    check_classification(request, limits)
    return LabelSet.of(names, templates)


def has_short_labels(request: pb.ClassifyRequest) -> bool:
    """Says whether `label_set` takes well under a millisecond."""
    fields = (request.labels, request.prompt_templates)
    return sum(map(len, fields)) <= _SHORT_LABELS and (
        sum(len(text) for field in fields for text in field) <= _SHORT_LABEL_CHARACTERS
    )


def embedding_encoder(options: pb.EmbeddingOptions) -> Callable[[NDArray[np.float32]], list[pb.Embedding]]:
    """Returns the function that turns embeddings, (items, embedding_dimension), into messages as asked for.

    Raises:
        InvalidArgument: The format is unknown to this server.
    """
    encode = _ENCODERS.get(options.format)
    if encode is None:
        raise InvalidArgument.at(
            "embedding_options.format", f"format {options.format} is unknown; use one of EmbeddingFormat"
        )
    if options.skip_normalization:
        return lambda embeddings: [encode(row) for row in embeddings]
    return lambda embeddings: [encode(row) for row in l2_normalize(embeddings)]


def tokenizations(tokenized: Iterable[TokenizedText]) -> list[pb.Tokenization]:
    """Returns how texts were tokenized."""
    return [
        pb.Tokenization(
            token_count=len(text.input_ids),
            truncated=text.truncated,
            unknown_token_count=text.unknown_token_count,
        )
        for text in tokenized
    ]


def add_classification_result(
    response: pb.ClassifyResponse, label_names: Sequence[str], scored: Iterable[ScoredLabel]
) -> None:
    """Adds the result of one image, best label first, in place: a response of many takes long to copy."""
    add = response.results.add().classifications.add
    for each in scored:
        add(
            label=label_names[each.label_index],
            label_index=each.label_index,
            score=each.score,
            similarity=each.similarity,
            logit=each.logit,
        )


def inference_stats(timings: Timings, start: float, cached_label_count: int = 0) -> pb.InferenceStats:
    """Returns where the time of a call went that began at `start` by `time.perf_counter`."""
    stats = pb.InferenceStats(
        batch_size=timings.batch_size,
        cached_label_count=cached_label_count,
        cached_item_count=timings.cached_item_count,
    )
    stats.preprocess_duration.FromNanoseconds(round(timings.preprocess_seconds * 1e9))
    stats.queue_duration.FromNanoseconds(round(timings.queue_seconds * 1e9))
    stats.compute_duration.FromNanoseconds(round(timings.compute_seconds * 1e9))
    stats.total_duration.FromNanoseconds(round((time.perf_counter() - start) * 1e9))
    return stats


def model_info(info: ModelInfo, limits: RequestLimits, server_version: str) -> pb.GetModelInfoResponse:
    """Returns the model being served and the limits of requests."""
    return pb.GetModelInfoResponse(
        model_id=info.model_id,
        model_revision=info.model_revision,
        fingerprint=info.fingerprint,
        runtime=info.runtime,
        dtype=info.dtype,
        device=info.device,
        embedding_dimension=info.embedding_dimension,
        temperature=info.temperature,
        max_text_tokens=info.max_text_tokens,
        max_client_batch_size=limits.max_client_batch_size,
        max_labels=limits.max_labels,
        max_prompt_templates=limits.max_prompt_templates,
        max_image_bytes=limits.max_image_bytes,
        max_image_pixels=limits.max_image_pixels,
        max_text_bytes=limits.max_text_bytes,
        max_request_bytes=limits.max_request_bytes,
        max_stream_in_flight=limits.max_stream_in_flight,
        image_formats=limits.image_formats,
        server_version=server_version,
        min_cosine=info.min_cosine,
        max_response_bytes=limits.max_response_bytes,
    )


def _check_count(field: str, count: int, limit: int) -> None:
    if count == 0:
        raise RequestEmpty.at(field, f"no {field}; send from 1 to {limit}")
    if count > limit:
        raise BatchTooLarge.at(field, f"{count} {field}, limit {limit}; send fewer per request")


def _check_prompt_bytes(field: str, what: str, size: int, limits: RequestLimits) -> None:
    if size > limits.max_text_bytes:
        raise TextTooLong.at(field, f"{what} has {size} bytes, limit {limits.max_text_bytes}; shorten it")


def _filled_size(template: str) -> int:
    """Bytes that a template adds to a label."""
    return _utf8_size(template) - len(PLACEHOLDER)


def _utf8_size(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode())


def _float_list(embedding: NDArray[np.float32]) -> pb.Embedding:
    return pb.Embedding(values=embedding.tolist())  # tolist first: protobuf boxes each element of an array


def _packed_float32(embedding: NDArray[np.float32]) -> pb.Embedding:
    return pb.Embedding(packed_float32=embedding.astype("<f4", copy=False).tobytes())


def _packed_float16(embedding: NDArray[np.float32]) -> pb.Embedding:
    return pb.Embedding(packed_float16=embedding.astype("<f2").tobytes())


_ENCODERS: dict[int, Callable[[NDArray[np.float32]], pb.Embedding]] = {
    pb.EMBEDDING_FORMAT_UNSPECIFIED: _float_list,
    pb.EMBEDDING_FORMAT_FLOAT_LIST: _float_list,
    pb.EMBEDDING_FORMAT_PACKED_FLOAT32: _packed_float32,
    pb.EMBEDDING_FORMAT_PACKED_FLOAT16: _packed_float16,
}
