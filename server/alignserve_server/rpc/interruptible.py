"""Blocks of calls, such as reading a request, that a timeout or a stop ends with an error."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from itertools import islice
from types import TracebackType

from alignserve_server.errors import RequestTimeout, ServingError


class InterruptibleBlocks:
    """The blocks that are being run now, with one timeout for all. Only for the event loop's thread.

    One timer serves them all, since setting and cancelling one takes longer than reading a small request.
    """

    def __init__(self, timeout_seconds: float) -> None:
        self._timeout_seconds = timeout_seconds
        self._running: dict[Interruptible, None] = {}  # oldest first
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._running)

    def oldest(self, number: int) -> list[Interruptible]:
        """Returns up to `number` of them, oldest first."""
        return list(islice(self._running, max(0, number)))

    def interrupt(self, error: Callable[[], ServingError]) -> None:
        """Ends all of them with an error each."""
        for block in list(self._running):
            block.interrupt(error())

    def block(self) -> Interruptible:
        """Returns a block for the current task: a context manager."""
        return Interruptible(self)

    def _enter(self, block: Interruptible) -> None:
        loop = asyncio.get_running_loop()
        block.begin_time = loop.time()
        self._running[block] = None
        if self._timer is None:
            self._timer = loop.call_at(block.begin_time + self._timeout_seconds, self._time_out)

    def _time_out(self) -> None:
        loop = asyncio.get_running_loop()
        self._timer, now = None, loop.time()
        for block in list(self._running):
            end = block.begin_time + self._timeout_seconds
            if end > now:
                self._timer = loop.call_at(end, self._time_out)
                return
            block.interrupt(
                RequestTimeout(
                    f"the request did not arrive within {self._timeout_seconds:g} s; send it faster, or send "
                    "fewer concurrently on one connection"
                )
            )


class Interruptible:
    """A block that its timeout or a call of `interrupt` ends with an error."""

    __slots__ = ("_all", "_error", "_task", "begin_time")

    def __init__(self, all_of_them: InterruptibleBlocks) -> None:
        self._all = all_of_them
        self._error: ServingError | None = None
        self.begin_time: float  # in the event loop's time

    def __enter__(self) -> None:
        self._task = asyncio.current_task()
        self._all._enter(self)

    def __exit__(
        self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None
    ) -> None:
        self._all._running.pop(self, None)
        error, self._error = self._error, None
        if error is not None and kind is asyncio.CancelledError:
            if self._task is not None:
                self._task.uncancel()  # otherwise later timeouts would take it for an outside cancellation
            raise error from None

    def interrupt(self, error: ServingError) -> None:
        """Ends the block with an error, unless it has ended."""
        if self._error is None and self._task is not None:
            self._error = error
            self._all._running.pop(self, None)
            self._task.cancel()
