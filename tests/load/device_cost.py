"""CPU time of an item around the model: `python -m tests.load.device_cost [--profile ROW]`.

It counts what lies between the prepared inputs of a call, token ids or pixels, and their embeddings: with
admission, deadlines, turns, the sharing of equal inputs, caches and metrics, but without decoding, gRPC and
the model, which is a fake that answers at once. `fronts_cost` adds the transport between processes.

Medians over all turns, in microseconds of the process's CPU time per item. A row with several requests in
flight starts the next one when one is answered.
"""

import argparse
import asyncio
import cProfile
import gc
import pstats
import resource
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count
from statistics import median

import numpy as np
import uvloop
from alignserve_server.batching.admission import QueueLimits
from alignserve_server.batching.backend import AdmissionRequest, PreparedItems
from alignserve_server.batching.batcher import Batcher
from alignserve_server.batching.fair_queue import Flow, Priority
from alignserve_server.batching.local_backend import CacheBytes, LocalBackend
from alignserve_server.batching.request import Answer, Embedded
from alignserve_server.batching.scheduler import BatchPolicy, Scheduler
from alignserve_server.model.encoder import Embeddings, token_ids
from alignserve_server.model.fake import FakeEncoder
from alignserve_server.observability.batch_observer import MetricsObserver
from alignserve_server.observability.metrics import Metrics
from alignserve_server.observability.tracing import Tracing
from prometheus_client import CollectorRegistry

from tests.load.report import table

DIMENSION = 640
MAX_BATCH_SIZE = 64
_SECONDS_TO_DEADLINE = 10.0
_CACHE_BYTES = 1 << 23  # full after a few turns, as in a server that has run for a while
_PIXELS = np.zeros((289, 289, 3), np.uint8)
_IMAGE_BYTES, _TEXT_BYTES = 40_000, 30
_FLOWS = [Flow(f"key:{number}", Priority.INTERACTIVE) for number in range(4)]
_numbers = count(1)


class InstantEncoder(FakeEncoder):
    """Returns the same embeddings for any inputs, at once."""

    def __init__(self) -> None:
        super().__init__(DIMENSION, is_recording=False)
        self._embeddings = np.ones((MAX_BATCH_SIZE, DIMENSION), np.float32)
        self.batches_run = 0

    def encode_images(self, batch: Sequence[object]) -> Embeddings:
        self.batches_run += 1
        return self._embeddings[: len(batch)]

    encode_texts = encode_images


