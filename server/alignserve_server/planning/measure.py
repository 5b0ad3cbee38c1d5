"""Measures the `Curve` of a machine: forwards, preprocessing, and the overhead of calls."""

from __future__ import annotations

import asyncio
import io
import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import TypeVar

import numpy as np
from PIL import Image

from alignserve_server.batching.batch_size import doubling
from alignserve_server.errors import StartupError
from alignserve_server.host.cores import cpu_count
from alignserve_server.modality import MODALITIES
from alignserve_server.model.encoder import TOKEN_BYTES, Encoder, OutOfDeviceMemory, TokenIds, token_ids
from alignserve_server.model.fake import FakeEncoder
from alignserve_server.planning.curve import Curve
from alignserve_server.planning.front_calls import front_call_seconds
from alignserve_server.serving.loading import batch_limits
from alignserve_server.serving.server import Server
from alignserve_server.settings import Settings

_T = TypeVar("_T")

Progress = Callable[[str], None]

_MIN_RUNS, _MIN_SECONDS = 5, 0.3  # of each step; the median is what a typical call experiences
_MAX_SECONDS = 1.0  # of a forward: larger batches are not run, but extrapolated
_LENGTHS = (8, 16, 32, 64)  # tokens
_CALLS, _CALLS_PER_SECOND = 600, 200  # one at a time, as most arrive: in bursts they would cost half as much
_TEXT = "a photo of a cat on a sofa in a room with a window"


async def measure(
    settings: Settings, encoder: Encoder, image_size: tuple[int, int], progress: Progress
) -> Curve:
    """Measures everything, which takes half a minute, or a few minutes with a slow model.

    Args:
        settings: Settings of the planned server.
        encoder: Its model.
        image_size: Width and height of the images that are decoded.
        progress: Called with a description of each step.

    Raises:
        OutOfDeviceMemory: Not even a single entry fits on the device.
        StartupError: The overhead of calls could not be measured.
    """
    photo = _photo(*image_size)
    lanes = settings.lanes or encoder.lanes
    limits = batch_limits(settings, encoder.info.device)
    pixels = encoder.preprocess_image(photo)
    plain = encoder.tokenize(_TEXT, truncate=True).token_ids

    def serve_others() -> None:
        encoder.preprocess_image(photo)
        encoder.encode_images([pixels])
        encoder.encode_texts([plain])

    with _Lanes(encoder, lanes if encoder.has_parallel_lanes else 1, serve_others) as busy_lanes:
        progress("measuring decoding and tokenization")
        prepare = {
            "image": busy_lanes.seconds(lambda: encoder.preprocess_image(photo)),
            "text": busy_lanes.seconds(lambda: encoder.tokenize(_TEXT, truncate=True)),
        }
        progress("measuring image forwards")
        cores = busy_lanes.cores(lambda: encoder.encode_images([pixels]))
        images = busy_lanes.by_size(lambda size: encoder.encode_images([pixels] * size), limits["image"])
        texts = {}
        for text in _texts(encoder):
            length = len(text) // TOKEN_BYTES
            progress(f"measuring text forwards with {length} tokens")
            texts[length] = busy_lanes.by_size(partial(_encode_texts, encoder, text), limits["text"])
    progress("measuring the overhead of calls")
    with _saved(photo) as file:
        call = await _call_seconds(file)
        front_calls = None
        if settings.front_processes:
            front_calls = await front_call_seconds(partial(_call, file))
    info = encoder.info
    return Curve(
        model=f"{info.model_id}, {info.runtime}, {info.dtype}, {info.device}",
        cores=cpu_count(),
        lanes=lanes,
        has_parallel_lanes=encoder.has_parallel_lanes,
        forward_cores=cores,
        call=call,
        prepare=prepare,
        forward={"image": {1: images}, "text": texts},
        lanes_per_modality=encoder.lanes_per_modality,
        front_calls=front_calls,
    )


