"""Images made by hand to cost much are refused or embedded at the price of ordinary ones."""

from __future__ import annotations

import asyncio

import psutil
import pytest

from tests.hostile.crafted import MAX_BYTES, SIZES, SLOW
from tests.hostile.lag import TickingServer
from tests.hostile.live import OK, LiveServer, Outcome, outcome_of
from tests.integration.serving import image_request

pytestmark = pytest.mark.hostile

_AT_ONCE = 2
_MOST_LAG_SECONDS = 0.2  # it is 0.05 on a machine with nothing else to do
_REFUSALS = [
    Outcome("INVALID_ARGUMENT", reason, ("images[0].content",))
    for reason in ("IMAGE_TOO_LARGE", "IMAGE_UNREADABLE")
]
# Of broken metadata, and of parts that no limit is against, a whole picture remains.
_EMBEDDED = {name for name in SLOW if name.startswith(("PNG", "WEBP", "BMP, 5000", "BMP, runs of half"))}
_EMBEDDED |= {"APNG, first frame of 60,000²", "JPEG, 32,000 EXIF segments", "JPEG, 32,000 comments"}
_EMBEDDED |= {"JPEG, EXIF of 65,535 tags", "BMP, half bytes one by one", "BMP, 3 million pixels"}
_EMBEDDED |= {name for name in SLOW if "film" in name}
_EMBEDDED |= {"TIFF, 32,000 strips", "AVIF, 2,000 items", "AVIF, 25 million pixels"}
_EMBEDDED -= {"WEBP, 1.3 million empty chunks"}
# They take long even where they hold nobody up; `measure_images` sends them.
_LONG = {name for name in SLOW if "25 million" in name} - {"WEBP, 25 million pixels"} | {
    "BMP, runs of nothing, 10 MB"
}


@pytest.mark.parametrize("name", SIZES)
async def test_a_size_is_checked_before_it_is_believed(live: LiveServer, name: str) -> None:
    """Whatever a file says of itself, opening and refusing it takes little more than its own bytes."""
    content = SIZES[name]()
    memory = live.watch_memory()

    outcome = await outcome_of(live.stub.EmbedImage(image_request(content)))

    assert outcome == OK if name in _EMBEDDED else outcome in _REFUSALS
    assert memory.growth < 6 * len(content) + (16 << 20)  # gRPC's copies too


@pytest.mark.parametrize("name", sorted(SLOW.keys() - _LONG))
async def test_a_small_file_holds_nobody_up(ticking: TickingServer, live: LiveServer, name: str) -> None:
    """The server itself spends little on a file, and its event loop goes on."""
    content = SLOW[name]()
    process = psutil.Process(ticking.server.process.pid)
    outcomes: set[Outcome] = set()
    seconds = []

    async def attack() -> None:
        before = sum(process.cpu_times()[:2])  # its own, not those of its children
        calls = [outcome_of(live.stub.EmbedImage(image_request(content))) for _ in range(_AT_ONCE)]
        outcomes.update(await asyncio.gather(*calls))
        seconds.append(sum(process.cpu_times()[:2]) - before)

    lag = await ticking.least_lag(attack, _MOST_LAG_SECONDS)

    assert outcomes == {OK} if name in _EMBEDDED else outcomes < set(_REFUSALS)
    assert min(seconds) < 0.4 * _AT_ONCE
    assert lag < _MOST_LAG_SECONDS


async def test_large_pictures_take_no_memory_of_the_server(live: LiveServer) -> None:
    """They are decoded in processes of their own, which give it back."""
    content = SLOW["WEBP, 25 million pixels, lossless"]()
    memory = live.watch_memory()

    outcome = await outcome_of(live.stub.EmbedImage(image_request(content)))

    assert outcome == OK
    assert memory.growth < 2 * MAX_BYTES
