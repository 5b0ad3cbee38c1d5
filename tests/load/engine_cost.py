"""The part of `cpu_cost` that calls the engine: measures a turn for each line of standard input."""

import asyncio
import json
import sys
import time
from collections.abc import Awaitable, Callable
from functools import partial
from itertools import count

from alignserve_server.batching.call import CallContext
from alignserve_server.batching.engine import Engine
from alignserve_server.model.fake import FakeEncoder
from alignserve_server.model.zero_shot import LabelSet
from alignserve_server.serving.server import Server
from alignserve_server.settings import Settings

CALLS = 192  # of each kind in a turn
LABELS = [f"label {number}" for number in range(10)]
_numbers = count()

Costs = dict[str, float]
Rows = dict[str, tuple[Callable[[], Awaitable[object]], int]]  # an operation, and how many calls it makes


async def measured(rows: Rows, cpu_seconds: Callable[[], float]) -> Costs:
    """Returns the microseconds of a call of each row."""
    costs = {}
    for name, (work, calls) in rows.items():
        start = cpu_seconds()
        for _ in range(CALLS // calls):
            await work()
        costs[name] = (cpu_seconds() - start) / CALLS * 1e6
    return costs


async def at_once(work: Callable[[], Awaitable[object]], times: int) -> None:
    """Runs an operation several times at once."""
    await asyncio.gather(*(work() for _ in range(times)))


def new_texts(number: int) -> list[str]:
    """Returns texts that no cache holds."""
    return [f"a photo of number {next(_numbers)}" for _ in range(number)]


def new_image() -> bytes:
    """Returns an image that no cache holds."""
    return f"image {next(_numbers)}".encode()


async def _main() -> None:
    engine, call = await _loaded_engine(), CallContext()
    label_set = LabelSet.of(LABELS, [])
    text = lambda: engine.embed_texts(new_texts(1), call)  # noqa: E731
    rows: Rows = {
        "engine: 1 text": (text, 1),
        "engine: 1 text, 32 at once": (partial(at_once, text, 32), 32),
        "engine: 8 texts": (lambda: engine.embed_texts(new_texts(8), call), 1),
        "engine: 1 image": (lambda: engine.embed_images([new_image()], call), 1),
        "engine: Classify": (lambda: engine.classify([new_image()], label_set, 0, call, id), 1),
    }
    for _ in sys.stdin:
        print(json.dumps(await measured(rows, time.process_time)), flush=True)


async def _loaded_engine() -> Engine:
    settings = Settings(listen="127.0.0.1:0", metrics_listen="127.0.0.1:0", lanes=1)
    server = Server(settings, lambda _: FakeEncoder(is_recording=False))
    await server.start()
    await server.load()
    assert server.service.engine is not None
    return server.service.engine


if __name__ == "__main__":
    asyncio.run(_main())
