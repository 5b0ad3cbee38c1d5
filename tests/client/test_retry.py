"""When calls are repeated."""

from __future__ import annotations

import json

import grpc
import pytest
from alignserve import (
    AlignserveError,
    DeadlineExceededError,
    ResourceExhaustedError,
    RetryPolicy,
    UnavailableError,
)
from alignserve._channel import channel_options
from alignserve._retry import reconnect_delay_seconds, refusal_delay_seconds

POLICY = RetryPolicy(max_attempts=3, max_stream_attempts=4, jitter=0.5)


def full(delay: float | None) -> ResourceExhaustedError:
    return ResourceExhaustedError(
        "full", grpc.StatusCode.RESOURCE_EXHAUSTED, "QUEUE_FULL", retry_delay_seconds=delay
    )


def gone(delay: float | None = None) -> UnavailableError:
    return UnavailableError("gone", grpc.StatusCode.UNAVAILABLE, retry_delay_seconds=delay)


@pytest.mark.parametrize(
    ("error", "attempt", "remaining", "delay"),
    [
        (full(2.0), 1, 30.0, 3.0),
        (full(2.0), 100, 30.0, 7.5),
        (full(0.0), 1, 30.0, 0.15),
        (full(0.05), 3, 30.0, 0.6),
        (full(2.0), 1, 3.0, None),
        (full(None), 1, 30.0, None),
        (gone(2.0), 1, 30.0, None),
    ],
    ids=[
        "as the server asks",
        "as often as the deadline allows",
        "never at once",
        "longer each time",
        "outlasts the deadline",
        "no delay sent",
        "gRPC's own",
    ],
)
def test_a_refused_call_waits_as_the_server_asks_or_longer(
    error: ResourceExhaustedError, attempt: int, remaining: float, delay: float | None
) -> None:
    """The pause is the longer one of the server's and the backoff, with jitter on top."""
    assert refusal_delay_seconds(POLICY, error, attempt, remaining, lambda: 1.0) == (
        pytest.approx(delay) if delay else None
    )


def test_a_deadline_that_is_too_close_is_not_tried_again() -> None:
    """The server says that an answer would come too late; after a pause it would come later still."""
    error = ResourceExhaustedError(
        "late", grpc.StatusCode.RESOURCE_EXHAUSTED, "WOULD_MISS_DEADLINE", retry_delay_seconds=0.1
    )

    assert refusal_delay_seconds(POLICY, error, 1, 30.0, lambda: 0.0) is None


def test_one_attempt_means_that_a_refusal_is_final() -> None:
    """Who turns repeats off gets none, also from a server that says when to come back."""
    policy = RetryPolicy(max_attempts=1)

    assert refusal_delay_seconds(policy, full(0.1), 1, 30.0, lambda: 0.0) is None


@pytest.mark.parametrize(
    ("error", "attempt", "delay"),
    [(gone(), 1, 0.1), (gone(), 3, 0.4), (gone(9.0), 1, 9.0)],
    ids=["first", "grows", "server asks for longer"],
)
def test_a_broken_stream_backs_off(error: UnavailableError, attempt: int, delay: float) -> None:
    """Pauses grow, and respect the server's wish."""
    assert reconnect_delay_seconds(POLICY, error, attempt, 30.0, lambda: 0.0) == pytest.approx(delay)


@pytest.mark.parametrize(
    ("error", "attempt"), [(gone(), 4), (full(1.0), 1)], ids=["attempts used up", "not a break"]
)
def test_a_stream_that_cannot_be_opened_again_raises_why(error: AlignserveError, attempt: int) -> None:
    """After the allowed attempts, or for what is no break, the error is the stream's."""
    with pytest.raises(type(error)) as caught:
        reconnect_delay_seconds(POLICY, error, attempt, 30.0, lambda: 0.0)

    assert caught.value is error


def test_a_stream_does_not_wait_beyond_its_deadline() -> None:
    """A pause that would outlast it is the deadline's error at once, caused by the break."""
    with pytest.raises(DeadlineExceededError) as caught:
        reconnect_delay_seconds(POLICY, gone(9.0), 1, 8.0, lambda: 0.0)

    assert isinstance(caught.value.__cause__, UnavailableError)


def test_backoff_stays_within_its_bound() -> None:
    """However often a stream was tried, the pause is at most `max_backoff_seconds`, jitter aside."""
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
    """A policy that could not be followed is an error where it is made."""
    with pytest.raises(ValueError, match=r"attempts|backoff|jitter"):
        RetryPolicy(**wrong)  # type: ignore[arg-type]


def test_grpc_retries_unary_calls_that_meet_unavailable() -> None:
    """The service config names UNAVAILABLE, every unary method, and no stream."""
    config = json.loads(dict(channel_options(POLICY, ()))["grpc.service_config"])

    method_config = config["methodConfig"][0]
    assert method_config["retryPolicy"]["retryableStatusCodes"] == ["UNAVAILABLE"]
    assert method_config["retryPolicy"]["maxAttempts"] == 3
    assert {name["method"] for name in method_config["name"]} == {
        "EmbedImage",
        "EmbedText",
        "Classify",
        "GetModelInfo",
    }


def test_one_attempt_means_no_retries() -> None:
    """A policy of one attempt leaves gRPC's own retries out."""
    config = json.loads(dict(channel_options(RetryPolicy(max_attempts=1), ()))["grpc.service_config"])

    assert "methodConfig" not in config
