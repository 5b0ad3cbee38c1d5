"""Who uses how much: items by the names that the operator has given to callers, and no others.

A caller is named as `rpc.callers` does: by key, certificate or host. Keys have series from the start, until
they are taken out of their file; certificates from their first call; hosts share one.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from alignserve_server.observability.instruments import Computed, Counter

CALLER_OUTCOMES = ("accepted", "rejected")
ANONYMOUS = "anonymous"  # hosts, and calls whose key is missing or not valid
OTHER = "other"  # than the first names, where there are more than have series

KEY, CERTIFICATE = "key:", "certificate:"  # before a name, in what identifies a caller

_MAX_NAMES = 1000  # of keys, and of certificates
_MAX_NAME_CHARACTERS = 100


class CallerMetrics:
    """Counts items by caller. All but the reading of what waits belongs to the event loop's thread."""

    def __init__(self, items: Counter, waiting: Computed, *, max_names: int = _MAX_NAMES) -> None:
        """Starts with the series of nameless callers.

        Args:
            items: By name and outcome.
            waiting: By name.
            max_names: Most keys, and most certificates, that have series of their own.
        """
        self._items = items
        self._max_names = max_names
        self._key_names: dict[str, str] = {}  # by caller
        self._certificate_names: dict[str, str] = {}
        self._waiting: dict[str, int] = {}  # by caller, of those who have any
        self._begin(ANONYMOUS)
        waiting.set_function(self._waiting_by_name)

    def know_keys(self, keys: Collection[str]) -> None:
        """Takes the names of the keys that there are now; those that are gone lose their series."""
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
        """Counts items that begin to wait, or, less than 0, have ended to."""
        waiting = self._waiting.get(caller, 0) + items
        if waiting:
            self._waiting[caller] = waiting
        else:
            self._waiting.pop(caller, None)

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
