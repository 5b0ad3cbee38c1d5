"""Counts what becomes of requests, and which of them count."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from alignserve._bench.histogram import Histogram
from alignserve._bench.load import Load


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a request failed.

    Attributes:
        code: Name of the gRPC status code.
        reason: Stable name of the cause, such as `QUEUE_FULL`; may be empty.
        message: For people.
    """

    code: str
    reason: str
    message: str


@dataclass(slots=True)
class FailureCount:
    """Failures of one code and reason, and one of their messages."""

    example: Failure
    count: int = 0


@dataclass(frozen=True, slots=True)
class Measurement:
    """What came out.

    Attributes:
        load: Under which load.
        seconds: How long was measured.
        requests: Requests that were due within the time measured and have ended.
        succeeded: Those of them that were answered.
        unfinished: Those that were due and under way when an interruption ended the measurement.
        failures: Those that failed, by code and reason.
        requests_per_second: Answers that came within the time measured, by that time.
        items_per_second: Images and texts in them.
        latency: Time to the answer, of those that succeeded; in an open loop from the time they were due.
        send_delay: How late requests left after they were due.
        client_cores: Processor cores that this process kept busy.
        was_interrupted: Whether it ended before its time.
    """

    load: Load
    seconds: float
    requests: int
    succeeded: int
    unfinished: int
    failures: Mapping[tuple[str, str], FailureCount]
    requests_per_second: float
    items_per_second: float
    latency: Histogram
    send_delay: Histogram
    client_cores: float
    was_interrupted: bool

    @property
    def failed(self) -> int:
        """Returns how many requests failed."""
        return self.requests - self.succeeded


@dataclass(slots=True)
class Recorder:
    """Counts the requests that are due from `begin` to `end`, and the answers that come in that time.

    The two differ: a request that is due just before the end counts with its whole latency, although its
    answer comes later; a rate is what happens within a time.
    """

    begin: float
    end: float
    started: int = 0
    succeeded: int = 0
    failed: int = 0
    answers: int = 0
    answered_items: int = 0
    failures: dict[tuple[str, str], FailureCount] = field(default_factory=dict)
    latency: Histogram = field(default_factory=Histogram)
    send_delay: Histogram = field(default_factory=Histogram)

    def start(self, due: float, now: float) -> None:
        """Counts a request that leaves."""
        if self._counts(due):
            self.started += 1
            self.send_delay.record(now - due)

    def succeed(self, due: float, now: float, items: int) -> None:
        """Counts an answer."""
        if self._counts(now):
            self.answers += 1
            self.answered_items += items
        if self._counts(due):
            self.succeeded += 1
            self.latency.record(now - due)

    def fail(self, due: float, failure: Failure) -> None:
        """Counts a failure."""
        if self._counts(due):
            self.failed += 1
            key = failure.code, failure.reason
            self.failures.setdefault(key, FailureCount(failure)).count += 1

    def measurement(
        self, load: Load, end: float, *, client_cores: float, was_interrupted: bool
    ) -> Measurement:
        """Returns what has been measured up to `end`."""
        seconds = max(min(end, self.end) - self.begin, 0.0)
        return Measurement(
            load=load,
            seconds=seconds,
            requests=self.succeeded + self.failed,
            succeeded=self.succeeded,
            unfinished=self.started - self.succeeded - self.failed,
            failures=self.failures,
            requests_per_second=self.answers / seconds if seconds else 0.0,
            items_per_second=self.answered_items / seconds if seconds else 0.0,
            latency=self.latency,
            send_delay=self.send_delay,
            client_cores=client_cores,
            was_interrupted=was_interrupted,
        )

    def _counts(self, moment: float) -> bool:
        return self.begin <= moment < self.end
