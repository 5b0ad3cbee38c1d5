"""Accounting of calls: authorization, duration and outcome of each, by caller.

A door opens it around each call, and passes an `IncomingCall` with the facts that only the door knows.
"""

from __future__ import annotations

import asyncio
import math
import secrets
import time
from collections.abc import Iterable, Set
from contextlib import AbstractContextManager
from itertools import product
from types import TracebackType
from typing import Any, Protocol

from alignserve_server.access.authorization import ANONYMOUS, Access, Caller
from alignserve_server.access.keys import Scope
from alignserve_server.api.method_rules import ANY_SCOPE, MethodRules
from alignserve_server.batching.call import NO_TRACE, CallContext, FieldPaths
from alignserve_server.batching.fair_queue import Flow, Priority
from alignserve_server.errors import InternalError, InvalidArgument, ServingError
from alignserve_server.observability.caller_metrics import KEY
from alignserve_server.observability.instruments import HistogramSeries, Value
from alignserve_server.observability.logs import get_logger
from alignserve_server.observability.metrics import PRIORITIES, SIZES, Metrics
from alignserve_server.observability.tracing import CallTrace, Tracing

_log = get_logger(__name__)

_PRIORITIES = {priority.name.lower(): priority for priority in Priority}

# A client starts its own timer before it sends the request, so its reset can arrive just before the deadline.
_DEADLINE_TOLERANCE_SECONDS = 0.02


class IncomingCall(Protocol):
    """What a door knows about a call. Each method is called only when its result is needed."""

    @property
    def paths(self) -> FieldPaths:
        """The door's names for fields, for error messages."""
        ...

    def credentials(self) -> Iterable[str]:
        """Returns the values of `authorization`."""
        ...

    def peer(self) -> str:
        """Returns the caller's name if there is no API key; see `observability.caller_metrics`."""
        ...

    def priority(self) -> str | None:
        """Returns the priority as the caller sent it; None for the default."""
        ...

    def seconds_left(self) -> float | None:
        """Returns the time until the caller's deadline; None or infinity if there is none."""
        ...

    def metadata(self) -> Iterable[tuple[str, Any]]:
        """Returns names and values, which may include `traceparent`."""
        ...

    def code_of(self, error: BaseException) -> str | None:
        """Returns the code that the call ends with if the door expects this error, otherwise None."""
        ...


class CallsInProgress:
    """Counts the calls that a stop waits for."""

    def __init__(self) -> None:
        self.started = 0  # since the process started
        self._count = 0
        self._none_left = asyncio.Event()
        self._none_left.set()

    def begin(self) -> None:
        """Counts a call until `end`, which its door calls once the response is written."""
        self.started += 1
        self._count += 1
        self._none_left.clear()

    def end(self) -> None:
        """Removes one call from the count."""
        self._count -= 1
        if not self._count:
            self._none_left.set()

    async def wait_for_end(self) -> None:
        """Returns when no call is in progress."""
        await self._none_left.wait()


class Accounting:
    """Accounts for the calls of all doors."""

    def __init__(self, metrics: Metrics, access: Access, tracing: Tracing) -> None:
        self.metrics = metrics
        self.in_progress = CallsInProgress()
        self._access = access
        self._tracing = tracing
        self._methods: dict[tuple[str, str, str], MethodMetrics] = {}

    def method(self, kind: str, service: str, name: str, rules: MethodRules) -> MethodMetrics:
        """Prepares the metrics of a method's calls.

        Args:
            kind: The label `grpc_type`, for example `unary`.
            service: The label `grpc_service`.
            name: The label `grpc_method`.
            rules: The method's row in its door's table.
        """
        labels = (kind, service, name)
        self._methods[labels] = method = MethodMetrics(self.metrics, labels, rules)
        return method

    def durations(self) -> list[HistogramSeries]:
        """Returns the durations of the unary calls that run the model, of every door.

        Methods that any key permits do not run it: they describe the model or the server.
        """
        return [
            series
            for method in self._methods.values()
            if method.rules.scopes not in (None, ANY_SCOPE) and not method.rules.counts_items
            for series in method.seconds.values()
        ]

    def call(self, method: MethodMetrics, incoming: IncomingCall) -> CallScope:
        """Admits a call for the duration of the block and accounts for it.

        Raises:
            InternalError: The block raised an unexpected error.
            ServingError: The key is missing or invalid, or lacks a scope or quota for the call.
        """
        return CallScope(method, incoming, self._access, self._tracing)


class MethodMetrics:
    """The metrics of one method's calls; each series is looked up once."""

    def __init__(self, metrics: Metrics, labels: tuple[str, str, str], rules: MethodRules) -> None:
        self.labels = labels
        self.path = f"/{labels[1]}/{labels[2]}"
        self.rules = rules
        self.started = metrics.rpcs_started.labels(*labels)
        self.seconds: dict[tuple[str, str], HistogramSeries] = {
            kind: metrics.rpc_seconds.labels(*labels, *kind) for kind in kinds_of_calls(rules)
        }
        self.count_refusal = metrics.count_refusal
        self._handled = metrics.rpcs_handled
        self._handled_by_code: dict[str, Value] = {}

    def handled(self, code: str) -> Value:
        """Returns the counter of calls that ended with a code."""
        if code not in self._handled_by_code:
            self._handled_by_code[code] = self._handled.labels(*self.labels, code)
        return self._handled_by_code[code]


