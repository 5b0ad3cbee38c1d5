"""How much of its quotas each key has used."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

LONG_AGO = -1e9


class Usage(Protocol):
    """What one key has used. Use only on the event loop's thread."""

    def begin(self, limit: int | None) -> bool:
        """Counts a call in progress, unless there are as many as the limit; returns whether it did."""
        ...

    def end(self) -> None:
        """Counts the end of a call."""
        ...

    def pay(self, now: float, cost: float) -> float:
        """Charges a request; returns the monotonic time at which the key's rate has paid for all so far."""
        ...

    def refund(self, cost: float) -> None:
        """Takes back a charge."""
        ...


class Usages(Protocol):
    """The usage of all keys."""

    def __getitem__(self, name: str) -> Usage:
        """Returns the usage of a key, by its name."""
        ...


@dataclass(slots=True)
class OwnUsage:
    """The usage of a key in this process."""

    calls: int = 0  # in progress
    paid_until: float = LONG_AGO

    def begin(self, limit: int | None) -> bool:
        if limit is not None and self.calls >= limit:
            return False
        self.calls += 1
        return True

    def end(self) -> None:
        self.calls -= 1

    def pay(self, now: float, cost: float) -> float:
        self.paid_until = max(self.paid_until, now) + cost
        return self.paid_until

    def refund(self, cost: float) -> None:
        self.paid_until -= cost
