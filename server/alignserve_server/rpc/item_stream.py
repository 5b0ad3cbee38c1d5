"""A stream of requests that are answered concurrently, within a window.

A slot of the window is taken before a message is read and freed when its response is written. The next
message is read only once the previous one has room in the queue. So HTTP/2 flow control pauses a client that
sends faster than the model runs or stops reading, and a stream holds at most `max_in_flight` items, of which
at most one waits for room.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Generic, TypeVar

from alignserve_server.errors import ServingError
from alignserve_server.rpc.response_room import ResponseRoom

_Request = TypeVar("_Request")
_Answer = asyncio.Task[bytes]


class ItemStream(ABC, Generic[_Request]):
    """Runs the items of one stream. Subclasses answer them."""

    def __init__(self, write: Callable[[bytes], Awaitable[None]], *, max_in_flight: int) -> None:
        """Starts empty.

        Args:
            write: Sends a serialized response; returns when the next one can be sent.
            max_in_flight: Size of the window.
        """
        self._write = write
        self._window = asyncio.Semaphore(max_in_flight)
        self._answers: dict[_Answer, ResponseRoom] = {}  # in flight, or finished and not yet written
        self._outbox: asyncio.Queue[_Answer | None] = asyncio.Queue()  # limited by the window; None ends it
        self._is_ordered = False  # whether responses are written in the order of their requests
        self._ending: Callable[[], ServingError] | None = None  # set if reading stops before the client ends
        self._reader: asyncio.Task[None] | None = None

    @abstractmethod
    def _room(self, request: _Request) -> ResponseRoom:
        """Returns the room for the response to an item."""

    @abstractmethod
    async def _answer(
        self, request: _Request, on_admitted: Callable[[], None], room: ResponseRoom, *, is_first: bool
    ) -> bytes:
        """Returns the response as bytes, since it may have to wait until the client reads earlier ones.

        Args:
            request: The item.
            on_admitted: To be called once the item has room in the queue.
            room: Room for the response.
            is_first: Whether it is in the stream's first message.
        """

    def _take_options(self, request: _Request) -> bool:  # noqa: ARG002 — for subclasses
        """Applies the options of the first message; returns whether it contains nothing else."""
        return False

    async def run(self, requests: AsyncIterator[_Request]) -> None:
        """Answers every request that it reads.

        Raises:
            ServingError: The stream cannot continue; everything read before has been answered.
        """
        self._reader = asyncio.create_task(self._read(requests))
        self._reader.add_done_callback(lambda _: self._outbox.put_nowait(None))  # even if it never started
        try:
            await self._write_answers()
            await self._finish_reading()
        finally:
            try:
                await self._cancel()
            finally:  # gRPC may cancel this again in the meantime
                self._forget()

    def drain(self, ending: Callable[[], ServingError]) -> None:
        """Stops reading; `run` answers the items read so far and raises `ending`. The first call counts."""
        if self._reader is not None and not self._reader.done():
            self._ending = self._ending or ending
            self._reader.cancel()

    async def _read(self, requests: AsyncIterator[_Request]) -> None:
        is_first = True
        while True:
            await self._window.acquire()
            try:
                request = await requests.__anext__()
            except StopAsyncIteration:
                return
            options_only = is_first and self._take_options(request)
            if options_only:
                self._window.release()
            else:
                await self._start(request, is_first=is_first)
            is_first = False

    async def _start(self, request: _Request, *, is_first: bool) -> None:
        """Starts to answer a request; returns once it has room in the queue or an answer that needs none."""
        admitted = asyncio.Event()
        room = self._room(request)
        answer = asyncio.create_task(self._answer(request, admitted.set, room, is_first=is_first))
        answer.add_done_callback(lambda _: admitted.set())
        self._answers[answer] = room
        if self._is_ordered:
            self._outbox.put_nowait(answer)
        else:
            answer.add_done_callback(self._outbox.put_nowait)
        await admitted.wait()

    async def _write_answers(self) -> None:
        is_reading = True
        while is_reading or self._answers:
            answer = await self._outbox.get()
            if answer is None:
                is_reading = False
                continue
            response = await answer
            await self._write(response)
            self._answers.pop(answer).give_back()
            self._window.release()

    async def _finish_reading(self) -> None:
        if self._ending is not None:
            raise self._ending()
        if self._reader is not None:
            await self._reader  # raises its exception, if it failed

    async def _cancel(self) -> None:
        # Not in `run`: its frame is in the traceback of the error that ends the stream, and would keep the
        # last task alive.
        assert self._reader is not None  # noqa: S101 — `run` has started it
        tasks = (self._reader, *self._answers)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _forget(self) -> None:
        """Gives back the room of responses that were not written, and drops the finished tasks.

        Their exceptions have tracebacks that refer to this stream and to the items' bytes: a reference cycle
        that would last until the garbage collector reaches the oldest generation.
        """
        self._reader = None
        for room in self._answers.values():
            room.give_back()
        self._answers.clear()
        while not self._outbox.empty():
            self._outbox.get_nowait()
