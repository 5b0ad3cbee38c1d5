"""CPU time of a call between the doors and the model: `python -m tests.load.engine_cost [--before FOLDER]`.

A `FakeEncoder` embeds inputs that no cache holds. The code of this checkout and that of another, FOLDER, take
turns of a few calls, each in a process of its own, so that other load on the machine affects both alike. The
table shows medians over all turns, in microseconds per call.
"""

import argparse
import asyncio
import json
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from itertools import count
from pathlib import Path
from statistics import median
from typing import Any

from alignserve_server.batching.call import CallContext
from alignserve_server.batching.engine import Engine
from alignserve_server.model.fake import FakeEncoder
from alignserve_server.model.zero_shot import LabelSet
from alignserve_server.serving.server import Server
from alignserve_server.settings import Settings

from tests.load.report import table
from tests.processes import ROOT, python_of

_CALLS = 192  # of each kind in a turn
_LABELS = [f"label {number}" for number in range(10)]
_numbers = count()

_Costs = dict[str, float]
_Rows = dict[str, tuple[Callable[[], Awaitable[object]], int]]  # an operation, and how many calls it makes


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--before", type=Path, help="another checkout to compare with")
    parser.add_argument("--starts", type=int, default=5, help="of each process")
    parser.add_argument("--turns", type=int, default=20, help="after each start")
    parser.add_argument("--answering", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.answering:
        asyncio.run(_answer())
        return
    folders = [folder.resolve() for folder in (given.before, ROOT) if folder is not None]
    costs: dict[str, dict[Path, list[float]]] = defaultdict(lambda: defaultdict(list))
    for _ in range(given.starts):
        _take_turns(folders, given.turns, costs)
    rows = [(row, *(round(median(of[folder]), 1) for folder in folders)) for row, of in costs.items()]
    print(table(["CPU µs", *map(str, folders)], rows))


def _take_turns(folders: list[Path], turns: int, costs: dict[str, dict[Path, list[float]]]) -> None:
    with ExitStack() as started:
        processes = [(folder, started.enter_context(_engine(folder))) for folder in folders]
        for turn in range(turns + 1):
            for folder, process in processes:
                for row, cost in _ask(process).items():
                    if turn:  # the first one is the warm-up
                        costs[row][folder].append(cost)


def _engine(folder: Path) -> Any:
    command = (*python_of(folder), "-m", "tests.load.engine_cost", "--answering")
    return subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def _ask(process: Any) -> _Costs:
    print(file=process.stdin, flush=True)
    costs: _Costs = json.loads(next(line for line in process.stdout if line[0] == "{"))
    return costs


async def _answer() -> None:
    """Measures a turn for each line of standard input."""
    engine, call = await _loaded_engine(), CallContext()
    label_set = LabelSet.of(_LABELS, [])

    def text() -> Awaitable[object]:
        return engine.embed_texts(_texts(1), call)

    async def texts_at_once() -> None:
        await asyncio.gather(*(text() for _ in range(32)))

    rows: _Rows = {
        "1 text": (text, 1),
        "1 text, 32 at once": (texts_at_once, 32),
        "8 texts": (lambda: engine.embed_texts(_texts(8), call), 1),
        "1 image": (lambda: engine.embed_images([_image()], call), 1),
        "Classify": (lambda: engine.classify([_image()], label_set, 0, call, id), 1),
    }
    for _ in sys.stdin:
        print(json.dumps({name: await _cost(*row) for name, row in rows.items()}), flush=True)


async def _cost(work: Callable[[], Awaitable[object]], calls: int) -> float:
    """Returns the microseconds of a call."""
    start = time.process_time()
    for _ in range(_CALLS // calls):
        await work()
    return (time.process_time() - start) / _CALLS * 1e6


async def _loaded_engine() -> Engine:
    settings = Settings(listen="127.0.0.1:0", metrics_listen="127.0.0.1:0", lanes=1)
    server = Server(settings, lambda _: FakeEncoder(is_recording=False))
    await server.start()
    await server.load()
    assert server.service.engine is not None
    return server.service.engine


def _texts(number: int) -> list[str]:
    return [f"a photo of number {next(_numbers)}" for _ in range(number)]


def _image() -> bytes:
    return f"image {next(_numbers)}".encode()


if __name__ == "__main__":
    main()
