"""Places in shared memory are shared out fairly, and reused."""

from __future__ import annotations

import asyncio
import gc
import mmap
import os
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from alignserve_server.errors import ModelLoading
from alignserve_server.fronts.memory import (
    FairPlaces,
    Places,
    attach,
    create,
    pixels_at,
    read_texts,
    write_texts,
)

from tests.unit.fakes import settle

_PAGE = mmap.PAGESIZE


@pytest.fixture
def shared() -> mmap.mmap:
    descriptor, memory = create(8 * _PAGE)
    os.close(descriptor)
    return memory


def fair(memory: mmap.mmap, count: int) -> FairPlaces:
    return FairPlaces(Places(memory, 0, count * _PAGE, _PAGE))


def resident_bytes(size: int) -> int:
    """Returns how much of mapped memory of a size has pages."""
    maps = Path("/proc/self/smaps").read_text()
    sizes = re.findall(r"memfd:alignserve-front.*\nSize: +(\d+) kB(?:\n.*)*?\nRss: +(\d+) kB", maps)
    return sum(1024 * int(resident) for mapped, resident in sizes if 1024 * int(mapped) == size)


def test_memory_is_seen_at_both_ends() -> None:
    descriptor, ours = create(2 * _PAGE)
    theirs = attach(descriptor, 2 * _PAGE)
    os.close(descriptor)

    ours[5:8] = b"abc"

    assert theirs[5:8] == b"abc"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: create(2 * _PAGE)[0], "does not have"),
        (lambda: os.memfd_create("plain"), "not sealed|Invalid argument"),
        (lambda: os.open("/dev/null", os.O_RDWR), "Invalid argument"),
    ],
    ids=["other size", "may shrink", "no memory"],
)
def test_memory_that_could_end_the_reader_is_refused(make: Callable[[], int], message: str) -> None:
    """Reading beyond the end of memory that has shrunk would end the process."""
    descriptor = make()

    with pytest.raises((ValueError, OSError), match=message):
        attach(descriptor, _PAGE)

    os.close(descriptor)


def test_a_place_is_taken_by_one(shared: mmap.mmap) -> None:
    places = Places(shared, _PAGE, 4 * _PAGE + 1, _PAGE)

    assert [places.take() for _ in range(4)] == [_PAGE, 2 * _PAGE, 3 * _PAGE, None]


def test_the_latest_place_is_reused_first(shared: mmap.mmap) -> None:
    """Its pages exist, so a lightly used front needs few."""
    places = Places(shared, 0, 8 * _PAGE, _PAGE)
    taken = places.take()
    assert taken is not None

    places.give_back(taken)

    assert places.take() == taken


def test_pages_of_many_free_places_return_to_the_system() -> None:
    size = 100 << 20
    descriptor, memory = create(size)
    os.close(descriptor)
    places = Places(memory, 0, size, 1 << 20)
    taken = [place for _ in range(100) if (place := places.take()) is not None]
    for place in taken:
        memory[place : place + (1 << 20)] = bytes(1 << 20)
    before = resident_bytes(size)

    for place in taken:
        places.give_back(place)

    assert (before, resident_bytes(size)) == (size, 64 << 20)


async def test_requests_wait_in_order(shared: mmap.mmap) -> None:
    """A small request does not overtake a large one, which would otherwise wait indefinitely."""
    places = fair(shared, 4)
    held = await places.take(3)
    large = asyncio.create_task(places.take(4))
    await settle()
    small = asyncio.create_task(places.take(1))
    await settle()
    assert places.take_now(1) is None

    places.give_back(held)
    await settle()

    assert large.done()
    assert not small.done()
    places.give_back(await large)
    assert len(await small) == 1


async def test_a_cancelled_request_lets_the_next_have_its_turn(shared: mmap.mmap) -> None:
    places = fair(shared, 4)
    await places.take(3)
    large = asyncio.create_task(places.take(4))
    await settle()
    small = asyncio.create_task(places.take(1))
    await settle()

    large.cancel()

    assert len(await small) == 1


async def test_a_request_cancelled_with_its_turn_gives_the_places_back(shared: mmap.mmap) -> None:
    places = fair(shared, 4)
    held = await places.take(4)
    waiting = asyncio.create_task(places.take(4))
    await settle()

    places.give_back(held)
    waiting.cancel()
    await asyncio.wait([waiting])

    assert waiting.cancelled()
    assert len(places.take_now(4) or ()) == 4


async def test_waiting_requests_fail_with_the_connection(shared: mmap.mmap) -> None:
    places = fair(shared, 1)
    await places.take(1)
    waiting = [asyncio.create_task(places.take(1)) for _ in range(2)]
    await settle()

    places.fail_waiting(lambda: ModelLoading("gone"))

    errors = await asyncio.gather(*waiting, return_exceptions=True)
    assert [type(error) for error in errors] == [ModelLoading] * 2
    assert errors[0] is not errors[1]


def test_texts_are_read_as_written(shared: mmap.mmap) -> None:
    texts, sizes = [b"1234", b"", b"12345678"], [3, 0, 2**32 - 1]

    write_texts(shared, _PAGE, texts, sizes)

    assert read_texts(shared, _PAGE, 3, 8) == (texts, sizes)


@pytest.mark.parametrize("place", [8 * _PAGE - 16, 8 * _PAGE, 2**40])
def test_texts_beyond_the_end_are_refused(shared: mmap.mmap, place: int) -> None:
    shared[8 * _PAGE - 16 :] = b"\xff" * 16

    with pytest.raises(ValueError, match="no 2 texts"):
        read_texts(shared, place, 2, 1 << 32)


def test_texts_of_impossible_length_are_refused(shared: mmap.mmap) -> None:
    """To copy them would take more memory than there may be."""
    shared[:16] = b"\xff" * 16

    with pytest.raises(ValueError, match="no 2 texts"):
        read_texts(shared, 0, 2, 256)


@pytest.mark.parametrize("place", [8 * _PAGE - 47, 2**62, 2**64 - 1])
def test_pixels_beyond_the_end_are_refused(shared: mmap.mmap, place: int) -> None:
    with pytest.raises((TypeError, ValueError, OverflowError)):
        pixels_at(shared, place, (4, 4, 3))


def test_memory_stays_mapped_while_pixels_are_read() -> None:
    """A batch may be running when its front goes away."""
    size = 3 * _PAGE
    descriptor, memory = create(size)
    os.close(descriptor)
    pixels = pixels_at(memory, 0, (4, 4, 3))
    pixels[:] = 7

    del memory
    gc.collect()

    assert np.all(pixels == 7)
    assert resident_bytes(size) == _PAGE
    del pixels
    assert resident_bytes(size) == 0
