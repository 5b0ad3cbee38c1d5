"""The implementation of the fake server: what a test has scripted, and the RPCs that follow it."""

from __future__ import annotations

import hashlib
import itertools
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NoReturn, TypeVar

import grpc
import numpy as np
from google.protobuf import any_pb2, wrappers_pb2
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from numpy.typing import NDArray

from alignserve._health import HEALTH_SERVICE
from alignserve._kinds import kind_of
from alignserve.v1 import align_service_pb2 as pb
from alignserve.v1 import align_service_pb2_grpc as pb_grpc

_Checked = TypeVar("_Checked")
_Item = TypeVar("_Item")
_Request = TypeVar("_Request")
_Response = TypeVar("_Response")

_DOMAIN = "alignserve.v1"
_LENGTH_UNNORMALIZED = 3.0  # length of embeddings without normalization
_NEVER_SECONDS = 1e9  # without a deadline, gRPC reports a far-future time
_PLACEHOLDER = "{label}"
_UNKNOWN_WORD = "[UNK]"
_SERVING, _NOT_SERVING = 1, 2  # grpc.health.v1.HealthCheckResponse
_MIN_SCORE = 1e-9  # for a label without a score
_BEST_SIMILARITY = (
    0.3  # for an image whose scores the test has set; a trained model gives about this for a photo
)
_KEY_MISSING = "no API key; send the metadata 'authorization: Bearer KEY'"
_KEY_INVALID = "the API key is unknown, revoked or has expired; ask the operator for another"
_SIGNATURES = {
    "BMP": b"BM",
    "GIF": b"GIF8",
    "JPEG": b"\xff\xd8\xff",
    "PNG": b"\x89PNG\r\n\x1a\n",
    "WEBP": b"RIFF",
}
_MAX_VIOLATIONS = 16  # as in the server
_PACKED = {
    pb.EMBEDDING_FORMAT_PACKED_FLOAT32: ("packed_float32", "<f4"),
    pb.EMBEDDING_FORMAT_PACKED_FLOAT16: ("packed_float16", "<f2"),
}


@dataclass(frozen=True, slots=True)
class ReceivedCall:
    """A message that the fake received.

    Attributes:
        method: Name of the RPC, such as `EmbedText`. Each message of a stream counts as one.
        request: The message.
        metadata: What the client sent with the call.
        remaining_seconds: Time left for the call, or `None` if the client set no deadline.
    """

    method: str
    request: Any  # one of the request messages
    metadata: dict[str, str | bytes]
    remaining_seconds: float | None


@dataclass(frozen=True, slots=True)
class ScriptedFailure:
    """A status to answer with."""

    code: grpc.StatusCode
    reason: str
    message: str
    retry_delay_seconds: float | None = None
    error_id: str = ""
    field: str = ""
    others: tuple[ScriptedFailure, ...] = ()  # for other fields of the same request

    def at(self, path: str) -> ScriptedFailure:
        """Returns this failure, attributed to a field."""
        return replace(self, field=path)

    @property
    def status_message(self) -> str:
        """Returns the message, prefixed with the field as the server does."""
        return f"{self.field}: {self.message}" if self.field else self.message


class Script:
    """The failures that a test has scripted."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._split_requests: deque[ScriptedFailure] = deque()
        self._breaks: deque[tuple[int, ScriptedFailure]] = deque()
        self._inputs: dict[str | bytes, Iterator[ScriptedFailure]] = {}

    def fail_next(self, failure: ScriptedFailure, times: int) -> None:
        """Fails the next calls."""
        with self._lock:
            self._split_requests.extend(itertools.repeat(failure, times))

    def fail_input(self, content: str | bytes, failure: ScriptedFailure, times: int | None) -> None:
        """Fails an input, a number of times or always."""
        with self._lock:
            self._inputs[content] = itertools.repeat(failure, *([] if times is None else [times]))

    def break_stream(self, after: int, failure: ScriptedFailure) -> None:
        """Ends a stream after a number of answers."""
        with self._lock:
            self._breaks.append((after, failure))

    def next_failure(self) -> ScriptedFailure | None:
        """Returns the failure of the call that has just arrived, if any."""
        with self._lock:
            return self._split_requests.popleft() if self._split_requests else None

    def failure_of(self, content: str | bytes) -> ScriptedFailure | None:
        """Returns the failure of an input, if any."""
        with self._lock:
            return next(self._inputs.get(content, iter(())), None)

    def next_break(self) -> tuple[int, ScriptedFailure] | None:
        """Returns when and how the stream that has just arrived ends early, if it does."""
        with self._lock:
            return self._breaks.popleft() if self._breaks else None


@dataclass(slots=True)
class FakeState:
    """The fake's configuration and current state."""

    info: pb.GetModelInfoResponse
    script: Script = field(default_factory=Script)
    received: list[ReceivedCall] = field(default_factory=list)
    arrived: threading.Condition = field(default_factory=threading.Condition)  # guards `received`
    gate: threading.Event = field(default_factory=threading.Event)  # set while answers may be sent
    is_ready: bool = True
    api_keys: frozenset[str] = frozenset()  # if empty, calls need no key
    checks_images: bool = False
    vectors: dict[str | bytes, NDArray[np.float32]] = field(default_factory=dict)  # set by the test
    scores: dict[bytes, dict[str, float]] = field(default_factory=dict)  # by image and label

    def vector_of(self, content: str | bytes) -> NDArray[np.float32]:
        """Returns the embedding of an input, with length 1: set by the test, or derived from the input."""
        vector = self.vectors.get(content)
        return fake_embedding(content, self.info.embedding_dimension) if vector is None else vector


