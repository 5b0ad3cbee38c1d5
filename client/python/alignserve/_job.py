"""The state of a call for any number of items: which items the next request has, and the result of each.

Pure state, without threads, tasks or gRPC; the two clients add sending and waiting.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

import grpc

from alignserve._call_defaults import CallDefaults
from alignserve._kinds import with_kind
from alignserve._requests import Limits, readable_payload
from alignserve._responses import Outcome
from alignserve._retry import delay_seconds, is_refusal, log_retry
from alignserve._split_requests import SplitRequest
from alignserve._window import Window
from alignserve.errors import (
    AlignserveError,
    DeadlineExceededError,
    InternalError,
    InvalidArgumentError,
    UnavailableError,
    error_at_positions,
    errors_of_items,
    without_frames,
)

OnError: TypeAlias = Literal["raise", "return"]
OnProgress: TypeAlias = Callable[[int, int], object]

_QUOTA = "QUOTA_EXCEEDED"


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The caller's options for a list.

    Attributes:
        timeout_seconds: Deadline of each request; `None` for the client's.
        total_timeout_seconds: Deadline of the whole call; `None` for no deadline.
        on_error: Whether an error ends the call, or is returned in the place of each item that failed.
        on_progress: Called with the number of items done and the total.
    """

    timeout_seconds: float | None
    total_timeout_seconds: float | None
    on_error: OnError
    on_progress: OnProgress | None

    def __post_init__(self) -> None:
        if self.on_error not in ("raise", "return"):
            raise ValueError(f"on_error {self.on_error!r} is unknown; use raise or return")

    @property
    def returns_errors(self) -> bool:
        """Returns whether errors are returned in place."""
        return self.on_error == "return"


@dataclass(frozen=True, slots=True)
class _Entry:
    position: int
    payload: Any  # a text or a message
    count: int  # of the request's items that it uses, such as the terms of a query


@dataclass(frozen=True, slots=True)
class Batch:
    """One request of a job.

    Attributes:
        request: The message. Any: all kinds of request are handled alike.
        entries: The items in it.
        limits: The limits that it was built for.
        round: Number of failed rounds before it was sent.
    """

    request: Any
    entries: Sequence[_Entry]
    limits: Limits
    round: int

    @property
    def count(self) -> int:
        """Returns how many items it has for the server."""
        return sum(entry.count for entry in self.entries)

    @property
    def positions(self) -> list[int]:
        """Returns the positions of its items in the caller's list."""
        return [entry.position for entry in self.entries]