@dataclass(frozen=True)
class Row:
    """Requests of one kind, of which some are in flight at a time."""

    modality: str
    items: int  # of each request
    in_flight: int
    total: int  # items of a turn

    def requests(self) -> list[PreparedItems]:
        """Returns the requests of a turn; no input occurs twice."""
        make = _texts if self.modality == "text" else _images
        return [make(self.items) for _ in range(self.total // self.items)]


_ROWS = {
    "64 texts": Row("text", 64, 1, 6400),
    "8 times 64 texts": Row("text", 64, 8, 12800),
    "8 texts": Row("text", 8, 1, 1600),
    "64 times 1 text": Row("text", 1, 64, 3200),
    "1 text": Row("text", 1, 1, 300),
    "64 images": Row("image", 64, 1, 6400),
    "16 images": Row("image", 16, 1, 1600),
    "64 times 1 image": Row("image", 1, 64, 3200),
    "1 image": Row("image", 1, 1, 300),
}


def main() -> None:
    """Prints the table, or the profile of a row."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=20)
    parser.add_argument("--profile", choices=_ROWS, help="print the event loop's functions by their own time")
    given = parser.parse_args()
    uvloop.run(_profile(_ROWS[given.profile]) if given.profile else _measure(given.turns))


class Device:
    """A backend on one lane, and callers that keep requests in flight."""

    def __init__(self) -> None:
        self.encoder = InstantEncoder()
        observer = MetricsObserver(Metrics(CollectorRegistry()), Tracing(None, 0.0))
        policies = {"image": BatchPolicy(MAX_BATCH_SIZE), "text": BatchPolicy(MAX_BATCH_SIZE, overhead=16)}
        self.batcher = Batcher(self.encoder, Scheduler(policies), observer, lanes=1)
        self.batcher.start()
        self._backend = LocalBackend(
            self.encoder.info,
            self.batcher,
            observer,
            QueueLimits(4096, 1 << 30),
            CacheBytes(_CACHE_BYTES, _CACHE_BYTES),
        )
        self._loop = asyncio.get_running_loop()

    async def serve(self, row: Row, requests: list[PreparedItems]) -> None:
        """Serves requests, as many at a time as the row has in flight."""
        waiting, end = iter(requests), self._loop.create_future()
        for _ in range(row.in_flight):
            self._start(row, waiting, end)
        await end

    def _start(self, row: Row, waiting: Iterator[PreparedItems], end: asyncio.Future[None]) -> None:
        items = next(waiting, None)
        if items is None:
            return
        reservation = next(_numbers)
        request = AdmissionRequest(
            row.modality,
            len(items.sizes),
            sum(items.sizes),
            _FLOWS[reservation % len(_FLOWS)],
            self._loop.time() + _SECONDS_TO_DEADLINE,
        )
        self._backend.request_room(reservation, request)
        is_last = waiting.__length_hint__() == 0  # type: ignore[attr-defined]  # lists' iterators have it
        self._backend.submit(reservation, items, partial(self._go_on, row, waiting, end, is_last))

    def _go_on(
        self,
        row: Row,
        waiting: Iterator[PreparedItems],
        end: asyncio.Future[None],
        is_last: bool,
        answer: Answer,
    ) -> None:
        if not isinstance(answer, Embedded):
            end.set_exception(answer)
        elif is_last and not end.done():
            end.set_result(None)
        else:
            self._loop.call_soon(self._start, row, waiting, end)


async def _measure(turns: int) -> None:
    device = Device()
    costs: dict[str, list[float]] = {name: [] for name in _ROWS}
    counts: dict[str, tuple[float, float]] = {}
    for turn in range(turns + 1):
        for name, row in _ROWS.items():
            requests = row.requests()
            gc.collect()
            batches, switches, start = device.encoder.batches_run, _switches(), time.process_time()
            await device.serve(row, requests)
            seconds = time.process_time() - start
            if turn:  # the first one is the warm-up
                costs[name].append(seconds / row.total * 1e6)
            batches, switches = device.encoder.batches_run - batches, _switches() - switches
            counts[name] = row.total / batches, switches / batches
    await device.batcher.stop(10.0)
    rows = [
        (name, round(median(costs[name]), 1), round(counts[name][0], 1), round(counts[name][1], 1))
        for name in _ROWS
    ]
    print(table(["in flight", "CPU µs an item", "items a batch", "context switches a batch"], rows))


async def _profile(row: Row) -> None:
    device = Device()
    await device.serve(row, row.requests())
    turns = [row.requests() for _ in range(10)]
    profile = cProfile.Profile(time.thread_time)
    for requests in turns:
        with profile:
            await device.serve(row, requests)
    await device.batcher.stop(10.0)
    pstats.Stats(profile).sort_stats("tottime").print_stats(30)


def _switches() -> int:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_nvcsw + usage.ru_nivcsw


def _texts(number: int) -> PreparedItems:
    """Returns texts of 6 to 18 tokens."""
    texts = []
    for _ in range(number):
        content = next(_numbers)
        texts.append(token_ids([101, content, *[7] * (3 + content % 13), 102]))
    return PreparedItems.of_texts(texts, [_TEXT_BYTES] * number)


def _images(number: int) -> PreparedItems:
    keys = [next(_numbers).to_bytes(16, "little") for _ in range(number)]
    return PreparedItems([_PIXELS] * number, [_IMAGE_BYTES] * number, keys)


if __name__ == "__main__":
    main()
