"""Every error that a caller can meet, as one table of codes and reasons; and the one that ends a start.

Raise these where the fact is known; `rpc.interceptors` turns them into rich statuses. The same rows stand
in `protos/README.md`, and a test compares the two.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, TypeVar

_T = TypeVar("_T")
_Error = TypeVar("_Error", bound="ServingError")
_Raised = TypeVar("_Raised", bound=BaseException)

DOMAIN = "alignserve.v1"  # google.rpc.ErrorInfo.domain


@dataclass(frozen=True, slots=True)
class FieldViolation:
    """One field at fault, as google.rpc.BadRequest reports it."""

    field: str  # path from the request, such as images[3].content
    description: str
    reason: str


class StartupError(Exception):
    """The server cannot start; the message says what to do."""


class ServingError(Exception):
    """An answer to a caller: a gRPC code, a stable reason and a message for people."""

    code: ClassVar[str] = "INTERNAL"
    reason: ClassVar[str] = "INTERNAL"
    is_retryable: ClassVar[bool] = False
    is_final_for_call: ClassVar[bool] = False  # retryable, but not within the deadline of the call refused

    @classmethod
    def is_refusal(cls) -> bool:
        """Says whether it turns a call or stream item away, rather than reports that one failed."""
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
        """Returns an equal error that has never been raised, for one more caller.

        One object that several callers raise would gather the frames of all of them.
        """
        error = type(self).__new__(type(self), *self.args)
        vars(error).update(vars(self))
        return error


class InvalidArgument(ServingError):
    """An argument is invalid: the request can never succeed unchanged."""

    code = "INVALID_ARGUMENT"
    reason = "ARGUMENT_INVALID"

    @classmethod
    def at(cls, field: str, message: str) -> InvalidArgument:
        """Builds the error with `field` named as the one at fault."""
        return cls(f"{field}: {message}", violations=[FieldViolation(field, message, cls.reason)])

    def under(self, field: str) -> InvalidArgument:
        """Returns the same error, raised without a path, as the fault of `field`."""
        return type(self).at(field, self.message)


class ImageUnreadable(InvalidArgument):
    """The image has an unsupported format, or is broken, cut off or too narrow to resize."""

    reason = "IMAGE_UNREADABLE"


class ImageTooLarge(InvalidArgument):
    """The image exceeds a limit on bytes, pixels, sides or structure."""

    reason = "IMAGE_TOO_LARGE"


class TextEmpty(InvalidArgument):
    """The text is empty or blank, or has no character that the tokenizer keeps."""

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


class RequestEmpty(InvalidArgument):
    """The request has no images or texts, or an image has no bytes."""

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
    """The call would miss its deadline; it is refused now, while the caller can still act."""

    code = "RESOURCE_EXHAUSTED"
    reason = "WOULD_MISS_DEADLINE"
    is_retryable = True
    is_final_for_call = True


class QuotaExceeded(ServingError):
    """The API key has used up its quota for now."""

    code = "RESOURCE_EXHAUSTED"
    reason = "QUOTA_EXCEEDED"
    is_retryable = True


class ResponsesUnread(ServingError):
    """The connection has too many responses that the client has not read."""

    code = "RESOURCE_EXHAUSTED"
    reason = "RESPONSES_UNREAD"
    is_retryable = True


class TooManyStreams(ServingError):
    """The connection has its share of streams open."""

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
            "the server is shutting down; send what is unanswered to another", retry_delay_seconds=0.1
        )


class StreamAged(ServingError):
    """The stream reached its maximum age, at which load balancers can move it."""

    code = "UNAVAILABLE"
    reason = "STREAM_AGED"
    is_retryable = True

    def __init__(self) -> None:
        super().__init__(
            "the stream has reached its age; send what is unanswered on a new one", retry_delay_seconds=0.0
        )


class ModelStalled(ServingError):
    """The device makes no progress."""

    code = "UNAVAILABLE"
    reason = "MODEL_STALLED"
    is_retryable = True


class ExpiredInQueue(ServingError):
    """The deadline passed while the item waited; it never reached the model."""

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
    """Returns every kind of answer in this module; `InvalidArgument` too, which is one of its own."""
    return tuple(
        kind
        for kind in globals().values()
        if isinstance(kind, type) and issubclass(kind, ServingError) and kind is not ServingError
    )


def as_value(error: _Raised) -> _Raised:
    """Returns an error that has been raised, cut off from where, so that it can be kept as an answer.

    Its traceback, and those of its cause and context, hold frames, and these all that the call was given.
    """
    error.__traceback__ = error.__cause__ = error.__context__ = None
    return error


def all_valid(answers: Sequence[_T | InvalidArgument], path: str) -> list[_T]:
    """Returns the answers if none is an error.

    Raises:
        InvalidArgument: Some are; of the first one's kind, naming each field at fault by `path`, in which
            `{}` stands for the position.
    """
    errors = [
        answer.under(path.format(position))
        for position, answer in enumerate(answers)
        if isinstance(answer, InvalidArgument)
    ]
    if errors:
        answers = ()  # the traceback would keep the valid ones
        raise _merge(errors)
    return [answer for answer in answers if not isinstance(answer, InvalidArgument)]


def _merge(errors: Sequence[InvalidArgument]) -> InvalidArgument:
    first = errors[0]
    violations = [violation for error in errors for violation in error.violations]
    message = first.message if len(errors) == 1 else f"{first.message} (and {len(errors) - 1} more)"
    return type(first)(message, violations=violations)
