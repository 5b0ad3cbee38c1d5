"""A call for any number of items: which go into the next request, and what became of each.

Pure state, without threads, tasks or gRPC; the two clients add the sending and the waiting.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import grpc

from alignserve._calls import Call
from alignserve._kinds import with_kind
from alignserve._requests import Limits, readable_payload
from alignserve._responses import Outcome
from alignserve._retry import delay_seconds, is_refusal, log_retry
from alignserve._terms import Terms
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
    """What a caller asks of a list.

    Attributes:
        timeout_seconds: Deadline of each request; `None` is the client's.
        total_timeout_seconds: Deadline of all together; `None` is none.
        on_error: Whether an error ends the call, or is returned in the place of each item that it befell.
        on_progress: Is told how many items are done, and of how many.
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
    payload: Any  # bytes or str


@dataclass(frozen=True, slots=True)
class Batch:
    """One request of a job.

    Attributes:
        request: The message. Any: the kinds of request travel alike.
        entries: The items in it.
        limits: Those that it was made for.
        round: Number of setbacks before it was sent.
    """

    request: Any
    entries: Sequence[_Entry]
    limits: Limits
    round: int

    @property
    def positions(self) -> list[int]:
        """Returns where its items stand in the caller's list."""
        return [entry.position for entry in self.entries]


