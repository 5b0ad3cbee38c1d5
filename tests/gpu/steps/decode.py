"""Photos through the checkpoint's preprocessing: do the cores keep up with the GPU?"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

from alignserve_server.model.checkpoint import resolve_checkpoint
from alignserve_server.model.preprocessing.decode import ImageDecoder
from alignserve_server.model.preprocessing.images import ImagePreprocessor

from tests.gpu.check import Check
from tests.gpu.machine import ROOT

PHOTOS = ROOT / "tests" / "data" / "photos"


def run(check: Check) -> None:
    """Measures one thread, half of the cores and all of them."""
    photos = [path.read_bytes() for path in sorted(PHOTOS.glob("*.jpg"))]
    preprocess = _preprocessor(check.checkpoint)
    cores = len(os.sched_getaffinity(0))
    seconds = check.sized(2.0, 0.1)
    for threads in sorted({1, cores // 2 or 1, cores}):
        rate = _rate(preprocess, photos, threads, seconds)
        check.results.measured("Decoding", {"threads": threads, "photos/s": rate})


def _preprocessor(folder: Path) -> ImagePreprocessor:
    decoder = ImageDecoder(max_bytes=10 << 20, max_pixels=25_000_000)
    return ImagePreprocessor(resolve_checkpoint(str(folder)).image_processor, decoder)


def _rate(preprocess: Callable[[bytes], object], photos: list[bytes], threads: int, seconds: float) -> float:
    counts = [0] * threads
    begin = time.perf_counter()

    def work(number: int) -> None:
        while time.perf_counter() < begin + seconds:
            preprocess(photos[counts[number] % len(photos)])
            counts[number] += 1

    workers = [threading.Thread(target=work, args=(number,)) for number in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return sum(counts) / (time.perf_counter() - begin)