class CallScope:
    """The account of one call."""

    __slots__ = (
        "_access",
        "_incoming",
        "_method",
        "_named_priority",
        "_quota",
        "_start",
        "_tracing",
        "caller",
        "items",
        "trace",
    )

    def __init__(
        self, method: MethodMetrics, incoming: IncomingCall, access: Access, tracing: Tracing
    ) -> None:
        self.items = 0  # images, texts, pairs or queries; set once the request is parsed
        self.caller: Caller = ANONYMOUS
        self.trace: CallTrace | None = None  # if it is sampled
        self._method = method
        self._incoming = incoming
        self._access = access
        self._tracing = tracing
        self._quota: AbstractContextManager[None] | None = None  # once it is let in
        self._named_priority: str | None = None  # by the request itself

    def __enter__(self) -> CallScope:
        self._start = time.perf_counter()
        self._method.started.inc()
        try:
            self._let_in()
        except BaseException as error:
            self.__exit__(None, error, None)
            raise
        return self

    def __exit__(
        self, _: type[BaseException] | None, error: BaseException | None, __: TracebackType | None
    ) -> None:
        if self._quota is not None:
            self._quota.__exit__(None, None, None)
        code = self._code(error)
        exemplar = None if self.trace is None else self.trace.exemplar
        self._seconds().observe(time.perf_counter() - self._start, exemplar)
        self._method.handled(code or "INTERNAL").inc()
        if self.trace is not None:
            self.trace.end(code or "INTERNAL", error)
        if code is None:  # an unexpected error must not reach the door, which would send its text
            assert isinstance(error, Exception)  # noqa: S101 — `_code` handles all others
            raise internal_error(self._method.path, error) from error

    @property
    def caller_name(self) -> str:
        """The caller's name: that of its API key if there is one, otherwise the one given by the door."""
        name = self.caller.name
        return self._incoming.peer() if name is None else f"{KEY}{name}"

    def context(self, priority: str | None = None) -> CallContext:
        """Returns what batching needs to know about the call.

        Args:
            priority: The priority that the request itself names, which overrides the door's.

        Raises:
            InvalidArgument: The priority is unknown.
        """
        self._named_priority = priority
        deadline, left = None, self._incoming.seconds_left()
        if left is not None and math.isfinite(left):
            deadline = asyncio.get_running_loop().time() + left
        return CallContext(
            deadline,
            flow=Flow(self.caller_name, self._priority()),
            trace=self.trace or NO_TRACE,
            paths=self._incoming.paths,
        )

    def check_scopes(self, scopes: Set[Scope]) -> None:
        """Checks a call whose scope is known only from its request; the key needs one of these.

        Raises:
            ScopeMissing: The key has none of them.
        """
        self._access.check_scopes(self.caller, scopes)

    async def admit_item(self, scopes: Set[Scope]) -> None:
        """Returns once an item of this stream may be served, for which a key needs one of the scopes.

        Raises:
            ServingError: The key does not permit it, or is no longer valid.
        """
        await self._access.admit_item(self.caller, scopes)

    def _let_in(self) -> None:
        rules = self._method.rules
        if rules.is_traced:
            _, service, name = self._method.labels
            self.trace = self._tracing.begin(service, name, self._incoming.metadata)
        self.caller = self._access.authorize(rules.scopes, self._incoming.credentials())
        if not rules.is_metered:
            self.caller.check()
            return
        quota = self._access.call(self.caller, counts_items=rules.counts_items)
        quota.__enter__()
        self._quota = quota

    def _priority(self) -> Priority:
        named = self._named_priority or self._incoming.priority()
        if named is None:
            return Priority.INTERACTIVE
        if named not in _PRIORITIES:
            raise InvalidArgument(
                f"{self._incoming.paths.priority}: unknown priority; send {' or '.join(_PRIORITIES)}"
            )
        return _PRIORITIES[named]

    def _seconds(self) -> HistogramSeries:
        rules = self._method.rules
        named = self._incoming.priority() if rules.is_metered else None
        if not rules.counts_items:
            named = self._named_priority or named
        priority = named if named in PRIORITIES else PRIORITIES[0]
        return self._method.seconds[priority, SIZES[rules.counts_items or self.items > 1]]

    def _code(self, error: BaseException | None) -> str | None:
        """Returns the code that the call ends with, or None if the error is unexpected."""
        if error is None:
            return "OK"
        if isinstance(error, ServingError):
            caller = self.caller_name if self._method.rules.is_metered else None
            self._method.count_refusal(error, caller, self.items)
            return error.code
        code = self._incoming.code_of(error)
        if code is not None or isinstance(error, Exception):
            return code
        return code_of_cancellation(self._incoming.seconds_left())


def kinds_of_calls(rules: MethodRules) -> list[tuple[str, str]]:
    """Returns the priorities and sizes that a method's calls can have; a stream counts as a batch."""
    if not rules.is_metered:
        return [(PRIORITIES[0], SIZES[0])]
    return list(product(PRIORITIES, SIZES[1:] if rules.counts_items else SIZES))


def code_of_cancellation(seconds_remaining: float | None) -> str:
    """Returns the code of a call that its door cancelled: by its client, or at its deadline."""
    if seconds_remaining is None or seconds_remaining > _DEADLINE_TOLERANCE_SECONDS:
        return "CANCELLED"
    return "DEADLINE_EXCEEDED"


def internal_error(where: str, error: BaseException) -> InternalError:
    """Logs an unexpected exception under a new id; returns the caller's error, which has only the id."""
    error_id = secrets.token_hex(8)
    _log.error("unexpected_error", where=where, error_id=error_id, exc_info=error)
    return InternalError(
        f"the server failed; report error id {error_id} to the operator", metadata={"error_id": error_id}
    )
