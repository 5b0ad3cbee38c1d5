"""CPU time of a call without the model: `python -m tests.load.cpu_cost [--before FOLDER]`.

A `FakeEncoder` embeds inputs that no cache holds: for the `engine` rows in one process, for the `server` rows
over gRPC, of which only the server's process counts. The code of this checkout and that of another, FOLDER,
take turns of a few calls, so that other load on the machine affects both alike. The table shows medians over
all turns, in microseconds per call or item.
"""

import argparse
import asyncio
import json
import subprocess
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import grpc
from alignserve.v1 import align_service_pb2 as pb
from alignserve.v1 import align_service_pb2_grpc as pb_grpc

from tests.load.engine_cost import CALLS, LABELS, Costs, Rows, at_once, measured, new_image, new_texts
from tests.load.measuring import cpu_seconds
from tests.load.report import table
from tests.processes import ROOT, python_of, server_of, server_process


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--before", type=Path, help="another checkout to compare with")
    parser.add_argument("--starts", type=int, default=5, help="of each process")
    parser.add_argument("--turns", type=int, default=20, help="after each start")
    given = parser.parse_args()
    folders = [folder.resolve() for folder in (given.before, ROOT) if folder is not None]
    costs: dict[str, dict[Path, list[float]]] = defaultdict(lambda: defaultdict(list))
    for _ in range(given.starts):
        asyncio.run(_take_turns(folders, given.turns, costs))
    rows = [(row, *(round(median(of[folder]), 1) for folder in folders)) for row, of in costs.items()]
    print(table(["CPU µs", *map(str, folders)], rows))


async def _take_turns(folders: list[Path], turns: int, costs: dict[str, dict[Path, list[float]]]) -> None:
    with ExitStack() as started:
        measures = [(folder, part(folder, started)) for part in (_engine, _server) for folder in folders]
        for turn in range(turns + 1):
            for folder, measure in measures:
                for row, cost in (await measure()).items():
                    if turn:  # the first one is the warm-up
                        costs[row][folder].append(cost)


def _engine(folder: Path, started: ExitStack) -> Callable[[], Awaitable[Costs]]:
    command = (*python_of(folder), "-m", "tests.load.engine_cost")
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    process: Any = started.enter_context(subprocess.Popen(command, cwd=ROOT, **pipes))  # type: ignore[call-overload]

    async def measure() -> Costs:
        print(file=process.stdin, flush=True)
        costs: Costs = json.loads(next(line for line in process.stdout if line[0] == "{"))
        return costs

    return measure


def _server(folder: Path, started: ExitStack) -> Callable[[], Awaitable[Costs]]:
    server = started.enter_context(
        server_process("--checkpoint", "fake", "--lanes", "1", program=server_of(folder))
    )
    stub = pb_grpc.AlignServiceStub(grpc.aio.insecure_channel(server.address))
    images = lambda: [pb.Image(content=new_image())]  # noqa: E731
    unary: dict[str, Callable[[], Awaitable[object]]] = {
        "1 text": lambda: stub.EmbedText(pb.EmbedTextRequest(texts=new_texts(1))),
        "8 texts": lambda: stub.EmbedText(pb.EmbedTextRequest(texts=new_texts(8))),
        "1 image": lambda: stub.EmbedImage(pb.EmbedImageRequest(images=images())),
        "Classify": lambda: stub.Classify(pb.ClassifyRequest(images=images(), labels=LABELS)),
    }
    rows: Rows = {f"server: {name}": (partial(at_once, rpc, 8), 8) for name, rpc in unary.items()}
    rows["server: item of StreamInfer"] = (partial(_stream, stub), CALLS)
    return partial(measured, rows, partial(cpu_seconds, server.process.pid))


async def _stream(stub: Any) -> None:
    async def items() -> AsyncIterator[pb.StreamInferRequest]:
        for number in range(CALLS):
            text = pb.EmbedTextRequest(texts=new_texts(1))
            yield pb.StreamInferRequest(correlation_id=str(number), embed_text=text)

    async for _ in stub.StreamInfer(items()):
        pass


if __name__ == "__main__":
    main()
