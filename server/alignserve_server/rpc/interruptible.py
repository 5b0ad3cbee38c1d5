"""A block of a call, such as reading its request, that a timeout or a stop ends with an error."""

from __future__ import annotations

import asyncio
from types import TracebackType

from alignserve_server.errors import RequestTimeout, ServingError


class Interruptible:
    """A block that its timeout or a call of `interrupt` ends with an error."""

    __slots__ = ("_all", "_error", "_task", "_timeout_seconds", "_timer", "begin_time")

    def __init__(self, all_of_them: dict[Interruptible, None], timeout_seconds: float) -> None:
        self._all = all_of_them
        self._timeout_seconds = timeout_seconds
        self._error: ServingError | None = None

    def __enter__(self) -> None:
        self._task = asyncio.current_task()
        loop = asyncio.get_running_loop()
        self.begin_time = loop.time()
        self._timer = loop.call_later(self._timeout_seconds, self._time_out)
        self._all[self] = None

    def __exit__(
        self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None
    ) -> None:
        self._timer.cancel()
        self._all.pop(self, None)
        error, self._error = self._error, None
        if error is not None and kind is asyncio.CancelledError:
            if self._task is not None:
                self._task.uncancel()  # otherwise later timeouts would take it for an outside cancellation
            raise error from None

    def interrupt(self, error: ServingError) -> None:
        """Ends the block with an error, unless it has ended."""
        if self._error is None and self._task is not None:
            self._error = error
            self._all.pop(self, None)
            self._task.cancel()

    def _time_out(self) -> None:
        self.interrupt(
            RequestTimeout(
                f"the request did not arrive within {self._timeout_seconds:g} s; send it faster, or send "
                "fewer concurrently on one connection"
            )
        )