class Job:
    """The items of one call, from being read to having a result or an error.

    A request that is refused, breaks or runs out of time is sent again, with fewer other requests in flight,
    until nothing has been answered for too long. Each attempt has a new deadline.

    Args:
        call: The items, and how they become requests.
        limits: Of one request.
        defaults: Of the client.
        options: Of the caller.
        deadline: Of all requests together.
    """

    def __init__(
        self,
        call: SplitRequest[Any],
        limits: Limits,
        defaults: CallDefaults,
        options: Options,
        deadline: float,
    ) -> None:
        self.outcome = Outcome(len(call.items))
        self._call = call
        self._defaults = defaults
        self._options = options
        self._total_deadline = deadline
        self._unread = enumerate(call.items)
        self._read: deque[_Entry] = deque()  # but not sent yet
        self._returned: deque[deque[_Entry]] = deque()  # by requests that failed
        self._window = Window(defaults.max_in_flight, self._items_per_request(limits))
        self._limit(limits)
        self._round = 0
        self._tries = 0  # consecutive, without any answer
        self._answered_at = defaults.clock.monotonic()
        self._resumes_at = -math.inf
        self._reported = 0

    @property
    def returns_errors(self) -> bool:
        """Returns whether errors are returned in place."""
        return self._options.returns_errors

    @property
    def is_done(self) -> bool:
        """Returns whether every item has its result or error."""
        return self.outcome.done == self.outcome.count

    def is_whole(self, batch: Batch) -> bool:
        """Returns whether the request has all items of the call."""
        return len(batch.entries) == self.outcome.count

    def deadline(self) -> float:
        """Returns the deadline of a request that is sent now.

        Raises:
            DeadlineExceededError: The deadline of the whole call has passed.
        """
        if self._defaults.clock.monotonic() >= self._total_deadline:
            raise list_expired()
        return min(self._defaults.deadline(self._options.timeout_seconds), self._total_deadline)

    def pause_seconds(self) -> float:
        """Returns how long to wait before sending the next request."""
        return max(self._resumes_at - self._defaults.clock.monotonic(), 0.0)

    @property
    def resumes(self) -> bool:
        """Returns whether the pause ends before the deadline of the whole call."""
        return self._resumes_at < self._total_deadline

    def next_batch(self) -> Batch | None:
        """Returns the next request to send, or `None` while there is no room for it or if no items are left.

        Raises:
            Exception: An item cannot be read, and errors are not returned.
        """
        room = self._window.room()
        entries = self._take(room) if room else []
        if not entries:
            return None
        request = self._call.recipe.build([entry.payload for entry in entries])
        batch = Batch(request, entries, self._limits, self._round)
        self._window.send(batch.count)
        return batch

    def answer(self, batch: Batch, response: Any) -> None:
        """Records the response to a request."""
        self._window.end(batch.count)
        self._window.widen(batch.count)
        self._note_progress()
        self.outcome.enter(batch.positions, self._call.read(response))

    def fail(self, batch: Batch, error: AlignserveError) -> None:
        """Records the failure of a request: its items are sent again, or get errors of their own.

        Raises:
            AlignserveError: This error ends the job.
        """
        error = self.for_caller(batch, error)
        if self._goes_again_later(batch, error):
            self._give_back(batch.entries)
        elif self._options.returns_errors and self._isolates(batch, error):
            self._note_progress()
        else:
            raise error
        self._window.end(batch.count)

    def for_caller(self, batch: Batch, error: AlignserveError) -> AlignserveError:
        """Returns the error with positions in the caller's list and the file types of unreadable images."""
        return error_at_positions(with_kind(error, batch.request), batch.positions)

    def resize(self, batch: Batch, limits: Limits) -> None:
        """Takes back a request that was built for limits that the server no longer has."""
        self._limit(limits)
        self._window.end(batch.count)
        self._give_back(batch.entries)

    def give_up(self, error: AlignserveError) -> None:
        """Ends the job with an error, which is raised or becomes the error of every item without a result."""
        if not self._options.returns_errors:
            raise error
        self.outcome.fail_rest(without_frames(error))

    @contextmanager
    def completing(self) -> Iterator[None]:
        """Attaches the results so far to any exception that leaves the block, including Ctrl-C."""
        try:
            yield
        except BaseException as error:
            error.completed = dict(self.outcome.values)  # type: ignore[attr-defined]  # any exception
            raise

    def report(self) -> None:
        """Reports the number of items done to the caller, if it has changed."""
        if self._options.on_progress is not None and self.outcome.done > self._reported:
            self._reported = self.outcome.done
            self._options.on_progress(self.outcome.done, self.outcome.count)

    def _note_progress(self) -> None:
        self._tries = 0
        self._answered_at = self._defaults.clock.monotonic()

    def _limit(self, limits: Limits) -> None:
        self._limits = limits
        self._room_bytes = self._call.recipe.room(limits)
        self._window.limit_requests_to(self._items_per_request(limits))

    def _items_per_request(self, limits: Limits) -> int:
        return int(max(1, min(limits.max_items, self._call.count)))

    def _take(self, max_items: int) -> list[_Entry]:
        if self._returned:
            entries = self._fitting(self._returned[0], max_items)
            if not self._returned[0]:
                self._returned.popleft()
            return entries
        self._read_ahead(max_items)
        return self._fitting(self._read, max_items)

    def _read_ahead(self, max_items: int) -> None:
        size = sum(self._call.recipe.bytes_of(entry.payload) for entry in self._read)
        count = sum(entry.count for entry in self._read)
        while count < max_items and size <= self._room_bytes:
            numbered = next(self._unread, None)
            if numbered is None:
                return
            entry = self._readable(*numbered)
            if entry is not None:
                self._read.append(entry)
                size += self._call.recipe.bytes_of(entry.payload)
                count += entry.count

    def _readable(self, position: int, item: object) -> _Entry | None:
        recipe = self._call.recipe
        if not self._options.returns_errors:
            payload = recipe.payload(item)
        else:
            try:
                payload = readable_payload(recipe, item)
            except InvalidArgumentError as error:
                self.outcome.errors[position] = without_frames(error)
                return None
        return _Entry(position, payload, recipe.count(payload))

    def _fitting(self, entries: deque[_Entry], max_items: int) -> list[_Entry]:
        """Takes as many entries from the front as fit into one request; an entry that does not fit fails."""
        taken: list[_Entry] = []
        size = count = 0
        while entries:
            entry = entries[0] if taken else self._fitted(entries[0])
            if entry is None:
                entries.popleft()
                continue
            size += self._call.recipe.bytes_of(entry.payload)
            count += entry.count
            if taken and (size > self._room_bytes or count > max_items):
                break
            entries.popleft()
            taken.append(entry)
        return taken

    def _fitted(self, entry: _Entry) -> _Entry | None:
        """Returns an entry in the size of a request, or `None` if it does not fit into any."""
        try:
            item = self._call.items[entry.position]
            payload = self._call.recipe.fitted(item, entry.payload, entry.position, self._room_bytes)
        except InvalidArgumentError as error:
            if not self._options.returns_errors:
                raise
            self.outcome.errors[entry.position] = without_frames(error)
            return None
        return replace(entry, payload=payload)

    def _give_back(self, entries: Sequence[_Entry]) -> None:
        if entries:
            self._returned.appendleft(deque(entries))

    def _goes_again_later(self, batch: Batch, error: AlignserveError) -> bool:
        """Returns whether the items of a request are sent again later, and if so schedules them."""
        is_silence = isinstance(error, DeadlineExceededError)
        is_break = isinstance(error, UnavailableError)
        if self._defaults.retry.max_attempts == 1 or not (is_silence or is_break or is_refusal(error)):
            return False
        if batch.round == self._round:  # requests that were in flight together count once
            self._round += 1
            self._tries += 1
            if not is_break:
                self._window.narrow(at_least=self._min_window(error))
        if self._is_exhausted(error):
            return False
        if not is_silence:
            pause = delay_seconds(self._defaults.retry, error, self._tries, self._defaults.clock.random)
            self._resumes_at = max(self._resumes_at, self._defaults.clock.monotonic() + pause)
        count = len(batch.entries)
        what = f"request of {count} {'item' if count == 1 else 'items'}"
        log_retry(what, error, self._tries, self.pause_seconds())
        return True

    def _min_window(self, error: AlignserveError) -> int:
        # A quota counts requests, so smaller ones would use it up sooner.
        return self._items_per_request(self._limits) if error.reason == _QUOTA else 1

    def _is_exhausted(self, error: AlignserveError) -> bool:
        retry = self._defaults.retry
        if isinstance(error, DeadlineExceededError):
            return self._tries >= retry.max_attempts
        if isinstance(error, UnavailableError):
            return self._tries >= retry.max_stream_attempts
        gives_up_at = self._defaults.deadline_from(self._answered_at, self._options.timeout_seconds)
        is_over = self._defaults.clock.monotonic() >= gives_up_at
        return self._tries >= retry.max_stream_attempts and is_over

    def _isolates(self, batch: Batch, error: AlignserveError) -> bool:
        """Gives items at fault their errors, and sends the other items of the request again."""
        if isinstance(error, InternalError) and error.reason:
            return self._halve(batch, error)
        named = errors_of_items(error) if isinstance(error, InvalidArgumentError) else {}
        at_fault = {position: named[position] for position in batch.positions if position in named}
        if not at_fault:
            return False
        self.outcome.errors.update(at_fault)
        self._give_back([entry for entry in batch.entries if entry.position not in at_fault])
        return True

    def _halve(self, batch: Batch, error: InternalError) -> bool:
        # The server does not say on which item the model failed; halving the request finds it.
        half = len(batch.entries) // 2
        if half:
            self._give_back(batch.entries[half:])
            self._give_back(batch.entries[:half])
        else:
            self.outcome.errors[batch.positions[0]] = without_frames(error)
        return True


def list_expired() -> DeadlineExceededError:
    """Returns the error of a list whose deadline passed before it was done."""
    return DeadlineExceededError(
        "the deadline of the list has passed; allow more time with total_timeout_seconds",
        grpc.StatusCode.DEADLINE_EXCEEDED,
    )
