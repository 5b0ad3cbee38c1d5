"""Limits shared by all connections, so that none can take what the others need.

They bound what a connection holds before a call is admitted, while its request arrives, and after the work,
until its response is read. In between, `batching.admission` bounds what each caller holds. A connection is
not a caller: a caller may have many connections, and a proxy's connection carries many callers.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from alignserve_server.errors import TooManyStreams


@dataclass(eq=False, slots=True)
class _Waiter:
    amount: int
    turn: asyncio.Future[Share]


class ConnectionShares:
    """A limited amount, of which each connection may hold at most as much as is free.

    These are dynamic thresholds (Choudhury and Hahne, 1998) with a factor of 1: a single connection gets
    half, two get a third each, and there is always something left for the next one. While nothing is held,
    any amount is granted. Only for the event loop's thread.
    """

    def __init__(self, limit: int, publish: Callable[[float], object] = lambda _: None) -> None:
        """Starts with nothing held; `publish` is called with the total whenever it changes."""
        self.limit = limit
        self._publish = publish
        self._total = 0
        self._held: dict[str, int] = {}
        self._waiting: dict[str, dict[_Waiter, None]] = {}  # by connection; both in the order of service

    @property
    def total(self) -> int:
        """The amount that all connections hold."""
        return self._total

    def held_by(self, connection: str) -> int:
        """Returns the amount that a connection holds."""
        return self._held.get(connection, 0)

    def fits(self, connection: str, amount: int = 1) -> bool:
        """Returns whether `take` would succeed now."""
        return self._total == 0 or self._held.get(connection, 0) + amount <= self.limit - self._total

    def take(self, connection: str, amount: int = 1) -> Share | None:
        """Takes an amount for a connection; returns None if it does not fit."""
        return Share(self, connection, amount) if self.fits(connection, amount) else None

    def take_in_turn(self, connection: str, amount: int = 1) -> Share | None:
        """Takes an amount if `wait` would not have to wait; otherwise returns None."""
        return None if connection in self._waiting else self.take(connection, amount)

    async def wait(self, connection: str, amount: int = 1) -> Share:
        """Takes an amount as soon as it fits. Waiters of the same connection are served in order."""
        share = self.take_in_turn(connection, amount)
        if share is not None:
            return share
        waiter = _Waiter(amount, asyncio.get_running_loop().create_future())
        self._waiting.setdefault(connection, {})[waiter] = None
        try:
            return await waiter.turn
        except asyncio.CancelledError:
            if waiter.turn.done() and not waiter.turn.cancelled():
                waiter.turn.result().give_back()  # granted while being cancelled
            else:
                self._forget(connection, waiter)
                self._wake()  # a smaller amount behind it may fit
            raise

    def _enter(self, connection: str, amount: int) -> None:
        self._total += amount
        self._held[connection] = self._held.get(connection, 0) + amount
        self._publish(self._total)

    def _leave(self, connection: str, amount: int) -> None:
        self._total -= amount
        self._held[connection] -= amount
        if not self._held[connection]:
            del self._held[connection]
        self._publish(self._total)
        if self._waiting:
            self._wake()

    def _wake(self) -> None:
        is_served = True
        while is_served:  # in rounds, so that connections take turns
            is_served = sum(map(self._wake_first_of, list(self._waiting))) > 0

    def _wake_first_of(self, connection: str) -> bool:
        """Serves a connection's first waiter if its amount fits; returns whether it did."""
        waiter = next(iter(self._waiting[connection]))
        if not self.fits(connection, waiter.amount):
            return False
        self._forget(connection, waiter)
        if connection in self._waiting:
            self._waiting[connection] = self._waiting.pop(connection)  # its next turn is last
        if not waiter.turn.cancelled():
            waiter.turn.set_result(Share(self, connection, waiter.amount))
        return True

    def _forget(self, connection: str, waiter: _Waiter) -> None:
        line = self._waiting.get(connection, {})
        line.pop(waiter, None)
        if not line:
            self._waiting.pop(connection, None)


class Share:
    """An amount held by a connection until it is given back."""

    __slots__ = ("_amount", "_connection", "_shares")

    def __init__(self, shares: ConnectionShares, connection: str, amount: int) -> None:
        self._shares = shares
        self._connection = connection
        self._amount = amount
        shares._enter(connection, amount)

    def give_back(self) -> None:
        """Gives it back; calling it again has no effect."""
        amount, self._amount = self._amount, 0
        if amount:
            self._shares._leave(self._connection, amount)


@contextmanager
def open_stream(streams: ConnectionShares, connection: str) -> Iterator[None]:
    """Counts a stream as open during the block.

    Raises:
        TooManyStreams: The connection already has its share of open streams.
    """
    share = streams.take(connection)
    if share is None:
        raise TooManyStreams(
            f"{streams.held_by(connection)} streams are open on this connection, {streams.total} on all "
            f"connections, limit {streams.limit}, of which a part is reserved for other connections; end "
            "some, or spread them over more connections",
            retry_delay_seconds=1.0,
        )
    try:
        yield
    finally:
        share.give_back()
