"""When to retry, and after how long."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

import grpc

from alignserve.errors import (
    AlignserveError,
    CallCancelledError,
    DeadlineExceededError,
    InternalError,
    ResourceExhaustedError,
    UnavailableError,
    error_from_call,
)

_log = logging.getLogger("alignserve")  # the package's name, which users know

_TOO_LATE = "WOULD_MISS_DEADLINE"
_STOPPING = "SHUTTING_DOWN"


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """How a client retries.

    A unary call that fails with UNAVAILABLE is retried a few times with a growing backoff. A call that a full
    or stopping server refuses is retried after the server's delay or the backoff, whichever is longer, until
    its deadline. A stream that breaks reconnects and sends its unanswered items again. A list of several
    requests also sends its unanswered items again, even after a refusal.

    Attributes:
        max_attempts: Maximum attempts of a unary call that fails with UNAVAILABLE, including the first; for a
            list of several requests, consecutive attempts that run out of time. 1 turns all retries of calls
            off.
        max_stream_attempts: Maximum consecutive attempts of a stream, or of a list of several requests,
            without any answer.
        initial_backoff_seconds: Pause before the first retry.
        max_backoff_seconds: Maximum pause, unless the server asks for a longer one.
        backoff_multiplier: Growth of the pause from one retry to the next.
        jitter: Maximum random addition, as a share of the pause, so that clients do not retry in step.
    """

    max_attempts: int = 5
    max_stream_attempts: int = 10
    initial_backoff_seconds: float = 0.1
    max_backoff_seconds: float = 5.0
    backoff_multiplier: float = 2.0
    jitter: float = 0.25

    def __post_init__(self) -> None:
        if self.max_attempts < 1 or self.max_stream_attempts < 1:
            raise ValueError("max_attempts and max_stream_attempts must be at least 1")
        if not 0 < self.initial_backoff_seconds <= self.max_backoff_seconds or self.backoff_multiplier < 1:
            raise ValueError(
                "initial_backoff_seconds must be above 0 and at most max_backoff_seconds, and "
                "backoff_multiplier at least 1"
            )
        if self.jitter < 0:
            raise ValueError("jitter must not be negative")


@dataclass(slots=True)
class Repeats:
    """Counts the attempts of one request and decides when to retry it.

    Args:
        policy: When to retry.
        random: Returns a random number from 0 to 1.
    """

    policy: RetryPolicy
    random: Callable[[], float]
    _attempts: int = 0
    _breaks: int = 0

    def delay_seconds(self, error: AlignserveError, remaining_seconds: float) -> float | None:
        """Returns how long to wait before the next attempt, or `None` to give up.

        Refusals by a full or stopping server are temporary, so only the deadline limits their retries; other
        UNAVAILABLE errors are limited by the number of attempts. There is no retry if the pause would outlast
        the deadline, or if the server says that the deadline is too close: waiting brings it closer.

        Args:
            error: Error of the last attempt.
            remaining_seconds: Time left for the request.
        """
        self._attempts += 1
        if self.policy.max_attempts == 1 or not (is_refusal(error) or isinstance(error, UnavailableError)):
            return None
        if error.reason == _TOO_LATE:
            return None
        if isinstance(error, UnavailableError) and error.reason != _STOPPING:
            self._breaks += 1
            if self._breaks >= self.policy.max_attempts:
                return None
        delay = delay_seconds(self.policy, error, self._attempts, self.random)
        if delay >= remaining_seconds:
            return None
        log_retry("request", error, self._attempts, delay)
        return delay


def log_retry(what: str, error: AlignserveError, attempt: int, delay_seconds: float) -> None:
    """Logs a retry and its reason, at INFO since most retries succeed."""
    _log.info("%s: attempt %d failed, next in %.2f s: %s", what, attempt, delay_seconds, error)


def is_refusal(error: AlignserveError) -> bool:
    """Returns whether a full server refused the request and says when to retry."""
    return isinstance(error, ResourceExhaustedError) and error.retry_delay_seconds is not None


def reconnect_delay_seconds(
    policy: RetryPolicy,
    error: AlignserveError,
    attempt: int,
    remaining_seconds: float,
    random: Callable[[], float],
) -> float:
    """Returns how long to wait before a broken stream is opened again.

    Args:
        policy: When to retry.
        error: Why the stream ended.
        attempt: Number of the attempt since the last answer, from 1.
        remaining_seconds: Time left for the stream.
        random: Returns a random number from 0 to 1.

    Raises:
        AlignserveError: `error` itself, if it is not a broken connection or has occurred too often.
        DeadlineExceededError: The pause would outlast the deadline.
    """
    if not isinstance(error, UnavailableError) or attempt >= policy.max_stream_attempts:
        raise error
    delay = delay_seconds(policy, error, attempt, random)
    if delay >= remaining_seconds:
        raise stream_expired() from error
    log_retry("stream", error, attempt, delay)
    return delay


def end_of_call(cause: grpc.RpcError) -> AlignserveError:
    """Returns the error that ended a call which this client did not cancel.

    A stopping server cancels its unanswered calls without a reason, which is equivalent to a broken
    connection.
    """
    error = error_from_call(cause)
    if isinstance(error, CallCancelledError) and not error.reason:
        error = UnavailableError(
            f"the server cancelled the call, probably because it is stopping: {error.message}",
            grpc.StatusCode.UNAVAILABLE,
        )
    error.__cause__ = cause
    return error


def end_of_stream(cause: grpc.RpcError) -> AlignserveError:
    """Returns the error that ended a stream which this client did not cancel.

    The server gives a reason with each INTERNAL error. Without a reason the connection broke: a proxy has
    reset the streams of a dead server, or grpc.aio lost the server's status while it was sending a message.
    """
    error = end_of_call(cause)
    if isinstance(error, InternalError) and not error.reason:
        return UnavailableError(error.message, grpc.StatusCode.UNAVAILABLE)
    return error


def stream_expired() -> DeadlineExceededError:
    """Returns the error of a stream whose deadline passed while it was waiting."""
    return DeadlineExceededError(
        "the deadline of the stream has passed; allow more time with timeout_seconds",
        grpc.StatusCode.DEADLINE_EXCEEDED,
    )


def delay_seconds(
    policy: RetryPolicy, error: AlignserveError, attempt: int, random: Callable[[], float]
) -> float:
    """Returns the pause after an attempt, numbered from 1: RetryInfo's delay or the backoff, if longer.

    `grpc-retry-pushback-ms` is ignored: it is meant for gRPC's own retries.
    """
    growth = policy.backoff_multiplier ** min(attempt - 1, 64)  # bounded, otherwise the power overflows
    backoff = min(policy.initial_backoff_seconds * growth, policy.max_backoff_seconds)
    return max(backoff, error.retry_delay_seconds or 0.0) * (1 + policy.jitter * random())
