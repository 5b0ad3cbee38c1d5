"""Runs a job over a blocking channel, with several requests in flight."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import grpc

from alignserve._job import Batch, Job, list_expired
from alignserve._requests import Limits
from alignserve._split_requests import is_about_limits
from alignserve._transport import Transport
from alignserve.errors import AlignserveError

# Ctrl-C does not end a wait if it arrives just before, nor on Windows any wait without a timeout.
_WAKE_SECONDS = 0.2


class JobRun:
    """Sends the requests of a job and records their answers.

    Args:
        transport: Sends the requests.
        method: Of the stub.
        job: The items to process.
        refreshed: Asks for the limits again, since a server with other limits may have replaced it.
    """

    def __init__(
        self,
        transport: Transport,
        method: grpc.UnaryUnaryMultiCallable[Any, Any],  # Any: all kinds of request are handled alike
        job: Job,
        refreshed: Callable[[], Limits],
    ) -> None:
        self._transport = transport
        self._clock = transport.defaults.clock
        self._method = method
        self._job = job
        self._refreshed = refreshed
        self._in_flight: dict[grpc.Future[Any], Batch] = {}
        self._changed = threading.Event()  # a request has ended; set by gRPC's thread

    def run(self) -> None:
        """Returns once every item has its result or error.

        Raises:
            AlignserveError: The job ended early, and errors are not returned.
            BaseException: Raised while reading an item, or by `on_progress`.
        """
        with self._job.completing():
            try:
                self._work()
            except AlignserveError as error:
                self._job.give_up(self._transport.explained(error))
            self._job.report()

    def _work(self) -> None:
        try:
            self._start()
            while not self._job.is_done:
                self._send_what_may_go()
                self._wait()
                self._settle()
                self._job.report()
        finally:
            for future in self._in_flight:
                future.cancel()

    def _start(self) -> None:
        batch = self._job.next_batch()
        if batch is None:
            return
        if not self._job.is_whole(batch) or self._job.returns_errors:
            self._send(batch)
            return
        try:  # directly: a future would double the cost
            response = self._transport.call(self._method, batch.request, self._job.deadline())
        except AlignserveError as error:
            if not self._is_resized(batch, error):
                raise self._job.for_caller(batch, error) from error.__cause__
        else:
            self._job.answer(batch, response)

    def _send_what_may_go(self) -> None:
        while not self._job.pause_seconds():
            batch = self._job.next_batch()
            if batch is None:
                return
            self._send(batch)

    def _send(self, batch: Batch) -> None:
        future = self._transport.start(self._method, batch.request, self._job.deadline())
        self._in_flight[future] = batch
        future.add_done_callback(lambda _: self._changed.set())

    def _wait(self) -> None:
        pause = self._job.pause_seconds()
        if pause and self._in_flight and self._job.resumes:
            self._clock.wait(self._changed, pause)
        elif self._in_flight:
            while not self._changed.wait(_WAKE_SECONDS):
                pass
        elif pause and self._job.resumes:
            self._transport.pause(pause)
        elif pause:
            raise list_expired()
        self._changed.clear()  # before checking, so that no request is missed

    def _settle(self) -> None:
        failed: list[tuple[Batch, AlignserveError]] = []
        for future in [future for future in self._in_flight if future.done()]:
            batch = self._in_flight.pop(future)
            try:
                response = self._transport.outcome(future.result)
            except AlignserveError as error:
                failed.append((batch, error))
            else:
                self._job.answer(batch, response)
        for batch, failure in failed:  # after the answers, which count even if a failure ends the job
            if not self._is_resized(batch, failure):
                self._job.fail(batch, failure)

    def _is_resized(self, batch: Batch, error: AlignserveError) -> bool:
        """Returns whether the items are sent again because the server's limits have changed."""
        if not is_about_limits(error):
            return False
        limits = self._refreshed()
        if limits == batch.limits:
            return False
        self._job.resize(batch, limits)
        return True
