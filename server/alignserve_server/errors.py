"""Every error that a caller can get, with its code and reason; and `StartupError`, which prevents a start.

Raise these where the fact is known; `rpc.interceptors` turns them into rich statuses. `protos/README.md`
documents the same codes and reasons, and a test compares the two.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar, TypeVar

_T = TypeVar("_T")
_Error = TypeVar("_Error", bound="ServingError")
_Raised = TypeVar("_Raised", bound=BaseException)

DOMAIN = "alignserve.v1"  # google.rpc.ErrorInfo.domain


@dataclass(frozen=True, slots=True)
class FieldViolation:
    """An invalid field, as google.rpc.BadRequest reports it."""

    field: str  # path from the request, such as images[3].content
    description: str
    reason: str


class StartupError(Exception):
    """The server cannot start; the message says what to do."""


class ServingError(Exception):
    """An error response to a caller: a gRPC code, a stable reason and a message for people."""

    code: ClassVar[str] = "INTERNAL"
    reason: ClassVar[str] = "INTERNAL"
    is_retryable: ClassVar[bool] = False
    is_final_for_call: ClassVar[bool] = False  # retryable, but not within the deadline of the refused call

    @classmethod
    def is_refusal(cls) -> bool:
        """Returns whether it rejects a call or stream item, as opposed to reporting that one failed."""
        return cls.code not in ("INTERNAL", "DEADLINE_EXCEEDED")

    def __init__(
        self,
        message: str,
        *,
        violations: Sequence[FieldViolation] = (),
        retry_delay_seconds: float | None = None,
        metadata: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.violations = tuple(violations)
        self.retry_delay_seconds = retry_delay_seconds
        self.metadata = metadata or {}

    def again(self: _Error) -> _Error:
        """Returns an equal error that has never been raised, for another caller.

        If several callers raised the same object, its traceback would collect the frames of all of them.
        """
        error = type(self).__new__(type(self), *self.args)
        vars(error).update(vars(self))
        return error


class InvalidArgument(ServingError):
    """An argument is invalid: the request can never succeed unchanged."""

    code = "INVALID_ARGUMENT"
    reason = "ARGUMENT_INVALID"
    part = ""  # of the item at fault, as the end of a path, such as `.height`

    @classmethod
    def at(cls, field: str, message: str) -> InvalidArgument:
        """Returns the error as a violation of `field`."""
        return cls(f"{field}: {message}", violations=[FieldViolation(field, message, cls.reason)])

    @classmethod
    def in_part(cls, part: str, message: str) -> InvalidArgument:
        """Returns the error, which has no path yet, as a violation of a part of the item."""
        error = cls(message)
        error.part = part
        return error

    def under(self, field: str) -> InvalidArgument:
        """Returns the same error, which has no path yet, as a violation of `field` or its part."""
        return type(self).at(field + self.part, self.message)


class ImageUnreadable(InvalidArgument):
    """The image has an unsupported format, is corrupt or too narrow, or its data does not fit its size."""

    reason = "IMAGE_UNREADABLE"


class ImageTooLarge(InvalidArgument):
    """The image exceeds a limit on bytes, pixels, dimensions or structure."""

    reason = "IMAGE_TOO_LARGE"


class TextEmpty(InvalidArgument):
    """The text is empty or blank, or has only characters that the tokenizer drops."""

    reason = "TEXT_EMPTY"


class TextTooLong(InvalidArgument):
    """The text, label or prompt has too many bytes or tokens."""

    reason = "TEXT_TOO_LONG"


class TextUnsupported(InvalidArgument):
    """The tokenizer produces a token for which the model has no embedding."""

    reason = "TEXT_UNSUPPORTED"


class LabelsInvalid(InvalidArgument):
    """There are no labels, too many, a blank one, or more than a response can hold."""

    reason = "LABELS_INVALID"


class TemplateInvalid(InvalidArgument):
    """There are too many prompt templates, or one does not contain `{label}` exactly once."""

    reason = "TEMPLATE_INVALID"


class QueryInvalid(InvalidArgument):
    """A composed query has no terms, an empty term, an unusable weight, or terms that cancel out."""

    reason = "QUERY_INVALID"


class RequestEmpty(InvalidArgument):
    """The request has no images, texts, pairs or queries, or an image has no bytes."""

    reason = "REQUEST_EMPTY"


class RequestMalformed(InvalidArgument):
    """The bytes are not a valid message of the method."""

    reason = "REQUEST_MALFORMED"


class BatchTooLarge(InvalidArgument):
    """The request has too many items, or its response would be too large."""

    reason = "BATCH_TOO_LARGE"


class CorrelationIdInvalid(InvalidArgument):
    """The id of a stream item is empty, too long, or already in flight."""

    reason = "CORRELATION_ID_INVALID"


class QueueFull(ServingError):
    """The queue is full; the retry delay is an estimate from the measured drain rate."""

    code = "RESOURCE_EXHAUSTED"
    reason = "QUEUE_FULL"
    is_retryable = True


class WouldMissDeadline(ServingError):
    """The call would miss its deadline; it is refused early, while the caller can still act."""

    code = "RESOURCE_EXHAUSTED"
    reason = "WOULD_MISS_DEADLINE"
    is_retryable = True
    is_final_for_call = True


class QuotaExceeded(ServingError):
    """The API key's limit on requests per second or concurrent calls is reached."""

    code = "RESOURCE_EXHAUSTED"
    reason = "QUOTA_EXCEEDED"
    is_retryable = True


