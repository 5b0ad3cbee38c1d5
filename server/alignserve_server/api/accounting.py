"""The account of a call: who makes it, whether it may, how long it takes and how it ends.

A door opens it around each call, and tells by an `IncomingCall` what only it knows.
"""

from __future__ import annotations

import asyncio
import math
import secrets
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import product
from types import TracebackType
from typing import Any, Protocol

from alignserve_server.access.authorization import ANONYMOUS, Access, Caller
from alignserve_server.access.keys import Scope
from alignserve_server.api.method_rules import MethodRules
from alignserve_server.batching.call import NO_TRACE, CallContext, FieldPaths
from alignserve_server.batching.fair_queue import Flow, Priority
from alignserve_server.errors import InternalError, InvalidArgument, ServingError
from alignserve_server.observability.caller_metrics import KEY
from alignserve_server.observability.instruments import Distribution, Number
from alignserve_server.observability.logs import get_logger
from alignserve_server.observability.metrics import PRIORITIES, SIZES, Metrics
from alignserve_server.observability.tracing import CallTrace, Tracing

_log = get_logger(__name__)

_PRIORITIES = {priority.name.lower(): priority for priority in Priority}

# A client's own timer runs from before the request was on its way, so at the deadline its reset comes first.
_DEADLINE_TOLERANCE_SECONDS = 0.02


class IncomingCall(Protocol):
    """What a door knows of a call. It is asked only for what is needed."""

    @property
    def paths(self) -> FieldPaths:
        """What the call's fields are called, in errors."""
        ...

    def credentials(self) -> Iterable[str]:
        """Returns what came as `authorization`."""
        ...

    def peer(self) -> str:
        """Returns who calls, if no API key tells: see `observability.caller_metrics`."""
        ...

    def priority(self) -> str | None:
        """Returns the priority as the caller names it; None for the default."""
        ...

    def seconds_left(self) -> float | None:
        """Returns the time until the caller's deadline; None or infinity without one."""
        ...

    def metadata(self) -> Iterable[tuple[str, Any]]:
        """Returns names and values among which a `traceparent` may be."""
        ...

    def code_of(self, error: BaseException) -> str | None:
        """Returns the code with which the call ends if the door expects such an error, or else None."""
        ...


class CallsUnderWay:
    """The calls that a stop waits for."""

    def __init__(self) -> None:
        self.started = 0  # since the start
        self._count = 0
        self._none_left = asyncio.Event()
        self._none_left.set()

    def begin(self) -> None:
        """Counts a call until `end`, which its door calls once the answer is written."""
        self.started += 1
        self._count += 1
        self._none_left.clear()

    def end(self) -> None:
        """Takes note that one of the calls is over."""
        self._count -= 1
        if not self._count:
            self._none_left.set()

    async def wait_for_end(self) -> None:
        """Returns once there are none."""
        await self._none_left.wait()


class Accounting:
    """Opens the accounts of all calls, whichever door they come by."""

    def __init__(self, metrics: Metrics, access: Access, tracing: Tracing) -> None:
        self.metrics = metrics
        self.under_way = CallsUnderWay()
        self._access = access
        self._tracing = tracing

    def method(self, kind: str, service: str, name: str, rules: MethodRules) -> MethodMetrics:
        """Prepares the accounts of a method's calls.

        Args:
            kind: The metrics' label `grpc_type`, such as `unary`.
            service: Their label `grpc_service`.
            name: Their label `grpc_method`.
            rules: The method's row in its door's table.
        """
        return MethodMetrics(self.metrics, (kind, service, name), rules)

    @contextmanager
    def call(self, method: MethodMetrics, incoming: IncomingCall) -> Iterator[CallScope]:
        """Lets a call in, for the block, and accounts for it. Unexpected errors become `InternalError`.

        Raises:
            ServingError: It is refused by its key, or by the quotas of that.
        """
        rules = method.rules
        with CallScope(method, incoming, self._access) as call:
            if rules.is_traced:
                _, service, name = method.labels
                call.trace = self._tracing.begin(service, name, incoming.metadata)
            call.caller = self._access.authorize(rules.scopes, incoming.credentials())
            if not rules.is_metered:
                call.caller.check()
                yield call
                return
            with self._access.call(call.caller, counts_items=rules.counts_items):
                yield call


