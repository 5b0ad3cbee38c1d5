"""When a thread pool counts as stuck."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import Future

import pytest
from alignserve_server.batching.preprocess_pool import PreprocessPool


class Job:
    """A job that runs until the test lets it end."""

    def __init__(self) -> None:
        self.started = threading.Event()
        self.may_end = threading.Event()

    def run(self) -> str:
        """Waits until it may end, then returns its result."""
        self.started.set()
        self.may_end.wait()
        return "done"


@pytest.fixture
def jobs() -> Iterator[list[Job]]:
    """Two jobs, which end when the test ends."""
    jobs = [Job(), Job()]
    yield jobs
    for job in jobs:
        job.may_end.set()


def start(pool: PreprocessPool, job: Job) -> Future[str]:
    """Submits a job and waits until it runs."""
    future = pool.submit(job.run)
    job.started.wait()
    return future


def test_a_pool_is_stuck_while_no_thread_changes_jobs(jobs: list[Job]) -> None:
    """The time counts from the start of the latest job."""
    with PreprocessPool(2) as pool:
        for job in jobs:
            start(pool, job)

        stuck_seconds = pool.stuck_seconds()
        for job in jobs:
            job.may_end.set()

    assert stuck_seconds > 0


def test_one_slow_job_does_not_make_the_pool_stuck(jobs: list[Job]) -> None:
    """The caller chose the slow input, and other jobs run on the next thread."""
    with PreprocessPool(2) as pool:
        start(pool, jobs[0])

        stuck_seconds = pool.stuck_seconds()
        jobs[0].may_end.set()

    assert stuck_seconds == 0


def test_a_pool_is_free_again_when_a_job_ends(jobs: list[Job]) -> None:
    """The future has the job's result."""
    with PreprocessPool(1) as pool:
        future = start(pool, jobs[0])
        jobs[0].may_end.set()

        result = future.result()

    assert result == "done"
    assert pool.stuck_seconds() == 0
