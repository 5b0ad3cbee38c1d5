"""Who may call: API keys with their scopes and quotas, checked before a request is read."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Set
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

from alignserve_server.access.keys import Key, KeyRing, Scope
from alignserve_server.errors import KeyInvalid, KeyMissing, QuotaExceeded, ScopeMissing, ServingError

_SCHEME = "bearer"
_BURST_SECONDS = 1.0  # of a quota that may be used at once


@dataclass(slots=True)
class _Usage:
    """What a key has used of its quotas."""

    calls: int = 0  # under way
    used_until: float = -1e9  # monotonic seconds at which its requests so far are paid for


@dataclass(frozen=True, slots=True)
class Caller:
    """Whose call it is, as its key says; anonymous where none is needed."""

    name: str | None = None  # of a valid key
    key: Key | None = None
    refusal: ServingError | None = None  # if this call is not allowed
    usage: _Usage = field(default_factory=_Usage)

    def check(self) -> None:
        """Raises the refusal of a call that is not allowed."""
        if self.refusal is not None:
            raise self.refusal


ANONYMOUS = Caller()

_UNCOUNTED = nullcontext()


class _Counted:
    """One of the calls that a key has under way, for a block."""

    __slots__ = ("_usage",)

    def __init__(self, usage: _Usage) -> None:
        self._usage = usage

    def __enter__(self) -> None:
        self._usage.calls += 1

    def __exit__(self, *_: object) -> None:
        self._usage.calls -= 1


class Access:
    """Checks keys, scopes and quotas. Without a key ring everybody may do everything."""

    def __init__(
        self,
        keys: KeyRing | None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        self._keys = keys
        self._clock = clock
        self._sleep = sleep
        self._usage: defaultdict[str, _Usage] = defaultdict(_Usage)

    def authorize(self, scopes: Set[Scope] | None, credentials: Iterable[str]) -> Caller:
        """Finds out who calls, and whether the key allows it; a caller who may not has a `refusal`.

        Args:
            scopes: One of which the key needs; None if the call needs no key.
            credentials: What came as `authorization`, such as `Bearer KEY`; the first key counts.
        """
        if self._keys is None or scopes is None:
            return ANONYMOUS
        key = next(filter(None, map(_key_in, credentials)), None)
        if key is None:
            return Caller(refusal=KeyMissing("no API key; send the metadata 'authorization: Bearer KEY'"))
        found = self._keys.find(key)
        if found is None:
            return Caller(refusal=_key_invalid())
        name, known = found
        refusal = None if scopes & known.scopes else _scope_missing(scopes)
        return Caller(name, known, refusal, self._usage[name])

    def call(self, caller: Caller, *, counts_items: bool) -> AbstractContextManager[None]:
        """Lets a call in, for the block, if it is not refused and within its quotas.

        A stream counts as one of the calls at once, and its items as requests when they come.

        Raises:
            ServingError: The call is refused.
        """
        caller.check()
        if caller.key is None:
            return _UNCOUNTED
        self._check_concurrency(caller.key, caller.usage)
        if not counts_items:
            delay = self._pay(caller.key, caller.usage)
            if delay > 0:
                caller.usage.used_until -= _cost(caller.key)
                raise QuotaExceeded(
                    f"more than {caller.key.max_requests_per_second:g} requests a second; "
                    "retry after the delay given",
                    retry_delay_seconds=delay,
                )
        return _Counted(caller.usage)

    async def admit_item(self, caller: Caller, scope: Scope) -> None:
        """Returns when an item of a stream may be served. Its key may have changed since the stream began.

        Raises:
            ServingError: The item is refused.
        """
        if self._keys is None or caller.name is None or caller.key is None:
            return
        key = self._keys.renewed(caller.name, caller.key)
        if key is None:
            raise _key_invalid()
        if scope not in key.scopes:
            raise _scope_missing({scope})
        delay = self._pay(key, caller.usage)
        try:
            if delay > 0:
                await self._sleep(delay)
        except asyncio.CancelledError:  # else those who give up and try again would wait longer each time
            caller.usage.used_until -= _cost(key)
            raise

    def _check_concurrency(self, key: Key, usage: _Usage) -> None:
        if key.max_concurrent_requests is not None and usage.calls >= key.max_concurrent_requests:
            raise QuotaExceeded(
                f"{usage.calls} calls are under way, limit {key.max_concurrent_requests}; "
                "retry when one has ended",
                retry_delay_seconds=0.1,
            )

    def _pay(self, key: Key, usage: _Usage) -> float:
        """Takes a request off the quota; returns the seconds until it is paid for, 0 if it is already.

        Requests are spaced evenly, but for a second's worth of them at once: a token bucket, as the generic
        cell rate algorithm (ITU-T I.371) writes it.
        """
        if key.max_requests_per_second is None:
            return 0.0
        now, cost = self._clock(), _cost(key)
        usage.used_until = max(usage.used_until, now) + cost
        return max(0.0, usage.used_until - now - max(_BURST_SECONDS, cost))


def _cost(key: Key) -> float:
    return 1.0 / key.max_requests_per_second if key.max_requests_per_second else 0.0


def _key_in(credential: str) -> str:
    """Returns the key that a credential carries, or an empty string."""
    scheme, _, key = credential.partition(" ")
    return key.strip() if scheme.lower() == _SCHEME else ""


def _key_invalid() -> KeyInvalid:
    return KeyInvalid("the API key is unknown, revoked or has expired; ask the operator for another")


def _scope_missing(needed: Set[Scope]) -> ScopeMissing:
    names = " or ".join(sorted(needed))
    return ScopeMissing(f"the API key lacks the scope {names}; ask the operator for one that has it")
