"""What connections share: how much one may hold, and whose turn it is to take more."""

from __future__ import annotations

import asyncio

from alignserve_server.rpc.shares import ConnectionShares, Share

from tests.unit.fakes import settle


def taken(shares: ConnectionShares, connection: str) -> list[Share]:
    """Takes ones until no more fit."""
    return list(iter(lambda: shares.take(connection), None))


def test_a_connection_gets_what_it_leaves_free() -> None:
    """The first gets half, each later one half of what is left then."""
    shares = ConnectionShares(96)

    counts = [len(taken(shares, connection)) for connection in ("a", "b", "c")]

    assert counts == [48, 24, 12]


def test_connections_that_take_in_turn_get_as_much_as_is_left() -> None:
    """Nine share ten times what each of them gets."""
    shares = ConnectionShares(100)
    held = [0] * 9

    for _ in range(100):
        for number in range(9):
            held[number] += shares.take(str(number)) is not None

    assert held == [10] * 9


def test_what_is_too_large_is_granted_while_nothing_is_held() -> None:
    """It has passed the limits of a request, so it can be served alone."""
    shares = ConnectionShares(100)

    first = shares.take("a", 1000)
    second = shares.take("b")

    assert first is not None
    assert second is None


def test_what_is_given_back_counts_once() -> None:
    """However often it is given back."""
    totals: list[float] = []
    shares = ConnectionShares(100, totals.append)
    share = shares.take("a", 10)
    assert share is not None

    share.give_back()
    share.give_back()

    assert totals == [10, 0]


async def test_those_who_wait_are_served_in_order() -> None:
    """A small amount does not overtake a large one of its connection."""
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


async def test_a_connection_that_waits_holds_up_no_other() -> None:
    """Whoever has less is served at once."""
    shares = ConnectionShares(100)
    await shares.wait("a", 50)
    waiting = asyncio.ensure_future(shares.wait("a", 10))
    await settle()

    await shares.wait("b", 10)

    assert not waiting.done()
    waiting.cancel()


async def test_whoever_leaves_the_line_lets_the_next_one_pass() -> None:
    """And leaves nothing behind."""
    shares = ConnectionShares(100)
    await shares.wait("a", 45)
    large = asyncio.ensure_future(shares.wait("a", 50))
    small = asyncio.ensure_future(shares.wait("a", 2))
    await settle()

    large.cancel()
    await settle()

    assert small.done()
    assert shares._waiting == {}


async def test_what_is_granted_to_one_who_is_leaving_is_given_back() -> None:
    """It was cancelled in the same turn of the loop."""
    shares = ConnectionShares(100)
    first = await shares.wait("a", 50)
    waiting = asyncio.ensure_future(shares.wait("a", 50))
    await settle()

    first.give_back()
    waiting.cancel()
    await settle()

    assert shares.take("b", 50) is not None
    assert shares._total == 50