def fake_embedding(content: str | bytes, dimension: int) -> NDArray[np.float32]:
    """Returns a vector of length 1, (dimension,), derived from a hash of the content."""
    data = content.encode() if isinstance(content, str) else content
    seed = int.from_bytes(hashlib.sha256(data).digest()[:8], "little")
    vector = np.random.default_rng(seed).standard_normal(dimension)
    return np.asarray(vector / np.linalg.norm(vector), np.float32)


def health_handler(state: FakeState) -> grpc.GenericRpcHandler:
    """Returns the handler of grpc.health.v1, which follows the fake's readiness."""

    def check(request: bytes, context: Any) -> bytes:  # noqa: ARG001 — gRPC's signature
        status = _SERVING if state.is_ready else _NOT_SERVING
        return wrappers_pb2.Int32Value(value=status).SerializeToString()

    # No deserializer: the request stays bytes, whatever service it names.
    handler: grpc.RpcMethodHandler[bytes, bytes] = grpc.unary_unary_rpc_method_handler(check)
    return grpc.method_handlers_generic_handler(HEALTH_SERVICE, {"Check": handler})


class _Failed(Exception):
    def __init__(self, failure: ScriptedFailure) -> None:
        super().__init__(failure)
        self.failure = failure


class FakeServicer(pb_grpc.AlignServiceServicer):
    """Implements the RPCs."""

    def __init__(self, state: FakeState) -> None:
        self._state = state

    def EmbedImage(self, request: pb.EmbedImageRequest, context: Any) -> pb.EmbedImageResponse:
        return self._unary("EmbedImage", request, context, self._embed_image)

    def EmbedText(self, request: pb.EmbedTextRequest, context: Any) -> pb.EmbedTextResponse:
        return self._unary("EmbedText", request, context, self._embed_text)

    def Classify(self, request: pb.ClassifyRequest, context: Any) -> pb.ClassifyResponse:
        return self._unary("Classify", request, context, self._classify)

    def GetModelInfo(self, request: pb.GetModelInfoRequest, context: Any) -> pb.GetModelInfoResponse:
        return self._unary("GetModelInfo", request, context, lambda _: self._state.info)

    def StreamInfer(
        self, request_iterator: Iterator[pb.StreamInferRequest], context: Any
    ) -> Iterator[pb.StreamInferResponse]:
        try:
            self._check_state(context)
            yield from self._answers(request_iterator, context)
        except _Failed as failed:
            _abort(context, failed.failure)

    def _answers(
        self, requests: Iterator[pb.StreamInferRequest], context: Any
    ) -> Iterator[pb.StreamInferResponse]:
        end = self._state.script.next_break()
        answered = 0
        if end is not None and end[0] == 0:
            raise _Failed(end[1])
        for request in requests:
            self._record("StreamInfer", request, context)
            if request.WhichOneof("request") is None:
                continue  # the message carries only options
            self._state.gate.wait()
            yield self._answer(request)
            answered += 1
            if end is not None and answered == end[0]:
                raise _Failed(end[1])

    def _answer(self, request: pb.StreamInferRequest) -> pb.StreamInferResponse:
        kind = request.WhichOneof("request")
        response = pb.StreamInferResponse(correlation_id=request.correlation_id)
        try:
            if kind == "embed_image":
                response.embed_image.CopyFrom(self._embed_image(request.embed_image))
            elif kind == "embed_text":
                response.embed_text.CopyFrom(self._embed_text(request.embed_text))
            else:
                response.classify.CopyFrom(self._classify(request.classify))
        except _Failed as failed:
            response.error.CopyFrom(_status(failed.failure))
        return response

    def _unary(
        self, method: str, request: _Request, context: Any, answer: Callable[[_Request], _Response]
    ) -> _Response:
        self._record(method, request, context)
        self._state.gate.wait()
        try:
            self._check_state(context)
            return answer(request)
        except _Failed as failed:
            _abort(context, failed.failure)

    def _record(self, method: str, request: Any, context: Any) -> None:
        remaining = context.time_remaining()
        call = ReceivedCall(
            method,
            request,
            dict(context.invocation_metadata()),
            remaining if remaining < _NEVER_SECONDS else None,
        )
        with self._state.arrived:
            self._state.received.append(call)
            self._state.arrived.notify_all()

    def _check_state(self, context: Any) -> None:
        self._check_key(dict(context.invocation_metadata()))
        failure = self._state.script.next_failure()
        if failure is not None:
            raise _Failed(failure)
        if not self._state.is_ready:
            raise _Failed(
                ScriptedFailure(grpc.StatusCode.UNAVAILABLE, "MODEL_LOADING", "the model is loading", 0.01)
            )

    def _check_key(self, metadata: dict[str, Any]) -> None:
        scheme, _, key = str(metadata.get("authorization", "")).partition(" ")
        if not self._state.api_keys or (scheme == "Bearer" and key in self._state.api_keys):
            return
        if key:
            raise _Failed(ScriptedFailure(grpc.StatusCode.UNAUTHENTICATED, "KEY_INVALID", _KEY_INVALID))
        raise _Failed(ScriptedFailure(grpc.StatusCode.UNAUTHENTICATED, "KEY_MISSING", _KEY_MISSING))

    def _embed_image(self, request: pb.EmbedImageRequest) -> pb.EmbedImageResponse:
        contents = self._contents(request.images)
        _check_format(request.embedding_options)
        return pb.EmbedImageResponse(
            embeddings=self._embeddings(contents, request.embedding_options),
            stats=_stats(len(contents), request.include_stats),
        )

    def _embed_text(self, request: pb.EmbedTextRequest) -> pb.EmbedTextResponse:
        self._check_count("texts", len(request.texts))
        _check_format(request.embedding_options)
        tokenizations = _of_each(
            request.texts,
            lambda position, text: self._tokenization(text, request.truncate, f"texts[{position}]"),
        )
        return pb.EmbedTextResponse(
            embeddings=self._embeddings(request.texts, request.embedding_options),
            tokenizations=tokenizations,
            stats=_stats(len(request.texts), request.include_stats),
        )

    def _classify(self, request: pb.ClassifyRequest) -> pb.ClassifyResponse:
        contents = self._contents(request.images)
        self._check_labels(request.labels)
        self._check_templates(request.prompt_templates)
        if request.top_k < 0:
            raise _invalid(
                "ARGUMENT_INVALID", "top_k", f"{request.top_k} is negative; send 0 for every label"
            )
        return pb.ClassifyResponse(
            results=[self._classification(content, request) for content in contents],
            stats=_stats(len(contents), request.include_stats),
        )

    def _contents(self, images: Sequence[pb.Image]) -> list[bytes]:
        self._check_count("images", len(images))
        return _of_each(images, lambda position, image: self._content(image, f"images[{position}].content"))

    def _content(self, image: pb.Image, path: str) -> bytes:
        if not image.content:
            raise _invalid("REQUEST_EMPTY", path, "no bytes; send an encoded image file")
        size, limit = len(image.content), self._state.info.max_image_bytes
        if size > limit:
            raise _invalid(
                "IMAGE_TOO_LARGE", path, f"image has {size} bytes, limit {limit}; send a smaller one"
            )
        self._check_input(image.content, path)
        if self._state.checks_images and not _is_image(image.content, self._state.info.image_formats):
            formats = ", ".join(self._state.info.image_formats)
            raise _invalid("IMAGE_UNREADABLE", path, f"image is not one of {formats}")
        return image.content

    def _tokenization(self, text: str, truncate: bool, path: str) -> pb.Tokenization:
        self._check_input(text, path)
        if not text.strip():
            raise _invalid("TEXT_EMPTY", path, "text is blank; leave it out")
        size, most_bytes = len(text.encode()), self._state.info.max_text_bytes
        if size > most_bytes:
            message = f"text has {size} bytes, limit {most_bytes}; shorten it"
            raise _invalid("TEXT_TOO_LONG", path, message)
        words, limit = text.split(), self._state.info.max_text_tokens
        count = len(words) + 2
        if count > limit and not truncate:
            message = f"text has {count} tokens, limit {limit}; shorten it or set truncate"
            raise _invalid("TEXT_TOO_LONG", path, message)
        return pb.Tokenization(
            token_count=min(count, limit),
            truncated=count > limit,
            unknown_token_count=words[: limit - 2].count(_UNKNOWN_WORD),
        )

    def _check_input(self, content: str | bytes, path: str) -> None:
        failure = self._state.script.failure_of(content)
        if failure is not None:
            raise _Failed(failure.at(path))

    def _check_count(self, name: str, count: int) -> None:
        limit = self._state.info.max_client_batch_size
        if not 1 <= count <= limit:
            reason = "BATCH_TOO_LARGE" if count else "REQUEST_EMPTY"
            raise _invalid(reason, name, f"{count} {name}; send from 1 to {limit}")

    def _check_labels(self, labels: Sequence[str]) -> None:
        limit = self._state.info.max_labels
        if not 1 <= len(labels) <= limit:
            raise _invalid("LABELS_INVALID", "labels", f"{len(labels)} labels; send from 1 to {limit}")
        for position, label in enumerate(labels):
            if not label.strip():
                raise _invalid("LABELS_INVALID", f"labels[{position}]", "label is blank; leave it out")

    def _check_templates(self, templates: Sequence[str]) -> None:
        limit = self._state.info.max_prompt_templates
        if len(templates) > limit:
            message = f"{len(templates)} templates, limit {limit}; send fewer"
            raise _invalid("TEMPLATE_INVALID", "prompt_templates", message)
        for position, template in enumerate(templates):
            count = template.count(_PLACEHOLDER)
            if count != 1:
                message = f"template has {count} placeholders; write {_PLACEHOLDER} exactly once"
                raise _invalid("TEMPLATE_INVALID", f"prompt_templates[{position}]", message)

    def _embeddings(
        self, contents: Sequence[str | bytes], options: pb.EmbeddingOptions
    ) -> list[pb.Embedding]:
        length = _LENGTH_UNNORMALIZED if options.skip_normalization else 1.0
        return [_embedding(length * self._vector(content), options) for content in contents]

    def _classification(self, content: bytes, request: pb.ClassifyRequest) -> pb.ClassificationResult:
        similarities = self._similarities(content, request)
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

    def _similarities(self, content: bytes, request: pb.ClassifyRequest) -> NDArray[Any]:
        scores = self._state.scores.get(content)
        if scores is None:
            image = self._vector(content)
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
    invalid: list[ScriptedFailure] = []
    for position, item in enumerate(items):
        try:
            checked.append(check(position, item))
        except _Failed as failed:
            if failed.failure.code is not grpc.StatusCode.INVALID_ARGUMENT:
                raise
            invalid.append(failed.failure)
    if invalid:
        raise _Failed(replace(invalid[0], others=tuple(invalid[1:])))
    return checked


