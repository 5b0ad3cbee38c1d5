"""Runs one case with one driver."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any

from tests.conformance.cases import Case, Step
from tests.conformance.driver import Driver
from tests.conformance.expectations import Golden, differences, expanded
from tests.conformance.relay import Relay
from tests.conformance.servers import CaseServer

_MAX_DIFFERENCES = 5  # that are shown
_POLL_SECONDS = 0.05


class CaseFailed(Exception):
    """The client did not do what the case expects; the message says what it did."""


def run_case(
    case: Case, driver: Driver, server: CaseServer, variables: Mapping[str, Any], golden: Golden
) -> None:
    """Connects the driver, and goes through the steps.

    Raises:
        CaseFailed: A step did not end as expected.
        DriverError: The driver broke the protocol.
        ServerError: A server could not be started or scripted.
    """
    with ExitStack() as stack:
        relay = stack.enter_context(Relay(server.port)) if case.has_relay else None
        target = f"127.0.0.1:{relay.port if relay else server.port}"
        known = {"target": target, **variables, **server.variables}
        run = _CaseRun(case, driver, server, relay, known, golden)
        run.connect(case.connect)
        for number, step in enumerate(case.steps, 1):
            run.step(number, step)
        run.close()


class _CaseRun:
    """A case in progress."""

    def __init__(
        self,
        case: Case,
        driver: Driver,
        server: CaseServer,
        relay: Relay | None,
        variables: Mapping[str, Any],
        golden: Golden,
    ) -> None:
        self._case = case
        self._driver = driver
        self._server = server
        self._relay = relay
        self._variables = variables
        self._golden = golden
        self._actions: dict[str, Callable[[Any], Any]] = {
            "call": self._call,
            "begin": self._begin,
            "progress": self._progress,
            "end": self._end,
            "connect": self.connect,
            "fake": self._fake,
            "stream_items": self._stream_items,
            "pause": time.sleep,
            "server": self._restart,
            "relay": self._disturb,
        }

    def step(self, number: int, step: Step) -> None:
        """Runs a step and checks its answer and its time."""
        argument = expanded(step.argument, self._variables)
        expected = expanded(step.expect, self._variables)
        start = time.monotonic()
        answer = self._actions[step.action](argument)
        seconds = time.monotonic() - start
        where = f"step {number} ({_title(step)})"
        if isinstance(answer, dict) and "unsupported" in answer:
            raise CaseFailed(f"{where}: unsupported: {answer['unsupported']}")
        if expected is not None and (found := differences(expected, answer, self._golden)):
            more = [f"and {len(found) - _MAX_DIFFERENCES} more"] if len(found) > _MAX_DIFFERENCES else []
            raise CaseFailed(f"{where}: " + "; ".join([*found[:_MAX_DIFFERENCES], *more]))
        if seconds < step.takes_at_least:
            raise CaseFailed(f"{where} took {seconds:.3g} s, expected at least {step.takes_at_least:g}")
        if step.takes_at_most is not None and seconds > step.takes_at_most:
            raise CaseFailed(f"{where} took {seconds:.3g} s, expected at most {step.takes_at_most:g}")

    def connect(self, options: Mapping[str, Any]) -> None:
        """Connects the driver to the server, with the case's options."""
        request = {"op": "connect", "target": self._variables["target"]}
        self._ok({**request, **expanded(dict(options), self._variables)})

    def close(self) -> None:
        """Closes the driver's connection."""
        self._ok({"op": "close"})

    def _ok(self, request: dict[str, Any]) -> None:
        answer = self._driver.ask(request, self._case.seconds)
        if "ok" not in answer:
            raise CaseFailed(f"{request['op']} failed: {answer}")

    def _call(self, request: dict[str, Any]) -> dict[str, Any]:
        return self._driver.ask(request, self._case.seconds)

    def _begin(self, request: dict[str, Any]) -> None:
        self._driver.begin(request)

    def _progress(self, count: int) -> None:
        self._driver.progress(count, self._case.seconds)

    def _end(self, _: None) -> dict[str, Any]:
        return self._driver.end(self._case.seconds)

    def _fake(self, call: dict[str, Any]) -> Any:
        name, arguments = next(iter(call.items()))
        answer = self._server.call(name, arguments or {})
        return _summary(answer) if name == "received" else answer

    def _stream_items(self, count: int) -> None:
        """Waits until the fake server has received `count` items of streams."""
        deadline = time.monotonic() + self._case.seconds
        while (items := self._fake({"received": None}).get("StreamInfer", {}).get("items", 0)) < count:
            if time.monotonic() > deadline:
                raise CaseFailed(f"{items} items of a stream arrived in time, expected {count}")
            time.sleep(_POLL_SECONDS)

    def _restart(self, how: str) -> None:
        self._server.restart(kill=how == "kill")

    def _disturb(self, how: str) -> Any:
        assert self._relay is not None
        if how == "connections":
            return self._relay.connection_count
        return {"cut": self._relay.cut, "freeze": self._relay.freeze}[how]()


def _summary(received: list[dict[str, Any]]) -> dict[str, Any]:
    """Returns the messages by method: each one, how many, how many items, and the shortest time between two.

    The first message of a stream can have options and no item.
    """
    methods: dict[str, Any] = {}
    for method in {call["method"] for call in received}:
        calls = [call for call in received if call["method"] == method]
        times = [call["at_seconds"] for call in calls]
        gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
        methods[method] = {
            "calls": calls,
            "count": len(calls),
            "items": sum("correlation_id" in call["request"] for call in calls),
            "min_gap_seconds": min(gaps, default=None),
        }
    return methods


def _title(step: Step) -> str:
    if isinstance(step.argument, dict):
        return f"{step.action} {step.argument.get('op') or next(iter(step.argument), '')}"
    return f"{step.action} {step.argument or ''}".strip()
