"""Runs a job over an asyncio channel, with several requests in flight."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import grpc

from alignserve._job import Batch, Job, list_expired
from alignserve._requests import Limits
from alignserve._split_requests import is_about_limits
from alignserve._transport_async import AsyncTransport
from alignserve.errors import AlignserveError


class AsyncJobRun:
    """Sends the requests of a job and records their answers.

    Args:
        transport: Sends the requests.
        method: Of the stub.
        job: The items to process.
        refreshed: Asks for the limits again, since a server with other limits may have replaced it.
        reads_files: Build requests in a worker thread, because that reads files.
    """

    def __init__(
        self,
        transport: AsyncTransport,
        method: grpc.aio.UnaryUnaryMultiCallable[Any, Any],  # Any: all kinds of request are handled alike
        job: Job,
        refreshed: Callable[[], Awaitable[Limits]],
        *,
        reads_files: bool,
    ) -> None:
        self._transport = transport
        self._clock = transport.defaults.clock
        self._method = method
        self._job = job
        self._refreshed = refreshed
        self._reads_files = reads_files
        self._in_flight: dict[asyncio.Task[Any], Batch] = {}
        self._changed = asyncio.Event()  # a request has ended

    async def run(self) -> None:
        """Returns once every item has its result or error.

        Raises:
            AlignserveError: The job ended early, and errors are not returned.
            BaseException: Raised while reading an item, or by `on_progress`.
        """
        with self._job.completing():
            try:
                await self._work()
            except AlignserveError as error:
                self._job.give_up(await self._transport.explained(error))
            self._job.report()

    async def _work(self) -> None:
        try:
            await self._start()
            while not self._job.is_done:
                await self._send_what_may_go()
                await self._wait()
                await self._settle()
                self._job.report()
        finally:
            for task in self._in_flight:
                task.cancel()
            await asyncio.gather(*self._in_flight, return_exceptions=True)

    async def _start(self) -> None:
        batch = await self._next_batch()
        if batch is None:
            return
        if not self._job.is_whole(batch) or self._job.returns_errors:
            self._send(batch)
            return
        try:
            response = await self._transport.call(self._method, batch.request, self._job.deadline())
        except AlignserveError as error:
            if not await self._is_resized(batch, error):
                raise self._job.for_caller(batch, error) from error.__cause__
        else:
            self._job.answer(batch, response)

    async def _next_batch(self) -> Batch | None:
        if self._reads_files:
            return await asyncio.to_thread(self._job.next_batch)
        return self._job.next_batch()

    async def _send_what_may_go(self) -> None:
        while not self._job.pause_seconds():
            batch = await self._next_batch()
            if batch is None:
                return
            self._send(batch)

    def _send(self, batch: Batch) -> None:
        attempt = self._transport.attempt(self._method, batch.request, self._job.deadline())
        task = asyncio.create_task(attempt)
        self._in_flight[task] = batch
        task.add_done_callback(lambda _: self._changed.set())

    async def _wait(self) -> None:
        pause = self._job.pause_seconds()
        if pause and self._in_flight and self._job.resumes:
            await self._clock.wait_async(self._changed, pause)
        elif self._in_flight:
            await self._changed.wait()
        elif pause and self._job.resumes:
            await self._transport.pause(pause)
        elif pause:
            raise list_expired()
        self._changed.clear()  # before checking, so that no request is missed

    async def _settle(self) -> None:
        failed: list[tuple[Batch, AlignserveError]] = []
        for task in [task for task in self._in_flight if task.done()]:
            batch = self._in_flight.pop(task)
            try:
                response = task.result()
            except AlignserveError as error:
                failed.append((batch, error))
            else:
                self._job.answer(batch, response)
        for batch, failure in failed:  # after the answers, which count even if a failure ends the job
            if not await self._is_resized(batch, failure):
                self._job.fail(batch, failure)

    async def _is_resized(self, batch: Batch, error: AlignserveError) -> bool:
        """Returns whether the items are sent again because the server's limits have changed."""
        if not is_about_limits(error):
            return False
        limits = await self._refreshed()
        if limits == batch.limits:
            return False
        self._job.resize(batch, limits)
        return True