def _embedding(vector: NDArray[np.float32], options: pb.EmbeddingOptions) -> pb.Embedding:
    packed = _PACKED.get(options.format)
    if packed is None:
        return pb.Embedding(values=vector.tolist())
    name, dtype = packed
    embedding = pb.Embedding()
    setattr(embedding, name, vector.astype(dtype).tobytes())
    return embedding


def _check_format(options: pb.EmbeddingOptions) -> None:
    if options.format not in pb.EmbeddingFormat.values():
        message = f"format {options.format} is unknown; use one of EmbeddingFormat"
        raise _invalid("ARGUMENT_INVALID", "embedding_options.format", message)


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


def _invalid(reason: str, path: str, message: str) -> _Failed:
    return _Failed(ScriptedFailure(grpc.StatusCode.INVALID_ARGUMENT, reason, message).at(path))


def _status(failure: ScriptedFailure) -> status_pb2.Status:
    info = error_details_pb2.ErrorInfo(reason=failure.reason, domain=_DOMAIN)
    if failure.error_id:
        info.metadata["error_id"] = failure.error_id
    details: list[Message] = [info]
    if failure.field:
        bad_request = error_details_pb2.BadRequest()
        for each in (failure, *failure.others)[:_MAX_VIOLATIONS]:
            bad_request.field_violations.add(field=each.field, description=each.message, reason=each.reason)
        details.append(bad_request)
    if failure.retry_delay_seconds is not None:
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromMilliseconds(round(failure.retry_delay_seconds * 1000))
        details.append(retry)
    return status_pb2.Status(
        code=failure.code.value[0],
        message=failure.status_message,
        details=[_packed(detail) for detail in details],
    )


def _packed(message: Message) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(message)
    return packed


def _abort(context: Any, failure: ScriptedFailure) -> NoReturn:
    trailers: list[tuple[str, str | bytes]] = [
        ("grpc-status-details-bin", _status(failure).SerializeToString())
    ]
    # With other codes a pushback would make some clients retry when they should not.
    if failure.retry_delay_seconds is not None and failure.code is grpc.StatusCode.UNAVAILABLE:
        trailers.append(("grpc-retry-pushback-ms", str(round(failure.retry_delay_seconds * 1000))))
    context.set_trailing_metadata(trailers)
    context.abort(failure.code, failure.status_message)
    raise AssertionError  # not reached: abort raises
