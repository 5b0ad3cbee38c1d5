"""Limits shared by connections: how much each may hold, and which one is next."""

from __future__ import annotations

import asyncio

from alignserve_server.rpc.shares import ConnectionShares, Share

from tests.unit.fakes import settle


def taken(shares: ConnectionShares, connection: str) -> list[Share]:
    """Takes amounts of 1 until no more fit."""
    return list(iter(lambda: shares.take(connection), None))


def test_a_connection_gets_as_much_as_it_leaves_free() -> None:
    """The first one gets half, and each later one half of the rest."""
    shares = ConnectionShares(96)

    counts = [len(taken(shares, connection)) for connection in ("a", "b", "c")]

    assert counts == [48, 24, 12]


def test_connections_that_take_turns_get_equal_shares() -> None:
    """Each of nine gets a tenth, and a tenth stays free."""
    shares = ConnectionShares(100)
    held = [0] * 9

    for _ in range(100):
        for number in range(9):
            held[number] += shares.take(str(number)) is not None

    assert held == [10] * 9


def test_any_amount_is_granted_while_nothing_is_held() -> None:
    """It is within the limits of a request, so it can be served on its own."""
    shares = ConnectionShares(100)

    first = shares.take("a", 1000)
    second = shares.take("b")

    assert first is not None
    assert second is None


def test_a_share_is_given_back_only_once() -> None:
    """Later calls have no effect."""
    totals: list[float] = []
    shares = ConnectionShares(100, totals.append)
    share = shares.take("a", 10)
    assert share is not None

    share.give_back()
    share.give_back()

    assert totals == [10, 0]


async def test_waiters_of_a_connection_are_served_in_order() -> None:
    """A small amount does not overtake a large one of the same connection."""
    shares = ConnectionShares(100)
    first = await shares.wait("a", 50)
    large = asyncio.ensure_future(shares.wait("a", 40))
    small = asyncio.ensure_future(shares.wait("a", 1))
    await settle()
    waited = (large.done(), small.done())

    first.give_back()
    await settle()

    assert waited == (False, False)
    assert (large.done(), small.done()) == (True, True)


async def test_a_waiting_connection_does_not_delay_others() -> None:
    """A connection that holds less is served immediately."""
    shares = ConnectionShares(100)
    await shares.wait("a", 50)
    waiting = asyncio.ensure_future(shares.wait("a", 10))
    await settle()

    await shares.wait("b", 10)

    assert not waiting.done()
    waiting.cancel()


async def test_a_cancelled_waiter_makes_way_for_the_next() -> None:
    """It leaves nothing behind."""
    shares = ConnectionShares(100)
    await shares.wait("a", 45)
    large = asyncio.ensure_future(shares.wait("a", 50))
    small = asyncio.ensure_future(shares.wait("a", 2))
    await settle()

    large.cancel()
    await settle()

    assert small.done()
    assert shares._waiting == {}


async def test_a_share_granted_to_a_cancelled_waiter_is_given_back() -> None:
    """It was granted and cancelled in the same iteration of the event loop."""
    shares = ConnectionShares(100)
    first = await shares.wait("a", 50)
    waiting = asyncio.ensure_future(shares.wait("a", 50))
    await settle()

    first.give_back()
    waiting.cancel()
    await settle()

    assert shares.take("b", 50) is not None
    assert shares._total == 50
