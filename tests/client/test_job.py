"""Lists split into requests and paced by answers, without a client."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import grpc
import numpy as np
import pytest
from alignserve import (
    AlignserveError,
    DeadlineExceededError,
    FieldViolation,
    ImageInput,
    InvalidArgumentError,
    ResourceExhaustedError,
    RetryPolicy,
    UnavailableError,
)
from alignserve._call_defaults import CallDefaults
from alignserve._job import Batch, Job, Options
from alignserve._requests import Limits
from alignserve._split_requests import classify, embed_image
from alignserve._window import Window
from alignserve.v1 import align_service_pb2 as pb

OPTIONS = Options(timeout_seconds=None, total_timeout_seconds=None, on_error="raise", on_progress=None)


@pytest.fixture
def defaults(time: Any) -> CallDefaults:
    return CallDefaults.of(
        timeout_seconds=30.0,
        metadata=(),
        api_key=None,
        priority="interactive",
        retry=None,
        wait_for_ready=False,
        max_in_flight=4,
        clock=time.clock(),
    )


def embedding_job(
    images: Sequence[ImageInput], limits: Limits, defaults: CallDefaults, end: float = math.inf
) -> Job:
    return Job(embed_image(images, normalize=True, dtype="float32"), limits, defaults, OPTIONS, end)


def sizes(job: Job) -> list[int]:
    """Returns the sizes of all requests, each answered before the next is built."""
    found = []
    while (batch := job.next_batch()) is not None:
        found.append(len(batch.entries))
        job.answer(batch, answer(batch))
    return found


def answer(batch: Batch) -> pb.EmbedImageResponse:
    vector = np.ones(2, np.float32).tobytes()
    return pb.EmbedImageResponse(embeddings=[pb.Embedding(packed_float32=vector)] * len(batch.entries))


def under_way(job: Job) -> list[Batch]:
    """Sends as many requests as may be in flight."""
    return list(iter(job.next_batch, None))


def full(delay: float = 0.0, reason: str = "QUEUE_FULL") -> ResourceExhaustedError:
    return ResourceExhaustedError(
        "full", grpc.StatusCode.RESOURCE_EXHAUSTED, reason, retry_delay_seconds=delay
    )


def gone() -> UnavailableError:
    return UnavailableError("gone", grpc.StatusCode.UNAVAILABLE)


def broken() -> InvalidArgumentError:
    violation = FieldViolation("images[0].content", "broken", "IMAGE_UNREADABLE")
    return InvalidArgumentError("broken", grpc.StatusCode.INVALID_ARGUMENT, "IMAGE_UNREADABLE", [violation])


def late() -> DeadlineExceededError:
    return DeadlineExceededError("late", grpc.StatusCode.DEADLINE_EXCEEDED)


@pytest.mark.parametrize(
    ("bytes_of_each", "expected"),
    [
        ([], []),
        ([1], [1]),
        ([1, 1, 1], [3]),
        ([1, 1, 1, 1], [3, 1]),
        ([400, 500, 100], [2, 1]),
        ([400, 700], [1, 1]),
    ],
    ids=["empty", "one", "exactly full", "one over", "bytes full", "bytes over"],
)
def test_requests_hold_at_most_so_many_items_and_bytes(
    defaults: CallDefaults, bytes_of_each: list[int], expected: list[int]
) -> None:
    """Lists are split where the next item would exceed a limit."""
    job = embedding_job([bytes(size) for size in bytes_of_each], Limits(3, 1000), defaults)

    assert sizes(job) == expected


def test_requests_stay_within_the_byte_limit(defaults: CallDefaults) -> None:
    """Requests never exceed the server's limit, including labels."""
    images = [bytes(size) for size in (400, 500, 300, 90, 10)]
    call = classify(images, ["cat"] * 20, prompt_templates=(), top_k=0)

    batches = under_way(Job(call, Limits(64, 1000), defaults, OPTIONS, math.inf))

    assert [batch.positions[0] for batch in batches] == [0, 1, 3]
    assert all(batch.request.ByteSize() <= 1000 for batch in batches)


def test_images_are_read_only_when_their_request_is_wanted(defaults: CallDefaults, tmp_path: Any) -> None:
    """A long list of files is never in memory at once."""
    (tmp_path / "there.jpg").write_bytes(b"x")
    job = embedding_job([tmp_path / "there.jpg"] * 2 + [tmp_path / "nowhere.jpg"], Limits(2), defaults)

    assert job.next_batch() is not None
    with pytest.raises(FileNotFoundError):
        job.next_batch()


@pytest.mark.parametrize(
    ("image", "advice"),
    [
        (bytes(2000), "send a smaller one"),
        (np.random.default_rng(0).integers(0, 256, (40, 40), np.uint8), "too large even as PNG, so give"),
    ],
    ids=["file", "pixels"],
)
def test_an_image_larger_than_a_request_is_named_with_advice(
    defaults: CallDefaults, image: ImageInput, advice: str
) -> None:
    """The message has the size and what to do, which is not obvious for pixels."""
    job = embedding_job([b"x", b"x", image], Limits(2, 1000), defaults)
    job.next_batch()

    with pytest.raises(InvalidArgumentError, match=advice) as caught:
        job.next_batch()

    assert caught.value.reason == "IMAGE_TOO_LARGE"
    assert caught.value.violations[0].field == "images[2].content"


