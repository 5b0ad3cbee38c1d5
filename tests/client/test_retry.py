"""When calls are repeated."""

from __future__ import annotations

import json

import grpc
import pytest
from alignserve import ResourceExhaustedError, RetryPolicy, UnavailableError
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
        (full(2.0), 2, 30.0, 3.0),
        (full(2.0), 3, 30.0, None),
        (full(2.0), 1, 3.0, None),
        (full(None), 1, 30.0, None),
        (gone(2.0), 1, 30.0, None),
    ],
    ids=["first", "last but one", "attempts used up", "outlasts the deadline", "no delay sent", "gRPC's own"],
)
def test_a_refused_call_waits_as_the_server_asks(
    error: ResourceExhaustedError, attempt: int, remaining: float, delay: float | None
) -> None:
    """The delay is the server's, with jitter on top, within attempts and deadline."""
    assert refusal_delay_seconds(POLICY, error, attempt, remaining, lambda: 1.0) == delay


@pytest.mark.parametrize(
    ("error", "attempt", "delay"),
    [
        (gone(), 1, 0.1),
        (gone(), 3, 0.4),
        (gone(), 4, None),
        (gone(9.0), 1, 9.0),
        (full(1.0), 1, None),
    ],
    ids=["first", "grows", "attempts used up", "server asks for longer", "not a break"],
)
def test_a_broken_stream_backs_off(error: UnavailableError, attempt: int, delay: float | None) -> None:
    """Pauses grow, respect the server's wish, and end after the allowed attempts."""
    assert reconnect_delay_seconds(POLICY, error, attempt, lambda: 0.0) == (
        pytest.approx(delay) if delay else None
    )


def test_backoff_stays_within_its_bound() -> None:
    """However often a stream was tried, the pause is at most `max_backoff_seconds`, jitter aside."""
    policy = RetryPolicy(max_stream_attempts=10_000)

    assert reconnect_delay_seconds(policy, gone(), 5_000, lambda: 0.0) == policy.max_backoff_seconds


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
