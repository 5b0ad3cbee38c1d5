"""CPU time of a call, the model left out: `python -m tests.load.cpu_cost [--before FOLDER]`.

Everything but the model is measured with `FakeEncoder`, on inputs that no cache holds: `engine` rows in one
process, `server` rows over gRPC, of the server's process alone. The code of this checkout and that in FOLDER,
another checkout, are run in turn. The table has medians, in microseconds per call or item. They are CPU time
and not wall time, so that other work on the machine hardly disturbs them.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import json
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from itertools import count
from pathlib import Path
from statistics import median
from typing import Any

import grpc
from alignserve.v1 import align_service_pb2 as pb
from alignserve.v1 import align_service_pb2_grpc as pb_grpc

from tests.load.report import table
from tests.processes import ROOT, ServerProcess, server_process

_LABELS = [f"label {number}" for number in range(10)]
_IN_FLIGHT = 8  # over gRPC
_MAIN = "import importlib as i; m = i.import_module('alignserve_server.cli'); "
_MAIN += "(getattr(m, 'main', None) or i.import_module('alignserve_server.cli.main').main)()"
_numbers = count()

Call = Callable[[], Awaitable[object]]


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--before", type=Path, help="another checkout to compare with")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--calls", type=int, default=2000, help="of each kind in a round")
    parser.add_argument("--only-engine", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.only_engine:
        print(json.dumps(asyncio.run(_engine_costs(given.calls))))
        return
    folders = [folder.resolve() for folder in (given.before, ROOT) if folder is not None]
    costs: dict[str, dict[Path, list[float]]] = defaultdict(lambda: defaultdict(list))
    for _ in range(given.rounds):
        for folder in folders:
            for row, cost in {**_in_process(folder, given.calls), **_over_grpc(folder, given.calls)}.items():
                costs[row][folder].append(cost)
    rows = [(row, *(round(median(of[folder]), 1) for folder in folders)) for row, of in costs.items()]
    print(table(["CPU µs", *(folder.name for folder in folders)], rows))


def _in_process(folder: Path, calls: int) -> dict[str, float]:
    command = (*_python(folder), "-m", __spec__.name, "--only-engine", "--calls", str(calls))
    printed = subprocess.run(command, stdout=subprocess.PIPE, check=True, cwd=ROOT).stdout
    costs: dict[str, float] = json.loads(printed.splitlines()[-1])
    return costs


async def _engine_costs(calls: int) -> dict[str, float]:
    """Measures the engine of the `alignserve_server` that is on the path."""
    server, engine, call = await _loaded_engine()
    label_set = importlib.import_module("alignserve_server.model.zero_shot").LabelSet.of(_LABELS, [])

    async def classify() -> None:
        await engine.classify([_image()], label_set, 0, call, lambda _: None)

    async def texts(number: int) -> None:
        await engine.embed_texts([_text() for _ in range(number)], call)

    async def at_once() -> None:
        await asyncio.gather(*(texts(1) for _ in range(32)))

    costs = {
        "engine: 1 text": await _cost(lambda: texts(1), calls, time.process_time),
        "engine: 1 text, 32 at once": await _cost(at_once, calls // 16, time.process_time) / 32,
        "engine: 8 texts": await _cost(lambda: texts(8), calls, time.process_time),
        "engine: 1 image": await _cost(
            lambda: engine.embed_images([_image()], call), calls, time.process_time
        ),
        "engine: Classify, labels cached": await _cost(classify, calls, time.process_time),
    }
    await server.stop(5.0)
    return costs


async def _loaded_engine() -> tuple[Any, Any, Any]:
    settings = importlib.import_module("alignserve_server.settings").Settings
    encoder = importlib.import_module("alignserve_server.model.fake").FakeEncoder(is_recording=False)
    try:
        server_module = importlib.import_module("alignserve_server.serving.server")
        call = importlib.import_module("alignserve_server.batching.call").CallContext()
    except ModuleNotFoundError:
        server_module = importlib.import_module("alignserve_server.server")
        call = importlib.import_module("alignserve_server.batching.engine").Call()
    server = server_module.Server(
        settings(listen="127.0.0.1:0", metrics_listen="127.0.0.1:0", lanes=1), lambda _: encoder
    )
    await server.start()
    await server.load()
    holder = getattr(server, "service", None) or server._servicer
    return server, holder.engine, call


def _over_grpc(folder: Path, calls: int) -> dict[str, float]:
    with server_process(
        "--checkpoint", "fake", "--lanes", "1", program=(*_python(folder), "-c", _MAIN)
    ) as server:
        return asyncio.run(_server_costs(server, calls))


async def _server_costs(server: ServerProcess, calls: int) -> dict[str, float]:
    clock_of_process = ~server.process.pid << 3 | 2  # as clock_getcpuclockid(3) makes it

    def cpu_seconds() -> float:
        return time.clock_gettime(clock_of_process)

    async with grpc.aio.insecure_channel(server.address) as channel:
        stub = pb_grpc.AlignServiceStub(channel)

        async def side_by_side(call: Call) -> None:
            await asyncio.gather(*(call() for _ in range(_IN_FLIGHT)))

        async def stream() -> None:
            async for _ in stub.StreamInfer(_items(64)):
                pass

        def classify() -> Awaitable[object]:
            return stub.Classify(pb.ClassifyRequest(images=[pb.Image(content=_image())], labels=_LABELS))

        def image() -> Awaitable[object]:
            return stub.EmbedImage(pb.EmbedImageRequest(images=[pb.Image(content=_image())]))

        def texts(number: int) -> Call:
            return lambda: stub.EmbedText(pb.EmbedTextRequest(texts=[_text() for _ in range(number)]))

        unary = {"1 text": texts(1), "8 texts": texts(8), "1 image": image, "Classify": classify}
        costs = {
            f"server: {name}": await _cost(partial(side_by_side, call), calls // _IN_FLIGHT, cpu_seconds)
            / _IN_FLIGHT
            for name, call in unary.items()
        }
        return {**costs, "server: item of StreamInfer": await _cost(stream, calls // 64, cpu_seconds) / 64}


async def _items(number: int) -> AsyncIterator[pb.StreamInferRequest]:
    for position in range(number):
        text = pb.EmbedTextRequest(texts=[_text()])
        yield pb.StreamInferRequest(correlation_id=str(position), embed_text=text)


async def _cost(call: Call, calls: int, cpu_seconds: Callable[[], float]) -> float:
    """Returns the microseconds of a call, after a tenth as many that are not measured."""
    for _ in range(calls // 10):
        await call()
    start = cpu_seconds()
    for _ in range(calls):
        await call()
    return (cpu_seconds() - start) / calls * 1e6


def _python(folder: Path) -> tuple[str, ...]:
    return ("env", f"PYTHONPATH={folder}/server:{folder}/client/python", sys.executable)


def _text() -> str:
    return f"a photo of number {next(_numbers)}"


def _image() -> bytes:
    return f"image {next(_numbers)}".encode()


if __name__ == "__main__":
    main()