def test_a_refusal_halves_the_items_in_flight(defaults: CallDefaults) -> None:
    """Requests refused together count as one refusal, and their items are sent again."""
    job = embedding_job([b"x"] * 100, Limits(10), defaults)
    refused = under_way(job)
    for batch in refused:
        job.fail(batch, full())

    again = under_way(job)

    assert [len(batch.entries) for batch in refused] == [10] * 4
    assert [len(batch.entries) for batch in again] == [10] * 2
    assert {each for batch in again for each in batch.positions} < set(range(40))


def test_refusals_make_requests_smaller_in_the_end(defaults: CallDefaults) -> None:
    """If a request runs out of time, it is sent again in halves."""
    job = embedding_job([b"x"] * 100, Limits(8), defaults)
    largest = []
    for _ in range(7):
        batches = under_way(job)
        largest.append(max(len(batch.entries) for batch in batches))
        for batch in batches:
            job.fail(batch, full(reason="WOULD_MISS_DEADLINE"))

    assert largest == [8, 8, 8, 4, 2, 1, 1]


def test_a_quota_makes_no_smaller_requests(defaults: CallDefaults) -> None:
    """A quota counts requests, so requests do not become smaller."""
    job = embedding_job([b"x"] * 100, Limits(8), defaults)
    for _ in range(7):
        batches = under_way(job)
        for batch in batches:
            job.fail(batch, full(reason="QUOTA_EXCEEDED"))

    assert [len(batch.entries) for batch in under_way(job)] == [8]


def test_a_broken_connection_makes_nothing_smaller(defaults: CallDefaults) -> None:
    """A broken connection does not mean that the server is full, so requests do not become smaller."""
    job = embedding_job([b"x"] * 100, Limits(8), defaults)
    for batch in under_way(job):
        job.fail(batch, gone())

    assert [len(batch.entries) for batch in under_way(job)] == [8] * 4


def test_answers_allow_more_again() -> None:
    """Each answer widens the window a little, at most to its initial size."""
    window = Window(4, 8)
    rooms = []
    for _ in range(4):
        window.send(8)
    window.narrow()
    for _ in range(4):
        window.end(8)
    for _ in range(60):
        window.send(8)
        window.end(8)
        window.widen(8)
        rooms.append(int(window._size))

    assert rooms[0] < 18
    assert rooms == sorted(rooms)
    assert rooms[-1] == 32


def test_a_pause_is_as_long_as_the_server_asks(defaults: CallDefaults) -> None:
    """The pause is the longest delay of several refusals, or the backoff."""
    job = embedding_job([b"x"] * 100, Limits(10), defaults)
    for batch, delay in zip(under_way(job), (2.0, 7.0, 1.0), strict=False):
        job.fail(batch, full(delay))

    assert job.pause_seconds() == pytest.approx(7.0)


def test_a_job_outlasts_any_number_of_refusals_while_it_gets_on(defaults: CallDefaults, time: Any) -> None:
    """An hour of refusals is not a failure if some requests are answered."""
    job = embedding_job([b"x"] * 100, Limits(10), defaults)

    for number in itertools.count():
        batch = job.next_batch()
        if batch is None:
            break
        time.now += 60
        if number % 9:
            job.fail(batch, full(30.0))
        else:
            job.answer(batch, answer(batch))

    assert job.is_done


def test_an_answer_about_bad_items_is_an_answer(defaults: CallDefaults, time: Any) -> None:
    """A list with only bad items makes progress too, despite refusals."""
    call = embed_image([b"x"] * 20, normalize=True, dtype="float32")
    job = Job(call, Limits(1), defaults, dataclasses.replace(OPTIONS, on_error="return"), math.inf)

    for number in itertools.count():
        batch = job.next_batch()
        if batch is None:
            break
        time.now += 60
        job.fail(batch, full(30.0) if number % 9 else broken())

    assert sorted(job.outcome.errors) == list(range(20))


@pytest.mark.parametrize(
    ("failure", "attempts"), [(full, 10), (gone, 10), (late, 5)], ids=["full", "gone", "silent"]
)
def test_a_job_without_any_answer_ends(
    defaults: CallDefaults, time: Any, failure: Callable[[], AlignserveError], attempts: int
) -> None:
    """A list gives up after the maximum of consecutive attempts, but not before a request's timeout."""
    job = embedding_job([b"x"] * 100, Limits(10), defaults)

    def try_in_vain() -> int:
        for number in itertools.count(1):
            batches = under_way(job)
            time.now += 4
            try:
                for batch in batches:
                    job.fail(batch, failure())
            except AlignserveError:
                return number
        raise AssertionError

    assert try_in_vain() == attempts


def test_refusals_in_quick_succession_do_not_end_a_job(defaults: CallDefaults, time: Any) -> None:
    """Ten refusals within a second do not end a list: a single call would be retried for 30 seconds."""
    job = embedding_job([b"x"] * 100, Limits(10), defaults)

    for _ in range(30):
        time.now += 0.1
        for batch in under_way(job):
            job.fail(batch, full())

    time.now += 30
    with pytest.raises(ResourceExhaustedError):
        job.fail(under_way(job)[0], full())


def test_without_repeats_a_refusal_ends_a_job(defaults: CallDefaults) -> None:
    """A policy with one attempt never waits."""
    once = dataclasses.replace(defaults, retry=RetryPolicy(max_attempts=1))
    job = embedding_job([b"x"] * 100, Limits(10), once)
    batch = under_way(job)[0]

    with pytest.raises(ResourceExhaustedError):
        job.fail(batch, full())
