"""The ceiling: the same encoder called in a loop at its best batch, preparation overlapped, and no server."""

from __future__ import annotations

import itertools
import queue
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any

from alignserve_server.model.align import AlignEncoder
from alignserve_server.model.runtime import cpu_count

from tests.load.inputs import bodies

_WARMUP_SECONDS = 1.0


def offline_rate(encoder: AlignEncoder, modality: str, batch_size: int, seconds: float) -> float:
    """Returns the items per second of all lanes together, each item decoded or tokenized on the way.

    As many threads as there are cores prepare items into a queue of two batches a lane; each lane takes a
    batch of `batch_size` whenever it is free. Texts come in the order of their lengths, as the server groups
    them.
    """
    encode = encoder.encode_images if modality == "image" else encoder.encode_texts
    prepared: queue.Queue[Any] = queue.Queue(2 * batch_size * encoder.lanes)
    done = threading.Event()
    counts = [0] * encoder.lanes
    begin = time.perf_counter() + _WARMUP_SECONDS

    def prepare(items: Iterator[Any]) -> None:
        for item in items:
            while not done.is_set():
                try:
                    prepared.put(item, timeout=0.1)
                    break
                except queue.Full:
                    continue
            if done.is_set():
                return

    def run(lane: int) -> None:
        encoder.enter_lane()
        while not done.is_set():
            try:
                batch = [prepared.get(timeout=0.1) for _ in range(batch_size)]
            except queue.Empty:
                continue
            encode(batch)
            if time.perf_counter() >= begin:
                counts[lane] += len(batch)

    with ThreadPoolExecutor(encoder.lanes + cpu_count()) as threads:
        jobs = [threads.submit(prepare, _items(encoder, modality)) for _ in range(cpu_count())]
        jobs += [threads.submit(run, lane) for lane in range(encoder.lanes)]
        wait(jobs, timeout=_WARMUP_SECONDS + seconds, return_when="FIRST_EXCEPTION")
        elapsed = time.perf_counter() - begin
        done.set()
    for job in jobs:
        job.result()
    return sum(counts) / elapsed


def _items(encoder: AlignEncoder, modality: str) -> Iterator[Any]:
    if modality == "image":
        return map(encoder.preprocess_image, bodies("image"))
    texts = sorted((body.decode() for body in itertools.islice(bodies("text"), 2000)), key=len)
    tokenize: Callable[[str], Any] = lambda text: encoder.tokenize(text, truncate=True)  # noqa: E731
    return map(tokenize, itertools.cycle(texts))
