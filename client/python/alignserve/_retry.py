"""When to try again, and after how long."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import grpc

from alignserve.errors import (
    AlignserveError,
    DeadlineExceededError,
    InternalError,
    ResourceExhaustedError,
    UnavailableError,
    error_from_call,
)

_TOO_LATE = "WOULD_MISS_DEADLINE"
_MOST_ATTEMPTS_OF_GRPC = 5  # more in a service config are cut to this


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """How a client tries again.

    A unary call that meets UNAVAILABLE is repeated after a growing backoff, a few times. One that a full
    server refuses, with RESOURCE_EXHAUSTED and a delay, is repeated after that delay or the backoff,
    whichever is longer, for as long as its deadline allows. A stream that breaks reconnects and sends what
    is unanswered.

    Attributes:
        max_attempts: Tries of a unary call that meets UNAVAILABLE, the first one included; gRPC makes at most
            5. 1 repeats no unary call, whatever it meets.
        max_stream_attempts: Tries of a stream in a row without any answer.
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


def service_config_policy(policy: RetryPolicy) -> dict[str, object] | None:
    """Returns gRPC's own retry policy for UNAVAILABLE, or `None` if there are no retries."""
    if policy.max_attempts == 1:
        return None
    return {
        "maxAttempts": min(policy.max_attempts, _MOST_ATTEMPTS_OF_GRPC),
        "initialBackoff": f"{policy.initial_backoff_seconds:.3f}s",
        "maxBackoff": f"{policy.max_backoff_seconds:.3f}s",
        "backoffMultiplier": policy.backoff_multiplier,
        "retryableStatusCodes": ["UNAVAILABLE"],
    }


def refusal_delay_seconds(
    policy: RetryPolicy,
    error: AlignserveError,
    attempt: int,
    remaining_seconds: float,
    random: Callable[[], float],
) -> float | None:
    """Returns how long to wait before a refused unary call is sent again, or `None` if it is not.

    Only RESOURCE_EXHAUSTED is decided here, and only if the server says when to return: UNAVAILABLE is
    retried by gRPC itself. A pause that outlasts the deadline is not begun, and where the server finds the
    deadline too close, waiting brings it closer.

    Args:
        policy: Whether at all, and how long between.
        error: What the last attempt met.
        attempt: Its number, from 1.
        remaining_seconds: Time left for the call.
        random: Draws from 0 to 1.
    """
    is_refusal = isinstance(error, ResourceExhaustedError) and error.retry_delay_seconds is not None
    if not is_refusal or error.reason == _TOO_LATE or policy.max_attempts == 1:
        return None
    delay = _delay_seconds(policy, error, attempt, random)
    return delay if delay < remaining_seconds else None


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
    delay = _delay_seconds(policy, error, attempt, random)
    if delay >= remaining_seconds:
        raise stream_expired() from error
    return delay


def end_of_stream(cause: grpc.RpcError) -> AlignserveError:
    """Returns the error that ended a stream.

    The server gives a reason for each INTERNAL. One without is a broken connection: a proxy resets the
    streams of a server that died, or grpc.aio has forgotten the server's status over a message that it was
    sending.
    """
    error = error_from_call(cause)
    if isinstance(error, InternalError) and not error.reason:
        return UnavailableError(error.message, grpc.StatusCode.UNAVAILABLE)
    return error


def stream_expired() -> DeadlineExceededError:
    """Returns the error of a stream whose deadline comes while it waits."""
    return DeadlineExceededError(
        "the time given for the stream is over; allow more by timeout_seconds",
        grpc.StatusCode.DEADLINE_EXCEEDED,
    )


def _delay_seconds(
    policy: RetryPolicy, error: AlignserveError, attempt: int, random: Callable[[], float]
) -> float:
    growth = policy.backoff_multiplier ** min(attempt - 1, 64)  # bounded, or the power overflows
    backoff = min(policy.initial_backoff_seconds * growth, policy.max_backoff_seconds)
    return max(backoff, error.retry_delay_seconds or 0.0) * (1 + policy.jitter * random())
