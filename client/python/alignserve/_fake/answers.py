"""Answers requests without a model, with the checks and limits of a real server."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import grpc
import numpy as np
from numpy.typing import NDArray

from alignserve._fake.formats import check_format, encoded
from alignserve._fake.queries import check_queries, composed, is_empty, no_bytes, weight_of
from alignserve._fake.script import Failed, ScriptedFailure, invalid, invalid_together
from alignserve._fake.state import FakeState, image_key
from alignserve._kinds import kind_of
from alignserve.v1 import align_service_pb2 as pb

_Checked = TypeVar("_Checked")
_Item = TypeVar("_Item")

_LENGTH_UNNORMALIZED = 3.0  # length of embeddings without normalization
_PLACEHOLDER = "{label}"
_UNKNOWN_WORD = "[UNK]"
_MIN_SCORE = 1e-9  # for a label without a score
_BEST_SIMILARITY = (
    0.3  # for an image whose scores the test has set; a trained model gives about this for a photo
)
_SIGNATURES = {
    "BMP": b"BM",
    "GIF": b"GIF8",
    "JPEG": b"\xff\xd8\xff",
    "PNG": b"\x89PNG\r\n\x1a\n",
    "WEBP": b"RIFF",
}


class Answers:
    """Answers each kind of request; a request that is invalid raises `Failed`."""

    def __init__(self, state: FakeState) -> None:
        self._state = state

    def embed_image(self, request: pb.EmbedImageRequest) -> pb.EmbedImageResponse:
        """Embeds images."""
        keys = self._keys(request.images)
        check_format(request.embedding_options)
        return pb.EmbedImageResponse(
            embeddings=self._embeddings(keys, request.embedding_options),
            stats=_stats(len(keys), request.include_stats),
        )

    def embed_text(self, request: pb.EmbedTextRequest) -> pb.EmbedTextResponse:
        """Embeds texts."""
        self._check_count("texts", len(request.texts))
        check_format(request.embedding_options)
        tokenizations = _of_each(
            request.texts,
            lambda position, text: self._tokenization(text, request.truncate, f"texts[{position}]"),
        )
        return pb.EmbedTextResponse(
            embeddings=self._embeddings(request.texts, request.embedding_options),
            tokenizations=tokenizations,
            stats=_stats(len(request.texts), request.include_stats),
        )

    def classify(self, request: pb.ClassifyRequest) -> pb.ClassifyResponse:
        """Scores images against labels."""
        keys = self._keys(request.images)
        self._check_labels(request.labels)
        self._check_templates(request.prompt_templates)
        if request.top_k < 0:
            message = f"{request.top_k} is negative; send 0 for every label"
            raise invalid("ARGUMENT_INVALID", "top_k", message)
        return pb.ClassifyResponse(
            results=[self._classification(key, request) for key in keys],
            stats=_stats(len(keys), request.include_stats),
        )

    def compare(self, request: pb.CompareRequest) -> pb.CompareResponse:
        """Compares images with texts, pair by pair."""
        self._check_count("pairs", len(request.pairs))
        _check_not_empty([pair.image for pair in request.pairs], "pairs[{}].image")
        checked = _of_each(request.pairs, lambda position, pair: self._pair(pair, position, request.truncate))
        comparisons = [self._comparison(key, text) for key, text, _ in checked]
        return pb.CompareResponse(
            comparisons=comparisons,
            tokenizations=[tokenization for _, _, tokenization in checked],
            stats=_stats(len(checked), request.include_stats),
        )

    def embed_query(self, request: pb.EmbedQueryRequest) -> pb.EmbedQueryResponse:
        """Embeds composed queries."""
        check_queries(request.queries, self._state.info.max_client_batch_size)
        check_format(request.embedding_options)
        vectors = _of_each(
            request.queries,
            lambda position, query: self._terms(query, request.truncate, f"queries[{position}]"),
        )
        normalize = not request.embedding_options.skip_normalization

        def query_vector(position: int, query: pb.ComposedQuery) -> NDArray[np.float32]:
            weights = list(map(weight_of, query.terms))
            return composed(vectors[position], weights, f"queries[{position}]", normalize=normalize)

        return pb.EmbedQueryResponse(
            embeddings=[
                encoded(vector, request.embedding_options)
                for vector in _of_each(request.queries, query_vector)
            ],
            stats=_stats(sum(map(len, vectors)), request.include_stats),
        )

    def _keys(self, images: Sequence[pb.Image]) -> list[bytes]:
        self._check_count("images", len(images))
        _check_not_empty(images, "images[{}]")
        return _of_each(images, lambda position, image: self._image(image, f"images[{position}]"))

    def _image(self, image: pb.Image, path: str) -> bytes:
        """Checks an image and returns its key."""
        if image.WhichOneof("source") == "pixels":
            self._check_pixels(image.pixels, f"{path}.pixels")
            self._check_input(image_key(image), f"{path}.pixels")
        else:
            self._check_file(image.content, f"{path}.content")
        return image_key(image)

    def _check_pixels(self, pixels: pb.Pixels, path: str) -> None:
        height, width, size = pixels.height, pixels.width, len(pixels.data)
        for name, side in (("height", height), ("width", width)):
            if side < 1:
                message = f"image is {width}x{height} pixels; send at least 1x1"
                raise invalid("IMAGE_UNREADABLE", f"{path}.{name}", message)
        if size != height * width * 3:
            message = f"{width}x{height} pixels need {height * width * 3} bytes, not {size}"
            raise invalid("IMAGE_UNREADABLE", f"{path}.data", message)
        limit = self._state.info.max_image_pixels
        if height * width > limit:
            message = f"image has {height * width} pixels, limit {limit}; send a smaller one"
            raise invalid("IMAGE_TOO_LARGE", path, message)

    def _check_file(self, content: bytes, path: str) -> None:
        size, limit = len(content), self._state.info.max_image_bytes
        if size > limit:
            message = f"image has {size} bytes, limit {limit}; send a smaller one"
            raise invalid("IMAGE_TOO_LARGE", path, message)
        self._check_input(content, path)
        if self._state.checks_images and not _is_image(content, self._state.info.image_formats):
            formats = ", ".join(self._state.info.image_formats)
            raise invalid("IMAGE_UNREADABLE", path, f"image is not one of {formats}")

    def _tokenization(self, text: str, truncate: bool, path: str) -> pb.Tokenization:
        self._check_input(text, path)
        if not text.strip():
            raise invalid("TEXT_EMPTY", path, "text is blank; leave it out")
        size, most_bytes = len(text.encode()), self._state.info.max_text_bytes
        if size > most_bytes:
            message = f"text has {size} bytes, limit {most_bytes}; shorten it"
            raise invalid("TEXT_TOO_LONG", path, message)
        words, limit = text.split(), self._state.info.max_text_tokens
        count = len(words) + 2
        if count > limit and not truncate:
            message = f"text has {count} tokens, limit {limit}; shorten it or set truncate"
            raise invalid("TEXT_TOO_LONG", path, message)
        return pb.Tokenization(
            token_count=min(count, limit),
            truncated=count > limit,
            unknown_token_count=words[: limit - 2].count(_UNKNOWN_WORD),
        )

    def _check_input(self, content: str | bytes, path: str) -> None:
        failure = self._state.script.failure_of(content)
        if failure is not None:
            raise Failed(failure.at(path))

    def _check_count(self, name: str, count: int) -> None:
        limit = self._state.info.max_client_batch_size
        if not 1 <= count <= limit:
            reason = "BATCH_TOO_LARGE" if count else "REQUEST_EMPTY"
            raise invalid(reason, name, f"{count} {name}; send from 1 to {limit}")

    def _check_labels(self, labels: Sequence[str]) -> None:
        limit = self._state.info.max_labels
        if not 1 <= len(labels) <= limit:
            raise invalid("LABELS_INVALID", "labels", f"{len(labels)} labels; send from 1 to {limit}")
        for position, label in enumerate(labels):
            if not label.strip():
                raise invalid("LABELS_INVALID", f"labels[{position}]", "label is blank; leave it out")

    def _check_templates(self, templates: Sequence[str]) -> None:
        limit = self._state.info.max_prompt_templates
        if len(templates) > limit:
            message = f"{len(templates)} templates, limit {limit}; send fewer"
            raise invalid("TEMPLATE_INVALID", "prompt_templates", message)
        for position, template in enumerate(templates):
            count = template.count(_PLACEHOLDER)
            if count != 1:
                message = f"template has {count} placeholders; write {_PLACEHOLDER} exactly once"
                raise invalid("TEMPLATE_INVALID", f"prompt_templates[{position}]", message)

    def _pair(
        self, pair: pb.ImageTextPair, position: int, truncate: bool
    ) -> tuple[bytes, str, pb.Tokenization]:
        path = f"pairs[{position}]"
        checks: list[Callable[[], Any]] = [
            lambda: self._image(pair.image, f"{path}.image"),
            lambda: self._tokenization(pair.text, truncate, f"{path}.text"),
        ]
        key, tokenization = _of_each(checks, lambda _, check: check())
        return key, pair.text, tokenization

    def _comparison(self, key: bytes, text: str) -> pb.Comparison:
        similarity = float(self._vector(key) @ self._vector(text))
        return pb.Comparison(similarity=similarity, logit=similarity / self._state.info.temperature)

    def _terms(self, query: pb.ComposedQuery, truncate: bool, path: str) -> list[NDArray[np.float32]]:
        return _of_each(
            query.terms, lambda position, term: self._term(term, truncate, f"{path}.terms[{position}]")
        )

    def _term(self, term: pb.QueryTerm, truncate: bool, path: str) -> NDArray[np.float32]:
        if term.WhichOneof("input") == "image":
            return self._vector(self._image(term.image, f"{path}.image"))
        self._tokenization(term.text, truncate, f"{path}.text")
        return self._vector(term.text)

    def _embeddings(
        self, contents: Sequence[str | bytes], options: pb.EmbeddingOptions
    ) -> list[pb.Embedding]:
        length = _LENGTH_UNNORMALIZED if options.skip_normalization else 1.0
        return [encoded(length * self._vector(content), options) for content in contents]

    def _classification(self, key: bytes, request: pb.ClassifyRequest) -> pb.ClassificationResult:
        similarities = self._similarities(key, request)
        logits = similarities / self._state.info.temperature
        scores = np.exp(logits - logits.max())
        scores /= scores.sum()
        best = np.argsort(-scores, kind="stable")[: request.top_k or None]
        return pb.ClassificationResult(
            classifications=[
                pb.Classification(
                    label=request.labels[position],
                    label_index=position,
                    score=scores[position],
                    similarity=similarities[position],
                    logit=logits[position],
                )
                for position in best.tolist()
            ]
        )

    def _similarities(self, key: bytes, request: pb.ClassifyRequest) -> NDArray[Any]:
        scores = self._state.scores.get(key)
        if scores is None:
            image = self._vector(key)
            return np.array([image @ self._label(label, request) for label in request.labels])
        logits = np.log([max(scores.get(label, 0.0), _MIN_SCORE) for label in request.labels])
        return np.asarray(_BEST_SIMILARITY + (logits - logits.max()) * self._state.info.temperature)

    def _vector(self, content: str | bytes) -> NDArray[np.float32]:
        return self._state.vector_of(content)

    def _label(self, label: str, request: pb.ClassifyRequest) -> NDArray[np.float32]:
        templates = request.prompt_templates or [_PLACEHOLDER]
        prompts = [template.replace(_PLACEHOLDER, label) for template in templates]
        mean = np.mean([self._vector(prompt) for prompt in prompts], axis=0)
        return np.asarray(mean / np.linalg.norm(mean), np.float32)


def _of_each(items: Sequence[_Item], check: Callable[[int, _Item], _Checked]) -> list[_Checked]:
    """Checks each item; all items at fault are reported together, as the server does."""
    checked: list[_Checked] = []
    failures: list[ScriptedFailure] = []
    for position, item in enumerate(items):
        try:
            checked.append(check(position, item))
        except Failed as failed:
            if failed.failure.code is not grpc.StatusCode.INVALID_ARGUMENT:
                raise
            failures += [replace(failed.failure, others=()), *failed.failure.others]
    if failures:
        raise invalid_together(failures)
    return checked


def _check_not_empty(images: Sequence[pb.Image], path: str) -> None:
    """Refuses empty images, before any other is looked at."""
    places = [position for position, image in enumerate(images) if is_empty(image)]
    if places:
        raise invalid_together([no_bytes(path.format(position)).failure for position in places])


def _is_image(content: bytes, formats: Sequence[str]) -> bool:
    known = tuple(_SIGNATURES[each] for each in formats if each in _SIGNATURES)
    others = tuple(each for each in formats if each not in _SIGNATURES)
    return content.startswith(known) or (kind_of(content) or "").startswith(others)


def _stats(batch_size: int, include_stats: bool) -> pb.InferenceStats | None:
    if not include_stats:
        return None
    stats = pb.InferenceStats(batch_size=batch_size)
    stats.total_duration.FromMilliseconds(1)
    return stats
