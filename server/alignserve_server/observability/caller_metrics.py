"""Usage by caller: counts items by the names that the operator has given, and only by those.

`rpc.callers` names a caller by key, certificate or host. A key has series as long as it is in its file, and a
certificate from its first call on; all hosts share one series.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from alignserve_server.observability.instruments import Computed, Counter

CALLER_OUTCOMES = ("accepted", "rejected")
ANONYMOUS = "anonymous"  # hosts, and calls whose key is missing or invalid
OTHER = "other"  # names beyond the maximum number of series

KEY, CERTIFICATE = "key:", "certificate:"  # prefixes of the names that identify callers

_MAX_NAMES = 1000  # of keys, and as many of certificates
_MAX_NAME_CHARACTERS = 100


class CallerMetrics:
    """Counts items by caller. Only for the event loop's thread, except for reading the waiting items."""

    def __init__(
        self,
        items: Counter,
        waiting: Computed,
        *,
        max_names: int = _MAX_NAMES,
        counts_calls: bool = True,
    ) -> None:
        """Starts with the series of anonymous callers.

        Args:
            items: Counts items by name and outcome.
            waiting: Shows waiting items by name.
            max_names: Maximum number of keys with series of their own; the same for certificates.
            counts_calls: Whether items are counted here, so that callers are known before they wait. If not,
                other processes have checked who calls, and a caller's name is part of what it waits as.
        """
        self._items = items
        self._max_names = max_names
        self._counts_calls = counts_calls
        self._key_names: dict[str, str] = {}  # by caller
        self._certificate_names: dict[str, str] = {}
        self._waiting: dict[str, int] = {}  # by caller, without those that have none
        self._begin(ANONYMOUS)
        waiting.set_function(self._waiting_by_name)

    def set_keys(self, keys: Collection[str]) -> None:
        """Sets the names of the current keys; the series of other keys are removed."""
        old = set(self._key_names.values())
        names = {
            f"{KEY}{key}": _name_of_key(key) if position < self._max_names else OTHER
            for position, key in enumerate(keys)
        }
        self._key_names = names
        for name in {*names.values()} - old:
            self._begin(name)
        for name in old - {*names.values(), OTHER}:
            for outcome in CALLER_OUTCOMES:
                self._items.remove(name, outcome)

    def accept(self, caller: str, items: int) -> None:
        """Counts items that were admitted."""
        self._items.labels(self._name(caller), "accepted").inc(items)

    def refuse(self, caller: str, items: int) -> None:
        """Counts items that were refused."""
        self._items.labels(self._name(caller), "rejected").inc(items)

    def wait(self, caller: str, items: int) -> None:
        """Counts items that start to wait, or, if below 0, that no longer do."""
        waiting = self._waiting.get(caller, 0) + items
        if waiting:
            if not (self._counts_calls or caller in self._waiting):
                self._learn(caller)
            self._waiting[caller] = waiting
        else:
            self._waiting.pop(caller, None)

    def _learn(self, caller: str) -> None:
        """Gives a caller with a key or certificate its name."""
        if caller.startswith(KEY) and caller not in self._key_names:
            key = caller.removeprefix(KEY)
            self._key_names[caller] = _name_of_key(key) if len(self._key_names) < self._max_names else OTHER
        elif caller.startswith(CERTIFICATE):
            self._name(caller)

    def _begin(self, name: str) -> None:
        for outcome in CALLER_OUTCOMES:
            self._items.labels(name, outcome)

    def _name(self, caller: str) -> str:
        name = self._known_name(caller)
        if name is None and caller.startswith(CERTIFICATE):
            name = caller[:_MAX_NAME_CHARACTERS] if len(self._certificate_names) < self._max_names else OTHER
            if name != OTHER:
                self._certificate_names[caller] = name
            self._begin(name)
        return name or ANONYMOUS

    def _known_name(self, caller: str) -> str | None:
        return self._key_names.get(caller) or self._certificate_names.get(caller)

    def _waiting_by_name(self) -> Mapping[tuple[str, ...], float]:
        names = (ANONYMOUS, *list(self._key_names.values()), *list(self._certificate_names.values()))
        found: dict[tuple[str, ...], float] = dict.fromkeys(((name,) for name in names), 0.0)
        for caller, waiting in list(self._waiting.items()):
            name = self._known_name(caller) or (OTHER if caller.startswith(CERTIFICATE) else ANONYMOUS)
            found[name,] = found.get((name,), 0.0) + waiting
        return found


def _name_of_key(key: str) -> str:
    return f"{KEY}{key}" if key in (ANONYMOUS, OTHER) else key
