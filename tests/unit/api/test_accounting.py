"""Calls of every door are authorized, counted and timed."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from alignserve_server.access.authorization import Access
from alignserve_server.access.keys import KeyRing, Scope, changed_keys, new_key
from alignserve_server.api.accounting import Accounting, CallsInProgress, MethodMetrics
from alignserve_server.api.method_rules import MethodRules
from alignserve_server.batching.call import FieldPaths
from alignserve_server.batching.fair_queue import Priority
from alignserve_server.errors import InternalError, InvalidArgument, KeyMissing, QueueFull
from alignserve_server.observability.metrics import Metrics
from alignserve_server.observability.tracing import Tracing

RULES = MethodRules(scopes=frozenset({Scope.EMBED}))
UNMETERED = MethodRules(scopes=frozenset(Scope), is_metered=False, is_traced=False)


class DoorError(Exception):
    """An error that the door expects."""


@dataclass
class Incoming:
    """A call as a door describes it."""

    credential: str = ""
    named_priority: str | None = None
    left: float | None = None
    paths = FieldPaths(priority="header priority")

    def credentials(self) -> Iterable[str]:
        return [self.credential]

    def peer(self) -> str:
        return "host"

    def priority(self) -> str | None:
        return self.named_priority

    def seconds_left(self) -> float | None:
        return self.left

    def metadata(self) -> Iterable[tuple[str, Any]]:
        return []

    def code_of(self, error: BaseException) -> str | None:
        return "NOT_FOUND" if isinstance(error, DoorError) else None


def accounting_of(metrics: Metrics, keys: KeyRing | None = None) -> Accounting:
    return Accounting(metrics, Access(keys), Tracing(None, 0.0))


def handled(metrics: Metrics) -> dict[str, float]:
    """Returns the number of calls that have ended, by code."""
    (family,) = metrics.rpcs_handled.collect()
    return {sample.labels["grpc_code"]: sample.value for sample in family.samples if sample.value}


def method(accounting: Accounting, rules: MethodRules = RULES) -> MethodMetrics:
    return accounting.method("unary", "test", "Embed", rules)


@pytest.mark.parametrize(
    ("error", "left", "raised", "code"),
    [
        (QueueFull("full"), None, QueueFull, "RESOURCE_EXHAUSTED"),
        (DoorError(), None, DoorError, "NOT_FOUND"),
        (ValueError("secret"), None, InternalError, "INTERNAL"),
        (asyncio.CancelledError(), None, asyncio.CancelledError, "CANCELLED"),
        (asyncio.CancelledError(), 5.0, asyncio.CancelledError, "CANCELLED"),
        (asyncio.CancelledError(), 0.0, asyncio.CancelledError, "DEADLINE_EXCEEDED"),
    ],
)
async def test_a_call_ends_with_the_code_of_its_error(
    metrics: Metrics, error: BaseException, left: float | None, raised: type[BaseException], code: str
) -> None:
    """The door decides which errors it expects; any other error is a failure of the server."""
    accounting = accounting_of(metrics)

    with pytest.raises(raised) as caught, accounting.call(method(accounting), Incoming(left=left)):
        raise error

    assert handled(metrics) == {code: 1}
    assert "secret" not in str(caught.value)


async def test_a_call_has_its_caller_priority_and_deadline(metrics: Metrics) -> None:
    """The deadline is a time of the event loop's clock."""
    accounting = accounting_of(metrics)
    before = asyncio.get_running_loop().time()

    with accounting.call(method(accounting), Incoming(named_priority="bulk", left=10.0)) as call:
        context = call.context()

    assert context.flow == ("host", Priority.BULK)
    assert context.deadline is not None
    assert context.deadline >= before + 10.0


@pytest.mark.parametrize("left", [None, math.inf])
async def test_a_call_without_a_deadline_has_none(metrics: Metrics, left: float | None) -> None:
    """None and infinity both mean that there is no deadline."""
    accounting = accounting_of(metrics)

    with accounting.call(method(accounting), Incoming(left=left)) as call:
        assert call.context().deadline is None


async def test_an_unknown_priority_is_refused_with_the_doors_field_name(metrics: Metrics) -> None:
    """What gRPC calls metadata is a header for other doors."""
    accounting = accounting_of(metrics)

    with (
        pytest.raises(InvalidArgument, match=r"^header priority: unknown priority; send interactive or"),
        accounting.call(method(accounting), Incoming(named_priority="urgent")) as call,
    ):
        call.context()


async def test_unmetered_calls_need_a_key_and_have_no_quota(metrics: Metrics, tmp_path: Path) -> None:
    """For example reflection, which tools use in addition to the call that they make."""
    with changed_keys(tmp_path / "keys.json") as keys:
        key, keys["search"] = new_key("search", frozenset({Scope.EMBED}), max_requests_per_second=1)
    accounting = accounting_of(metrics, KeyRing(tmp_path / "keys.json"))
    unmetered = method(accounting, UNMETERED)

    with pytest.raises(KeyMissing), accounting.call(unmetered, Incoming()):
        pass
    for _ in range(3):
        with accounting.call(unmetered, Incoming(f"Bearer {key}")):
            pass

    assert handled(metrics) == {"UNAUTHENTICATED": 1, "OK": 3}
    assert metrics.caller_items.labels("anonymous", "refused").value == 0


async def test_a_stop_waits_until_the_last_call_has_ended() -> None:
    """Without a call in progress it does not wait."""
    calls = CallsInProgress()
    await calls.wait_for_end()
    calls.begin()
    calls.begin()
    waiting = asyncio.ensure_future(calls.wait_for_end())

    calls.end()
    await asyncio.sleep(0)
    is_waiting = not waiting.done()
    calls.end()
    await waiting

    assert (is_waiting, calls.started) == (True, 2)
