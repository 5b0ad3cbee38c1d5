"""When to try again, and after how long."""

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

_log = logging.getLogger("alignserve")  # by the name of the package, which users know

_TOO_LATE = "WOULD_MISS_DEADLINE"
_STOPPING = "SHUTTING_DOWN"


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """How a client tries again.

    A unary call that meets UNAVAILABLE is repeated after a growing backoff, a few times. One that a full or
    stopping server refuses is repeated after the delay that the server names or the backoff, whichever is
    longer, for as long as its deadline allows. A stream that breaks reconnects and sends what is unanswered,
    and a list of several requests sends again what is unanswered, also after a refusal.

    Attributes:
        max_attempts: Tries of a unary call that meets UNAVAILABLE, the first one included; of a list of
            several requests, tries in a row whose time runs out. 1 repeats no call, whatever it meets.
        max_stream_attempts: Tries of a stream, or of a list of several requests, in a row without any answer.
        initial_backoff_seconds: Pause before the first retry.
        max_backoff_seconds: Longest pause, unless the server asks for a longer one.
        backoff_multiplier: Growth of the pause from one retry to the next.
        jitter: Share of the pause that is added at random, at most, so that callers do not return together.
    """

    max_attempts: int = 5
    max_stream_attempts: int = 10
    initial_backoff_seconds: float = 0.1
    max_backoff_seconds: float = 5.0
    backoff_multiplier: float = 2.0
    jitter: float = 0.25

    def __post_init__(self) -> None:
        if self.max_attempts < 1 or self.max_stream_attempts < 1:
            raise ValueError("max_attempts and max_stream_attempts are at least 1")
        if not 0 < self.initial_backoff_seconds <= self.max_backoff_seconds or self.backoff_multiplier < 1:
            raise ValueError("backoff starts above 0, grows, and stays up to max_backoff_seconds")
        if self.jitter < 0:
            raise ValueError("jitter is not negative")


@dataclass(slots=True)
class Repeats:
    """Decides when one request is sent again; it counts the attempts.

    Args:
        policy: Whether at all, and how long between.
        random: Draws from 0 to 1.
    """

    policy: RetryPolicy
    random: Callable[[], float]
    _attempts: int = 0
    _breaks: int = 0

    def delay_seconds(self, error: AlignserveError, remaining_seconds: float) -> float | None:
        """Returns how long to wait before the next attempt, or `None` if there is none.

        A refusal that ends by itself, of a server that is full or stopping, is bounded by the deadline alone;
        other UNAVAILABLE by the number of attempts. A pause that outlasts the deadline is not begun, and
        where the server finds the deadline too close, waiting brings it closer.

        Args:
            error: What the last attempt met.
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
    """Logs that something is sent again, and why: at INFO, since it mostly ends well."""
    _log.info("%s: attempt %d failed, next in %.2f s: %s", what, attempt, delay_seconds, error)


def is_refusal(error: AlignserveError) -> bool:
    """Returns whether a full server refused the request and says when to return."""
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
        policy: How often, and how long between.
        error: What ended the stream.
        attempt: Its number since the last answer, from 1.
        remaining_seconds: Time left for the stream.
        random: Draws from 0 to 1.

    Raises:
        AlignserveError: `error` itself, if it is no break or was met too often.
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

    A server that stops cancels the calls that it has not answered, and gives no reason: the connection is as
    good as broken.
    """
    error = error_from_call(cause)
    if isinstance(error, CallCancelledError) and not error.reason:
        error = UnavailableError(
            f"the server cancelled the call, as one that stops does: {error.message}",
            grpc.StatusCode.UNAVAILABLE,
        )
    error.__cause__ = cause
    return error


def end_of_stream(cause: grpc.RpcError) -> AlignserveError:
    """Returns the error that ended a stream which this client did not cancel.

    The server gives a reason for each INTERNAL. One without is a broken connection: a proxy resets the
    streams of a server that died, or grpc.aio has forgotten the server's status over a message that it was
    sending.
    """
    error = end_of_call(cause)
    if isinstance(error, InternalError) and not error.reason:
        return UnavailableError(error.message, grpc.StatusCode.UNAVAILABLE)
    return error


def stream_expired() -> DeadlineExceededError:
    """Returns the error of a stream whose deadline comes while it waits."""
    return DeadlineExceededError(
        "the time given for the stream is over; allow more by timeout_seconds",
        grpc.StatusCode.DEADLINE_EXCEEDED,
    )


def delay_seconds(
    policy: RetryPolicy, error: AlignserveError, attempt: int, random: Callable[[], float]
) -> float:
    """Returns the pause after an attempt, numbered from 1: RetryInfo's or the backoff, the longer of the two.

    `grpc-retry-pushback-ms` is not looked at: it says what gRPC's own retries shall do.
    """
    growth = policy.backoff_multiplier ** min(attempt - 1, 64)  # bounded, or the power overflows
    backoff = min(policy.initial_backoff_seconds * growth, policy.max_backoff_seconds)
    return max(backoff, error.retry_delay_seconds or 0.0) * (1 + policy.jitter * random())
