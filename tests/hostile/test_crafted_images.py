"""Images crafted to be expensive are refused, or embedded at the cost of ordinary ones."""

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
_MAX_LAG_PARSES = 20.0  # a quarter of it on an idle machine
_REFUSALS = [
    Outcome("INVALID_ARGUMENT", reason, ("images[0].content",))
    for reason in ("IMAGE_TOO_LARGE", "IMAGE_UNREADABLE")
]
# Files with broken metadata, or with parts that no limit covers, still have a complete picture.
_EMBEDDED = {name for name in SLOW if name.startswith(("PNG", "WEBP", "BMP, 5000", "BMP, runs of half"))}
_EMBEDDED |= {"APNG, first frame of 60,000²", "JPEG, 32,000 EXIF segments", "JPEG, 32,000 comments"}
_EMBEDDED |= {"JPEG, EXIF of 65,535 tags", "BMP, half bytes one by one", "BMP, 3 million pixels"}
_EMBEDDED |= {name for name in SLOW if "film" in name}
_EMBEDDED |= {"TIFF, 32,000 strips", "AVIF, 2,000 items", "AVIF, 25 million pixels"}
_EMBEDDED -= {"WEBP, 1.3 million empty chunks"}
# These take long even though they block no other call; `measure_images` sends them.
_LONG = {name for name in SLOW if "25 million" in name} | {"BMP, runs of nothing, 10 MB"}


@pytest.mark.long
@pytest.mark.parametrize("name", SIZES)
async def test_a_claimed_size_is_checked_before_memory_is_allocated(live: LiveServer, name: str) -> None:
    """Whatever size a file claims, opening and refusing it takes little more memory than its own bytes."""
    content = SIZES[name]()
    memory = live.watch_memory()

    outcome = await outcome_of(live.stub.EmbedImage(image_request(content)))

    assert outcome == OK if name in _EMBEDDED else outcome in _REFUSALS
    assert memory.growth < 6 * len(content) + (16 << 20)  # includes gRPC's copies


@pytest.mark.parametrize("name", sorted(SLOW.keys() - _LONG))
async def test_a_small_file_blocks_nothing(ticking: TickingServer, live: LiveServer, name: str) -> None:
    """The server process spends little time on a file, and its event loop keeps running."""
    content = SLOW[name]()
    process = psutil.Process(ticking.server.process.pid)
    outcomes: set[Outcome] = set()
    seconds = []

    async def attack() -> None:
        before = sum(process.cpu_times()[:2])  # its own times, not those of its children
        calls = [outcome_of(live.stub.EmbedImage(image_request(content))) for _ in range(_AT_ONCE)]
        outcomes.update(await asyncio.gather(*calls))
        seconds.append(sum(process.cpu_times()[:2]) - before)

    lag = await ticking.least_lag_in_parses(attack, _MAX_LAG_PARSES)

    assert outcomes == {OK} if name in _EMBEDDED else outcomes < set(_REFUSALS)
    assert min(seconds) < 0.4 * _AT_ONCE
    assert lag < _MAX_LAG_PARSES


async def test_large_pictures_take_no_memory_from_the_server(live: LiveServer) -> None:
    """They are decoded in separate processes, which return the memory."""
    content = SLOW["WEBP, 25 million pixels, lossless"]()
    memory = live.watch_memory()

    outcome = await outcome_of(live.stub.EmbedImage(image_request(content)))

    assert outcome == OK
    assert memory.growth < 2 * MAX_BYTES
