"""The ceiling: the same encoder in a loop at its best batch size, with overlapped preparation, no server."""

from __future__ import annotations

import itertools
import queue
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any

from alignserve_server.host.cores import cpu_count
from alignserve_server.model.encoder import Encoder, TokenIds
from alignserve_server.serving.loading import load_encoder
from alignserve_server.settings import load_settings

from tests.load.inputs import bodies

_BATCH_SIZES = (1, 2, 4, 8, 16, 32)
_TRIAL_SECONDS = 1.0
_WARMUP_SECONDS = 1.0
_MIN_BATCHES = 3  # per lane
_TEXTS_AT_ONCE = 128


def bare_encoder(checkpoint: str) -> Encoder:
    """Returns the encoder that a server builds from the same settings, and sets up this thread as a lane."""
    encoder = load_encoder(load_settings({"checkpoint": checkpoint}, None))
    encoder.enter_lane()
    return encoder


def best_offline_batch(encoder: Encoder, modality: str) -> int:
    """Returns the batch size with the highest rate."""
    return max(_BATCH_SIZES, key=lambda size: offline_rate(encoder, modality, size, _TRIAL_SECONDS))


def offline_rate(encoder: Encoder, modality: str, batch_size: int, seconds: float) -> float:
    """Returns the items per second of all lanes together, including decoding or tokenizing.

    One thread per core prepares items for a queue of two batches per lane; each lane takes a batch of
    `batch_size` whenever it is free. Texts are sorted by length in groups as large as the server's callers
    send at a time, so that similar lengths share a batch, as in the server.
    """
    encode = encoder.encode_images if modality == "image" else encoder.encode_texts
    prepared: queue.Queue[Any] = queue.Queue(2 * batch_size * encoder.lanes)
    done = threading.Event()
    begin = time.perf_counter() + _WARMUP_SECONDS
    ends: list[list[float]] = [[] for _ in range(encoder.lanes)]  # end times of batches

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
                ends[lane].append(time.perf_counter())

    with ThreadPoolExecutor(encoder.lanes + cpu_count()) as threads:
        jobs = [threads.submit(prepare, _items(encoder, modality)) for _ in range(cpu_count())]
        jobs += [threads.submit(run, lane) for lane in range(encoder.lanes)]
        timeout = _WARMUP_SECONDS + seconds
        while not wait(jobs, timeout, return_when="FIRST_EXCEPTION").done:
            if min(map(len, ends)) >= _MIN_BATCHES:
                break
            timeout = 0.1
        done.set()
    for job in jobs:
        job.result()
    # from the end of the first batch to the end of the last, since whole batches are counted
    return sum(batch_size * (len(times) - 1) / (times[-1] - times[0]) for times in ends)


def _items(encoder: Encoder, modality: str) -> Iterator[Any]:
    if modality == "image":
        return map(encoder.preprocess_image, bodies("image"))
    return _tokenized(encoder)


def _tokenized(encoder: Encoder) -> Iterator[TokenIds]:
    texts = (encoder.tokenize(body.decode(), truncate=True).token_ids for body in bodies("text"))
    while True:
        yield from sorted(itertools.islice(texts, _TEXTS_AT_ONCE), key=len)
