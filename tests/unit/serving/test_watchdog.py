"""When a pool of threads counts as stuck."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import Future

import pytest
from alignserve_server.serving.watchdog import PreprocessPool, StallPolicy


class Job:
    """A job that runs until it is told to end."""

    def __init__(self) -> None:
        self.started = threading.Event()
        self.may_end = threading.Event()

    def run(self) -> str:
        """Returns its result once it may end."""
        self.started.set()
        self.may_end.wait()
        return "done"


@pytest.fixture
def jobs() -> Iterator[list[Job]]:
    """Two jobs, which end with the test at the latest."""
    jobs = [Job(), Job()]
    yield jobs
    for job in jobs:
        job.may_end.set()


def start(pool: PreprocessPool, job: Job) -> Future[str]:
    """Submits a job and waits until it runs."""
    future = pool.submit(job.run)
    job.started.wait()
    return future


def test_a_pool_whose_threads_all_run_the_same_jobs_is_stuck(jobs: list[Job]) -> None:
    """The time counts from when the last of them began."""
    with PreprocessPool(2) as pool:
        for job in jobs:
            start(pool, job)

        stuck_seconds = pool.stuck_seconds()
        for job in jobs:
            job.may_end.set()

    assert stuck_seconds > 0


def test_one_slow_job_is_not_stuck(jobs: list[Job]) -> None:
    """The caller chose the input, and others get past it on the next thread."""
    with PreprocessPool(2) as pool:
        start(pool, jobs[0])

        stuck_seconds = pool.stuck_seconds()
        jobs[0].may_end.set()

    assert stuck_seconds == 0


def test_a_pool_is_free_again_when_a_job_ends(jobs: list[Job]) -> None:
    """And the job's result is the future's."""
    with PreprocessPool(1) as pool:
        future = start(pool, jobs[0])
        jobs[0].may_end.set()

        result = future.result()

    assert result == "done"
    assert pool.stuck_seconds() == 0


@pytest.mark.parametrize(("timeout", "interval"), [(0.5, 0.05), (10.0, 1.0), (60.0, 1.0)])
def test_checks_follow_the_timeout(timeout: float, interval: float) -> None:
    """Ten of them per timeout, and at least one a second."""
    assert StallPolicy(timeout, exit_seconds=0.0).interval_seconds == pytest.approx(interval)