class Job:
    """The items of one call, from being read to having a result or an error.

    A request that is refused, breaks or runs out of time is sent again, with fewer others beside it, until
    nothing has been answered for too long. Its deadline begins anew each time.

    Args:
        call: The items, and how they become requests.
        limits: Of one request.
        terms: Of the client.
        options: Of the caller.
        deadline: Of all requests together.
    """

    def __init__(
        self, call: Call[Any], limits: Limits, terms: Terms, options: Options, deadline: float
    ) -> None:
        self.outcome = Outcome(len(call.items))
        self._call = call
        self._terms = terms
        self._options = options
        self._total_deadline = deadline
        self._unread = enumerate(call.items)
        self._read: deque[_Entry] = deque()  # and never sent
        self._returned: deque[deque[_Entry]] = deque()  # of requests that failed
        self._window = Window(terms.max_in_flight, self._items_per_request(limits))
        self._limit(limits)
        self._round = 0
        self._tries = 0  # in a row without any answer
        self._answered_at = terms.clock.monotonic()
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
        """Returns whether one request holds everything."""
        return len(batch.entries) == self.outcome.count

    def deadline(self) -> float:
        """Returns the deadline of a request that is sent now.

        Raises:
            DeadlineExceededError: The time for all requests together is over.
        """
        if self._terms.clock.monotonic() >= self._total_deadline:
            raise list_expired()
        return min(self._terms.deadline(self._options.timeout_seconds), self._total_deadline)

    def pause_seconds(self) -> float:
        """Returns for how long nothing may be sent."""
        return max(self._resumes_at - self._terms.clock.monotonic(), 0.0)

    @property
    def resumes(self) -> bool:
        """Returns whether the pause ends before the time for all requests together does."""
        return self._resumes_at < self._total_deadline

    def next_batch(self) -> Batch | None:
        """Returns the next request to send, or `None` while there is no room for it, or no item left.

        Raises:
            Exception: What reading an item raises, unless errors are returned.
        """
        room = self._window.room()
        entries = self._take(room) if room else []
        if not entries:
            return None
        self._window.send(len(entries))
        request = self._call.recipe.build([entry.payload for entry in entries])
        return Batch(request, entries, self._limits, self._round)

    def answer(self, batch: Batch, response: Any) -> None:
        """Enters the response to a request."""
        self._window.end(len(batch.entries))
        self._window.widen(len(batch.entries))
        self._get_on()
        self.outcome.enter(batch.positions, self._call.read(response))

    def fail(self, batch: Batch, error: AlignserveError) -> None:
        """Enters the failure of a request: its items go again, or have errors of their own.

        Raises:
            AlignserveError: The job ends, by this error.
        """
        error = self.told(batch, error)
        if self._holds_back(batch, error):
            self._give_back(batch.entries)
        elif self._options.returns_errors and self._isolates(batch, error):
            self._get_on()
        else:
            raise error
        self._window.end(len(batch.entries))

    def told(self, batch: Batch, error: AlignserveError) -> AlignserveError:
        """Returns the error in the caller's terms: positions in the list, and what unreadable images are."""
        contents = {f"images[{number}].content": entry.payload for number, entry in enumerate(batch.entries)}
        return error_at_positions(with_kind(error, contents.get), batch.positions)

    def resize(self, batch: Batch, limits: Limits) -> None:
        """Takes back a request that was made for limits which the server no longer has."""
        self._limit(limits)
        self._window.end(len(batch.entries))
        self._give_back(batch.entries)

    def give_up(self, error: AlignserveError) -> None:
        """Ends the job by an error, which is raised or stands in the place of all items without a result."""
        if not self._options.returns_errors:
            raise error
        self.outcome.fail_rest(without_frames(error))

    @contextmanager
    def completing(self) -> Iterator[None]:
        """Gives each exception that leaves the block the results that are there, Ctrl-C among them."""
        try:
            yield
        except BaseException as error:
            error.completed = dict(self.outcome.values)  # type: ignore[attr-defined]  # of any exception
            raise

    def report(self) -> None:
        """Tells the caller how many items are done, if that has changed."""
        if self._options.on_progress is not None and self.outcome.done > self._reported:
            self._reported = self.outcome.done
            self._options.on_progress(self.outcome.done, self.outcome.count)

    def _get_on(self) -> None:
        self._tries = 0
        self._answered_at = self._terms.clock.monotonic()

    def _limit(self, limits: Limits) -> None:
        self._limits = limits
        self._room_bytes = self._call.recipe.room(limits)
        self._window.limit_requests_to(self._items_per_request(limits))

    def _items_per_request(self, limits: Limits) -> int:
        return int(max(1, min(limits.max_items, self.outcome.count)))

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
        while len(self._read) < max_items and size <= self._room_bytes:
            numbered = next(self._unread, None)
            if numbered is None:
                return
            entry = self._readable(*numbered)
            if entry is not None:
                self._read.append(entry)
                size += self._call.recipe.bytes_of(entry.payload)

    def _readable(self, position: int, item: object) -> _Entry | None:
        if not self._options.returns_errors:
            return _Entry(position, self._call.recipe.payload(item))
        try:
            return _Entry(position, readable_payload(self._call.recipe, item))
        except InvalidArgumentError as error:
            self.outcome.errors[position] = without_frames(error)
            return None

    def _fitting(self, entries: deque[_Entry], max_items: int) -> list[_Entry]:
        """Takes as many entries from the front as one request holds; one that is too large alone fails."""
        taken: list[_Entry] = []
        size = 0
        while entries and len(taken) < max_items:
            size += self._call.recipe.bytes_of(entries[0].payload)
            if taken and size > self._room_bytes:
                break
            entry = entries.popleft()
            if taken or self._has_size_of_request(entry):
                taken.append(entry)
            else:
                size = 0
        return taken

    def _has_size_of_request(self, entry: _Entry) -> bool:
        try:
            item = self._call.items[entry.position]
            self._call.recipe.check_size(item, entry.payload, entry.position, self._room_bytes)
        except InvalidArgumentError as error:
            if not self._options.returns_errors:
                raise
            self.outcome.errors[entry.position] = without_frames(error)
            return False
        return True

    def _give_back(self, entries: Sequence[_Entry]) -> None:
        if entries:
            self._returned.appendleft(deque(entries))

    def _holds_back(self, batch: Batch, error: AlignserveError) -> bool:
        """Decides whether the items of a request go again later, and if so from when."""
        is_silence = isinstance(error, DeadlineExceededError)
        is_break = isinstance(error, UnavailableError)
        if self._terms.retry.max_attempts == 1 or not (is_silence or is_break or is_refusal(error)):
            return False
        if batch.round == self._round:  # requests that were under way together count once
            self._round += 1
            self._tries += 1
            if not is_break:
                self._window.narrow(at_least=self._least_room(error))
        if self._is_out_of_patience(error):
            return False
        if not is_silence:
            pause = delay_seconds(self._terms.retry, error, self._tries, self._terms.clock.random)
            self._resumes_at = max(self._resumes_at, self._terms.clock.monotonic() + pause)
        log_retry(f"request of {len(batch.entries)} items", error, self._tries, self.pause_seconds())
        return True

    def _least_room(self, error: AlignserveError) -> int:
        # A quota counts requests, so smaller ones would use it up sooner.
        return self._items_per_request(self._limits) if error.reason == _QUOTA else 1

    def _is_out_of_patience(self, error: AlignserveError) -> bool:
        retry = self._terms.retry
        if isinstance(error, DeadlineExceededError):
            return self._tries >= retry.max_attempts
        if isinstance(error, UnavailableError):
            return self._tries >= retry.max_stream_attempts
        patience_ends = self._terms.deadline_from(self._answered_at, self._options.timeout_seconds)
        is_over = self._terms.clock.monotonic() >= patience_ends
        return self._tries >= retry.max_stream_attempts and is_over

    def _isolates(self, batch: Batch, error: AlignserveError) -> bool:
        """Gives items at fault their errors, and lets the others of the request go again."""
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
        # The server does not say at which item the model failed; smaller and smaller requests find it.
        half = len(batch.entries) // 2
        if half:
            self._give_back(batch.entries[half:])
            self._give_back(batch.entries[:half])
        else:
            self.outcome.errors[batch.positions[0]] = without_frames(error)
        return True


def list_expired() -> DeadlineExceededError:
    """Returns the error of a list whose own deadline comes before it is done."""
    return DeadlineExceededError(
        "the time given for the list is over; allow more by total_timeout_seconds",
        grpc.StatusCode.DEADLINE_EXCEEDED,
    )
