"""Counts the outcomes of the requests that belong to a measurement."""

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
    """The number of failures with the same code and reason, and one of their messages."""

    example: Failure
    count: int = 0


@dataclass(frozen=True, slots=True)
class Measurement:
    """The results of one measurement.

    Attributes:
        load: The load.
        seconds: Duration of the measurement.
        requests: Requests that were due during the measurement and have ended.
        succeeded: Number of these that were answered.
        unfinished: Requests that were in flight when an interruption ended the measurement.
        failures: Requests that failed, by code and reason.
        requests_per_second: Answers received during the measurement, per second.
        items_per_second: Images and texts in these answers, per second.
        latency: Time to the answer of successful requests; in an open loop, from when they were due.
        send_delay: How late requests were sent after they were due.
        client_cores: Processor cores that this process kept busy.
        was_interrupted: Whether the measurement ended early.
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
    """Counts the requests that are due from `begin` to `end`, and the answers received in that time.

    The two differ: a request that is due just before the end counts with its whole latency, although its
    answer comes later; for the throughput, only answers within the time count.
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
        """Counts a request that is sent."""
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
        """Returns the results up to `end`."""
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