class ResponsesUnread(ServingError):
    """The connection has too many responses that the client has not read."""

    code = "RESOURCE_EXHAUSTED"
    reason = "RESPONSES_UNREAD"
    is_retryable = True


class TooManyStreams(ServingError):
    """The connection already has its share of open streams."""

    code = "RESOURCE_EXHAUSTED"
    reason = "TOO_MANY_STREAMS"
    is_retryable = True


class RequestTimeout(ServingError):
    """The request message did not arrive in time."""

    code = "DEADLINE_EXCEEDED"
    reason = "REQUEST_TIMEOUT"


class HealthServiceUnknown(ServingError):
    """The health service was asked about an unknown service."""

    code = "NOT_FOUND"
    reason = "SERVICE_UNKNOWN"


class ModelUnknown(ServingError):
    """The server has no model of this name or version."""

    code = "NOT_FOUND"
    reason = "MODEL_UNKNOWN"


class KeyMissing(ServingError):
    """The server requires an API key and the call has none."""

    code = "UNAUTHENTICATED"
    reason = "KEY_MISSING"


class KeyInvalid(ServingError):
    """The API key is unknown, revoked or expired; the response deliberately does not say which."""

    code = "UNAUTHENTICATED"
    reason = "KEY_INVALID"


class ScopeMissing(ServingError):
    """The API key does not permit this method or stream item."""

    code = "PERMISSION_DENIED"
    reason = "SCOPE_MISSING"


class ModelLoading(ServingError):
    """The model is not ready yet."""

    code = "UNAVAILABLE"
    reason = "MODEL_LOADING"
    is_retryable = True


class ShuttingDown(ServingError):
    """The server is shutting down."""

    code = "UNAVAILABLE"
    reason = "SHUTTING_DOWN"
    is_retryable = True

    def __init__(self) -> None:
        super().__init__(
            "the server is shutting down; resend unanswered requests to another server",
            retry_delay_seconds=0.1,
        )


class StreamAged(ServingError):
    """The stream reached its maximum age; on a new one, load balancers can choose another server."""

    code = "UNAVAILABLE"
    reason = "STREAM_AGED"
    is_retryable = True

    def __init__(self) -> None:
        super().__init__(
            "the stream has reached its maximum age; resend unanswered requests on a new stream",
            retry_delay_seconds=0.0,
        )


class ModelStalled(ServingError):
    """The device makes no progress."""

    code = "UNAVAILABLE"
    reason = "MODEL_STALLED"
    is_retryable = True


class ExpiredInQueue(ServingError):
    """The deadline passed while the item was queued; it never reached the model."""

    code = "DEADLINE_EXCEEDED"
    reason = "EXPIRED_IN_QUEUE"


class InferenceFailed(ServingError):
    """The model failed on this item; the log has the cause under the same error id."""

    code = "INTERNAL"
    reason = "INFERENCE_FAILED"


class InternalError(ServingError):
    """A bug in the server; the log has the cause under the same error id."""

    code = "INTERNAL"
    reason = "INTERNAL"


def error_kinds() -> tuple[type[ServingError], ...]:
    """Returns all subclasses of `ServingError`, including `InvalidArgument`, which is also raised itself."""
    return tuple(
        kind
        for kind in globals().values()
        if isinstance(kind, type) and issubclass(kind, ServingError) and kind is not ServingError
    )


def as_value(error: _Raised) -> _Raised:
    """Strips the traceback, cause and context of a raised error, so that it can be stored; returns the error.

    These refer to frames, which keep everything that the call was given in memory.
    """
    error.__traceback__ = error.__cause__ = error.__context__ = None
    return error


def all_valid(answers: Sequence[_T | InvalidArgument], path: Callable[[int], str]) -> list[_T]:
    """Returns the results if none is an error.

    Raises:
        InvalidArgument: Some are. The error has the type of the first one and a violation for each, whose
            field is the `path` of its position.
    """
    errors = [
        answer.under(path(position))
        for position, answer in enumerate(answers)
        if isinstance(answer, InvalidArgument)
    ]
    if errors:
        answers = ()  # the traceback would keep the valid ones
        raise merged(errors)
    return [answer for answer in answers if not isinstance(answer, InvalidArgument)]


def check_none(errors: Iterable[InvalidArgument]) -> None:
    """Raises the errors, if there are any, as one."""
    found = list(errors)
    if found:
        raise merged(found)


def merged(errors: Sequence[InvalidArgument]) -> InvalidArgument:
    """Returns one error with the violations of all, of which there is at least one, and the first's type."""
    first = errors[0]
    violations = [violation for error in errors for violation in error.violations]
    message = first.message if len(errors) == 1 else f"{first.message} (and {len(errors) - 1} more)"
    return type(first)(message, violations=violations)
