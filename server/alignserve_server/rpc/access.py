"""Who may call: API keys with their scopes and quotas, checked before a request is parsed."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

from alignserve_server.access.keys import Key, KeyRing, Scope
from alignserve_server.errors import KeyInvalid, KeyMissing, QuotaExceeded, ScopeMissing, ServingError
from alignserve_server.rpc.health import SERVICE

_METADATA_KEY = "authorization"
_SCHEME = "bearer"
_OPEN_SERVICES = ("grpc.health.v1.Health",)  # orchestrators and balancers have no key
_REFLECTION = "grpc.reflection."
_SCOPES = {
    f"/{SERVICE}/EmbedImage": {Scope.EMBED},
    f"/{SERVICE}/EmbedText": {Scope.EMBED},
    f"/{SERVICE}/Classify": {Scope.CLASSIFY},
    f"/{SERVICE}/StreamInfer": {Scope.EMBED, Scope.CLASSIFY},  # one of them; items are checked on their own
    f"/{SERVICE}/GetModelInfo": set(Scope),
}
_BURST_SECONDS = 1.0  # of a quota that may be used at once

Metadata = Sequence[tuple[str, str | bytes]]


@dataclass(slots=True)
class _Usage:
    """What a key has used of its quotas."""

    calls: int = 0  # under way
    used_until: float = -1e9  # monotonic seconds at which its requests so far are paid for


@dataclass(frozen=True, slots=True)
class Caller:
    """Whose call it is, as its key says; nobody's, where none is needed.

    One with a `refusal` may not make this call.
    """

    name: str | None = None
    key: Key | None = None  # whose quotas hold; None if none do
    refusal: ServingError | None = None
    usage: _Usage = field(default_factory=_Usage)


_NOBODY = Caller()
_current: ContextVar[Caller] = ContextVar("caller", default=_NOBODY)


def current_caller() -> Caller:
    """Returns who makes the call that this task serves.

    Raises:
        ServingError: The call is to be refused.
    """
    caller = _current.get()
    if caller.refusal is not None:
        raise caller.refusal
    return caller


def current_key_name() -> str | None:
    """Returns the name of the key that came with the call, be it refused or not; None without a valid one."""
    return _current.get().name


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

    def identify(self, method: str, metadata: Metadata) -> None:
        """Finds out who makes a call, for `current_caller` in the same task."""
        if self._keys is None:
            return
        try:
            _current.set(self._caller(method, metadata))
        except ServingError as error:
            _current.set(Caller(refusal=error))

    @contextmanager
    def call(self, *, counts_items: bool) -> Iterator[None]:
        """Lets a call in, for the block, if it is not refused and within its quotas.

        A stream counts as one of the calls at once, and its items as requests when they come.

        Raises:
            ServingError: The call is to be refused.
        """
        caller = current_caller()
        if caller.key is None:
            yield
            return
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
        caller.usage.calls += 1
        try:
            yield
        finally:
            caller.usage.calls -= 1

    async def admit_item(self, scope: Scope) -> None:
        """Returns when an item of a stream may be served. Its key may have changed since the stream began.

        Raises:
            ServingError: The item is to be refused.
        """
        caller = current_caller()
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

    def _caller(self, method: str, metadata: Metadata) -> Caller:
        assert self._keys is not None  # noqa: S101 — else nobody asks
        service = method.rpartition("/")[0].removeprefix("/")
        if service in _OPEN_SERVICES:
            return _NOBODY
        found = self._keys.find(_presented(metadata))
        if found is None:
            raise _key_invalid()
        name, key = found
        if service.startswith(_REFLECTION):  # beside the call for which a tool asks, or that had no room left
            return Caller(name)
        needed = _SCOPES.get(method, set(Scope))
        refusal = None if needed & key.scopes else _scope_missing(needed)
        return Caller(name, key, refusal, self._usage[name])

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


def _presented(metadata: Metadata) -> str:
    for name, value in metadata:
        if name == _METADATA_KEY:
            scheme, _, key = (value if isinstance(value, str) else "").partition(" ")
            if scheme.lower() == _SCHEME and key.strip():
                return key.strip()
    raise KeyMissing("no API key; send the metadata 'authorization: Bearer KEY'")


def _key_invalid() -> KeyInvalid:
    return KeyInvalid("the API key is unknown, revoked or has expired; ask the operator for another")


def _scope_missing(needed: set[Scope]) -> ScopeMissing:
    names = " or ".join(sorted(needed))
    return ScopeMissing(f"the API key lacks the scope {names}; ask the operator for one that has it")
