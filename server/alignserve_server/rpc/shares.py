"""Limits that all connections share, so that none can take what the others need.

They bound what is held on behalf of a connection before a call is known, while its request arrives, and
after it has been answered, until its response is read. What calls take in between is bounded by
`batching.admission`, by caller, which a connection is not: one caller may have many, and a proxy's carries
many callers.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from alignserve_server.errors import TooManyStreams


@dataclass(eq=False, slots=True)
class _Waiter:
    amount: int
    turn: asyncio.Future[Share]


class ConnectionShares:
    """An amount of something, of which a connection may hold at most as much as is left to the others.

    These are dynamic thresholds (Choudhury and Hahne, 1998) with a factor of 1: one connection alone gets
    half, two get a third each, and something is always left for the next one. While nothing is held, whatever
    is asked for is granted. Belongs to the event loop's thread.
    """

    def __init__(self, limit: int, publish: Callable[[float], object] = lambda _: None) -> None:
        """Starts with nothing held; `publish` is told the total whenever it changes."""
        self.limit = limit
        self._publish = publish
        self._total = 0
        self._held: Counter[str] = Counter()
        self._waiting: dict[str, dict[_Waiter, None]] = {}  # by connection, in the order of their turns

    @property
    def total(self) -> int:
        """How much all connections hold."""
        return self._total

    def held_by(self, connection: str) -> int:
        """Returns how much a connection holds."""
        return self._held[connection]

    def fits(self, connection: str, amount: int = 1) -> bool:
        """Says whether `take` would succeed now."""
        return self._total == 0 or self._held[connection] + amount <= self.limit - self._total

    def take(self, connection: str, amount: int = 1) -> Share | None:
        """Takes an amount for a connection; returns None if it does not fit."""
        return Share(self, connection, amount) if self.fits(connection, amount) else None

    async def wait(self, connection: str, amount: int = 1) -> Share:
        """Takes an amount as soon as it fits. Those who wait on one connection are served in order."""
        if connection not in self._waiting and self.fits(connection, amount):
            return Share(self, connection, amount)
        waiter = _Waiter(amount, asyncio.get_running_loop().create_future())
        self._waiting.setdefault(connection, {})[waiter] = None
        try:
            return await waiter.turn
        except asyncio.CancelledError:
            if waiter.turn.done() and not waiter.turn.cancelled():
                waiter.turn.result().give_back()  # granted while being cancelled
            else:
                self._forget(connection, waiter)
                self._wake()  # a smaller one behind it may fit
            raise

    def _enter(self, connection: str, amount: int) -> None:
        self._total += amount
        self._held[connection] += amount
        self._publish(self._total)

    def _leave(self, connection: str, amount: int) -> None:
        self._total -= amount
        self._held[connection] -= amount
        if not self._held[connection]:
            del self._held[connection]
        self._publish(self._total)
        self._wake()

    def _wake(self) -> None:
        is_served = True
        while is_served:  # in rounds, so that connections take turns
            is_served = sum(map(self._wake_first_of, list(self._waiting))) > 0

    def _wake_first_of(self, connection: str) -> bool:
        """Serves the first one who waits on a connection, and says whether it fitted."""
        waiter = next(iter(self._waiting[connection]))
        if not self.fits(connection, waiter.amount):
            return False
        self._forget(connection, waiter)
        if connection in self._waiting:
            self._waiting[connection] = self._waiting.pop(connection)  # to the end, for the next time
        if not waiter.turn.cancelled():
            waiter.turn.set_result(Share(self, connection, waiter.amount))
        return True

    def _forget(self, connection: str, waiter: _Waiter) -> None:
        line = self._waiting.get(connection, {})
        line.pop(waiter, None)
        if not line:
            self._waiting.pop(connection, None)


class Share:
    """What a connection holds, until it is given back."""

    __slots__ = ("_amount", "_connection", "_shares")

    def __init__(self, shares: ConnectionShares, connection: str, amount: int) -> None:
        self._shares = shares
        self._connection = connection
        self._amount = amount
        shares._enter(connection, amount)

    def give_back(self) -> None:
        """Gives back all of it; more than once has no effect."""
        amount, self._amount = self._amount, 0
        if amount:
            self._shares._leave(self._connection, amount)


@contextmanager
def open_stream(streams: ConnectionShares, connection: str) -> Iterator[None]:
    """Counts a stream as open, for the block.

    Raises:
        TooManyStreams: Its connection has its share already.
    """
    share = streams.take(connection)
    if share is None:
        raise TooManyStreams(
            f"{streams.held_by(connection)} streams are open on this connection, {streams.total} "
            f"in all, limit {streams.limit}, some of it kept for other connections; end some, or spread "
            "them over more connections",
            retry_delay_seconds=1.0,
        )
    try:
        yield
    finally:
        share.give_back()
