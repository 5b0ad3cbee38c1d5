"""Calls are retried as the policy says."""

from __future__ import annotations

import grpc
import pytest
from alignserve import (
    AlignserveError,
    DeadlineExceededError,
    ResourceExhaustedError,
    RetryPolicy,
    UnavailableError,
)
from alignserve._retry import Repeats, end_of_call, reconnect_delay_seconds

POLICY = RetryPolicy(max_attempts=3, max_stream_attempts=4, jitter=0.5)


def full(delay: float | None) -> ResourceExhaustedError:
    return ResourceExhaustedError(
        "full", grpc.StatusCode.RESOURCE_EXHAUSTED, "QUEUE_FULL", retry_delay_seconds=delay
    )


def gone(delay: float | None = None) -> UnavailableError:
    return UnavailableError("gone", grpc.StatusCode.UNAVAILABLE, retry_delay_seconds=delay)


def stopping() -> UnavailableError:
    return UnavailableError("stopping", grpc.StatusCode.UNAVAILABLE, "SHUTTING_DOWN", retry_delay_seconds=0.1)


def delays(
    error: AlignserveError,
    count: int,
    *,
    remaining: float = 30.0,
    policy: RetryPolicy = POLICY,
    jitter: float = 0.0,
) -> list[float | None]:
    """Returns the pauses after `count` attempts that all failed with the error."""
    repeats = Repeats(policy, lambda: jitter)
    return [repeats.delay_seconds(error, remaining) for _ in range(count)]


@pytest.mark.parametrize(
    ("error", "attempt", "remaining", "delay"),
    [
        (full(2.0), 1, 30.0, 3.0),
        (full(2.0), 100, 30.0, 7.5),
        (full(0.0), 1, 30.0, 0.15),
        (full(0.05), 3, 30.0, 0.6),
        (full(2.0), 1, 3.0, None),
        (full(None), 1, 30.0, None),
        (gone(2.0), 1, 30.0, 3.0),
        (gone(), 2, 30.0, 0.3),
    ],
    ids=[
        "as the server asks",
        "as often as the deadline allows",
        "never at once",
        "longer each time",
        "outlasts the deadline",
        "no delay sent",
        "unavailable, as the server asks",
        "unavailable, longer each time",
    ],
)
def test_a_refused_call_waits_as_the_server_asks_or_longer(
    error: AlignserveError, attempt: int, remaining: float, delay: float | None
) -> None:
    """The pause is the server's delay or the backoff, whichever is longer, plus jitter."""
    last = delays(error, attempt, remaining=remaining, jitter=1.0)[-1]

    assert last == (pytest.approx(delay) if delay else None)


def test_unavailable_is_repeated_up_to_the_number_of_attempts() -> None:
    """A policy with three attempts has two pauses, whatever the limit of gRPC's own retries."""
    assert delays(gone(), 3) == [0.1, 0.2, None]
    assert delays(gone(), 8, policy=RetryPolicy(max_attempts=8))[-2:] == [5.0, None]


def test_a_stopping_server_is_asked_as_long_as_the_deadline_allows() -> None:
    """A stopping server's refusals do not count as attempts: other servers may be available."""
    assert None not in delays(stopping(), 50)


def test_refusals_use_up_no_attempts() -> None:
    """Waiting for a full server does not use up the attempts for UNAVAILABLE."""
    repeats = Repeats(POLICY, lambda: 0.0)
    for _ in range(10):
        repeats.delay_seconds(full(0.1), 30.0)

    pauses = [repeats.delay_seconds(gone(), 30.0) for _ in range(3)]

    assert [pause is None for pause in pauses] == [False, False, True]


def test_a_deadline_that_is_too_close_is_not_tried_again() -> None:
    """WOULD_MISS_DEADLINE is not retried: a pause would make the answer even later."""
    error = ResourceExhaustedError(
        "late", grpc.StatusCode.RESOURCE_EXHAUSTED, "WOULD_MISS_DEADLINE", retry_delay_seconds=0.1
    )

    assert delays(error, 1) == [None]


@pytest.mark.parametrize("error", [full(0.1), gone(), stopping()], ids=["full", "gone", "stopping"])
def test_one_attempt_means_that_a_refusal_is_final(error: AlignserveError) -> None:
    """With retries off, nothing is retried, even if the server gives a delay."""
    assert delays(error, 1, policy=RetryPolicy(max_attempts=1)) == [None]


def test_a_cancel_of_the_server_is_a_broken_connection() -> None:
    """A cancellation without a reason comes from a stopping server, not from the caller."""
    cause = grpc.aio.AioRpcError(grpc.StatusCode.CANCELLED, grpc.aio.Metadata(), grpc.aio.Metadata())

    error = end_of_call(cause)

    assert type(error) is UnavailableError
    assert error.code is grpc.StatusCode.UNAVAILABLE
    assert "the server cancelled the call" in error.message


@pytest.mark.parametrize(
    ("error", "attempt", "delay"),
    [(gone(), 1, 0.1), (gone(), 3, 0.4), (gone(9.0), 1, 9.0)],
    ids=["first", "grows", "server asks for longer"],
)
def test_a_broken_stream_backs_off(error: UnavailableError, attempt: int, delay: float) -> None:
    """Pauses grow, and are at least the server's delay."""
    assert reconnect_delay_seconds(POLICY, error, attempt, 30.0, lambda: 0.0) == pytest.approx(delay)


@pytest.mark.parametrize(
    ("error", "attempt"), [(gone(), 4), (full(1.0), 1)], ids=["attempts used up", "not a break"]
)
def test_a_stream_that_cannot_be_opened_again_raises_why(error: AlignserveError, attempt: int) -> None:
    """After the allowed attempts, or for another kind of error, the stream raises the error."""
    with pytest.raises(type(error)) as caught:
        reconnect_delay_seconds(POLICY, error, attempt, 30.0, lambda: 0.0)

    assert caught.value is error


def test_a_stream_does_not_wait_beyond_its_deadline() -> None:
    """If the pause would outlast the deadline, DeadlineExceededError is raised at once."""
    with pytest.raises(DeadlineExceededError) as caught:
        reconnect_delay_seconds(POLICY, gone(9.0), 1, 8.0, lambda: 0.0)

    assert isinstance(caught.value.__cause__, UnavailableError)


def test_backoff_stays_within_its_bound() -> None:
    """After any number of attempts, the pause is at most `max_backoff_seconds`, plus jitter."""
    policy = RetryPolicy(max_stream_attempts=10_000)

    assert reconnect_delay_seconds(policy, gone(), 5_000, 30.0, lambda: 0.0) == policy.max_backoff_seconds


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_attempts": 0},
        {"initial_backoff_seconds": 0.0},
        {"backoff_multiplier": 0.5},
        {"initial_backoff_seconds": 9.0},
        {"jitter": -1.0},
    ],
)
def test_impossible_policies_are_refused(wrong: dict[str, float]) -> None:
    """An invalid policy is refused when it is created."""
    with pytest.raises(ValueError, match=r"attempts|backoff|jitter"):
        RetryPolicy(**wrong)  # type: ignore[arg-type]
