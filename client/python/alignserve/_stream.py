"""A stream over a blocking channel: it reads a window ahead, reconnects, and answers every item once.

Three threads share the items in flight under one condition. The feeder reads and prepares the caller's items,
gRPC's own thread sends the unsent ones, and the receiver takes the answers and opens the next connection when
one breaks. The caller's thread only takes results.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Any

import grpc

from alignserve._call_defaults import finite
from alignserve._in_flight import InFlightItems
from alignserve._items import Item, StreamResult
from alignserve._requests import prepared, stream_options
from alignserve._responses import item_failure
from alignserve._retry import end_of_stream, reconnect_delay_seconds, stream_expired
from alignserve._transport import Transport
from alignserve.errors import AlignserveError, UnavailableError
from alignserve.v1 import align_service_pb2 as pb

# Any: gRPC's call is an iterator that can be cancelled; its stubs have no type for that.
StreamMethod = Callable[..., Any]

_MAX_STATUS_WAIT_SECONDS = 5.0  # for a stream whose items are all answered


class Stream:
    """Runs the items of one stream."""

    def __init__(
        self,
        transport: Transport,
        method: StreamMethod,
        items: Iterable[Item],
        *,
        ordered: bool,
        window: int,
        max_request_bytes: int,
        deadline: float,
    ) -> None:
        self._transport = transport
        self._defaults = transport.defaults
        self._method = method
        self._items = items
        self._ordered = ordered
        self._max_request_bytes = max_request_bytes
        self._deadline = deadline
        self._in_flight = InFlightItems(window, ordered=ordered)
        self._changed = threading.Condition()  # guards all fields below, and the items in flight
        self._closed = threading.Event()
        self._call: Any = None
        self._connection = 0
        self._answers = 0
        self._failure: Exception | None = None  # of the stream, which yields no more results
        self._source_failure: BaseException | None = None  # raised by the caller's items

    def results(self) -> Generator[StreamResult, None, None]:
        """Yields a result for every item. Closing the generator cancels the stream.

        Raises:
            AlignserveError: The stream broke and could not be opened again.
        """
        feeder = threading.Thread(target=self._feed, name="alignserve-feed", daemon=True)
        receiver = threading.Thread(target=self._receive, name="alignserve-receive", daemon=True)
        feeder.start()
        receiver.start()
        try:
            while (result := self._next()) is not None:
                yield result
            receiver.join(_MAX_STATUS_WAIT_SECONDS)
        finally:
            self._close()
        if self._source_failure is not None:
            raise self._source_failure

    def fail(self, error: Exception) -> None:
        """Ends the stream: yields the remaining results, then raises the error."""
        with self._changed:
            self._failure = self._failure or error
            self._changed.notify_all()

    def _next(self) -> StreamResult | None:
        with self._changed:
            while True:
                result = self._in_flight.take()
                if result is not None:
                    self._changed.notify_all()
                    return result
                if self._in_flight.is_done:
                    return None
                if self._failure is not None:
                    raise self._failure
                self._changed.wait()

    def _close(self) -> None:
        with self._changed:
            self._closed.set()
            self._changed.notify_all()
        if self._call is not None:
            self._call.cancel()  # has no effect on a call that has ended

    def _feed(self) -> None:
        try:
            self._read_items()
        except BaseException as error:  # noqa: BLE001 — the caller's own, raised again in the caller's thread
            self._source_failure = error
        with self._changed:
            self._in_flight.is_complete = True
            self._changed.notify_all()

    def _read_items(self) -> None:
        for item in self._items:
            request = prepared(item, self._max_request_bytes)
            with self._changed:
                self._in_flight.enter(item, request)
                self._changed.notify_all()
            if not self._wait_for_room():
                return

    def _wait_for_room(self) -> bool:
        with self._changed:
            self._changed.wait_for(lambda: self._closed.is_set() or self._in_flight.has_room)
            return not self._closed.is_set()

    def _receive(self) -> None:
        try:
            self._run_connections()
        except AlignserveError as error:
            self.fail(self._transport.explained(error))
        except Exception as error:  # noqa: BLE001 — raised again in the caller's thread, which waits for it
            self.fail(error)

    def _run_connections(self) -> None:
        attempt = 0
        while self._wait_for_work():
            answers = self._answers
            error = self._run_connection()
            if error is None:
                continue
            attempt = attempt + 1 if self._answers == answers else 1
            delay = reconnect_delay_seconds(
                self._defaults.retry, error, attempt, self._remaining_seconds(), self._defaults.clock.random
            )
            if self._defaults.clock.wait(self._closed, delay):
                return

    def _wait_for_work(self) -> bool:
        with self._changed:
            is_in_time = self._changed.wait_for(
                lambda: (
                    self._closed.is_set() or self._in_flight.has_unanswered or self._in_flight.is_complete
                ),
                finite(self._remaining_seconds()),
            )
            if not is_in_time:
                raise stream_expired()
            return self._in_flight.has_unanswered and not self._closed.is_set()

    def _run_connection(self) -> AlignserveError | None:
        with self._changed:
            if self._closed.is_set():
                return None
            self._connection += 1
            self._call = call = self._transport.open_stream(
                self._method, self._requests(self._connection), self._deadline
            )
        try:
            error = self._take_answers(call)
        except grpc.RpcError as cause:
            error = end_of_stream(cause)
        finally:
            with self._changed:
                self._connection += 1  # ends the sender of this one
                self._changed.notify_all()
                is_cut_short = self._in_flight.has_unanswered
        if error is None and is_cut_short:
            return UnavailableError("the server ended the stream early", grpc.StatusCode.UNAVAILABLE)
        return error

    def _take_answers(self, call: Any) -> AlignserveError | None:
        for response in call:
            failure = item_failure(response)
            if isinstance(failure, UnavailableError):
                # The server cannot process any item now: reconnect and send the item again.
                call.cancel()
                return failure
            with self._changed:
                self._in_flight.answer(response)
                self._answers += 1
                self._changed.notify_all()
        return None

    def _requests(self, connection: int) -> Iterator[pb.StreamInferRequest]:
        yield stream_options(ordered=self._ordered)
        sequence = -1
        while True:
            unsent = self._wait_for_unsent(sequence, connection)
            if unsent is None:
                return
            sequence, request = unsent
            yield request

    def _wait_for_unsent(self, after: int, connection: int) -> tuple[int, pb.StreamInferRequest] | None:
        def is_over() -> bool:
            return self._connection != connection or self._closed.is_set()

        with self._changed:
            self._changed.wait_for(
                lambda: is_over() or self._in_flight.next_unsent(after) or self._in_flight.is_complete
            )
            return None if is_over() else self._in_flight.next_unsent(after)

    def _remaining_seconds(self) -> float:
        return self._defaults.remaining_seconds(self._deadline)
