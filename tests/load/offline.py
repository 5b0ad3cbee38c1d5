"""The ceiling: the same encoder called in a loop at its best batch, preparation overlapped, and no server."""

from __future__ import annotations

import itertools
import queue
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any

from alignserve_server.cores import cpu_count
from alignserve_server.model.align import AlignEncoder
from alignserve_server.model.encoder import TokenizedText

from tests.load.inputs import bodies

_WARMUP_SECONDS = 1.0
_TEXTS_AT_ONCE = 128


def offline_rate(encoder: AlignEncoder, modality: str, batch_size: int, seconds: float) -> float:
    """Returns the items per second of all lanes together, each item decoded or tokenized on the way.

    As many threads as there are cores prepare items into a queue of two batches a lane; each lane takes a
    batch of `batch_size` whenever it is free. Of as many texts as the server's callers send at a time, those
    of like length come together, as the server groups them.
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
    return _tokenized(encoder)


def _tokenized(encoder: AlignEncoder) -> Iterator[TokenizedText]:
    texts = (encoder.tokenize(body.decode(), truncate=True) for body in bodies("text"))
    while True:
        yield from sorted(itertools.islice(texts, _TEXTS_AT_ONCE), key=lambda text: len(text.input_ids))