class MethodMetrics:
    """The metrics of one method's calls; each series is looked up once."""

    def __init__(self, metrics: Metrics, labels: tuple[str, str, str], rules: MethodRules) -> None:
        self.labels = labels
        self.path = f"/{labels[1]}/{labels[2]}"
        self.rules = rules
        self.started = metrics.rpcs_started.labels(*labels)
        self.seconds: dict[tuple[str, str], Distribution] = {
            kind: metrics.rpc_seconds.labels(*labels, *kind) for kind in kinds_of_calls(rules)
        }
        self.count_refusal = metrics.count_refusal
        self._handled = metrics.rpcs_handled
        self._handled_by_code: dict[str, Number] = {}

    def handled(self, code: str) -> Number:
        """Returns the counter of calls that end with a code."""
        if code not in self._handled_by_code:
            self._handled_by_code[code] = self._handled.labels(*self.labels, code)
        return self._handled_by_code[code]


class CallScope:
    """One call that is accounted for."""

    __slots__ = ("_access", "_incoming", "_method", "_start", "caller", "items", "trace")

    def __init__(self, method: MethodMetrics, incoming: IncomingCall, access: Access) -> None:
        self.items = 0  # images or texts, as soon as they are known
        self.caller: Caller = ANONYMOUS
        self.trace: CallTrace | None = None  # if it is followed
        self._method = method
        self._incoming = incoming
        self._access = access

    def __enter__(self) -> CallScope:
        self._start = time.perf_counter()
        self._method.started.inc()
        return self

    def __exit__(
        self, _: type[BaseException] | None, error: BaseException | None, __: TracebackType | None
    ) -> None:
        code = self._code(error)
        exemplar = None if self.trace is None else self.trace.exemplar
        self._seconds().observe(time.perf_counter() - self._start, exemplar)
        self._method.handled(code or "INTERNAL").inc()
        if self.trace is not None:
            self.trace.end(code or "INTERNAL", error)
        if code is None:  # nothing unexpected may reach the door, which would send its text
            assert isinstance(error, Exception)  # noqa: S101 — `_code` knows all others
            raise internal_error(self._method.path, error) from error

    @property
    def caller_name(self) -> str:
        """Who calls: by its API key, or else as its door knows it."""
        name = self.caller.name
        return self._incoming.peer() if name is None else f"{KEY}{name}"

    def context(self) -> CallContext:
        """Returns what batching needs to know of the call.

        Raises:
            InvalidArgument: There is no such priority.
        """
        deadline, left = None, self._incoming.seconds_left()
        if left is not None and math.isfinite(left):
            deadline = asyncio.get_running_loop().time() + left
        return CallContext(
            deadline,
            flow=Flow(self.caller_name, self._priority()),
            trace=self.trace or NO_TRACE,
            paths=self._incoming.paths,
        )

    async def admit_item(self, scope: Scope) -> None:
        """Returns when an item of this stream may be served.

        Raises:
            ServingError: The key does not allow it, or not any more.
        """
        await self._access.admit_item(self.caller, scope)

    def _priority(self) -> Priority:
        named = self._incoming.priority()
        if named is None:
            return Priority.INTERACTIVE
        if named not in _PRIORITIES:
            raise InvalidArgument(
                f"{self._incoming.paths.priority}: no such priority; send {' or '.join(_PRIORITIES)}"
            )
        return _PRIORITIES[named]

    def _seconds(self) -> Distribution:
        rules = self._method.rules
        named = self._incoming.priority() if rules.is_metered else None
        priority = named if named in PRIORITIES else PRIORITIES[0]
        return self._method.seconds[priority, SIZES[rules.counts_items or self.items > 1]]

    def _code(self, error: BaseException | None) -> str | None:
        """Names the code with which the call ends, or None if the error is unexpected."""
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
    """Returns the priorities and sizes that calls of a method can have; a stream of items is a batch."""
    if not rules.is_metered:
        return [(PRIORITIES[0], SIZES[0])]
    return list(product(PRIORITIES, SIZES[1:] if rules.counts_items else SIZES))


def code_of_cancellation(seconds_remaining: float | None) -> str:
    """Names what ended a call that its door cancelled: its client, or its deadline."""
    if seconds_remaining is None or seconds_remaining > _DEADLINE_TOLERANCE_SECONDS:
        return "CANCELLED"
    return "DEADLINE_EXCEEDED"


def internal_error(where: str, error: BaseException) -> InternalError:
    """Logs an unexpected exception under a new id and returns what the caller may know of it."""
    error_id = secrets.token_hex(8)
    _log.error("unexpected_error", where=where, error_id=error_id, exc_info=error)
    return InternalError(
        f"the server failed; report error id {error_id} to the operator", metadata={"error_id": error_id}
    )
