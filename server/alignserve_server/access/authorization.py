"""Authorization: checks API keys, scopes and quotas before a request is read."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Set
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

from alignserve_server.access.keys import Key, KeyRing, Scope
from alignserve_server.access.usage import OwnUsage, Usage, Usages
from alignserve_server.errors import KeyInvalid, KeyMissing, QuotaExceeded, ScopeMissing, ServingError

_SCHEME = "bearer"
_BURST_SECONDS = 1.0  # of its rate, which a key can use in one burst


@dataclass(frozen=True, slots=True)
class Caller:
    """The caller, identified by its key; anonymous if none is needed."""

    name: str | None = None  # of the key, if it is valid
    key: Key | None = None
    refusal: ServingError | None = None  # set if this call is not permitted
    usage: Usage = field(default_factory=OwnUsage)

    def check(self) -> None:
        """Raises the refusal, if there is one."""
        if self.refusal is not None:
            raise self.refusal


ANONYMOUS = Caller()

_UNCOUNTED = nullcontext()


class _Counted:
    """A call in progress that is counted; ends with a block."""

    __slots__ = ("_usage",)

    def __init__(self, usage: Usage) -> None:
        self._usage = usage

    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None:
        self._usage.end()


class Access:
    """Checks keys, scopes and quotas. Without a key ring, every call is permitted."""

    def __init__(
        self,
        keys: KeyRing | None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
        usages: Usages | None = None,
    ) -> None:
        """Counts in this process, unless `usages` are shared with others."""
        self._keys = keys
        self._clock = clock
        self._sleep = sleep
        self._usages: Usages = defaultdict(OwnUsage) if usages is None else usages

    def authorize(self, scopes: Set[Scope] | None, credentials: Iterable[str]) -> Caller:
        """Identifies the caller and checks its key. The result has a `refusal` if the call is not permitted.

        Args:
            scopes: The key needs one of them; None if the call needs no key.
            credentials: Values of `authorization`, for example `Bearer KEY`; the first key counts.
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
        return Caller(name, known, refusal, self._usages[name])

    def call(self, caller: Caller, *, counts_items: bool) -> AbstractContextManager[None]:
        """Admits a call for the duration of the block, if it is permitted and within its quotas.

        A stream counts as one concurrent call, and each of its items as a request when it arrives.

        Raises:
            ServingError: The call is refused.
        """
        caller.check()
        if caller.key is None:
            return _UNCOUNTED
        _begin(caller.key, caller.usage)
        if not counts_items:
            delay = self._pay(caller.key, caller.usage)
            if delay > 0:
                caller.usage.end()
                caller.usage.refund(_cost(caller.key))
                raise QuotaExceeded(
                    f"more than {caller.key.max_requests_per_second:g} requests per second; "
                    "retry after the given delay",
                    retry_delay_seconds=delay,
                )
        return _Counted(caller.usage)

    def check_scopes(self, caller: Caller, scopes: Set[Scope]) -> None:
        """Does nothing if the caller's key has one of these scopes, or needs no key.

        Raises:
            ScopeMissing: It has none of them.
        """
        if caller.key is not None and not scopes & caller.key.scopes:
            raise _scope_missing(scopes)

    async def admit_item(self, caller: Caller, scopes: Set[Scope]) -> None:
        """Returns once an item of a stream may be served. The key may have changed since the stream started.

        It needs one of the scopes.

        Raises:
            ServingError: The item is refused.
        """
        if self._keys is None or caller.name is None or caller.key is None:
            return
        key = self._keys.renewed(caller.name, caller.key)
        if key is None:
            raise _key_invalid()
        if not scopes & key.scopes:
            raise _scope_missing(scopes)
        delay = self._pay(key, caller.usage)
        try:
            if delay > 0:
                await self._sleep(delay)
        except asyncio.CancelledError:  # otherwise callers that give up and retry would wait longer each time
            caller.usage.refund(_cost(key))
            raise

    def _pay(self, key: Key, usage: Usage) -> float:
        """Charges a request to the quota; returns the seconds until it may run, or 0.

        Requests are spaced evenly, except for a burst of one second's worth. This is a token bucket, written
        as the generic cell rate algorithm (ITU-T I.371).
        """
        if key.max_requests_per_second is None:
            return 0.0
        now, cost = self._clock(), _cost(key)
        return max(0.0, usage.pay(now, cost) - now - max(_BURST_SECONDS, cost))


def _begin(key: Key, usage: Usage) -> None:
    if not usage.begin(key.max_concurrent_requests):
        limit = key.max_concurrent_requests
        raise QuotaExceeded(
            f"{limit} calls are in progress, limit {limit}; retry when one has ended",
            retry_delay_seconds=0.1,
        )


def _cost(key: Key) -> float:
    return 1.0 / key.max_requests_per_second if key.max_requests_per_second else 0.0


def _key_in(credential: str) -> str:
    """Returns the key in a credential, or an empty string."""
    scheme, _, key = credential.partition(" ")
    return key.strip() if scheme.lower() == _SCHEME else ""


def _key_invalid() -> KeyInvalid:
    return KeyInvalid("the API key is unknown, revoked or has expired; ask the operator for another")


def _scope_missing(needed: Set[Scope]) -> ScopeMissing:
    names = " or ".join(sorted(needed))
    return ScopeMissing(f"the API key lacks the scope {names}; ask the operator for a key that has it")