class _Lanes:
    """Times work under the conditions of a loaded server: on all lanes at once, with other work in between.

    That work, `between`, is not timed, but evicts the CPU caches. Without it, forwards appeared a quarter
    faster than in a server.
    """

    def __init__(self, encoder: Encoder, lanes: int, between: Callable[[], None]) -> None:
        self._lanes = lanes
        self._device_seconds = encoder.device_seconds
        self._between = between
        self._threads = ThreadPoolExecutor(lanes, "lane", encoder.enter_lane)
        self._together = threading.Barrier(lanes)

    def __enter__(self) -> _Lanes:
        return self

    def __exit__(self, *_: object) -> None:
        self._threads.shutdown()

    def by_size(self, run: Callable[[int], object], limit: int) -> dict[int, float]:
        """Returns the device's seconds for batches of 1, 2, 4 …, up to the limit or until they take long."""
        seconds: dict[int, float] = {}
        for size in doubling(limit):
            try:
                seconds[size] = self.seconds(partial(run, size), on_device=True)
            except OutOfDeviceMemory:
                if not seconds:
                    raise
                break
            if seconds[size] > _MAX_SECONDS:
                break
        return seconds

    def seconds(self, run: Callable[[], object], *, on_device: bool = False) -> float:
        """Returns the median time of a run in seconds, without copies if it is the device's that counts."""

        def on_lane() -> float:
            self._together.wait()
            seconds: list[float] = []
            end = time.perf_counter() + _MIN_SECONDS
            while len(seconds) < _MIN_RUNS or time.perf_counter() < end:
                self._between()
                begin = time.perf_counter()
                run()
                measured = self._device_seconds() if on_device else None
                seconds.append(time.perf_counter() - begin if measured is None else measured)
            return statistics.median(seconds)

        self._on_all(run)  # warm-up
        return statistics.mean(self._on_all(on_lane))

    def cores(self, run: Callable[[], object]) -> float:
        """Returns how many cores a run keeps busy: the maximum of many, since interference lowers it."""
        self._on_all(run)  # warm-up
        highest, end = 0.0, time.perf_counter() + _MIN_SECONDS
        while (begin := time.perf_counter()) < end:
            begin_cpu = time.process_time()
            self._on_all(run)
            highest = max(highest, (time.process_time() - begin_cpu) / (time.perf_counter() - begin))
        return highest / self._lanes

    def _on_all(self, run: Callable[[], _T]) -> list[_T]:
        return [job.result() for job in [self._threads.submit(run) for _ in range(self._lanes)]]


def _texts(encoder: Encoder) -> Iterator[TokenIds]:
    """Yields texts of several lengths, up to the maximum."""
    longest = encoder.tokenize("cat " * encoder.info.max_text_tokens, truncate=True).input_ids
    for length in sorted({min(length, len(longest)) for length in _LENGTHS}):
        yield token_ids(longest[:length])


def _encode_texts(encoder: Encoder, text: TokenIds, size: int) -> None:
    encoder.encode_texts([text] * size)


def _photo(width: int, height: int) -> bytes:
    """Returns a JPEG with soft shapes and noise, about as large as a photo of that size."""
    rng = np.random.default_rng(0)
    shapes = rng.integers(0, 256, (height // 32 + 2, width // 32 + 2, 3), np.uint8)
    smooth = np.asarray(Image.fromarray(shapes).resize((width, height), Image.Resampling.BICUBIC))
    noisy = smooth + rng.normal(0.0, 6.0, smooth.shape)
    content = io.BytesIO()
    Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(content, "JPEG", quality=85)
    return content.getvalue()


@contextmanager
def _saved(photo: bytes) -> Iterator[str]:
    """Yields the name of a file with an image."""
    with tempfile.NamedTemporaryFile(suffix=".jpg") as file:
        file.write(photo)
        file.flush()
        yield file.name


async def _call_seconds(photo: str) -> dict[str, float]:
    """Returns the CPU time of a server for a call, without preprocessing and forward.

    It serves the fake model to a client in another process, whose time is not counted.
    """
    # Ignores the environment, which may configure keys and certificates.
    settings = Settings.model_construct(
        listen="127.0.0.1:0", metrics_listen=None, reflection=False, text_cache_bytes=0
    )
    server = Server(settings, lambda _: FakeEncoder(640, is_recording=False), announce=lambda *_, **__: None)
    await server.start()
    try:
        await server.load()
        seconds = {}
        for modality in MODALITIES:
            begin = time.process_time()
            calls = await _call(photo, server.port, modality)
            seconds[modality] = (time.process_time() - begin) / calls
        return seconds
    finally:
        await server.stop(0.0)


async def _call(photo: str, port: int, modality: str) -> int:
    """Makes calls of one item, in another process; returns their number."""
    client = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "alignserve.cli", "bench", "--server", f"127.0.0.1:{port}"),
        *("--work", modality, "--images", photo, "--rate", str(_CALLS_PER_SECOND)),
        *("--max-requests", str(_CALLS), "--duration-seconds", "600", "--warmup-seconds", "0", "--json"),
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONSAFEPATH": "1"},  # or -m would import from the current directory first
    )
    _, errors = await client.communicate()
    if client.returncode != 0:
        raise StartupError(f"the overhead of calls could not be measured: {errors.decode().strip()}")
    return _CALLS
